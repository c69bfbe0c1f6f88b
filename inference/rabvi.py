"""RABVI: stopping by the iterates themselves, and averaging them (Welandawe, Andersen, Vehtari & Huggins 2022).

At a fixed learning rate the iterates of a stochastic optimiser become a stationary process around the optimum, like a
Markov chain: R-hat says since when, and the Monte Carlo standard error how well their average is known. Then the rate
is halved, and again, until halving it once more is expected to gain less than it costs.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from arviz_stats.base import array_stats

from inference.gaussian_iterates import GaussianIterates, symmetrised_kl
from inference.stopping import BLOCK_STEPS

# The paper's thresholds: stationarity, and effective iterates in an average whose error is to be believed.
MAX_RHAT, MIN_ESS = 1.1, 25
# Windows: five, from 200 steps to 95 % of the level's.
FIRST_WINDOW, LARGEST_WINDOW, NUM_WINDOWS = 200, 0.95, 5
# The Monte Carlo error allowed at the first level, in sds for means and as it is for log sds; halved with the rate.
MAX_ERROR = 0.1
# Accuracy in the square root of the symmetrised KL that is good enough, and steps that cost nothing.
ACCURACY, FREE_STEPS = 0.1, 1000
# Levels end at looks, which are this share of the level's steps apart: each costs as much as some hundred steps.
BETWEEN_LOOKS = 0.25
# More rows than these are merged in pairs, which bounds memory; so many batch means are enough for an error.
MAX_ROWS, ERROR_ROWS = 1024, 100


class Watch(Protocol):
    """What of the iterates is watched, and in which unit."""

    def numbers(self, rows: np.ndarray) -> np.ndarray:
        """Give the quantities (n, M) of rows of parameters (n, P)."""
        ...

    def unit(self, numbers: np.ndarray) -> np.ndarray:
        """Give the units (M,) in which their Monte Carlo errors count, at averages (M,)."""
        ...

    def distance(self, before: "Level", after: "Level") -> float:
        """How far the averages of two levels are from each other, in nats."""
        ...


@dataclass(frozen=True)
class Level:
    """What came of one learning rate.

    Attributes
    ----------
    rate
        Learning rate, as a share of the first one.
    num_steps
        Steps taken at it.
    average
        Parameters (P,), averaged over its last window.
    loss, loss_se
        Mean loss over that window, and its standard error.
    error
        Largest Monte Carlo standard error of the watched averages, in their units.
    """

    rate: float
    num_steps: int
    average: np.ndarray
    loss: float
    loss_se: float
    error: float


class WatchGaussian:
    """Watches means, in sds, and log sds; levels differ by the symmetrised KL of their Gaussians, in closed form."""

    def __init__(self, iterates: GaussianIterates) -> None:
        self.iterates = iterates

    def numbers(self, rows: np.ndarray) -> np.ndarray:
        """Give means and log sds."""
        return self.iterates.moments(rows)

    def unit(self, numbers: np.ndarray) -> np.ndarray:
        """Means count in sds, log sds as they are."""
        half = len(numbers) // 2
        return np.concatenate([np.exp(numbers[half:]), np.ones(half)])

    def distance(self, before: Level, after: Level) -> float:
        """Symmetrised KL."""
        first, second = (self.iterates.gaussian(level.average) for level in (before, after))
        return symmetrised_kl(first, second)


class WatchParameters:
    """Watches the parameters of any guide, which have no unit: their errors are not limited, only R-hat and ESS are.

    Levels differ by how far the mean loss has fallen. It is KL(q, posterior) but for a constant, so that the unit is
    again the nat; a fall within its own standard error counts as that error.
    """

    def numbers(self, rows: np.ndarray) -> np.ndarray:
        """Give the parameters."""
        return rows

    def unit(self, numbers: np.ndarray) -> np.ndarray:
        """Errors in an infinite unit are none."""
        return np.full(len(numbers), np.inf)

    def distance(self, before: Level, after: Level) -> float:
        """Fall of the mean loss."""
        return max(before.loss - after.loss, float(np.hypot(before.loss_se, after.loss_se)))


class Rabvi:
    """The rule; see `inference.stopping.Rule`."""

    shrink = 0.5
    records = True
    reason = "the iterates are stationary, and a smaller learning rate is expected to gain less than it costs"

    def __init__(self, watch: Watch) -> None:
        self.watch = watch
        self.levels: list[Level] = []
        self.distances: list[float] = []
        self.finished = False
        self._begin()

    def _begin(self) -> None:
        self._rows, self._numbers, self._losses = _Rows(), _Rows(), []
        self._start: int | None = None  # first step of the stationary window
        self._look = FIRST_WINDOW
        self._ess, self._error = 0.0, np.inf

    @property
    def average(self) -> np.ndarray | None:
        """Average (P,) of the level that has just ended; in the middle of one, of its later half."""
        if len(self._rows.values):
            return self._rows.since(len(self._losses) // 2).mean(axis=0)
        return self.levels[-1].average if self.levels else None

    @property
    def missing(self) -> str:
        """Why the level in progress has not ended."""
        where = f"level {len(self.levels) + 1}, at {self._rate:g} times the first learning rate, has not ended:"
        advice = "raise num_particles, which lowers the noise, or lr, if it is far from the optimum"
        if self._start is None:
            return f"{where} its iterates are not stationary (R-hat above {MAX_RHAT}); {advice}"
        known = f"its average has {self._ess:.0f} effective iterates of the {MIN_ESS} needed"
        return f"{where} {known}, and a Monte Carlo error of {self._error:.2g} of {self._tolerance:.2g}; {advice}"

    @property
    def _rate(self) -> float:
        return self.shrink ** len(self.levels)

    @property
    def _tolerance(self) -> float:
        return MAX_ERROR * self._rate

    @property
    def until_look(self) -> int:
        """Steps until the rule looks again."""
        return self._look - len(self._losses)

    def summary(self) -> dict[str, np.ndarray]:
        """One entry per level that has ended: the fields of `Level`, and ``distance`` to the one before, NaN at first.

        ``average`` is left out: the last one is in the fitted parameters.
        """
        names = ("rate", "num_steps", "loss", "loss_se", "error")
        made = {name: np.array([getattr(level, name) for level in self.levels]) for name in names}
        return made | {"distance": np.array([np.nan, *self.distances][: len(self.levels)])}

    def step(self, losses: np.ndarray, rows: np.ndarray) -> bool:
        """Record losses and block means, up to the next look at most; return whether this level has just ended."""
        self._losses.extend(losses)
        if len(rows):
            self._rows.add(rows)
            self._numbers.add(self.watch.numbers(rows))
        if self.until_look:
            return False
        level = self._ended()
        if level is None:
            wait = int(BETWEEN_LOOKS * self._look) // FIRST_WINDOW * FIRST_WINDOW
            self._look += max(FIRST_WINDOW, wait)
            return False
        self.levels.append(level)
        if len(self.levels) > 1:
            self.distances.append(self.watch.distance(*self.levels[-2:]))
            self.finished = relative_gain(self.levels, self.distances) * relative_cost(self.levels) > 1
        self._begin()
        return True

    def _ended(self) -> Level | None:
        """Give the level if its iterates are stationary and their average is known well enough."""
        # A window grows for as long as it is stationary: one that was taken too early is given up.
        if self._start is None or split_rhat(self._numbers.since(self._start)) > MAX_RHAT:
            self._start = stationary_since(self._numbers.values, self._numbers.length)
        if self._start is None:
            return None
        numbers = self._numbers.since(self._start)
        ess, error = error_of_average(numbers)
        worst = float((error / self.watch.unit(numbers.mean(axis=0))).max())
        self._ess, self._error = ess, worst
        if ess < MIN_ESS or worst > self._tolerance:
            return None
        losses = np.array(self._losses[self._start :])
        return Level(
            rate=self._rate,
            num_steps=len(self._losses),
            average=self._rows.since(self._start).mean(axis=0),
            loss=float(losses.mean()),
            loss_se=float(losses.std() / np.sqrt(len(losses))),
            error=worst,
        )


class _Rows:
    """Means over blocks of consecutive steps; where there are too many, blocks are joined in pairs.

    Attributes
    ----------
    values
        (n, Q).
    length
        Steps per row.
    """

    def __init__(self) -> None:
        self.length = BLOCK_STEPS
        self.values = np.empty((0, 0))
        self._rest = self.values

    def add(self, rows: np.ndarray) -> None:
        """Add means over blocks of `BLOCK_STEPS`."""
        rows = np.concatenate([self._rest, rows]) if len(self._rest) else np.asarray(rows, dtype=float)
        each = self.length // BLOCK_STEPS
        whole = len(rows) // each * each
        self._rest = rows[whole:]
        joined = _join(rows[:whole], each)
        self.values = np.concatenate([self.values, joined]) if len(self.values) else joined
        while len(self.values) >= MAX_ROWS:
            odd = len(self.values) % 2  # the oldest is given up
            self.values, self.length = _join(self.values[odd:], 2), 2 * self.length

    def since(self, step: int) -> np.ndarray:
        """Rows from a step on, one at least."""
        return self.values[min(step // self.length, len(self.values) - 1) :]


def _join(rows: np.ndarray, each: int) -> np.ndarray:
    """Means (n // each, Q) over so many rows each."""
    return rows.reshape(-1, each, rows.shape[-1]).mean(axis=1)


def stationary_since(numbers: np.ndarray, length: int) -> int | None:
    """Give the step since which the iterates are stationary: the window with the smallest R-hat, if that is small.

    Parameters
    ----------
    numbers
        Block means (n, M).
    length
        Steps per block.
    """
    num = len(numbers)
    sizes = np.linspace(min(FIRST_WINDOW / length, LARGEST_WINDOW * num), LARGEST_WINDOW * num, NUM_WINDOWS)
    rhats = {size: split_rhat(numbers[-size:]) for size in sorted({int(size) for size in sizes if size >= 4})}
    if not rhats:
        return None
    best = min(rhats, key=rhats.get)
    return (num - best) * length if rhats[best] <= MAX_RHAT else None


def split_rhat(numbers: np.ndarray) -> float:
    """Largest split R-hat of one sequence (n, M), by ArviZ, which wants the halves as two chains."""
    half = len(numbers) // 2
    halves = np.stack([numbers[-2 * half : -half], numbers[-half:]])
    with np.errstate(divide="ignore", invalid="ignore"):
        rhat = array_stats.rhat(halves, chain_axis=0, draw_axis=1, method="identity")
    # Numbers that do not move have no R-hat, and have arrived.
    return float(np.nanmax(rhat, initial=1.0))


def error_of_average(numbers: np.ndarray) -> tuple[float, np.ndarray]:
    """Smallest effective sample size of a sequence (n, M), and Monte Carlo standard errors (M,) of its averages.

    Both by ArviZ from at most `ERROR_ROWS` batch means, whose average is the same; their effective size is a lower
    bound for that of the iterates.
    """
    each = -(-len(numbers) // ERROR_ROWS)
    whole = len(numbers) // each * each
    batches = _join(numbers[-whole:], each)
    moving = np.ptp(batches, axis=0) > 1e-12 * np.abs(batches).max(axis=0)
    error = np.zeros(numbers.shape[1])
    if len(batches) < 8 or not moving.any():  # ArviZ needs four in each half
        return (0.0 if len(batches) < 8 else np.inf), np.where(moving, np.inf, 0.0)
    some = batches[None, :, moving]
    ess = np.asarray(array_stats.ess(some, chain_axis=0, draw_axis=1, method="mean"))
    error[moving] = batches[:, moving].std(axis=0, ddof=1) / np.sqrt(ess)
    return float(ess.min()), error


def relative_gain(levels: list[Level], distances: list[float]) -> float:
    """Distance to the optimum that is expected after halving the rate once more, in shares of that now.

    At rate g the square root of the symmetrised KL to the optimum is a g^k, so that successive averages are
    a g^k (2^k - 1) apart; a and 0 < k <= 1 are fitted to the distances seen. `ACCURACY` is added above.

    Parameters
    ----------
    levels
        So far.
    distances
        Symmetrised KLs between successive levels, one fewer.
    """
    rates = np.log([level.rate for level in levels[1:]])
    roots = 0.5 * np.log(np.maximum(distances, 1e-12))
    power = float(np.clip(_slope(rates, roots), 0.1, 1.0)) if len(distances) > 1 else 1.0
    weights = _weights(len(roots))
    offset = float(weights @ (roots - power * rates) / weights.sum()) - np.log(2**power - 1)
    now = np.exp(offset + power * rates[-1])
    return float(0.5**power + ACCURACY / now)


def relative_cost(levels: list[Level]) -> float:
    """Predict the steps of the next level, in shares of those of this one and `FREE_STEPS`."""
    rates, steps = (np.log([getattr(level, name) for level in levels]) for name in ("rate", "num_steps"))
    expected = np.exp(steps[-1] + _slope(rates, steps) * np.log(Rabvi.shrink))
    return float(expected / (levels[-1].num_steps + FREE_STEPS))


def _weights(num: int) -> np.ndarray:
    """Weights of observations, the latest last: older ones say less of what comes (the paper's choice)."""
    lag = np.arange(num)[::-1]
    return (1 + lag**2 / 9) ** -0.25


def _slope(x: np.ndarray, y: np.ndarray) -> float:
    """Slope of a weighted least-squares line."""
    return float(np.polynomial.Polynomial.fit(x, y, 1, w=np.sqrt(_weights(len(x)))).convert().coef[-1])
