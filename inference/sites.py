"""Reading a Pyro model: its sites, supports, plates and dims, found by running it once.

Everything else in the package asks this file what a model consists of, so that a model is understood in one way only.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product, zip_longest
from typing import Any

import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import _Subsample
from torch.distributions import biject_to

from inference.chain_sites import find_chain
from inference.errors import InputError, one_line

# Starting values are uniform on (-2, 2) of the unconstrained space, the convention of Stan and Pyro: order one, and
# far enough apart to disagree where a posterior has several modes.
START_RADIUS = 2.0
# A model may fail at an unlucky start (an overflowing rate, say) and be fine at another; this many are tried.
READ_ATTEMPTS = 20


@dataclass(frozen=True)
class Site:
    """One sample site of a model.

    Attributes
    ----------
    name
        Name in the model.
    shape
        Shape of its value (batch and event dims).
    dims
        One label per axis: plate names where the axis is a plate, else ``<site>_dim_<axis>``.
    plates
        Names of the vectorised plates that hold it.
    """

    name: str
    shape: tuple[int, ...]
    dims: tuple[str, ...]
    plates: tuple[str, ...]


@dataclass(frozen=True)
class Sites:
    """What a model consists of, at given data. Made by `read_sites`."""

    function: Callable[..., Any]
    data: Mapping[str, Any]
    latent: dict[str, Site]
    discrete: dict[str, Site]
    unenumerable: dict[str, Site]
    observed: dict[str, Site]
    deterministic: dict[str, Site]
    plate_sizes: dict[str, int]
    subsampled: dict[str, int]
    params: tuple[str, ...]
    max_plate_nesting: int
    observations: dict[str, Any] = field(repr=False)
    chains: dict[str, Site] = field(default_factory=dict)
    """State paths of hidden Markov chains, by the observed site: ``<site>_states``, (*batch, T)."""

    @property
    def enumerated(self) -> Callable[..., Any]:
        """The model with every discrete site that can be enumerated marked for it."""
        return poutine.infer_config(self.function, config_fn=mark_enumerable)

    def groups(self) -> tuple[dict[str, Site], ...]:
        """Sites whose values a fit holds, in the order in which it holds them, then the observed ones."""
        states = {path.name: path for path in self.chains.values()}
        return self.latent, self.unenumerable, self.deterministic, self.discrete, states, self.observed

    def require_density(self, *, hold_params: bool = False) -> None:
        """Refuse a model that has no flat log density over continuous sites.

        Raises
        ------
        InputError
            No latent site, an integer site that cannot be enumerated, a subsampled plate, or (unless they are held) a
            ``pyro.param``.
        """
        if self.unenumerable:
            name = next(iter(self.unenumerable))
            raise InputError(
                f"site '{name}': an integer latent that cannot be enumerated (infinite support); sum it out by hand, "
                "replace it by a continuous or a bounded site, or use SVI with a hand-written guide that samples it."
            )
        if self.subsampled:
            name, size = next(iter(self.subsampled.items()))
            raise InputError(
                f"plate '{name}': subsampling ({size} of {self.plate_sizes[name]}) gives a noisy density, for which "
                "NUTS and AutoVI are wrong; remove subsample_size, or use SVI."
            )
        if self.params and not hold_params:
            raise InputError(
                f"param '{self.params[0]}': a pyro.param has no prior, so the posterior is not defined; give it a "
                "prior with pyro.sample, or use SVI, which fits it by maximum likelihood."
            )
        if not self.latent:
            raise InputError("model: no continuous latent site to infer; give at least one pyro.sample without obs.")


class StartMessenger(Messenger):
    """Gives every continuous latent a value drawn uniformly on (-radius, radius) of its unconstrained space."""

    def __init__(self, radius: float = START_RADIUS) -> None:
        super().__init__()
        self.radius = radius

    def _pyro_sample(self, msg: dict) -> None:
        if msg["is_observed"] or msg["value"] is not None or isinstance(msg["fn"], _Subsample):
            return
        if not is_discrete(msg["fn"]):
            transform = biject_to(msg["fn"].support)
            shape = transform.inverse_shape(msg["fn"].shape())
            msg["value"] = transform(torch.empty(shape).uniform_(-self.radius, self.radius))
            msg["done"] = True


def is_discrete(distribution: Any) -> bool:
    """Whether a distribution is over integers."""
    return bool(getattr(distribution, "has_enumerate_support", False) or distribution.support.is_discrete)


def mark_enumerable(site: dict) -> dict:
    """Ask for parallel enumeration, overriding a user's "sequential", which the density cannot follow."""
    if site["is_observed"] or not getattr(site["fn"], "has_enumerate_support", False):
        return {}
    return {"enumerate": "parallel", "expand": site["infer"].get("expand", False)}


def is_deterministic(site: Mapping[str, Any]) -> bool:
    """Whether a traced site comes from ``pyro.deterministic``."""
    return bool(site["infer"].get("_deterministic", False))


def is_observation(site: Mapping[str, Any]) -> bool:
    """Whether a traced site is data: observed, and neither deterministic nor a ``pyro.factor``."""
    return (
        site["type"] == "sample"
        and site["is_observed"]
        and not is_deterministic(site)
        and not isinstance(_base(site["fn"]), dist.Unit | _Subsample)
    )


def _base(distribution: Any) -> Any:
    """Strip masks and expansions."""
    while isinstance(getattr(distribution, "base_dist", None), torch.distributions.Distribution) and isinstance(
        distribution, dist.MaskedDistribution | dist.ExpandedDistribution
    ):
        distribution = distribution.base_dist
    return distribution


def read_sites(function: Callable[..., Any], data: Mapping[str, Any]) -> Sites:
    """Run a model once and list what it consists of.

    Parameters
    ----------
    function
        The Pyro model.
    data
        Its keyword arguments, as `inference.validate.prepare_data` returns them.

    Raises
    ------
    InputError
        The function fails on the data, has no sample site, or an observation lies outside its site's support.
    """
    trace = _first_trace(function, data)
    nodes = [n for n in trace.nodes.values() if n["type"] == "sample" and not isinstance(n["fn"], _Subsample)]
    if not nodes:
        raise InputError("model: the function has no pyro.sample statement, so it is not a Pyro model.")
    groups: dict[str, dict[str, Site]] = {
        k: {} for k in ("latent", "discrete", "unenumerable", "observed", "deterministic", "other")
    }
    for node in nodes:
        groups[_kind(node)][node["name"]] = _site(node)
    observations = {name: trace.nodes[name]["value"] for name in groups["observed"]}
    for name in groups["observed"]:
        _check_observation(trace.nodes[name], lambda name=name: _first_trace(function, data).nodes[name])
    frames = {f.name: f for n in nodes for f in n["cond_indep_stack"] if f.vectorized}
    del groups["other"]
    return Sites(
        function=function,
        data=dict(data),
        plate_sizes={name: int(f.full_size or f.size) for name, f in frames.items()},
        subsampled={n: int(f.size) for n, f in frames.items() if f.full_size and f.size < f.full_size},
        params=tuple(name for name, n in trace.nodes.items() if n["type"] == "param"),
        max_plate_nesting=max([-f.dim for f in frames.values()], default=0),
        observations=observations,
        chains=_state_paths(trace, groups["observed"]),
        **groups,
    )


def _state_paths(trace: poutine.Trace, observed: Mapping[str, Site]) -> dict[str, Site]:
    """Describe the state paths of hidden Markov chains, which follow from the fit like any discrete site."""
    paths = {}
    for name, site in observed.items():
        chain = find_chain(trace.nodes[name]["fn"])
        if chain is not None:
            axes = len(site.shape) - chain.event_dim + 1
            path = f"{name}_states" if f"{name}_states" not in trace.nodes else f"{name}_hidden_states"
            dims = tuple(d.replace(f"{name}_dim", f"{path}_dim") for d in site.dims[:axes])
            paths[name] = Site(path, site.shape[:axes], dims, site.plates)
    return paths


def trace_at_start(model: Callable[..., Any], data: Mapping[str, Any]) -> poutine.Trace:
    """Run a model at random starts until one works; raise what the last of `READ_ATTEMPTS` raised."""
    for attempt in range(READ_ATTEMPTS):
        try:
            with torch.no_grad(), StartMessenger():
                return poutine.trace(model).get_trace(**data)
        except Exception as error:
            if attempt == READ_ATTEMPTS - 1 or isinstance(error, InputError):
                raise
    raise AssertionError("unreachable")


def _first_trace(function: Callable[..., Any], data: Mapping[str, Any]) -> poutine.Trace:
    try:
        return trace_at_start(function, data)
    except InputError:
        raise
    except Exception as error:
        raise InputError(_explain(error, data)) from error


def _explain(error: Exception, data: Mapping[str, Any]) -> str:
    """Say in one line how the user's function failed, with the shapes that it was given."""
    shapes = ", ".join(f"{k} {tuple(v.shape)}" for k, v in data.items() if isinstance(v, torch.Tensor))
    first_line = one_line(error)
    hint = ""
    if "hape mismatch inside plate" in first_line:
        hint = " Give the site the size of its plate, or move trailing dims into the event by .to_event()."
    elif "dtype" in first_line or "expected scalar type" in first_line:
        hint = " Mixed dtypes: floating data arrive in torch's default dtype; build constants with torch.tensor(1.0)."
    return f"model: the function fails on the data ({type(error).__name__}: {first_line}); data shapes: {shapes}.{hint}"


def _kind(node: Mapping[str, Any]) -> str:
    if is_deterministic(node):
        return "deterministic"
    if node["is_observed"]:
        return "observed" if is_observation(node) else "other"
    if getattr(node["fn"], "has_enumerate_support", False):
        return "discrete"
    return "unenumerable" if is_discrete(node["fn"]) else "latent"


def _site(node: Mapping[str, Any]) -> Site:
    name, value = node["name"], node["value"]
    shape = tuple(value.shape) if isinstance(value, torch.Tensor) else ()
    dims = [f"{name}_dim_{i}" for i in range(len(shape))]
    frames = [f for f in node["cond_indep_stack"] if f.vectorized]
    event_dim = _event_dim(shape, frames) if is_deterministic(node) else node["fn"].event_dim
    for frame in frames:
        axis = len(shape) - event_dim + frame.dim
        if 0 <= axis < len(shape) and shape[axis] == frame.size:
            dims[axis] = frame.name
    chain = find_chain(node["fn"]) if node["is_observed"] else None
    if chain is not None and len(shape) >= chain.event_dim:
        dims[len(shape) - chain.event_dim] = "time"
    return Site(name, shape, tuple(dims), tuple(f.name for f in frames))


def _event_dim(shape: tuple[int, ...], frames: list[Any]) -> int:
    """Find the event axes of a deterministic site, which declares none: the most that leave its plates in place."""
    for event_dim in reversed(range(len(shape))):
        axes = [(len(shape) - event_dim + f.dim, f.size) for f in frames]
        if all(axis >= 0 and shape[axis] == size for axis, size in axes):
            return event_dim
    return 0


def _check_observation(node: Mapping[str, Any], again: Callable[[], Mapping[str, Any]]) -> None:
    """Refuse an observation whose shape or values cannot come from its site.

    ``again`` gives the same node at another start: a support that moves with a latent is left to the log density.
    """
    fn, value, name = node["fn"], node["value"], node["name"]
    if not isinstance(value, torch.Tensor):
        raise InputError(f"site '{name}': obs must be a tensor, got {type(value).__name__} ({value!r}).")
    _check_shape(node)
    try:
        inside = fn.support.check(value)
    except NotImplementedError:  # some supports cannot be checked
        return
    for mask in (getattr(fn, "_mask", None), node["mask"]):
        if isinstance(mask, torch.Tensor):
            inside = inside | ~mask
    try:
        fn.log_prob(value)
    except RuntimeError as error:
        raise InputError(
            f"site '{name}': {type(_base(fn)).__name__} cannot score observations of {value.dtype} "
            f"({one_line(error)}); give them as floating numbers, y.double() for instance."
        ) from None
    except ValueError:  # outside the support, which is what is checked here
        pass
    if inside.all() or not _same_support(fn.support, again()["fn"].support):
        return
    first = torch.nonzero(~inside)[0].tolist() if inside.dim() else []
    bad = value[tuple(first)].tolist() if first else value.tolist()
    where = f" at index {first[0] if len(first) == 1 else tuple(first)}" if first else ""
    raise InputError(
        f"site '{name}': observed value {bad}{where} lies outside the support of {type(_base(fn)).__name__} "
        f"({fn.support}); {int((~inside).sum())} such values. Correct the data or choose another distribution."
    )


def _check_shape(node: Mapping[str, Any]) -> None:
    expected, got = tuple(node["fn"].shape()), tuple(node["value"].shape)
    plates = [f.name for f in node["cond_indep_stack"] if f.vectorized]
    try:
        joint = tuple(torch.broadcast_shapes(expected, got))
    except RuntimeError:
        joint = None
    # Outside any plate an observation larger than its distribution is a plain sum over its entries. Inside one, Pyro
    # would repeat a single value, or a row, and count it as often as the plate is long.
    if got != expected if plates else joint not in (expected, got):
        inside = f" inside plate {', '.join(repr(p) for p in plates)}" if plates else ""
        raise InputError(
            f"site '{node['name']}': expected observations of shape {expected}{inside}, got {got}; reshape the data "
            "or give the plate the length of the data."
        )


def _same_support(one: Any, other: Any) -> bool:
    """Whether two supports have equal bounds."""
    pairs = [(v, vars(other).get(k)) for k, v in vars(one).items()] if hasattr(one, "__dict__") else []
    return all(
        torch.equal(torch.as_tensor(v), torch.as_tensor(w))
        for v, w in pairs
        if isinstance(v, torch.Tensor | float | int)
    )


def flat_labels(name: str, shape: tuple[int, ...], axes: Sequence[Sequence[Any] | None] = ()) -> list[str]:
    """Name every scalar of a site in C order: ``mu``; ``theta[0]``, ``theta[1]``; ``coef[age]`` where there are labels.

    Parameters
    ----------
    name, shape
        Of the site.
    axes
        Labels by axis; None, a wrong number or labels that repeat leave that axis its indices.
    """
    chosen = [
        list(given) if given is not None and len(set(given)) == len(given) == size else range(size)
        for given, size in zip_longest(axes[: len(shape)], shape)
    ]
    return [f"{name}[{','.join(map(str, index))}]" if index else name for index in product(*chosen)]
