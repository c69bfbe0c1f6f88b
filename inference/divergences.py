"""Where in parameter space a sampler's trajectories diverged."""

from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata

from inference.quantities import Quantities

# The largest of 1000 standard normal numbers is above 4.1 in one case of fifty: beyond this a place is no accident.
CLEAR = 4.0


@dataclass(frozen=True)
class Location:
    """The quantity by which divergent draws stand out most.

    Attributes
    ----------
    label
        Its name.
    quantile
        Share of all draws that lie below the median of the divergent ones.
    shift
        Mean of the divergent draws minus that of the others, in sds.
    median
        Of the divergent draws, in the quantity's own unit.
    """

    label: str
    quantile: float
    shift: float
    median: float

    def __str__(self) -> str:
        side = "small" if self.shift < 0 else "large"
        return (
            f"mostly where {self.label} is {side} (around {self.median:.3g}, its {self.quantile:.0%} quantile, "
            f"{abs(self.shift):.1f} sd {'below' if self.shift < 0 else 'above'} the others)"
        )


def locate(found: Quantities, diverging: np.ndarray) -> Location | None:
    """Find the quantity whose divergent draws differ most from the others by rank (Wilcoxon's test); None if none do.

    A draw flagged as divergent is the one that the broken trajectory left behind, so it lies near the place and not
    quite in it.

    Parameters
    ----------
    found
        The quantities.
    diverging
        (chain, draw), booleans.
    """
    flags = np.asarray(diverging, dtype=bool).ravel()
    num, others = int(flags.sum()), int((~flags).sum())
    if num == 0 or others == 0:
        return None
    draws = found.pooled
    ranks = rankdata(draws, axis=0)[flags]
    expected, sd = (len(flags) + 1) / 2, np.sqrt(others * (len(flags) + 1) / (12.0 * num))
    scores = (ranks.mean(axis=0) - expected) / sd
    at = int(np.argmax(np.abs(scores)))
    if abs(scores[at]) < CLEAR:
        return None
    values = draws[:, at]
    median = float(np.median(values[flags]))
    shift = (values[flags].mean() - values[~flags].mean()) / values.std()
    if shift * scores[at] <= 0:  # a few far draws on the other side: say what most of them do
        shift = (median - np.median(values[~flags])) / values.std()
    return Location(found.labels[at], float((values < median).mean()), float(shift), median)
