"""MAP and Laplace against closed forms, least squares, and expectation-maximisation."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from scipy.special import betaln, logsumexp
from scipy.stats import beta, binom, norm
from sklearn.mixture import GaussianMixture

from inference import MAP, Laplace, check, compare, fit, isolated, load_fit
from inference.density import Density
from inference.errors import InputError
from inference.sites import read_sites
from inference.starts import _at_edge
from inference.verdict_kinds import VerdictKind
from ppl_models import MODELS
from tests.accuracy import assert_moments

ENGINES = (Laplace(num_samples=50), MAP(num_samples=50))


def coin(heads, tosses):
    p = pyro.sample("p", dist.Beta(2.0, 3.0))
    pyro.sample("heads", dist.Binomial(tosses, p), obs=heads)


def line(X, y):
    """No prior but the support: the highest posterior density is the highest likelihood."""
    beta = pyro.sample("beta", dist.ImproperUniform(constraints.real, (), (X.shape[1],)))
    sigma = pyro.sample("sigma", dist.ImproperUniform(constraints.positive, (), ()))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(X @ beta, sigma), obs=y)


def two_groups(y):
    weight = pyro.sample("weight", dist.Uniform(0.0, 1.0))
    loc = pyro.sample("loc", dist.ImproperUniform(constraints.ordered_vector, (), (2,)))
    scale = pyro.sample("scale", dist.ImproperUniform(constraints.independent(constraints.positive, 1), (), (2,)))
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Bernoulli(1 - weight)).long()
        pyro.sample("y", dist.Normal(loc[z], scale[z]), obs=y)


def funnel(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("school", len(y)):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(theta, 10.0), obs=y)


def either_sign(y):
    x = pyro.sample("x", dist.Normal(0.0, 10.0))
    pyro.sample("y", dist.Normal(x.square(), 1.0), obs=y)


def steep(num=200, columns=8, condition=1e4):
    """Columns in very different units, far from zero: sds and places of the coefficients differ by thousands."""
    rng = np.random.default_rng(0)
    units = np.geomspace(1.0, condition, columns)
    X = np.c_[np.ones(num), rng.normal(size=(num, columns - 1)) * units[1:] + 5 * units[1:]]
    return {"X": X, "y": X @ (3.0 / units) + rng.normal(size=num)}


def least_squares(X, y):
    """Coefficients and the likeliest sd of the noise."""
    beta, *_ = np.linalg.lstsq(X, y, rcond=None)
    return beta, np.sqrt(np.mean((y - X @ beta) ** 2))


# --- MAP ------------------------------------------------------------------------------------------------------------


def test_the_mode_is_that_of_the_constrained_values():
    """The mode of a beta, 4 / 13 here, not that of its log odds, 5 / 15."""
    result = fit(coin, {"heads": torch.tensor(3.0), "tosses": 10}, MAP(), seed=0)
    np.testing.assert_allclose(result.draws["p"], 4 / 13, rtol=1e-7)
    expected = np.log(120) + 4 * np.log(4 / 13) + 9 * np.log(9 / 13) - betaln(2, 3)
    np.testing.assert_allclose(result.stats["lp"], expected, rtol=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_flat_priors_give_maximum_likelihood(seed):
    data = steep()
    result = fit(line, data, MAP(num_samples=4), seed=seed)
    assert result.status.ok, result.status
    expected, sigma = least_squares(**data)
    np.testing.assert_allclose(result.draws["beta"][0, 0], expected, rtol=1e-5)
    np.testing.assert_allclose(result.draws["sigma"][0, 0], sigma, rtol=1e-6)


def test_a_mixture_reaches_the_likelihood_of_expectation_maximisation():
    rng = np.random.default_rng(1)
    y = np.concatenate([rng.normal(-1.0, 0.6, 150), rng.normal(2.0, 1.2, 250)])
    result = fit(two_groups, {"y": y}, MAP(num_samples=4, num_chains=1), seed=0)
    em = GaussianMixture(2, tol=1e-12, max_iter=5000, n_init=5, reg_covar=0.0, random_state=0).fit(y[:, None])
    np.testing.assert_allclose(result.stats["lp"][0, 0], len(y) * em.score(y[:, None]), atol=1e-5)
    np.testing.assert_allclose(result.draws["loc"][0, 0], np.sort(em.means_.ravel()), atol=1e-3)
    # assignments are still drawn, from their distribution at the point
    order = np.argsort(em.means_.ravel())
    expected = em.predict_proba(y[:, None])[:, order[1]]
    many = fit(two_groups, {"y": y}, MAP(num_samples=1000), seed=0).draws["z"].mean((0, 1))
    assert np.abs(many - expected).max() < 4.5 * 0.5 / np.sqrt(4000)


def test_a_point_has_no_verdict_of_its_own():
    result = fit(coin, {"heads": torch.tensor(3.0), "tosses": 10}, MAP(), seed=0)
    assert set(result.stats) == {"lp"}
    assert check(result).kind is VerdictKind.CANNOT_TELL


def test_a_point_is_compared_like_any_fit():
    data = MODELS["beta_binomial"].data()
    fits = {
        name: fit(MODELS["beta_binomial"], data, engine, seed=0)
        for name, engine in {"laplace": Laplace(), "map": MAP()}.items()
    }
    found = compare(fits, reference="laplace")
    assert found.verdicts["map"].kind is not VerdictKind.TRUST
    assert (found.table["sd_ratio"] < 1e-3).all()


# --- Laplace --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["normal_mean", "bayesian_linear_regression"])
def test_a_gaussian_posterior_is_found_exactly(name):
    model = MODELS[name]
    data = model.data()
    exact = model.exact(data)
    result = fit(model, data, Laplace(num_samples=4000), seed=1)
    assert result.status.kind == "converged"
    # The variance of the noise is a parameter of the regression: skewed, so that its mode is no mean.
    sites, error = (["mu"], 1e-9) if name == "normal_mean" else (["intercept", "coef"], 0.05)
    for site in sites:
        assert_moments(result.draws[site], exact.mean[site], exact.sd[site], bias=0.0 if error < 1e-6 else 0.05)
    assert abs(result.state["log_evidence"] - exact.log_evidence) < error


def test_weights_are_those_of_the_posterior():
    result = fit(MODELS["normal_mean"], MODELS["normal_mean"].data(), Laplace(), seed=1)
    assert np.ptp(result.stats["log_weight"]) < 1e-6
    assert result.stats["log_weight"].mean() == pytest.approx(result.state["log_evidence"])


@pytest.mark.parametrize("seed", range(3))
def test_far_and_narrow_posteriors_are_reached(seed):
    data = steep()
    result = fit(line, data, Laplace(num_samples=2000), seed=seed)
    assert result.status.ok, result.status
    expected, sigma = least_squares(**data)
    sd = sigma * np.sqrt(np.diag(np.linalg.inv(data["X"].T @ data["X"])))
    assert_moments(result.draws["beta"], expected, sd, bias=0.01)


def test_one_of_two_modes_says_so():
    result = fit(either_sign, {"y": torch.tensor(9.0)}, Laplace(), seed=0)
    assert result.status.kind == "budget_spent"
    assert "the same height" in result.status.message
    verdict = check(result)
    assert verdict.kind not in (VerdictKind.TRUST, VerdictKind.TRUST_REWEIGHTED)


@pytest.mark.parametrize("engine", [MAP(num_samples=10), Laplace(num_samples=10)], ids=["map", "laplace"])
def test_ends_that_differ_in_labels_are_one_maximum(engine):
    """The control is the test before: two signs are not labels."""

    def two_of_a_kind(y):
        with pyro.plate("component", 2):
            loc = pyro.sample("loc", dist.Normal(0.0, 5.0))
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Categorical(torch.tensor([0.5, 0.5])))
            pyro.sample("y", dist.Normal(loc[z], 1.0), obs=y)

    rng = np.random.default_rng(0)
    y = np.concatenate([rng.normal(m, 1.0, 30) for m in (-3.0, 3.0)])
    for seed in range(3):
        result = fit(two_of_a_kind, {"y": y}, engine, seed=seed)
        assert result.status.message.startswith("8 of 8 starts reached the maximum"), result.status


def test_a_lesser_mode_that_counts_is_named():
    def lopsided(y):
        x = pyro.sample("x", dist.Normal(0.3, 1.0))
        pyro.sample("y", dist.Normal(x.square(), 0.5), obs=y)

    result = fit(lopsided, {"y": torch.tensor(3.0)}, Laplace(), seed=0)
    assert "a mass that counts" in result.status.message
    assert not result.status.ok
    assert (result.draws["x"] > 0).mean() > 0.99


@pytest.mark.parametrize("engine", ENGINES, ids=["laplace", "map"])
def test_without_a_maximum_there_is_no_number(engine):
    with pytest.raises(InputError, match=r"NUTS"):
        fit(funnel, {"y": torch.tensor([28.0, 8.0, -3.0, 7.0])}, engine, seed=0)


# --- Both -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES, ids=["laplace", "map"])
def test_backends_agree_and_files_keep_it(engine, tmp_path):
    data = {"heads": torch.tensor(3.0), "tosses": 10}
    native, python = (
        fit(coin, data, type(engine)(num_samples=50, backend=backend), seed=3) for backend in ("native", "python")
    )
    np.testing.assert_allclose(native.draws["p"], python.draws["p"], rtol=1e-6)
    assert load_fit(native.save(tmp_path / "fit.pt")).engine == native.engine


@pytest.mark.parametrize("engine", ENGINES, ids=["laplace", "map"])
def test_the_answer_does_not_depend_on_the_seed(engine):
    found = [fit(coin, {"heads": torch.tensor(3.0), "tosses": 10}, engine, seed=s).state["loc"] for s in (0, 1)]
    np.testing.assert_allclose(found[0], found[1], rtol=1e-7)


@pytest.mark.parametrize("option", [{"num_starts": 0}, {"num_samples": 1.5}, {"backend": "cuda"}, {"dtype": "half"}])
@pytest.mark.parametrize("engine", [Laplace, MAP])
def test_bad_settings_are_refused(engine, option):
    with pytest.raises(InputError, match=next(iter(option))):
        engine(**option)


def test_quadrature_agrees_with_the_evidence_of_a_skewed_posterior():
    """Laplace's evidence is near, not exact: the beta's on the scale of log odds."""
    result = fit(coin, {"heads": torch.tensor(30.0), "tosses": 100}, Laplace(), seed=0)
    p = np.linspace(1e-6, 1 - 1e-6, 200_001)

    exact = np.log(np.trapezoid(beta.pdf(p, 2, 3) * binom.pmf(30, 100, p), p))
    assert abs(result.state["log_evidence"] - exact) < 0.02
    u = np.log(p / (1 - p))
    density = beta.pdf(p, 32, 73)
    log_odds = np.trapezoid(density * u, p)
    assert abs(np.mean(np.log(result.draws["p"] / (1 - result.draws["p"]))) - log_odds) < 0.05


def two_locations(y, sd=1.0):
    """Only the two locations are unknown, so that the evidence is an integral over a plane."""
    with pyro.plate("component", 2):
        loc = pyro.sample("loc", dist.Normal(0.0, 3.0))
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Categorical(torch.ones(2) / 2), infer={"enumerate": "parallel"})
        pyro.sample("y", dist.Normal(loc[z], sd), obs=y)


def evidence_on_a_grid(y, sd=1.0, num=801):
    grid = np.linspace(-9.0, 9.0, num)
    prior = norm(0.0, 3.0).logpdf(grid)
    rows = norm(grid, sd).logpdf(np.asarray(y)[:, None])
    total = prior[:, None] + prior
    for row in rows:
        total = total + np.logaddexp(row[:, None], row) - np.log(2)
    return logsumexp(total) + 2 * np.log(grid[1] - grid[0])


def test_the_evidence_counts_the_labellings_of_a_mixture():
    rng = np.random.default_rng(0)
    y = np.concatenate([rng.normal(-2.5, 1.0, 40), rng.normal(2.5, 1.0, 40)])
    result = fit(two_locations, {"y": y}, Laplace(num_samples=200))
    assert abs(result.state["log_evidence"] - evidence_on_a_grid(y)) < 0.02  # without log 2 it would be 0.69 off
    assert any("all 2 labellings of 2" in note for note in result.notes)


def test_labellings_that_overlap_are_not_counted_twice():
    y = np.array([-0.8, 0.7, 0.9, -0.7])
    result = fit(two_locations, {"y": y, "sd": 0.7}, Laplace(num_samples=200))
    assert any("lies in no other" in note for note in result.notes)
    off = result.state["log_evidence"] - evidence_on_a_grid(y, 0.7)
    assert abs(off) < 0.2  # +-0.3 and more if both labellings counted in full, or one


def test_components_that_the_model_tells_apart_have_one_labelling():
    y = np.random.default_rng(0).normal([-2.5, 2.5], 1.0, (30, 2)).ravel()
    result = fit(two_groups, {"y": y}, Laplace(num_samples=200))
    assert not any("labelling" in note for note in result.notes)


def votes(counts):
    """A flat prior, so that the highest density is where the likelihood is, at an edge if nobody voted for one."""
    share = pyro.sample("share", dist.Dirichlet(torch.ones(len(counts))))
    pyro.sample("counts", dist.Multinomial(int(counts.sum()), share), obs=counts)


def unidentified(y):
    """Only the sum of the two is seen."""
    a = pyro.sample("a", dist.ImproperUniform(constraints.real, (), ()))
    b = pyro.sample("b", dist.ImproperUniform(constraints.real, (), ()))
    pyro.sample("y", dist.Normal(a + b, 1.0), obs=y)


def test_a_maximum_may_lie_at_an_edge():
    counts = torch.tensor([5.0, 0.0, 3.0, 0.0])
    result = fit(votes, {"counts": counts}, MAP(num_samples=4))
    assert result.status.ok
    assert np.allclose(result.draws["share"][0, 0], counts / counts.sum(), atol=1e-6)


def test_a_flat_ridge_is_no_edge():
    axes, curvatures = np.array([[1.0, 1.0], [-1.0, 1.0]]) / np.sqrt(2), np.array([0.0, 2.0])
    with isolated(seed=0):
        torch.set_default_dtype(torch.float64)
        ridge = Density(read_sites(unidentified, {"y": torch.tensor(1.0)}), jacobian=False)
        assert not _at_edge(ridge, np.array([0.5, 0.5]), curvatures, axes)
        edge = Density(read_sites(votes, {"counts": torch.tensor([5.0, 3.0, 0.0])}), jacobian=False)
        assert _at_edge(edge, np.array([-0.18, 35.0]), curvatures[::-1], np.eye(2))
