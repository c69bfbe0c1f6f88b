"""When a stochastic optimiser has stopped making progress."""

import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np

# An improvement under this many nats per window is none: it bounds the wait on losses without noise.
NEGLIGIBLE = 1e-3
# Iterates are recorded as means over so many steps: rules look every 50 steps at most, and windows are whole blocks.
BLOCK_STEPS = 10


class Rule(Protocol):
    """When to lower the learning rate, when to stop, and which average of the iterates to end with."""

    # Factor of the learning rate from one level to the next, and why it stopped, in words for the user.
    shrink: float
    reason: str

    @property
    def until_look(self) -> int:
        """Steps until the rule looks again, a multiple of `BLOCK_STEPS` after a look."""
        ...

    @property
    def records(self) -> bool:
        """Whether the next iterates are recorded."""
        ...

    def step(self, losses: Sequence[float], rows: np.ndarray) -> bool:
        """Record losses, up to the next look at most, and block means (n, P); whether this level has just ended."""
        ...

    @property
    def average(self) -> np.ndarray | None:
        """Parameters (P,) to go on from at the end of a level or of the budget; None for those of the last step."""
        ...

    @property
    def finished(self) -> bool:
        """Whether the last level has ended."""
        ...

    @property
    def missing(self) -> str:
        """What is missing where the budget is spent, in words for the user; empty where the losses tell."""
        ...


def improvement(losses: Sequence[float], window: int) -> tuple[float, float]:
    """Mean decrease from the window before last to the last one, and its standard error.

    Parameters
    ----------
    losses
        One per step; at least ``2 * window``.
    window
        Steps per window. The estimator's noise is nearly independent from step to step, which gives the error.
    """
    recent = np.asarray(losses[-2 * window :], dtype=float)
    before, last = recent[:window], recent[window:]
    return float(before.mean() - last.mean()), math.sqrt((before.var(ddof=1) + last.var(ddof=1)) / window)


def plateaued(losses: Sequence[float], window: int) -> bool:
    """Whether the last window is no better than the one before it, beyond two standard errors or 0.001 nats."""
    if len(losses) < 2 * window:
        return False
    gain, error = improvement(losses, window)
    return gain < max(2 * error, NEGLIGIBLE)


class Stages:
    """Learning-rate stages: each ends at a plateau, the next has a smaller step and a longer look.

    At a constant step a stochastic optimiser ends in a cloud around the optimum whose size shrinks with the step, so
    a plateau at one step size is not convergence. Three stages divide the step by 16 and quadruple the window, which
    makes the last plateau test see improvements eight times smaller than the first does.

    Parameters
    ----------
    window
        Steps per window of the first stage.
    """

    GROW = 2
    NUM_STAGES = 3
    shrink = 0.25
    reason = "the loss has stopped improving"
    missing = ""

    def __init__(self, *, window: int = 200) -> None:
        self.window = window
        self.stage = 0
        self._losses: list[float] = []
        self._sum: np.ndarray | None = None
        self._num_rows = 0

    @property
    def until_look(self) -> int:
        """Steps until the rule looks at the losses again."""
        return self.window - len(self._losses) % self.window

    def step(self, losses: Sequence[float], rows: np.ndarray) -> bool:
        """Record losses, up to the next look at most, and block means; return whether this stage has just ended."""
        self._losses.extend(losses)
        if len(rows):
            self._sum = rows.sum(axis=0) if self._sum is None else self._sum + rows.sum(axis=0)
            self._num_rows += len(rows)
        if not len(losses) or len(self._losses) % self.window or not plateaued(self._losses, self.window):
            return False
        self.stage += 1
        self.window *= self.GROW
        self._losses = []
        return True

    @property
    def finished(self) -> bool:
        """Whether the last stage has ended."""
        return self.stage >= self.NUM_STAGES

    @property
    def records(self) -> bool:
        """Whether this is the last stage, whose iterates are averaged."""
        return self.stage == self.NUM_STAGES - 1

    @property
    def average(self) -> np.ndarray | None:
        """Average (P,) of the iterates of the last stage."""
        return None if self._sum is None else self._sum / self._num_rows
