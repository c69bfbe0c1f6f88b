"""A guide trained on draws: the maximum of the likelihood is known for Gaussians, and bounds enclose the evidence."""

from dataclasses import replace

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoMultivariateNormal
from scipy.stats import multivariate_normal

import inference.forward_kl
from inference import MAP, NUTS, SVI, InputError, Laplace, check, fit, from_draws, load_fit, train_guide
from inference.density import Density
from inference.guide_density import log_density_of
from tests.accuracy import assert_moments
from tests.zoo import CASES, SCHOOLS, correlated, logistic, mixture_by_hand, schools

positive = dist.constraints.positive


@pytest.fixture(scope="module")
def draws():
    return fit(schools, SCHOOLS, NUTS(num_samples=500), seed=1)


def by_hand(y, sigma):
    """Independent normals on the unconstrained space, in a user's words."""
    loc, scale = pyro.param("loc", torch.zeros(2)), pyro.param("scale", torch.ones(2), constraint=positive)
    pyro.sample("mu", dist.Normal(loc[0], scale[0]))
    pyro.sample("tau", dist.LogNormal(loc[1], scale[1]))
    with pyro.plate("school", len(y)):
        z = pyro.param("z_loc", torch.zeros(8)), pyro.param("z_scale", torch.ones(8), constraint=positive)
        pyro.sample("z", dist.Normal(*z))


def shortened(result):
    state = {**result.state, "unconstrained": result.state["unconstrained"][:, :50]}
    return replace(result, draws={name: value[:, :50] for name, value in result.draws.items()}, state=state)


def moments(result):
    points = result.state["unconstrained"].reshape(-1, len(result.state["labels"]))
    return points.mean(0), np.cov(points.T, bias=True)


def test_gaussian_guides_have_the_moments_of_the_draws(draws):
    mean, covariance = moments(draws)
    full = train_guide(draws).state["guide"].get_posterior()
    np.testing.assert_allclose(full.mean.detach(), mean, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(full.covariance_matrix.detach(), covariance, rtol=1e-6, atol=1e-9)
    for name in ("diagonal_normal", "normal"):
        guide = train_guide(draws, name).state["guide"]
        loc, scale = (torch.cat([p.reshape(-1) for p in parts]).detach() for parts in located(guide))
        np.testing.assert_allclose(loc, mean, rtol=1e-8, atol=1e-10)
        np.testing.assert_allclose(scale, np.sqrt(np.diag(covariance)), rtol=1e-8)


def located(guide):
    if hasattr(guide, "locs"):
        return zip(*(guide._get_loc_and_scale(name) for name in ("mu", "tau", "z")), strict=True)
    return [guide.loc], [guide.scale]


def test_no_gaussian_is_more_likely(draws):
    """The gradient vanishes at the start by moments; training from elsewhere ends there; other moments are worse."""
    named = train_guide(draws, "normal")
    assert named.history["gradient_norm"][-1] < 1e-6
    written = train_guide(draws, by_hand)
    assert len(written.history["loss"]) > 5
    assert written.history["loss"][0] > written.history["loss"][-1] + 5  # it had to be trained
    assert written.history["loss"][-1] == pytest.approx(named.history["loss"][-1], abs=1e-5)
    assert written.state["eubo"] == pytest.approx(named.state["eubo"], abs=1e-5)  # with the Jacobian of tau
    params = written.state["params"]["params"]
    mean, covariance = moments(draws)
    np.testing.assert_allclose(params["loc"].detach(), mean[:2], atol=2e-3 * np.sqrt(np.diag(covariance))[:2].max())
    np.testing.assert_allclose(params["scale"].detach().exp(), np.sqrt(np.diag(covariance))[:2], rtol=2e-3)
    off = train_guide(draws, by_hand, num_steps=1)
    assert off.status.kind == "budget_spent"
    assert off.history["loss"][-1] > named.history["loss"][-1] + 0.1


def test_one_draw_at_a_time_where_batches_fail(draws):
    few = shortened(draws)
    batched, single = train_guide(few, by_hand, num_steps=5), train_guide(few, reads_a_value, num_steps=5)
    np.testing.assert_allclose(single.history["loss"], batched.history["loss"], rtol=1e-8)


def reads_a_value(y, sigma):
    """As `by_hand`, but Python looks at a latent value, which stops a batch."""
    loc, scale = pyro.param("loc", torch.zeros(2)), pyro.param("scale", torch.ones(2), constraint=positive)
    mu = pyro.sample("mu", dist.Normal(loc[0], scale[0]))
    spread = scale[1] if float(mu) > -1e9 else 2 * scale[1]
    pyro.sample("tau", dist.LogNormal(loc[1], spread))
    with pyro.plate("school", len(y)):
        z = pyro.param("z_loc", torch.zeros(8)), pyro.param("z_scale", torch.ones(8), constraint=positive)
        pyro.sample("z", dist.Normal(*z))


def regression(x, y):
    coef = pyro.sample("coef", dist.Normal(torch.zeros(3), 10.0).to_event(1))
    pyro.sample("y", dist.Normal(x @ coef, 1.0).to_event(1), obs=y)


def test_bounds_enclose_the_evidence():
    """It is known here: y is Gaussian with covariance 100 x x' + I."""
    x = torch.randn(40, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y = x.sum(1)
    xs = x.numpy()
    evidence = multivariate_normal(np.zeros(40), 100 * xs @ xs.T + np.eye(40)).logpdf(y.numpy())
    nuts = fit(regression, {"x": x, "y": y}, NUTS(), seed=1)
    full, mean_field = train_guide(nuts), train_guide(nuts, "diagonal_normal")
    # the family holds the posterior: both bounds are tight, up to the error of 4000 draws (9 parameters)
    assert full.state["elbo"] == pytest.approx(evidence, abs=0.02)
    assert full.state["eubo"] == pytest.approx(evidence, abs=0.02)
    precision = xs.T @ xs + np.eye(3) / 100
    covariance = np.linalg.inv(precision)
    assert_moments(full.draws["coef"], covariance @ xs.T @ y.numpy(), np.sqrt(np.diag(covariance)), bias=0.05)
    # it does not: KL(p || q) = (log prod of variances - log det) / 2, by the definition for zero-mean Gaussians
    forward = 0.5 * (np.log(np.diag(covariance)).sum() - np.linalg.slogdet(covariance)[1])
    assert mean_field.state["eubo"] - evidence == pytest.approx(forward, abs=0.02)
    assert mean_field.state["elbo"] < evidence - 4 * mean_field.state["elbo_se"]
    assert check(full).kind == "TRUST"


def two_modes():
    x = pyro.sample("x", dist.Normal(0.0, 10.0))
    pyro.factor("modes", torch.logaddexp(-((x - 2) ** 2), -((x + 2) ** 2)) + 0.005 * x**2)


def test_it_covers_what_svi_misses():
    """Modes at -2 and 2 with variance 1/2 each: variance 4.5 in all; KL(q || p) is least within one mode."""
    nuts = fit(two_modes, {}, NUTS(num_samples=4000), seed=1)
    forward = train_guide(nuts, "normal")
    assert forward.draws["x"].std() == pytest.approx(4.5**0.5, rel=0.1)
    backward = fit(two_modes, {}, SVI(guide="normal"), seed=1)
    assert backward.draws["x"].std() < 1.0
    assert check(forward).kind != "DO_NOT_TRUST"


def banana():
    a = pyro.sample("a", dist.Normal(0.0, 10.0))
    pyro.sample("b", dist.Normal(0.03 * (a**2 - 100.0), 1.0))


def test_a_flow_comes_nearer_than_a_gaussian():
    """From exact draws; the density is normalised, so the log evidence is zero."""
    a, noise = np.random.default_rng(0).standard_normal((2, 4, 1000)) * [[[10.0]], [[1.0]]]
    points = np.stack([a, 0.03 * (a**2 - 100) + noise], axis=-1)
    nuts = fit(banana, {}, NUTS(num_warmup=20, num_samples=1000), seed=1)
    exact = replace(nuts, state={**nuts.state, "unconstrained": points})
    flow, gaussian = train_guide(exact, "iaf"), train_guide(exact)
    for result in (flow, gaussian):
        assert result.state["elbo"] < 4 * result.state["elbo_se"]
        assert result.state["eubo"] > -0.02
    assert gaussian.state["eubo"] > 1.0
    assert flow.state["eubo"] < 0.1 * gaussian.state["eubo"]


def log_q_at(result, points):
    with result.restored() as sites, torch.no_grad():
        points = torch.as_tensor(points.reshape(-1, points.shape[-1]))
        log_q = log_density_of(result.state["guide"], Density(sites), None, points)
        return log_q(torch.arange(len(points))).mean().item()


def test_a_flexible_guide_does_not_learn_the_draws_by_heart(draws, monkeypatch):
    few, fresh = shortened(draws), draws.state["unconstrained"][:, 100:]
    stopped = train_guide(few, "iaf", num_steps=100)
    monkeypatch.setattr(inference.forward_kl, "FLEXIBLE", np.inf)
    learned = train_guide(few, "iaf", num_steps=100)
    assert learned.history["loss"][-1] < stopped.history["loss"][-1]  # of its draws it knows more
    assert log_q_at(learned, fresh) < log_q_at(stopped, fresh) - 0.3  # and of the posterior less
    evidence = train_guide(draws).state["eubo"]  # above it, in truth
    assert learned.state["eubo"] < evidence - 1  # so this is an illusion
    assert stopped.state["eubo"] == pytest.approx(evidence, abs=0.5)


@pytest.mark.parametrize("model", [mixture_by_hand, correlated])
@pytest.mark.parametrize("guide", ["normal", "multivariate_normal", "low_rank"])
def test_constrained_sites(model, guide):
    nuts = fit(model, CASES[model.__name__].data, NUTS(num_warmup=300, num_samples=300, num_chains=2), seed=1)
    result = train_guide(nuts, guide)
    mean, covariance = moments(nuts)
    assert_moments(result.state["unconstrained"], mean, np.sqrt(np.diag(covariance)), bias=0.05)
    assert set(result.draws) == set(nuts.draws)
    assert np.isfinite(result.stats["log_weight"]).all()
    assert result.state["eubo"] > result.state["elbo"] - 4 * result.state["elbo_se"]


def test_the_callers_guide_is_not_trained_and_seeds_count(draws, tmp_path):
    pyro.clear_param_store()
    guide = AutoMultivariateNormal(schools)
    one, same, other = (train_guide(draws, guide, seed=s) for s in (1, 1, 2))
    assert guide.prototype_trace is None
    assert not list(pyro.get_param_store())
    np.testing.assert_array_equal(one.draws["mu"], same.draws["mu"])
    assert not np.array_equal(one.draws["mu"], other.draws["mu"])
    assert one.engine.method == "vi"
    assert "ForwardKL(source=<fit by NUTS(num_samples=500), seed 1>" in repr(one.engine)
    loaded = load_fit(one.save(tmp_path / "fit.pt"), model=schools)
    np.testing.assert_array_equal(loaded.stats["log_weight"], one.stats["log_weight"])
    warm = fit(schools, SCHOOLS, NUTS(init=one, num_warmup=50, num_samples=20, num_chains=2), seed=1)  # and back
    assert warm.status.ok


def with_a_helper(y, sigma):
    pyro.sample("helper", dist.Normal(0.0, 1.0), infer={"is_auxiliary": True})
    by_hand(y, sigma)


def without_parameters(y, sigma):
    pyro.sample("mu", dist.Normal(0.0, 1.0))
    pyro.sample("tau", dist.LogNormal(0.0, 1.0))
    with pyro.plate("school", len(y)):
        pyro.sample("z", dist.Normal(0.0, 1.0))


REFUSED = {
    "no fit": (lambda _: train_guide("nuts"), "source: expected a Fit.*got 'nuts'"),
    "given draws": (
        lambda d: train_guide(from_draws(d.draws)),
        "source: the fit by Given.* has no draws on the unconstr",
    ),
    "unknown guide": (lambda d: train_guide(d, "full"), "guide: expected one of"),
    "no density": (lambda d: train_guide(d, "structured"), "guide: the density of AutoStructured at given draws"),
    "a point": (lambda d: train_guide(d, "delta"), "guide: the density of AutoDelta at given draws"),
    "laplace": (lambda d: train_guide(d, "laplace"), "guide: the density of AutoLaplaceApproximation at given"),
    "helper site": (lambda d: train_guide(d, with_a_helper), "guide: samples 'helper', of which the fit has no draws"),
    "no parameters": (lambda d: train_guide(d, without_parameters), "guide: has no parameters to train"),
    "steps": (lambda d: train_guide(d, num_steps=0), "num_steps: expected an integer of at least 1, got 0"),
    "draws of a point": (
        lambda _: train_guide(fit(logistic, CASES["logistic"].data, MAP())),
        r"source: the draws of MAP\(\) have no spread in coef\[0\]",
    ),
    "fewer draws than coordinates": (
        lambda _: train_guide(fit(schools, SCHOOLS, NUTS(num_warmup=50, num_samples=8, num_chains=1))),
        "fit: the covariance of its 8 draws of 10 coordinates is singular",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_trained_is_refused(case, draws):
    call, message = REFUSED[case]
    with pytest.raises(InputError, match=message):
        call(draws)


def test_draws_of_any_fit_will_do():
    source = fit(logistic, CASES["logistic"].data, Laplace(), seed=1)
    result = train_guide(source)
    loc, scale = source.state["loc"], np.linalg.norm(source.state["scale"], axis=1)
    assert_moments(result.draws["coef"], loc, scale, bias=0.05)
