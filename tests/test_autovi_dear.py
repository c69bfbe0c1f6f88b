"""AutoVI where a gradient is dear, and starts of mixtures from a part of the rows."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

from inference import AutoVI, density, fit, ladder, starts
from inference.density import Density
from inference.isolation import isolated
from inference.sites import read_sites
from ppl_models import MODELS, mixture_start
from tests.zoo import SCHOOLS, schools

ROWS = np.random.default_rng(3).normal(2.0, 1.5, size=400)


def normal(x, extra=0):
    if extra:
        pyro.sample("others", dist.Normal(torch.zeros(extra), 1.0).to_event(1))
    loc = pyro.sample("loc", dist.Normal(0.0, 10.0))
    scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(loc, scale), obs=x)


@pytest.fixture
def all_dear(monkeypatch):
    monkeypatch.setattr(density, "DEAR_SECONDS", 0.0)


def test_laplaces_gaussian_suffices_where_data_are_many(all_dear):
    result = fit(normal, {"x": ROWS}, AutoVI(num_samples=500), seed=0)
    assert result.state["rung"] == "laplace"
    assert result.state["importance"]["khat"] < 0.6
    # By quadrature.
    loc, scale = np.meshgrid(np.linspace(1.3, 2.7, 400), np.linspace(1.2, 1.9, 400), indexing="ij")
    squares = ((ROWS - ROWS.mean()) ** 2).sum() + len(ROWS) * (loc - ROWS.mean()) ** 2
    log_p = -len(ROWS) * np.log(scale) - 0.5 * squares / scale**2
    log_p += -0.5 * (loc / 10) ** 2 - 0.5 * np.log(scale) ** 2 - np.log(scale)
    weights = np.exp(log_p - log_p.max())
    weights /= weights.sum()
    for name, grid in (("loc", loc), ("scale", scale)):
        mean = (weights * grid).sum()
        sd = np.sqrt((weights * (grid - mean) ** 2).sum())
        drawn = result.draws[name].ravel()
        assert abs(drawn.mean() - mean) < 4 * sd / np.sqrt(400)
        assert abs(drawn.std() / sd - 1) < 4 / np.sqrt(2 * 400)


def test_a_posterior_that_is_no_gaussian_goes_on_from_laplaces(all_dear):
    result = fit(schools, SCHOOLS, AutoVI(num_samples=250), seed=0)
    assert result.state["rung"] != "laplace"


def test_a_mean_field_is_fitted_where_laplaces_fails_in_many_dimensions(all_dear, monkeypatch):
    for module in (ladder, starts):
        monkeypatch.setattr(module, "MAX_FULL_RANK", 5)
    monkeypatch.setattr(ladder.Ladder, "good", lambda *_: False)
    result = fit(normal, {"x": ROWS, "extra": 6}, AutoVI(num_samples=250), seed=0)
    assert result.state["rung"] in ("mean_field", "linear_response")
    sds = result.draws["others"].reshape(-1, 6).std(axis=0)
    np.testing.assert_allclose(sds, 1.0, atol=0.15)


def test_a_climb_that_stops_near_a_mode_is_taken_there(monkeypatch):
    """Ends of climbs without a Hessian were refused as modes: all of the best ones of a mixture of 359 numbers."""
    with isolated(seed=0, dtype=torch.float64):
        made = Density(read_sites(normal, {"x": torch.as_tensor(ROWS)}))
        top, _ = starts.climb_to_maximum(made, np.zeros(2))
        mode = starts.mode_at(made, top)
        near = mode.laplace.transform(np.array([[0.05, -0.03]]))[0]
        assert starts.mode_at(made, near) is None
        monkeypatch.setattr(density, "DEAR_SECONDS", 0.0)
        vars(made).pop("is_dear", None)
        found = starts.mode_at(made, near)
        np.testing.assert_allclose(mode.laplace.whiten(found.laplace.loc[None]), 0, atol=5e-3)
        assert starts.mode_at(made, mode.laplace.transform(np.array([[2.0, 0.0]]))[0]) is None


def test_values_alone_are_those_of_the_gradient(all_dear, monkeypatch):
    monkeypatch.setattr(density, "WORTH_VALUES", 3)
    with isolated(seed=0, dtype=torch.float64):
        made = Density(read_sites(normal, {"x": torch.as_tensor(ROWS)}))
        made.compile()
        points = np.random.default_rng(0).normal(size=(5, 2))
        alone = made.log_density(points)
        assert made._native_values is not None
        np.testing.assert_allclose(alone, made.grad(points)[0], rtol=1e-13)


def test_a_start_from_a_part_of_the_rows_is_as_high_as_one_from_all(monkeypatch):
    """Where it is not, the climb starts in a poor mode: one cluster shared by two components."""
    rng = np.random.default_rng(0)
    centres = 4.0 * rng.normal(size=(5, 3))
    x = centres[rng.integers(5, size=4000)] + rng.normal(size=(4000, 3))
    model = MODELS["gaussian_mixture_exchangeable"].model

    def height(sites):
        fitted = mixture_start._Normals(sites["weights"], sites["loc"], sites["covariance"])
        rows = mixture_start._Rows(x, "full")
        joint = np.log(fitted.weights) + rows.log_density(fitted)
        return np.logaddexp.reduce(joint, axis=1).sum()

    data = {"x": torch.as_tensor(x), "K": 5}
    whole = max(height(mixture_start.normal_start(model, data, seed)) for seed in range(6))
    monkeypatch.setattr(mixture_start, "MAX_ROWS", 500)
    part = [height(mixture_start.normal_start(model, data, seed)) for seed in range(6)]
    assert np.min(part) > whole - 5.0  # nats, of thousands that a poor mode is lower
    monkeypatch.setattr(mixture_start, "LARGE_STARTS", 1)
    monkeypatch.setattr(mixture_start, "LAST_STEPS", 0)
    assert min(height(mixture_start.normal_start(model, data, seed)) for seed in range(6)) < whole - 5.0
