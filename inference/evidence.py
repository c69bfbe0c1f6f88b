"""The log evidence, log p(data), from draws: by bridge sampling or by importance weights."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from arviz_stats.base import array_stats
from scipy.special import logsumexp

from inference.density import Density
from inference.diagnostics import LARGEST_LOG_RANGE, Weights, khat_limit, smooth_weights
from inference.errors import InputError
from inference.fit import Fit
from inference.label_copies import (
    in_one_labelling,
    learnt_models,
    log_num_labellings,
    otherwise_labelled,
    relabelled,
)
from inference.restored_density import restored_density
from inference.second_opinion import TYPICAL_GRADIENTS, why_unreliable
from inference.short_chains import NUM_CHAINS, Whitening, mobility, short_chains, whitening

LogDensity = Callable[[np.ndarray], np.ndarray]

METHODS = ("bridge", "psis")
# The fixed point is approached linearly, the slower the less the posterior and the Gaussian overlap.
MAX_ITERATIONS, CONVERGED = 1000, 1e-10
# Of a variational fit: transitions before and after the chains count as draws of the posterior.
BURN_IN, TRANSITIONS = 24, 16
# From so many chains the error of a mean is read off their averages; from fewer, off autocorrelations.
MANY_CHAINS = 100
# Of the two estimates from the halves of four chains: .0 to .3 for 50 to 200 effective draws in each half (200 runs).
CORRELATION = 0.3
MIN_DRAWS = 400  # in each half as many as the 200 effective draws that a proposal in a few dimensions asks for


@dataclass(frozen=True)
class Evidence:
    """An estimate of log p(data), in nats.

    Attributes
    ----------
    value
        log p(data); of the model with its ``pyro.param`` at their fitted values, if it has any.
    se
        Standard error of ``value``.
    method
        ``"bridge"`` or ``"psis"``.
    ess
        Effective number of draws behind it.
    khat
        Of the importance weights; NaN for bridge sampling.
    """

    value: float
    se: float
    method: str
    ess: float
    khat: float = float("nan")

    def __str__(self) -> str:
        name = "bridge sampling" if self.method == "bridge" else f"importance sampling, k-hat {self.khat:.2f}"
        return f"log evidence {self.value:.3f} +- {self.se:.3f} nats ({name}, worth {self.ess:.0f} draws)"


def log_evidence(fit: Fit, *, method: str = "bridge", seed: int = 0) -> Evidence:
    """Estimate the log evidence of the model from a fit.

    Bridge sampling (Meng & Wong 1996, with the optimal bridge; Gronau et al. 2017) needs draws of the posterior: those
    of NUTS, or, for a variational fit, the ends of short Markov chains from its draws. The proposal is a Gaussian with
    the moments of one half of the draws, used on the other half, and the other way round; the posterior is made
    symmetric about its mean first, which takes out its skewness (Warp-III, Meng & Schilling 2002). Importance sampling
    takes the smoothed weights of a variational fit (Vehtari et al. 2024), which is biased low where k-hat is large.

    Where components are exchangeable, one labelling of the K! is integrated over, draws being relabelled to it and the
    density being zero outside of it, and log K! is added. This is exact, whether draws are in one labelling or in many.

    Parameters
    ----------
    fit
        Of a model with a flat log density.
    method
        ``"bridge"`` or ``"psis"``.
    seed
        Of the proposals and of the short chains.

    Raises
    ------
    InputError
        The fit has no flat density, or no importance weights for ``"psis"``; k-hat is above its limit; there are too
        few draws; the short chains of a variational fit do not come to rest.

    Notes
    -----
    The error of the bridge is the relative error of Fruhwirth-Schnatter 2004, equation 17, corrected for
    autocorrelation. It does not know of modes that the draws have missed.

    Examples
    --------
    >>> print(log_evidence(fit(model, data, NUTS())))
    """
    if method not in METHODS:
        raise InputError(f"method: expected one of {', '.join(METHODS)}, got {method!r}.")
    if method == "psis":
        return _by_weights(fit)
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise InputError(f"seed: expected a non-negative integer, got {seed!r}.")
    with restored_density(fit, num_gradients=TYPICAL_GRADIENTS) as (density, _):
        points = fit.state["unconstrained"].astype(np.float64)
        if fit.method != "mcmc":
            points = _posterior_draws(density, points.reshape(-1, density.dim), seed)
        if points.shape[0] * points.shape[1] < MIN_DRAWS or points.shape[1] < 8:
            raise InputError(
                f"fit: {points.shape[0]} x {points.shape[1]} draws are too few for bridge sampling; expected at least "
                f"{MIN_DRAWS} in all and 8 in each chain. Draw more (num_samples)."
            )
        models = learnt_models(density, points.reshape(-1, density.dim))
        log_density = in_one_labelling(density, models) if models else density.log_density
        points = relabelled(density, models, points.reshape(-1, density.dim)).reshape(points.shape)
        found = two_bridges(log_density, points, np.random.default_rng(seed))
        return replace(found, value=found.value + log_num_labellings(models))


def two_bridges(log_density: LogDensity, points: np.ndarray, rng: np.random.Generator) -> Evidence:
    """Fit the Gaussian to one half of the draws and use it on the other, then the other way round.

    Halves are of each chain, or of the chains where there are many.

    Parameters
    ----------
    log_density
        (n, D) -> (n,), not normalised.
    points
        Its draws (C, T, D).
    rng
        For the draws of the Gaussians.
    """
    halves = np.array_split(points, 2, axis=0 if len(points) >= 2 * MANY_CHAINS else 1)
    folds = [bridge(log_density, *pair, rng) for pair in (halves, halves[::-1])]
    return Evidence(
        value=float(np.mean([fold.value for fold in folds])),
        se=float(np.sqrt((1.0 + CORRELATION) / 2.0 * np.mean([fold.se**2 for fold in folds]))),
        method="bridge",
        ess=float(np.sum([fold.ess for fold in folds])),
    )


def bridge(log_density: LogDensity, fitted: np.ndarray, points: np.ndarray, rng: np.random.Generator) -> Evidence:
    """Bridge between a density and a Gaussian.

    Parameters
    ----------
    log_density
        (n, D) -> (n,), not normalised.
    fitted
        Draws (C, T, D) whose moments the Gaussian takes.
    points
        Other draws (C, T, D).
    rng
        For the draws of the Gaussian.
    """
    num_chains, num_draws, dim = points.shape
    by = whitening(fitted.reshape(-1, dim))
    white = rng.standard_normal((num_chains * num_draws, dim))
    ratio = _log_ratio(log_density, by, by.white(points.reshape(-1, dim)))
    proposed = _log_ratio(log_density, by, white)
    if not np.isfinite(ratio).all():
        raise InputError("fit: the log density is not finite at some of its draws.")
    log_z, se, ess = solve_bridge(ratio.reshape(num_chains, num_draws), proposed)
    return Evidence(log_z, se, "bridge", ess)


def solve_bridge(ratio: np.ndarray, proposed: np.ndarray) -> tuple[float, float, float]:
    """Solve for a normaliser by the optimal bridge (Meng & Wong 1996, equation 4.1).

    Parameters
    ----------
    ratio
        Log of the density, not normalised, over that of the proposal at the density's draws, (C, T).
    proposed
        The same at the proposal's draws, (n,); minus infinity where the density is zero.

    Returns
    -------
    log_z, se, ess
        The normaliser and its standard error in nats, and the effective number of the density's draws.
    """
    ess = _effective(ratio)
    share = ess / (ess + len(proposed))
    log_z = _fixed_point(ratio.ravel(), proposed, share)
    # f1 = p / (s1 p + s2 q) at the proposals, f2 = q / (s1 p + s2 q) at the draws; p normalised, up to a factor.
    f1 = 1.0 / (share + (1.0 - share) * np.exp(np.minimum(log_z - proposed, LARGEST_LOG_RANGE)))
    f2 = 1.0 / (share * np.exp(np.minimum(ratio - log_z, LARGEST_LOG_RANGE)) + 1.0 - share)
    relative = f1.var() / f1.mean() ** 2 / f1.size + _variance_of_mean(f2) / f2.mean() ** 2
    return log_z, float(np.sqrt(relative)), ess


def weights_evidence(log_weight: np.ndarray, weights: Weights) -> tuple[float, float]:
    """Log of the mean of the smoothed weights, and its standard error.

    Parameters
    ----------
    log_weight
        (S,), log p - log q.
    weights
        The same, smoothed: only their upper tail is changed, so a draw in the middle tells the normaliser.
    """
    middle = np.argsort(log_weight)[log_weight.size // 2]
    value = log_weight[middle] - np.log(weights.weights[middle]) - np.log(log_weight.size)
    variance = np.sum(weights.weights**2) - 1.0 / log_weight.size
    return float(value), float(np.sqrt(max(variance, 0.0)))


def kl_gap(log_weight: np.ndarray, weights: Weights) -> tuple[float, float]:
    """KL(q, p) = log evidence - ELBO in nats from one set of draws, and its standard error.

    Both terms come from the same draws, so the error is that of the difference of their influences.
    """
    value, _ = weights_evidence(log_weight, weights)
    if not np.isfinite(log_weight).all():  # q puts mass where p has none
        return float("inf"), float("nan")
    elbo = log_weight.mean()
    influence = log_weight.size * weights.weights - 1.0 - (log_weight - elbo)
    return float(value - elbo), float(influence.std() / np.sqrt(log_weight.size))


def _by_weights(fit: Fit) -> Evidence:
    if "importance" in fit.state:
        numbers = fit.state["importance"]
        if not numbers["khat"] < numbers["khat_limit"]:
            raise InputError(_too_heavy(numbers["khat"], numbers["khat_limit"]))
        return Evidence(fit.state["elbo"], fit.state["elbo_se"], "psis", numbers["ess"], numbers["khat"])
    if "log_weight" not in fit.stats:
        raise InputError("fit: expected one with importance weights, from AutoVI or SVI; use method='bridge'.")
    log_weight, log_copies = _in_one_labelling(fit, np.asarray(fit.stats["log_weight"], dtype=np.float64).ravel())
    weights, limit = smooth_weights(log_weight), khat_limit(log_weight.size)
    if not weights.khat < limit:
        raise InputError(_too_heavy(weights.khat, limit))
    value, se = weights_evidence(log_weight, weights)
    return Evidence(value + log_copies, se, "psis", weights.ess, weights.khat)


def _in_one_labelling(fit: Fit, log_weight: np.ndarray) -> tuple[np.ndarray, float]:
    """Log weights (S,) without the draws of other labellings, and the log of the number of labellings."""
    if fit.model is None or "unconstrained" not in fit.state:
        return log_weight, 0.0
    with restored_density(fit, num_gradients=0) as (density, _):
        points = fit.state["unconstrained"].reshape(-1, density.dim).astype(np.float64)
        models = learnt_models(density, points)
        if models:
            log_weight = np.where(otherwise_labelled(density, models, points), -np.inf, log_weight)
        return log_weight, log_num_labellings(models)


def _too_heavy(khat: float, limit: float) -> str:
    return f"fit: its k-hat is {khat:.2f}, expected below {limit:.2f}; use method='bridge'."


def _posterior_draws(density: Density, draws: np.ndarray, seed: int) -> np.ndarray:
    """Run short chains from the draws of a variational fit to the posterior; their ends are (M, T, D)."""
    chosen = np.unique(np.linspace(0, len(draws) - 1, min(NUM_CHAINS, len(draws))).astype(int))
    chains = short_chains(density.grad, draws[chosen], by=whitening(draws), num_transitions=BURN_IN, seed=seed).extend(
        TRANSITIONS
    )
    why = why_unreliable(density.labels, mobility(draws[chosen], chains.points, chains.acceptance))
    if why:
        raise InputError(f"fit: Markov chains from its draws do not come to rest ({why}); fit with NUTS instead.")
    return chains.points


def _log_ratio(log_density: LogDensity, by: Whitening, white: np.ndarray) -> np.ndarray:
    """Log of the symmetrised density in the white space over that of a standard Gaussian, (n,)."""
    log_det = np.log(np.diag(by.scale) if by.scale.ndim == 2 else by.scale).sum()
    both = np.stack([log_density(by.points(sign * white)) for sign in (1.0, -1.0)])
    both = np.where(np.isnan(both), -np.inf, both)
    gaussian = -0.5 * (white**2).sum(axis=1) - 0.5 * white.shape[1] * np.log(2.0 * np.pi)
    return logsumexp(both, axis=0) - np.log(2.0) + log_det - gaussian


def _fixed_point(ratio: np.ndarray, proposed: np.ndarray, share: float) -> float:
    """Solve Meng & Wong's equation for log Z, given log p/q at draws of p and at draws of q, and the share of draws."""
    log_z = float(np.median(ratio))
    for _ in range(MAX_ITERATIONS):
        bridge = [np.logaddexp(np.log(share) + at, np.log1p(-share) + log_z) for at in (ratio, proposed)]
        upper = logsumexp(proposed - bridge[1]) - np.log(proposed.size)
        lower = logsumexp(-bridge[0]) - np.log(ratio.size)
        last, log_z = log_z, float(upper - lower)
        if abs(log_z - last) < CONVERGED:
            return log_z
    raise InputError("fit: bridge sampling does not converge; its draws and a Gaussian like them hardly overlap.")


def _effective(values: np.ndarray) -> float:
    """Effective number of draws (C, T) for their mean, at most their number."""
    variance = values.var()
    return float(min(values.size, variance / _variance_of_mean(values))) if variance > 0 else float(values.size)


def _variance_of_mean(values: np.ndarray) -> float:
    """Variance of the mean of correlated draws (C, T)."""
    if values.var() == 0:
        return 0.0
    if len(values) >= MANY_CHAINS:
        return float(values.mean(axis=1).var(ddof=1) / len(values))
    ess = array_stats.ess(values[:, :, None], chain_axis=0, draw_axis=1, method="mean")
    return float(values.var() / min(float(np.squeeze(ess)), values.size))
