"""NUTS over the latents of single rows, the trained parameters held."""

from dataclasses import dataclass

import numpy as np
from arviz_stats.base import array_stats

from inference.density import Density
from inference.latent_rows import LatentRows, Part
from inference.row_runs import unscaled
from inference.sites import read_sites
from inference.warm_start import gaussian_of, sample_from

# Draws of the guide for the starts and the first mass matrix, and by how much the starts are spread out.
START_DRAWS, START_WIDTH = 1000, 2.0


@dataclass(frozen=True, eq=False)
class RowChains:
    """Chains of one row.

    Attributes
    ----------
    density
        Log density of the row's latents, compiled.
    points
        Draws, unconstrained, (chain, draw, d).
    num_divergent
        Transitions that diverged.
    """

    density: Density
    points: np.ndarray
    num_divergent: int

    @property
    def rhat(self) -> float:
        """Largest rank-normalised split R-hat over the coordinates."""
        return float(np.max(array_stats.rhat(self.points, chain_axis=0, draw_axis=1)))

    @property
    def pooled(self) -> np.ndarray:
        """All draws, (n, d)."""
        return self.points.reshape(-1, self.points.shape[-1])


def row_chains(
    rows: LatentRows, part: Part, *, num_chains: int, num_warmup: int, num_samples: int, seed: int
) -> RowChains:
    """Sample the posterior of one row's latents.

    Parameters
    ----------
    rows, part
        The model, and the row.
    """
    density = Density(read_sites(unscaled(rows.sites.function), part.data), hold_params=True)
    density.compile(np.inf)
    drawn = rows.points(part, START_DRAWS)[:, 0].double().numpy()
    q = gaussian_of(drawn)
    # Chains that start where the guide is may share its blind spots: half of them come from the prior, where the
    # others' warm-up would not lead them.
    wide = q.loc + START_WIDTH * (drawn - q.loc)
    prior = rows.prior(part.data, START_DRAWS)[:, 0].double().numpy()
    points, stats = sample_from(
        density,
        q.loc,
        q.scale,
        np.concatenate([wide, prior]),
        num_warmup=num_warmup,
        num_samples=num_samples,
        num_chains=num_chains,
        seed=seed,
    )
    return RowChains(density, points, int(stats["diverging"].sum()))
