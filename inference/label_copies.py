"""Copies of one mode under other labels: points are brought to the labelling nearest to a mode before they are judged."""

import numpy as np

from inference.density import Density
from inference.exchangeable import exchangeable
from inference.gaussian import Gaussian
from inference.label_model import LabelModel, features_of, label_model

# Draws of a mode's Gaussian, from which the normals of its components' parameters are taken.
NUM_DRAWS = 200


def label_models(density: Density, points: np.ndarray) -> tuple[LabelModel, ...]:
    """Fit normals to the components' parameters at points (n, D) whose labels are aligned; one for each group."""
    groups = exchangeable(density)
    values = density.constrain(points) if groups else {}
    return tuple(
        label_model(features_of(group, values, groups), values, np.tile(np.arange(group.size), (len(points), 1)))
        for group in groups
    )


def relabelled(density: Density, models: tuple[LabelModel, ...], points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Give points (n, D) the likeliest labels.

    Returns
    -------
    points : ndarray
        (n, D).
    moved : ndarray
        (n,), which of them had other labels.
    """
    moved = np.zeros(len(points), dtype=bool)
    if not models or not len(points):
        return points, moved
    values = density.constrain(points)
    for model in models:
        orders = model.orders(values)
        values = model.components.permuted(values, orders)
        moved |= (orders != np.arange(orders.shape[1])).any(axis=1)
    result = np.array(points)
    if moved.any():
        result[moved] = density.unconstrain({name: value[moved] for name, value in values.items()})[0]
    # A simplex with an entry of exactly zero has no unconstrained counterpart: its labels stay as they are.
    broken = ~np.isfinite(result).all(axis=1)
    result[broken] = points[broken]
    return result, moved


def nearest_copies(density: Density, mode: Gaussian, points: np.ndarray) -> np.ndarray:
    """Give points (n, D) the labels under which they are nearest to a mode; as they are where labels mean something."""
    if not exchangeable(density):
        return points
    draws = mode.transform(np.random.default_rng(0).standard_normal((NUM_DRAWS, density.dim)))
    return relabelled(density, label_models(density, draws), points)[0]


def log_num_labellings(density: Density) -> float:
    """Log of the number of labellings of one mode: the sum of log K! over the groups of exchangeable components."""
    return float(sum(group.log_copies for group in exchangeable(density)))
