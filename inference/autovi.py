"""AutoVI: deterministic variational inference that needs no tuning. First rung: one Gaussian."""

import time
from dataclasses import dataclass, field
from itertools import count
from typing import Any, ClassVar

import numpy as np
import torch

from inference.density import Density
from inference.devices import check_device
from inference.errors import InputError
from inference.fit import Problem, Run, Status, short_repr
from inference.gaussian import MAX_FULL_RANK, Fitted, Gaussian, base_draws, elbo, fit_gaussian, gaussian_draws
from inference.nuts import DTYPES, check_choice, check_count
from inference.progress import bar
from inference.starts import best_gaussian

# The fixed-draw objective over-fits its N draws by g_in - g_out nats. N doubles until that gap is under the larger of
# this and two standard errors (Burroni, Domke & Sheldon 2024; constants of our notes, section 10), up to MAX_DRAWS.
GAP = 0.02
MIN_DRAWS, MAX_DRAWS, FRESH_DRAWS = 32, 4096, 2048
# Fresh draws are fewer in very many dimensions, so that the batch stays under 128 MB.
MAX_FRESH_NUMBERS = 2**24
# Starts agree when the best two bounds differ by less than this, in nats, plus two standard errors.
AGREEMENT = 0.1
BACKENDS = ("auto", "native", "python")
# Gradients of a fit, to estimate whether compiling pays, now or when the library is next found in the cache: some 5000,
# which in batches cost less than single ones.
TYPICAL_GRADIENTS = 2500


@dataclass(frozen=True, kw_only=True, repr=False)
class AutoVI:
    """Gaussian variational posterior by L-BFGS on fixed orthogonal-antithetic draws, from several starts.

    A full covariance up to 250 dimensions, a mean field beyond. The number of fixed draws doubles until the bound on
    fresh draws has caught up with the bound that was optimised, so the answer does not depend on the draws, and there
    is no learning rate, no noise and no stopping rule to tune (Giordano, Ingram & Broderick 2024; doubling as in
    Burroni, Domke & Sheldon 2024; the structured draws are explained in `inference.gaussian`).

    Parameters
    ----------
    num_samples, num_chains
        Independent draws from the fitted Gaussian are returned in this shape, that of an MCMC run beside it.
    num_starts
        Starts, uniform on (-2, 2) of the unconstrained space, each replaced by a Laplace fit at the mode above it where
        that gives the better bound. The best bound is kept; their agreement is part of the status.

    backend
        ``"native"``: the density compiled to native code. ``"python"``: the recorded density, in batches, by torch.
        ``"auto"``: native, unless compiling would take longer than it saves.
    dtype
        Precision of the density, ``"float64"`` or ``"float32"``; rounding limits how far L-BFGS can descend.
    device
        Where batches of the recorded density are evaluated: ``"cpu"``, or ``"cuda"`` for large data on a GPU (native
        code is for the CPU).

    Notes
    -----
    ``fit.state``: ``"loc"`` (D,), ``"scale"`` (D, D) or (D,), ``"elbo"``, ``"elbo_se"`` on fresh draws, and
    ``"starts"``: ``"elbo"`` (num_starts,) and ``"agree"``.
    """

    method: ClassVar[str] = "vi"

    num_samples: int = 1000
    num_chains: int = 4
    num_starts: int = 4
    backend: str = "auto"
    dtype: str = "float64"
    device: str = "cpu"

    def __post_init__(self) -> None:
        for name, least in (("num_samples", 4), ("num_chains", 1), ("num_starts", 1)):
            check_count(name, getattr(self, name), least=least)
        check_choice("backend", self.backend, BACKENDS)
        check_choice("dtype", self.dtype, DTYPES)
        check_device(self.device)

    __repr__ = short_repr

    def floating_dtype(self, model: Any) -> torch.dtype:
        """Give ``dtype``, whatever the model."""
        return DTYPES[self.dtype]

    def run(self, problem: Problem) -> Run:
        """Fit the Gaussian; called by `inference.fit.fit`."""
        begin = time.perf_counter()
        density = problem.density
        density.require_no_noise()
        setup = time.perf_counter() - begin
        begin = time.perf_counter()
        density.move(torch.device(self.device))
        if self.backend != "python" and density.device.type == "cpu":
            density.compile(TYPICAL_GRADIENTS if self.backend == "auto" else np.inf)
        compilation = time.perf_counter() - begin
        density.num_gradients = 0
        rng = np.random.default_rng(problem.seed)
        begin = time.perf_counter()
        climb = _Climb(density, rng)
        starts = climb.from_starts(self.num_starts)
        fitted, gap = climb.double_draws(starts.best)
        optimisation = time.perf_counter() - begin
        begin = time.perf_counter()
        shape = (self.num_chains, self.num_samples)
        z = rng.standard_normal((shape[0] * shape[1], density.dim))
        draws, points, stats = gaussian_draws(density, fitted.gaussian, z)
        bound, error = elbo(density.log_density, fitted.gaussian, climb.fresh)
        return Run(
            draws={name: value.reshape(*shape, *value.shape[1:]) for name, value in draws.items()},
            stats={name: value.reshape(shape) for name, value in stats.items()},
            history={"loss": np.array(climb.losses), "gradient_norm": np.array(climb.gradient_norms)},
            status=_status(fitted, gap, starts),
            seconds={
                "setup": setup,
                "compile": compilation,
                "optimisation": optimisation,
                "sampling": time.perf_counter() - begin,
            },
            notes=_notes(density, fitted.gaussian),
            state={
                "unconstrained": points.reshape(*shape, density.dim),
                "labels": density.labels,
                "num_gradients": density.num_gradients,
                "backend": f"L-BFGS, {density.backend} density",
                "loc": fitted.gaussian.loc,
                "scale": fitted.gaussian.scale,
                "elbo": bound,
                "elbo_se": error,
                "starts": {"elbo": starts.elbos, "agree": starts.agree},
            },
        )


@dataclass(frozen=True, eq=False)
class _Starts:
    best: Fitted
    elbos: np.ndarray
    error: float

    @property
    def agree(self) -> bool:
        """Whether the two best starts reached the same bound."""
        if len(self.elbos) < 2:
            return True
        second, first = np.sort(self.elbos)[-2:]
        return bool(first - second < AGREEMENT + 2 * self.error)


@dataclass(eq=False)
class _Climb:
    density: Density
    rng: np.random.Generator
    losses: list[float] = field(default_factory=list)
    gradient_norms: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.full_rank = self.density.dim <= MAX_FULL_RANK
        dim = self.density.dim
        self.first_draws = max(MIN_DRAWS, 2 * dim) if self.full_rank else 2 * MIN_DRAWS
        self.fresh = self.rng.standard_normal((min(FRESH_DRAWS, max(64, MAX_FRESH_NUMBERS // dim)), dim))

    def from_starts(self, num: int) -> _Starts:
        """Fit from every start on few draws; compare on fresh ones."""
        dim = self.density.dim
        z = base_draws(self.first_draws, dim, full_rank=self.full_rank, random_radius=False, rng=self.rng)
        runs, bounds, errors = [], [], []
        points = self.density.starts(num, generator=self.rng)
        for point in bar(points, desc="AutoVI: starts"):
            run = fit_gaussian(self.density.grad, best_gaussian(self.density, point, z, full_rank=self.full_rank), z)
            bound, error = elbo(self.density.log_density, run.gaussian, self.fresh)
            runs.append(run)
            bounds.append(bound)
            errors.append(error)
        best = int(np.argmax(bounds))
        if not np.isfinite(bounds[best]):
            raise InputError(
                "model: no Gaussian with a finite bound was found from any start; the density is not finite on a "
                "region of positive probability. Tighten the priors or constrain the parameters of the likelihood."
            )
        self._keep(runs[best])
        return _Starts(runs[best], np.array(bounds), errors[best])

    def double_draws(self, fitted: Fitted) -> tuple[Fitted, float]:
        """Double the fixed draws until the bound on fresh draws has caught up with the optimised one."""
        num = self.first_draws
        for _ in bar(count(), desc="AutoVI: doubling draws"):
            outside, error = elbo(self.density.log_density, fitted.gaussian, self.fresh)
            gap = fitted.elbo - outside
            if gap < max(GAP, 2 * error) or 2 * num > MAX_DRAWS:
                return fitted, gap
            num *= 2
            z = base_draws(num, self.density.dim, full_rank=self.full_rank, random_radius=True, rng=self.rng)
            fitted = fit_gaussian(self.density.grad, fitted.gaussian, z)
            self._keep(fitted)
        raise AssertionError("unreachable")

    def _keep(self, fitted: Fitted) -> None:
        self.losses.extend(fitted.losses)
        self.gradient_norms.extend(fitted.gradient_norms)


def _status(fitted: Fitted, gap: float, starts: _Starts) -> Status:
    if not starts.agree:
        first, second = np.sort(starts.elbos)[::-1][:2]
        return Status(
            "budget_spent",
            f"Starts disagree: the two best bounds are {first:.2f} and {second:.2f} nats, so there may be several "
            "optima; raise num_starts and look for several modes.",
        )
    if not fitted.settled:
        return Status(
            "budget_spent", "L-BFGS did not reach a stationary point; the posterior may have no Gaussian fit."
        )
    if gap > 10 * GAP:
        return Status(
            "budget_spent",
            f"The bound still over-fits its fixed draws by {gap:.2f} nats at the largest number of draws; "
            "the posterior is far from Gaussian, use NUTS.",
        )
    agreement = "the starts agree" if len(starts.elbos) > 1 else "from a single start, so other optima are unknown"
    bound = f"bound {starts.elbos.max():.2f} nats from {len(starts.elbos)} start{'s' * (len(starts.elbos) > 1)}"
    return Status("converged", f"Stationary, {agreement}, and the draws are not over-fitted ({bound}).")


def _notes(density: Density, q: Gaussian) -> tuple[str, ...]:
    notes = [density.reason] if density.reason else []
    if not q.full_rank:
        notes.append(
            f"{density.dim} dimensions: above {MAX_FULL_RANK} a mean field is fitted, which has no correlations and "
            "understates standard deviations of correlated quantities"
        )
    return tuple(notes)
