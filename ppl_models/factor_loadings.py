"""Factor analysis and probabilistic PCA that are Bayesian in the loadings, the latent numbers integrated out."""

from collections.abc import Mapping
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import transforms

from ppl_models import datasets
from ppl_models.hmm_parts import LOG_SCALE_SD, centre_and_spread, check_count
from ppl_models.mixture_normal import maybe_flat
from ppl_models.model import Model, Simulation
from ppl_models.rows import NormalRows
from ppl_models.simulation import draw, own_stream


def bayesian_factor_analysis(
    *,
    x: torch.Tensor,
    num_latents: int = 2,
    isotropic: bool = False,
    flat: bool = False,
    centre: torch.Tensor | None = None,
    spread: torch.Tensor | None = None,
    pivots: torch.Tensor | None = None,
) -> torch.Tensor:
    """Let rows be normal with covariance ``loading @ loading.T + diag(noise_scale ** 2)``.

    The likelihood does not tell loadings from their rotations. So the loading is lower triangular, with a positive
    diagonal, in the rows of L columns, the pivots (Geweke & Zhou 1996): any loading is rotated to such a one by a QR
    decomposition, and there is one mode in place of a continuum. The prior is that of the rotated loading where all its
    entries are independent normals: normal below the diagonal, and chi with L, L - 1, ..., 1 degrees of freedom on it
    (Leung & Drton 2016). So the choice of pivots changes neither prior nor posterior of the covariance. It does change
    the way there: where a diagonal entry could be zero, the loadings beyond it with the wrong sign make another mode at
    this border, in which chains stay. Pivots far apart have no such entries (`pivots_of`).

    Parameters
    ----------
    x
        (rows, columns); NaN is missing.
    num_latents
        Number of factors L, at most that of columns.
    isotropic
        One noise sd for all columns (probabilistic PCA).
    flat
        No priors: the highest density is maximum likelihood.
    centre, spread
        (columns,): where the means lie a priori, and the scale of everything; mean and sd of ``x`` unless given.
    pivots
        Numbers of L columns, integers (L,); those of `pivots_of` unless given.

    Raises
    ------
    ValueError
        A size is not as said.
    """
    _check(x, num_latents, pivots)
    centre, spread = centre_and_spread(x, centre, spread, event_dim=1)
    mean = pyro.sample("mean", maybe_flat(dist.Normal(centre, spread).to_event(1), flat=flat))
    place = _places(pivots_of(x, num_latents) if pivots is None else pivots, x.shape[-1])
    loading = spread.unsqueeze(-1) * _sample_triangle(x, num_latents, flat=flat)[..., place, :]
    pyro.deterministic("loading", loading, event_dim=2)
    scale = spread.mean() if isotropic else spread
    prior = dist.LogNormal((scale / 2).log(), LOG_SCALE_SD).to_event(0 if isotropic else 1)
    noise_scale = pyro.sample("noise_scale", maybe_flat(prior, flat=flat))
    variance = (noise_scale.unsqueeze(-1) if isotropic else noise_scale).square().expand(mean.shape)
    with pyro.plate("data", len(x)):
        return pyro.sample("x", _rows(x, mean, loading, variance), obs=x)


def pivots_of(x: torch.Tensor, num_latents: int) -> torch.Tensor:
    """Choose columns of a table (rows, D) that its principal components tell apart best, integers (L,).

    They are the pivots of a QR decomposition of the first L principal components (Businger & Golub 1965): the column
    of the largest part first, then that of the largest part orthogonal to it, and so on.
    """
    centre, spread = centre_and_spread(x, None, None, event_dim=1)
    standard = ((x - centre) / spread).nan_to_num(0.0)
    _, size, direction = torch.linalg.svd(standard, full_matrices=False)
    rest = direction[:num_latents].mT * size[:num_latents]
    free, pivots = torch.ones_like(rest[:, 0]), []
    for _ in range(num_latents):
        length = rest.square().sum(-1)
        pivot = (free * (length + torch.finfo(x.dtype).tiny)).argmax()  # not one twice, even where nothing is left
        unit = rest[pivot] / length[pivot].sqrt().clamp(min=torch.finfo(x.dtype).tiny)
        rest = rest - (rest @ unit).unsqueeze(-1) * unit
        free = torch.where(torch.arange(len(free)) == pivot, 0.0, free)
        pivots.append(pivot)
    return torch.stack(pivots)


def _places(pivots: torch.Tensor, num_columns: int) -> torch.Tensor:
    """Give the row of the triangle that belongs to each column: pivots first, the others in order."""
    column = torch.arange(num_columns)
    is_pivot = column.unsqueeze(-1) == pivots
    rank = torch.where(is_pivot.any(-1), is_pivot.int().argmax(-1), len(pivots) + column)
    return rank.argsort().argsort()


def _sample_triangle(x: torch.Tensor, num_latents: int, *, flat: bool) -> torch.Tensor:
    """Sample a loading (..., D, L) in units of the columns' sds, each entry of prior variance 1 / L before rotation."""
    D, L = x.shape[-1], num_latents
    freedom = torch.arange(L, 0, -1).to(x)
    chi = dist.TransformedDistribution(dist.Gamma(freedom / 2, x.new_tensor(L / 2)), [transforms.PowerTransform(0.5)])
    diagonal = pyro.sample("diagonal", maybe_flat(chi.to_event(1), flat=flat))
    parts = [diagonal, torch.zeros_like(diagonal[..., :1])]
    num_below = D * L - L * (L + 1) // 2
    if num_below:  # none where there is one column
        normal = dist.Normal(x.new_zeros(num_below), L**-0.5).to_event(1)
        parts.append(pyro.sample("below", maybe_flat(normal, flat=flat)))
    # Where each entry of the loading stands among the diagonal, a zero, and the entries below, row by row.
    places = torch.full((D, L), L)
    places[range(L), range(L)] = torch.arange(L)
    row, column = torch.tril_indices(D, L, offset=-1)
    places[row, column] = L + 1 + torch.arange(num_below)
    return torch.cat(parts, -1)[..., places]


def _rows(x: torch.Tensor, mean: torch.Tensor, loading: torch.Tensor, variance: torch.Tensor) -> dist.TorchDistribution:
    """Give the distribution of a row, by Woodbury where nothing is missing."""
    if not bool(x.isnan().any()):
        return dist.LowRankMultivariateNormal(mean, loading, variance)
    covariance = loading @ loading.mT + torch.diag_embed(variance)
    return NormalRows(mean, scale_tril=torch.linalg.cholesky(covariance))


def _check(x: torch.Tensor, num_latents: int, pivots: torch.Tensor | None) -> None:
    check_count("num_latents", num_latents)
    if x.dim() != 2 or x.numel() == 0:
        raise ValueError(f"x: expected a table of shape (rows, columns), none of them 0, got {tuple(x.shape)}.")
    if num_latents > x.shape[-1]:
        raise ValueError(f"num_latents: expected at most the {x.shape[-1]} columns of x, got {num_latents}.")
    if pivots is None:
        return
    if pivots.is_floating_point() or tuple(pivots.shape) != (num_latents,):
        raise ValueError(f"pivots: expected {num_latents} integers, got {pivots.dtype} of shape {tuple(pivots.shape)}.")
    # Values are read when validation is on only: a recording that read them holds for them alone.
    if torch.distributions.Distribution._validate_args:
        given = pivots.tolist()
        if len(set(given)) < num_latents or min(given) < 0 or max(given) >= x.shape[-1]:
            raise ValueError(f"pivots: expected different columns from 0 to {x.shape[-1] - 1}, got {given}.")


def _settings_from(data: Mapping[str, Any]) -> dict[str, Any]:
    x = data["x"]
    centre, spread = centre_and_spread(x, data.get("centre"), data.get("spread"), event_dim=1)
    pivots = data.get("pivots")
    if pivots is None:
        pivots = pivots_of(x, data.get("num_latents", 2))
    return {"centre": centre, "spread": spread, "pivots": pivots}


def _simulate(
    seed: int,
    *,
    num_rows: int = 100,
    num_columns: int = 6,
    num_latents: int = 2,
    truth: Mapping[str, Any] | None = None,
    **settings: Any,
) -> Simulation:
    with own_stream(seed):
        known = {"centre": torch.zeros(num_columns), "spread": torch.ones(num_columns)}
        known["pivots"] = torch.arange(num_latents)  # known before the draw, as the triangle stands on them
        inputs = {"x": torch.zeros(num_rows, num_columns), "num_latents": num_latents}
        return draw(bayesian_factor_analysis, inputs, truth=truth, **known | settings)


BAYESIAN_FACTOR_ANALYSIS = Model(
    name="bayesian_factor_analysis",
    model=bayesian_factor_analysis,
    data=lambda: {"x": datasets.wine(), "num_latents": 2},
    simulate=_simulate,
    summary="factor analysis with uncertain loadings, factors integrated out (chemistry of Italian wines)",
    table="x",
    settings_from=_settings_from,
)
