"""Copies of one mode under other labels: points are brought to one labelling before they are judged or counted."""

from collections.abc import Callable, Sequence

import numpy as np
import torch

from inference.alignment import ALIGNED, clarity
from inference.density import Density
from inference.exchangeable import Components, exchangeable
from inference.gaussian import Family
from inference.label_model import LabelModel, features_of, label_model, parameter_orders, starting_orders

# Draws of a mode's Gaussian, from which the normals of its components' parameters are taken.
NUM_DRAWS = 200


def label_models(density: Density, points: np.ndarray, groups: Sequence[Components]) -> tuple[LabelModel, ...]:
    """Fit normals to the components' parameters at points (n, D) whose labels are aligned; one for each group."""
    values = density.constrain(points) if groups else {}
    return tuple(
        label_model(features_of(group, values, groups), values, np.tile(np.arange(group.size), (len(points), 1)))
        for group in groups
    )


def learnt_models(density: Density, points: np.ndarray) -> tuple[LabelModel, ...]:
    """Fit normals to the components' parameters at points (n, D) with any labels, which are aligned first.

    Only of groups that come in separate copies: those with labels as values of some site (mixtures), and others where
    labels are clear. Coordinates of one symmetric cloud (rows with equal data) have one mode, not K! of them.
    """
    groups = exchangeable(density)
    if not groups:
        return ()
    values, models = density.constrain(points), []
    best = int(np.argmax(density.log_density(points)))
    for group in groups:
        features = features_of(group, values, groups)
        pivot = {name: values[name][best : best + 1] for name in features.sites}
        orders = parameter_orders(features, values, starting_orders(features, values, pivot))
        model = label_model(features, values, orders)
        if group.labels or clarity(model.costs(values), orders).agreement >= ALIGNED:
            models.append(model)
            values = group.permuted(values, orders)
    return tuple(models)


def relabelled(density: Density, models: tuple[LabelModel, ...], points: np.ndarray) -> np.ndarray:
    """Give points (n, D) the likeliest labels."""
    if not models or not len(points):
        return points
    values, moved = _aligned(density, models, points)
    result = np.array(points)
    if moved.any():
        result[moved] = _unconstrained(density, {name: value[moved] for name, value in values.items()})
    # A simplex with an entry of exactly zero, or a singular covariance, has no unconstrained counterpart: its labels
    # stay as they are.
    broken = ~np.isfinite(result).all(axis=1)
    result[broken] = points[broken]
    return result


def _unconstrained(density: Density, values: dict[str, np.ndarray]) -> np.ndarray:
    """Give points (n, D) of values ``name -> (n, *shape)``; NaN where a matrix cannot be factorised."""
    try:
        return density.unconstrain(values)[0]
    except torch.linalg.LinAlgError:
        num = len(next(iter(values.values())))
        if num == 1:
            return np.full((1, density.dim), np.nan)
        rows = [{name: value[i : i + 1] for name, value in values.items()} for i in range(num)]
        return np.concatenate([_unconstrained(density, row) for row in rows])


def otherwise_labelled(density: Density, models: tuple[LabelModel, ...], points: np.ndarray) -> np.ndarray:
    """Tell which points (n, D) have other labels than the likeliest ones, (n,)."""
    return _aligned(density, models, points)[1]


def _aligned(density: Density, models: tuple[LabelModel, ...], points: np.ndarray) -> tuple[dict, np.ndarray]:
    values, moved = density.constrain(points), np.zeros(len(points), dtype=bool)
    for model in models:
        orders = model.orders(values)
        values = model.components.permuted(values, orders)
        moved |= (orders != np.arange(orders.shape[1])).any(axis=1)
    return values, moved


def in_one_labelling(density: Density, models: tuple[LabelModel, ...]) -> Callable[[np.ndarray], np.ndarray]:
    """Give the log density, points (n, D) to (n,), that is minus infinity wherever the labels are not the likeliest.

    Its integral is that of the density over K!, exactly: the K! labellings of a point have the same density, and the
    likeliest of them is one.
    """

    def log_density(points: np.ndarray) -> np.ndarray:
        values = np.array(density.log_density(points))
        inside = np.isfinite(points).all(axis=1)
        inside[inside] = ~otherwise_labelled(density, models, points[inside])
        return np.where(inside, values, -np.inf)

    return log_density


def nearest_copies(
    density: Density, mode: Family, points: np.ndarray, groups: Sequence[Components] | None = None
) -> np.ndarray:
    """Give points (n, D) the labels under which they are nearest to a mode; as they are where labels mean something."""
    groups = exchangeable(density) if groups is None else groups
    return relabelled(density, label_models(density, _draws(mode, density.dim), groups), points) if groups else points


def _draws(mode: Family, dim: int) -> np.ndarray:
    return mode.transform(np.random.default_rng(0).standard_normal((NUM_DRAWS, dim)))


def nearest_modes(
    density: Density, components: Sequence[Family], points: np.ndarray
) -> tuple[np.ndarray, np.ndarray, float]:
    """Fold points into one copy of each mode.

    Every component of a mixture has its labelling, and a point belongs to the component under which it is likeliest
    once it is so labelled. The points that are not moved are one part in K! of space: copies of it fill the rest.

    Parameters
    ----------
    density, components
        A fitted distribution for each mode, none of them a copy of another.
    points
        (n, D).

    Returns
    -------
    folded : ndarray
        (n, D), the copies nearest to their modes.
    moved : ndarray
        (n,), which of them had other labels.
    log_copies : float
        Log of the number of copies of each mode.
    """
    models = learnt_models(density, _draws(components[0], density.dim)) if exchangeable(density) else ()
    if not models:
        return points, np.zeros(len(points), dtype=bool), 0.0
    groups = [model.components for model in models]
    copies = [nearest_copies(density, component, points, groups) for component in components]
    with np.errstate(over="ignore", invalid="ignore"):  # too far away for a bent Gaussian to be inverted
        heights = np.array([q.log_q(q.whiten(near)) for q, near in zip(components, copies, strict=True)])
    mode = np.where(np.isnan(heights), -np.inf, heights).argmax(axis=0)
    folded = np.stack(copies)[mode, np.arange(len(points))]
    return folded, (folded != points).any(axis=1), log_num_labellings(models)


def log_num_labellings(models: Sequence[LabelModel]) -> float:
    """Log of the number of labellings of one mode: the sum of log K! over groups."""
    return float(sum(model.components.log_copies for model in models))
