"""Gaussian mixtures, with the assignments of rows to components summed out by enumeration."""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import partial
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch

from ppl_models import datasets
from ppl_models.mixture_data import settings_from
from ppl_models.mixture_guide import gaussian_mixture_guide
from ppl_models.mixture_normal import (
    LOC_SD,
    Components,
    known_moments,
    maybe_flat,
    observe,
    sample_components,
    sample_weights,
    scale_prior,
)
from ppl_models.mixture_start import normal_start
from ppl_models.model import Model, Simulation
from ppl_models.order_statistics import OrderStatistics
from ppl_models.simulation import draw, own_stream


def gaussian_mixture(
    *,
    x: torch.Tensor,
    K: int = 2,
    covariance: str = "full",
    flat: bool = False,
    data_mean: torch.Tensor | None = None,
    data_cov: torch.Tensor | None = None,
) -> torch.Tensor:
    """Mix K normals; on the line their locations are in increasing order, so that the labels mean something.

    On the line the locations are the order statistics of K normal draws: the exchangeable prior restricted to one of
    its K! equal parts. In more dimensions there is no natural order, and the posterior has K! equal modes.

    The priors are weakly informative and take their scale from the data (Richardson & Green 1997, J. R. Stat. Soc. B
    59; Fraley & Raftery 2007), so that units do not matter: see `loc_prior`, `scale_prior` and `covariance_prior`.
    Scales are kept off zero because data are rounded: a component on one repeated value, or on a line, would have a
    density without bound.

    Parameters
    ----------
    x
        (rows,) or (rows, D). NaN marks a missing entry, which is integrated out.
    K
        Number of components.
    covariance
        Of a component in more than one dimension: ``full``, ``tied`` (full, shared by all), ``diagonal``, or
        ``spherical`` (one scale for all columns). On the line ``tied`` is one scale for all components.
    flat
        No priors, for a maximum of the likelihood as of the EM algorithm; the posterior is improper.
    data_mean, data_cov
        Mean (D,) and covariance (D, D) of the data, from which the priors are made; by default those of ``x``.
    """
    known = known_moments(x, K, covariance, data_mean, data_cov, flat=flat)
    weights = sample_weights(x, K, flat=flat)
    if x.dim() == 2:
        return observe(x, weights, sample_components(known, pyro.plate("component", K), covariance, flat=flat))
    prior = OrderStatistics(dist.Normal(known.mean, LOC_SD * known.sd), K, offset=known.mean, multiplier=known.sd)
    loc = pyro.sample("loc", maybe_flat(prior, flat=flat))
    loc = loc.squeeze(-2) if loc.dim() > 1 else loc  # one event, whose batch dims leave room for plate "data"
    tied = covariance == "tied"
    with nullcontext() if tied else pyro.plate("component", K):
        scale = pyro.sample("scale", maybe_flat(scale_prior(known, K), flat=flat))
    return observe(x, weights, Components(loc, scale, None, tied))


def gaussian_mixture_exchangeable(
    *,
    x: torch.Tensor,
    K: int = 2,
    covariance: str = "full",
    flat: bool = False,
    data_mean: torch.Tensor | None = None,
    data_cov: torch.Tensor | None = None,
) -> torch.Tensor:
    """Take the order from `gaussian_mixture`, whose arguments it has: K! equal modes, one for each labelling.

    Compare label-free quantities only (`identify`); sorting the locations of its draws gives the posterior of
    `gaussian_mixture`.
    """
    known = known_moments(x, K, covariance, data_mean, data_cov, flat=flat)
    weights = sample_weights(x, K, flat=flat)
    return observe(x, weights, sample_components(known, pyro.plate("component", K), covariance, flat=flat))


def by_location(draws: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Relabel the components of every draw by increasing location, on the line or in the first column.

    Parameters
    ----------
    draws
        ``weights`` (..., K), ``loc`` (..., K) or (..., K, D), and where present ``scale`` and ``df`` with the same
        leading dims, ``covariance`` (..., K, D, D), and ``assignment`` (..., rows). Shared sites stay as they are.

    Returns
    -------
    dict
        The same quantities, unchanged by any permutation of labels within a draw.
    """
    lead = draws["weights"].ndim
    loc = draws["loc"]
    order = np.argsort(loc if loc.ndim == lead else loc[..., 0], axis=-1)
    least = {"weights": lead, "loc": lead, "scale": lead, "df": lead, "covariance": lead + 2}
    relabelled = {
        name: np.take_along_axis(draws[name], order.reshape(*order.shape, *[1] * (draws[name].ndim - lead)), lead - 1)
        for name, num_dims in least.items()
        if name in draws and draws[name].ndim >= num_dims
    }
    relabelled = {name: relabelled.get(name, draws[name]) for name in least if name in draws}
    if "assignment" in draws:
        rank = np.argsort(order, axis=-1)  # inverse permutation: old label -> new label
        relabelled["assignment"] = np.take_along_axis(rank, np.asarray(draws["assignment"]), axis=-1)
    return relabelled


def ordered_start(data: Mapping[str, Any], seed: int) -> dict[str, np.ndarray]:
    """Start from a clustering, on the line in order of location."""
    return by_location(normal_start(gaussian_mixture, data, seed))


def _data() -> dict[str, Any]:
    return {"x": datasets.iris_petal_length(), "K": 2}


def simulate_rows(
    model: Callable[..., Any],
    seed: int,
    *,
    num_rows: int = 150,
    num_columns: int | None = None,
    K: int = 2,
    truth: Mapping[str, Any] | None = None,
    **settings: Any,
) -> Simulation:
    """Draw from a mixture of normals whose priors know data of mean zero and unit covariance.

    ``num_columns`` None stands for data on the line; see `ppl_models.Model` for the rest.
    """
    shape = () if num_columns is None else (num_columns,)
    with own_stream(seed):
        known = {
            "data_mean": torch.zeros(shape),
            "data_cov": torch.diag_embed(torch.ones(shape)) if shape else torch.ones(()),
        }
        return draw(model, {"x": torch.zeros(num_rows, *shape), "K": K}, truth=truth, **known | settings)


GAUSSIAN_MIXTURE = Model(
    name="gaussian_mixture",
    model=gaussian_mixture,
    data=_data,
    simulate=partial(simulate_rows, gaussian_mixture),
    summary="mixture of normals in one or more dimensions, assignments summed out (petal length of irises)",
    guide=gaussian_mixture_guide,
    start=ordered_start,
    table="x",
    settings_from=settings_from,
)
GAUSSIAN_MIXTURE_EXCHANGEABLE = Model(
    name="gaussian_mixture_exchangeable",
    model=gaussian_mixture_exchangeable,
    data=_data,
    simulate=partial(simulate_rows, gaussian_mixture_exchangeable),
    summary="the same mixture without an order of the locations: K! equal modes",
    identify=by_location,
    start=partial(normal_start, gaussian_mixture_exchangeable),
    table="x",
    settings_from=settings_from,
)
