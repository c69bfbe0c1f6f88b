"""Pure functions on arrays of draws: errors of estimates, mixing of chains, importance weights.

What ArviZ computes, ArviZ computes (`arviz_stats.base.array_stats`, the same calls in 0.8 and 1.x). This file adds the
errors for independent and for weighted draws, and guards the places where ArviZ's answer would mislead.
Draws are float arrays of shape (chain, draw, quantity); per-quantity results have shape (quantity,).
"""

from dataclasses import dataclass

import numpy as np
from arviz_stats.base import array_stats
from scipy.stats import wasserstein_distance

# The quantiles that are compared: the centre and both ends of the 90 % interval.
PROBABILITIES = (0.05, 0.5, 0.95)
# Standard normal 5-95 % width: (q95 - q05) / NORMAL_WIDTH equals the sd of a Gaussian and exists for every posterior.
NORMAL_WIDTH = 3.2897
# The error of a quantile is read off the order statistics this many standard errors of the probability away: at one,
# as few as 30 of 4000 draws lie between them, and the error is itself uncertain by a fifth.
QUANTILE_REACH = 2.0
# Log weights that spread less than this are rounding noise around a constant: the approximation is the posterior.
CONSTANT_LOG_WEIGHT = 1e-6
# exp() underflows below -745; a tail that wide is one draw carrying everything, and no Pareto fit is possible.
LARGEST_LOG_RANGE = 700.0
# Sliced Wasserstein: a mean over 64 directions varies by a few per cent between sets of directions, and 400 quantiles
# leave out 1/800 of either tail. Draws kept in float32 know a relative variance no smaller than 1e-7.
NUM_DIRECTIONS, NUM_LEVELS, MIN_VARIANCE = 64, 400, 1e-7


@dataclass(frozen=True)
class Moments:
    """Estimates per quantity with their Monte Carlo standard errors.

    Attributes
    ----------
    mean, mean_se
        Mean and its standard error, (Q,).
    sd, log_sd_se
        Standard deviation, and the standard error of its logarithm, (Q,).
    quantiles, quantiles_se
        At `PROBABILITIES`, (3, Q).
    """

    mean: np.ndarray
    mean_se: np.ndarray
    sd: np.ndarray
    log_sd_se: np.ndarray
    quantiles: np.ndarray
    quantiles_se: np.ndarray


@dataclass(frozen=True)
class Mixing:
    """How well the chains of a Markov chain sampler mixed, per quantity, each (Q,)."""

    rhat: np.ndarray
    ess_bulk: np.ndarray
    ess_tail: np.ndarray


@dataclass(frozen=True)
class Weights:
    """Pareto-smoothed importance weights.

    Attributes
    ----------
    weights
        (S,), normalised to sum one; NaN where they cannot be made.
    khat
        Pareto shape of the raw weights' tail; NaN where it cannot be estimated.
    ess
        1 / sum of squared weights.
    """

    weights: np.ndarray
    khat: float
    ess: float


@dataclass(frozen=True)
class Shift:
    """Raw minus weighted moments, paired draw by draw, with standard errors; each (Q,) but ``tail`` (2, Q).

    Attributes
    ----------
    mean, mean_se
        (raw mean - weighted mean) / weighted sd.
    log_sd, log_sd_se
        log(raw sd / weighted sd).
    tail, tail_se
        Weighted probability beyond the raw 5 % and 95 % quantiles, minus .05.
    """

    mean: np.ndarray
    mean_se: np.ndarray
    log_sd: np.ndarray
    log_sd_se: np.ndarray
    tail: np.ndarray
    tail_se: np.ndarray


def standardise(draws: np.ndarray) -> np.ndarray:
    """Centre and scale each quantity; a quantity without spread becomes zero.

    ArviZ calls an array constant when it spans less than 1e-15, whatever its unit. Scaling first keeps every
    diagnostic the same in any unit.
    """
    flat = draws.reshape(-1, draws.shape[-1])
    # Equal draws differ from their mean by rounding, which is no spread.
    centred = np.where(has_spread(draws), draws - flat.mean(axis=0), 0.0)
    scale = np.abs(centred).max(axis=(0, 1))
    scale = np.where(scale > 0, scale, 1.0)
    centred = centred / scale
    sd = centred.std(axis=(0, 1))
    return centred / np.where(sd > 0, sd, 1.0)


def has_spread(draws: np.ndarray) -> np.ndarray:
    """Whether each quantity (Q,) varies by more than rounding, so not the 1.0 on a correlation matrix's diagonal."""
    return np.ptp(draws, axis=(0, 1)) > 1e-12 * np.abs(draws).max(axis=(0, 1))


def chain_mixing(draws: np.ndarray) -> Mixing:
    """Rank-normalised split R-hat, bulk and tail effective sample size (Vehtari et al. 2021) through ArviZ.

    Only for draws of a Markov chain: R-hat of independent draws says nothing about the approximation they come from.

    Parameters
    ----------
    draws
        (chain, draw, Q), finite. With one chain R-hat is NaN.
    """
    scaled = standardise(draws)
    axes = {"chain_axis": 0, "draw_axis": 1}
    moving = np.ptp(scaled, axis=(0, 1)) > 0
    result = {name: np.full(draws.shape[-1], np.nan) for name in ("rhat", "ess_bulk", "ess_tail")}
    if moving.any():
        some = scaled[:, :, moving]
        # A chain stuck at one value has no spread of its own: ArviZ then divides by zero, and infinity is the answer.
        with np.errstate(divide="ignore", invalid="ignore"):
            if draws.shape[0] > 1:
                result["rhat"][moving] = array_stats.rhat(some, **axes, method="rank")
            result["ess_bulk"][moving] = array_stats.ess(some, **axes, method="bulk")
            result["ess_tail"][moving] = array_stats.ess(some, **axes, method="tail", prob=(0.05, 0.95))
    return Mixing(**result)


def energy_bfmi(energy: np.ndarray) -> np.ndarray:
    """Estimated Bayesian fraction of missing information per chain (Betancourt 2016), from energies (chain, draw)."""
    return np.asarray(array_stats.bfmi(energy, chain_axis=0, draw_axis=1))


def moments(draws: np.ndarray, *, independent: bool) -> Moments:
    """Mean, sd and quantiles with Monte Carlo standard errors.

    The error of the sd uses the effective sample size *of the squares*: ArviZ 0.8 uses that of the mean, which for
    antithetic NUTS chains exceeds the number of draws and understates the error two- to threefold.

    Parameters
    ----------
    draws
        (chain, draw, Q), finite.
    independent
        Whether draws are independent (variational) or autocorrelated (MCMC).
    """
    num_chains, num_draws, num_quantities = draws.shape
    flat = draws.reshape(-1, num_quantities)
    mean, sd = flat.mean(axis=0), flat.std(axis=0, ddof=1)
    quantiles = np.quantile(flat, PROBABILITIES, axis=0)
    scaled = standardise(draws)
    axes = {"chain_axis": 0, "draw_axis": 1}
    if independent:
        ess_mean = ess_squares = np.full(num_quantities, float(num_chains * num_draws))
        quantiles_se = _quantile_errors(flat, np.sqrt(_binomial_variance() / len(flat)))
    else:
        ess_mean = np.asarray(array_stats.ess(scaled, **axes, method="mean"))
        ess_squares = np.asarray(array_stats.ess(scaled, **axes, method="sd"))
        quantiles_se = sd * np.stack(
            [array_stats.mcse(scaled, **axes, method="quantile", prob=prob) for prob in PROBABILITIES]
        )
    kurtosis = np.mean(scaled**4, axis=(0, 1))
    log_sd_se = np.sqrt(np.maximum(kurtosis - 1.0, 0.0) / (4.0 * ess_squares))
    return Moments(mean, sd / np.sqrt(ess_mean), sd, log_sd_se, quantiles, quantiles_se)


def weighted_moments(draws: np.ndarray, weights: np.ndarray) -> Moments:
    """Self-normalised importance estimates with delta-method errors, se(mean)^2 = sum W^2 (x - mean)^2.

    Parameters
    ----------
    draws
        (S, Q), finite.
    weights
        (S,), summing to one.
    """
    mean = weights @ draws
    centred = draws - mean
    variance = weights @ centred**2
    safe = np.where(variance > 0, variance, 1.0)
    mean_se = np.sqrt(weights**2 @ centred**2)
    log_sd_se = np.sqrt(weights**2 @ (centred**2 / safe - 1.0) ** 2) / 2.0
    quantiles = _weighted_quantiles(draws, weights, PROBABILITIES)
    below = np.stack([weights**2 @ ((draws <= q) - p) ** 2 for p, q in zip(PROBABILITIES, quantiles, strict=True)])
    quantiles_se = np.empty_like(quantiles)
    for i, prob in enumerate(PROBABILITIES):
        for j in range(draws.shape[1]):
            reach = QUANTILE_REACH * np.sqrt(below[i, j])
            ends = np.clip([prob - reach, prob + reach], 0.0, 1.0)
            low, high = _weighted_quantiles(draws[:, [j]], weights, ends)[:, 0]
            quantiles_se[i, j] = (high - low) / (2.0 * QUANTILE_REACH)
    return Moments(mean, mean_se, np.sqrt(variance), log_sd_se, quantiles, quantiles_se)


def smooth_weights(log_weight: np.ndarray) -> Weights:
    """Pareto smoothed importance sampling (Vehtari et al. 2024) through ArviZ, in float64.

    Parameters
    ----------
    log_weight
        log p - log q per draw, any shape. Minus infinity (a draw outside the support) is a weight of zero.
    """
    log_weight = np.asarray(log_weight, dtype=np.float64).ravel()
    nothing = Weights(np.full(log_weight.size, np.nan), float("nan"), float("nan"))
    if np.isnan(log_weight).any() or np.isposinf(log_weight).any() or np.isneginf(log_weight).all():
        return nothing
    log_weight = log_weight - log_weight.max()
    if np.ptp(log_weight) < CONSTANT_LOG_WEIGHT:
        return Weights(np.full(log_weight.size, 1.0 / log_weight.size), 0.0, float(log_weight.size))
    smoothed, khat = _psis(log_weight)
    if not np.isfinite(khat):
        return nothing
    weights = np.where(np.isneginf(log_weight), 0.0, np.exp(smoothed))
    weights /= weights.sum()
    return Weights(weights, khat, float(1.0 / np.sum(weights**2)))


def khat_limit(num_draws: int) -> float:
    """Largest k-hat at which S draws carry a usable estimate: min(1 - 1/log10 S, 0.7) (Vehtari et al. 2024, eq. 13)."""
    return min(1.0 - 1.0 / np.log10(max(num_draws, 11)), 0.7)


def functional_khat(draws: np.ndarray, log_weight: np.ndarray, *, centre: np.ndarray) -> np.ndarray:
    """k-hat of w |h| for each quantity, the larger of h = x - centre (mean) and h = (x - centre)^2 (sd).

    Parameters
    ----------
    draws, log_weight
        (S, Q) and (S,).
    centre
        (Q,), the weighted means.
    """
    log_weight = log_weight - log_weight.max()
    result = np.zeros(draws.shape[1])
    if np.ptp(log_weight) < CONSTANT_LOG_WEIGHT:
        return result  # constant weights: the moments of q are the moments of p
    for j in range(draws.shape[1]):
        size = np.abs(draws[:, j] - centre[j])
        if size.max() == 0:
            continue
        log_size = np.log(np.maximum(size / size.max(), 1e-12))
        result[j] = np.max([_psis(log_weight + power * log_size)[1] for power in (1.0, 2.0)])
    return result


def raw_against_weighted(draws: np.ndarray, weights: np.ndarray) -> Shift:
    """How far the raw moments of q are from the importance-weighted ones, the error estimate of raw VI.

    Both averages run over the same draws, so the error of the difference comes from the difference of the influences,
    (x - m_raw)/S - W (x - m_w), and vanishes where the weights are constant.

    Parameters
    ----------
    draws
        (S, Q).
    weights
        (S,), summing to one.
    """
    num_draws = len(draws)
    raw_mean, raw_variance = draws.mean(axis=0), draws.var(axis=0)
    mean = weights @ draws
    variance = weights @ (draws - mean) ** 2
    spread = np.sqrt(np.where(variance > 0, variance, 1.0))
    safe_raw = np.where(raw_variance > 0, raw_variance, 1.0)
    weights = weights[:, None]
    influence = ((draws - raw_mean) / num_draws - weights * (draws - mean)) / spread
    raw_square, square = (draws - raw_mean) ** 2 / safe_raw, (draws - mean) ** 2 / spread**2
    sd_influence = ((raw_square - 1.0) / num_draws - weights * (square - 1.0)) / 2.0
    tail, tail_se = [], []
    for side, quantile in ((-1.0, 0.05), (1.0, 0.95)):
        outside = side * (draws - np.quantile(draws, quantile, axis=0)) > 0
        probability = (weights * outside).sum(axis=0)
        raw_probability = outside.mean(axis=0)
        tail_influence = (outside - raw_probability) / num_draws - weights * (outside - probability)
        tail.append(probability - raw_probability)
        tail_se.append(np.sqrt((tail_influence**2).sum(axis=0)))
    return Shift(
        mean=(raw_mean - mean) / spread,
        mean_se=np.sqrt((influence**2).sum(axis=0)),
        log_sd=0.5 * np.log(safe_raw) - np.log(spread),
        log_sd_se=np.sqrt((sd_influence**2).sum(axis=0)),
        tail=np.stack(tail),
        tail_se=np.stack(tail_se),
    )


def tail_index(draws: np.ndarray) -> np.ndarray:
    """Pareto shape of the heavier tail of each quantity: moments of order 1/index and higher do not exist.

    Parameters
    ----------
    draws
        (chain, draw, Q), finite.
    """
    scaled = standardise(draws)
    result = np.zeros(draws.shape[-1])
    flat = scaled.reshape(-1, draws.shape[-1])
    for j in range(draws.shape[-1]):
        # Ties in a tail (a bounded or rounded quantity) leave nothing to fit, and no heavy tail either.
        tails = np.quantile(flat[:, j], [0.0, 0.02, 0.98, 1.0])
        if flat.shape[0] >= 50 and tails[0] < tails[1] and tails[2] < tails[3]:
            with np.errstate(all="ignore"):
                result[j] = array_stats.pareto_khat(scaled[:, :, j], chain_axis=0, draw_axis=1, r_eff=1.0)
    return np.nan_to_num(result, nan=0.0)


def correlations(draws: np.ndarray) -> np.ndarray:
    """Correlation matrix (Q, Q) of pooled draws (chain, draw, Q); zero where a quantity has no spread."""
    scaled = standardise(draws).reshape(-1, draws.shape[-1])
    return scaled.T @ scaled / len(scaled)


def wasserstein(draws: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """First Wasserstein distance of each marginal (Q,), in the quantity's own unit, of draws (chain, draw, Q)."""
    ours, theirs = draws.reshape(-1, draws.shape[-1]), reference.reshape(-1, reference.shape[-1])
    return np.array([wasserstein_distance(ours[:, j], theirs[:, j]) for j in range(ours.shape[1])])


@dataclass(frozen=True)
class JointDistance:
    """Sliced Wasserstein distance of two joint distributions, in sds, and what chance alone makes of it.

    Attributes
    ----------
    distance
        Mean over directions of the first Wasserstein distance of the projections.
    expected
        The same for two samples of one distribution with as many effective draws.
    """

    distance: float
    expected: float


def sliced_wasserstein(
    draws: np.ndarray, reference: np.ndarray, *, num_effective: float, num_effective_reference: float
) -> JointDistance:
    """Compare joint distributions along random directions of the space in which the reference is uncorrelated.

    For two samples of F along one line, E W1 tends to sqrt(2 / pi) sqrt(1/n + 1/m) times the integral of
    sqrt(F (1 - F)) (del Barrio, Gine & Matran 1999, theorem 2.1: the integral of a Brownian bridge over F).

    Parameters
    ----------
    draws, reference
        (chain, draw, Q), finite, of the same quantities.
    num_effective, num_effective_reference
        Effective numbers of draws.
    """
    ours, theirs = (x.reshape(-1, x.shape[-1]) for x in (draws, reference))
    centre, sd = theirs.mean(0), theirs.std(0)
    moving = sd > 1e-12 * np.abs(theirs).max(0)
    ours, theirs = ((x[:, moving] - centre[moving]) / sd[moving] for x in (ours, theirs))
    variances, axes = np.linalg.eigh(theirs.T @ theirs / len(theirs))
    kept = variances > MIN_VARIANCE * variances[-1]  # a simplex has a direction without spread
    whiten = axes[:, kept] / np.sqrt(variances[kept])
    directions = np.random.default_rng(0).normal(size=(whiten.shape[1], NUM_DIRECTIONS))
    directions = whiten @ (directions / np.linalg.norm(directions, axis=0))
    grid = (np.arange(NUM_LEVELS) + 0.5) / NUM_LEVELS
    ours, theirs = (np.quantile(x @ directions, grid, axis=0) for x in (ours, theirs))
    spread = (np.sqrt(grid * (1.0 - grid))[1:, None] * np.diff(theirs, axis=0)).sum(0).mean()
    noise = np.sqrt(2.0 / np.pi * (1.0 / num_effective + 1.0 / num_effective_reference))
    return JointDistance(float(np.abs(ours - theirs).mean()), float(noise * spread))


def _psis(log_weight: np.ndarray) -> tuple[np.ndarray, float]:
    """Return ArviZ's smoothed log weights and k-hat; NaN where the tail is constant, too short or underflows.

    Where the tail underflows ArviZ would return a k-hat near zero: one draw carries everything, and looks harmless.
    """
    nothing = np.full(log_weight.shape, np.nan), float("nan")
    num_tail = int(min(log_weight.size / 5, 3 * np.sqrt(log_weight.size)))
    if num_tail < 5 or np.partition(log_weight, -num_tail - 1)[-num_tail - 1] < log_weight.max() - LARGEST_LOG_RANGE:
        return nothing
    try:
        with np.errstate(all="ignore"):
            # ArviZ takes minus the log weight, the convention of leave-one-out.
            smoothed, khat = array_stats.psislw(-np.maximum(log_weight, log_weight.max() - LARGEST_LOG_RANGE))
    except ValueError:  # ArviZ: all tail values are the same
        return nothing
    if not np.isfinite(khat) or not np.isfinite(smoothed).all():
        return nothing
    return np.asarray(smoothed), float(khat)


def _binomial_variance() -> np.ndarray:
    probabilities = np.asarray(PROBABILITIES)
    return probabilities * (1.0 - probabilities)


def _quantile_errors(flat: np.ndarray, probability_se: np.ndarray) -> np.ndarray:
    """Errors of quantiles (3, Q) from the distance between order statistics to either side of them."""
    reach, probabilities = QUANTILE_REACH * probability_se, np.asarray(PROBABILITIES)
    low = np.quantile(flat, np.clip(probabilities - reach, 0.0, 1.0), axis=0)
    high = np.quantile(flat, np.clip(probabilities + reach, 0.0, 1.0), axis=0)
    return (high - low) / (2.0 * QUANTILE_REACH)


def _weighted_quantiles(draws: np.ndarray, weights: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Quantiles (P, Q) of draws (S, Q) under weights (S,)."""
    return np.quantile(draws, probabilities, axis=0, weights=weights, method="inverted_cdf")
