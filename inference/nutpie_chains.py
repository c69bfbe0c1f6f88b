"""Chains by nutpie on a flat log density: native code where there is some, else through Python."""

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import pyarrow
import torch
from nutpie import __version__ as nutpie_version
from nutpie import sample as nutpie_sample
from nutpie.compiled_pyfunc import from_pyfunc

from inference.native.function import num_cores
from inference.nutpie_native import native_model

# Others take 0.8. A third more steps buy a tenth of the divergences: of eight runs on a Gaussian process at 0.8 one
# missed its posterior, and none at 0.9 (`benchmarks.posteriordb`, gp_pois_regr).
TARGET_ACCEPT = 0.9
MAX_TREE_DEPTH = 10
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

# Points (chain, warm-up + draws, D), statistics (chain, warm-up + draws), adapted quantities.
Chains = tuple[np.ndarray, dict[str, np.ndarray], dict[str, np.ndarray]]
# From a chain's seed to its start (D,).
Start = Callable[[int], np.ndarray]


class Target(Protocol):
    """A log density that can be sampled: `inference.density.Density`, or one in other coordinates.

    Attributes
    ----------
    dim, num_gradients, reason
        As those of a `Density`.
    native
        The addresses that `inference.nutpie_native.native_model` takes, or None.
    """

    dim: int
    num_gradients: int
    reason: str
    native: Any

    def value_and_grad(self, point: np.ndarray) -> tuple[float, np.ndarray]:
        """Log density and gradient (D,) at one point (D,)."""
        ...

    def eager(self, vector: torch.Tensor) -> torch.Tensor:
        """Log density at one point (D,), by running the Pyro model."""
        ...


def nutpie_chains(
    density: Target,
    start: Start,
    *,
    num_warmup: int,
    num_samples: int,
    num_chains: int,
    seed: int,
    adaptation: str = "diag",
    target_accept: float = TARGET_ACCEPT,
    max_tree_depth: int = MAX_TREE_DEPTH,
    progress: bool = False,
) -> Chains:
    """Sample with nutpie.

    Parameters
    ----------
    density
        Compiled before, if it is to be native code.
    start
        Takes a chain's seed, returns its start (D,).
    num_warmup, num_samples, num_chains, adaptation, target_accept, max_tree_depth, progress
        As for `inference.NUTS`.

    Returns
    -------
    points : ndarray
        Warm-up and draws, (chain, num_warmup + num_samples, D).
    stats : dict
        Statistics of each of them, (chain, num_warmup + num_samples).
    adapted : dict
        ``step_size`` (chain,), and the diagonal of the inverse mass matrix, ``inverse_mass`` (chain, D).

    Raises
    ------
    KeyboardInterrupt
        Interrupted before any chain had `MIN_DRAWS` draws; later interruptions keep what there is.
    """
    failures: list[Exception] = []
    compiled = _native(density, start) or _through_python(density, failures, start)
    try:
        trace = nutpie_sample(
            compiled,
            draws=num_samples,
            tune=num_warmup,
            chains=num_chains,
            # In Python every gradient holds the interpreter lock, so more threads would only contend.
            cores=min(num_chains, num_cores()) if density.native is not None else 1,
            seed=seed,
            progress_bar=progress,
            low_rank_modified_mass_matrix=adaptation == "low_rank",
            target_accept=target_accept,
            maxdepth=max_tree_depth,
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
        density.num_gradients += steps + num_chains
    return _read(draws, statistics, num_warmup)


def _read(draws: list[Any], statistics: list[Any], num_warmup: int) -> Chains:
    """Read nutpie's tables, of draws and of statistics, one a chain."""
    chains, length = _usable(np.array([table.num_rows for table in draws]) - num_warmup)
    end = num_warmup + length
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


def _native(density: Target, start: Start) -> Any:
    """Wrap the compiled density for nutpie; None where there is none, or nutpie no longer takes it."""
    if density.native is None:
        return None
    try:
        return native_model(density.native, density.dim, start)
    except Exception as error:  # another version of nutpie
        density.native = None
        density.reason = f"nutpie {nutpie_version} takes no native code, so that it runs through Python ({error})"
        return None


def _through_python(density: Target, failures: list[Exception], start: Start) -> Any:
    return from_pyfunc(
        density.dim,
        lambda: _in_worker_thread(density, failures),
        lambda *_: lambda point: {"point": point},
        [np.dtype("float64")],
        [(density.dim,)],
        ["point"],
        make_initial_point_fn=start,
    )


def _in_worker_thread(density: Target, failures: list[Exception]) -> Callable[[np.ndarray], tuple[float, np.ndarray]]:
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
