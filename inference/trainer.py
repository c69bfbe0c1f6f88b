"""The loop of mini-batch training: steps, averages, validation, early stopping, checkpoints."""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyro
import torch

from inference.batch_steps import BatchSteps
from inference.batches import Batches
from inference.checkpoints import Checkpoints
from inference.errors import InputError
from inference.fit import Status
from inference.nonfinite import culprit
from inference.optimise import PyroStepper, TorchStepper, gradient_norm
from inference.progress import bar
from inference.stopping import improvement, plateaued

# Held-out rows are evaluated so many at a time, or in batches where these are larger.
_CHUNK = 1024
# Steps between two changes of the progress bar.
_STRIDE = 20
# Early in a run its average forgets faster, as t / (t + 10), so that the start is soon forgotten.
_WARM = 10


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """When what happens; `inference.svi.SVI` describes the fields."""

    num_steps: int
    kl_weight: float | Callable[[int], float] | None
    patience: int | None
    validate_every: int
    average: float | None
    checkpoint_every: int


@dataclass(eq=False)
class Record:
    """What happened so far.

    Attributes
    ----------
    losses, norms
        Per step.
    evaluations
        Steps, and bounds per held-out row after them.
    best
        The parameters of the best evaluation, and its place among them.
    average
        Moving averages of the parameters.
    """

    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    evaluations: list[tuple[int, float]] = field(default_factory=list)
    best: list[torch.Tensor] | None = None
    best_at: int = -1
    average: list[torch.Tensor] | None = None

    @property
    def step(self) -> int:
        """Steps taken."""
        return len(self.losses)

    def history(self) -> dict[str, np.ndarray]:
        """Give what `inference.fit.Fit.history` keeps."""
        kept = {"loss": np.array(self.losses), "gradient_norm": np.array(self.norms)}
        if self.evaluations:
            places, bounds = zip(*self.evaluations, strict=True)
            kept |= {"validation_step": np.array(places), "validation_elbo": np.array(bounds)}
        return kept


class Trainer:
    """Trains the parameters in the store.

    Parameters
    ----------
    steps, stepper
        Give gradients, and move parameters along them.
    batches, validation
        Rows to train on, and those held out, if any.
    schedule
        When what happens.
    checkpoints
        Where they are kept, if anywhere.
    seed
        Of the draws on held-out rows, which are the same at each evaluation.
    buffers
        Tensors of the caller's networks that are no parameters, by name.
    """

    def __init__(
        self,
        steps: BatchSteps,
        stepper: TorchStepper | PyroStepper,
        batches: Batches,
        validation: Batches | None,
        schedule: Schedule,
        *,
        checkpoints: Checkpoints | None,
        seed: int,
        buffers: dict[str, torch.Tensor],
    ) -> None:
        self.steps, self.stepper, self.batches, self.validation = steps, stepper, batches, validation
        self.schedule, self.checkpoints, self.seed, self.buffers = schedule, checkpoints, seed, buffers
        self.record = Record()
        self.where = f"{steps.name} on {steps.params[0].device}"
        self._order: list[np.ndarray] = []

    @property
    def patience_spent(self) -> bool:
        """Whether the bound on held-out rows has not improved for long enough."""
        waited = len(self.record.evaluations) - 1 - self.record.best_at
        return self.schedule.patience is not None and self.record.best_at >= 0 and waited >= self.schedule.patience

    @property
    def _last_evaluated(self) -> int:
        return self.record.evaluations[-1][0] if self.record.evaluations else 0

    def train(self) -> Status:
        """Take the steps, from the newest checkpoint if there is one; leave the best parameters in the store."""
        saved = self.checkpoints.read() if self.checkpoints else None
        if saved is not None:
            self._load(saved)
        failed = ""
        with bar(desc="SVI", total=self.schedule.num_steps) as shown:
            shown.update(self.record.step)
            while self.record.step < self.schedule.num_steps and not self.patience_spent:
                failed = self._step()
                if failed:
                    break
                self._after_step()
                if self.record.step % _STRIDE == 0:
                    shown.update(_STRIDE)
                    shown.set_postfix_str(self._bound_so_far(), refresh=False)
        if self.checkpoints and not failed and self.record.losses:
            self.checkpoints.write(self.record.step, self._state())
        if self.validation is not None and not failed and self._last_evaluated != self.record.step:
            self._validate()
        chosen = self.record.best or self.record.average
        if chosen is not None:
            self._set(chosen)
        return self._diverged(failed) if failed else self._status()

    def _step(self) -> str:
        """Take a step; say why not where loss or gradient is not finite."""
        epoch, number = divmod(self.record.step, self.batches.num_batches)
        if not number or not self._order:
            self._order = list(self.batches.epoch(epoch))
        batch = self.batches.take(self._order[number])
        loss = float(self.steps.run(batch, self._kl_weight()))
        norm = gradient_norm(self.steps.params)
        if not (math.isfinite(loss) and math.isfinite(norm)):
            found = culprit(self.steps.loss, self.steps.model, self.steps.guide, batch)
            return f"step {self.record.step + 1} (epoch {epoch + 1}): {found}"
        self.stepper.step(self.steps.params, norm)
        self.record.losses.append(loss)
        self.record.norms.append(norm)
        if self.schedule.average is not None:
            self._average(self.schedule.average)
        return ""

    def _after_step(self) -> None:
        step, schedule = self.record.step, self.schedule
        ended = step % self.batches.num_batches == 0
        if self.validation is not None and step % schedule.validate_every == 0:
            self._validate()
        scheduler = getattr(self.stepper, "scheduler", None)
        if ended and scheduler is not None and not self.stepper.each_step:
            if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
                scheduler.step(-self._last_bound())
            else:
                scheduler.step()
        if self.checkpoints and step % schedule.checkpoint_every == 0:
            self.checkpoints.write(step, self._state())

    def _kl_weight(self) -> float | None:
        weight = self.schedule.kl_weight
        if not callable(weight):
            return weight
        value = weight(self.record.step)
        if not (isinstance(value, int | float) and 0 <= value < math.inf):
            raise InputError(f"kl_weight: expected a number of at least 0 at step {self.record.step}, got {value!r}.")
        return float(value)

    def _average(self, decay: float) -> None:
        params = [p.detach() for p in self.steps.params]
        if self.record.average is None:
            self.record.average = [p.clone() for p in params]
        else:
            share = 1 - min(decay, self.record.step / (self.record.step + _WARM))
            torch._foreach_lerp_(self.record.average, params, share)

    def _validate(self) -> None:
        """Evaluate the held-out rows with the same draws as ever; keep the parameters if they are the best so far."""
        now = [p.detach().clone() for p in self.steps.params]
        if self.record.average is not None:
            self._set(self.record.average)
        # A fixed weight is part of the objective; one that changes leads up to the bound itself.
        weight = None if callable(self.schedule.kl_weight) else self.schedule.kl_weight
        bound = 0.0
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            for index in self.validation.chunks(max(_CHUNK, self.batches.size)):
                loss = self.steps.evaluate(self.validation.take(index), weight)
                bound -= loss / self.batches.total * len(index) / self.validation.total
        best = self.record.evaluations[self.record.best_at][1] if self.record.best_at >= 0 else -math.inf
        self.record.evaluations.append((self.record.step, bound))
        if bound > best:
            self.record.best_at = len(self.record.evaluations) - 1
            self.record.best = now if self.record.average is None else [p.clone() for p in self.record.average]
        self._set(now)

    def _set(self, values: list[torch.Tensor]) -> None:
        for p, value in zip(self.steps.params, values, strict=True):
            p.data.copy_(value)

    def _last_bound(self) -> float:
        """Give the last bound per row: on held-out rows if there are any, else the mean over the epoch."""
        if self.record.evaluations:
            return self.record.evaluations[-1][1]
        return -float(np.mean(self.record.losses[-self.batches.num_batches :])) / self.batches.total

    def _bound_so_far(self) -> str:
        text = f"elbo={-self.record.losses[-1] / self.batches.total:.3f} per row"
        return f"{text}, validation={self.record.evaluations[-1][1]:.3f}" if self.record.evaluations else text

    def _state(self) -> dict[str, Any]:
        """Everything that the next step depends on, and the history."""
        scheduler = self.stepper.scheduler
        record = self.record
        numpy_state = np.random.get_state()
        return {
            "params": {name: p.detach() for name, p in pyro.get_param_store().named_parameters()},
            "buffers": self.buffers,
            "optimizer": self.stepper.optimizer.state_dict(),
            "scheduler": scheduler.state_dict() if scheduler is not None else None,
            "torch_rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
            "numpy_rng": [numpy_state[0], torch.from_numpy(numpy_state[1].astype(np.int64)), *numpy_state[2:]],
            "python_rng": random.getstate(),
            "losses": torch.tensor(record.losses, dtype=torch.float64),
            "norms": torch.tensor(record.norms, dtype=torch.float64),
            "evaluations": record.evaluations,
            "best": record.best,
            "best_at": record.best_at,
            "average": record.average,
        }

    def _load(self, state: dict[str, Any]) -> None:
        named = dict(pyro.get_param_store().named_parameters())
        for name, value in state["params"].items():
            named[name].data.copy_(value)
        for name, value in state["buffers"].items():
            self.buffers[name].copy_(value)
        self.stepper.prepare(self.steps.params)
        self.stepper.optimizer.load_state_dict(state["optimizer"])
        if state["scheduler"] is not None and self.stepper.scheduler is not None:
            self.stepper.scheduler.load_state_dict(state["scheduler"])
        torch.set_rng_state(state["torch_rng"])
        if state["cuda_rng"] and torch.cuda.is_available():
            torch.cuda.set_rng_state_all(state["cuda_rng"])
        name, keys, *rest = state["numpy_rng"]
        np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
        random.setstate(state["python_rng"])
        device = self.steps.params[0].device
        best, average = (None if v is None else [p.to(device) for p in v] for v in (state["best"], state["average"]))
        losses, norms = state["losses"].tolist(), state["norms"].tolist()
        evaluations = [tuple(pair) for pair in state["evaluations"]]
        self.record = Record(losses, norms, evaluations, best, state["best_at"], average)

    def _diverged(self, where: str) -> Status:
        if not self.record.losses:
            raise InputError(
                f"batch_size: the loss is not finite at {where}; check the start of the networks and the scale of the "
                "data."
            )
        kept = "of the best evaluation" if self.record.best else "of the last finite step"
        last = self.checkpoints.newest if self.checkpoints else None
        good = f" The last good checkpoint is {last}." if last else ""
        return Status(
            "diverged",
            f"Diverged at {where}; the loss or its gradient is not finite. The parameters are those {kept}.{good} "
            "Lower lr or set clip_norm.",
        )

    def _status(self) -> Status:
        record, per_epoch = self.record, self.batches.num_batches
        done = f"Ran {record.step} steps ({record.step / per_epoch:.4g} epochs)"
        if record.evaluations:
            at, bound = record.evaluations[record.best_at]
            best = f"the best ELBO on held-out rows, {bound:.4f} nats per row, is that of step {at}, and kept"
            waited = len(record.evaluations) - 1 - record.best_at
            if self.patience_spent:
                return Status("converged", f"{done}; stopped after {waited} evaluations without improvement: {best}.")
            if waited >= max(2, len(record.evaluations) // 10):
                return Status("converged", f"{done}; {best}.")
            return Status("budget_spent", f"{done} and is still improving: {best}; raise num_epochs.")
        window = max(per_epoch, record.step // 4, 2)  # a single loss has no spread to compare it with
        if plateaued(record.losses, window):
            return Status("converged", f"{done}; the loss has stopped improving.")
        if record.step < 2 * window:
            return Status("budget_spent", f"{done}, too few to see whether the loss still improves; raise num_epochs.")
        gain = improvement(record.losses, window)[0] / self.batches.total
        return Status("budget_spent", f"{done} and is still improving (by {gain:.2g} nats per row); raise num_epochs.")
