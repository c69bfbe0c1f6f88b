"""From a fit to labelled scalar quantities: what diagnostics and comparisons look at."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from inference.diagnostics import Mixing, chain_mixing
from inference.errors import InputError
from inference.fit import Fit
from inference.sites import flat_labels

MAX_NAMES = 6  # in a message; more do not help to find the mistake


@dataclass(frozen=True, eq=False)
class Quantities:
    """The continuous scalars of a fit.

    Attributes
    ----------
    labels
        Flat names in order of the draws' sites: ``mu``, ``chol[1,0]``, ``coef[age]`` where the model labels its dims.
    draws
        (chain, draw, quantity), float64.
    identified
        Whether they come from the model's ``identify`` instead of the raw sites.
    left_out
        Names of the discrete sites, which have no mean or sd worth comparing.
    """

    labels: tuple[str, ...]
    draws: np.ndarray
    identified: bool
    left_out: tuple[str, ...]

    @property
    def pooled(self) -> np.ndarray:
        """The draws with chains pooled, (S, Q)."""
        return self.draws.reshape(-1, self.draws.shape[-1])

    @cached_property
    def mixing(self) -> Mixing:
        """R-hat and effective sample sizes, for draws of a Markov chain; computed once, being the dearest numbers."""
        return chain_mixing(self.draws)

    def select(self, keep: np.ndarray) -> "Quantities":
        """Keep some of the quantities, by a mask or by positions."""
        positions = np.arange(len(self.labels))[keep]
        if np.array_equal(positions, np.arange(len(self.labels))):
            return self
        labels = tuple(self.labels[i] for i in positions)
        return Quantities(labels, self.draws[:, :, positions], self.identified, self.left_out)

    def not_finite(self) -> dict[str, int]:
        """How many draws are NaN or infinite, by quantity, where any are."""
        counts = (~np.isfinite(self.draws)).sum(axis=(0, 1))
        return {label: int(n) for label, n in zip(self.labels, counts, strict=True) if n}


def quantities(fit: Fit) -> Quantities:
    """List every continuous scalar of a fit's draws, label-free ones where the model knows them.

    A model with a callable ``identify`` (mixtures, factor models) is judged on ``identify(draws)`` alone: the raw
    sites depend on the arbitrary order of its components. Where that order was found to be arbitrary
    (`inference.label_view`), the draws are seen with aligned labels.

    Raises
    ------
    InputError
        Nothing continuous to look at.
    """
    identify = getattr(fit.model, "identify", None)
    view = identify if callable(identify) else fit.state.get("label_view")
    draws = view(fit.draws) if callable(view) else fit.draws
    discrete = () if callable(identify) else fit.state.get("discrete", ())  # Pyro draws a Bernoulli as 0.0 or 1.0
    kept = {name: np.asarray(v) for name, v in draws.items() if name not in discrete}
    kept = {name: v for name, v in kept.items() if np.issubdtype(v.dtype, np.floating) and v.size}
    if not kept:
        raise InputError(f"fit: expected a continuous quantity among its sites, got {', '.join(draws) or 'no site'}.")
    columns = [np.asarray(v, dtype=np.float64).reshape(*v.shape[:2], -1) for v in kept.values()]
    coords = fit.coords
    return Quantities(
        labels=tuple(label for name, v in kept.items() for label in _labels(fit, name, v.shape[2:], coords)),
        draws=np.concatenate(columns, axis=-1),
        identified=callable(identify),
        left_out=tuple(name for name in draws if name not in kept and np.asarray(draws[name]).size),
    )


def _labels(fit: Fit, name: str, shape: tuple[int, ...], coords: Mapping[str, list]) -> list[str]:
    dims = fit.state.get("dims", {}).get(name, ())
    return flat_labels(name, shape, [coords.get(dim) for dim in dims])


def common_quantities(fits: Mapping[str, Fit], *, reference: str) -> dict[str, Quantities]:
    """Quantities of several fits in the reference's order; what a given reference lacks is left out.

    Raises
    ------
    InputError
        The fits do not have the same quantities; names what is missing where.
    """
    found = {name: quantities(fit) for name, fit in fits.items()}
    wanted = found[reference].labels
    for name, other in found.items():
        ours, theirs = set(other.labels), set(wanted)
        missing = name_list(label for label in wanted if label not in ours)
        more = [] if fits[reference].method == "given" else other.labels
        extra = name_list(label for label in more if label not in theirs)
        if missing or extra:
            parts = [f"lacks {missing}" if missing else "", f"has {extra} besides" if extra else ""]
            raise InputError(
                f"fits['{name}']: {' and '.join(p for p in parts if p)}, compared with the reference '{reference}'; "
                "compare fits of models with the same sites and shapes."
            )
        position = {label: i for i, label in enumerate(other.labels)}
        found[name] = other.select(np.asarray([position[label] for label in wanted]))
    return found


def name_list(names: Iterable[str]) -> str:
    """Write names out, the first few of many."""
    names = [f"'{name}'" for name in names]
    shown = ", ".join(names[:MAX_NAMES])
    return f"{shown} and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else shown
