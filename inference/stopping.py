"""When a stochastic optimiser has stopped making progress."""

import math
from collections.abc import Sequence

import numpy as np

# An improvement under this many nats per window is none: it bounds the wait on losses without noise.
NEGLIGIBLE = 1e-3


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

    SHRINK = 0.25
    GROW = 2
    NUM_STAGES = 3

    def __init__(self, *, window: int = 200) -> None:
        self.window = window
        self.stage = 0
        self._losses: list[float] = []

    @property
    def until_look(self) -> int:
        """Steps until the rule looks at the losses again."""
        return self.window - len(self._losses) % self.window

    def step(self, *losses: float) -> bool:
        """Record losses, up to the next look at most; return whether this stage has just ended."""
        self._losses.extend(losses)
        if not losses or len(self._losses) % self.window or not plateaued(self._losses, self.window):
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
    def last(self) -> bool:
        """Whether this is the last stage, whose iterates are averaged."""
        return self.stage == self.NUM_STAGES - 1
