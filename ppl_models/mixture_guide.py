"""A variational family for mixtures of normals: Dirichlet weights, independent components, started at a clustering."""

from collections.abc import Callable

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch.distributions import biject_to

from ppl_models.mixture_normal import CONCENTRATION, covariance_prior, known_moments, loc_prior, scale_prior
from ppl_models.mixture_start import normal_start
from ppl_models.order_statistics import OrderStatistics

# Sds of the free coordinates at first: about those of a component with a hundred rows.
FIRST_SD = 0.1


def gaussian_mixture_guide(
    *,
    x: torch.Tensor,
    K: int = 2,
    covariance: str = "full",
    flat: bool = False,
    data_mean: torch.Tensor | None = None,
    data_cov: torch.Tensor | None = None,
) -> None:
    """Guess weights by a Dirichlet distribution and the rest by independent normals of the unconstrained coordinates.

    The weights have the family that the coordinate updates of variational Bayes give them (Bishop 2006, section 10.2),
    started where those would be after one pass. The assignments are left out, being summed out. All starts at a
    clustering of the rows, always the same one: of K! equal modes any will do, but most other starts lead nowhere.
    """
    known = known_moments(x, K, covariance, data_mean, data_cov)
    found: dict[str, np.ndarray] = {}

    def clustered(name: str) -> torch.Tensor:
        if not found:
            arguments = {"x": x, "K": K, "covariance": covariance}
            found.update(normal_start(gaussian_mixture_guide, arguments, 0))
            if x.dim() == 1:
                order = np.argsort(found["loc"])
                found.update({n: v[order] for n, v in found.items() if v.shape == (K,)})
        return torch.as_tensor(found[name]).to(x)

    concentration = pyro.param(
        "weights_concentration", lambda: clustered("weights") * len(x) + CONCENTRATION, constraint=constraints.positive
    )
    pyro.sample("weights", dist.Dirichlet(concentration))
    if x.dim() == 1:
        ordered = OrderStatistics(dist.Normal(known.mean, known.sd), K, offset=known.mean, multiplier=known.sd)
        _sample("loc", ordered.support, clustered)
    plate = pyro.plate("component", K)
    if covariance == "tied":
        spread = scale_prior(known, K) if x.dim() == 1 else covariance_prior(known, K)
        _sample("scale" if x.dim() == 1 else "covariance", spread.support, clustered)
    with plate:
        if x.dim() == 2:
            _sample("loc", loc_prior(known).to_event(1).support, clustered)
        if x.dim() == 1 and covariance != "tied":
            _sample("scale", scale_prior(known, K).support, clustered)
        elif covariance == "diagonal":
            _sample("scale", scale_prior(known, K).to_event(1).support, clustered)
        elif covariance == "spherical":
            _sample("scale", scale_prior(known, K, spherical=True).support, clustered)
        elif covariance == "full" and x.dim() == 2:
            _sample("covariance", covariance_prior(known, K).support, clustered)


def _sample(name: str, support: constraints.Constraint, start: Callable[[str], torch.Tensor]) -> None:
    """Sample a site as a normal of its unconstrained coordinates."""
    transform = biject_to(support)
    loc = pyro.param(f"{name}_loc", lambda: transform.inv(start(name)))
    scale = pyro.param(f"{name}_scale", lambda: torch.full_like(loc, FIRST_SD), constraint=constraints.positive)
    free = dist.Normal(loc, scale).to_event(transform.domain.event_dim)
    pyro.sample(name, dist.TransformedDistribution(free, [transform]))
