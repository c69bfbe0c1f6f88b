"""Normal components of mixtures: their priors, their covariances, and rows that are assigned to them."""

import math
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from pyro.ops.indexing import Vindex

from ppl_models.mixture_data import Moments, check_mixture, moments
from ppl_models.rows import NormalRows, seen_only
from ppl_models.units import InUnits, InverseWishart

COVARIANCES = ("full", "tied", "diagonal", "spherical")
# Dirichlet concentration: 2 keeps weights off zero, where a component is empty and its location and scale are free.
CONCENTRATION = 2.0
# Prior sd of a location, in sds of the data. A group with one row in seventeen may lie four sds off their mean, and no
# smaller one of N rows farther than the root of N: neither is ruled out, and an empty component stays in sight.
LOC_SD = 2.0
# Unit of a location's free coordinate, in sds of the data. Starts are uniform on (-2, 2) such units: within one sd.
LOC_UNIT = 0.5
# Prior sd of log scale: with 95 % probability a component's sd is within a factor of 4.5 of its median.
LOG_SCALE_SD = 0.75


class Components(NamedTuple):
    """Parameters of K components; dims before K are of plates around the model.

    Attributes
    ----------
    loc
        (..., K) on the line, else (..., K, D).
    scale
        As ``loc``, or (..., K, 1) where a component has one scale; None with ``scale_tril``.
    scale_tril
        (..., K, D, D); None with ``scale``.
    tied
        Whether all components share one scale () or ``scale_tril`` (D, D), which then has no dim for K.
    """

    loc: torch.Tensor
    scale: torch.Tensor | None
    scale_tril: torch.Tensor | None
    tied: bool = False


def check_covariance(covariance: Any) -> None:
    """Refuse what is not one of `COVARIANCES`.

    Raises
    ------
    ValueError
        Another value.
    """
    if covariance not in COVARIANCES:
        raise ValueError(f"covariance: expected one of {', '.join(COVARIANCES)}, got {covariance!r}.")


def known_moments(
    x: torch.Tensor,
    K: int,
    covariance: str,
    data_mean: torch.Tensor | None,
    data_cov: torch.Tensor | None,
    *,
    flat: bool = False,
) -> Moments:
    """Check the arguments of a mixture of normals, and give the moments that its priors use."""
    check_mixture(x, K, flat=flat)
    check_covariance(covariance)
    correlated = x.dim() == 2 and covariance in ("full", "tied")
    return moments(x, data_mean, data_cov, correlated=correlated)


def sample_weights(x: torch.Tensor, K: int, *, flat: bool) -> torch.Tensor:
    """Sample the Dirichlet weights (K,)."""
    return pyro.sample("weights", maybe_flat(dist.Dirichlet(x.new_full((K,), CONCENTRATION)), flat=flat))


def maybe_flat(prior: dist.TorchDistribution, *, flat: bool) -> dist.TorchDistribution:
    """Give the prior, or with ``flat`` no more of it than its support."""
    return dist.ImproperUniform(prior.support, prior.batch_shape, prior.event_shape) if flat else prior


def loc_prior(known: Moments) -> InUnits:
    """Give the prior of one location: normal around the mean of the data."""
    return InUnits(dist.Normal(known.mean, LOC_SD * known.sd), known.mean, LOC_UNIT * known.sd)


def scale_prior(known: Moments, K: int, *, spherical: bool = False) -> InUnits:
    """Give the prior of scales: log-normal around the data's sd over K^(1/D).

    So large are the components of equal size that fill the volume of the data between them (Fraley & Raftery 2007, J.
    Classif. 24, section 2.2). The prior falls faster than any power of the scale at zero, so that no component
    collapses on a point, where the likelihood has no bound.
    """
    log_sd = known.sd.log()
    if spherical and log_sd.dim():
        log_sd = log_sd.mean()
    median = log_sd - math.log(K) / max(1, known.mean.numel())
    unit = torch.full_like(median, LOG_SCALE_SD)
    return InUnits(dist.LogNormal(median, unit), median, unit)


def covariance_prior(known: Moments, K: int) -> InverseWishart:
    """Give the prior of a covariance matrix: inverse Wishart (Fraley & Raftery 2007, section 2.2).

    D + 2 degrees of freedom, the fewest with a mean; the mean is the data's covariance over K^(2/D).
    """
    size = known.mean.numel()
    return InverseWishart(size + 2.0, known.factor * K ** (-1 / size))


def sample_components(
    known: Moments, plate: pyro.plate, covariance: str, *, flat: bool = False, as_for: int | None = None
) -> Components:
    """Sample locations, and scales or covariances, of exchangeable components, one for each place in ``plate``.

    ``as_for`` is the number of components whose priors they shall have; by default as many as there are.
    """
    K = as_for or plate.size
    on_line, tied = known.mean.dim() == 0, covariance == "tied"
    shared = _sample_spread(known, K, covariance, flat=flat) if tied else None
    with plate:
        prior = loc_prior(known).to_event(0 if on_line else 1)
        loc = pyro.sample("loc", maybe_flat(prior, flat=flat))
        spread = shared if tied else _sample_spread(known, K, covariance, flat=flat)
    if on_line or covariance == "diagonal":
        return Components(loc, spread, None, tied)
    if covariance == "spherical":
        return Components(loc, spread.unsqueeze(-1), None)
    return Components(loc, None, torch.linalg.cholesky(spread), tied)


def _sample_spread(known: Moments, K: int, covariance: str, *, flat: bool) -> torch.Tensor:
    """Sample ``scale`` or ``covariance``, of one component, or inside a plate of each."""
    if known.mean.dim() == 0 or covariance == "spherical":
        return pyro.sample("scale", maybe_flat(scale_prior(known, K, spherical=True), flat=flat))
    if covariance == "diagonal":
        return pyro.sample("scale", maybe_flat(scale_prior(known, K).to_event(1), flat=flat))
    return pyro.sample("covariance", maybe_flat(covariance_prior(known, K), flat=flat))


def pick(values: torch.Tensor, assignment: torch.Tensor, event_dim: int = 0) -> torch.Tensor:
    """Give every row the value of its component.

    Parameters
    ----------
    values
        (..., K, *event), as they come out of plate ``component``.
    assignment
        Components of the rows, with whatever dims enumeration has put on the left.
    event_dim
        Dims after K.
    """
    values = values.unsqueeze(-2 - event_dim)  # the dim of plate "data", which has the place of K
    # Vindex picks a component per row whatever batch axes enumeration or vectorisation have added on the left.
    return Vindex(values)[(..., assignment, *[slice(None)] * event_dim)]


def observe(
    x: torch.Tensor, weights: torch.Tensor, components: Components, df: torch.Tensor | None = None
) -> torch.Tensor:
    """Assign every row to a component and observe it; ``df`` (..., K) makes the components Student t."""
    loc, scale, scale_tril, tied = components
    with pyro.plate("data", len(x)):
        assignment = pyro.sample("assignment", dist.Categorical(weights), infer={"enumerate": "parallel"})

        def of_row(values: torch.Tensor | None, event_dim: int) -> torch.Tensor | None:
            return values if tied or values is None else pick(values, assignment, event_dim)

        row_df = None if df is None else pick(df, assignment)
        if x.dim() == 1:
            at, width = pick(loc, assignment), of_row(scale, 0)
            row = dist.Normal(at, width) if df is None else dist.StudentT(row_df, at, width)
            return pyro.sample("x", seen_only(row, x), obs=x)
        shape = {"scale": of_row(scale, 1), "scale_tril": of_row(scale_tril, 2)}
        return pyro.sample("x", NormalRows(pick(loc, assignment, 1), df=row_df, **shape), obs=x)
