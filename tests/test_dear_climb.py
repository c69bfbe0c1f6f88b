"""Climbs without a Hessian: they end at maxima, and only there, whatever the units and the size of the density."""

import numpy as np
import pytest
import torch
from sklearn.mixture import GaussianMixture

from inference import MAP, fit, starts
from inference.dear_climb import climb_dear, newton_step
from ppl_models import MODELS
from tests.test_laplace import least_squares, line, steep

SETTLED = 1e-2


class Surface:
    """A log density given by a function of a tensor (D,)."""

    def __init__(self, function):
        self.function, self.num_gradients = function, 0

    def value_and_grad(self, point):
        self.num_gradients += 1
        leaf = torch.tensor(point, dtype=torch.float64, requires_grad=True)
        value = self.function(leaf)
        (gradient,) = torch.autograd.grad(value, leaf)
        return value.item(), gradient.numpy()


def stretched(dim=400, condition=1e3, offset=0.0):
    """A skewed density whose sds span ``condition``, with its maximum at known places."""
    at = torch.linspace(-3, 3, dim, dtype=torch.float64)
    sd = torch.logspace(0, -np.log10(condition), dim, dtype=torch.float64)

    def function(x):
        z = (x - at) / sd
        return offset + (z - z.exp()).sum()

    return Surface(function), at.numpy(), sd.numpy()


@pytest.mark.parametrize("offset", [0.0, -1e7])
def test_the_maximum_is_reached_within_a_share_of_a_local_sd(offset):
    """However large the density is: what is left is measured in sds, not as a share of its value."""
    surface, at, sd = stretched(offset=offset)
    end, settled = climb_dear(surface, at + 0.5 * sd * np.random.default_rng(0).standard_normal(len(at)), settled=1e-3)
    assert settled
    assert np.linalg.norm((end - at) / sd) < 3e-3
    assert surface.num_gradients < 400


def test_the_length_of_newtons_step_is_the_distance_in_local_sds():
    surface, at, sd = stretched(dim=30, condition=10.0)
    away = 1e-3 * np.random.default_rng(1).standard_normal(30)
    point = at + away * sd
    gradient = surface.value_and_grad(point)[1]
    found = newton_step(surface, point, gradient, lambda v: sd**2 * v * np.linspace(0.5, 2, 30))
    assert found.proper
    assert found.length == pytest.approx(np.linalg.norm(away), rel=0.02)


@pytest.mark.parametrize("dim", [2, 40])
def test_a_saddle_is_no_maximum(dim):
    """From where the gradient vanishes along the direction that leads up: only curvature tells."""
    signs = torch.ones(dim, dtype=torch.float64)
    signs[-1] = -1.0
    saddle = Surface(lambda x: -(signs * x.square()).sum() / 2)
    start = np.r_[np.linspace(1, 2, dim - 1), 0.0]
    assert not climb_dear(saddle, start, settled=SETTLED)[1]
    bowl = Surface(lambda x: -x.square().sum() / 2)
    assert climb_dear(bowl, start, settled=SETTLED)[1]


def test_a_density_without_a_maximum_is_not_settled():
    rising = Surface(lambda x: -x[1:].square().sum() * x[0].exp() + x[0])
    assert not climb_dear(rising, np.ones(5), settled=SETTLED)[1]


@pytest.fixture
def dear(monkeypatch):
    """Take every Hessian for dear, and count the climbs that do without."""
    ends = []

    def counted(density, point, **options):
        ends.append(climb_dear(density, point, **options))
        return ends[-1]

    monkeypatch.setattr(starts, "DEAR_SECONDS", 0.0)
    monkeypatch.setattr(starts, "climb_dear", counted)
    return ends


def test_regression_and_mixture_end_where_least_squares_and_expectation_maximisation_do(dear):
    data = steep(condition=100.0)
    result = fit(line, data, MAP(num_samples=4, num_starts=2), seed=0)
    expected, _ = least_squares(**data)
    sds = result.draws["sigma"][0, 0] * np.sqrt(np.diag(np.linalg.inv(data["X"].T @ data["X"])))
    assert np.abs((result.draws["beta"][0, 0] - expected) / sds).max() < 2 * SETTLED
    x = (
        np.random.default_rng(1).normal(size=(600, 3))
        + np.array([[-2.0, 0.0, 1.0], [2.0, 1.0, 0.0]])[np.arange(600) % 2]
    )
    em = GaussianMixture(2, tol=1e-10, max_iter=5000, reg_covar=0.0, random_state=0).fit(x)
    data = {"x": torch.from_numpy(x), "K": 2, "flat": True}
    result = fit(MODELS["gaussian_mixture_exchangeable"], data, MAP(num_samples=4, num_starts=2), seed=0)
    assert result.stats["lp"][0, 0] == pytest.approx(600 * em.score(x), abs=1e-3)
    assert len(dear) == 4
    assert all(settled for _, settled in dear)
