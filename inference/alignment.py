"""Aligning the labels of draws: which old label becomes which new one, as assignment problems. Arrays only.

A cost (n, K, K) is that of giving old component k the new label j; an order (n, K) is the old label of each new one.
"""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

# Each round lowers the total cost; on mixtures of 2 to 10 components it comes to rest within ten.
MAX_ROUNDS = 100
# Floor of the classification probabilities of the reference, so that one draw's certainty is no infinite cost.
LEAST_PROBABILITY = 1e-10
# Floor of a component's variance, as a share of the variance over all components: draws may agree to the last digit.
LEAST_VARIANCE = 1e-8
# A draw's labels are clear where the best permutation is so many times as probable as any other that swaps two labels:
# 20 to 1, the usual 95 %.
CLEAR = np.log(20.0)
# Aligned labels mean something where this share of the draws has a clear one. With more unclear draws than that the
# means and sds of a component are those of a cut through one cloud, and quantities without labels say what there is.
ALIGNED = 0.9


def best_orders(costs: np.ndarray) -> np.ndarray:
    """Solve n assignment problems (n, K, K); gives orders (n, K).

    Where the cheapest new label of every old one is another, that is the solution, without the Hungarian algorithm.
    """
    num, size = costs.shape[:2]
    ranks = costs.argmin(axis=2)
    hard = np.flatnonzero((np.sort(ranks, axis=1) != np.arange(size)).any(axis=1))
    for i in hard:
        ranks[i] = linear_sum_assignment(costs[i])[1]
    return np.argsort(ranks, axis=1).reshape(num, size)


def margins(costs: np.ndarray, orders: np.ndarray) -> np.ndarray:
    """How much dearer it is to swap each two labels of the best orders, (n, K (K - 1) / 2)."""
    matched = np.take_along_axis(costs, orders[:, :, None], axis=1)  # [j, l]: cost of label l for what has label j
    own = np.einsum("njj->nj", matched)
    swapped = matched + matched.transpose(0, 2, 1) - own[:, :, None] - own[:, None, :]
    one, other = np.triu_indices(costs.shape[1], k=1)
    return swapped[:, one, other]


@dataclass(frozen=True)
class Clarity:
    """How clear the labels of draws are.

    Attributes
    ----------
    agreement
        Share of the draws whose best permutation is at least 20 times as probable as any other that swaps two labels.
    misclassified
        Expected share of the draws whose best permutation is not the right one, of those that swap two labels.
    """

    agreement: float
    misclassified: float


def clarity(costs: np.ndarray, orders: np.ndarray) -> Clarity:
    """Judge the best orders by costs that are minus log probabilities."""
    dearer = margins(costs, orders)
    others = np.exp(-np.maximum(dearer, 0.0)).sum(axis=1)
    return Clarity(float((dearer.min(axis=1) > CLEAR).mean()), float((others / (1.0 + others)).mean()))


def align_classes(classes: np.ndarray, orders: np.ndarray, *, soft: bool) -> tuple[np.ndarray, np.ndarray]:
    """Align classification probabilities, or drawn assignments, until the orders no longer change.

    Soft: Stephens (2000, algorithm 2): the reference q is the mean of the aligned probabilities, and the cost of a
    permutation is the Kullback-Leibler divergence of the draw's p from q, summed over rows. Hard: the iterative
    version of ECR (Papastamoulis & Iliopoulos 2010; Papastamoulis 2014, algorithm 1), whose pivot is the most
    frequent label of each row and whose cost counts the rows that differ from it.

    Parameters
    ----------
    classes
        (n, R, K), probabilities of each row, or ones and zeros.
    orders
        (n, K), to begin with.
    soft
        Whether they are probabilities.

    Returns
    -------
    orders : ndarray
        (n, K).
    reference : ndarray
        (R, K): log q, or the pivot's ones and zeros; for `class_costs`.
    """
    for _ in range(MAX_ROUNDS):
        mean = np.zeros(classes.shape[1:])
        for j in range(classes.shape[2]):  # one column at a time: an aligned copy would double the memory
            mean[:, j] = np.take_along_axis(classes, orders[:, None, j : j + 1], axis=2).mean(axis=0)[:, 0]
        reference = _reference(mean, soft=soft)
        last, orders = orders, best_orders(class_costs(classes, reference))
        if np.array_equal(last, orders):
            break
    return orders, reference


def _reference(mean: np.ndarray, *, soft: bool) -> np.ndarray:
    if soft:
        return np.log(np.maximum(mean, LEAST_PROBABILITY))
    return np.eye(mean.shape[1])[mean.argmax(axis=1)]


def class_costs(classes: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Costs (n, K, K) of labels for classes (n, R, K), up to what is the same for every permutation."""
    return -np.matmul(classes.transpose(0, 2, 1), reference.astype(classes.dtype)).astype(np.float64)


@dataclass(frozen=True, eq=False)
class Normals:
    """Independent normals for the features of each component, (K, d)."""

    loc: np.ndarray
    scale: np.ndarray

    def costs(self, features: np.ndarray) -> np.ndarray:
        """Minus log densities (n, K, K) of features (n, K, d) under every component, up to a constant."""
        precision = self.scale**-2
        squares = features**2 @ precision.T - 2.0 * features @ (self.loc * precision).T
        constant = (self.loc**2 * precision).sum(axis=1) + 2.0 * np.log(self.scale).sum(axis=1)
        return 0.5 * (squares + constant)

    def reordered(self, order: np.ndarray) -> "Normals":
        """Permute the labels."""
        return Normals(self.loc[order], self.scale[order])


def normals_of(features: np.ndarray, orders: np.ndarray) -> Normals:
    """Moments of features (n, K, d) with aligned labels."""
    aligned = np.take_along_axis(features, orders[:, :, None], axis=1)
    whole = features.reshape(-1, features.shape[2]).var(axis=0)
    variance = np.maximum(aligned.var(axis=0), LEAST_VARIANCE * whole)
    return Normals(aligned.mean(axis=0), np.sqrt(np.where(variance > 0, variance, 1.0)))


def around(features: np.ndarray, pivot: np.ndarray) -> Normals:
    """Give normals about a pivot (K, d) with the sds of features (n, K, d) over all components: least squares."""
    scale = features.reshape(-1, features.shape[2]).std(axis=0)
    return Normals(pivot, np.tile(np.where(scale > 0, scale, 1.0), (len(pivot), 1)))


def align_features(features: np.ndarray, orders: np.ndarray) -> np.ndarray:
    """Align features (n, K, d), from given orders, to the normals of the aligned draws until these stay (k-means like).

    Stephens (1997, "normal" loss): the total cost, minus twice the log likelihood of all aligned draws, falls in each
    round.
    """
    for _ in range(MAX_ROUNDS):
        last, orders = orders, best_orders(normals_of(features, orders).costs(features))
        if np.array_equal(last, orders):
            break
    return orders
