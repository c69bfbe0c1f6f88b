"""Many short Markov chains from the draws of an approximation, which move it where it is wrong.

TADDAA (Wang, Kasprzak & Huggins 2023, "A targeted accuracy diagnostic for variational approximations", AISTATS): where
the draws are right, Markov chains that leave the posterior invariant do not move their distribution; where they are
wrong, every step moves it towards the posterior. All chains advance in one batch, by Hamiltonian Monte Carlo in the
space in which the draws are white. A mode that the draws miss is out of reach of short chains, and so cannot be seen.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from inference.diagnostics import PROBABILITIES, QUANTILE_REACH, Moments

# (points (n, D)) -> (values (n,), gradients (n, D)), as `Density.grad`.
LogDensity = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]

# 387 independent chains know a mean to .1 sd with 95 % (Student's interval); 512 do it in one batch of a round size.
NUM_CHAINS = 512
# Steps of the adaptation; they also are the first that lead away from the starts.
NUM_ADAPT = 8
NUM_TRANSITIONS = 8
TARGET_ACCEPTANCE = 0.8  # that of Stan and of Beskos et al. 2013 (.65) on the safe side: chains must not get stuck
# Acceptance falls by about .6 for each factor e in the step size, so gains up to 1 / .6 = 1.7 do not overshoot.
GAIN = 1.7
# In a white space a quarter of an orbit, a length of pi / 2, gives a draw that does not depend on the last one.
QUARTER_ORBIT = np.pi / 2
MIN_LEAPFROGS, MAX_LEAPFROGS = 2, 8
# Steps are shortened at random, chain by chain, to between this and 1: no orbit closes for all of them.
SHORTEST = 0.5
# Beyond this the Cholesky factor costs more than it helps, and the sample covariance has too many entries.
MAX_DENSE = 250
DRAWS_PER_DIMENSION = 10  # with fewer the sample covariance is shrunk towards its diagonal


@dataclass(frozen=True, eq=False)
class Whitening:
    """Affine map ``x = loc + scale y`` from the space in which draws are white; ``scale`` (D, D) lower, or (D,)."""

    loc: np.ndarray
    scale: np.ndarray

    def points(self, white: np.ndarray) -> np.ndarray:
        """Map (n, D) from the white space."""
        return self.loc + (white @ self.scale.T if self.scale.ndim == 2 else white * self.scale)

    def gradients(self, gradients: np.ndarray) -> np.ndarray:
        """Pull gradients (n, D) back to the white space."""
        return gradients @ self.scale if self.scale.ndim == 2 else gradients * self.scale

    def white(self, points: np.ndarray) -> np.ndarray:
        """Map (n, D) to the white space."""
        centred = points - self.loc
        return np.linalg.solve(self.scale, centred.T).T if self.scale.ndim == 2 else centred / self.scale


def whitening(draws: np.ndarray) -> Whitening:
    """Whiten by the covariance of draws (S, D); by its diagonal beyond `MAX_DENSE` dimensions."""
    num_draws, dim = draws.shape
    loc, sd = draws.mean(axis=0), draws.std(axis=0)
    sd = np.where(sd > 0, sd, 1.0)
    if dim > MAX_DENSE:
        return Whitening(loc, sd)
    white = (draws - loc) / sd
    correlation = white.T @ white / num_draws
    if num_draws < DRAWS_PER_DIMENSION * dim:
        share = num_draws / (num_draws + dim)
        correlation = share * correlation + (1.0 - share) * np.eye(dim)
    try:
        return Whitening(loc, sd[:, None] * np.linalg.cholesky(correlation))
    except np.linalg.LinAlgError:  # draws on a hyperplane: a point guide, or very few distinct draws
        return Whitening(loc, sd)


@dataclass(frozen=True, eq=False)
class ShortChains:
    """Markov chains in one batch.

    Attributes
    ----------
    starts
        (M, D).
    points
        States of the latest run, one after each transition, (M, T, D).
    acceptance
        Probabilities with which each of these transitions was accepted, (M, T).
    step_size
        Adapted, in the white space.
    num_leapfrogs
        Per transition.
    num_gradients
        In all.
    """

    starts: np.ndarray
    points: np.ndarray
    acceptance: np.ndarray
    step_size: float
    num_leapfrogs: int
    num_gradients: int
    _run: "_Run" = field(repr=False)

    def extend(self, num_transitions: int) -> "ShortChains":
        """Run on from the last states; the result holds only the new states, which are further from the starts."""
        return self._run.result(num_transitions)


def short_chains(
    log_density: LogDensity,
    starts: np.ndarray,
    *,
    by: Whitening,
    num_adapt: int = NUM_ADAPT,
    num_transitions: int = NUM_TRANSITIONS,
    step_size: float | None = None,
    seed: int = 0,
) -> ShortChains:
    """Run Hamiltonian Monte Carlo from every start, all chains at once.

    The step size is adapted over all chains during the first transitions, which are not kept, and fixed afterwards.
    Where the density is not finite a proposal is rejected.

    Parameters
    ----------
    log_density
        Of a batch of points, with gradients.
    starts
        (M, D).
    by
        Coordinates in which to move, by `whitening` of the draws.
    num_adapt, num_transitions
        Transitions that adapt, and those that are kept.
    step_size
        In the white space; adapted if None.
    seed
        Equal seeds give equal chains.
    """
    run = _Run(log_density, starts, by, np.random.default_rng(seed))
    if step_size is None:
        run.adapt(num_adapt)
    else:
        run.step_size = step_size
        run.states(num_adapt)
    return run.result(num_transitions)


class _Run:
    """The state of all chains, in the white space."""

    def __init__(self, log_density: LogDensity, starts: np.ndarray, by: Whitening, rng: np.random.Generator) -> None:
        self.log_density, self.by, self.rng = log_density, by, rng
        self.starts = starts
        self.white = by.white(starts)
        self.num_gradients = 0
        self.value, self.gradient = self._evaluate(self.white)
        self.step_size = starts.shape[1] ** -0.25  # the rate of Beskos et al. 2013

    @property
    def num_leapfrogs(self) -> int:
        mean_step = self.step_size * (1.0 + SHORTEST) / 2.0
        return int(np.clip(round(QUARTER_ORBIT / mean_step), MIN_LEAPFROGS, MAX_LEAPFROGS))

    def adapt(self, num: int) -> None:
        for i in range(num):
            error = self._transition().mean() - TARGET_ACCEPTANCE
            self.step_size *= np.exp(GAIN * error / (1.0 + 0.25 * i))

    def states(self, num: int) -> tuple[np.ndarray, np.ndarray]:
        points, acceptance = [], []
        for _ in range(num):
            acceptance.append(self._transition())
            points.append(self.by.points(self.white))
        return np.stack(points, axis=1), np.stack(acceptance, axis=1)

    def result(self, num: int) -> ShortChains:
        points, acceptance = self.states(num)
        return ShortChains(
            self.starts, points, acceptance, self.step_size, self.num_leapfrogs, self.num_gradients, self
        )

    def _transition(self) -> np.ndarray:
        """Move every chain; return the probabilities of acceptance (M,)."""
        num = len(self.white)
        step = self.step_size * self.rng.uniform(SHORTEST, 1.0, size=(num, 1))
        momentum = self.rng.standard_normal(self.white.shape)
        before = self.value - 0.5 * (momentum**2).sum(axis=1)
        white, value, gradient = self.white, self.value, self.gradient
        for _ in range(self.num_leapfrogs):
            momentum = momentum + 0.5 * step * gradient
            white = white + step * momentum
            lost = ~np.isfinite(white).all(axis=1)  # flew off to infinity, where a density may not even run
            white = np.where(lost[:, None], self.white, white)
            value, gradient = self._evaluate(white)
            value = np.where(lost, -np.inf, value)
            momentum = momentum + 0.5 * step * gradient
        with np.errstate(invalid="ignore", over="ignore"):
            change = value - 0.5 * (momentum**2).sum(axis=1) - before
            probability = np.nan_to_num(np.exp(np.minimum(change, 0.0)), nan=0.0)
        moved = self.rng.uniform(size=num) < probability
        self.white = np.where(moved[:, None], white, self.white)
        self.value = np.where(moved, value, self.value)
        self.gradient = np.where(moved[:, None], gradient, self.gradient)
        return probability

    def _evaluate(self, white: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        values, gradients = self.log_density(self.by.points(white))
        self.num_gradients += len(white)
        finite = np.isfinite(values) & np.isfinite(gradients).all(axis=1)
        gradients = np.where(finite[:, None], gradients, 0.0)
        return np.where(finite, values, -np.inf), self.by.gradients(gradients)


def chain_moments(values: np.ndarray) -> Moments:
    """Moments of quantities along many independent short chains (M, T, Q), with errors from the spread over chains.

    Each chain's average is one independent number, so no autocorrelation needs to be estimated.
    """
    num_chains = len(values)
    root = np.sqrt(num_chains)
    averages = values.mean(axis=1)
    mean = averages.mean(axis=0)
    squares = ((values - mean) ** 2).mean(axis=1)
    variance = squares.mean(axis=0)
    safe = np.where(variance > 0, variance, 1.0)
    flat = np.sort(values.reshape(-1, values.shape[-1]), axis=0)
    quantiles, errors = [], []
    for probability in PROBABILITIES:
        quantile = _order_statistic(flat, np.full(flat.shape[1], probability))
        below = (values <= quantile).mean(axis=1)
        reach = QUANTILE_REACH * below.std(axis=0, ddof=1) / root
        width = _order_statistic(flat, probability + reach) - _order_statistic(flat, probability - reach)
        quantiles.append(quantile)
        errors.append(width / (2.0 * QUANTILE_REACH))
    return Moments(
        mean=mean,
        mean_se=averages.std(axis=0, ddof=1) / root,
        sd=np.sqrt(variance),
        log_sd_se=squares.std(axis=0, ddof=1) / root / (2.0 * safe),
        quantiles=np.stack(quantiles),
        quantiles_se=np.stack(errors),
    )


def _order_statistic(ordered: np.ndarray, probability: np.ndarray) -> np.ndarray:
    """Quantiles (Q,) of the ordered columns (n, Q), each column at its own probability."""
    last = len(ordered) - 1
    position = np.clip(np.rint(probability * last), 0, last).astype(int)
    return np.take_along_axis(ordered, position[None], axis=0)[0]


@dataclass(frozen=True, eq=False)
class Mobility:
    """Whether short chains have forgotten their starts and come to rest, per quantity (Q,) unless said otherwise.

    Attributes
    ----------
    memory, memory_se
        Share of a start's deviation, or of its distance from the centre if that is more, that is still there: the
        slope of a chain's average over its start. Of an initial error the same share is left in the averages.
    drift, drift_se
        Second half of the run minus first, of the mean or of the distance from the centre, in sds.
    acceptance
        Mean probability of acceptance, a number.
    stuck
        Share of chains that accepted nothing, a number.
    tail_acceptance
        Mean probability of acceptance beyond the 5 % or the 95 % quantile, whichever is lower: where it is small the
        steps are too large for a part of the space (the neck of a funnel).
    """

    memory: np.ndarray
    memory_se: np.ndarray
    drift: np.ndarray
    drift_se: np.ndarray
    acceptance: float
    stuck: float
    tail_acceptance: np.ndarray


def mobility(starts: np.ndarray, values: np.ndarray, acceptance: np.ndarray) -> Mobility:
    """Look at quantities at the starts (M, Q) and along the chains (M, T, Q).

    Parameters
    ----------
    starts, values
        The quantities.
    acceptance
        (M, T).
    """
    centre, half = np.median(values, axis=(0, 1)), values.shape[1] // 2
    sd = values.std(axis=(0, 1))
    sd = np.where(sd > 0, sd, 1.0)
    slopes, drifts = [], []
    for first, later in ((starts, values), (np.abs(starts - centre), np.abs(values - centre))):
        slopes.append(_slope(first, later.mean(axis=1)))
        change = (later[:, half:].mean(axis=1) - later[:, :half].mean(axis=1)) / sd
        drifts.append(np.stack([change.mean(axis=0), change.std(axis=0, ddof=1) / np.sqrt(len(values))]))
    memory, memory_se = _larger(*slopes)
    drift, drift_se = _larger(*drifts)
    # The state from which a transition was tried: the one before it.
    ends = np.quantile(values, [0.05, 0.95], axis=(0, 1))
    tried_from, tried = values[:, :-1], acceptance[:, 1:, None]
    beyond = [tried_from <= ends[0], tried_from >= ends[1]]
    tails = [(tried * b).sum(axis=(0, 1)) / np.maximum(b.sum(axis=(0, 1)), 1) for b in beyond]
    moved = np.abs(np.diff(values, axis=1)).max(axis=(1, 2)) > 0
    return Mobility(
        memory, memory_se, drift, drift_se, float(acceptance.mean()), float(1.0 - moved.mean()), np.min(tails, axis=0)
    )


def _slope(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Regression slopes of y on x, (M, Q) each, and their standard errors, (2, Q)."""
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    square = (x**2).sum(axis=0)
    square = np.where(square > 0, square, np.inf)
    slope = (x * y).sum(axis=0) / square
    residual = y - slope * x
    return np.stack([slope, np.sqrt((x**2 * residual**2).sum(axis=0)) / square])


def _larger(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Of two estimates with errors, (2, Q) each, the one further from zero beyond its error, column by column."""
    return np.where(np.abs(one[0]) - 2.0 * one[1] >= np.abs(other[0]) - 2.0 * other[1], one, other)
