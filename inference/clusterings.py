"""`clusterings`: the posterior over ways to divide the rows into clusters, without regard to labels."""

from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from scipy.special import xlogy

from inference.errors import InputError
from inference.fit import Fit
from inference.label_view import cluster_sizes

LOSSES = ("vi", "binder")
# The similarity matrix of N rows takes 4 N^2 bytes: 100 MB for so many. Of more rows so many are taken, evenly spaced.
MAX_ROWS = 5000
# A product of two matrices takes N^2 operations for each draw and label; of more draws than make so many (a few
# seconds) some are taken, evenly spaced: 800 of them for 5000 rows.
MAX_PRODUCTS = 2e10
# Draws whose clusterings are candidates for the point clustering, and draws over which they are compared; fewer
# candidates of many rows, at most so many labels being counted (a second).
MAX_CANDIDATES, COMPARED, LEAST_CANDIDATES, MAX_COUNTED = 100, 200, 10, 1e8
# Draws over which the winner is improved and judged.
MAX_DRAWS = 500
# Sweeps in which rows move to the cluster that lowers the expected loss most; few move after the third.
MAX_SWEEPS = 20
# A gain of less than this, for each row, is rounding, and rows could be moved to and fro for ever.
ROUNDING = 1e-12


@dataclass(frozen=True, eq=False)
class Clusterings:
    """What a posterior says of how rows cluster.

    Attributes
    ----------
    site
        The discrete site of the assignments.
    rows
        (R,), which rows these are: all of them up to 5000, else evenly spaced ones.
    similarity
        (R, R), posterior probability that two rows are in one cluster.
    num_clusters
        Posterior probability of each number of occupied clusters, a series indexed by the number.
    point
        (N,), the clustering of all rows with the least posterior expected loss, clusters numbered by size.
    loss
        ``"vi"`` or ``"binder"``: of what ``expected_loss`` is.
    expected_loss
        Of ``point``: bits of information for ``"vi"``, share of pairs that are otherwise together or apart for
        ``"binder"``.
    """

    site: str
    rows: np.ndarray = field(repr=False)
    similarity: np.ndarray = field(repr=False)
    num_clusters: pd.Series
    point: np.ndarray = field(repr=False)
    loss: str
    expected_loss: float

    def __str__(self) -> str:
        likeliest = int(self.num_clusters.idxmax())
        sizes = ", ".join(str(size) for size in np.bincount(self.point))
        unit = "bits" if self.loss == "vi" else "of the pairs"
        return (
            f"{self.site}: {likeliest} clusters are occupied with probability {self.num_clusters.max():.2f}; the point "
            f"clustering has {self.point.max() + 1}, of {sizes} rows (expected loss {self.expected_loss:.3g} {unit})."
        )


def clusterings(fit: Fit, *, site: str | None = None, loss: str = "vi") -> Clusterings:
    """Summarise the posterior over clusterings from draws of the assignments.

    Parameters
    ----------
    fit
        With drawn assignments of rows to clusters, as fits of mixtures have them.
    site
        The discrete site, if there are several.
    loss
        What the point clustering minimises the posterior expectation of: ``"vi"``, the variation of information
        (Wade & Ghahramani 2018, section 2.1), or ``"binder"``, the number of pairs of rows on whose being together two
        clusterings differ (Binder 1978). The search is greedy: the best of some draws, then single rows are moved as
        long as that helps (up to 5000 rows).

    Returns
    -------
    Clusterings
        All of it is the same for every labelling of the draws.

    Raises
    ------
    InputError
        No such site, several that could be meant, or an unknown loss.

    Examples
    --------
    >>> found = clusterings(fit(mixture, data, NUTS()))
    >>> found.num_clusters
    >>> found.point
    """
    if loss not in LOSSES:
        raise InputError(f"loss: expected one of {', '.join(LOSSES)}, got {loss!r}.")
    site = _site(fit, site)
    drawn = np.asarray(fit.draws[site])
    labels = drawn.reshape(drawn.shape[0] * drawn.shape[1], -1).astype(np.int64)
    labels = labels - labels.min()
    size = int(labels.max()) + 1
    rows = np.unique(np.linspace(0, labels.shape[1] - 1, min(labels.shape[1], MAX_ROWS)).astype(int))
    enough = int(max(100, MAX_PRODUCTS / len(rows) ** 2))
    similarity = similarity_matrix(labels[_spread(len(labels), enough)][:, rows], size)
    occupied = (cluster_sizes(labels, size) > 0).sum(axis=1)
    counts = np.bincount(occupied, minlength=size + 1)[1:] / len(labels)
    thinned = labels[_spread(len(labels), MAX_DRAWS)]
    point, expected = _point(thinned, size, loss)
    return Clusterings(
        site=site,
        rows=rows,
        similarity=similarity,
        num_clusters=pd.Series(counts, index=pd.RangeIndex(1, size + 1, name="clusters"), name="probability"),
        point=_by_size(point),
        loss=loss,
        expected_loss=expected,
    )


def _site(fit: Fit, site: str | None) -> str:
    known = [name for name in fit.state.get("discrete", ()) if name in fit.draws and fit.draws[name].ndim > 2]
    known += [name for name in fit.draws if name.endswith("_states") and name not in known]
    if site is None and len(known) == 1:
        return known[0]
    if site in known:
        return site
    if not known:
        raise InputError("fit: has no draws of assignments; expected a discrete site with one value for each row.")
    raise InputError(f"site: expected one of {', '.join(known)}, got {site!r}.")


def _spread(num: int, most: int) -> np.ndarray:
    return np.unique(np.linspace(0, num - 1, min(num, most)).astype(int))


def similarity_matrix(labels: np.ndarray, size: int) -> np.ndarray:
    """Share of the draws in which two rows are together, (R, R), from labels (n, R) in 0 to K - 1."""
    num, rows = labels.shape
    total = np.zeros((rows, rows), dtype=np.float32)
    for k in range(size):  # a matrix product for each label: the memory is that of the draws, not of draws x K
        member = (labels == k).astype(np.float32)
        if member.any():
            total += member.T @ member
    return total / num


# --- Losses between clusterings -------------------------------------------------------------------------------------


def expected_losses(candidates: np.ndarray, labels: np.ndarray, size: int, loss: str) -> np.ndarray:
    """Posterior expected loss of candidates (m, N), over draws of labels (n, N), (m,)."""
    return np.array([_losses(candidate, labels, size, loss).mean() for candidate in candidates])


def _losses(candidate: np.ndarray, labels: np.ndarray, size: int, loss: str) -> np.ndarray:
    """Loss of one candidate (N,) under each draw, (n,), through the table of common members."""
    table = _tables(candidate, labels, size)
    num, own, theirs = labels.shape[1], table.sum(axis=2), table.sum(axis=1)
    if loss == "binder":
        pairs = (own**2.0).sum(axis=1) + (theirs**2.0).sum(axis=1) - 2.0 * (table**2.0).sum(axis=(1, 2))
        return pairs / max(num * (num - 1.0), 1.0)
    return (_plogp(own, num) + _plogp(theirs, num) - 2.0 * _plogp(table, num)) / np.log(2.0)


def _plogp(counts: np.ndarray, num: int) -> np.ndarray:
    share = counts.reshape(len(counts), -1) / num
    return xlogy(share, share).sum(axis=1)


def _tables(candidate: np.ndarray, labels: np.ndarray, size: int) -> np.ndarray:
    """Contingency tables (n, C, K) of one clustering with each draw."""
    num, most = len(labels), int(candidate.max()) + 1
    flat = labels + size * (candidate[None] + most * np.arange(num)[:, None])
    return np.bincount(flat.ravel(), minlength=num * most * size).reshape(num, most, size)


# --- The point clustering ---------------------------------------------------------------------------------------------


def _point(labels: np.ndarray, size: int, loss: str) -> tuple[np.ndarray, float]:
    """Find the clustering with the least expected loss, greedily."""
    compared = labels[_spread(len(labels), COMPARED)]
    num = int(np.clip(MAX_COUNTED / compared.size, LEAST_CANDIDATES, MAX_CANDIDATES))
    candidates = np.unique(labels[_spread(len(labels), num)], axis=0)
    losses = expected_losses(candidates, compared, size, loss)
    best = np.unique(candidates[int(losses.argmin())], return_inverse=True)[1]
    if len(best) <= MAX_ROWS:
        best = _improved(best, labels, size, loss)
    return best, float(_losses(best, labels, size, loss).mean())


def _improved(point: np.ndarray, labels: np.ndarray, size: int, loss: str) -> np.ndarray:
    """Move single rows to the cluster, or to one of their own, that lowers the expected loss most, while any does."""
    point, draws = point.copy(), np.arange(len(labels))
    table = _tables(point, labels, size)
    table = np.concatenate([table, np.zeros_like(table[:, :1])], axis=1)  # one more, to which a row may move by itself
    counts = np.arange(len(point) + 1.0)
    # By how much the loss of a cluster, or of what it shares with another, grows with one more member.
    steps = np.diff(xlogy(counts, counts)) if loss == "vi" else 2.0 * counts[:-1]
    for _ in range(MAX_SWEEPS):
        changed = False
        for row in range(len(point)):
            column = labels[:, row]
            table[draws, point[row], column] -= 1
            gain = steps[table[0].sum(axis=1)] - 2.0 * steps[table[draws, :, column]].mean(axis=0)
            new = int(gain.argmin())
            if gain[new] < gain[point[row]] - ROUNDING * len(point):
                point[row], changed = new, True
            table[draws, point[row], column] += 1
            if table[0, -1].any():
                table = np.concatenate([table, np.zeros_like(table[:, :1])], axis=1)
        if not changed:
            break
    return np.unique(point, return_inverse=True)[1]


def _by_size(point: np.ndarray) -> np.ndarray:
    """Give clusters numbers from the largest to the smallest; of equal ones that of the earlier row is first."""
    _, first, flat, counts = np.unique(point, return_index=True, return_inverse=True, return_counts=True)
    rank = np.empty(len(counts), dtype=np.int64)
    rank[np.lexsort((first, -counts))] = np.arange(len(counts))
    return rank[flat]
