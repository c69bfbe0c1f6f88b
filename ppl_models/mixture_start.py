"""Where a climb to a maximum of a mixture's density begins: at the parts of a clustering of the data by k-means.

The likelihood of a mixture has many maxima, and from points spread evenly most climbs end in a poor one, or at a
component that has collapsed on a few rows. The EM algorithm is started from clusterings for the same reason.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

# Rows by which a cluster's covariance is drawn towards that of the data: the prior's degrees of freedom, D + 2.
EXTRA_DF = 2
# Rows that stand beside those of a cluster with the mean of the data, in counts.
EXTRA_ROWS = 1.0


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
    return KMeans(K, n_init=1, random_state=seed).fit(white).labels_


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
    """Give weights, locations and scales or covariances of the clusters, as sites of `gaussian_mixture`."""
    given = arguments(model, data)
    x, K, covariance = given["x"].astype(np.float64), given["K"], given["covariance"]
    on_line = x.ndim == 1
    table = x.reshape(len(x), -1)
    labels = cluster(table, K, seed)
    center, size = np.nanmean(table, axis=0), table.shape[1]
    seen = ~np.isnan(table)
    member = np.eye(K)[labels]
    counts = member.sum(axis=0)
    loc = (member.T @ np.where(seen, table, 0.0) + 1e-3 * center) / (member.T @ seen + 1e-3)
    filled = np.where(seen, table, loc[labels])
    whole = np.cov(np.where(seen, table, center).T, bias=True).reshape(size, size)
    within = np.stack([(filled - m).T @ ((filled - m) * w[:, None]) for m, w in zip(loc, member.T, strict=True)])
    extra = EXTRA_DF + size
    each = (within + extra * whole * K ** (-2 / size)) / (counts + extra)[:, None, None]
    tied = (within.sum(axis=0) + extra * whole * K ** (-2 / size)) / (len(x) + extra)
    result = {"weights": shares(labels, K), "loc": loc}
    if on_line or covariance in ("diagonal", "spherical"):
        scale = np.sqrt(np.diagonal(each, axis1=-2, axis2=-1))
        if on_line:
            result = {"weights": result["weights"], "loc": loc[:, 0]}
            result["scale"] = np.sqrt(tied[0, 0]) if covariance == "tied" else scale[:, 0]
        else:
            result["scale"] = scale if covariance == "diagonal" else np.sqrt((scale**2).mean(axis=1))
    else:
        result["covariance"] = tied if covariance == "tied" else each
    return result
