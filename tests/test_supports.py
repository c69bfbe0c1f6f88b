"""Sites with fixed supports are constrained all at once: the same values as the model gives, one draw at a time."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

from inference.density import Density
from inference.isolation import isolated
from inference.mapped import map_draws
from inference.sites import read_sites
from tests.zoo import CASES

MOVING = {"moving_support"}


def bounded_by_a_constant(y):
    pyro.sample("rate", dist.Uniform(torch.tensor(0.0), torch.tensor(2.0)))


@pytest.mark.parametrize("name", CASES)
def test_one_way_and_the_other(name):
    case = CASES[name]
    with isolated(0):
        density = Density(read_sites(case.model, case.data))
        points = np.random.default_rng(0).normal(size=(5, density.dim))
        found = density.constrain(points)
        expected = map_draws(density._constrain_one, torch.as_tensor(points))
        assert found.keys() == expected.keys()
        for site, value in expected.items():
            np.testing.assert_allclose(found[site], value, rtol=1e-12)
        assert not (name in MOVING and density._transforms)


def test_only_supports_that_may_move_take_the_slow_way():
    with isolated(0):
        fixed = [n for n, c in CASES.items() if Density(read_sites(c.model, c.data))._transforms is not None]
        assert len(fixed) > len(CASES) / 2
        assert Density(read_sites(bounded_by_a_constant, {"y": torch.tensor(0.0)}))._transforms is None
