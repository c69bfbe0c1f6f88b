"""NUTS: by nutpie on the flat log density, or Pyro's own kernel for comparison."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow
import torch
from nutpie import __version__ as nutpie_version
from nutpie import sample as nutpie_sample
from nutpie.compiled_pyfunc import from_pyfunc

from inference.density import Density
from inference.errors import InputError
from inference.fit import Problem, Run, Status, short_repr
from inference.native.function import num_cores
from inference.nutpie_native import native_model
from inference.pyro_kernel import run_chain
from inference.starts import chain_starts

BACKENDS = ("auto", "native", "python", "pyro")
ADAPTATIONS = ("diag", "low_rank")

DTYPES = {"float32": torch.float32, "float64": torch.float64}
# Others take 0.8. A third more steps buy a tenth of the divergences: of eight runs on a Gaussian process at 0.8 one
# missed its posterior, and none at 0.9 (`benchmarks.posteriordb`, gp_pois_regr).
TARGET_ACCEPT = 0.9
# Leapfrog steps a draw, to estimate whether compiling pays; most models take 7 to 15.
TYPICAL_STEPS = 8
# Draws of a chain below which nothing is worth keeping; the diagnostics need as many.
MIN_DRAWS = 4
TOO_EARLY = f"interrupted before a chain had {MIN_DRAWS} draws after its warm-up"

# nutpie's names for what ArviZ reads; the second column is the name ArviZ's diagnostics look for.
_STATISTICS = {
    "diverging": "diverging",
    "energy": "energy",
    "logp": "lp",
    "depth": "tree_depth",
    "maxdepth_reached": "reached_max_treedepth",
    "n_steps": "n_steps",
    "step_size": "step_size",
    "mean_tree_accept": "acceptance_rate",
}


@dataclass(frozen=True, kw_only=True, repr=False)
class NUTS:
    """No-U-turn sampler (Hoffman & Gelman 2014; multinomial variant of Betancourt 2017).

    Parameters
    ----------
    num_warmup, num_samples
        Draws per chain during adaptation, and kept.
    num_chains
        Chains, each from its own start, uniform on (-2, 2) of the unconstrained space.
    backend
        ``"native"``: nutpie on the density compiled to native code, chains side by side on all cores. ``"python"``:
        nutpie on the recorded density, run by torch, one chain after another. ``"auto"``: native, unless compiling
        would take longer than it saves. ``"pyro"``: Pyro's kernel on Pyro's potential, far slower, for comparison.
        Where one of them cannot be had the next runs, and ``fit.notes`` says why.
    adaptation
        Mass matrix: ``"diag"``, or ``"low_rank"`` (diagonal plus a few directions, for correlated posteriors; nutpie
        only).
    target_accept
        Mean acceptance probability that the step size is adapted to; raise it towards 1 against divergences (0.8 is
        usual elsewhere, and a little faster).
    max_tree_depth
        A trajectory has at most ``2**max_tree_depth`` leapfrog steps.
    dtype
        Precision of the density, ``"float64"`` or ``"float32"``: rounding in single precision spoils long trajectories
        and sums over many data, and gains little on a CPU.
    save_warmup
        Keep warm-up draws in ``fit.state["warmup"]`` and the ``warmup_`` groups of the tree.

    Notes
    -----
    ``fit.state["adapted"]`` holds the step size of each chain, ``"step_size"`` (chain,), and the diagonal of its
    inverse mass matrix, ``"inverse_mass"`` (chain, D), in the order of the unconstrained coordinates.
    """

    method: ClassVar[str] = "mcmc"

    num_warmup: int = 1000
    num_samples: int = 1000
    num_chains: int = 4
    backend: str = "auto"
    adaptation: str = "diag"
    target_accept: float = TARGET_ACCEPT
    max_tree_depth: int = 10
    dtype: str = "float64"
    save_warmup: bool = False

    def __post_init__(self) -> None:
        for name, least in (("num_warmup", 1), ("num_samples", MIN_DRAWS), ("num_chains", 1), ("max_tree_depth", 1)):
            check_count(name, getattr(self, name), least=least)
        check_number("target_accept", self.target_accept, above=0.0, below=1.0)
        check_choice("backend", self.backend, BACKENDS)
        check_choice("adaptation", self.adaptation, ADAPTATIONS)
        check_choice("dtype", self.dtype, DTYPES)
        if self.backend == "pyro" and self.adaptation != "diag":
            raise InputError("adaptation: Pyro's kernel here adapts a diagonal mass matrix; use backend='auto'.")

    __repr__ = short_repr

    def floating_dtype(self, model: Any) -> torch.dtype:
        """Give ``dtype``, whatever the model."""
        return DTYPES[self.dtype]

    def run(self, problem: Problem) -> Run:
        """Sample all chains; called by `inference.fit.fit`."""
        begin = time.perf_counter()
        density = problem.density
        density.require_no_noise()
        density.starts(1, generator=np.random.default_rng(problem.seed))  # refuse early, naming the site
        setup = time.perf_counter() - begin
        begin = time.perf_counter()
        if self.backend in ("auto", "native"):
            draws = self.num_chains * (self.num_warmup + self.num_samples)
            density.compile(draws * TYPICAL_STEPS if self.backend == "auto" else np.inf)
        compilation = time.perf_counter() - begin
        density.num_gradients = 0
        begin = time.perf_counter()
        start = chain_starts(density, seed=problem.seed)
        setup += time.perf_counter() - begin
        begin = time.perf_counter()
        sample = _sample_pyro if self.backend == "pyro" else _sample_nutpie
        points, stats, adapted = sample(self, density, problem, start)
        elapsed = time.perf_counter() - begin
        kept, warmup = _split(points, stats, self.num_warmup)
        status = _status(kept[0].shape[:2], self)
        chains, num, dim = kept[0].shape
        latents = density.constrain(kept[0].reshape(-1, dim))
        draws = {name: value.reshape(chains, num, *value.shape[1:]) for name, value in latents.items()}
        warm_share = float(warmup[1]["n_steps"].sum() / max(stats["n_steps"].sum(), 1))
        return Run(
            draws=draws,
            stats=kept[1],
            status=status,
            seconds={
                "setup": setup,
                "compile": compilation,
                "warmup": elapsed * warm_share,
                "sampling": elapsed * (1 - warm_share),
            },
            notes=(density.reason,) if density.reason else (),
            state={
                "unconstrained": kept[0],
                "labels": density.labels,
                "num_gradients": density.num_gradients,
                "backend": f"{'Pyro' if self.backend == 'pyro' else 'nutpie'}, {density.backend} density",
                "adapted": adapted,
                **({"warmup": {"unconstrained": warmup[0], "stats": warmup[1]}} if self.save_warmup else {}),
            },
        )


Chains = tuple[np.ndarray, dict[str, np.ndarray], dict[str, np.ndarray]]
Start = Callable[[int], np.ndarray]


def check_count(name: str, value: Any, *, least: int) -> None:
    """Refuse anything but an integer of at least ``least``."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InputError(f"{name}: expected an integer of at least {least}, got {value!r}.")


def check_choice(name: str, value: Any, choices: Iterable[str]) -> None:
    """Refuse anything but one of a few names."""
    if value not in choices:
        raise InputError(f"{name}: expected one of {', '.join(choices)}, got {value!r}.")


def check_number(name: str, value: Any, *, above: float, below: float = float("inf")) -> None:
    """Refuse anything but a number strictly between two others."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not above < value < below:
        limits = f"above {above:g}" if below == float("inf") else f"between {above:g} and {below:g}"
        raise InputError(f"{name}: expected a number {limits}, got {value!r}.")


def _sample_nutpie(engine: NUTS, density: Density, problem: Problem, start: Start) -> Chains:
    """Sample with nutpie; points (chain, warm-up + draws, D), statistics alike, adapted quantities."""
    failures: list[Exception] = []
    compiled = _native(density, start) or _through_python(density, failures, start)
    try:
        trace = nutpie_sample(
            compiled,
            draws=engine.num_samples,
            tune=engine.num_warmup,
            chains=engine.num_chains,
            # In Python every gradient holds the interpreter lock, so more threads would only contend.
            cores=min(engine.num_chains, num_cores()) if density.native is not None else 1,
            seed=problem.seed,
            progress_bar=problem.progress,
            low_rank_modified_mass_matrix=engine.adaptation == "low_rank",
            target_accept=engine.target_accept,
            maxdepth=engine.max_tree_depth,
            store_mass_matrix=True,
            return_raw_trace=True,  # nutpie's own conversion takes longer than sampling a small model
        )
    except RuntimeError:  # nutpie found no start for the next chain
        if not failures:
            raise
    if failures:
        raise failures[0] from None
    draws, statistics = trace.get_arrow_trace()  # one table a chain
    if density.native is not None:  # nobody counts in native code; each chain starts with one
        steps = sum(int(_column(table, "n_steps", table.num_rows).sum()) for table in statistics)
        density.num_gradients += steps + engine.num_chains
    chains, length = _usable(np.array([table.num_rows for table in draws]) - engine.num_warmup)
    end = engine.num_warmup + length
    draws, statistics = ([tables[c] for c in chains] for tables in (draws, statistics))
    points = np.stack([_column(table, "point", end) for table in draws])
    stats = {
        ours: np.stack([_column(table, theirs, end) for table in statistics]) for theirs, ours in _STATISTICS.items()
    }
    for name in ("tree_depth", "n_steps"):
        stats[name] = stats[name].astype(np.int64)
    mass = "mass_matrix_inv" if "mass_matrix_inv" in statistics[0].column_names else "mass_matrix_stds"
    adapted = {
        "step_size": np.stack([_column(table, "step_size_bar", end)[-1] for table in statistics]),
        "inverse_mass": np.stack([_column(table, mass, end)[-1] for table in statistics]),
    }
    return points, stats, adapted


def _column(table: Any, name: str, end: int) -> np.ndarray:
    """Give the first rows of a column of nutpie's tables, (end,) or (end, width)."""
    column = pyarrow.array(table.column(name))[:end]
    if hasattr(column, "flatten") and pyarrow.types.is_nested(column.type):
        return column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), -1)
    return column.to_numpy(zero_copy_only=False)


def _usable(lengths: np.ndarray) -> tuple[np.ndarray, int]:
    """Choose chains, and how many draws of each, that keep the most draws of an interrupted run.

    Parameters
    ----------
    lengths
        Draws after warm-up of each chain; negative for one that has not passed it.
    """
    if not len(lengths):
        raise KeyboardInterrupt(TOO_EARLY)
    order = np.argsort(-lengths, kind="stable")
    kept = np.arange(1, len(lengths) + 1) * lengths[order]
    num = int(np.argmax(kept)) + 1
    length = int(lengths[order[num - 1]])
    if length < MIN_DRAWS:
        raise KeyboardInterrupt(TOO_EARLY)
    return np.sort(order[:num]), length


def _native(density: Density, start: Start) -> Any:
    """Wrap the compiled density for nutpie; None where there is none, or nutpie no longer takes it."""
    if density.native is None:
        return None
    try:
        return native_model(density.native, density.dim, start)
    except Exception as error:  # another version of nutpie
        density.native = None
        density.reason = f"nutpie {nutpie_version} takes no native code, so that it runs through Python ({error})"
        return None


def _through_python(density: Density, failures: list[Exception], start: Start) -> Any:
    return from_pyfunc(
        density.dim,
        lambda: _in_worker_thread(density, failures),
        lambda *_: lambda point: {"point": point},
        [np.dtype("float64")],
        [(density.dim,)],
        ["point"],
        make_initial_point_fn=start,
    )


def _in_worker_thread(density: Density, failures: list[Exception]) -> Callable[[np.ndarray], tuple[float, np.ndarray]]:
    """Give value and gradient; called by nutpie in the thread that will use it.

    torch's thread count is a setting of each thread: a new one splits every small operation over all cores, which made
    gradients 12 to 60 times slower.
    """
    torch.set_num_threads(1)

    def value_and_grad(point: np.ndarray) -> tuple[float, np.ndarray]:
        try:
            if not failures:
                return density.value_and_grad(point)
        except Exception as error:  # of the model; nutpie would panic, and hide it
            failures.append(error)
        return -np.inf, np.zeros(density.dim)

    return value_and_grad


def _sample_pyro(engine: NUTS, density: Density, problem: Problem, start: Start) -> Chains:
    """Sample chain after chain with Pyro's kernel on Pyro's potential."""
    seeds = np.random.default_rng(problem.seed).integers(2**31, size=engine.num_chains)
    chains = [
        run_chain(
            density,
            start(int(seed)),
            num_warmup=engine.num_warmup,
            num_samples=engine.num_samples,
            target_accept=engine.target_accept,
            max_tree_depth=engine.max_tree_depth,
            seed=int(seed),
            label=f"chain {i + 1}/{engine.num_chains}",
        )
        for i, seed in enumerate(seeds)
    ]
    points, stats, adapted = zip(*chains, strict=True)
    return (
        np.stack(points),
        {name: np.stack([s[name] for s in stats]) for name in stats[0]},
        {name: np.stack([a[name] for a in adapted]) for name in adapted[0]},
    )


Part = tuple[np.ndarray, dict[str, np.ndarray]]


def _split(points: np.ndarray, stats: dict[str, np.ndarray], num_warmup: int) -> tuple[Part, Part]:
    """Split into kept draws and warm-up."""
    kept = points[:, num_warmup:], {name: value[:, num_warmup:] for name, value in stats.items()}
    return kept, (points[:, :num_warmup], {name: value[:, :num_warmup] for name, value in stats.items()})


def _status(shape: tuple[int, ...], engine: NUTS) -> Status:
    if shape == (engine.num_chains, engine.num_samples):
        return Status("finished", f"All {shape[0]} chains ran {engine.num_warmup} + {shape[1]} draws.")
    return Status(
        "interrupted", f"Interrupted: {shape[0]} of {engine.num_chains} chains with {shape[1]} draws; run it again."
    )
