"""Optimisers by name, fixed draws and restarts."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO

from inference import SVI, check, fit
from inference.dowg import DoWG
from tests.test_flow_guides import log_evidence
from tests.test_svi import COVARIANCE, LINE, MEAN, MEAN_FIELD_SD, SMALL, ModuleGuide, hand_guide, line
from tests.test_svi_native import network_guide
from tests.zoo import SCHOOLS, schools

CURVATURE = torch.tensor([1.0, 4.0, 0.5])


def descend(optimiser, num, *, scale=1.0, split=False, **options):
    """Minimise a quadratic from far away; the iterates (num, 3)."""
    start = torch.tensor([100.0, -50.0, 7.0], dtype=torch.float64)
    params = [p.clone().requires_grad_() for p in (start.split([1, 2]) if split else [start])]
    made = optimiser(params, **options)
    path = []
    for _ in range(num):
        made.zero_grad()
        (scale * 0.5 * CURVATURE * torch.cat(params) ** 2).sum().backward()
        made.step()
        path.append(torch.cat(params).detach().numpy().copy())
    return np.array(path)


def test_dowg_is_the_published_algorithm():
    path, x = descend(DoWG, 60), np.array([100.0, -50.0, 7.0])
    start, total = x.copy(), 0.0
    distance = 1e-4 * (1 + np.linalg.norm(start))
    for step in range(60):
        gradient = CURVATURE.numpy() * x
        distance = max(distance, np.linalg.norm(x - start))
        total += distance**2 * (gradient @ gradient)
        x = x - distance**2 / np.sqrt(total) * gradient
        np.testing.assert_allclose(path[step], x, rtol=1e-10)


def test_dowg_needs_no_scale():
    path = descend(DoWG, 300)
    np.testing.assert_allclose(descend(DoWG, 300, scale=1e4), path, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(descend(DoWG, 300, split=True), path, rtol=1e-9, atol=1e-12)
    assert np.abs(path[-1]).max() < 1
    assert np.abs(descend(torch.optim.SGD, 300, lr=1e-3, scale=1e-2)[-1]).max() > 50  # control


@pytest.mark.parametrize("optimizer", ["clipped_adam", "dowg"])
def test_optimisers_by_name(optimizer):
    lr = {"clipped_adam": 0.1}.get(optimizer)
    run = fit(line, LINE, SVI(guide=hand_guide, optimizer=optimizer, lr=lr, **SMALL), seed=1)
    assert run.status.ok
    for i, name in enumerate(("intercept", "slope")):
        assert abs(run.draws[name].mean() - MEAN[i]) < 0.3 * COVARIANCE[i, i] ** 0.5
    stay = fit(
        line, LINE, SVI(guide=hand_guide, optimizer=optimizer, lr=1e-9, num_steps=50, **SMALL), seed=1
    )  # control
    assert abs(stay.draws["intercept"].mean()) < 1


def test_adam_by_name_is_the_class():
    named, given = (
        fit(line, LINE, SVI(optimizer=o, num_steps=200, backend="native", **SMALL), seed=1)
        for o in ("adam", torch.optim.Adam)
    )
    np.testing.assert_array_equal(named.history["loss"], given.history["loss"])
    assert "native" in named.state["backend"]


@pytest.mark.parametrize("guide", ["multivariate_normal", "low_rank"])
def test_fixed_draws_recover_a_gaussian_posterior_exactly(guide):
    run = fit(line, LINE, SVI(guide=guide, optimizer="lbfgs", **SMALL), seed=1)
    assert run.status.kind == "converged"
    np.testing.assert_allclose(run.stats["log_weight"], log_evidence(), atol=1e-4)  # so every draw says
    adam = fit(line, LINE, SVI(guide=guide, **SMALL), seed=1)
    assert np.ptp(adam.stats["log_weight"]) > 1e-2  # control


@pytest.mark.parametrize("guide", ["normal", "diagonal_normal", hand_guide, ModuleGuide()])
def test_fixed_draws_find_the_best_mean_field(guide):
    runs = [fit(line, LINE, SVI(guide=guide, optimizer="lbfgs", num_samples=2000), seed=s) for s in (1, 2)]
    for run in runs:
        for i, name in enumerate(("intercept", "slope")):
            assert abs(run.draws[name].mean() - MEAN[i]) < 0.05 * MEAN_FIELD_SD[i]
            assert run.draws[name].std() == pytest.approx(MEAN_FIELD_SD[i], rel=0.05)
    # the optimum is one, whatever the draws
    assert abs(runs[0].history["loss"][-1] - runs[1].history["loss"][-1]) < 1e-6


def test_fixed_draws_double_until_they_are_not_over_fitted():
    fixed = fit(schools, SCHOOLS, SVI(guide="multivariate_normal", optimizer="lbfgs"), seed=1)
    adam = fit(schools, SCHOOLS, SVI(guide="multivariate_normal"), seed=1)
    assert fixed.status.kind == "converged"
    assert fixed.state["elbo"] > adam.state["elbo"] - 0.1
    assert fixed.num_gradients > len(fixed.history["loss"])
    short = fit(schools, SCHOOLS, SVI(guide="multivariate_normal", optimizer="lbfgs", num_steps=2), seed=1)
    assert short.status.kind == "budget_spent"


def two_modes(y):
    x = pyro.sample("x", dist.Normal(0.0, 3.0))
    pyro.sample("y", dist.Normal(x**2, 1.0), obs=y)


def started_at(loc):
    def guide(y):
        at = pyro.param("at", lambda: torch.randn(()) + loc)
        pyro.sample("x", dist.Normal(at, pyro.param("scale", torch.tensor(0.1), constraint=dist.constraints.positive)))

    return guide


def test_restarts_show_several_optima():
    data = {"y": torch.tensor(9.0)}
    agreeing = fit(two_modes, data, SVI(guide=started_at(5.0), num_restarts=4, num_steps=1500, **SMALL), seed=1)
    starts = agreeing.state["starts"]
    assert agreeing.status.ok
    assert starts["agree"]
    assert starts["elbo"].shape == (4,)
    assert starts["rhat"] < 1.05
    assert agreeing.state["elbo"] == starts["elbo"].max()
    assert agreeing.num_gradients == 4 * 1500
    torn = fit(two_modes, data, SVI(guide=started_at(0.0), num_restarts=6, num_steps=1500, **SMALL), seed=2)
    starts = torn.state["starts"]
    assert np.ptp(starts["elbo"]) < 0.3  # the bounds do not tell, the draws do
    assert starts["rhat"] > 1.5
    assert not starts["agree"]
    assert not torn.status.ok
    assert "Restarts disagree" in torn.status.message
    assert "R-hat" in check(torn).reason


@pytest.mark.parametrize("guide", ["normal", "iaf", ModuleGuide(), "network"])
def test_the_best_restart_is_what_remains(guide):
    """Parameters, guide and networks are those of the best run, not of the last."""
    model, data = (schools, SCHOOLS) if guide == "network" else (line, LINE)
    torch.manual_seed(0)  # of the network
    made = network_guide() if guide == "network" else guide
    options = {"num_particles": 1} if guide == "iaf" else {"lr": 0.1}
    run = fit(model, data, SVI(guide=made, num_restarts=3, num_steps=60, **options), seed=1)
    assert len(set(run.state["starts"]["elbo"])) == 3
    with run.restored() as sites, pyro.validation_enabled(False):
        loss = Trace_ELBO(num_particles=400)
        losses = [loss.loss(sites.function, run.state["guide"], **sites.data) for _ in range(5)]
    others = np.sort(run.state["starts"]["elbo"])[:-1]
    error = np.std(losses) / 5**0.5 + run.state["elbo_se"]
    assert abs(-np.mean(losses) - run.state["elbo"]) < 5 * error
    if guide == "network":
        assert np.abs(-np.mean(losses) - others).max() > 5 * error  # control


def test_restarts_of_a_point_have_no_rhat():
    run = fit(line, LINE, SVI(guide="delta", num_restarts=2, num_steps=300, **SMALL), seed=1)
    assert np.isnan(run.state["starts"]["rhat"])
    assert run.state["starts"]["agree"]
    assert "R-hat" not in run.status.message
