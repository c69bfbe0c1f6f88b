"""Priors that Pyro has no distribution for: flat ones, and ones restricted to a part of their support."""

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints


def flat(name: str, support: Any = constraints.real, shape: tuple[int, ...] = ()) -> torch.Tensor:
    """Sample a site whose density is one everywhere on its support."""
    whole = constraints.independent(support, len(shape)) if shape else support
    return pyro.sample(name, dist.ImproperUniform(whole, (), shape))


def restricted(name: str, prior: dist.Distribution, support: Any) -> torch.Tensor:
    """Sample a site with the density of ``prior`` on ``support``; the constant that normalises it is left out."""
    value = pyro.sample(name, dist.ImproperUniform(support, prior.batch_shape, prior.event_shape))
    pyro.factor(f"{name}_prior", prior.log_prob(value))
    return value
