"""`relabel`: draws whose component labels mean the same throughout, for fits of models that do not fix the labels."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from inference.alignment import Clarity, align_classes, best_orders, clarity, class_costs, normals_of
from inference.classification import classification
from inference.density import Density
from inference.diagnostics import chain_mixing, has_spread
from inference.errors import InputError
from inference.exchangeable import Components, exchangeable
from inference.fit import Fit
from inference.label_model import (
    Features,
    LabelModel,
    features_of,
    label_model,
    parameter_orders,
    starting_orders,
)
from inference.restored_density import restored_density
from inference.sites import Sites

Draws = dict[str, np.ndarray]

# Rows whose classification tells labels apart; more of them cost memory (draws x rows x K) and tell no more: the sum
# over 250 rows differs between two labellings by tens of nats where components differ at all.
MAX_ROWS = 250
# Classification probabilities come from the density of all rows; where that would be more terms than this (some
# seconds), drawn assignments take their place, which the fit has already.
MAX_TERMS = 2e8


@dataclass(frozen=True, eq=False)
class Relabelled:
    """What `relabel` made.

    Attributes
    ----------
    fit
        The fit with aligned draws. Its log densities are those of the given one, as permutations do not change them.
    components
        The groups of components whose labels are aligned.
    permutations
        ``group -> (chain, draw, K)``: the old label of each new one.
    agreement
        Share of the draws whose best permutation is clear: at least 20 times as probable, by normals for the aligned
        parameters of each component, as any other that swaps two labels. The least over groups.
    misclassified
        Expected share of draws with two labels swapped after all, by the same normals. The largest over groups.
    rhat_before, rhat_after
        Largest R-hat over the parameters of the components; NaN where chains cannot have one.
    by
        What each group was aligned by: ``"responsibilities"`` (Stephens), ``"assignments"`` (ECR) or ``"parameters"``.
    models
        Normals by group, with which other draws can be given the same labels.
    """

    fit: Fit
    components: tuple[Components, ...]
    permutations: dict[str, np.ndarray] = field(repr=False)
    agreement: float
    misclassified: float
    rhat_before: float
    rhat_after: float
    by: dict[str, str]
    models: tuple[LabelModel, ...] = field(repr=False)

    def __str__(self) -> str:
        groups = ", ".join(f"{c.name} (K={c.size})" for c in self.components)
        rhat = ""
        if np.isfinite(self.rhat_after):
            rhat = f"; R-hat of the components was {self.rhat_before:.2f} before and is {self.rhat_after:.2f} after"
        return (
            f"Labels of {groups} are exchangeable and were aligned by {' and '.join(sorted(set(self.by.values())))}: "
            f"{self.agreement:.0%} of the draws have a clear labelling{rhat}."
        )


def relabel(fit: Fit, pivot: Mapping[str, Any] | None = None) -> Relabelled:
    """Give the components of every draw the labels under which all draws agree best.

    Which labels are exchangeable is found by `inference.exchangeable.exchangeable`. Draws are aligned by the exact
    classification probabilities of the rows where the model has one assignment per row (Stephens 2000), by drawn
    assignments or state paths (ECR: Papastamoulis & Iliopoulos 2010) else, and by normals for the components'
    parameters where there is neither. Every site that follows the components is permuted: parameters, weights, both
    axes of transition matrices, assignments; deterministic sites are computed anew.

    Parameters
    ----------
    fit
        Of a model with a flat log density and exchangeable components.
    pivot
        Values of some of the components' sites, ``name -> (*shape)``: the new labels are those nearest to it. By
        default components are in the order of the first coordinate of their first parameter.

    Raises
    ------
    InputError
        Nothing is exchangeable, the model has no flat density, or a pivot that does not fit.

    Examples
    --------
    >>> aligned = relabel(fit(model, data, NUTS()))
    >>> print(aligned)
    >>> aligned.fit.draws["loc"].mean(axis=(0, 1))
    """
    return relabel_jointly({"fit": fit}, reference="fit", pivot=pivot)["fit"]


def with_aligned_labels(fit: Fit) -> tuple[Fit, str]:
    """Align a fit's labels where they are exchangeable and not aligned yet; give a sentence on it, empty if not."""
    if fit.state.get("aligned") or not exchangeable_of(fit):
        return fit, ""
    found = relabel(fit)
    return found.fit, str(found)


def relabel_jointly(
    fits: Mapping[str, Fit], *, reference: str | None = None, pivot: Mapping[str, Any] | None = None
) -> dict[str, Relabelled]:
    """Align several fits of one posterior to the same labels.

    Parameters
    ----------
    fits
        By name; of the same model and data.
    reference
        The fit from whose draws the labels are learnt, the others being aligned to it draw by draw. By default from
        all of them together.
    pivot
        As in `relabel`.

    Raises
    ------
    InputError
        As in `relabel`; a fit lacks sites of the components.
    """
    fits = dict(fits)
    if reference is not None and reference not in fits:
        raise InputError(f"reference: expected one of {', '.join(fits)}, got '{reference}'.")
    base = next((f for f in fits.values() if f.model is not None and "unconstrained" in f.state), None)
    if base is None:
        raise InputError(
            "fits: expected one of a model with a flat log density, with its model; load_fit(path, model=...)."
        )
    with restored_density(base, num_gradients=0) as (density, sites):
        groups = exchangeable(density)
        if not groups:
            raise InputError(
                "fit: its model has no components whose labels can be exchanged without changing the density, so there "
                "is nothing to relabel."
            )
        pools = {name: _Pool(fit, sites, groups, name) for name, fit in fits.items()}
        taught = [pools[reference]] if reference else list(pools.values())
        models = [_align(group, pools, taught, pivot) for group in groups]
        return {name: pool.result(density, tuple(models)) for name, pool in pools.items()}


def exchangeable_of(fit: Fit) -> tuple[Components, ...]:
    """Give the components that a fit's model does not tell apart; none where it has no density to find them by."""
    if fit.model is None or "unconstrained" not in fit.state or fit.state.get("num_exchangeable") == 0:
        return ()
    with restored_density(fit, num_gradients=0) as (density, _):
        return exchangeable(density)


class _Pool:
    """The draws of one fit as they are aligned, group by group; chains are pooled."""

    def __init__(self, fit: Fit, sites: Sites, groups: tuple[Components, ...], name: str) -> None:
        self.fit, self.sites, self.groups = fit, sites, groups
        self.shape = (fit.num_chains, fit.num_draws)
        missing = [site for group in groups for site in group.parameters if site not in fit.draws]
        if missing:
            raise InputError(f"fits['{name}']: lacks site '{missing[0]}', without which labels cannot be aligned.")
        self.draws = {site: np.asarray(v).reshape(-1, *v.shape[2:]) for site, v in fit.draws.items()}
        self.lp = np.asarray(fit.stats["lp"], dtype=np.float64).ravel() if "lp" in fit.stats else None
        self.orders: dict[str, np.ndarray] = {}
        self.clarity: dict[str, Clarity] = {}
        self.by: dict[str, str] = {}

    def permute(self, group: Components, orders: np.ndarray) -> None:
        self.draws = group.permuted(self.draws, orders)
        self.orders[group.name] = orders

    def classes(self, group: Components) -> tuple[np.ndarray | None, str]:
        """Classification of some rows, (n, R, K), and what it is."""
        num = len(next(iter(self.draws.values())))
        for name in group.labels:
            site = self.sites.discrete.get(name)
            if site is not None and site.plates and len(group.labels) == 1:
                size = int(np.prod(site.shape))
                latents = all(latent in self.draws for latent in self.sites.latent)
                if latents and num * size * group.size <= MAX_TERMS:
                    try:
                        return classification(self.sites, name, self.draws, _rows(size)), "responsibilities"
                    except InputError:  # its rows hang together through another discrete site
                        pass
        drawn = [self.draws[name].reshape(num, -1) for name in group.labels if name in self.draws]
        if not drawn:
            return None, "parameters"
        values = np.concatenate(drawn, axis=1)
        chosen = values[:, _rows(values.shape[1])].astype(int)
        return np.eye(group.size, dtype=np.float32)[chosen], "assignments"

    def result(self, density: Density, models: tuple[LabelModel, ...]) -> Relabelled:
        """Put the aligned fit together."""
        moved = np.any([(orders != np.arange(orders.shape[1])).any(axis=1) for orders in self.orders.values()], axis=0)
        left_out = {site for group in self.groups for site in group.left_out}
        draws = {site: value for site, value in self.draws.items() if site not in left_out}
        state = {name: value for name, value in self.fit.state.items() if name not in ("loc", "scale", "warmup")}
        state["aligned"] = True
        stats = dict(self.fit.stats)
        if "unconstrained" in state:
            state["unconstrained"], shift = self._unconstrained(density, draws, moved)
            for name in ("lp", "log_q"):  # the log Jacobian of a transform need not be the same for all labels
                if name in stats and shift.any():
                    stats[name] = stats[name] + shift.reshape(self.shape)
        aligned = replace(
            self.fit,
            draws={n: v.reshape(*self.shape, *v.shape[1:]) for n, v in draws.items()},
            stats=stats,
            state=state,
        )
        return Relabelled(
            fit=aligned,
            components=self.groups,
            permutations={name: orders.reshape(*self.shape, -1) for name, orders in self.orders.items()},
            agreement=min(c.agreement for c in self.clarity.values()),
            misclassified=max(c.misclassified for c in self.clarity.values()),
            rhat_before=_rhat(self.fit, self.groups),
            rhat_after=_rhat(aligned, self.groups),
            by=dict(self.by),
            models=models,
        )

    def _unconstrained(self, density: Density, draws: Draws, moved: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Points of the permuted draws, and by how much log densities on the unconstrained space change."""
        points = np.array(self.fit.state["unconstrained"]).reshape(-1, density.dim)
        shift = np.zeros(len(points))
        if moved.any():
            before = {
                n: np.asarray(self.fit.draws[n]).reshape(-1, *draws[n].shape[1:])[moved] for n in self.sites.latent
            }
            old = density.unconstrain(before)[1]
            points[moved], new = density.unconstrain({n: draws[n][moved] for n in self.sites.latent})
            shift[moved] = np.where(np.isclose(new, old, rtol=1e-9, atol=1e-9), 0.0, new - old)
        return points.reshape(*self.shape, density.dim), shift


def _align(
    group: Components, pools: Mapping[str, _Pool], taught: list[_Pool], pivot: Mapping[str, Any] | None
) -> LabelModel:
    """Align one group in all pools to labels that some of them teach."""
    pooled = {n: np.concatenate([pool.draws[n] for pool in taught]) for n in group.parameters}
    features = features_of(group, pooled, taught[0].groups)
    orders = starting_orders(features, pooled, _pivot(pivot, features, pooled, taught))
    classes = {name: pool.classes(group) for name, pool in pools.items()}
    kinds = {by for _, by in classes.values()}
    by = kinds.pop() if len(kinds) == 1 else "parameters"
    reference = None
    if by == "parameters":
        orders = parameter_orders(features, pooled, orders)
    else:
        known = np.concatenate([classes[name][0] for name, pool in pools.items() if pool in taught])
        orders, reference = align_classes(known, orders, soft=by == "responsibilities")
    last = _final_order(features, pooled, orders, pivot)
    model = label_model(features, pooled, orders).reordered(last)
    for name, pool in pools.items():
        costs = model.costs(pool.draws)
        own = (
            best_orders(costs) if reference is None else best_orders(class_costs(classes[name][0], reference[:, last]))
        )
        pool.clarity[group.name], pool.by[group.name] = clarity(costs, own), by
        pool.permute(group, own)
    return model


def _rows(size: int) -> np.ndarray:
    return np.unique(np.linspace(0, size - 1, min(size, MAX_ROWS)).astype(int))


def _pivot(pivot: Mapping[str, Any] | None, features: Features, pooled: Draws, taught: list[_Pool]) -> Draws:
    """Give the values that labels are first taken from: the given ones, else the draw of highest density."""
    if pivot is None:
        known = [pool.lp for pool in taught]
        best = 0 if any(lp is None for lp in known) else int(np.nanargmax(np.concatenate(known)))
        return {name: pooled[name][best : best + 1] for name in features.sites}
    found = {}
    for name, value in pivot.items():
        if name not in features.sites:
            raise InputError(f"pivot: expected sites among {', '.join(features.sites)}, got '{name}'.")
        value = np.asarray(value, dtype=np.float64)
        if value.shape != pooled[name].shape[1:] or not np.isfinite(value).all():
            raise InputError(
                f"pivot['{name}']: expected finite numbers of shape {pooled[name].shape[1:]}, got {value}."
            )
        found[name] = value[None]
    if not found:
        raise InputError(f"pivot: is empty; expected values of some of {', '.join(features.sites)}.")
    return found


def _final_order(features: Features, pooled: Draws, orders: np.ndarray, pivot: Mapping[str, Any] | None) -> np.ndarray:
    """Order the labels that were found: as the pivot's, else by the first coordinate of the first parameter."""
    if pivot is not None:
        some = replace(features, sites=tuple(name for name in features.sites if name in pivot))
        target = some({name: np.asarray(pivot[name], np.float64)[None] for name in some.sites})[0]
        here = normals_of(some(pooled), orders)
        gap = (here.loc[:, None] - target) / here.scale.max(axis=0)
        return best_orders((gap**2).sum(axis=-1)[None])[0]
    single = [name for name in features.sites if len(features.components.axes[name]) == 1] or list(features.sites)
    some = replace(features, sites=tuple(single[:1]))
    return np.argsort(normals_of(some(pooled), orders).loc[:, 0], kind="stable")


def _rhat(fit: Fit, groups: tuple[Components, ...]) -> float:
    """Largest R-hat of the components' parameters."""
    names = {name for group in groups for name in group.axes if np.asarray(fit.draws[name]).dtype.kind == "f"}
    values = [
        np.asarray(fit.draws[name], np.float64).reshape(fit.num_chains, fit.num_draws, -1) for name in sorted(names)
    ]
    columns = np.concatenate(values, axis=-1)
    moving = has_spread(columns)
    if fit.num_chains < 2 or fit.num_draws < 4 or not moving.any():
        return float("nan")
    return float(np.max(chain_mixing(columns[:, :, moving]).rhat))
