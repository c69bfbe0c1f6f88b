"""Stochastic variational inference: Pyro's ELBOs, any guide, any optimiser."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyro
import torch
from pyro import poutine
from pyro.infer import ELBO
from pyro.optim import PyroOptim

from inference.density import Density
from inference.elbo import make_elbo
from inference.errors import InputError
from inference.fit import Problem, Run, Status, short_repr
from inference.gaussian import gaussian_draws, laplace, mean_and_error, unused_gain
from inference.guides import check_guide, draw_guide, make_guide, samples_discrete, unconstrained_draws
from inference.nuts import check_count, check_number
from inference.optimise import PyroStepper, TorchStepper, make_stepper
from inference.progress import bar
from inference.sites import Sites
from inference.stopping import Stages, improvement, plateaued

DTYPES = {"float32": torch.float32, "float64": torch.float64}
# Steps after which a run without num_steps gives up waiting for a plateau.
MAX_STEPS = 50_000
# A plateau of the loss is believed only if shifting and rescaling the draws, estimated from this many, would not gain
# more nats than this: KL 0.5 is the distance of a mean that is off by one standard deviation.
MAX_UNUSED_GAIN, GAIN_DRAWS = 0.5, 1000


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
        make_stepper(self.optimizer, lr=self.lr, schedule=self.lr_schedule, clip_norm=self.clip_norm)

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
        guide = make_guide(guide, sites, density=density, seed=problem.seed)
        discrete_in_guide = samples_discrete(check_guide(guide, sites), sites)
        loss = make_elbo(self.elbo, sites, num_particles=self.num_particles, discrete_in_guide=discrete_in_guide)
        model = sites.enumerated if sites.discrete and not discrete_in_guide else sites.function
        setup = time.perf_counter() - begin
        begin = time.perf_counter()
        loop = _Loop(self, loss, model, guide, sites.data)
        status = loop.optimise()
        optimisation = time.perf_counter() - begin
        begin = time.perf_counter()
        density = density or _density(sites)
        drawn = self._draw(guide, sites, density, seed=problem.seed)
        return Run(
            draws=drawn.draws,
            stats=drawn.stats,
            history={"loss": np.array(loop.losses), "gradient_norm": np.array(loop.gradient_norms)},
            status=self._confirmed(status, density, drawn),
            seconds={"setup": setup, "optimisation": optimisation, "sampling": time.perf_counter() - begin},
            notes=drawn.notes,
            state={
                **drawn.state,
                "num_gradients": len(loop.losses) * self.num_particles,
                "backend": f"{type(loss).__name__}, eager Pyro",
                "guide": guide,
            },
        )

    def _confirmed(self, status: Status, density: Density | None, drawn: "_Drawn") -> Status:
        """Doubt a plateau of the loss from which the draws could be moved for a clear gain."""
        # Laplace does not maximise the ELBO.
        if not status.ok or self.guide == "laplace" or not np.isfinite(drawn.state.get("elbo", np.nan)):
            return status
        points = drawn.state["unconstrained"].reshape(-1, density.dim)[:GAIN_DRAWS]
        gain = unused_gain(points, density.grad(points)[1])
        if gain <= MAX_UNUSED_GAIN:
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


class _Loop:
    """The optimisation: steps, the history, and the plateau rule."""

    def __init__(self, engine: SVI, loss: ELBO, model: Callable, guide: Callable, data: Mapping[str, Any]) -> None:
        self.engine, self.loss, self.model, self.guide, self.data = engine, loss, model, guide, data
        self.stepper: TorchStepper | PyroStepper = make_stepper(
            engine.optimizer, lr=engine.lr, schedule=engine.lr_schedule, clip_norm=engine.clip_norm
        )
        self.losses: list[float] = []
        self.gradient_norms: list[float] = []
        self.average = _Average()

    def optimise(self) -> Status:
        engine, stages = self.engine, Stages()
        total = engine.num_steps or MAX_STEPS
        with bar(desc="SVI", total=engine.num_steps) as shown:
            for step in range(total):
                if not self._step():
                    return self._diverged(step)
                shown.update()
                if step % 50 == 0:
                    shown.set_postfix(loss=f"{self.losses[-1]:.2f}")
                if engine.num_steps is None:
                    if stages.last:
                        self.average.add(self._params())
                    if stages.step(self.losses[-1]) and isinstance(self.stepper, TorchStepper):
                        self.stepper.shrink(Stages.SHRINK)
                    if stages.finished:
                        self.average.apply()
                        return Status("converged", f"Converged in {step + 1} steps: the loss has stopped improving.")
        return self._budget_spent()

    def _step(self) -> bool:
        """Take a step; return False, and leave the parameters as they are, if the loss or a gradient is not finite."""
        # Validated once, when the model was read; Pyro would refuse masked values and moving supports at each step.
        with pyro.validation_enabled(False), poutine.trace(param_only=True) as capture:
            loss = self.loss.loss_and_grads(self.model, self.guide, **self.data)
        params = [site["value"].unconstrained() for site in capture.trace.nodes.values()]
        params = list({id(p): p for p in params}.values())
        finite = np.isfinite(loss) and all(p.grad is None or torch.isfinite(p.grad).all() for p in params)
        if finite:
            self.losses.append(float(loss))
            self.gradient_norms.append(self.stepper.step(params))
        return bool(finite)

    @staticmethod
    def _params() -> dict[str, torch.Tensor]:
        return dict(pyro.get_param_store().named_parameters())

    def _diverged(self, step: int) -> Status:
        site, value = _first_nonfinite(self.model, self.guide, self.data)
        if step == 0:
            raise InputError(
                f"site '{site}': the loss is not finite at the first step (value {value}); check the start of the "
                "guide and the scale of the data."
            )
        return Status(
            "diverged",
            f"Diverged at step {step + 1}: the loss or its gradient is not finite (site '{site}', value {value}); "
            "draws are from the last finite step. Lower lr, set clip_norm, or raise num_particles.",
        )

    def _budget_spent(self) -> Status:
        window = max(1, min(len(self.losses) // 4, 500))
        if window > 1 and plateaued(self.losses, window):
            return Status("converged", f"Ran {len(self.losses)} steps; the loss has stopped improving.")
        gain = improvement(self.losses, window)[0] if window > 1 else float("nan")
        return Status(
            "budget_spent",
            f"Ran {len(self.losses)} steps and is still improving (by {gain:.2g} nats over the last {window}); raise "
            "num_steps, or leave it out to stop at convergence.",
        )


class _Average:
    """The mean of parameters, unconstrained, over steps."""

    def __init__(self) -> None:
        self.count = 0
        self.means: dict[str, torch.Tensor] = {}
        self.params: dict[str, torch.Tensor] = {}

    def add(self, params: dict[str, torch.Tensor]) -> None:
        self.count += 1
        self.params = params
        for name, p in params.items():
            mean = self.means.setdefault(name, torch.zeros_like(p))
            mean += (p.detach() - mean) / self.count

    def apply(self) -> None:
        for name, p in self.params.items():
            p.data.copy_(self.means[name])


def _first_nonfinite(model: Callable, guide: Callable, data: Mapping[str, Any]) -> tuple[str, Any]:
    """Name the first parameter or site that is not finite, with its value."""
    for name, p in pyro.get_param_store().items():
        if not torch.isfinite(p).all():
            return name, p.flatten()[:3].tolist()
    with torch.no_grad(), pyro.validation_enabled(False):
        guide_trace = poutine.trace(guide).get_trace(**data)
        model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(**data)
        for trace in (guide_trace, model_trace):
            trace.compute_log_prob()
            for name, node in trace.nodes.items():
                if node["type"] == "sample" and not torch.isfinite(node["log_prob"]).all():
                    return name, torch.as_tensor(node["value"]).flatten()[:3].tolist()
    return "unknown", "finite when run again"


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
