"""Errors of a candidate against a healthy reference, their Monte Carlo error, and the verdict that both support."""

from dataclasses import dataclass

import numpy as np

from inference import limits
from inference.diagnostics import NORMAL_WIDTH, Moments, Weights, khat_limit
from inference.verdict_kinds import USE_WEIGHTS, QuantityErrors, Verdict, VerdictKind

NUM_WORST = 5
# Stands for the ratio to or from a spread of zero (a point estimate), so that its logarithm is a number.
NO_SPREAD = 1e-6
GOOD, UNCLEAR, BAD = "good", "unclear", "bad"


@dataclass(frozen=True)
class Reference:
    """How sentences speak of what a candidate is compared with.

    Attributes
    ----------
    name
        As in "agree with the reference".
    instead
        What to use in place of the candidate.
    more
        How to have smaller Monte Carlo errors; takes ``factor``.
    """

    name: str = "the reference"
    instead: str = "Use the reference's draws"
    more: str = "Draw about {factor:.1f} times as many samples (num_samples), of the reference first."


@dataclass(frozen=True)
class Errors:
    """Errors of a candidate per quantity, in units of ``scale``; arrays (Q,), quantiles (3, Q).

    Attributes
    ----------
    mean, mean_se, log_sd, log_sd_se
        Mean difference and log sd ratio; NaN where the tails are too heavy for them (`inference.limits`).
    quantile, quantile_se
        Differences at 5, 50 and 95 %.
    scale
        The reference's sd; where the sd cannot be judged (q95 - q05) / 3.29, which is the sd of a Gaussian.
    """

    mean: np.ndarray
    mean_se: np.ndarray
    log_sd: np.ndarray
    log_sd_se: np.ndarray
    quantile: np.ndarray
    quantile_se: np.ndarray
    scale: np.ndarray

    @property
    def heavy(self) -> np.ndarray:
        """Which quantities have tails too heavy to judge their sd, and are judged by quantiles, (Q,)."""
        return np.isnan(self.log_sd)

    @property
    def tolerance(self) -> np.ndarray:
        """Largest tolerable mean, log sd and 5, 50, 95 % quantile errors, (5, Q)."""
        return self._limits(limits.MEAN_TOLERANCE, limits.LOG_SD_TOLERANCE, limits.QUANTILE_TOLERANCE)

    @property
    def good(self) -> np.ndarray:
        """Errors up to which nothing is wrong, in the same shape."""
        return self._limits(limits.MEAN_GOOD, limits.LOG_SD_GOOD, limits.QUANTILE_GOOD)

    @property
    def means(self) -> tuple[np.ndarray, np.ndarray]:
        """Errors of the means, of the median where there is no mean, and their standard errors, (Q,) each."""
        no_mean = np.isnan(self.mean)
        return np.where(no_mean, self.quantile[1], self.mean), np.where(no_mean, self.quantile_se[1], self.mean_se)

    @property
    def size(self) -> np.ndarray:
        """Errors of mean, log sd and 5, 50, 95 % quantiles, (5, Q); NaN where not judged."""
        return np.vstack([self.mean, self.log_sd, self.quantile])

    @property
    def se(self) -> np.ndarray:
        """Standard errors of `size`."""
        return np.vstack([self.mean_se, self.log_sd_se, self.quantile_se])

    def _limits(self, mean: float, log_sd: float, quantile: float) -> np.ndarray:
        median = np.where(np.isnan(self.mean), mean, quantile)  # the median stands in for a mean that does not exist
        return np.stack([np.broadcast_to(v, self.mean.shape) for v in (mean, log_sd, quantile, median, quantile)])

    @property
    def severity(self) -> np.ndarray:
        """The largest error of each quantity as a multiple of its tolerance, (Q,)."""
        return np.nanmax(np.abs(self.size) / self.tolerance, axis=0)

    def states(self) -> np.ndarray:
        """`GOOD`, `UNCLEAR` or `BAD` for each quantity, (Q,): bad if anything is bad, good if everything is good."""
        size = np.abs(self.size)
        bad = size - limits.Z * self.se > self.good
        excluded = (size + limits.Z * self.se <= self.tolerance) | np.isnan(size)
        return np.where(bad.any(axis=0), BAD, np.where(excluded.all(axis=0), GOOD, UNCLEAR))

    def means_hold(self) -> np.ndarray:
        """Whether each mean (or median, where there is no mean) is within what `MEANS_ONLY` promises, (Q,)."""
        off, error = self.means
        return np.abs(off) + limits.Z * error <= limits.MEANS_ONLY_TOLERANCE


def errors_between(candidate: Moments, reference: Moments, *, tail_index: np.ndarray) -> Errors:
    """Differences of two sets of moments in reference units, with the errors of both sides.

    Parameters
    ----------
    candidate, reference
        Of the same quantities.
    tail_index
        (Q,), of the reference's draws (`inference.diagnostics.tail_index`).
    """
    no_sd = (tail_index > limits.HEAVY_SD) | (reference.log_sd_se > limits.LOG_SD_SE)
    no_mean = tail_index > limits.HEAVY_MEAN
    width = (reference.quantiles[2] - reference.quantiles[0]) / NORMAL_WIDTH
    difference = candidate.mean - reference.mean
    scale = np.where(no_sd & (width > 0), width, reference.sd)
    # A reference without spread has no unit of its own: its candidate's, or failing that the difference itself.
    scale = np.where(scale > 0, scale, np.where(candidate.sd > 0, candidate.sd, np.abs(difference)))
    scale = np.where(scale > 0, scale, 1.0)
    floor = NO_SPREAD * np.maximum(reference.sd, candidate.sd) + np.finfo(float).tiny
    log_sd = np.log(np.maximum(candidate.sd, floor)) - np.log(np.maximum(reference.sd, floor))
    return Errors(
        mean=np.where(no_mean, np.nan, difference / scale),
        mean_se=np.where(no_mean, np.nan, np.hypot(candidate.mean_se, reference.mean_se) / scale),
        log_sd=np.where(no_sd, np.nan, log_sd),
        log_sd_se=np.where(no_sd, np.nan, np.hypot(candidate.log_sd_se, reference.log_sd_se)),
        quantile=(candidate.quantiles - reference.quantiles) / scale,
        quantile_se=np.hypot(candidate.quantiles_se, reference.quantiles_se) / scale,
        scale=scale,
    )


def judge_agreement(
    labels: tuple[str, ...],
    errors: Errors,
    *,
    weighted: Errors | None = None,
    weights: Weights | None = None,
    against: Reference | None = None,
) -> Verdict:
    """Verdict of a candidate against a healthy reference (notes/vi-algorithms.md, section 18).

    Parameters
    ----------
    labels
        Names of the quantities.
    errors
        Of the candidate's raw draws.
    weighted, weights
        Errors of its importance-weighted moments, and the weights, where it has any.
    against
        What the reference is called.
    """
    against = against or Reference()
    states, severity = errors.states(), errors.severity
    order = np.argsort(-severity)
    checks = _numbers(errors, states, weights)
    worst = tuple(_row(labels, errors, i) for i in order[:NUM_WORST])
    bad, good = states == BAD, states == GOOD
    if good.all():
        kind, reason, next_step = (
            VerdictKind.TRUST,
            _trust_reason(labels, errors, against),
            "Use the draws as they are.",
        )
    elif not bad.any():
        kind, (reason, next_step) = VerdictKind.CANNOT_TELL, _precision(labels, errors, states, against)
    elif weighted is not None and weights is not None and _weights_hold(weighted, weights):
        kind, next_step = VerdictKind.TRUST_REWEIGHTED, USE_WEIGHTS
        reason = (
            f"Raw draws disagree ({describe(labels, errors, order[0])}), but re-weighted all {len(labels)} quantities "
            f"agree with {against.name}; k-hat is {weights.khat:.2f}, worth {weights.ess:.0f} draws."
        )
    else:
        kind, reason, next_step = _partial(labels, errors, states, order, against)
        if weighted is not None and weights is not None and _weights_usable(weights) and BAD not in weighted.states():
            # Not enough for TRUST_REWEIGHTED, but the cheapest way on.
            next_step = f"Draw more and re-weight: re-weighted, no quantity disagrees for certain. {next_step}"
    some = kind is VerdictKind.SOME_PARAMETERS
    usable = tuple(label for label, right in zip(labels, good, strict=True) if some and right)
    return Verdict(kind, reason, worst, next_step, checks, usable=usable)


def _weights_usable(weights: Weights) -> bool:
    return weights.khat < khat_limit(weights.weights.size) and weights.ess >= limits.IS_ESS


def _weights_hold(weighted: Errors, weights: Weights) -> bool:
    return bool(_weights_usable(weights) and (weighted.states() == GOOD).all())


def _partial(
    labels: tuple[str, ...], errors: Errors, states: np.ndarray, order: np.ndarray, against: Reference
) -> tuple[VerdictKind, str, str]:
    """Say what can still be used where something is wrong."""
    bad, good = states == BAD, states == GOOD
    means = errors.means_hold()
    some = f"{bad.sum()} of {len(labels)} quantities disagree with {against.name}"
    listed = "; ".join(describe(labels, errors, i) for i in order if bad[i])
    richer = f"{against.instead}; or try a richer guide, or parameters in which the posterior is rounder."
    # Enough quantities are right to be worth naming: at least as many as are not.
    if good.sum() >= len(labels) / 2:
        names = ", ".join(labels[i] for i in order if bad[i])
        unclear = ", ".join(labels[i] for i in order if not good[i] and not bad[i])
        reason = (
            f"{good.sum()} of {len(labels)} quantities agree with {against.name}; not these: {_shorten(names)}. "
            f"Worst is {describe(labels, errors, order[0])}."
            + (f" Unclear within Monte Carlo error: {_shorten(unclear)}." if unclear else "")
        )
        return VerdictKind.SOME_PARAMETERS, reason, richer
    if means.all():
        return VerdictKind.MEANS_ONLY, f"{some}, though every mean is right: {_spread(errors, bad)}.", richer
    return VerdictKind.DO_NOT_TRUST, f"{some}: {_shorten(listed)}.", richer


def _spread(errors: Errors, bad: np.ndarray) -> str:
    """Say which way and how far the sds are off."""
    ratio = np.exp(errors.log_sd[bad & ~errors.heavy])
    if not ratio.size or np.all(np.abs(np.log(ratio)) < limits.LOG_SD_GOOD):
        ends = np.abs(errors.quantile[:, bad]).max()
        return f"the ends of intervals are off by up to {ends:.2f} sd"
    middle = float(np.median(ratio))
    word = "understated" if middle < 1 else "overstated"
    return f"their sds are {word}, ratio {middle:.2f} in the median ({ratio.min():.2f} to {ratio.max():.2f})"


def _trust_reason(labels: tuple[str, ...], errors: Errors, against: Reference) -> str:
    quantile = (np.abs(errors.quantile) + limits.Z * errors.quantile_se).max()
    parts = [f"ends and middles of intervals are within {quantile:.2f} sd"]
    if not errors.heavy.all():
        log_sd = np.nanmax(np.abs(errors.log_sd) + limits.Z * errors.log_sd_se)
        parts.insert(0, f"sds within {np.expm1(log_sd):.0%}")
    if not np.isnan(errors.mean).all():
        parts.insert(0, f"means are within {np.nanmax(np.abs(errors.mean) + limits.Z * errors.mean_se):.2f} sd")
    heavy = f" ({errors.heavy.sum()} with heavy tails judged by quantiles)" if errors.heavy.any() else ""
    found = f"{', '.join(parts)}, Monte Carlo error included."
    return f"All {len(labels)} quantities{heavy} agree with {against.name}: {found}"


def _precision(labels: tuple[str, ...], errors: Errors, states: np.ndarray, against: Reference) -> tuple[str, str]:
    """Nothing is known to be wrong, but the draws are too few: say for which quantity, and how many more."""
    upper = np.nan_to_num((np.abs(errors.size) + limits.Z * errors.se) / errors.tolerance)
    criterion, at = np.unravel_index(int(upper.argmax()), upper.shape)
    size, se = errors.size[criterion, at], errors.se[criterion, at]
    name = ("mean", "log sd", "5 % quantile", "median", "95 % quantile")[criterion]
    reason = (
        f"No error is certain, but Monte Carlo error is too large for {(states == UNCLEAR).sum()} of {len(labels)} "
        f"quantities: the {name} of {labels[at]} differs by {size:+.2f} +- {se:.2f}."
    )
    # With a standard error of a fifth of the tolerance a fit without error passes nearly always: 5 - Z = 2.95 se.
    factor = max(1.5, (5.0 * se / errors.tolerance[criterion, at]) ** 2)
    return reason, against.more.format(factor=factor)


def _row(labels: tuple[str, ...], errors: Errors, i: int) -> QuantityErrors:
    furthest = _furthest(errors, i)
    numbers = {
        "mean_error": errors.mean[i],
        "mean_error_se": errors.mean_se[i],
        "sd_ratio": np.exp(errors.log_sd[i]),
        "log_sd_se": errors.log_sd_se[i],
        "quantile_error": errors.quantile[furthest, i],
    }
    return QuantityErrors(labels[i], {key: float(value) for key, value in numbers.items()})


def _furthest(errors: Errors, i: int) -> int:
    return int(np.nan_to_num(np.abs(errors.quantile[:, i])).argmax())


def describe(labels: tuple[str, ...], errors: Errors, i: int) -> str:
    """Name one quantity and the worse of its errors, such as ``tau: sd ratio 0.61``."""
    mean = abs(np.nan_to_num(errors.mean[i])) / limits.MEAN_TOLERANCE
    log_sd = abs(np.nan_to_num(errors.log_sd[i])) / limits.LOG_SD_TOLERANCE
    furthest = _furthest(errors, i)
    quantile = abs(np.nan_to_num(errors.quantile[furthest, i])) / limits.QUANTILE_TOLERANCE
    if quantile > max(mean, log_sd):
        name = ("5 % quantile", "median", "95 % quantile")[furthest]
        return f"{labels[i]}: {name} off by {errors.quantile[furthest, i]:+.2f} sd"
    if mean >= log_sd:
        return f"{labels[i]}: mean off by {errors.mean[i]:+.2f} +- {errors.mean_se[i]:.2f} sd"
    return f"{labels[i]}: sd ratio {np.exp(errors.log_sd[i]):.2f}"


def _shorten(text: str, width: int = 300) -> str:
    """Cut a list after a whole item."""
    if len(text) <= width:
        return text
    mark = "; " if "; " in text else ", "
    return text[:width].rsplit(mark, 1)[0] + f"{mark}and more"


def _numbers(errors: Errors, states: np.ndarray, weights: Weights | None) -> dict[str, float]:
    numbers = {
        "num_quantities": float(len(states)),
        "num_bad": float((states == BAD).sum()),
        "num_unclear": float((states == UNCLEAR).sum()),
        "max_quantile_error": float(np.abs(errors.quantile).max()),
    }
    if not np.isnan(errors.mean).all():
        numbers["max_mean_error"] = float(np.nanmax(np.abs(errors.mean)))
    if not errors.heavy.all():
        numbers["max_log_sd_error"] = float(np.nanmax(np.abs(errors.log_sd)))
    if weights is not None and np.isfinite(weights.khat):
        numbers["khat"], numbers["khat_limit"] = weights.khat, khat_limit(weights.weights.size)
        numbers["is_ess"] = weights.ess
    return numbers
