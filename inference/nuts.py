"""NUTS: through nutpie on the flat log density, or Pyro's own kernel for comparison."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from nutpie import sample as nutpie_sample
from nutpie.compiled_pyfunc import from_pyfunc

from inference.density import Density
from inference.errors import InputError
from inference.fit import Problem, Run, Status, short_repr
from inference.pyro_kernel import run_chain

BACKENDS = ("nutpie", "pyro")
ADAPTATIONS = ("diag", "low_rank")

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
        ``"nutpie"``: nutpie on the recorded log density. ``"pyro"``: Pyro's kernel on Pyro's potential, far slower,
        for comparison.
    adaptation
        Mass matrix: ``"diag"``, or ``"low_rank"`` (diagonal plus a few directions, for correlated posteriors; nutpie
        only).
    target_accept
        Mean acceptance probability that the step size is adapted to; raise it towards 1 against divergences.
    max_tree_depth
        A trajectory has at most ``2**max_tree_depth`` leapfrog steps.
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
    backend: str = "nutpie"
    adaptation: str = "diag"
    target_accept: float = 0.8
    max_tree_depth: int = 10
    save_warmup: bool = False

    def __post_init__(self) -> None:
        for name, least in (("num_warmup", 1), ("num_samples", 4), ("num_chains", 1), ("max_tree_depth", 1)):
            check_count(name, getattr(self, name), least=least)
        check_number("target_accept", self.target_accept, above=0.0, below=1.0)
        if self.backend not in BACKENDS:
            raise InputError(f"backend: expected one of {', '.join(BACKENDS)}, got {self.backend!r}.")
        if self.adaptation not in ADAPTATIONS:
            raise InputError(f"adaptation: expected one of {', '.join(ADAPTATIONS)}, got {self.adaptation!r}.")
        if self.backend == "pyro" and self.adaptation != "diag":
            raise InputError("adaptation: Pyro's kernel here adapts a diagonal mass matrix; use backend='nutpie'.")

    __repr__ = short_repr

    def floating_dtype(self, model: Any) -> torch.dtype:
        """Give float64, always: leapfrog errors of single precision spoil long trajectories."""
        return torch.float64

    def run(self, problem: Problem) -> Run:
        """Sample all chains; called by `inference.fit.fit`."""
        begin = time.perf_counter()
        density = problem.density
        density.starts(1, generator=np.random.default_rng(problem.seed))  # refuse early, naming the site
        setup = time.perf_counter() - begin
        density.num_gradients = 0
        begin = time.perf_counter()
        sample = _sample_nutpie if self.backend == "nutpie" else _sample_pyro
        points, stats, adapted = sample(self, density, problem)
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
            seconds={"setup": setup, "warmup": elapsed * warm_share, "sampling": elapsed * (1 - warm_share)},
            notes=(density.reason,) if density.reason else (),
            state={
                "unconstrained": kept[0],
                "labels": density.labels,
                "num_gradients": density.num_gradients,
                "backend": f"{self.backend}, {density.backend} density",
                "adapted": adapted,
                **({"warmup": {"unconstrained": warmup[0], "stats": warmup[1]}} if self.save_warmup else {}),
            },
        )


Chains = tuple[np.ndarray, dict[str, np.ndarray], dict[str, np.ndarray]]


def check_count(name: str, value: Any, *, least: int) -> None:
    """Refuse anything but an integer of at least ``least``."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InputError(f"{name}: expected an integer of at least {least}, got {value!r}.")


def check_number(name: str, value: Any, *, above: float, below: float = float("inf")) -> None:
    """Refuse anything but a number strictly between two others."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not above < value < below:
        limits = f"above {above:g}" if below == float("inf") else f"between {above:g} and {below:g}"
        raise InputError(f"{name}: expected a number {limits}, got {value!r}.")


def _sample_nutpie(engine: NUTS, density: Density, problem: Problem) -> Chains:
    """Sample with nutpie; points (chain, warm-up + draws, D), statistics alike, adapted quantities."""
    compiled = from_pyfunc(
        density.dim,
        lambda: _in_worker_thread(density),
        lambda *_: lambda point: {"point": point},
        [np.dtype("float64")],
        [(density.dim,)],
        ["point"],
        make_initial_point_fn=_start(density),
    )
    trace = nutpie_sample(
        compiled,
        draws=engine.num_samples,
        tune=engine.num_warmup,
        chains=engine.num_chains,
        cores=1,  # every gradient holds the interpreter lock, so more would only contend
        seed=problem.seed,
        progress_bar=problem.progress,
        low_rank_modified_mass_matrix=engine.adaptation == "low_rank",
        target_accept=engine.target_accept,
        maxdepth=engine.max_tree_depth,
        store_mass_matrix=True,
    )
    groups = [(trace[f"{w}posterior"], trace[f"{w}sample_stats"]) for w in ("warmup_", "")]
    points = np.concatenate([posterior["point"].values for posterior, _ in groups], axis=1)
    stats = {
        ours: np.concatenate([g[theirs].values for _, g in groups], axis=1) for theirs, ours in _STATISTICS.items()
    }
    for name in ("tree_depth", "n_steps"):
        stats[name] = stats[name].astype(np.int64)
    final = groups[-1][1]
    mass = final["mass_matrix_inv" if "mass_matrix_inv" in final else "mass_matrix_stds"].values[:, -1]
    adapted = {"step_size": final["step_size_bar"].values[:, -1], "inverse_mass": mass}
    return points, stats, adapted


def _in_worker_thread(density: Density) -> Callable[[np.ndarray], tuple[float, np.ndarray]]:
    """Give value and gradient; called by nutpie in the thread that will use it.

    torch's thread count is a setting of each thread: a new one splits every small operation over all cores, which made
    gradients 12 to 60 times slower.
    """
    torch.set_num_threads(1)
    return density.value_and_grad


def _start(density: Density) -> Callable[[int], np.ndarray]:
    return lambda seed: density.starts(1, generator=np.random.default_rng(seed))[0]


def _sample_pyro(engine: NUTS, density: Density, problem: Problem) -> Chains:
    """Sample chain after chain with Pyro's kernel on Pyro's potential."""
    generator = np.random.default_rng(problem.seed)
    starts = density.starts(engine.num_chains, generator=generator)
    seeds = generator.integers(2**31, size=engine.num_chains)
    density.num_gradients = 0
    chains = [
        run_chain(
            density,
            start,
            num_warmup=engine.num_warmup,
            num_samples=engine.num_samples,
            target_accept=engine.target_accept,
            max_tree_depth=engine.max_tree_depth,
            seed=int(seed),
            label=f"chain {i + 1}/{engine.num_chains}",
        )
        for i, (start, seed) in enumerate(zip(starts, seeds, strict=True))
    ]
    points, stats, adapted = zip(*chains, strict=True)
    return (
        np.stack(points),
        {name: np.stack([s[name] for s in stats]) for name in stats[0]},
        {name: np.stack([a[name] for a in adapted]) for name in adapted[0]},
    )


Part = tuple[np.ndarray, dict[str, np.ndarray]]


def _split(points: np.ndarray, stats: dict[str, np.ndarray], num_warmup: int) -> tuple[Part, Part]:
    """Split into kept draws and warm-up, leaving out chains that an interruption cut short."""
    whole = np.isfinite(points).all(axis=(1, 2))
    if not whole.any():
        raise KeyboardInterrupt("interrupted before the first chain was complete")
    points, stats = points[whole], {name: value[whole] for name, value in stats.items()}
    kept = points[:, num_warmup:], {name: value[:, num_warmup:] for name, value in stats.items()}
    return kept, (points[:, :num_warmup], {name: value[:, :num_warmup] for name, value in stats.items()})


def _status(shape: tuple[int, ...], engine: NUTS) -> Status:
    if shape == (engine.num_chains, engine.num_samples):
        return Status("finished", f"All {shape[0]} chains ran {engine.num_warmup} + {shape[1]} draws.")
    return Status(
        "interrupted", f"Interrupted: {shape[0]} of {engine.num_chains} chains with {shape[1]} draws; run it again."
    )
