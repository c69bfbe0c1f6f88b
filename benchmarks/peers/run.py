"""What a peer is asked, and what it gives back."""

from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The same for all: chains, draws, target acceptance."""

    seed: int
    chains: int = 4
    warmup: int = 500
    draws: int = 1000
    target_accept: float = 0.8

    @property
    def iterations(self) -> int:
        """Iterations of one chain, warm-up included."""
        return self.warmup + self.draws


@dataclass(frozen=True, kw_only=True, eq=False)
class Run:
    """What came out.

    Attributes
    ----------
    draws
        ``name -> (chain, draw, ...)`` of the quantities of the case.
    num_gradients
        Gradients of all chains, warm-up included, in ``sampling`` seconds.
    sampling
        Seconds of warm-up and draws, with everything compiled.
    total
        Seconds from the model and the data to the draws in memory: with building, compiling, starting.
    parts
        Further seconds by name.
    note
        What the reader of the table must know.
    """

    draws: dict[str, np.ndarray]
    num_gradients: int
    sampling: float
    total: float
    parts: dict[str, float] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Steps:
    """SVI, the same for all: Adam, one particle."""

    seed: int
    guide: str
    steps: int
    lr: float = 0.02


@dataclass(frozen=True, kw_only=True)
class StepsRun:
    """Seconds of ``steps`` steps with everything compiled, and of everything; the last losses where there are any."""

    steps: int
    stepping: float
    total: float
    loss: float = float("nan")
    note: str = ""
