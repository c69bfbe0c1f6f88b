"""Which latents a trained latent-variable model uses: active units and KL by dimension."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from pyro import distributions as dist

from inference.fit import Fit
from inference.latent_rows import LatentRows, Part, latent_rows
from inference.row_runs import Runs
from inference.text_table import wrap

# Variance over rows of a unit's posterior mean from which it is active (Burda et al. 2016, section 5.1; the variances
# there fall into two groups far on either side).
ACTIVE = 0.01
# Nats of KL below which a unit costs nothing: a tenth of a per cent of what a typical image costs.
NO_COST = 0.01
# Draws of a row: of latents whose moments are known only by draws, or depend on other latents.
NUM_DRAWS = 64

Moments = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True, eq=False)
class LatentUsage:
    """How much each latent of a row says, (d,) each; latents on the unconstrained space.

    Attributes
    ----------
    labels
        Names of the latents.
    variance
        Variance over rows of the posterior mean by the guide, in units of the prior variance.
    kl
        Mean over rows of the KL from the guide's marginal to the prior's, in nats.
    by_draws
        Whether some moments were taken from draws, so that ``kl`` is that of Gaussians with these moments, and too
        large by up to ``1 / NUM_DRAWS``.
    """

    labels: tuple[str, ...]
    variance: np.ndarray = field(repr=False)
    kl: np.ndarray = field(repr=False)
    by_draws: bool = False

    @property
    def active(self) -> np.ndarray:
        """Whether each latent is active, (d,)."""
        return self.variance > ACTIVE

    @property
    def num_active(self) -> int:
        """Number of active latents."""
        return int(self.active.sum())

    @property
    def collapsed(self) -> np.ndarray:
        """Whether the posterior of each latent is the prior, for every row, (d,)."""
        return ~self.active & (self.kl < NO_COST)

    def __str__(self) -> str:
        num = len(self.labels)
        lines = [
            f"{self.num_active} of {num} latents are active (variance of their posterior means over rows above "
            f"{ACTIVE}). KL {self.kl.sum():.2f} nats per row, {self.kl[self.active].sum():.2f} of it in the active."
        ]
        if self.collapsed.all():
            lines.append(
                "The posterior has collapsed to the prior in all of them: the decoder ignores its latents. Anneal the "
                "KL from 0 to 1 in training, or give the decoder less power."
            )
        elif self.collapsed.any():
            lines.append(
                f"In {self.collapsed.sum()} of them the posterior has collapsed to the prior: they say nothing; "
                "fewer latents would do, unless training switched them off early (anneal the KL to see)."
            )
        idle = ~self.active & ~self.collapsed
        if idle.any():
            lines.append(
                f"{idle.sum()} cost KL but are the same for all rows ({', '.join(np.array(self.labels)[idle][:5])}): "
                "training has not ended, or the prior is not where the model wants it."
            )
        return "\n".join(line for paragraph in lines for line in wrap(paragraph))

    def to_frame(self) -> pd.DataFrame:
        """Give a row for each latent, the largest KL first."""
        columns = {"kl": self.kl, "variance": self.variance, "active": self.active}
        return pd.DataFrame(columns, index=pd.Index(self.labels, name="latent")).sort_values("kl", ascending=False)


def latent_usage(fit: Fit, data: Mapping[str, Any] | None = None, *, seed: int = 0) -> LatentUsage:
    """Say which latents of a trained model are active, and what each costs.

    A unit is active where the variance over rows of its posterior mean is above .01 (Burda et al. 2016). KL is that of
    the marginals, in closed form where guide and prior are normal; for a guide of independent normals it adds up to the
    KL of the ELBO.

    Parameters
    ----------
    fit, data
        As for `inference.log_marginal`.
    seed
        Of the draws that are needed where latents depend on latents, or are not normal.

    Raises
    ------
    InputError
        As `inference.log_marginal`.

    Examples
    --------
    >>> print(latent_usage(vae_fit))
    """
    with latent_rows(fit, data, seed=seed) as rows:
        parts = [_moments(rows, part) for part in rows.blocks()]
        labels = tuple(rows.labels)
    mean, kl, prior = (np.concatenate([part[i] for part in parts]) for i in range(3))
    spread = mean.var(axis=0) / prior.mean(axis=0)
    return LatentUsage(labels, spread, kl.mean(axis=0), any(part[3] for part in parts))


def _moments(rows: LatentRows, part: Part) -> tuple[np.ndarray, np.ndarray, np.ndarray, bool]:
    """Posterior means, KLs and prior variances of some rows, (n, d) each, and whether any is from draws."""
    num = 1 if len(rows.sites.latent) == 1 else NUM_DRAWS
    found = _closed(rows, rows.traces(part, num), num)
    by_draws = found is None
    q, p = _by_draws(rows, part) if by_draws else found
    if not by_draws and not rows.amortised:
        q = tuple(value[:, torch.as_tensor(part.index)] for value in q)
    kl = (p[1] / q[1]).log() + (q[1] ** 2 + (q[0] - p[0]) ** 2) / (2 * p[1] ** 2) - 0.5
    variance = (p[1] ** 2).mean(0) + (p[0].var(0, correction=0) if len(p[0]) > 1 else 0.0)
    return tuple(value.double().numpy() for value in (q[0].mean(0), kl.mean(0), variance)) + (by_draws,)


def _closed(rows: LatentRows, traces: tuple[Any, Any], num: int) -> tuple[Moments, Moments] | None:
    """Means and sds (S, n, d) of latents under guide and prior, where all are normal."""
    found = []
    for trace, runs in zip(traces, (rows.guide, rows.model), strict=True):
        sites = [_normal(trace.nodes[name], runs, num) for name in rows.sites.latent]
        if None in sites:
            return None
        found.append(tuple(torch.cat(parts, -1) for parts in zip(*sites, strict=True)))
    return found[0], found[1]


def _normal(node: Mapping[str, Any], runs: Runs, num: int) -> Moments | None:
    """Mean and sd (S, n, k) of a site that is normal, whatever its covariance."""
    base = node["fn"]
    while isinstance(base, dist.Independent | dist.ExpandedDistribution | dist.MaskedDistribution):
        base = base.base_dist
    if not isinstance(base, dist.Normal | dist.MultivariateNormal | dist.LowRankMultivariateNormal):
        return None
    shape = node["value"].shape
    parted = [runs.parted(moment.detach().expand(shape), num) for moment in (base.mean, base.stddev)]
    return tuple(moment.reshape(*moment.shape[:2], -1) for moment in parted)


def _by_draws(rows: LatentRows, part: Part) -> tuple[Moments, Moments]:
    """Mean and sd (1, n, d) of draws from the guide and from the prior, on the unconstrained space."""
    drawn = rows.points(part, NUM_DRAWS)
    prior = rows.prior(part.data, NUM_DRAWS)
    return tuple((value.mean(0)[None], value.std(0)[None].clamp_min(1e-30)) for value in (drawn, prior))
