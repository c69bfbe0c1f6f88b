"""Flows as guides: their density, where they start, and a posterior that no Gaussian fits."""

import subprocess
import sys

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

from inference import SVI, InputError, fit
from inference.flow_guides import FLOWS
from tests.test_svi import COVARIANCE, LINE, MEAN, line
from tests.zoo import CASES, mixture_tutorial

SMALL = {"num_samples": 500, "num_chains": 2}
Z = 4.5


def banana():
    """No data, so that the evidence is one: x is N(0, 1), and y has mean 1 and standard deviation 1.45."""
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(x**2, 0.3))


def log_evidence():
    """Of `line`, whose data are jointly Gaussian."""
    design = np.stack([np.ones_like(LINE["x"]), LINE["x"]], 1)
    covariance = 6.25 * np.eye(len(design)) + 400 * design @ design.T
    _, log_det = np.linalg.slogdet(2 * np.pi * covariance)
    return -0.5 * (log_det + LINE["y"] @ np.linalg.solve(covariance, LINE["y"]))


@pytest.mark.parametrize(
    ("guide", "bound", "tolerance"),
    [
        ("realnvp", -0.1, 0.25),
        pytest.param("iaf", -0.3, 0.4, marks=pytest.mark.slow),
        pytest.param("spline", -0.05, 0.25, marks=pytest.mark.slow),
    ],
)
def test_flows_bend(guide, bound, tolerance):
    gaussian = fit(banana, {}, SVI(guide="multivariate_normal", **SMALL), seed=1)
    flow = fit(banana, {}, SVI(guide=guide), seed=1)
    assert gaussian.state["elbo"] < -0.6
    assert bound < flow.state["elbo"] < Z * flow.state["elbo_se"]  # a bound on log 1
    assert flow.status.ok
    x, y = flow.draws["x"], flow.draws["y"]
    assert abs(x.mean()) < 0.1
    assert x.std() == pytest.approx(1, abs=tolerance)
    assert y.mean() == pytest.approx(1, abs=tolerance)
    assert abs(gaussian.draws["y"].mean() - 1) > 0.6  # control
    assert gaussian.draws["x"].std() < 0.6
    # its weights average to the evidence, so that its density is what it draws from
    weights = np.exp(flow.stats["log_weight"]).ravel()
    assert abs(weights.mean() - 1) < max(0.03, Z * weights.std() / len(weights) ** 0.5)


@pytest.mark.parametrize("guide", FLOWS)
def test_flows_start_at_a_fitted_gaussian(guide):
    """Which is the posterior, where that is Gaussian: every draw has nearly the evidence as its weight."""
    run = fit(line, LINE, SVI(guide=guide, num_steps=20, lr=1e-12, num_particles=1, num_samples=4000), seed=1)
    assert run.state["elbo"] == pytest.approx(log_evidence(), abs=0.01)
    points = run.state["unconstrained"].reshape(-1, 2)
    np.testing.assert_allclose(points.mean(0), MEAN, atol=Z * np.sqrt(np.diag(COVARIANCE) / len(points)).max())
    np.testing.assert_allclose(np.cov(points.T), COVARIANCE, rtol=0.15)


@pytest.mark.parametrize("guide", ["iaf", "realnvp", pytest.param("spline", marks=pytest.mark.slow)])
def test_flows_of_one_dimension_and_of_marginal_densities(guide):
    def one(y):
        pyro.sample("y", dist.Normal(pyro.sample("x", dist.Gamma(2.0, 1.0)), 1.0), obs=y)

    run = fit(one, {"y": torch.tensor(1.0)}, SVI(guide=guide, num_steps=30, **SMALL), seed=1)
    assert np.isfinite(run.stats["log_weight"]).all()
    clusters = fit(
        mixture_tutorial,
        CASES["mixture_tutorial"].data,
        SVI(guide=guide, num_steps=5, num_particles=1, **SMALL),
        seed=1,
    )
    assert clusters.state["backend"].startswith("StickingTheLanding")
    assert clusters.draws["assignment"].shape == (2, 500, 40)


def test_flows_of_a_subsample():
    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        sigma = pyro.sample("sigma", dist.HalfNormal(1.0))
        with pyro.plate("data", len(y), subsample_size=3) as rows:
            pyro.sample("y", dist.Normal(mu, sigma), obs=y[rows])

    run = fit(model, {"y": torch.arange(9.0)}, SVI(guide="realnvp", num_steps=10, num_particles=2, **SMALL), seed=1)
    assert np.isfinite(run.history["loss"]).all()


def test_validation_stays_on_when_zuko_comes_in():
    program = (
        "import torch; from inference.flow_guides import realnvp; D = torch.distributions.Distribution; "
        "D.set_default_validate_args(True); realnvp(2); assert D._validate_args; "
        "import importlib, zuko; importlib.reload(zuko.distributions); assert not D._validate_args"  # control
    )
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True)


def test_too_large_steps_are_reported():
    run = fit(banana, {}, SVI(guide="realnvp", lr=0.5, num_steps=200, num_particles=2, **SMALL), seed=1)
    assert not run.status.ok
    with pytest.raises(InputError, match="guide: expected one of .*realnvp"):
        fit(banana, {}, SVI(guide="real_nvp"), seed=1)
