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
) -> torch.Tensor:
    """Let rows be normal with covariance ``loading @ loading.T + diag(noise_scale ** 2)``.

    The likelihood does not tell loadings from their rotations. So the first rows of the loading are lower triangular
    with a positive diagonal (Geweke & Zhou 1996): each covariance of L factors has one such loading, since any other
    is rotated to it by a QR decomposition, and there is one mode in place of a continuum. The prior is that of the
    rotated loading where all entries are independent normals: normal below the diagonal, and chi with D, D - 1, ...
    degrees of freedom on it (Leung & Drton 2016). So no direction, and not the order of the columns, is preferred. (A
    normal prior on the triangle would favour the first columns.) An exploration by columns that hardly load on any
    factor may put a diagonal entry near zero; then put another column first.

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

    Raises
    ------
    ValueError
        A size is not as said.
    """
    _check(x, num_latents)
    centre, spread = centre_and_spread(x, centre, spread, event_dim=1)
    mean = pyro.sample("mean", maybe_flat(dist.Normal(centre, spread).to_event(1), flat=flat))
    loading = spread.unsqueeze(-1) * _sample_triangle(x, num_latents, flat=flat)
    pyro.deterministic("loading", loading, event_dim=2)
    scale = spread.mean() if isotropic else spread
    prior = dist.LogNormal((scale / 2).log(), LOG_SCALE_SD).to_event(0 if isotropic else 1)
    noise_scale = pyro.sample("noise_scale", maybe_flat(prior, flat=flat))
    variance = (noise_scale.unsqueeze(-1) if isotropic else noise_scale).square().expand(mean.shape)
    with pyro.plate("data", len(x)):
        return pyro.sample("x", _rows(x, mean, loading, variance), obs=x)


def _sample_triangle(x: torch.Tensor, num_latents: int, *, flat: bool) -> torch.Tensor:
    """Sample a loading (..., D, L) in units of the columns' sds, each entry of prior variance 1 / L before rotation."""
    D, L = x.shape[-1], num_latents
    freedom = torch.arange(D, D - L, -1).to(x)
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


def _check(x: torch.Tensor, num_latents: int) -> None:
    check_count("num_latents", num_latents)
    if x.dim() != 2 or x.numel() == 0:
        raise ValueError(f"x: expected a table of shape (rows, columns), none of them 0, got {tuple(x.shape)}.")
    if num_latents > x.shape[-1]:
        raise ValueError(f"num_latents: expected at most the {x.shape[-1]} columns of x, got {num_latents}.")


def _settings_from(data: Mapping[str, Any]) -> dict[str, Any]:
    centre, spread = centre_and_spread(data["x"], data.get("centre"), data.get("spread"), event_dim=1)
    return {"centre": centre, "spread": spread}


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
