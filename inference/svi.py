"""Stochastic variational inference: objectives, guides and optimisers by name, or any of Pyro's."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from pyro.infer import ELBO
from pyro.optim import PyroOptim

from inference.density import Density
from inference.elbo import make_elbo, max_unused_gain
from inference.errors import InputError
from inference.fit import Problem, Run, short_repr
from inference.fixed_draws import FixedDraws, record_fixed
from inference.flow_guides import FLOWS
from inference.gaussian_iterates import GaussianIterates, is_gaussian
from inference.guides import check_guide, make_guide, samples_discrete
from inference.isolation import keep_as_trained
from inference.nuts import check_count, check_number
from inference.optimise import LBFGS, PyroStepper, TorchStepper, cosine, make_stepper
from inference.rabvi import Rabvi, WatchGaussian, WatchParameters
from inference.sites import Sites
from inference.stopping import Rule, Stages
from inference.svi_backends import BACKENDS, choose_steps
from inference.svi_draws import confirmed, draw
from inference.svi_loop import Loop, Steps, first_nonfinite
from inference.svi_restarts import best_of
from inference.training import train
from inference.training_options import check_options

_COUNTS = ("num_steps", "num_particles", "batch_size", "num_epochs", "validate_every", "patience", "checkpoint_every")
DTYPES = {"float32": torch.float32, "float64": torch.float64}
# Finding a start for a guide by name takes 150 gradients of the density for eight schools and 1000 for 90 groups;
# weighing and checking the draws, in batches, takes as long as about 500.
TYPICAL_GRADIENTS = 1000
STOPPING = ("plateau", "rabvi")
LEARNING_RATE, DOWG_RATE = 0.02, 1.0
# Networks trained by Adam: the rate of Kingma & Ba (2015) and of the VAE literature.
NETWORK_RATE = 0.001
# Flows need more draws per step and smaller steps: on a banana and on eight schools 16 draws at 0.002 ended 0.02 nats
# below the best of a grid, 4 draws at 0.001 up to 0.15; at 0.01 the steps diverge.
FLOW_RATE, FLOW_PARTICLES = 0.002, 16
# RABVI lowers the rate from a large one, where iterates forget fast, and needs draws enough that they stay near the
# optimum there: with one draw eight schools took 15 000 to 32 000 steps and ended 0.1 sds off, with 10 draws 0.03.
RABVI_RATE, RABVI_PARTICLES = 0.1, 10


@dataclass(frozen=True, kw_only=True, repr=False)
class SVI:
    """Stochastic variational inference with a guide (Hoffman et al. 2013; Ranganath, Gerrish & Blei 2014).

    Parameters
    ----------
    guide
        A name (``delta``, ``normal``, ``diagonal_normal``, ``multivariate_normal``, ``low_rank``, ``laplace``,
        ``structured``, and the flows ``iaf``, ``realnvp``, ``spline``, which start at a fitted Gaussian), or any guide:
        a function with ``pyro.param``, a ``PyroModule``, an ``AutoGuide``. It takes the model's arguments. Modules are
        copied: the caller's is not trained; the trained copy is ``fit.state["guide"]``.
    elbo
        The objective: a name or a ``pyro.infer.ELBO`` object. By default ``trace``, or ``trace_enum`` where the model
        has discrete sites to sum out, and ``stl`` for flows.

        - ``trace``, ``trace_mean_field``, ``trace_enum``, ``trace_graph``: the ELBO, by Pyro's estimators.
        - ``stl``: the ELBO by the pathwise gradient alone, without noise at the optimum (Roeder et al. 2017).
        - ``iw``: the importance-weighted bound with doubly reparameterised gradients (Tucker et al. 2019).
        - ``iwae``: the same bound by its plain gradient (Burda et al. 2016), at half the price of a draw.
        - ``renyi``: the same bound by Pyro's estimator; ``tmc``: tensor Monte Carlo (Aitchison 2019).
        - ``tail_adaptive``: a divergence that covers mass (Wang et al. 2018).
        - ``rws``: reweighted wake-sleep (Bornschein & Bengio 2015), also for guides of discrete sites.
        - ``energy``: energy distance of the predictive, for likelihoods that can only be simulated; ``mmd``: expected
          log likelihood and a discrepancy to the prior. Neither is a bound, nor its optimum the posterior.
    num_steps
        Optimiser steps. None: stop by itself, as ``stopping`` says.
    stopping
        The rule that lowers the learning rate and stops, without ``num_steps``. Both end with averaged iterates.

        - ``plateau``, the default: three stages, each ending when a window of losses is no better than the one before
          beyond two standard errors; then the step shrinks, and the window grows.
        - ``rabvi``: levels, each ending when R-hat finds the iterates stationary and their average is known well
          enough; the rate is halved until that is expected to gain less than it costs (Welandawe et al. 2022). For
          Gaussian guides by name errors are in sds and gains are symmetrised KLs in closed form; for other guides
          errors are not limited, and gains are those of the mean loss. ``fit.state["levels"]`` has the levels.
    optimizer
        ``adam``, ``clipped_adam``, ``dowg`` (no learning rate to choose: Khaled et al. 2023), ``lbfgs`` (deterministic,
        on fixed draws that double until they are not over-fitted); a torch optimiser class, ``functools.partial`` of
        one, or a ``pyro.optim`` object (whose own learning rate then wins over ``lr``).
    lr
        Learning rate; by default 0.02, 0.001 for a guide of one's own trained by mini-batches, 0.1 with
        ``stopping="rabvi"``, which lowers it, 0.002 for flows, and 1 for ``dowg``, where it multiplies the step.
    lr_schedule
        ``"cosine"``: falls to zero at the last step along half a cosine (Loshchilov & Hutter 2017); or a function that
        takes the torch optimiser and returns a ``torch.optim.lr_scheduler``, stepped after every step. Needs
        ``num_steps`` or ``num_epochs``.
    lr_schedule_by
        ``"step"``, or ``"epoch"``: when it is stepped. ``ReduceLROnPlateau`` by epoch sees the negative bound per row.
    clip_norm
        Clip the total gradient norm to this.
    num_particles
        Draws per step for the objective; by default 1, 10 with ``stopping="rabvi"``, and 16 for flows.
    num_restarts
        Fit so often, from starts and with random numbers of their own, and keep the best bound. ``fit.state["starts"]``
        has the bounds ``elbo``, whether those near the best ``agree``, and ``rhat``, the largest R-hat over restarts.
    num_samples, num_chains
        Independent draws from the fitted guide are returned in this shape, that of an MCMC run beside it.
    dtype
        ``"float64"`` or ``"float32"``; by default float32 for guides or models that are modules with float32
        parameters, else float64.
    backend
        What takes the steps. ``"native"``: compiled code. ``"python"``: a recorded graph. ``"pyro"``: Pyro itself.
        ``"auto"``: the first of them that the problem bears and that pays for so many steps. Where one asked for
        cannot be had, the next takes its place, and ``fit.notes`` says why.
    batch_size
        Train by mini-batches of so many rows; see ``docs/training.md``. The arguments whose leading dim is the size of
        the plate of rows are cut, and log densities inside this plate count N / rows times, so that the loss is that
        of all data. The options below are for such training only.
    num_epochs
        Passes over the rows, each in an order of its own, by the seed of the fit. Or give ``num_steps``.
    batch_plate
        Name of the plate of rows; by default the largest whose size is the leading dim of an argument.
    validation
        Rows held out: a fraction, or a mapping of data. Their ELBO per row is kept in ``history["validation_elbo"]``
        (at ``history["validation_step"]``), and the parameters of its best value are those of the fit.
    validate_every
        Steps from one evaluation to the next; by default an epoch.
    patience
        Stop after so many evaluations without improvement.
    kl_weight
        Weight of the latents' log densities, prior less guide: a number (beta-VAE: Higgins et al. 2017), or a function
        of the number of steps taken (annealing: Bowman et al. 2016).
    average
        End with, and evaluate, moving averages of the parameters with this decay per step, such as 0.999.
    device
        ``"auto"`` (a GPU where torch sees one), ``"cpu"``, ``"cuda"``: where training runs.
    mixed_precision
        Multiply matrices in bfloat16; log densities stay in float32.
    checkpoint, checkpoint_every
        A folder for checkpoints, one every so many steps (by default an epoch); the newest three are kept.
    resume
        Go on from the newest checkpoint of the folder, if there is one, to the same numbers as without the break.

    Examples
    --------
    >>> fit(model, {"x": x}, SVI(guide="multivariate_normal", elbo="stl", num_restarts=3), seed=1).status.message
    >>> fit(vae, {"x": images}, SVI(guide=encoder, batch_size=256, num_epochs=50, validation=0.1, patience=5))
    """

    method: ClassVar[str] = "vi"

    guide: str | Callable[..., Any] = "normal"
    elbo: str | ELBO | None = None
    num_steps: int | None = None
    stopping: str | None = None
    optimizer: str | Callable[..., torch.optim.Optimizer] | PyroOptim = torch.optim.Adam
    lr: float | None = None
    lr_schedule: str | Callable[[torch.optim.Optimizer], Any] | None = None
    clip_norm: float | None = None
    num_particles: int | None = None
    num_restarts: int = 1
    num_samples: int = 1000
    num_chains: int = 4
    dtype: str | None = None
    backend: str = "auto"
    batch_size: int | None = None
    num_epochs: int | None = None
    batch_plate: str | None = None
    validation: float | Mapping[str, Any] | None = None
    validate_every: int | None = None
    patience: int | None = None
    lr_schedule_by: str = "step"
    kl_weight: float | Callable[[int], float] | None = None
    average: float | None = None
    device: str = "auto"
    mixed_precision: bool = False
    checkpoint: str | Path | None = None
    checkpoint_every: int | None = None
    resume: bool = False

    def __post_init__(self) -> None:
        for name, least in (("num_samples", 4), ("num_chains", 1), ("num_restarts", 1)):
            check_count(name, getattr(self, name), least=least)
        for name in _COUNTS:
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name), least=1)
        check_options(self)
        if self.num_steps is None and self.batch_size is None and self.lr_schedule is not None:
            raise InputError("lr_schedule: needs num_steps; without it the learning rate is lowered at plateaus.")
        if isinstance(self.lr_schedule, str) and (self.lr_schedule != "cosine" or self.lr_schedule_by != "step"):
            raise InputError(
                f"lr_schedule: expected 'cosine', by step, or a function that makes a scheduler of torch; got "
                f"{self.lr_schedule!r}, by {self.lr_schedule_by}."
            )
        if self.stopping is not None:
            self._check_stopping()
        for name in ("lr", "clip_norm"):
            value = getattr(self, name)
            if value is not None:
                check_number(name, value, above=0.0)
        if self.dtype is not None and self.dtype not in DTYPES:
            raise InputError(f"dtype: expected one of {', '.join(DTYPES)}, got {self.dtype!r}.")
        if self.backend not in BACKENDS:
            raise InputError(f"backend: expected one of {', '.join(BACKENDS)}, got {self.backend!r}.")
        if self._deterministic:
            given = next((n for n in ("lr", "lr_schedule", "clip_norm") if getattr(self, n) is not None), None)
            if given:
                raise InputError(f"{given}: L-BFGS finds its steps itself; drop it, or use optimizer='adam'.")
        else:
            self._stepper()

    __repr__ = short_repr

    def floating_dtype(self, model: Any) -> torch.dtype:
        """Give float32 for networks, else float64, unless ``dtype`` says otherwise.

        Networks are modules with float32 parameters, and a guide of one's own that is trained by mini-batches.
        """
        if self.dtype is not None:
            return DTYPES[self.dtype]
        if self._amortised:
            return torch.float32
        owners = [getattr(f, "__self__", f) for f in (self.guide, model)]
        params = [p for m in owners if isinstance(m, torch.nn.Module) for p in m.parameters()]
        return torch.float32 if any(p.dtype == torch.float32 for p in params) else torch.float64

    def run(self, problem: Problem) -> Run:
        """Optimise and draw; called by `inference.fit.fit`."""
        if self.batch_size is not None:
            return train(self, problem, self._stepper())
        if self.num_restarts > 1:
            return best_of(self.num_restarts, self, problem)
        return self.run_once(problem)

    def run_once(self, problem: Problem) -> Run:
        """Optimise from one start, and draw."""
        begin = time.perf_counter()
        sites, guide = problem.sites, self.guide
        density = _density(problem) if isinstance(guide, str) and not sites.params else None
        compilation = self._compile(density)
        guide = make_guide(guide, sites, density=density, seed=problem.seed)
        trace = check_guide(guide, sites)
        if isinstance(self.guide, str):
            keep_as_trained(guide)
        elbo = "stl" if self.elbo is None and self._flow else self.elbo
        loss = make_elbo(elbo, sites, trace, num_particles=self.particles)
        model = sites.enumerated if sites.discrete and not samples_discrete(trace, sites) else sites.function
        setup = time.perf_counter() - begin - compilation
        begin = time.perf_counter()
        loop, name, reason = self._loop(loss, model, guide, problem)
        compilation += time.perf_counter() - begin
        begin = time.perf_counter()
        status = loop.optimise()
        optimisation = time.perf_counter() - begin
        begin = time.perf_counter()
        if density is None:
            density = _density(problem)
            compilation += self._compile(density)
            begin = time.perf_counter()
        shape = (self.num_chains, self.num_samples)
        laplace = self.guide == "laplace"
        drawn = draw(guide, sites, density, shape, laplace_seed=problem.seed if laplace else None)
        # Laplace does not maximise the ELBO.
        limit = np.inf if laplace else max_unused_gain(loss)
        return Run(
            draws=drawn.draws,
            stats=drawn.stats,
            history={"loss": np.array(loop.losses), "gradient_norm": np.array(loop.gradient_norms)},
            status=confirmed(status, density, drawn, limit),
            seconds={
                "setup": setup,
                "compile": compilation,
                "optimisation": optimisation,
                "sampling": time.perf_counter() - begin,
            },
            notes=tuple(dict.fromkeys([*drawn.notes, *([reason] if reason and self.backend != "auto" else [])])),
            state={
                **drawn.state,
                **({"levels": loop.rule.summary()} if isinstance(getattr(loop, "rule", None), Rabvi) else {}),
                "num_gradients": getattr(loop, "num_gradients", len(loop.losses) * self.particles),
                "backend": f"{type(loss).__name__}, {name}{f' ({reason})' if reason else ''}",
                "guide": guide,
            },
        )

    def _loop(self, loss: ELBO, model: Callable, guide: Callable, problem: Problem) -> tuple[Any, str, str]:
        """Give what optimises, its name, and why it is not a faster one."""
        data = problem.sites.data
        if self._deterministic:
            recorded = record_fixed(loss, model, guide, data)
            return FixedDraws(recorded, self.num_steps, problem.seed), "L-BFGS on fixed draws", ""
        steps, reason = choose_steps(self.backend, loss, model, guide, data, self._stepper(), num_steps=self.num_steps)
        rule = self._rule(steps, guide, problem.sites) if self.num_steps is None else None
        loop = Loop(steps, lambda: first_nonfinite(loss, model, guide, data), num_steps=self.num_steps, rule=rule)
        return loop, steps.name, reason

    def _rule(self, steps: Steps, guide: Callable, sites: Sites) -> Rule:
        if self.stopping != "rabvi":
            return Stages()
        if isinstance(self.guide, str) and is_gaussian(guide) and not sites.params:
            return Rabvi(WatchGaussian(GaussianIterates(guide, steps.params)))
        return Rabvi(WatchParameters())

    def _check_stopping(self) -> None:
        if self.stopping not in STOPPING:
            raise InputError(f"stopping: expected one of {', '.join(STOPPING)} or None, got {self.stopping!r}.")
        if self.num_steps is not None:
            raise InputError("stopping: a run of num_steps steps does not stop by itself; drop one of the two.")
        if self._deterministic:
            raise InputError("stopping: L-BFGS stops at a stationary point; drop it, or use optimizer='adam'.")

    def _compile(self, density: Density | None) -> float:
        """Compile the density where that pays; return the seconds that it took."""
        begin = time.perf_counter()
        if density is not None and self.backend in ("auto", "native"):
            density.compile(TYPICAL_GRADIENTS if self.backend == "auto" else np.inf)
        return time.perf_counter() - begin

    @property
    def _amortised(self) -> bool:
        return self.batch_size is not None and not isinstance(self.guide, str)

    @property
    def _flow(self) -> bool:
        return isinstance(self.guide, str) and self.guide in FLOWS

    @property
    def _deterministic(self) -> bool:
        return isinstance(self.optimizer, str) and self.optimizer == LBFGS

    @property
    def particles(self) -> int:
        """Draws per step."""
        if self.num_particles is not None or self._deterministic:
            return self.num_particles or 1
        return FLOW_PARTICLES if self._flow else RABVI_PARTICLES if self.stopping == "rabvi" else 1

    def _schedule(self) -> Callable[[torch.optim.Optimizer], Any] | None:
        """Give the schedule; training by epochs, which knows the number of steps, replaces that of one step."""
        return cosine(self.num_steps or 1) if self.lr_schedule == "cosine" else self.lr_schedule

    def _stepper(self) -> TorchStepper | PyroStepper:
        usual = RABVI_RATE if self.stopping == "rabvi" else LEARNING_RATE
        usual = NETWORK_RATE if self._amortised else usual
        default = DOWG_RATE if self.optimizer == "dowg" else FLOW_RATE if self._flow else usual
        lr = default if self.lr is None else self.lr
        stepper = make_stepper(self.optimizer, lr=lr, schedule=self._schedule(), clip_norm=self.clip_norm)
        if isinstance(stepper, TorchStepper):
            stepper.each_step, stepper.fuse = self.lr_schedule_by == "step", self.batch_size is not None
        elif self.checkpoint is not None:
            raise InputError("checkpoint: keeps the state of torch optimisers; use one, such as torch.optim.Adam.")
        return stepper


def _density(problem: Problem) -> Density | None:
    """Give the flat density, with any pyro.param of the model held at its fitted value; None where there is none."""
    sites = problem.sites
    if sites.unenumerable or sites.subsampled or not sites.latent:
        return None
    return Density(sites, hold_params=True, propose=getattr(problem.model, "start", None))
