"""Where a climb to a maximum of a mixture's density begins: at the parts of a clustering of the data by k-means.

The likelihood of a mixture has many maxima, and from points spread evenly most climbs end in a poor one, or at a
component that has collapsed on a few rows. The EM algorithm is started from clusterings for the same reason.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

# Rows by which a cluster's covariance is drawn towards that of the data: the prior's degrees of freedom, D + 2.
EXTRA_DF = 2
# Where the model has no prior the start has so much of one: enough to keep components from collapsing on a point.
FLAT_STRENGTH = 0.01
# Rows that stand beside those of a cluster with the mean of the data, in counts.
EXTRA_ROWS = 1.0
# The same for locations (the shrinkage of Fraley & Raftery 2007).
LOC_ROWS = 0.01
# Steps of the EM algorithm, and the gain in log likelihood, in nats, below which they end: a start need not be exact.
EM_STEPS, EM_GAIN = 50, 1e-2
# Rows, chosen at random, that a start is made from where there are more.
MAX_ROWS = 20_000
# Then so many clusterings are tried by a few steps (Biernacki, Celeux & Govaert 2003): a climb from a poor one takes
# longer than all of them, on data so large. Their seeds are MANY apart; odd and even ones differ in what they find.
LARGE_STARTS, FIRST_STEPS, MANY = 4, 10, 10**6 + 1
# On all of them, so many steps follow: they take as long as two gradients, and are worth more of them.
LAST_STEPS = 5


def arguments(model: Callable[..., Any], data: Mapping[str, Any]) -> dict[str, Any]:
    """Complete the data by the model's defaults; tensors as arrays."""
    bound = inspect.signature(model).bind(**data)
    bound.apply_defaults()
    return {n: np.asarray(v) if hasattr(v, "numpy") else v for n, v in bound.arguments.items()}


def cluster(x: np.ndarray, K: int, seed: int) -> np.ndarray:
    """Cluster rows (N, D) by k-means from a random k-means++ start; labels (N,).

    Columns are standardised, or for odd seeds whitened, which finds clusters that are long and narrow. Missing entries
    are put at the mean of their column.
    """
    from sklearn.cluster import KMeans  # imported here: it takes about a second

    filled = np.where(np.isnan(x), np.nanmean(x, axis=0), x)
    spread = filled.std(axis=0)
    white = (filled - filled.mean(axis=0)) / np.where(spread > 0, spread, 1.0)
    if seed % 2 and len(x) > x.shape[1]:
        sizes, axes = np.linalg.eigh(np.cov(white.T).reshape(x.shape[1], x.shape[1]))
        kept = sizes > 1e-9 * sizes[-1]
        white = white @ (axes[:, kept] / np.sqrt(sizes[kept]))
    return KMeans(min(K, len(white)), n_init=1, random_state=seed).fit(white).labels_


def shares(labels: np.ndarray, K: int) -> np.ndarray:
    """Weights (K,) of a clustering, none of them zero."""
    counts = np.bincount(labels, minlength=K) + EXTRA_ROWS
    return counts / counts.sum()


def cluster_means(x: np.ndarray, labels: np.ndarray, K: int, center: np.ndarray) -> np.ndarray:
    """Means (K, D) of the entries seen in each cluster, with `EXTRA_ROWS` rows at ``center`` beside them."""
    seen = ~np.isnan(x)
    member = np.eye(K)[labels]
    return (member.T @ np.where(seen, x, 0.0) + EXTRA_ROWS * center) / (member.T @ seen + EXTRA_ROWS)


def normal_start(model: Callable[..., Any], data: Mapping[str, Any], seed: int) -> dict[str, np.ndarray]:
    """Give weights, locations and scales or covariances of a clustering, as sites of `gaussian_mixture`.

    The clustering is improved by a few steps of the EM algorithm under an inverse Wishart prior (Fraley & Raftery 2007,
    section 2.1), so that no component collapses. Entries that are missing stay at the mean of their cluster.
    """
    given = arguments(model, data)
    x, K, covariance = given["x"].astype(np.float64), given["K"], given["covariance"]
    strength = FLAT_STRENGTH if given.get("flat") else 1.0
    table = x.reshape(len(x), -1)
    large = len(table) > MAX_ROWS
    if large:
        table = table[np.sort(np.random.default_rng(seed).choice(len(table), MAX_ROWS, replace=False))]
    tries = [_clustered(table, K, covariance, seed + i * MANY, strength) for i in range(LARGE_STARTS if large else 1)]
    if large:
        tries = [(rows, *_improved(rows, fitted, strength, FIRST_STEPS)) for rows, fitted in tries]
        rows, fitted, _ = max(tries, key=lambda found: found[2])
    else:
        ((rows, fitted),) = tries
    fitted, _ = _improved(rows, fitted, strength, EM_STEPS)
    if large and not np.isnan(x).any():
        fitted, _ = _improved(_Rows(x.reshape(len(x), -1), covariance), fitted, strength, LAST_STEPS)
    return _as_sites(fitted, covariance, on_line=x.ndim == 1)


def _clustered(table: np.ndarray, K: int, covariance: str, seed: int, strength: float) -> tuple["_Rows", "_Normals"]:
    """Cluster rows, with missing entries at the mean of their cluster, and fit a normal to each."""
    labels, seen = cluster(table, K, seed), ~np.isnan(table)
    filled = np.where(seen, table, cluster_means(table, labels, K, np.nanmean(table, axis=0))[labels])
    rows = _Rows(filled, covariance)
    return rows, rows.maximised(np.eye(K)[labels], strength)


def _improved(rows: "_Rows", fitted: "_Normals", strength: float, num_steps: int) -> tuple["_Normals", float]:
    """Take steps of the EM algorithm; give the last log likelihood, too, but for a constant of the rows."""
    previous = -np.inf
    for _ in range(num_steps):
        joint = np.log(fitted.weights) + rows.log_density(fitted)
        top = joint.max(axis=1, keepdims=True)
        share = np.exp(joint - top)
        total = share.sum(axis=1, keepdims=True)
        level = float((top + np.log(total)).sum())
        if level < previous + EM_GAIN:
            break
        previous = level
        fitted = rows.maximised(share / total, strength)
    return fitted, previous


class _Normals(NamedTuple):
    """Weights (K,), locations (K, D) and covariances (K, D, D)."""

    weights: np.ndarray
    loc: np.ndarray
    covariance: np.ndarray


class _Rows:
    """Rows (N, D) with the products of their entries that a covariance needs: each step is then two matrix products."""

    def __init__(self, x: np.ndarray, covariance: str) -> None:
        self.covariance, self.center, size = covariance, x.mean(axis=0), x.shape[1]
        centred = x - self.center
        self.size = size
        self.full = covariance in ("full", "tied")
        self.pairs = np.tril_indices(size) if self.full else (np.arange(size), np.arange(size))
        self.products = np.concatenate([centred[:, self.pairs[0]] * centred[:, self.pairs[1]], centred], axis=1)
        self.spread = self._square(self.products[:, : len(self.pairs[0])].mean(axis=0))

    def _square(self, values: np.ndarray) -> np.ndarray:
        """Matrices (..., D, D) with these entries (..., P) in the places of the products, and their mirrors."""
        square = np.zeros((*values.shape[:-1], self.size, self.size))
        square[..., self.pairs[0], self.pairs[1]] = values
        square[..., self.pairs[1], self.pairs[0]] = values
        return square

    def maximised(self, share: np.ndarray, strength: float) -> _Normals:
        """Give the parameters that are best for responsibilities (N, K), the prior counted ``strength`` times."""
        (rows, K), size = share.shape, self.size
        counts = share.sum(axis=0)
        sums = share.T @ self.products
        total = sums[:, -size:]
        loc = total / (counts + LOC_ROWS)[:, None]
        df = strength * (size + EXTRA_DF)
        prior = df * self.spread * K ** (-2 / size)
        cross = loc[:, :, None] * total[:, None]
        square = self._square(sums[:, :-size])
        within = square - cross - cross.mT + counts[:, None, None] * loc[:, :, None] * loc[:, None]
        each = (within + prior) / (counts + df)[:, None, None]
        if self.covariance == "tied":
            each[:] = (within.sum(axis=0) + prior) / (rows + df)
        elif not self.full:
            variances = np.diagonal(each, axis1=1, axis2=2)
            mean = self.covariance == "spherical"
            variances = variances.mean(axis=1, keepdims=True) if mean else variances
            each = variances[:, None] * np.eye(size)
        return _Normals((counts + EXTRA_ROWS) / (counts + EXTRA_ROWS).sum(), loc + self.center, each)

    def log_density(self, normals: _Normals) -> np.ndarray:
        """Log densities (N, K) under each component, but for a constant."""
        precision = np.linalg.inv(normals.covariance)
        loc = normals.loc - self.center
        linear = (precision @ loc[..., None])[..., 0]
        twice = np.where(self.pairs[0] == self.pairs[1], 1.0, 2.0)
        factors = np.concatenate([-0.5 * twice * precision[:, self.pairs[0], self.pairs[1]], linear], axis=1)
        constant = -0.5 * ((linear * loc).sum(axis=1) + np.linalg.slogdet(normals.covariance)[1])
        return self.products @ factors.T + constant


def _as_sites(normals: _Normals, covariance: str, *, on_line: bool) -> dict[str, np.ndarray]:
    sites = {"weights": normals.weights, "loc": normals.loc[:, 0] if on_line else normals.loc}
    scale = np.sqrt(np.diagonal(normals.covariance, axis1=1, axis2=2))
    if on_line:
        return sites | {"scale": scale[0, 0] if covariance == "tied" else scale[:, 0]}
    if covariance in ("diagonal", "spherical"):
        return sites | {"scale": scale if covariance == "diagonal" else scale[:, 0]}
    return sites | {"covariance": normals.covariance[0] if covariance == "tied" else normals.covariance}
