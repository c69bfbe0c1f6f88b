"""Verdict on a variational fit from its own importance weights, its optimisation, and a search for other modes.

The rules are those of notes/vi-algorithms.md, section 18: what importance weights cannot settle, short Markov chains
decide (`inference.second_opinion`), and where those cannot the answer is "cannot tell". Thresholds: `inference.limits`.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from inference import limits
from inference.agreement import BAD, GOOD
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
from inference.evidence import kl_gap
from inference.fit import Fit
from inference.quantities import Quantities
from inference.relabel import exchangeable_of
from inference.second_opinion import Opinion, ask_chains, judge_opinion
from inference.verdict_kinds import USE_WEIGHTS, QuantityErrors, Verdict, VerdictKind

NUM_WORST = 5
COMPARE = "Compare it with NUTS: compare({'nuts': ..., 'vi': ...})."


@dataclass(frozen=True)
class Weighed:
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

    @property
    def usable(self) -> bool:
        """Whether weighted moments mean something."""
        return self.weights.khat < self.limit and self.weights.ess >= limits.IS_ESS

    @property
    def raw_is_right(self) -> bool:
        """Whether weighted moments are no different from raw ones."""
        return bool(
            self.mean_high.max() <= limits.MEAN_GOOD
            and self.log_sd_high.max() <= limits.LOG_SD_GOOD
            and self.tail_high.max() <= limits.TAIL_LIMIT
        )

    @property
    def convicted(self) -> np.ndarray:
        """Which quantities (Q,) are wrong even if the weights are poor."""
        wrong = (self.mean_low > limits.MEANS_ONLY_TOLERANCE) | (self.log_sd_low > limits.LOG_SD_TOLERANCE)
        return wrong & (self.weights.ess >= limits.IS_ESS_EVIDENCE)


def judge_weights(
    fit: Fit, found: Quantities, *, search: Callable[[Fit], Any], ask: Callable[..., Opinion] = ask_chains
) -> Verdict:
    """Climb the ladder: settled? weights? short chains? other modes? Stop when the answer is clear."""
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
    if np.isnan(log_weight).any() or np.isposinf(log_weight).any():
        return _verdict(VerdictKind.CANNOT_TELL, _bad_weights(log_weight), COMPARE)
    weights = smooth_weights(log_weight)
    if np.isfinite(weights.khat):
        weighed = _weigh(found, weights)
        verdict = _by_weights(found, weighed, log_weight)
    else:
        weighed = None
        verdict = _verdict(VerdictKind.CANNOT_TELL, _bad_weights(log_weight), COMPARE)
    if (reason := unsettled(fit)) and verdict.kind is not VerdictKind.DO_NOT_TRUST:
        next_step = "Give it more steps or starts, and check again."
        verdict = replace(verdict, kind=VerdictKind.CANNOT_TELL, reason=reason, next_step=next_step)
    elif not reason and not _is_clear(verdict, weighed):
        verdict = _with_second_opinion(fit, found, verdict, weighed, ask)
    return finish(fit, found, verdict, search)


def finish(fit: Fit, found: Quantities, verdict: Verdict, search: Callable[[Fit], Any]) -> Verdict:
    """Climb the last and dearest rung where something good would be said otherwise, and add the remarks."""
    if verdict.kind not in (VerdictKind.DO_NOT_TRUST, VerdictKind.CANNOT_TELL):
        verdict = _after_search(fit, search, verdict, found)
    if found.identified:
        remark = "Judged on the model's label-free quantities (identify), not on raw sites."
        verdict = replace(verdict, remarks=(*verdict.remarks, remark))
    return verdict


def _by_weights(found: Quantities, weighed: Weighed, log_weight: np.ndarray) -> Verdict:
    centre = weighed.weights.weights @ found.pooled
    khats = functional_khat(found.pooled, log_weight, centre=centre)
    checks = _numbers(weighed) | {"functional_khat": float(khats.max())}
    if weighed.weights.khat < 1.0:  # from 1 on the mean of the weights is infinite, for all that can be known
        checks["kl_gap"], checks["kl_gap_se"] = kl_gap(log_weight, weighed.weights)
    kind, reason, next_step = _from_weights(weighed, found)
    return Verdict(kind, reason, _worst(found, weighed, khats), next_step, checks)


def _is_clear(verdict: Verdict, weighed: Weighed | None) -> bool:
    """Whether the weights alone settle the matter: raw draws that they hardly move, or too few draws for anything."""
    if weighed is None:
        return False
    return verdict.kind is VerdictKind.TRUST or weighed.weights.weights.size < limits.MIN_DRAWS


def _with_second_opinion(
    fit: Fit, found: Quantities, verdict: Verdict, weighed: Weighed | None, ask: Callable[..., Opinion]
) -> Verdict:
    """Let short Markov chains decide where they can; what weights have proved wrong stays wrong."""
    usable = weighed is not None and weighed.usable
    weights = weighed.weights if usable else None
    try:
        opinion = ask(fit, found, weights=weights, resampled=usable and not weighed.raw_is_right)
    except InputError:  # no flat density, or a fit loaded without its model: the weights are all there is
        return verdict
    because = "The importance weights do not suffice"
    if weighed is not None:
        if usable and not weighed.raw_is_right:
            because = "The importance weights move the draws"
        because += f" (k-hat is {weighed.weights.khat:.2f}, worth {weighed.weights.ess:.0f} draws)"
    second = judge_opinion(opinion, weights, because)
    checks = verdict.checks | opinion.numbers
    if second.kind is VerdictKind.CANNOT_TELL and verdict.kind is not VerdictKind.CANNOT_TELL:
        return replace(verdict, checks=checks)
    if verdict.kind is VerdictKind.TRUST_REWEIGHTED and not _overrules(second, opinion, weighed):
        return replace(verdict, checks=checks)
    good = {label for label, state in zip(opinion.labels, opinion.raw.states(), strict=True) if state == GOOD}
    if weighed is not None and second.kind is not VerdictKind.TRUST_REWEIGHTED:
        contested = [found.labels[i] for i in np.flatnonzero(weighed.convicted) if found.labels[i] in good]
        if contested:  # poor weights rarely invent an error, and chains may have been too slow to show it
            return replace(verdict, checks=checks)
    return replace(second, checks=checks)


def _overrules(second: Verdict, opinion: Opinion, weighed: Weighed) -> bool:
    """Whether chains stand above reliable weights: if those found nothing wrong with the raw draws, or are wrong."""
    if second.kind is VerdictKind.TRUST:
        return weighed.raw_is_right
    if second.kind is VerdictKind.TRUST_REWEIGHTED or opinion.weighted is None:
        return True
    # The tails of a posterior that is heavier than the guide escape even weights with a small k-hat.
    return bool(opinion.weighted.severity.max() > 1.0 or (opinion.weighted.states() == BAD).any())


def _verdict(kind: VerdictKind, reason: str, next_step: str) -> Verdict:
    return Verdict(kind, reason, next_step=next_step)


def _bad_weights(log_weight: np.ndarray) -> str:
    nan = int(np.isnan(log_weight).sum() + np.isposinf(log_weight).sum())
    if nan:
        return f"{nan} of {log_weight.size} log importance weights are NaN or infinite."
    if np.ptp(log_weight) > LARGEST_LOG_RANGE:
        return "A few draws carry all of the importance weight, and k-hat cannot be estimated from so few."
    return f"The {log_weight.size} importance weights have no tail to fit, so k-hat cannot be estimated."


def unsettled(fit: Fit) -> str:
    """Say why the optimisation is not settled; empty when it is."""
    if not fit.status.ok:
        return f"The optimisation is not settled ({fit.status.kind}): {fit.status.message}"
    starts = fit.state.get("starts") or {}
    if not starts.get("agree", True):
        elbo = np.asarray(starts.get("elbo", [np.nan]), dtype=float)
        return f"The optimisation is not settled: its {elbo.size} starts end {np.ptp(elbo):.2g} nats apart in ELBO."
    return ""


def _weigh(found: Quantities, weights: Weights) -> Weighed:
    shift = raw_against_weighted(found.pooled, weights.weights)
    mean, log_sd, z = np.abs(shift.mean), np.abs(shift.log_sd), limits.Z_UNRELIABLE
    return Weighed(
        weights=weights,
        limit=khat_limit(weights.weights.size),
        shift=shift,
        mean_high=mean + limits.Z * shift.mean_se,
        log_sd_high=log_sd + limits.Z * shift.log_sd_se,
        tail_high=(np.abs(shift.tail) + limits.Z * shift.tail_se).max(axis=0),
        mean_low=mean - z * shift.mean_se,
        log_sd_low=log_sd - z * shift.log_sd_se,
    )


def _numbers(weighed: Weighed) -> dict[str, float]:
    return {
        "khat": weighed.weights.khat,
        "khat_limit": weighed.limit,
        "is_ess": weighed.weights.ess,
        "max_mean_error": float(weighed.mean_high.max()),
        "max_log_sd_error": float(weighed.log_sd_high.max()),
        "max_tail_error": float(weighed.tail_high.max()),
    }


def _worst(found: Quantities, weighed: Weighed, khats: np.ndarray) -> tuple[QuantityErrors, ...]:
    shift = weighed.shift
    badness = np.maximum(np.abs(shift.mean) / limits.MEAN_GOOD, np.abs(shift.log_sd) / limits.LOG_SD_GOOD)
    return tuple(
        QuantityErrors(
            found.labels[i],
            {
                "mean_error": float(shift.mean[i]),
                "mean_error_se": float(shift.mean_se[i]),
                "sd_ratio": float(np.exp(shift.log_sd[i])),
                "log_sd_se": float(shift.log_sd_se[i]),
                "khat": float(khats[i]),
            },
        )
        for i in np.argsort(-badness)[:NUM_WORST]
    )


def _from_weights(weighed: Weighed, found: Quantities) -> tuple[VerdictKind, str, str]:
    """Return kind, reason and next step for a fit that is settled and misses no mode."""
    khat, num_draws, ess = weighed.weights.khat, weighed.weights.weights.size, weighed.weights.ess
    numbers = f"k-hat is {khat:.2f} and the importance sample is worth {ess:.0f} of {num_draws} draws"
    if num_draws < limits.MIN_DRAWS:
        reason = f"{num_draws} draws are too few to judge their weights by; {limits.MIN_DRAWS} are needed."
        return VerdictKind.CANNOT_TELL, reason, "Draw more (num_samples)."
    mean_at, sd_at = int(weighed.mean_high.argmax()), int(weighed.log_sd_high.argmax())
    shift = (
        f"re-weighting moves means by at most {weighed.mean_high[mean_at]:.2f} sd ({found.labels[mean_at]}) and sds "
        f"by at most {np.expm1(weighed.log_sd_high[sd_at]):.0%} ({found.labels[sd_at]})"
    )
    if khat < limits.KHAT_TRUST and weighed.raw_is_right:
        return VerdictKind.TRUST, f"The fit is settled, {numbers}, and {shift}.", "Use the draws as they are."
    if khat < limits.KHAT_REWEIGHTED and ess >= limits.IS_ESS:
        reason = f"The fit is settled and its weights are reliable ({numbers}), but raw draws are off: {shift}."
        return VerdictKind.TRUST_REWEIGHTED, reason, USE_WEIGHTS
    if khat < weighed.limit and weighed.mean_high.max() <= limits.MEANS_ONLY_TOLERANCE:
        bad_sds = weighed.log_sd_low.max() > limits.LOG_SD_GOOD
        if bad_sds:
            at = int(weighed.log_sd_low.argmax())
            ratio = np.exp(weighed.shift.log_sd[at])
            word = "understated" if ratio < 1 else "overstated"
            reason = (
                f"Means are within {limits.MEANS_ONLY_TOLERANCE} sd, but sds are {word}, {found.labels[at]} by "
                f"{abs(1 - ratio):.0%}; {numbers}."
            )
            return VerdictKind.MEANS_ONLY, reason, f"Use a richer guide, or NUTS. {COMPARE}"
    return _without_good_weights(weighed, found, numbers)


def _without_good_weights(weighed: Weighed, found: Quantities, numbers: str) -> tuple[VerdictKind, str, str]:
    """Poor weights may still convict a fit; they cannot acquit it."""
    at = int(weighed.mean_low.argmax())
    seen = weighed.weights.ess >= limits.IS_ESS_EVIDENCE
    if seen and weighed.mean_low[at] > limits.MEANS_ONLY_TOLERANCE:
        size = abs(weighed.shift.mean[at])
        reason = f"Importance weights move the mean of {found.labels[at]} by {size:.2f} sd; {numbers}."
        return VerdictKind.DO_NOT_TRUST, reason, "Use a richer guide, or NUTS."
    at = int(weighed.log_sd_low.argmax())
    if seen and weighed.log_sd_low[at] > limits.LOG_SD_TOLERANCE:
        ratio = np.exp(weighed.shift.log_sd[at])
        reason = f"The sd of {found.labels[at]} is {ratio:.2f} times what importance weights make it; {numbers}."
        return VerdictKind.DO_NOT_TRUST, reason, f"Use a richer guide, or NUTS. {COMPARE}"
    if weighed.weights.khat >= weighed.limit:
        limit = f"k-hat must be below {weighed.limit:.2f}"
    elif weighed.weights.khat >= limits.KHAT_REWEIGHTED:
        limit = f"k-hat from {limits.KHAT_REWEIGHTED} to {weighed.limit:.2f} needs a second opinion"
    else:
        limit = f"{limits.IS_ESS} effective draws are needed"
    reason = f"The importance weights do not suffice to judge the draws: {numbers} ({limit})."
    return VerdictKind.CANNOT_TELL, reason, COMPARE


def _after_search(fit: Fit, search: Callable[[Fit], Any], so_far: Verdict, found: Quantities) -> Verdict:
    """Look for modes where the fit has no draws; neither k-hat (notes, 2.4) nor short chains can see them."""
    try:
        modes = search(fit)
    except InputError as error:  # no density to search: a subsampled plate, a fit loaded without its model
        reason = f"Other modes could not be looked for: {error}"
        return replace(so_far, kind=VerdictKind.CANNOT_TELL, reason=reason, next_step=COMPARE, usable=())
    seen = {"num_settled": float(modes.num_settled), "num_elsewhere": float(modes.num_elsewhere)}
    so_far = replace(so_far, checks=so_far.checks | seen)
    if modes.num_elsewhere > 0:
        # The search knows copies of a mode under other labels where it finds the symmetry; other symmetries (the signs
        # of factors) it does not know.
        if found.identified and not exchangeable_of(fit):
            reason = f"Other modes were found, which may or may not be the same one relabelled: {modes.message}"
            return replace(so_far, kind=VerdictKind.CANNOT_TELL, reason=reason, next_step=COMPARE, usable=())
        next_step = f"Use more starts or a richer guide. {COMPARE}"
        return replace(so_far, kind=VerdictKind.DO_NOT_TRUST, reason=modes.message, next_step=next_step, usable=())
    if modes.num_settled < limits.MIN_SETTLED:
        reason = f"The search for other modes did not settle: {modes.message}"
        return replace(so_far, kind=VerdictKind.CANNOT_TELL, reason=reason, next_step=COMPARE, usable=())
    if getattr(modes, "reached_once", False):
        reason = (
            f"Of {modes.num_settled} climbs only one ended in the highest mode, the others in lower ones: in a model "
            "with labels there may be a higher one that none of them has met."
        )
        next_step = "Give it more starts (num_starts), or starts of your own (Model.start), and check again."
        return replace(so_far, kind=VerdictKind.CANNOT_TELL, reason=reason, next_step=next_step, usable=())
    return replace(so_far, reason=f"{so_far.reason} No other mode was found from {modes.num_settled} starts.")
