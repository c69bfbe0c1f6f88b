"""Telling components by their parameters: normals for the features of each, to which draws are aligned."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from inference.alignment import Normals, align_features, around, best_orders, normals_of
from inference.exchangeable import Components, Values


@dataclass(frozen=True, eq=False)
class Features:
    """How the parameters of components become vectors: which sites, and which of them as logarithms.

    Of a site with both axes over the components (a transition matrix) the diagonal is taken, the part that belongs to
    one component. Positive sites count as logarithms, since ratios of scales and weights are what differs.
    """

    components: Components
    sites: tuple[str, ...]
    logged: frozenset[str]

    def __call__(self, values: Values) -> np.ndarray:
        """Vectors (n, K, d) at values ``name -> (n, *shape)``."""
        parts = [self._of(name, np.asarray(values[name], dtype=np.float64)) for name in self.sites]
        return np.concatenate(parts, axis=2)

    def _of(self, name: str, value: np.ndarray) -> np.ndarray:
        value = np.log(np.maximum(value, np.finfo(float).tiny)) if name in self.logged else value
        axes = [axis + 1 for axis in self.components.axes[name]]
        while len(axes) > 1:
            value = np.diagonal(value, axis1=axes[0], axis2=axes[1])  # the diagonal becomes the last axis
            axes = [axis - sum(used < axis for used in axes[:2]) for axis in axes[2:]] + [value.ndim - 1]
        return np.moveaxis(value, axes[0], 1).reshape(len(value), self.components.size, -1)


def features_of(components: Components, values: Values, others: Sequence[Components] = ()) -> Features:
    """Choose what describes the components: continuous sites, without those that other groups permute as well."""
    names = [name for name in components.parameters if name in values]
    shared = {name for other in others if other is not components for name in other.axes}
    chosen = tuple(name for name in names if name not in shared) or tuple(names)
    logged = frozenset(name for name in chosen if np.min(values[name]) >= 0 and np.max(values[name]) > 0)
    return Features(components, chosen, logged)


@dataclass(frozen=True, eq=False)
class LabelModel:
    """Normals for the features of each component; the label that a draw's component gets is that of the likeliest."""

    features: Features
    normals: Normals

    @property
    def components(self) -> Components:
        """Whose labels these are."""
        return self.features.components

    def costs(self, values: Values) -> np.ndarray:
        """Costs (n, K, K) of giving each component each label; see `inference.alignment`."""
        return self.normals.costs(self.features(values))

    def orders(self, values: Values) -> np.ndarray:
        """Likeliest old label of each new one, (n, K)."""
        return best_orders(self.costs(values))

    def reordered(self, order: np.ndarray) -> "LabelModel":
        """Permute the labels themselves."""
        return replace(self, normals=self.normals.reordered(order))


def label_model(features: Features, values: Values, orders: np.ndarray) -> LabelModel:
    """Fit the normals to draws with given labels."""
    return LabelModel(features, normals_of(features(values), orders))


def starting_orders(features: Features, values: Values, pivot: Mapping[str, np.ndarray]) -> np.ndarray:
    """Labels nearest to those of a pivot ``name -> (1, *shape)``, by least squares, (n, K)."""
    sites = tuple(name for name in features.sites if name in pivot)
    chosen = replace(features, sites=sites)
    here = chosen(values)
    return best_orders(around(here, chosen(pivot)[0]).costs(here))


def parameter_orders(features: Features, values: Values, orders: np.ndarray) -> np.ndarray:
    """Align by the parameters alone, from given orders."""
    return align_features(features(values), orders)
