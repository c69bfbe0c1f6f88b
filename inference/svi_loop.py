"""The optimisation loop of SVI, over steps that are taken by eager Pyro, a recorded graph, or native code."""

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import numpy as np
import pyro
import torch
from pyro import poutine
from pyro.infer import ELBO

from inference.errors import InputError
from inference.fit import Status
from inference.optimise import PyroStepper, TorchStepper
from inference.progress import bar
from inference.stopping import BLOCK_STEPS, Rule, improvement, plateaued
from inference.svi_graph import NoiseStream, StepGraph

# Steps without num_steps before a run gives up waiting for a plateau.
MAX_STEPS = 50_000
# Steps that are taken in Python before the progress bar moves.
_STRIDE = 25
# Draws at which a value that is not finite is looked for again.
_TRIES = 20


class Taken(NamedTuple):
    """Losses and gradient norms of the steps taken, and whether loss and gradients of the next one were not finite.

    ``means``: averages (n, P) of the parameters over blocks of `BLOCK_STEPS` recorded steps, of those just completed.
    """

    losses: np.ndarray
    gradient_norms: np.ndarray
    means: np.ndarray
    failed: bool


class Steps(Protocol):
    """A way to take optimiser steps on the parameters in the store."""

    name: str

    def take(self, most: int, *, record: bool) -> Taken:
        """Take one to ``most`` steps, and stop before one whose loss or gradient is not finite.

        ``record``: give the means of the iterates.
        """
        ...

    def shrink(self, factor: float) -> None:
        """Multiply the learning rate."""
        ...

    def move(self, row: np.ndarray) -> None:
        """Move the parameters to a row (P,) as they are recorded."""
        ...

    @property
    def params(self) -> list[torch.Tensor]:
        """The leaf tensors whose numbers make a row, in its order."""
        ...


class PythonSteps:
    """Steps of a torch or Pyro optimiser; subclasses give the gradients."""

    name = ""

    def __init__(self, stepper: TorchStepper | PyroStepper) -> None:
        self.stepper = stepper
        self._blocks = _Blocks()

    def gradients(self) -> tuple[float, list[torch.Tensor]]:
        """Give the loss at the parameters in the store, and the parameters, with their gradients in ``grad``."""
        raise NotImplementedError

    def take(self, most: int, *, record: bool) -> Taken:
        """Take steps; see `Steps.take`."""
        taken: list[tuple[float, float]] = []
        means: list[np.ndarray] = []
        failed = False
        for _ in range(min(most, _STRIDE)):
            loss, params = self.gradients()
            failed = not (np.isfinite(loss) and all(p.grad is None or torch.isfinite(p.grad).all() for p in params))
            if failed:
                break
            taken.append((loss, self.stepper.step(params)))
            if record:
                means += self._blocks.add(self.params)
        return Taken(*np.array(taken).reshape(-1, 2).T, np.array(means), failed)

    def shrink(self, factor: float) -> None:
        """Multiply the learning rate."""
        self.stepper.shrink(factor)

    def move(self, row: np.ndarray) -> None:
        """Move the parameters; see `Steps.move`."""
        parts = torch.as_tensor(row).split([p.numel() for p in self.params])
        for p, part in zip(self.params, parts, strict=True):
            p.data.copy_(part.view_as(p))

    @property
    def params(self) -> list[torch.Tensor]:
        """See `Steps.params`."""
        raise NotImplementedError


class EagerSteps(PythonSteps):
    """Steps for which Pyro runs model and guide: any of them."""

    name = "eager Pyro"

    def __init__(
        self, loss: ELBO, model: Callable, guide: Callable, data: Mapping[str, Any], stepper: TorchStepper | PyroStepper
    ) -> None:
        super().__init__(stepper)
        self.loss, self.model, self.guide, self.data = loss, model, guide, data

    def gradients(self) -> tuple[float, list[torch.Tensor]]:
        """Run model and guide."""
        # Validated once, when the model was read; Pyro would refuse masked values and moving supports at each step.
        with pyro.validation_enabled(False), poutine.trace(param_only=True) as capture:
            loss = self.loss.loss_and_grads(self.model, self.guide, **self.data)
        params = [site["value"].unconstrained() for site in capture.trace.nodes.values()]
        return float(loss), list({id(p): p for p in params}.values())

    @cached_property
    def params(self) -> list[torch.Tensor]:
        """All that are in the store when a step is recorded first; what a model or guide makes later has no average."""
        return [p for _, p in pyro.get_param_store().named_parameters()]


class GraphSteps(PythonSteps):
    """Steps for which a recorded graph gives the gradients."""

    name = "recorded graph"

    def __init__(self, recorded: StepGraph, num_steps: int, stepper: TorchStepper | PyroStepper) -> None:
        super().__init__(stepper)
        self.recorded, self._noise = recorded, NoiseStream(recorded, num_steps)

    def gradients(self) -> tuple[float, list[torch.Tensor]]:
        """Run the graph on fresh noise."""
        _, noise = self._noise.take(1)
        loss, gradients = self.recorded.evaluate([tuple(part[i] for part in noise) for i in self.recorded.runs])
        for p, gradient in zip(self.recorded.params, gradients, strict=True):
            p.grad = gradient
        return loss.item(), list(self.recorded.params)

    @property
    def params(self) -> list[torch.Tensor]:
        """Those that move."""
        return list(self.recorded.params)


class Loop:
    """The optimisation: steps, their history, and a rule that stops them.

    Parameters
    ----------
    steps
        Takes them.
    first_nonfinite
        Names a site or parameter that is not finite, with its value.
    num_steps
        How many; None where the rule decides.
    rule
        Lowers the learning rate and stops; None for ``num_steps`` steps.
    """

    def __init__(
        self,
        steps: Steps,
        first_nonfinite: Callable[[], tuple[str, Any]],
        *,
        num_steps: int | None = None,
        rule: Rule | None = None,
    ) -> None:
        self.steps, self.first_nonfinite, self.num_steps, self.rule = steps, first_nonfinite, num_steps, rule
        self.losses: list[float] = []
        self.gradient_norms: list[float] = []

    def optimise(self) -> Status:
        """Take steps until the rule, or their number, ends it."""
        rule, total = self.rule, self.num_steps or MAX_STEPS
        with bar(desc="SVI", total=self.num_steps) as shown:
            while len(self.losses) < total:
                left = total - len(self.losses)
                if rule is not None:
                    left = min(left, rule.until_look)
                taken = self.steps.take(left, record=rule is not None and rule.records)
                self.losses += taken.losses.tolist()
                self.gradient_norms += taken.gradient_norms.tolist()
                if taken.failed:
                    return self._diverged()
                shown.update(len(taken.losses))
                shown.set_postfix(loss=f"{self.losses[-1]:.2f}", refresh=False)
                if rule is not None and rule.step(taken.losses.tolist(), taken.means):
                    self.steps.shrink(rule.shrink)
                    if rule.average is not None:
                        self.steps.move(rule.average)
                    if rule.finished:
                        return Status("converged", f"Converged in {len(self.losses)} steps: {rule.reason}.")
        return self._budget_spent()

    def _diverged(self) -> Status:
        site, value = self.first_nonfinite()
        if not self.losses:
            raise InputError(
                f"site '{site}': the loss is not finite at the first step (value {value}); check the start of the "
                "guide and the scale of the data."
            )
        return Status(
            "diverged",
            f"Diverged at step {len(self.losses) + 1}: the loss or its gradient is not finite (site '{site}', value "
            f"{value}); draws are from the last finite step. Lower lr, set clip_norm, or raise num_particles.",
        )

    def _budget_spent(self) -> Status:
        if self.rule is not None and self.rule.missing:
            if self.rule.average is not None:
                self.steps.move(self.rule.average)
            return Status("budget_spent", f"Ran {len(self.losses)} steps, and {self.rule.missing}.")
        window = max(1, min(len(self.losses) // 4, 500))
        if window > 1 and plateaued(self.losses, window):
            return Status("converged", f"Ran {len(self.losses)} steps; the loss has stopped improving.")
        so_far = ", too few to see whether the loss still improves"
        if window > 1:
            gain = improvement(self.losses, window)[0]
            so_far = f" and is still improving (by {gain:.2g} nats over the last {window})"
        remedy = (
            "give num_steps, more of them, or a larger lr"
            if self.num_steps is None
            else "raise num_steps, or leave it out to stop at convergence"
        )
        return Status(
            "budget_spent",
            f"Ran {len(self.losses)} steps{so_far}; {remedy}.",
        )


class _Blocks:
    """Means of the parameters, unconstrained, over blocks of steps."""

    def __init__(self) -> None:
        self.count, self.mean = 0, torch.empty(0)

    def add(self, params: list[torch.Tensor]) -> list[np.ndarray]:
        """Add an iterate; give the block's mean (P,) where it is complete."""
        row = torch.cat([p.detach().reshape(-1) for p in params])
        self.count += 1
        self.mean = row if self.count == 1 else self.mean + (row - self.mean) / self.count
        if self.count < BLOCK_STEPS:
            return []
        self.count = 0
        return [self.mean.numpy()]


def first_nonfinite(loss: ELBO, model: Callable, guide: Callable, data: Mapping[str, Any]) -> tuple[str, Any]:
    """Name the first parameter or site that is not finite, with its value, or whose gradient is not.

    The draw at which it happened is gone, so that others are tried.
    """
    for name, p in pyro.get_param_store().items():
        if not torch.isfinite(p).all():
            return name, p.flatten()[:3].tolist()
    with pyro.validation_enabled(False):
        for _ in range(_TRIES):
            found = _nonfinite_site(model, guide, data) or _nonfinite_gradient(loss, model, guide, data)
            if found:
                return found
    return "unknown", "finite when run again"


def _nonfinite_site(model: Callable, guide: Callable, data: Mapping[str, Any]) -> tuple[str, Any] | None:
    with torch.no_grad():
        guide_trace = poutine.trace(guide).get_trace(**data)
        model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(**data)
        for trace in (guide_trace, model_trace):
            trace.compute_log_prob()
            for name, node in trace.nodes.items():
                if node["type"] == "sample" and not torch.isfinite(node["log_prob"]).all():
                    return name, torch.as_tensor(node["value"]).flatten()[:3].tolist()
    return None


def _nonfinite_gradient(
    loss: ELBO, model: Callable, guide: Callable, data: Mapping[str, Any]
) -> tuple[str, Any] | None:
    params = dict(pyro.get_param_store().named_parameters())
    try:
        loss.loss_and_grads(model, guide, **data)
        for name, p in params.items():
            if p.grad is not None and not torch.isfinite(p.grad).all():
                value, gradient = (t.detach().flatten()[:3].tolist() for t in (p, p.grad))
                return name, f"{value}, unconstrained, with gradient {gradient}"
    finally:
        for p in params.values():
            p.grad = None
    return None
