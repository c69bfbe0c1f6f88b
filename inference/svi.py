"""Stochastic variational inference: Pyro's ELBOs, any guide, any optimiser."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from pyro.infer import ELBO
from pyro.optim import PyroOptim

from inference.density import Density
from inference.elbo import make_elbo, max_unused_gain
from inference.errors import InputError
from inference.fit import Problem, Run, Status, short_repr
from inference.gaussian import gaussian_draws, laplace, mean_and_error, unused_gain
from inference.guides import check_guide, draw_guide, make_guide, samples_discrete, unconstrained_draws
from inference.nuts import check_count, check_number
from inference.optimise import PyroStepper, TorchStepper, make_stepper
from inference.sites import Sites
from inference.svi_backends import BACKENDS, choose_steps
from inference.svi_loop import Loop, first_nonfinite

DTYPES = {"float32": torch.float32, "float64": torch.float64}
# A plateau of the loss is believed only if shifting and rescaling the draws, estimated from this many, would gain little.
GAIN_DRAWS = 1000
# Finding a start for a guide by name takes 150 gradients of the density for eight schools and 1000 for 90 groups;
# weighing and checking the draws, in batches, takes as long as about 500.
TYPICAL_GRADIENTS = 1000


@dataclass(frozen=True, kw_only=True, repr=False)
class SVI:
    """Stochastic variational inference with a guide (Hoffman et al. 2013; Ranganath, Gerrish & Blei 2014).

    Parameters
    ----------
    guide
        A name (``delta``, ``normal``, ``diagonal_normal``, ``multivariate_normal``, ``low_rank``, ``laplace``,
        ``iaf``, ``structured``), or any guide: a function with ``pyro.param``, a ``PyroModule``, an ``AutoGuide``. It
        takes the model's arguments. Modules are copied: the caller's is not trained; the trained copy is
        ``fit.state["guide"]``.
    elbo
        A name (``trace``, ``trace_mean_field``, ``trace_enum``, ``trace_graph``, ``renyi``) or a ``pyro.infer.ELBO``
        object. By default ``trace``, or ``trace_enum`` where the model has discrete sites to sum out.
    num_steps
        Optimiser steps. None: stop by itself, in three stages, each ending when a window of losses is no better than
        the one before beyond two standard errors; then the step shrinks, the window grows, and the iterates of the
        last stage are averaged.
    optimizer
        A torch optimiser class, ``functools.partial`` of one, or a ``pyro.optim`` object (whose own learning rate
        then wins over ``lr``).
    lr
        Learning rate.
    lr_schedule
        Takes the torch optimiser and returns a ``torch.optim.lr_scheduler``, stepped after every step; needs
        ``num_steps``.
    clip_norm
        Clip the total gradient norm to this.
    num_particles
        Draws per step for the ELBO.
    num_samples, num_chains
        Independent draws from the fitted guide are returned in this shape, that of an MCMC run beside it.
    dtype
        ``"float64"`` or ``"float32"``; by default float32 for guides or models that are modules with float32
        parameters, else float64.
    backend
        What takes the steps. ``"native"``: compiled code. ``"python"``: a recorded graph. ``"pyro"``: Pyro itself.
        ``"auto"``: the first of them that the problem bears and that pays for so many steps. Where one asked for
        cannot be had, the next takes its place, and ``fit.notes`` says why.
    """

    method: ClassVar[str] = "vi"

    guide: str | Callable[..., Any] = "normal"
    elbo: str | ELBO | None = None
    num_steps: int | None = None
    optimizer: Callable[..., torch.optim.Optimizer] | PyroOptim = torch.optim.Adam
    lr: float = 0.02
    lr_schedule: Callable[[torch.optim.Optimizer], Any] | None = None
    clip_norm: float | None = None
    num_particles: int = 1
    num_samples: int = 1000
    num_chains: int = 4
    dtype: str | None = None
    backend: str = "auto"

    def __post_init__(self) -> None:
        for name, least in (("num_particles", 1), ("num_samples", 4), ("num_chains", 1)):
            check_count(name, getattr(self, name), least=least)
        if self.num_steps is not None:
            check_count("num_steps", self.num_steps, least=1)
        elif self.lr_schedule is not None:
            raise InputError("lr_schedule: needs num_steps; without it the learning rate is lowered at plateaus.")
        for name in ("lr", "clip_norm"):
            value = getattr(self, name)
            if value is not None:
                check_number(name, value, above=0.0)
        if self.dtype is not None and self.dtype not in DTYPES:
            raise InputError(f"dtype: expected one of {', '.join(DTYPES)}, got {self.dtype!r}.")
        if self.backend not in BACKENDS:
            raise InputError(f"backend: expected one of {', '.join(BACKENDS)}, got {self.backend!r}.")
        self._stepper()

    __repr__ = short_repr

    def floating_dtype(self, model: Any) -> torch.dtype:
        """Give float32 for modules with float32 parameters, else float64, unless ``dtype`` says otherwise."""
        if self.dtype is not None:
            return DTYPES[self.dtype]
        owners = [getattr(f, "__self__", f) for f in (self.guide, model)]
        params = [p for m in owners if isinstance(m, torch.nn.Module) for p in m.parameters()]
        return torch.float32 if any(p.dtype == torch.float32 for p in params) else torch.float64

    def run(self, problem: Problem) -> Run:
        """Optimise and draw; called by `inference.fit.fit`."""
        begin = time.perf_counter()
        sites, guide = problem.sites, self.guide
        density = _density(sites) if isinstance(guide, str) and not sites.params else None
        compilation = self._compile(density)
        guide = make_guide(guide, sites, density=density, seed=problem.seed)
        trace = check_guide(guide, sites)
        loss = make_elbo(self.elbo, sites, trace, num_particles=self.num_particles)
        model = sites.enumerated if sites.discrete and not samples_discrete(trace, sites) else sites.function
        setup = time.perf_counter() - begin - compilation
        begin = time.perf_counter()
        steps, reason = choose_steps(
            self.backend, loss, model, guide, sites.data, self._stepper(), num_steps=self.num_steps
        )
        compilation += time.perf_counter() - begin
        begin = time.perf_counter()
        loop = Loop(steps, lambda: first_nonfinite(model, guide, sites.data), num_steps=self.num_steps)
        status = loop.optimise()
        optimisation = time.perf_counter() - begin
        begin = time.perf_counter()
        if density is None:
            density = _density(sites)
            compilation += self._compile(density)
            begin = time.perf_counter()
        drawn = self._draw(guide, sites, density, seed=problem.seed)
        return Run(
            draws=drawn.draws,
            stats=drawn.stats,
            history={"loss": np.array(loop.losses), "gradient_norm": np.array(loop.gradient_norms)},
            status=self._confirmed(status, density, drawn, max_unused_gain(loss)),
            seconds={
                "setup": setup,
                "compile": compilation,
                "optimisation": optimisation,
                "sampling": time.perf_counter() - begin,
            },
            notes=tuple(dict.fromkeys([*drawn.notes, *([reason] if reason and self.backend != "auto" else [])])),
            state={
                **drawn.state,
                "num_gradients": len(loop.losses) * self.num_particles,
                "backend": f"{type(loss).__name__}, {steps.name}{f' ({reason})' if reason else ''}",
                "guide": guide,
            },
        )

    def _compile(self, density: Density | None) -> float:
        """Compile the density where that pays; return the seconds that it took."""
        begin = time.perf_counter()
        if density is not None and self.backend in ("auto", "native"):
            density.compile(TYPICAL_GRADIENTS if self.backend == "auto" else np.inf)
        return time.perf_counter() - begin

    def _stepper(self) -> TorchStepper | PyroStepper:
        return make_stepper(self.optimizer, lr=self.lr, schedule=self.lr_schedule, clip_norm=self.clip_norm)

    def _confirmed(self, status: Status, density: Density | None, drawn: "_Drawn", limit: float) -> Status:
        """Doubt a plateau of the loss from which the draws could be moved for a clear gain."""
        # Laplace does not maximise the ELBO.
        if not status.ok or self.guide == "laplace" or not np.isfinite(drawn.state.get("elbo", np.nan)):
            return status
        points = drawn.state["unconstrained"].reshape(-1, density.dim)[:GAIN_DRAWS]
        gain = unused_gain(points, density.grad(points)[1])
        if gain <= limit:
            return status
        return Status(
            "budget_spent",
            f"The loss has stopped improving, but shifting and rescaling the draws alone would gain {gain:.1f} nats: "
            "the steps are too small for the scale of the parameters, or the guide is too rigid. Raise lr, rescale the "
            "data, or use another guide.",
        )

    def _draw(self, guide: Callable, sites: Sites, density: Density | None, *, seed: int) -> "_Drawn":
        """Draw from the fitted guide."""
        shape = (self.num_chains, self.num_samples)
        notes = [density.reason] if density is not None and density.reason else []
        state: dict[str, Any] = {}
        if self.guide == "laplace":
            draws, points, stats = _laplace_draws(guide, sites, density, shape, seed)
        else:
            draws, log_q = draw_guide(guide, sites, shape[0] * shape[1])
            if density is None:
                points, stats = None, {}
                notes.append("no log weights: the model has no flat log density (subsampled plates or integer sites)")
            else:
                points, stats, remark = unconstrained_draws(density, draws, log_q)
                notes += [remark] if remark else []
        if points is not None:
            state |= {"unconstrained": points.reshape(*shape, -1), "labels": density.labels}
        if "log_weight" in stats:
            bound, error = mean_and_error(stats["log_weight"])
            state |= {"elbo": bound, "elbo_se": error}
        return _Drawn(
            draws={name: value.reshape(*shape, *value.shape[1:]) for name, value in draws.items()},
            stats={name: value.reshape(shape) for name, value in stats.items()},
            state=state,
            notes=tuple(notes),
        )


@dataclass(frozen=True, eq=False)
class _Drawn:
    """Draws from a fitted guide; the fields of `Run` of the same names."""

    draws: dict[str, np.ndarray]
    stats: dict[str, np.ndarray]
    state: dict[str, Any]
    notes: tuple[str, ...]


def _density(sites: Sites) -> Density | None:
    """Give the flat density, with any pyro.param of the model held at its fitted value; None where there is none."""
    if sites.unenumerable or sites.subsampled or not sites.latent:
        return None
    return Density(sites, hold_params=True)


def _laplace_draws(guide: Any, sites: Sites, density: Density | None, shape: tuple[int, int], seed: int) -> tuple:
    """Draw from the Gaussian with the curvature of the (marginal) density at the mode that the guide has found."""
    if density is None:
        raise InputError("guide='laplace': needs a flat log density; the model has subsampled plates or integer sites.")
    mode, _ = draw_guide(guide, sites, 1)
    point, _ = density.unconstrain(mode)
    q = laplace(density.grad, point[0], full_rank=True)
    if q is None:
        raise InputError(
            "guide='laplace': the curvature at the mode is not positive definite, so there is no Laplace "
            "approximation; the mode may lie at a boundary or at infinity. Use guide='normal' or NUTS."
        )
    z = np.random.default_rng(seed).standard_normal((shape[0] * shape[1], density.dim))
    return gaussian_draws(density, q, z)
