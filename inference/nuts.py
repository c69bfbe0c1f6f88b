"""NUTS: by nutpie on the flat log density, or Pyro's own kernel for comparison."""

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from inference.chain_starts import chain_starts
from inference.density import Density
from inference.errors import InputError
from inference.fit import Fit, Problem, Run, Status, short_repr
from inference.neutra import Transported, check_flow
from inference.nutpie_chains import MAX_TREE_DEPTH, MIN_DRAWS, TARGET_ACCEPT, Chains, Start, Target, nutpie_chains
from inference.pyro_kernel import run_chain
from inference.warm_start import check_init, warm_start

BACKENDS = ("auto", "native", "python", "pyro")
ADAPTATIONS = ("diag", "low_rank")

DTYPES = {"float32": torch.float32, "float64": torch.float64}
# Leapfrog steps a draw, to estimate whether compiling pays; most models take 7 to 15.
TYPICAL_STEPS = 8


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
    init
        A fit of the same model, by `AutoVI` say: chains start at its draws, with its covariance as mass matrix, which
        the warm-up only corrects, so that 100 to 200 draws of it do. However bad, it changes the time that sampling
        takes, not what is sampled; but chains that start in the modes that it has found do not look for others. See
        `inference.warm_start`.
    neutra
        ``init`` is a fit by a flow, ``SVI(guide="iaf")`` say: sample in the coordinates in which the flow is a standard
        normal (Hoffman et al. 2019), where funnels and bananas are round as far as the flow has learned them. A
        gradient costs the flow's besides the model's.

    Notes
    -----
    ``fit.state["adapted"]`` holds the step size of each chain, ``"step_size"`` (chain,), and the diagonal of its
    inverse mass matrix, ``"inverse_mass"`` (chain, D), in the order of the unconstrained coordinates; with ``neutra``,
    of the flow's.
    """

    method: ClassVar[str] = "mcmc"

    num_warmup: int = 1000
    num_samples: int = 1000
    num_chains: int = 4
    backend: str = "auto"
    adaptation: str = "diag"
    target_accept: float = TARGET_ACCEPT
    max_tree_depth: int = MAX_TREE_DEPTH
    dtype: str = "float64"
    save_warmup: bool = False
    init: Fit | None = None
    neutra: bool = False

    def __post_init__(self) -> None:
        for name, least in (("num_warmup", 1), ("num_samples", MIN_DRAWS), ("num_chains", 1), ("max_tree_depth", 1)):
            check_count(name, getattr(self, name), least=least)
        check_number("target_accept", self.target_accept, above=0.0, below=1.0)
        check_choice("backend", self.backend, BACKENDS)
        check_choice("adaptation", self.adaptation, ADAPTATIONS)
        check_choice("dtype", self.dtype, DTYPES)
        if self.backend == "pyro" and self.adaptation != "diag":
            raise InputError("adaptation: Pyro's kernel here adapts a diagonal mass matrix; use backend='auto'.")
        check_init(self.init)
        if self.neutra:
            check_flow(self.init)

    __repr__ = short_repr

    def __deepcopy__(self, memo: dict) -> "NUTS":
        """Give the engine itself: nothing in it changes, and the fit in ``init`` may be large."""
        return self

    def floating_dtype(self, model: Any) -> torch.dtype:
        """Give ``dtype``, whatever the model."""
        return DTYPES[self.dtype]

    def run(self, problem: Problem) -> Run:
        """Sample all chains; called by `inference.fit.fit`."""
        begin = time.perf_counter()
        density = Transported(problem.sites, check_flow(self.init)) if self.neutra else problem.density
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
        target, start = self._target(density, problem.seed)
        setup += time.perf_counter() - begin
        begin = time.perf_counter()
        sample = _sample_pyro if self.backend == "pyro" else _sample_nutpie
        chains = sample(self, target, problem, start)
        points, stats, adapted = chains if self.init is None else target.in_x(*chains)
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
            notes=(target.reason,) if target.reason else (),
            state={
                "unconstrained": kept[0],
                "labels": density.labels,
                "num_gradients": density.num_gradients,
                "backend": f"{'Pyro' if self.backend == 'pyro' else 'nutpie'}, {target.backend} density",
                "adapted": adapted,
                **({"warmup": {"unconstrained": warmup[0], "stats": warmup[1]}} if self.save_warmup else {}),
            },
        )

    def _target(self, density: Density, seed: int) -> tuple[Target, Start]:
        """Give what is sampled, in which coordinates, and where chains start in them."""
        if self.neutra:
            return density, density.start
        if self.init is not None:
            return warm_start(density, self.init, seed=seed)
        return density, chain_starts(density, seed=seed)


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


def _sample_nutpie(engine: NUTS, density: Target, problem: Problem, start: Start) -> Chains:
    return nutpie_chains(
        density,
        start,
        num_warmup=engine.num_warmup,
        num_samples=engine.num_samples,
        num_chains=engine.num_chains,
        seed=problem.seed,
        adaptation=engine.adaptation,
        target_accept=engine.target_accept,
        max_tree_depth=engine.max_tree_depth,
        progress=problem.progress,
    )


def _sample_pyro(engine: NUTS, density: Target, problem: Problem, start: Start) -> Chains:
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
