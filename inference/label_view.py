"""How fits of a model with exchangeable components are looked at: with aligned labels, or free of labels."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from inference.alignment import ALIGNED
from inference.errors import InputError
from inference.exchangeable import Components
from inference.fit import Fit
from inference.label_model import LabelModel
from inference.relabel import Relabelled, exchangeable_of, relabel_jointly

Draws = Mapping[str, np.ndarray]

# The share of pairs of rows that are together takes few values for few rows: with less than this many its quantiles
# jump, and errors of quantiles could not be told from that.
SMOOTH_ROWS = 100


@dataclass(frozen=True, eq=False)
class LabelView:
    """A function from draws to draws that any permutation of the labels within a draw leaves as they are.

    Attributes
    ----------
    models
        What labels are given by, one for each group of components.
    aligned
        Whether sites are given with aligned labels; else parameters are sorted, each coordinate by itself.
    """

    models: tuple[LabelModel, ...]
    aligned: bool

    def __call__(self, draws: Draws) -> dict[str, np.ndarray]:
        """Draws ``name -> (chain, draw, *shape)``, seen with aligned labels or without labels."""
        shape = next(iter(draws.values())).shape[:2]
        flat = {name: np.asarray(value).reshape(-1, *np.shape(value)[2:]) for name, value in draws.items()}
        for model in self.models:
            # Labels of rows are not looked at: there may be many of them.
            own = replace(model.components, labels=())
            flat = own.permuted(flat, model.orders(flat)) if self.aligned else label_free(model.components, flat)
            flat = {name: value for name, value in flat.items() if name not in model.components.left_out}
        return {name: value.reshape(*shape, *value.shape[1:]) for name, value in flat.items()}


def label_free(group: Components, draws: Draws) -> dict[str, np.ndarray]:
    """Replace what depends on labels by what does not, in draws ``name -> (n, *shape)``.

    Parameters are sorted over the components, coordinate by coordinate (of a transition matrix the diagonal);
    assignments give the number of occupied components and the share of pairs of rows that are together.
    """
    result = {name: value for name, value in draws.items() if name not in group.axes and name not in group.labels}
    for name in (name for name in group.axes if name in draws):
        value, (first, *others) = draws[name], [axis + 1 for axis in group.axes[name]]
        if others:
            value, first = np.diagonal(value, axis1=first, axis2=others[0]), -1
        result[f"sorted {name}"] = np.sort(value, axis=first)
    for name in (name for name in group.labels if name in draws):
        sizes = cluster_sizes(draws[name].reshape(len(draws[name]), -1), group.size)
        num = sizes.sum(axis=1)
        result[f"occupied by {name}"] = (sizes > 0).sum(axis=1).astype(float)
        if num[0] >= SMOOTH_ROWS:
            result[f"pairs together by {name}"] = (sizes * (sizes - 1.0)).sum(axis=1) / (num * (num - 1.0))
    return result


def cluster_sizes(assignments: np.ndarray, size: int) -> np.ndarray:
    """Count the rows in each of K clusters, (n, K), by labels (n, R)."""
    num = len(assignments)
    flat = (assignments.astype(np.int64) + size * np.arange(num)[:, None]).ravel()
    return np.bincount(flat, minlength=num * size).reshape(num, size)


def with_label_view(fits: Mapping[str, Fit], *, reference: str) -> tuple[dict[str, Fit], str]:
    """Let fits be looked at without regard to arbitrary labels, and say so; as they are where labels mean something.

    `inference.quantities.quantities` takes the view from ``fit.state["label_view"]``. Labels are learnt from the
    reference, so that all fits are seen by the same rule. A model's own ``identify`` wins.
    """
    fits = dict(fits)
    if any(callable(getattr(fit.model, "identify", None)) for fit in fits.values()):
        return fits, ""
    groups: tuple[Components, ...] = ()
    for fit in fits.values():
        try:
            groups = groups or exchangeable_of(fit)
        except InputError:  # a model without a flat density
            continue
    if not groups:
        return fits, ""
    needed = [site for group in groups for site in group.parameters]
    for name, fit in fits.items():
        if missing := [site for site in needed if site not in fit.draws]:
            return fits, f"{_names(groups)}, but could not be aligned: '{name}' lacks site '{missing[0]}'."
    known = next(name for name, fit in fits.items() if fit.model is not None and "unconstrained" in fit.state)
    try:
        chosen = {name: fits[name] for name in (reference, known)}
        found = relabel_jointly(chosen, reference=reference)[reference]
    except InputError as error:
        return fits, f"{_names(groups)}, but could not be aligned: {error}"
    aligned = found.agreement >= ALIGNED
    models = tuple(model for model in found.models if aligned or model.components.labels)
    if not models:  # one symmetric cloud (rows with equal data), whose coordinates are as good as any
        return fits, ""
    view = LabelView(models, aligned)
    seen = {name: replace(fit, state={**fit.state, "label_view": view}) for name, fit in fits.items()}
    return seen, _remark(found, reference, aligned=view.aligned, alone=len(fits) == 1)


def _remark(found: Relabelled, reference: str, *, aligned: bool, alone: bool) -> str:
    whose = "its draws" if alone else f"the draws of '{reference}'"
    rhat = ""
    if not found.fit.independent and np.isfinite(found.rhat_after):
        rhat = f"; R-hat of the components was {found.rhat_before:.2f} before and is {found.rhat_after:.2f} after"
    share = f"{found.agreement:.0%} of {whose} have a clear labelling{rhat}"
    if aligned:
        return f"{_names(found.components)}, so draws were relabelled: {share}."
    return (
        f"{_names(found.components)} and cannot be aligned: only {share}. Parameters are therefore looked at in sorted "
        "order, and clusters by how many there are and how many pairs of rows are together."
    )


def _names(groups: tuple[Components, ...]) -> str:
    return f"Labels of {', '.join(f'{group.name} (K={group.size})' for group in groups)} are exchangeable"
