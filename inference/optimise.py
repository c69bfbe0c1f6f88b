"""Optimisers for SVI: any of torch's or Pyro's behind one small interface."""

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from pyro.optim import PyroOptim
from pyro.optim.clipped_adam import ClippedAdam
from pyro.optim.lr_scheduler import PyroLRScheduler
from torch.optim.lr_scheduler import LambdaLR

from inference.dowg import DoWG
from inference.errors import InputError

Factory = Callable[..., torch.optim.Optimizer]
OPTIMISERS: dict[str, Factory] = {"adam": torch.optim.Adam, "clipped_adam": ClippedAdam, "dowg": DoWG}
# Deterministic, on fixed draws; see `inference.fixed_draws`.
LBFGS = "lbfgs"


class TorchStepper:
    """One torch optimiser over all parameters, with gradient clipping by total norm and a learning-rate schedule.

    Pyro makes one optimiser per parameter, so that a gradient norm would be clipped parameter by parameter.
    """

    def __init__(self, factory: Factory, *, lr: float, schedule: Callable | None, clip_norm: float | None) -> None:
        self.factory, self.lr, self.schedule, self.clip_norm = factory, lr, schedule, clip_norm
        self.each_step = True  # whether the schedule moves at every step
        self.fuse = False  # whether a plain Adam moves all parameters in one operation; gradients must be contiguous
        self.optimizer: torch.optim.Optimizer | None = None
        self.scheduler: Any = None
        self.known: set[torch.Tensor] = set()

    def prepare(self, params: Iterable[torch.Tensor]) -> None:
        """Make the optimiser, or tell it of parameters that are new."""
        new = [p for p in params if p not in self.known]
        if self.optimizer is None:
            # torch reads other memory than that of the numbers where they are not contiguous, without a word
            fuse = self.fuse and all(p.is_contiguous() for p in new)
            self.optimizer = (fused(self.factory) if fuse else self.factory)(new, lr=self.lr)
            self.scheduler = self.schedule(self.optimizer) if self.schedule else None
        elif new:
            self.optimizer.add_param_group({"params": new, "lr": self.optimizer.param_groups[0]["lr"]})
        self.known.update(new)

    def step(self, params: Iterable[torch.Tensor], norm: float | None = None) -> float:
        """Take one step; return the gradient norm before clipping, which is computed unless given."""
        params = list(params)
        self.prepare(params)
        norm = gradient_norm(params) if norm is None else norm
        keep = 1.0 if self.clip_norm is None else self.clip_norm / (norm + 1e-6)  # torch's guard against a norm of zero
        if keep < 1:
            for p in params:
                if p.grad is not None:  # not in place: recorded gradients may share their numbers
                    p.grad = p.grad * keep
        self.optimizer.step()
        if self.scheduler is not None and self.each_step:
            self.scheduler.step()
        self.optimizer.zero_grad()
        return norm

    def shrink(self, factor: float) -> None:
        """Multiply every learning rate."""
        for group in self.optimizer.param_groups if self.optimizer else []:
            group["lr"] *= factor

    def adam(self) -> "AdamRates | None":
        """Give what a loop of its own needs to do as this one does; None unless it is a plain Adam."""
        factory, options = self.factory, {}
        while isinstance(factory, partial) and not factory.args:
            factory, options = factory.func, {**factory.keywords, **options}
        if factory is not torch.optim.Adam:
            return None
        return AdamRates.of({**options, "lr": self.lr}, schedule=self.schedule, clip_norm=self.clip_norm)


class PyroStepper:
    """A user's Pyro optimiser. `inference.fit.fit` has copied it, so that the caller's keeps its state."""

    def __init__(self, optimizer: PyroOptim) -> None:
        self.optimizer = optimizer

    def step(self, params: Iterable[torch.Tensor], norm: float | None = None) -> float:
        """Take one step; return the gradient norm before clipping, which is computed unless given."""
        params = list(params)
        norm = gradient_norm(params) if norm is None else norm
        self.optimizer(params)
        if isinstance(self.optimizer, PyroLRScheduler):
            self.optimizer.step()
        for p in params:
            p.grad = None
        return norm

    def shrink(self, factor: float) -> None:
        """Do nothing: a Pyro optimiser sets its own learning rates."""

    def adam(self) -> "AdamRates | None":
        """Give what a loop of its own needs to do as this one does; None unless it is a plain, unused Adam."""
        own = self.optimizer
        plain = type(own) is PyroOptim and own.pt_optim_constructor is torch.optim.Adam and not own.pt_clip_args
        if not plain or not isinstance(own.pt_optim_args, dict) or own.optim_objs or own._state_waiting_to_be_consumed:
            return None
        return AdamRates.of(own.pt_optim_args, schedule=None, clip_norm=None, shrinks=False)


class AdamRates:
    """The settings of a ``torch.optim.Adam``, its rates step by step, for a loop that does the arithmetic itself.

    Attributes
    ----------
    eps, clip_norm
        As in torch; None for no clipping.
    """

    # Adam's options beside lr, betas and eps, at the values that leave its rule as published (Kingma & Ba 2015).
    PLAIN: ClassVar[dict[str, bool | int]] = {
        "weight_decay": 0,
        "amsgrad": False,
        "maximize": False,
        "capturable": False,
        "differentiable": False,
    }

    def __init__(
        self, optimizer: torch.optim.Adam, *, schedule: Callable | None, clip_norm: float | None, shrinks: bool
    ) -> None:
        self._optimizer, self._shrinks = optimizer, shrinks
        self._scheduler = schedule(optimizer) if schedule else None
        self.eps, self.clip_norm = optimizer.param_groups[0]["eps"], clip_norm

    @classmethod
    def of(
        cls, options: dict[str, Any], *, schedule: Callable | None, clip_norm: float | None, shrinks: bool = True
    ) -> "AdamRates | None":
        """Read the options of an Adam; None where they change its rule."""
        # A parameter without gradient: steps leave it alone, and the schedule has an optimiser to act on.
        optimizer = torch.optim.Adam([torch.zeros(1, requires_grad=True)], **options)
        if any(optimizer.param_groups[0][name] != value for name, value in cls.PLAIN.items()):
            return None
        return cls(optimizer, schedule=schedule, clip_norm=clip_norm, shrinks=shrinks)

    def take(self, num: int) -> np.ndarray:
        """Learning rate, beta 1 and beta 2 of the next ``num`` steps, (num, 3)."""
        group = self._optimizer.param_groups[0]
        if self._scheduler is None:
            return np.tile([float(group["lr"]), *group["betas"]], (num, 1))
        rows = np.empty((num, 3))
        for row in rows:
            row[:] = float(group["lr"]), *group["betas"]
            self._optimizer.step()
            self._scheduler.step()
        return rows

    def shrink(self, factor: float) -> None:
        """Multiply the learning rate."""
        if self._shrinks:
            self._optimizer.param_groups[0]["lr"] *= factor


def fused(factory: Factory) -> Factory:
    """Give a torch Adam that moves all parameters in one operation: a third of the time of one after another."""
    inner, options = factory, {}
    while isinstance(inner, partial) and not inner.args:
        inner, options = inner.func, {**inner.keywords, **options}
    chosen = {"fused", "foreach", "capturable", "differentiable"} & set(options)
    if inner not in (torch.optim.Adam, torch.optim.AdamW) or chosen:
        return factory
    return partial(inner, **options, fused=True)


def make_stepper(
    optimizer: str | Factory | PyroOptim, *, lr: float, schedule: Callable | None, clip_norm: float | None
) -> TorchStepper | PyroStepper:
    """Wrap an optimiser by name, a torch optimiser class (or a partial of one) or a Pyro optimiser.

    Raises
    ------
    InputError
        Neither of them, or options that a Pyro optimiser carries itself.
    """
    if isinstance(optimizer, PyroOptim):
        if schedule is not None or clip_norm is not None:
            raise InputError(
                "optimizer: a Pyro optimiser carries its own schedule and clipping; drop lr_schedule and clip_norm, or "
                "pass a torch optimiser class."
            )
        return PyroStepper(optimizer)
    optimizer = OPTIMISERS.get(optimizer, optimizer) if isinstance(optimizer, str) else optimizer
    if not callable(optimizer) or isinstance(optimizer, torch.optim.Optimizer):
        got = repr(optimizer) if isinstance(optimizer, str) else type(optimizer).__name__
        raise InputError(
            f"optimizer: expected one of {', '.join([*OPTIMISERS, LBFGS])}, a torch optimiser class such as "
            f"torch.optim.Adam (or functools.partial of one), or a pyro.optim object, got {got}."
        )
    return TorchStepper(optimizer, lr=lr, schedule=schedule, clip_norm=clip_norm)


def cosine(num_steps: int) -> Callable[[torch.optim.Optimizer], LambdaLR]:
    """Give a schedule by step: rates fall to zero along half a cosine (Loshchilov & Hutter 2017, equation 5)."""
    return partial(LambdaLR, lr_lambda=lambda step: 0.5 + 0.5 * math.cos(math.pi * min(1.0, step / num_steps)))


def gradient_norm(params: Iterable[torch.Tensor]) -> float:
    """Norm of all gradients together; not finite where one of them is not."""
    gradients = [p.grad for p in params if p.grad is not None]
    return float(torch.stack(torch._foreach_norm(gradients)).norm()) if gradients else 0.0
