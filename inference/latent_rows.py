"""A trained latent-variable model at data: draws of its guide and log densities, row by row.

Everything that scores such a model asks this file. Given the parameters its rows are independent.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyro
import torch
from pyro import poutine
from torch.distributions import biject_to

from inference.errors import InputError, one_line
from inference.fit import Fit
from inference.new_data import read_new
from inference.row_runs import Held, Runs
from inference.sites import Sites, flat_labels, read_sites

# Numbers in the largest array that one evaluation makes: 16 MB in float32, near enough to the processor.
CHUNK_NUMBERS = 2**22
# Rows that are scored together: the guide's network runs once for all draws of a chunk.
CHUNK_ROWS = 100
# Two ways to the same log density, of some hundred nats in float32.
SAME = {torch.float32: 1e-3, torch.float64: 1e-8}

Rows = Sequence[int] | np.ndarray


@dataclass(frozen=True, eq=False)
class Part:
    """Some rows: their numbers (n,), and the model's arguments at them."""

    index: np.ndarray
    data: dict[str, Any]

    def __len__(self) -> int:
        return len(self.index)


@dataclass(frozen=True, eq=False)
class RowDraws:
    """Draws of a guide.

    Attributes
    ----------
    values
        ``name -> (S, n, *shape)``, what the guide samples of the model's sites.
    points
        The continuous latents, unconstrained, (S, n, d).
    log_p, log_q
        Log density of row and latents under the model, and of the latents under the guide, (S, n), float64.
    """

    values: dict[str, torch.Tensor]
    points: torch.Tensor
    log_p: torch.Tensor
    log_q: torch.Tensor

    @property
    def log_weight(self) -> np.ndarray:
        """Log importance weights, (S, n)."""
        return (self.log_p - self.log_q).numpy()


@dataclass(eq=False)
class LatentRows:
    """A model with a guide at given data. Use it inside the block of `latent_rows` that makes it.

    Attributes
    ----------
    sites
        The model as read at the data.
    plate
        Name of the plate of the rows.
    model, guide
        How they are run.
    amortised
        Whether the guide takes any rows; else it knows those of the fit only.
    dim
        Numbers d of a row's latents, unconstrained.
    reasons
        Why something is done by repeating rows.
    """

    sites: Sites
    plate: str
    model: Runs
    guide: Runs
    amortised: bool = True
    dim: int = 0
    reasons: list[str] = field(default_factory=list)
    _shapes: dict[str, torch.Size] = field(default_factory=dict)

    @property
    def num_rows(self) -> int:
        """Number of rows N."""
        return self.sites.plate_sizes[self.plate]

    @property
    def arguments(self) -> tuple[str, ...]:
        """Names of the data that have a row each."""
        return self.model.arguments

    def part(self, index: Rows) -> Part:
        """Cut the model's arguments to some rows."""
        index = np.asarray(index)
        at = torch.as_tensor(index)
        return Part(index, {name: v[at] if name in self.arguments else v for name, v in self.sites.data.items()})

    def chosen(self, rows: int | Rows) -> np.ndarray:
        """Give row numbers: those named, or so many spread evenly.

        Raises
        ------
        InputError
            Rows that there are not.
        """
        if isinstance(rows, int | np.integer) and not isinstance(rows, bool):
            if not 1 <= rows <= self.num_rows:
                raise InputError(f"rows: expected 1 to {self.num_rows} rows, or a sequence of row numbers, got {rows}.")
            return np.linspace(0, self.num_rows - 1, rows).astype(int)
        index = np.asarray(rows)
        if index.ndim != 1 or not index.size or index.dtype.kind not in "iu":
            raise InputError(f"rows: expected a number of rows or a sequence of row numbers, got {rows!r}.")
        if index.min() < 0 or index.max() >= self.num_rows or len(set(index.tolist())) < len(index):
            raise InputError(f"rows: expected different row numbers from 0 to {self.num_rows - 1}, got {rows!r}.")
        return index

    def chunks(self, num_draws: int, num_rows: int) -> list[int]:
        """Split draws of so many rows into parts of bounded size."""
        sites = [*self.sites.latent.values(), *self.sites.observed.values()]
        widths = [int(np.prod(site.shape)) // self.num_rows for site in sites]
        widths += [value.shape[0] for _, value in pyro.get_param_store().items() if value.dim() > 1]
        most = max(1, CHUNK_NUMBERS // (max(widths) * (num_rows if self.amortised else self.num_rows)))
        return [min(most, num_draws - first) for first in range(0, num_draws, most)]

    def blocks(self, index: np.ndarray | None = None) -> Iterator[Part]:
        """Split rows, by default all, into parts that are scored together."""
        index = np.arange(self.num_rows) if index is None else index
        size = CHUNK_ROWS if self.amortised else len(index)
        for first in range(0, len(index), size):
            yield self.part(index[first : first + size])

    def draws(self, part: Part, num: int) -> Iterator[RowDraws]:
        """Draw from the guide ``num`` times, in pieces of bounded size, and evaluate both densities there."""
        for size in self.chunks(num, len(part)):
            with torch.no_grad(), pyro.validation_enabled(False):
                values, log_q = self._guide_draws(part, size)
                log_p, points = self._at(values, part.data, size)
            yield RowDraws(values, points, log_p, log_q)

    @property
    def labels(self) -> list[str]:
        """One name for each of a row's latents, unconstrained: ``z[3]``."""
        return [label for name, shape in self._shapes.items() for label in flat_labels(name, tuple(shape))]

    def traces(self, part: Part, num: int) -> tuple[poutine.Trace, poutine.Trace]:
        """Run the guide and then the model at its draws; sites have batch (S, n), or (S n) where rows are repeated."""
        with torch.no_grad(), pyro.validation_enabled(False):
            guide = self.guide.trace(part.data if self.amortised else self.sites.data, num)
            values = {name: self.guide.parted(guide.nodes[name]["value"], num) for name in self.sites.latent}
            if not self.amortised:
                values = {name: value[:, torch.as_tensor(part.index)] for name, value in values.items()}
            held = {name: self.model.joined(value) for name, value in values.items()}
            with poutine.condition(data=held):
                return guide, self.model.trace(part.data, num)

    def points(self, part: Part, num: int) -> torch.Tensor:
        """Draw unconstrained latents (num, n, d) from the guide."""
        return torch.cat([piece.points for piece in self.draws(part, num)])

    def log_joint(self, points: torch.Tensor, data: Mapping[str, Any]) -> torch.Tensor:
        """Log density of row and latents (S, n) at unconstrained points (S, n, d), with the Jacobian; has gradients."""
        num, n = points.shape[:2]
        held = Held({name: self.model.joined(value) for name, value in self.split(points).items()})
        with pyro.validation_enabled(False), held:
            trace = self.model.trace(data, num, enumerated=bool(self.sites.discrete))
        log_jacobian = sum(value.reshape(num, n, -1).sum(-1) for value in held.log_jacobians)
        return self.model.log_density(trace, num, n) + log_jacobian

    def split(self, points: torch.Tensor) -> dict[str, torch.Tensor]:
        """Split points (S, n, d) into unconstrained values (S, n, *shape) by site."""
        parts = torch.split(
            points.to(torch.get_default_dtype()), [shape.numel() for shape in self._shapes.values()], dim=-1
        )
        return {n: p.reshape(*p.shape[:2], *s) for (n, s), p in zip(self._shapes.items(), parts, strict=True)}

    def distributions(
        self, points: torch.Tensor, data: Mapping[str, Any], discrete: Mapping[str, torch.Tensor] | None = None
    ) -> dict[str, Any]:
        """Distributions of the observed sites given unconstrained latents (S, n, d); batch (S n), draw 0 first.

        Raises
        ------
        InputError
            The model has discrete sites whose values (S, n) are not given.
        """
        discrete = discrete or {}
        for name in self.sites.discrete:
            if name not in discrete:
                raise InputError(
                    f"site '{name}': is summed out, so that observations given the other latents have no one "
                    "distribution; use draws of a guide that samples it."
                )
        runs = replace(self.model, tiled=True)
        held = {name: runs.joined(value) for name, value in self.split(points).items()}
        fixed = {name: runs.joined(value) for name, value in discrete.items()}
        with torch.no_grad(), pyro.validation_enabled(False), Held(held), poutine.condition(data=fixed):
            trace = runs.trace(data, len(points))
        return {name: trace.nodes[name]["fn"] for name in self.sites.observed}

    def prior(self, data: Mapping[str, Any], num: int) -> torch.Tensor:
        """Draw unconstrained latents (num, n, d) from the prior."""
        return self.simulate(data, num)[0]

    def simulate(self, data: Mapping[str, Any], num: int) -> tuple[torch.Tensor, dict[str, Any]]:
        """Draw latents (num, n, d) from the prior; and the distributions of the observed sites there, batch (num n)."""
        runs = replace(self.model, tiled=True)
        with torch.no_grad(), pyro.validation_enabled(False):
            trace = runs.trace(data, num)
            return self._unconstrained(trace, runs, num), {
                name: trace.nodes[name]["fn"] for name in self.sites.observed
            }

    # --- Making it --------------------------------------------------------------------------------------------------

    def _guide_draws(self, part: Part, num: int) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        data, n = (part.data, len(part)) if self.amortised else (self.sites.data, self.num_rows)
        trace = self.guide.trace(data, num)
        log_q = self.guide.log_density(trace, num, n)
        names = [*self.sites.latent, *self.sites.discrete, *self.sites.unenumerable]
        values = {name: self.guide.parted(trace.nodes[name]["value"], num) for name in names if name in trace.nodes}
        if not self.amortised:
            index = torch.as_tensor(part.index)
            values, log_q = {name: value[:, index] for name, value in values.items()}, log_q[:, index]
        return values, log_q

    def _at(
        self, values: Mapping[str, torch.Tensor], data: Mapping[str, Any], num: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Log densities (S, n) and unconstrained points (S, n, d) at values; other discrete sites are summed out."""
        n = next(iter(values.values())).shape[1]
        held = {name: self.model.joined(value) for name, value in values.items()}
        with poutine.condition(data=held):
            trace = self.model.trace(data, num, enumerated=not set(self.sites.discrete) <= set(values))
        return self.model.log_density(trace, num, n), self._unconstrained(trace, self.model, num)

    def _unconstrained(self, trace: poutine.Trace, runs: Runs, num: int) -> torch.Tensor:
        parts = []
        for name in self.sites.latent:
            node = trace.nodes[name]
            u = runs.parted(biject_to(node["fn"].support).inv(node["value"]), num)
            self._shapes[name] = u.shape[2:]
            parts.append(u.flatten(2))
        return torch.cat(parts, -1)

    def prepare(self) -> None:
        """Find out, at two rows, how the guide and the model can be run."""
        few = self.part(np.arange(min(2, self.num_rows)))
        self._prepare_guide(few)
        with torch.no_grad():
            values, _ = self._guide_draws(few, 2)
            for name in self.sites.latent:
                if name not in values:
                    raise InputError(f"guide: does not sample the latent site '{name}' of the model.")
            plain = self.model
            self.model = replace(plain, tiled=True)
            expected, points = self._at(values, few.data, 2)
            self.dim = points.shape[-1]
            try:
                self.model = plain
                got, _ = self._at(values, few.data, 2)
                tolerance = SAME[torch.get_default_dtype()]
                if not torch.allclose(got, expected, rtol=tolerance, atol=tolerance, equal_nan=True):
                    raise ArithmeticError("another density than with repeated rows")
            except Exception as error:  # networks that take one batch dim
                self.model = replace(plain, tiled=True)
                self.reasons.append(f"model: rows are repeated for every draw ({one_line(error)})")

    def _prepare_guide(self, few: Part) -> None:
        plain, failures = self.guide, []
        for amortised, tiled in ((True, False), (True, True), (False, False)):
            self.amortised, self.guide = amortised, replace(plain, tiled=tiled)
            try:
                with torch.no_grad():
                    self._guide_draws(few, 2)
            except Exception as error:  # guides fail in as many ways as they can be written
                failures.append(error)
                continue
            if tiled:
                self.reasons.append(f"guide: rows are repeated for every draw ({one_line(failures[0])})")
            return
        refusal = next((error for error in failures if isinstance(error, InputError)), None)
        if refusal is not None:
            raise refusal
        raise InputError(f"guide: fails on these rows ({one_line(failures[-1])}).") from failures[-1]


@contextmanager
def latent_rows(fit: Fit, data: Mapping[str, Any] | None = None, *, seed: int = 0) -> Iterator[LatentRows]:
    """Isolate, restore a trained latent-variable model, and give its rows, at other data if given.

    Raises
    ------
    InputError
        The fit has no guide; the model has latents outside of the plate of its rows, or the data do not suit it.
    """
    guide = fit.state.get("guide")
    if guide is None:
        raise InputError(
            "fit: has no trained guide; expected a fit by SVI(guide=...), or load_fit(path, model, guide=...)."
        )
    with fit.restored() as own:
        sites = own if data is None else read_new(fit, own, data)
        pyro.set_rng_seed(seed)
        plate = row_plate(sites)
        arguments = _row_arguments(sites, plate)
        nesting = sites.max_plate_nesting
        rows = LatentRows(sites, plate, Runs(sites.function, arguments, nesting), Runs(guide, arguments, nesting))
        _check_cutting(rows)
        rows.prepare()
        pyro.set_rng_seed(seed)
        yield rows


def row_plate(sites: Sites) -> str:
    """Name the plate whose rows are independent: all latents and observations lie in it.

    Raises
    ------
    InputError
        There is none; the message names the site that is not in it.
    """
    if not sites.latent or not sites.observed:
        what = "latent" if not sites.latent else "observed"
        raise InputError(f"model: has no {what} site; expected a latent-variable model, z and x in one plate.")
    if sites.subsampled:
        raise InputError(
            f"plate '{next(iter(sites.subsampled))}' is subsampled, so this would concern a random part of the data; "
            "write the model without subsample_size (SVI(batch_size=...) trains such a model on mini-batches)."
        )
    inside = {**sites.latent, **sites.observed, **sites.discrete, **sites.unenumerable}
    # The rows are the first axis, so other plates of a row lie on the right of it.
    shared = [name for name in sites.plate_sizes if all(site.dims[:1] == (name,) for site in inside.values())]
    if shared:
        return shared[0]
    first = next(iter(sites.observed.values()))
    outside = [n for n, s in inside.items() if s.dims[:1] != first.dims[:1] or not s.plates]
    raise InputError(
        f"site '{(outside or [first.name])[0]}': is not in the plate of the rows. Scores by row need a model whose "
        "latents and observations are all in one plate, its rows on the first axis; parameters by pyro.param."
    )


def _row_arguments(sites: Sites, plate: str) -> tuple[str, ...]:
    size = sites.plate_sizes[plate]
    return tuple(n for n, v in sites.data.items() if isinstance(v, torch.Tensor) and v.dim() and len(v) == size)


def _check_cutting(rows: LatentRows) -> None:
    """Refuse a model that is not the same model at some of its rows."""
    if rows.num_rows < 2:
        return
    named = ", ".join(rows.arguments) or "none"
    try:
        few = read_sites(rows.sites.function, rows.part(np.arange(rows.num_rows - 1)).data)
        said = f"it has {few.plate_sizes.get(rows.plate)} rows then"
    except InputError as error:
        few, said = None, str(error)
    if few is None or few.plate_sizes.get(rows.plate) != rows.num_rows - 1:
        raise InputError(
            f"plate '{rows.plate}': is not {rows.num_rows - 1} rows long when the arguments with a row each ({named}) "
            f"are cut to that ({said}); let the model take its number of rows from its data, len(x)."
        )
