"""Differential equations with unknown coefficients."""

import math

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints

from benchmarks.posteriordb.priors import restricted

# A year in this many steps. Twice as many change no log density in the posterior by more than 1e-3.
STEPS_PER_YEAR = 4


def runge_kutta(slope, state, *, num_years, steps_per_year=STEPS_PER_YEAR):
    """Give the state after each year by the classical fourth-order method with fixed steps, (num_years, *state)."""
    h, states = 1.0 / steps_per_year, []
    for step in range(1, num_years * steps_per_year + 1):
        k1 = slope(state)
        k2 = slope(state + h / 2 * k1)
        k3 = slope(state + h / 2 * k2)
        k4 = slope(state + h * k3)
        state = state + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        if step % steps_per_year == 0:
            states.append(state)
    return torch.stack(states)


def lotka_volterra(y_init, y):
    """Hares and lynxes, counted every year."""
    rates = dist.Normal(torch.tensor([1.0, 0.05, 1.0, 0.05]), torch.tensor([0.5, 0.05, 0.5, 0.05])).to_event(1)
    theta = restricted("theta", rates, constraints.independent(constraints.positive, 1))
    sigma = pyro.sample("sigma", dist.LogNormal(-1.0, 1.0).expand([2]).to_event(1))
    z_init = pyro.sample("z_init", dist.LogNormal(math.log(10.0), 1.0).expand([2]).to_event(1))
    growth = torch.stack([theta[0], -theta[2]])
    interaction = torch.stack([-theta[1], theta[3]])
    z = runge_kutta(lambda z: (growth + interaction * z.flip(0)) * z, z_init, num_years=len(y))
    pyro.sample("y_init", dist.LogNormal(z_init.log(), sigma).to_event(1), obs=y_init)
    with pyro.plate("years", len(y)):
        pyro.sample("y", dist.LogNormal(z.log(), sigma).to_event(1), obs=y)
