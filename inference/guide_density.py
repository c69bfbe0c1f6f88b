"""The log density of a guide at given points, as a function of the guide's parameters, and its start there."""

import logging
from collections.abc import Callable
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer.autoguide import (
    AutoDiagonalNormal,
    AutoGuide,
    AutoLaplaceApproximation,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
)
from pyro.infer.autoguide.guides import AutoContinuous
from pyro.infer.autoguide.utils import deep_setattr

from inference.density import Density
from inference.errors import InputError, one_line
from inference.graph import loop
from inference.sites import is_deterministic

logger = logging.getLogger(__name__)

# From numbers of points (n,) to their log densities (n,), differentiable in the guide's parameters.
LogQ = Callable[[torch.Tensor], torch.Tensor]


def log_density_of(guide: Callable[..., Any], density: Density, trace: poutine.Trace, points: torch.Tensor) -> LogQ:
    """Give the log density of a guide, on the unconstrained space, at points.

    Parameters
    ----------
    guide
        Run before, so that it has its parameters.
    density
        Of the model; its coordinates are those of the points.
    trace
        Of a run of the guide.
    points
        (n, D).

    Raises
    ------
    InputError
        The density of the guide at a given point is not known: it samples helper sites, or is a point.
    """
    if isinstance(guide, AutoContinuous) and not isinstance(guide, AutoLaplaceApproximation):
        packed = _packed(guide, density, points)
        return lambda rows: guide.get_posterior(**density.sites.data).log_prob(packed[rows])
    if isinstance(guide, AutoNormal):
        values = _by_site(density, points)
        return lambda rows: _of_independent_normals(guide, {name: value[rows] for name, value in values.items()})
    if isinstance(guide, AutoGuide):
        raise InputError(
            f"guide: the density of {type(guide).__name__} at given draws is not known, or it has none; use "
            "guide='multivariate_normal', another AutoContinuous guide, or a function that samples the model's sites."
        )
    return _of_function(guide, density, trace, points)


def match_moments(guide: Callable[..., Any], density: Density, points: torch.Tensor) -> None:
    """Give a Gaussian guide of Pyro's the mean and spread of points (n, D), and leave other guides as they are.

    Of all Gaussians of a family with free means and sds (or a free covariance) this one has the highest likelihood.
    """
    if isinstance(guide, AutoNormal):
        values = {name: (v.mean(0), v.std(0, correction=0)) for name, v in _by_site(density, points).items()}
        for name, (loc, scale) in values.items():
            deep_setattr(guide.locs, name, loc)
            deep_setattr(guide.scales, name, scale)
    elif isinstance(guide, AutoDiagonalNormal | AutoLowRankMultivariateNormal | AutoMultivariateNormal):
        packed = _packed(guide, density, points)
        guide.loc.data.copy_(packed.mean(0))
        guide.scale = packed.std(0, correction=0)
        if isinstance(guide, AutoMultivariateNormal):
            factor, failed = torch.linalg.cholesky_ex(packed.T.cov(correction=0))
            if failed:
                raise InputError(
                    f"fit: the covariance of its {len(points)} draws of {density.dim} coordinates is singular; draw "
                    "more, or use guide='diagonal_normal'."
                )
            guide.scale = factor.diagonal().clone()
            guide.scale_tril = factor / factor.diagonal()[:, None]


def _by_site(density: Density, points: torch.Tensor) -> dict[str, torch.Tensor]:
    """Split points (n, D) into unconstrained values (n, *shape) by site."""
    return torch.vmap(density.unflatten)(points)


def _packed(guide: AutoContinuous, density: Density, points: torch.Tensor) -> torch.Tensor:
    """Put points (n, D) into the guide's own order of coordinates."""
    values = _by_site(density, points)
    return torch.cat([values[name].reshape(len(points), -1) for name in guide._unconstrained_shapes], 1)


def _of_independent_normals(guide: AutoNormal, values: dict[str, torch.Tensor]) -> torch.Tensor:
    terms = []
    for name, value in values.items():
        normal = torch.distributions.Normal(*guide._get_loc_and_scale(name), validate_args=False)
        terms.append(normal.log_prob(value).reshape(len(value), -1).sum(1))
    return torch.stack(terms).sum(0)


def _of_function(guide: Callable[..., Any], density: Density, trace: poutine.Trace, points: torch.Tensor) -> LogQ:
    """Run the guide with its sites held at the points: batched where that works, else point by point."""
    sites = density.sites
    for name, node in trace.nodes.items():
        sampled = node["type"] == "sample" and name not in sites.plate_sizes and not is_deterministic(node)
        if sampled and name not in sites.latent:
            raise InputError(
                f"guide: samples '{name}', of which the fit has no draws; a guide that is trained on draws samples "
                f"the model's continuous sites only ({', '.join(sites.latent)})."
            )
    constrained = density.constrain(points.numpy())
    values = {name: torch.as_tensor(value, dtype=density.dtype) for name, value in constrained.items()}
    log_jacobian = torch.as_tensor(density.unconstrain(constrained)[1], dtype=density.dtype)

    def one(held: dict[str, torch.Tensor]) -> torch.Tensor:
        run = poutine.trace(poutine.condition(guide, held)).get_trace(**sites.data)
        run.compute_log_prob()
        return sum(run.nodes[name]["log_prob_sum"] for name in sites.latent)

    def run_at(rows: torch.Tensor) -> torch.Tensor:
        held = {name: value[rows] for name, value in values.items()}
        with pyro.validation_enabled(False):
            return each(one, held) + log_jacobian[rows]

    each = _batched
    try:
        run_at(torch.arange(2))
    except Exception as error:  # vmap refuses much
        logger.info("one draw at a time: %s", one_line(error))
        each = loop
    return run_at


def _batched(function: Callable[..., torch.Tensor], values: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.vmap(function)(values)
