"""The rungs of AutoVI: each posterior is left to the one that it needs, and its draws are right."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy.integrate import quad
from scipy.stats import halfcauchy

from inference import NUTS, AutoVI, InputError, check, fit
from inference.autovi import predicted_gradients
from inference.gaussian import MAX_FULL_RANK, Gaussian, base_draws, linear_response
from inference.verdict_kinds import VerdictKind
from ppl_models import MODELS
from tests.accuracy import assert_moments
from tests.zoo import SCHOOLS, schools

CENTRED = MODELS["eight_schools_centered"]


def rung_names(result):
    return [rung["name"] for rung in result.state["ladder"]]


def independent(result):
    """Draws that as many effective ones stand for, to widen tolerances by."""
    return result.state["importance"]["ess"]


def test_a_regression_ends_on_the_first_rung():
    model = MODELS["linear_regression"]
    result = fit(model, model.data(), AutoVI(), seed=1)
    assert (result.state["rung"], rung_names(result)) == ("laplace", ["laplace"])
    assert result.state["importance"]["khat"] < 0.5
    assert result.method == "vi"
    assert check(result).kind is VerdictKind.TRUST


def group_sd_quantile(data, level):
    """Quantile of the sd of the groups of eight schools, everything else integrated: by quadrature on its logarithm."""
    y, sigma = (np.asarray(data[name], dtype=float) for name in ("y", "sigma"))

    def density(log_tau):
        variance = sigma**2 + np.exp(2 * log_tau)
        precision = 1 / 25 + (1 / variance).sum()
        centre = (y / variance).sum() / precision
        likelihood = -0.5 * (np.log(variance) + y**2 / variance).sum() + 0.5 * precision * centre**2
        return np.exp(likelihood - 0.5 * np.log(precision) + halfcauchy.logpdf(np.exp(log_tau), scale=5) + log_tau + 30)

    total = quad(density, -12, 8, limit=200)[0]
    grid = np.linspace(-12, 8, 4001)
    masses = np.cumsum(density_on(density, grid)) * (grid[1] - grid[0]) / total
    return float(np.exp(np.interp(level, masses, grid)))


def density_on(density, grid):
    return np.array([density(x) for x in grid])


@pytest.mark.parametrize("seed", [1, 2])
def test_a_funnel_is_bent_and_weighed(seed):
    """Centred eight schools: a Gaussian is hopeless there, and so are chains with one step size."""
    data = CENTRED.data()
    result = fit(CENTRED, data, AutoVI(), seed=seed)
    assert result.state["rung"] == "bent"
    gaussian, bent = result.state["ladder"]
    assert bent["ess_share"] > 2 * gaussian["ess_share"]
    decentred = fit(MODELS["eight_schools"], data, AutoVI(), seed=seed)
    assert result.state["elbo"] == pytest.approx(decentred.state["elbo"], abs=0.1)  # one evidence
    tau = result.draws["tau"].ravel()
    for level in (0.1, 0.5, 0.95):
        error = np.sqrt(level * (1 - level) * (1 / independent(result) + 1 / tau.size))
        assert np.mean(tau < group_sd_quantile(data, level)) == pytest.approx(level, abs=4.5 * error)


def two_heights():
    """Two modes with masses 3 to 1."""
    x = pyro.sample("x", dist.Normal(0.0, 10.0).expand([3]).to_event(1))
    high = dist.Normal(3.0, 0.5).log_prob(x).sum() + np.log(0.75)
    low = dist.Normal(-3.0, 0.5).log_prob(x).sum() + np.log(0.25)
    pyro.factor("modes", torch.logaddexp(high, low) - dist.Normal(0.0, 10.0).log_prob(x).sum())


def test_each_mode_has_its_mass():
    result = fit(two_heights, {}, AutoVI(), seed=3)
    share = (result.draws["x"][..., 0] > 0).mean()
    assert share == pytest.approx(0.75, abs=4.5 * np.sqrt(0.1875 / independent(result)))
    assert result.state["elbo"] == pytest.approx(0, abs=4.5 * result.state["elbo_se"])
    assert check(result).kind is VerdictKind.TRUST


def ring():
    """A ring, which no Gaussian and no bent one holds."""
    x = pyro.sample("x", dist.Normal(0.0, 100.0).expand([2]).to_event(1))
    pyro.factor("radius", dist.Normal(5.0, 0.2).log_prob(x.norm()) - x.norm().log())


def test_nuts_takes_over_where_no_rung_arrives():
    result = fit(ring, {}, AutoVI(num_samples=500), seed=1)
    assert (result.state["rung"], result.method, result.independent) == ("nuts", "mcmc", False)
    assert result.stats["diverging"].shape == (4, 500)
    assert "NUTS went on" in result.status.message
    radius = np.linalg.norm(result.draws["x"], axis=-1).ravel()
    assert radius.mean() == pytest.approx(5.0, abs=0.05)
    assert radius.std() == pytest.approx(0.2, abs=0.03)
    assert "rhat" in check(result).checks or "R-hat" in check(result).reason


def test_within_a_small_budget_nuts_does_not_take_over_and_the_verdict_knows():
    result = fit(ring, {}, AutoVI(budget=0.5), seed=1)
    assert result.method == "vi"
    assert check(result).kind not in (VerdictKind.TRUST, VerdictKind.TRUST_REWEIGHTED)


@pytest.mark.parametrize(("target", "least"), [("means", 400), ("sds", 1000), ("intervals", 2000)])
def test_the_target_is_reached(target, least):
    result = fit(schools, SCHOOLS, AutoVI(target=target), seed=1)
    assert independent(result) >= least


def test_evaluations_stay_within_what_nuts_needs():
    auto, nuts = fit(schools, SCHOOLS, AutoVI(), seed=1), fit(schools, SCHOOLS, NUTS(), seed=1)
    assert auto.num_gradients < nuts.num_gradients
    fitted = Gaussian(auto.state["loc"], auto.state["scale"])
    assert 1 / 3 < predicted_gradients(fitted) / nuts.num_gradients < 3


def test_linear_response_of_a_gaussian_is_its_covariance():
    rng = np.random.default_rng(0)
    root = np.tril(rng.normal(size=(6, 6))) + 2 * np.eye(6)
    covariance = root @ root.T
    precision = np.linalg.inv(covariance)
    mean_field = Gaussian(rng.normal(size=6), np.diag(precision) ** -0.5)
    z = base_draws(8, 6, full_rank=False, random_radius=False, rng=rng)
    wide = linear_response(lambda x: (np.zeros(len(x)), -(x - mean_field.loc) @ precision), mean_field, z)
    np.testing.assert_allclose(wide.scale @ wide.scale.T, covariance, rtol=1e-6)
    assert (mean_field.scale**2 < 0.7 * np.diag(covariance)).any()


def test_in_many_dimensions_linear_response_gives_the_correlations():
    """A shared level: each mean has half of its variance from it, which a mean field leaves out."""
    num = MAX_FULL_RANK + 10
    y = torch.as_tensor(np.random.default_rng(0).normal(size=num))

    def model(y):
        level = pyro.sample("level", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(y)):
            x = pyro.sample("x", dist.Normal(level, 0.1))
            pyro.sample("y", dist.Normal(x, 10.0), obs=y)

    result = fit(model, {"y": y}, AutoVI(), seed=1)
    precision = np.zeros((num + 1, num + 1))
    precision[0, 0] = 1 + 100 * num
    precision[0, 1:] = precision[1:, 0] = -100
    precision[1:, 1:] = (100 + 0.01) * np.eye(num)
    covariance = np.linalg.inv(precision)
    mean = covariance @ np.concatenate([[0.0], 0.01 * y.numpy()])
    assert result.state["rung"] == "linear_response"
    assert_moments(result.draws["level"], mean[0], np.sqrt(covariance[0, 0]))
    assert_moments(result.draws["x"][..., :5], mean[1:6], np.sqrt(np.diag(covariance)[1:6]))
    assert (np.diag(precision) ** -0.5)[0] < 0.2 * np.sqrt(covariance[0, 0])  # the control: that of the mean field


@pytest.mark.parametrize("wrong", [{"target": "modes"}, {"budget": 0}, {"budget": "all"}, {"budget": float("nan")}])
def test_wrong_settings_are_refused(wrong):
    (name,) = wrong
    with pytest.raises(InputError, match=f"^{name}: "):
        AutoVI(**wrong)


def test_bounds_do_not_depend_on_the_seed():
    bounds = [fit(schools, SCHOOLS, AutoVI(), seed=seed).state["elbo"] for seed in range(8)]
    assert np.ptp(bounds) < 0.15
