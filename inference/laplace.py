"""Point estimates: the highest density, and Laplace's Gaussian around it. Deterministic, from several starts."""

import time
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch

from inference.cluster_starts import proposed_starts
from inference.density import Density
from inference.errors import InputError
from inference.exchangeable import exchangeable
from inference.fit import Problem, Run, Status, short_repr
from inference.gaussian import MAX_FULL_RANK, Gaussian, gaussian_draws
from inference.label_copies import learnt_models, log_num_labellings, nearest_copies
from inference.nuts import DTYPES, check_choice, check_count
from inference.progress import bar
from inference.starts import climb_to_maximum, mode_at

BACKENDS = ("auto", "native", "python")
# Gradients of a fit, to estimate whether compiling pays: some 100 for each of 8 climbs, and the Hessians.
TYPICAL_GRADIENTS = 1000
# Maxima that differ by less than this, in nats, are equally high; ends closer than this, on the unconstrained space,
# are one point.
AGREEMENT, APART = 1e-3, 1e-2
# Spread about a maximum at which its labels are learnt; copies are exact, so any that parts components will do.
NEAR = 0.1
# Draws of the Gaussian that tell how much of it lies nearer to its copies under other labels; if that is more than 5 %,
# which Laplace's method itself may be wrong by, it is said.
COPY_DRAWS, CLEAR = 500, 0.95
# Another maximum counts from 1 % of the mass, as for `inference.modes`.
COUNTS = np.log(0.01)


@dataclass(frozen=True, kw_only=True, repr=False)
class _Ascent:
    """Settings of the engines here, and what they do before they differ."""

    method: ClassVar[str] = "vi"

    num_samples: int = 1000
    num_chains: int = 4
    num_starts: int = 8
    backend: str = "auto"
    dtype: str = "float64"

    def __post_init__(self) -> None:
        for name, least in (("num_samples", 4), ("num_chains", 1), ("num_starts", 1)):
            check_count(name, getattr(self, name), least=least)
        check_choice("backend", self.backend, BACKENDS)
        check_choice("dtype", self.dtype, DTYPES)

    __repr__ = short_repr

    def floating_dtype(self, model: Any) -> torch.dtype:
        """Give ``dtype``, whatever the model."""
        return DTYPES[self.dtype]

    def _prepare(self, density: Density) -> dict[str, float]:
        """Compile, and give the seconds that everything took so far."""
        begin = time.perf_counter()
        density.require_no_noise()
        setup = time.perf_counter() - begin
        begin = time.perf_counter()
        if self.backend != "python":
            density.compile(TYPICAL_GRADIENTS if self.backend == "auto" else np.inf)
        density.num_gradients = 0
        return {"setup": setup, "compile": time.perf_counter() - begin}


@dataclass(frozen=True, kw_only=True, repr=False)
class Laplace(_Ascent):
    """Gaussian with the curvature of the log density at its highest mode (Laplace's approximation).

    Each of several dispersed starts climbs by L-BFGS, then by Newton's method, on the unconstrained space, where the
    log density includes the log Jacobians of the transforms. Of the modes found the one of the largest mass,
    exp(log p + D/2 log 2 pi - 1/2 log det H) (MacKay 2003, eq. 27.9), is kept: its log is an estimate of the log
    evidence. Where K components are exchangeable there are K! such modes, and log K! is added, less what overlaps (as
    those of an empty component do); ``fit.notes`` says so. A full covariance up to 250 dimensions, its diagonal's
    inverse beyond. There, and where data are many, Newton's steps do without a Hessian (`inference.dear_climb`), and a
    climb ends within a hundredth of a local sd of the mode.

    Parameters
    ----------
    num_samples, num_chains
        Independent draws from the Gaussian are returned in this shape, that of an MCMC run beside it.
    num_starts
        Starts: those that the model proposes (`ppl_models.Model.start`), else uniform on (-2, 2) of the unconstrained
        space, half of them from clusterings where there are labels (`inference.cluster_starts`).
    backend, dtype
        As for `AutoVI`.

    Notes
    -----
    ``fit.state``: ``"loc"`` (D,), ``"scale"`` (D, D) or (D,), ``"log_evidence"``, and ``"starts"``: ``"value"``
    (num_starts,), the log density at the end of each climb, NaN where that was no maximum.
    """

    def run(self, problem: Problem) -> Run:
        """Climb and draw; called by `inference.fit.fit`."""
        density = problem.density
        seconds = self._prepare(density)
        rng = np.random.default_rng(problem.seed)
        begin = time.perf_counter()
        maxima = _maxima(density, _starts(density, self.num_starts, rng))
        settled = np.isfinite(maxima.values)
        modes = [mode_at(density, point) if ok else None for point, ok in zip(maxima.points, settled, strict=True)]
        masses = [mode.log_mass if mode is not None else -np.inf for mode in modes]
        first = int(np.argmax(masses))
        best = modes[first]
        if best is None:
            raise InputError(
                "model: the log density has no maximum with a negative definite curvature that a climb from "
                f"{self.num_starts} starts would reach (a funnel, or a direction in which it is flat); use NUTS."
            )
        seconds["optimisation"] = time.perf_counter() - begin
        begin = time.perf_counter()
        shape = (self.num_chains, self.num_samples)
        z = rng.standard_normal((shape[0] * shape[1], density.dim))
        draws, points, stats = gaussian_draws(density, best.laplace, z)
        seconds["sampling"] = time.perf_counter() - begin
        log_copies, said = _copies(density, best.laplace, points)
        others = sum(best.log_mass + COUNTS < mass < best.log_mass - AGREEMENT for mass in masses)
        return Run(
            draws={name: value.reshape(*shape, *value.shape[1:]) for name, value in draws.items()},
            stats={name: value.reshape(shape) for name, value in stats.items()},
            history=maxima.history,
            status=_one_labelling(density, maxima, first).status(first, left_out=others),
            seconds=seconds,
            notes=(*_notes(density, best.laplace), *said),
            state={
                "unconstrained": points.reshape(*shape, density.dim),
                "labels": density.labels,
                "num_gradients": density.num_gradients,
                "backend": f"L-BFGS and Newton, {density.backend} density",
                "loc": best.laplace.loc,
                "scale": best.laplace.scale,
                "log_evidence": best.log_mass + log_copies,
                "starts": {"value": maxima.values},
            },
        )


@dataclass(frozen=True, kw_only=True, repr=False)
class MAP(_Ascent):
    """The parameters of the highest posterior density, a point; with flat priors, of the highest likelihood.

    The density is that of the constrained values, without the log Jacobians of their transforms, so that the point is
    the one that EM or an optimiser on the parameters themselves would reach. Several dispersed starts climb by L-BFGS,
    then by Newton's method; the highest end is kept. A maximum at the edge of the support (a scale of zero) is none.
    Above 250 dimensions, and where data are many, a climb ends within a hundredth of a local sd of the maximum.

    Parameters
    ----------
    num_samples, num_chains
        The point is returned so often, in this shape; discrete sites are drawn from their exact conditional
        distribution at it.
    num_starts
        Starts: those that the model proposes (`ppl_models.Model.start`), else uniform on (-2, 2) of the unconstrained
        space, half of them from clusterings where there are labels (`inference.cluster_starts`).
    backend, dtype
        As for `AutoVI`.

    Notes
    -----
    ``fit.stats["lp"]`` is the log density of the constrained values. ``fit.state``: ``"loc"`` (D,), and ``"starts"``:
    ``"value"`` (num_starts,), the log density at the end of each climb, NaN where that was no maximum.
    """

    def run(self, problem: Problem) -> Run:
        """Climb; called by `inference.fit.fit`."""
        begin = time.perf_counter()
        density = Density(problem.sites, jacobian=False, propose=getattr(problem.model, "start", None))
        recording = time.perf_counter() - begin
        seconds = self._prepare(density)
        seconds["setup"] += recording
        begin = time.perf_counter()
        maxima = _maxima(density, _starts(density, self.num_starts, np.random.default_rng(problem.seed)))
        if np.isnan(maxima.values).all():
            raise InputError(
                f"model: no climb from {self.num_starts} starts reached a maximum of the density of the constrained "
                "values: it grows without bound (a scale that shrinks to zero), is flat, or is highest at an edge (a "
                "probability of zero). Give the sites priors that keep them off their edges, Dirichlet and Beta "
                "parameters above 1 say, or use Laplace(), AutoVI() or NUTS()."
            )
        best = int(np.nanargmax(maxima.values))
        point, shape = maxima.points[best], (self.num_chains, self.num_samples)
        seconds["optimisation"] = time.perf_counter() - begin
        seconds["sampling"] = 0.0
        latents = density.constrain(point[None])
        aligned = _one_labelling(density, maxima, best)
        return Run(
            draws={name: np.broadcast_to(value, (*shape, *value.shape[1:])).copy() for name, value in latents.items()},
            stats={"lp": np.full(shape, maxima.values[best])},
            history=maxima.history,
            status=aligned.status(best, places=_places(density, aligned.points)),
            seconds=seconds,
            notes=(density.reason,) if density.reason else (),
            state={
                "unconstrained": np.broadcast_to(point, (*shape, density.dim)).copy(),
                "labels": density.labels,
                "num_gradients": density.num_gradients,
                "backend": f"L-BFGS and Newton, {density.backend} density",
                "loc": point,
                "starts": {"value": maxima.values},
            },
        )


@dataclass(frozen=True, eq=False)
class _Maxima:
    """Ends of the climbs (num, D), and their log densities (num,), NaN where an end is no maximum."""

    points: np.ndarray
    values: np.ndarray

    @property
    def history(self) -> dict[str, np.ndarray]:
        """Minus the best log density, climb after climb."""
        return {"loss": -np.fmax.accumulate(self.values)}

    def status(self, best: int, *, left_out: int = 0, places: np.ndarray | None = None) -> Status:
        """Say how many climbs ended where the best did; ``left_out`` of the others matter to the answer.

        Whether two ends are one is seen by ``places`` (num, any), by default the points themselves.
        """
        num, settled = len(self.values), np.isfinite(self.values)
        level = np.abs(self.values - self.values[best]) < AGREEMENT
        places = self.points if places is None else places
        apart = _apart(places, best)
        if (level & apart).any():
            return Status(
                "budget_spent",
                f"{(level & apart).sum()} of {num} starts ended in another maximum of the same height: a sign that "
                "does not matter, or components that may be exchanged. A point, or a single Gaussian, is one of "
                "several equal answers.",
            )
        if left_out:
            return Status(
                "budget_spent",
                f"{left_out} of {num} starts ended in another maximum, with a mass that counts; a single Gaussian "
                "leaves it out. Use NUTS.",
            )
        if level.sum() == 1 < num:
            return Status("budget_spent", f"Only one of {num} starts reached the highest maximum; raise num_starts.")
        rest = f"; {(settled & ~level).sum()} ended in lower ones" if (settled & ~level).any() else ""
        lost = f"; {(~settled).sum()} found none" if not settled.all() else ""
        reached = "its start" if num == 1 else f"{level.sum()} of {num} starts"
        return Status("converged", f"{reached} reached the maximum, {self.values[best]:.2f}{rest}{lost}.".capitalize())


def _starts(density: Density, num: int, rng: np.random.Generator) -> np.ndarray:
    """Give points (num, D): those that the model proposes, else half of clusterings, if any, and dispersed ones."""
    proposed = density.proposed(num, generator=rng)
    if not len(proposed):
        proposed = proposed_starts(density, (num + 1) // 2, generator=rng)
    rest = density.starts(num - len(proposed), generator=rng) if len(proposed) < num else proposed[:0]
    return np.concatenate([proposed, rest])


def _maxima(density: Density, starts: np.ndarray) -> _Maxima:
    """Climb from points (num, D)."""
    points, values = [], []
    for start in bar(starts, desc="climbing"):
        point, settled = climb_to_maximum(density, start)
        points.append(point)
        values.append(density.value_and_grad(point)[0] if settled else np.nan)
    return _Maxima(np.array(points), np.array(values))


def _one_labelling(density: Density, maxima: _Maxima, best: int) -> _Maxima:
    """Give the ends that are copies of the best one under other labels its labels: they are the same maximum.

    Copies are as high as it: where no other end is, nothing is searched for, which takes seconds with 1e5 data.
    """
    others = (np.abs(maxima.values - maxima.values[best]) < AGREEMENT) & _apart(maxima.points, best)
    if not others.any():
        return maxima
    near, points = Gaussian(maxima.points[best], np.full(density.dim, NEAR)), maxima.points.copy()
    points[others] = nearest_copies(density, near, points[others])
    return replace(maxima, points=points)


def _copies(density: Density, q: Gaussian, draws: np.ndarray) -> tuple[float, tuple[str, ...]]:
    """Log of what the mass of one mode is multiplied by for those that are it relabelled, and a remark.

    All K! labellings of a point have one density, so the evidence is K! times the integral over those points whose
    labels are nearest to the mode's: K! times that part of the Gaussian's mass. Copies that overlap count once.
    """
    models = learnt_models(density, draws[:COPY_DRAWS]) if exchangeable(density) else ()
    if not models:
        return 0.0, ()
    groups, draws = [model.components for model in models], draws[:COPY_DRAWS]
    inside = 1.0 - (nearest_copies(density, q, draws, groups) != draws).any(axis=1).mean()
    num, sizes = np.exp(log_num_labellings(models)), " and ".join(str(group.size) for group in groups)
    said = f"log_evidence counts all {num:.0f} labellings of {sizes} exchangeable components"
    if inside < CLEAR:
        said += f", of each the {inside:.0%} of its mass that lies in no other; log_evidence(fit) is more exact here"
    return float(np.log(num * max(inside, 1.0 / len(draws)))), (said,)


def _apart(places: np.ndarray, best: int) -> np.ndarray:
    """Whether places (num, any) are others than the best one."""
    home = places[best]
    return (np.abs(places - home) > APART * (1 + np.abs(home))).any(axis=1)


def _places(density: Density, points: np.ndarray) -> np.ndarray:
    """Constrained values at points (num, D), one row each: ends far out on the way to an edge are close there."""
    values = density.constrain(points)
    return np.concatenate([value.reshape(len(points), -1) for value in values.values()], axis=1)


def _notes(density: Density, q: Gaussian) -> tuple[str, ...]:
    notes = [density.reason] if density.reason else []
    if not q.full_rank:
        notes.append(f"{density.dim} dimensions: above {MAX_FULL_RANK} the Gaussian has no correlations")
    return tuple(notes)
