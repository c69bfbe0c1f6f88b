"""Verdict on a variational fit from its own importance weights, its optimisation, and a search for other modes.

The rules are those of notes/vi-algorithms.md, section 18, as far as they go without Markov chains: what importance
weights cannot settle is left at "cannot tell". Thresholds: `inference.limits`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from inference import limits
from inference.diagnostics import (
    LARGEST_LOG_RANGE,
    Shift,
    Weights,
    functional_khat,
    has_spread,
    khat_limit,
    raw_against_weighted,
    smooth_weights,
)
from inference.errors import InputError
from inference.fit import Fit
from inference.quantities import Quantities
from inference.verdict_kinds import USE_WEIGHTS, QuantityErrors, Verdict, VerdictKind

NUM_WORST = 5
COMPARE = "Compare it with NUTS: compare({'nuts': ..., 'vi': ...})."


@dataclass(frozen=True)
class Evidence:
    """What the importance weights say about the raw draws. ``mean`` and ``log_sd`` are bounds on the worst errors.

    Attributes
    ----------
    weights, limit
        Smoothed weights and the sample-size aware limit of k-hat.
    shift
        Raw against weighted moments per quantity.
    mean_high, log_sd_high, tail_high
        Upper bounds |error| + Z se, (Q,).
    mean_low, log_sd_low
        Lower bounds |error| - Z_UNRELIABLE se, (Q,): at least this wrong, even if the weights are poor.
    """

    weights: Weights
    limit: float
    shift: Shift
    mean_high: np.ndarray
    log_sd_high: np.ndarray
    tail_high: np.ndarray
    mean_low: np.ndarray
    log_sd_low: np.ndarray


def judge_weights(fit: Fit, found: Quantities, *, search: Callable[[Fit], Any]) -> Verdict:
    """Climb the ladder: settled? weights? raw against weighted? other modes? Stop when the answer is clear."""
    found = found.select(has_spread(found.draws))
    if fit.status.kind == "diverged":
        return _verdict(VerdictKind.DO_NOT_TRUST, f"The optimisation diverged: {fit.status.message}", "Fit again.")
    if "log_weight" not in fit.stats or not found.labels:
        return _verdict(
            VerdictKind.CANNOT_TELL,
            "This guide has no density to weigh its draws by (a point estimate has none), so k-hat is not defined.",
            "Use a guide with a density, such as SVI(guide='normal') or AutoVI(), or compare with NUTS.",
        )
    log_weight = np.asarray(fit.stats["log_weight"], dtype=np.float64).ravel()
    weights = smooth_weights(log_weight)
    if not np.isfinite(weights.khat):
        return _verdict(VerdictKind.CANNOT_TELL, _bad_weights(log_weight), COMPARE)
    evidence = _evidence(found, weights)
    checks = _numbers(evidence) | {
        "functional_khat": float(functional_khat(found.pooled, log_weight, centre=weights.weights @ found.pooled).max())
    }
    worst = _worst(found, evidence)
    kind, reason, next_step = _from_weights(evidence, found)
    unsettled = _unsettled(fit)
    if unsettled and kind not in (VerdictKind.DO_NOT_TRUST, VerdictKind.CANNOT_TELL):
        kind, reason, next_step = VerdictKind.CANNOT_TELL, unsettled, "Give it more steps or starts, and check again."
    if kind not in (VerdictKind.DO_NOT_TRUST, VerdictKind.CANNOT_TELL):
        # The dearest rung comes last: it is climbed only where something good would be said otherwise.
        kind, reason, next_step, seen = _after_search(fit, search, (kind, reason, next_step), found)
        checks |= seen
    remarks = ("Judged on the model's label-free quantities (identify), not on raw sites.",) if found.identified else ()
    return Verdict(kind, reason, worst, next_step, checks, remarks)


def _verdict(kind: VerdictKind, reason: str, next_step: str) -> Verdict:
    return Verdict(kind, reason, next_step=next_step)


def _bad_weights(log_weight: np.ndarray) -> str:
    nan = int(np.isnan(log_weight).sum() + np.isposinf(log_weight).sum())
    if nan:
        return f"{nan} of {log_weight.size} log importance weights are NaN or infinite."
    if np.ptp(log_weight) > LARGEST_LOG_RANGE:
        return "A few draws carry all of the importance weight, and k-hat cannot be estimated from so few."
    return f"The {log_weight.size} importance weights have no tail to fit, so k-hat cannot be estimated."


def _unsettled(fit: Fit) -> str:
    """Say why the optimisation is not settled; empty when it is."""
    if not fit.status.ok:
        return f"The optimisation is not settled ({fit.status.kind}): {fit.status.message}"
    starts = fit.state.get("starts") or {}
    if not starts.get("agree", True):
        elbo = np.asarray(starts.get("elbo", [np.nan]), dtype=float)
        return f"The optimisation is not settled: its {elbo.size} starts end {np.ptp(elbo):.2g} nats apart in ELBO."
    return ""


def _evidence(found: Quantities, weights: Weights) -> Evidence:
    shift = raw_against_weighted(found.pooled, weights.weights)
    mean, log_sd, z = np.abs(shift.mean), np.abs(shift.log_sd), limits.Z_UNRELIABLE
    return Evidence(
        weights=weights,
        limit=khat_limit(weights.weights.size),
        shift=shift,
        mean_high=mean + limits.Z * shift.mean_se,
        log_sd_high=log_sd + limits.Z * shift.log_sd_se,
        tail_high=(np.abs(shift.tail) + limits.Z * shift.tail_se).max(axis=0),
        mean_low=mean - z * shift.mean_se,
        log_sd_low=log_sd - z * shift.log_sd_se,
    )


def _numbers(evidence: Evidence) -> dict[str, float]:
    return {
        "khat": evidence.weights.khat,
        "khat_limit": evidence.limit,
        "is_ess": evidence.weights.ess,
        "max_mean_error": float(evidence.mean_high.max()),
        "max_log_sd_error": float(evidence.log_sd_high.max()),
        "max_tail_error": float(evidence.tail_high.max()),
    }


def _worst(found: Quantities, evidence: Evidence) -> tuple[QuantityErrors, ...]:
    shift = evidence.shift
    badness = np.maximum(np.abs(shift.mean) / limits.MEAN_GOOD, np.abs(shift.log_sd) / limits.LOG_SD_GOOD)
    return tuple(
        QuantityErrors(
            found.labels[i],
            {
                "mean_error": float(shift.mean[i]),
                "mean_error_se": float(shift.mean_se[i]),
                "sd_ratio": float(np.exp(shift.log_sd[i])),
                "log_sd_se": float(shift.log_sd_se[i]),
            },
        )
        for i in np.argsort(-badness)[:NUM_WORST]
    )


def _from_weights(evidence: Evidence, found: Quantities) -> tuple[VerdictKind, str, str]:
    """Return kind, reason and next step for a fit that is settled and misses no mode."""
    khat, num_draws, ess = evidence.weights.khat, evidence.weights.weights.size, evidence.weights.ess
    numbers = f"k-hat is {khat:.2f} and the importance sample is worth {ess:.0f} of {num_draws} draws"
    if num_draws < limits.MIN_DRAWS:
        reason = f"{num_draws} draws are too few to judge their weights by; {limits.MIN_DRAWS} are needed."
        return VerdictKind.CANNOT_TELL, reason, "Draw more (num_samples)."
    mean_at, sd_at = int(evidence.mean_high.argmax()), int(evidence.log_sd_high.argmax())
    shift = (
        f"re-weighting moves means by at most {evidence.mean_high[mean_at]:.2f} sd ({found.labels[mean_at]}) and sds "
        f"by at most {np.expm1(evidence.log_sd_high[sd_at]):.0%} ({found.labels[sd_at]})"
    )
    raw_is_right = (
        evidence.mean_high.max() <= limits.MEAN_GOOD
        and evidence.log_sd_high.max() <= limits.LOG_SD_GOOD
        and evidence.tail_high.max() <= limits.TAIL_LIMIT
    )
    if khat < limits.KHAT_TRUST and raw_is_right:
        return VerdictKind.TRUST, f"The fit is settled, {numbers}, and {shift}.", "Use the draws as they are."
    if khat < limits.KHAT_REWEIGHTED and ess >= limits.IS_ESS:
        reason = f"The fit is settled and its weights are reliable ({numbers}), but raw draws are off: {shift}."
        return VerdictKind.TRUST_REWEIGHTED, reason, USE_WEIGHTS
    if khat < evidence.limit and evidence.mean_high.max() <= limits.MEANS_ONLY_TOLERANCE:
        bad_sds = evidence.log_sd_low.max() > limits.LOG_SD_GOOD
        if bad_sds:
            at = int(evidence.log_sd_low.argmax())
            ratio = np.exp(evidence.shift.log_sd[at])
            word = "understated" if ratio < 1 else "overstated"
            reason = (
                f"Means are within {limits.MEANS_ONLY_TOLERANCE} sd, but sds are {word}, {found.labels[at]} by "
                f"{abs(1 - ratio):.0%}; {numbers}."
            )
            return VerdictKind.MEANS_ONLY, reason, f"Use a richer guide, or NUTS. {COMPARE}"
    return _without_good_weights(evidence, found, numbers)


def _without_good_weights(evidence: Evidence, found: Quantities, numbers: str) -> tuple[VerdictKind, str, str]:
    """Poor weights may still convict a fit; they cannot acquit it."""
    at = int(evidence.mean_low.argmax())
    seen = evidence.weights.ess >= limits.IS_ESS_EVIDENCE
    if seen and evidence.mean_low[at] > limits.MEANS_ONLY_TOLERANCE:
        size = abs(evidence.shift.mean[at])
        reason = f"Importance weights move the mean of {found.labels[at]} by {size:.2f} sd; {numbers}."
        return VerdictKind.DO_NOT_TRUST, reason, "Use a richer guide, or NUTS."
    at = int(evidence.log_sd_low.argmax())
    if seen and evidence.log_sd_low[at] > limits.LOG_SD_TOLERANCE:
        ratio = np.exp(evidence.shift.log_sd[at])
        reason = f"The sd of {found.labels[at]} is {ratio:.2f} times what importance weights make it; {numbers}."
        return VerdictKind.DO_NOT_TRUST, reason, f"Use a richer guide, or NUTS. {COMPARE}"
    if evidence.weights.khat >= evidence.limit:
        limit = f"k-hat must be below {evidence.limit:.2f}"
    elif evidence.weights.khat >= limits.KHAT_REWEIGHTED:
        limit = f"k-hat from {limits.KHAT_REWEIGHTED} to {evidence.limit:.2f} needs a second opinion"
    else:
        limit = f"{limits.IS_ESS} effective draws are needed"
    reason = f"The importance weights do not suffice to judge the draws: {numbers} ({limit})."
    return VerdictKind.CANNOT_TELL, reason, COMPARE


def _after_search(
    fit: Fit, search: Callable[[Fit], Any], so_far: tuple[VerdictKind, str, str], found: Quantities
) -> tuple[VerdictKind, str, str, dict[str, float]]:
    """Look for modes where the fit has no draws; k-hat cannot see them (notes, 2.4)."""
    try:
        modes = search(fit)
    except InputError as error:  # no density to search: a subsampled plate, a fit loaded without its model
        return VerdictKind.CANNOT_TELL, f"Other modes could not be looked for: {error}", COMPARE, {}
    seen = {"num_settled": float(modes.num_settled), "num_elsewhere": float(modes.num_elsewhere)}
    if modes.num_elsewhere > 0:
        if found.identified:  # the search sees raw sites, where every mode comes once for each order of the components
            reason = f"Other modes were found, which may or may not be the same one relabelled: {modes.message}"
            return VerdictKind.CANNOT_TELL, reason, COMPARE, seen
        return VerdictKind.DO_NOT_TRUST, modes.message, f"Use more starts or a richer guide. {COMPARE}", seen
    if modes.num_settled < limits.MIN_SETTLED:
        reason = f"The search for other modes did not settle: {modes.message}"
        return VerdictKind.CANNOT_TELL, reason, COMPARE, seen
    kind, reason, next_step = so_far
    return kind, f"{reason} No other mode was found from {modes.num_settled} starts.", next_step, seen
