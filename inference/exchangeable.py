"""Components that a model does not tell apart: found by permuting their labels and evaluating the density."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, product
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import pyro
import torch
from pyro import poutine
from scipy.special import gammaln

from inference.density import Density
from inference.sites import Site, Sites

# An exact symmetry holds at every point; what is none shows at one point in general. Three leave no room for accidents.
NUM_POINTS = 3
# More than this many candidates for a point with a finite density are not tried.
POINT_TRIES = 50
# Unconstrained points on (-1, 1): far from the ends of supports, where transforms and back again lose digits.
RADIUS = 1.0
# Permuted sums differ by rounding alone: eps times the root of the number of terms, some 1e-13 of the whole for 1e6 of
# them. A prior that tells labels apart by less than this share of the log density at random points is not seen.
TOLERANCE = {torch.float64: 1e-11, torch.float32: 1e-5}
# A transform and its inverse may lose more than that; a transform that ignores part of its argument (a Cholesky factor
# with permuted rows) is off by order one.
ROUND_TRIP = {torch.float64: 1e-6, torch.float32: 1e-3}
# Axes of one length that may take part in one group are tried in all combinations up to this number (255 patterns).
MAX_UNITS = 8
MAX_DISCRETE_PATTERNS = 64

Values = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Components:
    """A group of components whose labels may be permuted without changing the density.

    Attributes
    ----------
    name
        The plate that holds them, else the dim of the first axis over them.
    size
        K, their number.
    axes
        ``site -> axes`` of its value that run over the components; latent, discrete and deterministic sites.
    labels
        Discrete sites whose values are labels of components: assignments, states.
    parameters
        Continuous latent sites of ``axes``, those in the plate first.
    left_out
        Discrete and deterministic sites that follow the labels in a way that was not understood: what cannot be
        relabelled.
    """

    name: str
    size: int
    axes: Mapping[str, tuple[int, ...]]
    labels: tuple[str, ...] = ()
    parameters: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()

    @property
    def log_copies(self) -> float:
        """Log of the number of labellings, log K!."""
        return float(gammaln(self.size + 1.0))

    def permuted(self, values: Values, orders: np.ndarray) -> dict[str, np.ndarray]:
        """Permute the labels of every draw.

        Parameters
        ----------
        values
            ``name -> (n, *shape)``; sites that do not follow the components come back as they are.
        orders
            (n, K): the old label of each new one.
        """
        result = dict(values)
        for name, axes in self.axes.items():
            if name in result:
                for axis in axes:
                    value = np.asarray(result[name])
                    index = orders.reshape(len(orders), *(self.size if i == axis else 1 for i in range(value.ndim - 1)))
                    result[name] = np.take_along_axis(value, index, axis=axis + 1)
        ranks = np.argsort(orders, axis=1)
        for name in self.labels:
            if name in result:
                old = np.asarray(result[name])
                flat = np.take_along_axis(ranks, old.reshape(len(old), -1).astype(int), axis=1)
                result[name] = flat.reshape(old.shape).astype(old.dtype)
        return result


@dataclass(frozen=True)
class _Unit:
    """Axes that belong together: those of one plate, or a single one."""

    axes: tuple[tuple[str, int], ...]
    plate: str = ""


_FOUND: WeakKeyDictionary[Density, tuple[Components, ...]] = WeakKeyDictionary()


def exchangeable(density: Density) -> tuple[Components, ...]:
    """Find the groups of components that a model does not tell apart; to be called where the density may be evaluated.

    A group is a set of axes of one length K over latent sites: those of a plate, alone or with others such as the
    weights' or both axes of a transition matrix. It counts if the log density of the constrained values is the same,
    to rounding, at several random points and at the same points with labels swapped (0 with 1) and turned (all by one);
    these two generate all K! permutations. Ordered locations and priors that differ between components are not
    invariant, nor are rows that come with data of their own. Labels of which only some may be swapped are not found.

    Returns
    -------
    tuple of Components
        No two of them share an axis of a site. Kept for the density, so that asking again costs nothing.
    """
    if density not in _FOUND:
        with torch.no_grad(), pyro.validation_enabled(False):
            _FOUND[density] = tuple(_search(density))
    return _FOUND[density]


def _search(density: Density) -> Iterator[Components]:
    units = _units(density.sites)
    if not units:
        return
    points = np.random.default_rng(0).uniform(-RADIUS, RADIUS, size=(POINT_TRIES, density.dim))
    points = points[: NUM_POINTS * (1 + (density.backend != "eager"))]
    points = points[np.isfinite(density.log_density(points))][:NUM_POINTS]
    if len(points) < NUM_POINTS:
        return
    values = density.constrain(points)
    base = _log_density(density, values)
    for size, candidates in units.items():
        taken: set[tuple[str, int]] = set()
        for found in _promising(density, [_components(density.sites, size, p) for p in _patterns(candidates)], values):
            axes = {(name, axis) for name, over in found.axes.items() for axis in over}
            if taken.isdisjoint(axes) and _invariant(density, found, values, base):
                taken |= axes
                yield _with_others(density.sites, found, values)


def _promising(density: Density, candidates: list[Components], values: Values) -> list[Components]:
    """Candidates whose first two labels may be swapped at the first point, looked at all at once."""
    first = {name: value[:1] for name, value in values.items()}
    swapped = [found.permuted(first, generators(found.size)[:1]) for found in candidates]
    stacked = {name: np.concatenate([first[name], *(value[name] for value in swapped)]) for name in first}
    base, *others = _log_density(density, stacked)
    return [found for found, other in zip(candidates, others, strict=True) if _close(other, base, density.dtype)]


def _units(sites: Sites) -> dict[int, list[_Unit]]:
    """Axes of latent sites by length: those of one plate together."""
    by_plate: dict[str, list[tuple[str, int]]] = {}
    others: list[tuple[str, int]] = []
    for name, site in sites.latent.items():
        for axis, dim in enumerate(site.dims):
            (by_plate.setdefault(dim, []) if dim in site.plates else others).append((name, axis))
    units = [_Unit(tuple(axes), plate) for plate, axes in by_plate.items()] + [_Unit((axis,)) for axis in others]
    result: dict[int, list[_Unit]] = {}
    for unit in units:
        name, axis = unit.axes[0]
        if (size := sites.latent[name].shape[axis]) > 1:
            result.setdefault(size, []).append(unit)
    return result


def _patterns(units: Sequence[_Unit]) -> Iterator[tuple[_Unit, ...]]:
    """Combine units, small ones first, since a union of two groups is as invariant as each of them."""
    if len(units) <= MAX_UNITS:
        for num in range(1, len(units) + 1):
            yield from combinations(units, num)
        return
    plates, single = [u for u in units if u.plate], [u for u in units if not u.plate]
    for plate in plates:
        yield (plate,)
        yield from ((plate, *some) for num in (1, 2) for some in combinations(single[:MAX_UNITS], num))
        yield (plate, *single)
    yield tuple(single)


def _components(sites: Sites, size: int, pattern: Sequence[_Unit]) -> Components:
    axes: dict[str, tuple[int, ...]] = {}
    for name, axis in (axis for unit in pattern for axis in unit.axes):
        axes[name] = (*axes.get(name, ()), axis)
    plates = [unit for unit in pattern if unit.plate]
    own = [name for unit in plates for name, _ in unit.axes]
    own += list(axes)
    first, over = next(iter(axes.items()))
    name = plates[0].plate if plates else sites.latent[first].dims[over[0]]
    return Components(name, size, axes, parameters=tuple(dict.fromkeys(own)))


def generators(size: int) -> np.ndarray:
    """Give the swap of the first two labels and the turn of all by one, (2, K); they generate all permutations."""
    swap, turn = np.arange(size), np.roll(np.arange(size), 1)
    swap[:2] = 1, 0
    return np.stack([swap, turn])


def _invariant(density: Density, found: Components, values: Values, base: np.ndarray) -> bool:
    for order in generators(found.size):
        permuted = found.permuted(values, np.tile(order, (len(base), 1)))
        if not _close(_log_density(density, permuted), base, density.dtype):
            return False
    return True


def _close(one: np.ndarray | float, other: np.ndarray | float, dtype: torch.dtype) -> bool:
    with np.errstate(invalid="ignore"):
        return bool(np.all(np.abs(one - other) <= TOLERANCE[dtype] * (1.0 + np.abs(other))))


def _log_density(density: Density, values: Values) -> np.ndarray:
    """Log density of constrained values, (n,); NaN where they are outside of the support."""
    num, tolerance = len(next(iter(values.values()))), ROUND_TRIP[density.dtype]
    try:
        points, log_jacobian = density.unconstrain(values)
        inside = np.isfinite(points).all(axis=1)
        for name, again in density.constrain(np.where(inside[:, None], points, 0.0)).items():
            same = np.isclose(again, values[name], rtol=tolerance, atol=tolerance)
            inside &= same.reshape(num, -1).all(axis=1)
        result = np.full(num, np.nan)
        if inside.any():
            result[inside] = density.log_density(points[inside])
    except (ValueError, RuntimeError):  # torch's transforms and distributions refuse values in their own ways
        if num == 1:
            return np.full(1, np.nan)
        return np.concatenate([_log_density(density, {n: v[i : i + 1] for n, v in values.items()}) for i in range(num)])
    return result - (log_jacobian if density.jacobian else 0.0)


# --- Other sites ------------------------------------------------------------------------------------------------------


def _with_others(sites: Sites, found: Components, values: Values) -> Components:
    """Find out which other sites have axes over the components, or labels of components as values."""
    states = tuple(_state_sites(sites, found, values))
    first = {name: np.asarray(value[0]) for name, value in values.items()}
    candidates = {name: list(_actions(sites, site, found, first)) for name, site in sites.discrete.items()}
    candidates = {name: actions for name, actions in candidates.items() if len(actions) > 1}
    choices = [{name: actions[0] for name, actions in candidates.items()}]
    if np.prod([len(actions) for actions in candidates.values()]) <= MAX_DISCRETE_PATTERNS:
        choices = [dict(zip(candidates, choice, strict=True)) for choice in product(*candidates.values())]
    for choice in choices:
        extended = _extended(found, choice, states)
        if not choice or _joint_invariant(sites, extended, values):
            return _with_deterministic(sites, extended, values)
    return replace(_extended(found, {}, states), left_out=(*candidates, *sites.deterministic))


def _with_deterministic(sites: Sites, found: Components, values: Values) -> Components:
    """Add the axes of deterministic sites over the components, by what permuted labels do to their values."""
    latents = {name: np.asarray(value[0]) for name, value in values.items()}
    drawn = _run(sites, latents)
    full = {name: value[None] for name, value in latents.items()}
    full |= {name: drawn.nodes[name]["value"].numpy()[None] for name in sites.discrete}
    turned = [found.permuted(full, order[None]) for order in generators(found.size)]
    runs = [_run(sites, {name: value[0] for name, value in values.items()}) for values in (full, *turned)]
    axes, left_out = dict(found.axes), list(found.left_out)
    for name, site in sites.deterministic.items():
        before, *after = (np.asarray(run.nodes[name]["value"].detach())[None] for run in runs)
        long = [axis for axis, size in enumerate(site.shape) if size == found.size]
        patterns = (some for num in range(len(long) + 1) for some in combinations(long, num))
        for over in patterns:
            alone = Components(found.name, found.size, {name: over})
            expected = [alone.permuted({name: before}, order[None])[name] for order in generators(found.size)]
            if all(np.allclose(e, a, rtol=1e-6, atol=1e-9) for e, a in zip(expected, after, strict=True)):
                axes |= {name: over} if over else {}
                break
        else:
            left_out.append(name)
    return replace(found, axes=axes, left_out=tuple(left_out))


_Action = tuple[tuple[int, ...], bool]  # axes over the components, and whether the values are labels


def _actions(sites: Sites, site: Site, found: Components, latents: Mapping[str, np.ndarray]) -> Iterator[_Action]:
    """How a discrete site may follow the components, the likeliest first."""
    axes = tuple(axis for axis, dim in enumerate(site.dims) if dim == found.name and dim in site.plates)
    if _support_size(sites, site.name, latents) == found.size:
        yield axes, True
    if axes:
        yield axes, False
    yield (), False


def _support_size(sites: Sites, name: str, latents: Mapping[str, np.ndarray]) -> int:
    """Count the values of a discrete site, at a point: a flat prior cannot be drawn from."""
    return len(_run(sites, latents).nodes[name]["fn"].enumerate_support(expand=False))


def _extended(found: Components, choice: Mapping[str, _Action], states: tuple[str, ...]) -> Components:
    axes = dict(found.axes) | {name: axes for name, (axes, _) in choice.items() if axes}
    labels = tuple(name for name, (_, is_label) in choice.items() if is_label)
    return replace(found, axes=axes, labels=labels + states)


def _run(sites: Sites, values: Mapping[str, Any]) -> poutine.Trace:
    dtype = torch.get_default_dtype()
    tensors = {name: torch.as_tensor(value) for name, value in values.items()}
    tensors = {name: t.to(dtype) if t.is_floating_point() else t for name, t in tensors.items()}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return poutine.trace(poutine.condition(sites.function, data=tensors)).get_trace(**sites.data)


def _joint_invariant(sites: Sites, found: Components, values: Values) -> bool:
    """Whether the joint density of latents and drawn discrete sites is that of permuted ones."""
    dtype = torch.get_default_dtype()
    for i in range(len(next(iter(values.values())))):
        latents = {name: np.asarray(value[i]) for name, value in values.items()}
        drawn = _run(sites, latents)
        full = latents | {name: drawn.nodes[name]["value"].numpy() for name in sites.discrete}
        one = float(_run(sites, full).log_prob_sum())
        for order in generators(found.size):
            permuted = found.permuted({name: value[None] for name, value in full.items()}, order[None])
            other = float(_run(sites, {name: value[0] for name, value in permuted.items()}).log_prob_sum())
            if not _close(other, one, dtype):
                return False
    return True


def _state_sites(sites: Sites, found: Components, values: Values) -> Iterator[str]:
    """Names of the state paths, ``<site>_states``, of observed hidden Markov chains whose states are the components."""
    latents = {name: value[:1] for name, value in values.items()}
    order = generators(found.size)[1]
    permuted = found.permuted(latents, order[None])
    one, other = (_run(sites, {name: value[0] for name, value in some.items()}) for some in (latents, permuted))
    for name in sites.observed:
        logits = [_transition_logits(trace.nodes[name]) for trace in (one, other)]
        if logits[0] is not None and logits[0].shape[-1] == found.size:
            expected = logits[0][..., order, :][..., order]
            if torch.allclose(logits[1], expected, rtol=1e-5, atol=1e-6):
                yield f"{name}_states"


def _transition_logits(node: Mapping[str, Any]) -> torch.Tensor | None:
    """Log transition probabilities (..., K, K) of an observed chain: by its ``chain_logits``, or Pyro's own."""
    fn = node["fn"]
    while fn is not None:
        if callable(getattr(fn, "chain_logits", None)):
            return fn.chain_logits(node["value"])[1]
        if isinstance(getattr(fn, "transition_logits", None), torch.Tensor):
            logits = fn.transition_logits
            return logits - logits.logsumexp(-1, keepdim=True)
        fn = getattr(fn, "base_dist", None)
    return None
