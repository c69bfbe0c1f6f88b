"""Probabilistic PCA and factor analysis: the ruler of VAEs, measured by scipy and scikit-learn."""

import math

import numpy as np
import pyro
import pytest
import torch
from pyro import poutine
from quadratic_joint import gaussian_evidence
from scipy import stats
from scipy.linalg import qr
from sklearn.decomposition import PCA, FactorAnalysis

from inference import MAP, NUTS, SVI, AutoVI, fit
from ppl_models import MODELS, datasets
from ppl_models.factor_loadings import bayesian_factor_analysis, pivots_of
from ppl_models.linear_latent import linear_guide, linear_posterior, principal_components
from ppl_models.simulation import own_stream

BOTH = pytest.mark.parametrize("name", ["probabilistic_pca", "factor_analysis"])
WINE = datasets.wine()


pytestmark = pytest.mark.usefixtures("direct_pyro")


def rows(name, *, missing=False, **sizes):
    data = MODELS[name].simulate(2, **{"num_rows": 7, "num_columns": 4} | sizes).data
    if missing:
        x = data["x"].clone()
        x[0, 1] = x[3, :2] = x[4, 3] = x[5] = torch.nan
        data["x"] = x
    return data


def by_scipy(data):
    """Evidence of every row by the dense marginal covariance of what is seen of it."""
    x, mean, W, noise = (data[n].numpy() for n in ("x", "mean", "loading", "noise_scale"))
    covariance = W @ W.T + np.diag(np.broadcast_to(noise, len(W)) ** 2)
    total = 0.0
    for row in x:
        seen = ~np.isnan(row)
        if seen.any():
            total += stats.multivariate_normal(mean[seen], covariance[np.ix_(seen, seen)]).logpdf(row[seen])
    return total


@BOTH
@pytest.mark.parametrize("missing", [False, True])
def test_exact_answers_against_the_dense_marginal_and_the_joint_density(name, missing):
    data, exact = rows(name, missing=missing), MODELS[name].exact
    answer = exact(data)
    assert answer.log_evidence == pytest.approx(by_scipy(data), rel=1e-10)
    evidence, mean, covariance = gaussian_evidence(MODELS[name].model, data, "z", (7, 2))
    assert answer.log_evidence == pytest.approx(evidence, rel=1e-10)
    np.testing.assert_allclose(answer.mean["z"], mean.reshape(7, 2), atol=1e-10)
    np.testing.assert_allclose(answer.sd["z"], covariance.diagonal().sqrt().reshape(7, 2), rtol=1e-10)
    # control: another noise has another evidence
    assert exact(data | {"noise_scale": data["noise_scale"] * 1.001}).log_evidence != pytest.approx(evidence, rel=1e-5)


@BOTH
def test_a_row_without_any_value_keeps_its_prior(name):
    answer = MODELS[name].exact(rows(name, missing=True))
    assert (answer.mean["z"][5] == 0).all()
    np.testing.assert_allclose(answer.sd["z"][5], 1.0)


@BOTH
def test_evidence_is_the_same_for_every_rotation_of_the_loading(name):
    data = rows(name)
    turn = torch.tensor([[math.cos(0.7), -math.sin(0.7)], [math.sin(0.7), math.cos(0.7)]])
    evidence = MODELS[name].exact(data).log_evidence
    assert MODELS[name].exact(data | {"loading": data["loading"] @ turn}).log_evidence == pytest.approx(evidence)
    stretched = data["loading"] @ torch.diag(torch.tensor([1.1, 1 / 1.1]))  # control: same volume, no rotation
    assert MODELS[name].exact(data | {"loading": stretched}).log_evidence != pytest.approx(evidence, abs=1e-3)


# The guide ---------------------------------------------------------------------------------------------------------


def log_weights(name, data, num=5):
    """Log p(x, z) - log q(z | x) of draws from the guide with the parameters in Pyro's store."""
    found = []
    with own_stream(3):
        for _ in range(num):
            guide = poutine.trace(linear_guide).get_trace(**data)
            model = poutine.trace(poutine.replay(MODELS[name].model, trace=guide)).get_trace(**data)
            found.append((model.log_prob_sum() - guide.log_prob_sum()).item())
    return np.array(found)


@BOTH
def test_the_linear_guide_at_its_optimum_is_the_posterior(name):
    data = rows(name)
    weight, covariance = linear_posterior(data["loading"].numpy(), data["noise_scale"].numpy())
    pyro.param("encoder.weight", torch.from_numpy(weight))
    pyro.param("encoder.bias", torch.zeros(2))
    pyro.param("encoder.scale_tril", torch.linalg.cholesky(torch.from_numpy(covariance)))
    np.testing.assert_allclose(log_weights(name, data), by_scipy(data), rtol=1e-12)  # of every draw, not on average
    pyro.get_param_store()["encoder.bias"] = torch.tensor([0.01, 0.0])
    assert np.ptp(log_weights(name, data)) > 1e-3  # control


@BOTH
def test_the_guide_is_trained_to_the_evidence(name):
    data = rows(name, num_rows=50)
    engine = SVI(guide=linear_guide, num_samples=100)
    result = fit(MODELS[name].model, data, engine, seed=1)
    start = result.history["loss"][:20].mean()
    assert start + by_scipy(data) > 20  # it starts far
    assert result.state["elbo"] == pytest.approx(by_scipy(data), abs=0.05)


def test_the_linear_vae_learns_the_principal_components():
    """Lucas et al. 2019, NeurIPS: the ELBO of a linear VAE has no maxima but those of the likelihood."""
    mean, loading, noise = principal_components(WINE.numpy(), 2)
    best = MODELS["probabilistic_pca"].exact(MODELS["probabilistic_pca"].data()).log_evidence
    data = {"x": WINE, "num_latents": 2}
    engine = SVI(guide=linear_guide, num_samples=100)
    result = fit(MODELS["probabilistic_pca"].model, data, engine, seed=1)
    assert result.history["loss"][0] + best > 200
    with result.restored():
        store = pyro.get_param_store()
        given = {n: store[n].detach().clone() for n in ("mean", "loading", "noise_scale")}
    learned = MODELS["probabilistic_pca"].exact(data | given).log_evidence
    assert best - 0.3 < learned <= best  # nats over 178 rows
    cosines = np.linalg.svd(np.linalg.qr(loading)[0].T @ np.linalg.qr(given["loading"].numpy())[0])[1]
    assert cosines.min() > 0.999  # the same plane


# Engines -----------------------------------------------------------------------------------------------------------

ENGINES = {
    "svi": SVI(guide=linear_guide, num_samples=500),
    "auto": AutoVI(num_samples=500),
    "nuts": NUTS(num_warmup=300, num_samples=500),
}


@pytest.mark.parametrize("engine", list(ENGINES))
@BOTH
def test_every_engine_finds_the_exact_posterior_and_evidence(name, engine):
    data = rows(name, num_rows=30)  # loadings as drawn: the two numbers of a row are correlated
    answer = MODELS[name].exact(data)
    weight, covariance = linear_posterior(data["loading"].numpy(), data["noise_scale"].numpy())
    assert abs(covariance[0, 1]) > 0.2 * np.sqrt(covariance[0, 0] * covariance[1, 1])
    result = fit(MODELS[name].model, data, ENGINES[engine], seed=1)
    z = (result.draws["z"].reshape(-1, 30, 2) - answer.mean["z"]) / answer.sd["z"]
    # 2000 draws: se .022 of a mean, .016 of an sd; the largest of 60. A trained guide misses some hundredths more.
    allowed = 0.1
    assert np.abs(z.mean(0)).max() < allowed
    assert np.abs(z.std(0) - 1).max() < allowed
    correlation = (z[:, :, 0] * z[:, :, 1]).mean(0)
    exact_correlation = covariance[0, 1] / np.sqrt(covariance[0, 0] * covariance[1, 1])
    assert np.abs(correlation - exact_correlation).max() < allowed
    assert abs(exact_correlation) > 2 * allowed  # control: independent numbers would be seen
    if engine != "nuts":
        assert result.state["elbo"] == pytest.approx(answer.log_evidence, abs=0.05)
    if engine == "svi":  # AutoVI gives draws that are resampled, without weights
        weights = (result.stats["lp"] - result.stats["log_q"]).reshape(-1)
        log_mean = np.logaddexp.reduce(weights) - np.log(len(weights))
        error = np.std(np.exp(weights - log_mean)) / np.sqrt(len(weights))
        assert log_mean == pytest.approx(answer.log_evidence, abs=4 * error + 1e-8)


# Maximum likelihood ------------------------------------------------------------------------------------------------


def mean_log_likelihood(loading, noise_variance):
    covariance = loading @ loading.T + np.diag(np.broadcast_to(noise_variance, len(loading)))
    return stats.multivariate_normal(WINE.numpy().mean(0), covariance).logpdf(WINE.numpy()).mean()


def test_principal_components_are_those_of_scikit_learn_and_their_likelihood_is_highest():
    mean, loading, noise = principal_components(WINE.numpy(), 3)
    theirs = PCA(3).fit(WINE.numpy())
    cosines = np.linalg.svd(theirs.components_ @ np.linalg.qr(loading)[0])[1]
    np.testing.assert_allclose(cosines, 1.0)
    ours = mean_log_likelihood(loading, noise**2)
    # Scikit-learn divides by n - 1, which lowers the likelihood of a row by about D / 4 n^2 = 1e-4.
    assert 0 < ours - theirs.score(WINE.numpy()) < 1e-3
    for change in (1.02, 0.98):
        assert mean_log_likelihood(loading * change, noise**2) < ours
        assert mean_log_likelihood(loading, (noise * change) ** 2) < ours


@pytest.mark.parametrize("num_latents", [1, 3])
@pytest.mark.parametrize("isotropic", [False, True])
def test_the_flat_maximum_is_that_of_scikit_learn(num_latents, isotropic):
    data = {"x": WINE, "num_latents": num_latents, "isotropic": isotropic, "flat": True}
    result = fit(bayesian_factor_analysis, data, MAP(num_samples=4, num_chains=1, num_starts=4), seed=1)
    loading, noise = (result.draws[n][0, 0] for n in ("loading", "noise_scale"))
    ours = mean_log_likelihood(loading, noise**2)
    if isotropic:
        theirs = mean_log_likelihood(
            *(
                f(v)
                for f, v in zip(
                    (np.asarray, np.square), principal_components(WINE.numpy(), num_latents)[1:], strict=True
                )
            )
        )
    else:
        theirs = FactorAnalysis(num_latents, tol=1e-10, max_iter=10_000, svd_method="lapack").fit(WINE.numpy())
        theirs = theirs.score(WINE.numpy())
    assert ours == pytest.approx(theirs, abs=1e-3 / len(WINE))  # in all, 1e-3 nats
    assert mean_log_likelihood(loading * 1.02, noise**2) < theirs - 1e-3 / len(WINE)  # control


def test_pivots_are_the_columns_that_principal_components_tell_apart():
    """A pivoted QR decomposition by LAPACK; the last of two equal columns is no pivot beside the first."""
    x = WINE.numpy()
    _, size, direction = np.linalg.svd(x, full_matrices=False)
    for num_latents in (1, 2, 3, 5):
        *_, order = qr(direction[:num_latents] * size[:num_latents, None], pivoting=True)
        assert pivots_of(WINE, num_latents).tolist() == order[:num_latents].tolist()
    twice = torch.cat([WINE[:, :1], WINE[:, :1], WINE[:, 1:2]], 1)
    assert 2 in pivots_of(twice, 2).tolist()
    assert sorted(pivots_of(torch.zeros(3, 4), 4).tolist()) == [0, 1, 2, 3]  # different ones even where all is zero


def test_pivots_change_nothing_but_the_coordinates():
    """The density of the data averages to the same over the prior, whatever the pivots."""
    data = {"x": WINE[:2, :3], "num_latents": 2, "centre": torch.zeros(3), "spread": torch.tensor([1.0, 2.0, 0.5])}

    def evidence(pivots, num=100_000, **change):
        def many():
            with pyro.plate("draws", num, dim=-2):
                bayesian_factor_analysis(**data | change, pivots=torch.tensor(pivots))

        with own_stream(5):
            trace = poutine.trace(many).get_trace()
        trace.compute_log_prob()
        density = trace.nodes["x"]["log_prob"].sum(-1).exp()
        return density.mean().item(), (density.std() / num**0.5).item()

    (first, error), (second, other) = evidence([0, 1]), evidence([2, 0])
    assert abs(first - second) < 4 * math.hypot(error, other)
    wider, other = evidence([0, 1], spread=1.2 * data["spread"])  # control
    assert abs(first - wider) > 5 * math.hypot(error, other)


# Loadings that are uncertain ---------------------------------------------------------------------------------------


def prior_covariances(num, num_latents):
    data = {"x": torch.zeros(1, 4), "num_latents": num_latents, "centre": torch.zeros(4), "spread": torch.ones(4)}

    def many():
        with pyro.plate("draws", num, dim=-2):
            bayesian_factor_analysis(**data)

    with own_stream(4):
        loading = poutine.trace(many).get_trace().nodes["loading"]["value"][:, 0]
    return loading, (loading @ loading.mT).numpy()


@pytest.mark.parametrize("num_latents", [1, 2, 4])
def test_the_prior_of_the_loading_is_that_of_independent_normals_but_for_a_rotation(num_latents):
    """Products of the loading with itself are then Wishart, with D (D + 1) / 2 known means and variances."""
    num = 20_000
    loading, products = prior_covariances(num, num_latents)
    assert (loading.triu(1) == 0).all()
    assert (loading.diagonal(dim1=-2, dim2=-1) > 0).all()
    wishart = stats.wishart(num_latents, np.eye(4) / num_latents) if num_latents == 4 else None
    mean, variance = np.eye(4), (np.ones((4, 4)) + np.eye(4)) / num_latents
    if wishart is not None:
        np.testing.assert_allclose(wishart.mean(), mean)
        np.testing.assert_allclose(wishart.var(), variance)
    z = (products.mean(0) - mean) / np.sqrt(variance / num)
    assert np.abs(z).max() < 4
    squares = (products - mean) ** 2
    z = (squares.mean(0) - variance) / (squares.std(0) / np.sqrt(num))
    assert np.abs(z).max() < 4
    # control: half-normals on the diagonal have another mean there, but for one factor
    assert (
        num_latents == 1 or abs((products[:, 0, 0] - loading[:, 0, 0].numpy() ** 2 + 1 / num_latents).mean() - 1) > 0.1
    )


@pytest.mark.parametrize("isotropic", [False, True])
def test_the_density_is_the_marginal_one_also_where_entries_are_missing(isotropic):
    data = {"x": WINE[:6, :5].clone(), "num_latents": 2, "isotropic": isotropic}
    data |= {"centre": torch.zeros(5), "spread": torch.linspace(0.5, 1.5, 5), "pivots": torch.tensor([3, 1])}
    trace = poutine.trace(bayesian_factor_analysis).get_trace(**data)
    values = {n: trace.nodes[n]["value"] for n in ("mean", "diagonal", "below", "noise_scale")}
    given = {n: trace.nodes[n]["value"] for n in ("mean", "loading", "noise_scale")}
    for _ in range(2):  # then with gaps
        trace = poutine.trace(poutine.condition(bayesian_factor_analysis, data=values)).get_trace(**data)
        trace.compute_log_prob()
        assert trace.nodes["x"]["log_prob"].sum().item() == pytest.approx(by_scipy({"x": data["x"]} | given), rel=1e-9)
        data["x"][0, 2] = data["x"][3, :4] = data["x"][5] = torch.nan


def test_vi_and_nuts_agree_on_the_covariance_where_loadings_are_uncertain():
    data = {"x": WINE[:, :6], "num_latents": 2}
    draws = {}
    for name, engine in {"auto": AutoVI(num_samples=500), "nuts": NUTS(num_warmup=500, num_samples=500)}.items():
        result = fit(MODELS["bayesian_factor_analysis"], data, engine, seed=1)
        loading = result.draws["loading"]
        noise = result.draws["noise_scale"]
        draws[name] = loading @ np.swapaxes(loading, -1, -2) + noise[..., None] ** 2 * np.eye(6)
    mean, sd = draws["nuts"].mean((0, 1)), draws["nuts"].std((0, 1))
    assert np.abs((draws["auto"].mean((0, 1)) - mean) / sd).max() < 0.2  # se of the difference .03 to .06
    assert np.abs(np.log(draws["auto"].std((0, 1)) / sd)).max() < 0.2


# Bad input ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(3)}, r"x: expected a table of shape \(rows, columns\), none of them 0, got \(3,\)"),
        ({"x": torch.zeros(0, 4)}, r"x: expected a table"),
        ({"num_latents": 0}, "num_latents: expected a whole number of at least 1, got 0"),
        ({"num_latents": 3}, r"loading: expected shape \(4, 3\) with 4 columns and num_latents=3, got \(4, 2\)"),
        ({"mean": torch.zeros(3)}, r"mean: expected shape \(4,\)"),
        ({"noise_scale": torch.ones(2)}, r"noise_scale: expected shape \(.*\) with 4 columns"),
        ({"noise_scale": "negative"}, "noise_scale: expected positive sds, got -1"),
    ],
)
@BOTH
def test_bad_input_is_refused(name, change, message):
    data = rows(name)
    if change.get("noise_scale") == "negative":
        change = {"noise_scale": -torch.ones_like(data["noise_scale"])}
    for function in (lambda d: MODELS[name].model(**d), MODELS[name].exact):
        with pytest.raises(ValueError, match=message):
            function(data | change)


def test_bad_input_of_the_uncertain_loadings_is_refused():
    with pytest.raises(ValueError, match="num_latents: expected at most the 4 columns of x, got 5"):
        bayesian_factor_analysis(x=torch.zeros(3, 4), num_latents=5)
    with pytest.raises(ValueError, match="x: expected a table"):
        bayesian_factor_analysis(x=torch.zeros(3))
    for pivots, message in (
        ([0, 0], r"expected different columns from 0 to 3, got \[0, 0\]"),
        ([0, 4], r"expected different columns from 0 to 3, got \[0, 4\]"),
        ([0], r"expected 2 integers, got torch.int64 of shape \(1,\)"),
        ([0.0, 1.0], "expected 2 integers, got torch.float64"),
    ):
        with pytest.raises(ValueError, match=f"pivots: {message}"):
            bayesian_factor_analysis(x=torch.zeros(3, 4), pivots=torch.tensor(pivots))


@BOTH
def test_exact_answers_need_given_parameters(name):
    data = rows(name)
    del data["loading"]
    with pytest.raises(ValueError, match="loading: exact answers are for given mean, loading and noise_scale"):
        MODELS[name].exact(data)
    with pytest.raises(ValueError, match="num_latents: expected fewer than the 4 columns"):
        principal_components(data["x"].numpy(), 4)
