"""Optimisers for SVI: any of torch's or Pyro's behind one small interface."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from pyro.optim import PyroOptim
from pyro.optim.lr_scheduler import PyroLRScheduler

from inference.errors import InputError

Factory = Callable[..., torch.optim.Optimizer]


class TorchStepper:
    """One torch optimiser over all parameters, with gradient clipping by total norm and a learning-rate schedule.

    Pyro makes one optimiser per parameter, so that a gradient norm would be clipped parameter by parameter.
    """

    def __init__(self, factory: Factory, *, lr: float, schedule: Callable | None, clip_norm: float | None) -> None:
        self.factory, self.lr, self.schedule, self.clip_norm = factory, lr, schedule, clip_norm
        self.optimizer: torch.optim.Optimizer | None = None
        self.scheduler: Any = None
        self.known: set[torch.Tensor] = set()

    def step(self, params: Iterable[torch.Tensor]) -> float:
        """Take one step; return the gradient norm before clipping."""
        params = list(params)
        new = [p for p in params if p not in self.known]
        if self.optimizer is None:
            self.optimizer = self.factory(new, lr=self.lr)
            self.scheduler = self.schedule(self.optimizer) if self.schedule else None
        elif new:
            self.optimizer.add_param_group({"params": new, "lr": self.optimizer.param_groups[0]["lr"]})
        self.known.update(new)
        norm = _norm(params)
        if self.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(params, self.clip_norm)
        self.optimizer.step()
        if self.scheduler is not None:
            self.scheduler.step()
        self.optimizer.zero_grad()
        return norm

    def shrink(self, factor: float) -> None:
        """Multiply every learning rate."""
        for group in self.optimizer.param_groups if self.optimizer else []:
            group["lr"] *= factor


class PyroStepper:
    """A user's Pyro optimiser. `inference.fit.fit` has copied it, so that the caller's keeps its state."""

    def __init__(self, optimizer: PyroOptim) -> None:
        self.optimizer = optimizer

    def step(self, params: Iterable[torch.Tensor]) -> float:
        """Take one step; return the gradient norm before clipping."""
        params = list(params)
        norm = _norm(params)
        self.optimizer(params)
        if isinstance(self.optimizer, PyroLRScheduler):
            self.optimizer.step()
        for p in params:
            p.grad = None
        return norm


def make_stepper(
    optimizer: Factory | PyroOptim, *, lr: float, schedule: Callable | None, clip_norm: float | None
) -> TorchStepper | PyroStepper:
    """Wrap a torch optimiser class (or a partial of one) or a Pyro optimiser.

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
    if not callable(optimizer) or isinstance(optimizer, torch.optim.Optimizer):
        raise InputError(
            f"optimizer: expected a torch optimiser class such as torch.optim.Adam (or functools.partial of one), or a "
            f"pyro.optim object, got {repr(optimizer) if isinstance(optimizer, str) else type(optimizer).__name__}."
        )
    return TorchStepper(optimizer, lr=lr, schedule=schedule, clip_norm=clip_norm)


def _norm(params: list[torch.Tensor]) -> float:
    gradients = [p.grad for p in params if p.grad is not None]
    return float(torch.stack([g.norm() for g in gradients]).norm()) if gradients else 0.0
