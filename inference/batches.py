"""Mini-batches of an unmodified model: what is cut, in which order, and how often its log densities then count."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import _Subsample

from inference.errors import InputError, one_line
from inference.sites import Sites, read_sites, trace_at_start

# Streams of numbers that a fit's seed gives, apart from its noise: which rows are held out, and the order of an epoch.
_HELD_OUT, _ORDER = 0, 1
# Log densities outside the plate must not change with the batch, beyond rounding in float32.
_TOLERANCE = 1e-4


class MiniBatch(Messenger):
    """Makes a model that was given some rows count as that of all: the scale of what is inside the plates is N / rows.

    It serves model and guide alike. Sites say in their plates, in Pyro's own terms, that they are a subsample.

    Parameters
    ----------
    plates
        Names of the plates whose elements are the rows.
    total
        Rows N that a batch stands for.

    Attributes
    ----------
    kl_weight
        Factor of the log densities of latent sites, in model and guide; None for none.
    """

    def __init__(self, plates: tuple[str, ...], total: int) -> None:
        super().__init__()
        self.plates, self.total = plates, total
        self.kl_weight: float | torch.Tensor | None = None

    def _pyro_sample(self, msg: dict) -> None:
        if isinstance(msg["fn"], _Subsample):
            return
        frames = []
        for frame in msg["cond_indep_stack"]:
            if frame.name in self.plates:
                msg["scale"] = msg["scale"] * (self.total / frame.size)
                frame = frame._replace(full_size=self.total)
            frames.append(frame)
        msg["cond_indep_stack"] = tuple(frames)
        if self.kl_weight is not None and not msg["is_observed"]:
            msg["scale"] = msg["scale"] * self.kl_weight


@dataclass(frozen=True, eq=False)
class Batches:
    """Rows of data, and the batches that they are cut into.

    Attributes
    ----------
    plates
        Plates whose elements are the rows.
    names
        The arguments that are cut.
    data
        All arguments.
    rows
        Indices (N,) of the rows to train on.
    size
        Rows of a batch; the last one of an epoch may have fewer.
    seed
        Gives the order of every epoch.
    """

    plates: tuple[str, ...]
    names: tuple[str, ...]
    data: Mapping[str, Any]
    rows: np.ndarray
    size: int
    seed: int

    @property
    def total(self) -> int:
        """Rows to train on."""
        return len(self.rows)

    @property
    def num_batches(self) -> int:
        """Batches in an epoch."""
        return -(-self.total // self.size)

    @property
    def sizes(self) -> tuple[int, ...]:
        """The different numbers of rows that batches have, the most frequent first."""
        last = self.total - self.size * (self.num_batches - 1)
        return (self.size,) if last == self.size else (self.size, last)

    @property
    def tensors(self) -> tuple[str, ...]:
        """The arguments that are cut and are tensors."""
        return tuple(name for name in self.names if isinstance(self.data[name], torch.Tensor))

    def take(self, index: np.ndarray) -> dict[str, Any]:
        """Give the arguments with the rows of these indices."""
        return {**self.data, **{name: _rows(self.data[name], index) for name in self.names}}

    def to(self, device: torch.device) -> "Batches":
        """Give the same with its tensors on a device."""
        moved = {n: v.to(device) if isinstance(v, torch.Tensor) else v for n, v in self.data.items()}
        return replace(self, data=moved)

    def epoch(self, number: int) -> Iterator[np.ndarray]:
        """Give the indices of each batch of an epoch, whose order depends on the seed and its number alone."""
        order = np.random.default_rng((self.seed, _ORDER, number)).permutation(self.rows)
        for begin in range(0, self.total, self.size):
            yield order[begin : begin + self.size]

    def chunks(self, size: int) -> Iterator[np.ndarray]:
        """Give the indices of all rows in their own order, ``size`` at a time."""
        for begin in range(0, self.total, size):
            yield self.rows[begin : begin + size]


def _rows(value: Any, index: np.ndarray) -> Any:
    if isinstance(value, torch.Tensor):
        return value[torch.from_numpy(index).to(value.device)]
    return [value[i] for i in index]


def plan_batches(sites: Sites, *, size: int, plate: str | None, seed: int) -> Batches:
    """Find the plate of rows and the arguments to cut, and check that the model can be given some rows only.

    Parameters
    ----------
    sites
        The model at all of its data.
    size
        Rows of a batch.
    plate
        Name of the plate; None for the largest one whose size is the leading dim of an argument.
    seed
        Of the fit.

    Raises
    ------
    InputError
        No such plate, more rows asked for than there are, or a model that does not follow the rows that it is given.
    """
    plate = _find_plate(sites, plate)
    total = sites.plate_sizes[plate]
    if size > total:
        raise InputError(f"batch_size: expected at most the {total} rows of plate '{plate}', got {size}.")
    names = tuple(name for name, value in sites.data.items() if _length(value) == total)
    batches = Batches((plate,), names, sites.data, np.arange(total), size, seed)
    return batches if size == total else _checked(batches, sites)


def split(batches: Batches, fraction: float) -> tuple[Batches, Batches]:
    """Hold out a fraction of the rows, by the seed: give those to train on, and those held out.

    Raises
    ------
    InputError
        Nothing would be left on one of the sides, or less than a batch to train on.
    """
    num = round(fraction * batches.total)
    if not 0 < num < batches.total or batches.total - num < batches.size:
        raise InputError(
            f"validation: {fraction} of {batches.total} rows leaves {batches.total - num} to train on and {num} held "
            f"out; expected at least batch_size={batches.size} and 1."
        )
    order = np.random.default_rng((batches.seed, _HELD_OUT)).permutation(batches.rows)
    return replace(batches, rows=np.sort(order[num:])), replace(batches, rows=np.sort(order[:num]))


def held_out(batches: Batches, data: Mapping[str, Any]) -> Batches:
    """Give rows of other data, already prepared; arguments that are left out are those of the training data.

    Raises
    ------
    InputError
        An argument that is cut is missing, or they have different lengths.
    """
    missing = [name for name in batches.names if name not in data]
    if missing:
        raise InputError(f"validation: needs {', '.join(batches.names)}, as the training data; lacks {missing[0]}.")
    lengths = {name: _length(data[name]) for name in batches.names}
    if len(set(lengths.values())) > 1 or not all(lengths.values()):
        listing = ", ".join(f"{name} {length or 0}" for name, length in lengths.items())
        raise InputError(f"validation: expected equal numbers of rows, at least 1, got {listing}.")
    rows = np.arange(next(iter(lengths.values())))
    return replace(batches, data={**batches.data, **data}, rows=rows)


def _length(value: Any) -> int | None:
    """Length of the leading dim; None for what has none."""
    if isinstance(value, torch.Tensor):
        return len(value) if value.dim() else None
    return len(value) if isinstance(value, list) else None


def _find_plate(sites: Sites, wanted: str | None) -> str:
    lengths = {name: length for name, value in sites.data.items() if (length := _length(value)) is not None}
    plates = ", ".join(f"{name} ({size})" for name, size in sites.plate_sizes.items()) or "none"
    arguments = ", ".join(f"{name} ({length})" for name, length in lengths.items()) or "none"
    if wanted is not None and wanted not in sites.plate_sizes:
        raise InputError(f"batch_plate: the model has no plate '{wanted}'; its plates are {plates}.")
    sizes = {name: size for name, size in sites.plate_sizes.items() if wanted in (None, name)}
    known = [name for name, size in sizes.items() if size in lengths.values()]
    if not known:
        raise InputError(
            f"batch_size: no plate has the size of the leading dim of an argument (plates: {plates}; arguments: "
            f"{arguments}); put the rows into a plate, with pyro.plate('data', len(x))."
        )
    best = max(known, key=sites.plate_sizes.__getitem__)
    if best in sites.subsampled:
        raise InputError(f"batch_size: plate '{best}' subsamples by itself; drop subsample_size, or batch_size.")
    return best


def _checked(batches: Batches, sites: Sites) -> Batches:
    """Run the model on some rows: give the batches with every plate that shrinks with them."""
    (plate,) = batches.plates
    rows, handler = batches.rows[: batches.size], MiniBatch(batches.plates, batches.total)
    try:
        with handler:
            some = read_sites(sites.function, batches.take(rows))
    except InputError as error:
        raise InputError(f"batch_size: given {batches.size} rows of {_cut(batches)}: {one_line(error)}") from error
    if some.subsampled.get(plate) != batches.size:
        raise InputError(
            f"batch_size: given {batches.size} rows of {_cut(batches)}, plate '{plate}' keeps its size; let the model "
            "take it from the data, with pyro.plate('data', len(x))."
        )
    others = {name for name, size in some.plate_sizes.items() if name != plate and size != sites.plate_sizes.get(name)}
    plates = (plate, *sorted(others))
    everything = {**some.latent, **some.discrete, **some.unenumerable, **some.observed}
    for name, site in everything.items():
        inside = [p for p in site.plates if p in plates]
        whole = next((group[name] for group in sites.groups() if name in group), site)
        if len(inside) > 1 or (not inside and site.shape != whole.shape):
            where = f"is inside of {' and '.join(map(repr, inside))}" if inside else f"is outside of plate '{plate}'"
            raise InputError(
                f"batch_size: site '{name}' {where}, but has rows of the batch, so that they cannot be scaled to "
                f"{batches.total}; put each row of it into plate '{plate}' once."
            )
    batches = replace(batches, plates=plates)
    _check_outside(sites.function, batches)
    return batches


def _check_outside(function: Callable, batches: Batches) -> None:
    """Refuse a site outside of the plate whose log density follows from the batch: it would count too little."""
    one, other = example_batches(batches, batches.size)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        first = trace_at_start(function, one)
        torch.manual_seed(0)
        second = poutine.trace(poutine.replay(function, trace=first)).get_trace(**other)
    for name, node in first.nodes.items():
        if node["type"] != "sample" or isinstance(node["fn"], _Subsample) or name not in second.nodes:
            continue
        if any(frame.name in batches.plates for frame in node["cond_indep_stack"]):
            continue
        values = [torch.as_tensor(n["fn"].log_prob(n["value"])).sum() for n in (node, second.nodes[name])]
        if not torch.isclose(*values, rtol=_TOLERANCE, atol=_TOLERANCE, equal_nan=True):
            raise InputError(
                f"batch_size: site '{name}' is outside of plate '{batches.plates[0]}', but its log density follows "
                "from the rows of the batch, so that it cannot be scaled; put it into the plate."
            )


def _cut(batches: Batches) -> str:
    whole = [
        f"{n} ({_length(v)})" for n, v in batches.data.items() if n not in batches.names and _length(v) is not None
    ]
    return ", ".join(batches.names) + (f", and all of {', '.join(whole)}" if whole else "")


def example_batches(batches: Batches, size: int) -> Sequence[dict[str, Any]]:
    """Two batches of a size that differ, as far as there are so many rows."""
    return [batches.take(batches.rows[:size]), batches.take(batches.rows[-size:])]
