"""Verdict on a Markov chain from its own diagnostics."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from inference import limits
from inference.diagnostics import Mixing, energy_bfmi, has_spread
from inference.divergences import Location, locate
from inference.errors import InputError
from inference.fit import Fit
from inference.gaussian import MAX_FULL_RANK
from inference.modes import ModeSearch
from inference.quantities import Quantities
from inference.relabel import exchangeable_of
from inference.verdict_kinds import QuantityErrors, Verdict, VerdictKind

NUM_WORST = 5


@dataclass(frozen=True)
class Complaint:
    """Something wrong with a chain. ``severity``: 2 condemns the draws, 1 leaves doubt, 0 is a remark."""

    severity: int
    text: str
    remedy: str


def judge_chains(fit: Fit, found: Quantities) -> Verdict:
    """Judge by R-hat, effective sample sizes, divergences, energy, tree depth and status; finite draws only."""
    moving = has_spread(found.draws)
    if not moving.any():
        return Verdict(
            VerdictKind.DO_NOT_TRUST,
            "The chains never moved: every quantity has the same value in every draw.",
            next_step="Check the model's starting point and scale, and run a longer warm-up.",
        )
    found = found.select(moving)
    mixing = found.mixing
    checks = _numbers(fit, mixing)
    place = locate(found, fit.stats["diverging"]) if checks.get("num_divergent") else None
    if place:
        checks |= {"divergent_quantile": place.quantile, "divergent_shift": place.shift}
    complaints = [
        *_about_run(fit, found),
        *_about_modes(fit),
        *_about_mixing(found, mixing),
        *_about_trajectories(fit, checks, place),
    ]
    complaints.sort(key=lambda c: -c.severity)
    remarks = tuple(f"{c.text} {c.remedy}" for c in complaints if c.severity == 0)
    if found.identified:
        remarks += ("Judged on the model's label-free quantities (identify), not on raw sites.",)
    serious = [c for c in complaints if c.severity > 0]
    if serious:
        kind = VerdictKind.DO_NOT_TRUST if serious[0].severity == 2 else VerdictKind.CANNOT_TELL
        reason = " ".join(c.text for c in serious)
        return Verdict(kind, reason, _worst(found, mixing), serious[0].remedy, checks, remarks)
    reason = (
        f"The {found.draws.shape[0]} chains agree: R-hat is at most {checks['max_rhat']:.3f}, effective sample sizes "
        f"are at least {min(checks['min_ess_bulk'], checks['min_ess_tail']):.0f}, and "
        + (f"only {checks['num_divergent']:.0f} diverged." if checks.get("num_divergent") else "no draw diverged.")
    )
    return Verdict(VerdictKind.TRUST, reason, _worst(found, mixing), "Use the draws as they are.", checks, remarks)


def look_once_more(fit: Fit, found: Quantities, verdict: Verdict, search: Callable[[Fit], ModeSearch]) -> Verdict:
    """Take trust back where a search finds a mode in which no chain has been.

    Four chains that all end in one of two equal modes agree, and nothing else here can see it. What chains have shown
    is not taken back where the search finds nothing to climb (a funnel), nor where modes may be one another by a
    symmetry that is not known: exchangeable labels are.
    """
    points = fit.state.get("unconstrained")
    if verdict.kind is not VerdictKind.TRUST or points is None or points.shape[-1] > MAX_FULL_RANK:
        return verdict
    if found.identified and not exchangeable_of(fit):
        return verdict
    try:
        modes = search(fit)
    except InputError:  # loaded without its model
        return verdict
    seen = {"num_settled": float(modes.num_settled), "num_elsewhere": float(modes.num_elsewhere)}
    verdict = replace(verdict, checks=verdict.checks | seen)
    if not modes.num_elsewhere:
        return verdict
    reason = f"{modes.message} {verdict.reason}"
    next_step = "Run chains from there too (more of them, other seeds), or give what comes first an order."
    return replace(verdict, kind=VerdictKind.DO_NOT_TRUST, reason=reason, next_step=next_step)


def judge_given(fit: Fit, found: Quantities) -> Verdict:
    """Judge draws that came from elsewhere: their chains must agree and be long enough; no more is known of them."""
    num_chains, num_draws = found.draws.shape[:2]
    reason = f"Given by {fit.state['backend']}, and taken at its word: {num_chains} x {num_draws} draws."
    moving = found.select(has_spread(found.draws))
    if fit.independent or not moving.labels:
        return Verdict(VerdictKind.TRUST, reason, next_step="Use the draws as they are.")
    mixing = moving.mixing
    checks, worst = _numbers(fit, mixing), _worst(moving, mixing)
    complaints = list(_about_mixing(moving, mixing))
    if complaints:
        remedy = "Ask its maker for longer chains."
        return Verdict(VerdictKind.CANNOT_TELL, " ".join(c.text for c in complaints), worst, remedy, checks)
    return Verdict(VerdictKind.TRUST, reason, worst, "Use the draws as they are.", checks)


def _numbers(fit: Fit, mixing: Mixing) -> dict[str, float]:
    checks = {
        "max_rhat": float(np.max(mixing.rhat)),  # NaN stays NaN: an R-hat that cannot be computed is not 1
        "min_ess_bulk": float(np.min(mixing.ess_bulk)),
        "min_ess_tail": float(np.min(mixing.ess_tail)),
    }
    if "diverging" in fit.stats:
        checks["num_divergent"] = float(np.sum(fit.stats["diverging"]))
        checks["divergent_share"] = float(np.mean(fit.stats["diverging"]))
    if "energy" in fit.stats:
        checks["min_bfmi"] = float(np.min(energy_bfmi(np.asarray(fit.stats["energy"], dtype=np.float64))))
    if "reached_max_treedepth" in fit.stats:
        checks["tree_depth_share"] = float(np.mean(fit.stats["reached_max_treedepth"]))
    return checks


def _worst(found: Quantities, mixing: Mixing) -> tuple[QuantityErrors, ...]:
    # By R-hat to two digits first, then by effective sample size, so that noise in R-hat does not order healthy chains.
    order = np.lexsort((mixing.ess_bulk, -np.nan_to_num(mixing.rhat, nan=0.0, posinf=1e9).round(2)))
    table = {"rhat": mixing.rhat, "ess_bulk": mixing.ess_bulk, "ess_tail": mixing.ess_tail}
    return tuple(
        QuantityErrors(found.labels[i], {name: float(values[i]) for name, values in table.items()})
        for i in order[:NUM_WORST]
    )


def _about_run(fit: Fit, found: Quantities) -> Iterator[Complaint]:
    if not fit.status.ok:
        yield Complaint(1, f"The run ended early ({fit.status.kind}): {fit.status.message}", "Run it to the end.")
    if found.draws.shape[0] < 2:
        yield Complaint(1, "One chain cannot show that chains agree.", "Run NUTS(num_chains=4).")


def _about_modes(fit: Fit) -> Iterator[Complaint]:
    """Chains that each stayed in one mode were put together by the masses of the modes (`inference.mode_chains`)."""
    errors = fit.state.get("modes", {}).get("se", np.zeros(1))
    if not np.max(errors) < limits.MODE_MASS_SE:
        known = f"to +-{np.max(errors):.2f} only" if np.isfinite(errors).all() else "by importance weights only"
        yield Complaint(1, f"The masses of its {len(errors)} modes are known {known}.", "Draw more (num_samples).")


def _about_mixing(found: Quantities, mixing: Mixing) -> Iterator[Complaint]:
    num_chains = found.draws.shape[0]
    worst = int(np.argmax(np.nan_to_num(mixing.rhat, nan=0.0, posinf=1e9)))
    rhat = mixing.rhat[worst]
    if num_chains > 1 and not np.max(mixing.rhat) < limits.RHAT:
        yield Complaint(
            2 if rhat > limits.RHAT_BROKEN else 1,
            f"R-hat of {found.labels[worst]} is {rhat:.3f}, above {limits.RHAT}: the chains do not agree.",
            "Run longer (num_warmup, num_samples); if it stays, look for several modes or reparameterise.",
        )
    needed = max(limits.ESS, limits.ESS_PER_CHAIN * num_chains)
    for kind, values in (("bulk", mixing.ess_bulk), ("tail", mixing.ess_tail)):
        low = int(np.argmin(np.nan_to_num(values, nan=-1.0)))
        if not values[low] >= needed:
            factor = 1.2 * needed / values[low] if values[low] > 0 else np.inf  # 1.2: to be on the safe side of it
            yield Complaint(
                1,
                f"The {kind} effective sample size of {found.labels[low]} is {values[low]:.0f}; {needed} are needed.",
                f"Draw about {factor:.1f} times as many samples."
                if factor < 20
                else "Reparameterise, then run longer.",
            )


def _about_trajectories(fit: Fit, checks: dict[str, float], place: Location | None) -> Iterator[Complaint]:
    share = checks.get("divergent_share", 0.0)
    if share > 0:
        where = f", {place}" if place else ""
        severity = (share > limits.DIVERGENT_SHARE) + (share > limits.DIVERGENT_SHARE_BROKEN)
        yield Complaint(
            severity,
            f"{checks['num_divergent']:.0f} of {np.size(fit.stats['diverging'])} draws diverged{where}: "
            + ("part of the posterior may be out of the sampler's reach." if severity else "few enough not to matter."),
            "Raise target_accept (0.95, 0.99), or use a non-centred parameterisation for hierarchical scales.",
        )
    if not checks.get("min_bfmi", 1.0) >= limits.BFMI:
        yield Complaint(
            1,
            f"E-BFMI is {checks['min_bfmi']:.2f}, below {limits.BFMI}: the sampler hardly reaches the tails.",
            "Reparameterise heavy-tailed or hierarchical scales, or run a longer warm-up.",
        )
    saturated = checks.get("tree_depth_share", 0.0)
    if saturated > 0:
        yield Complaint(
            int(saturated > limits.TREE_DEPTH_SHARE),
            f"{saturated:.1%} of the draws reached the maximum tree depth.",
            "Raise max_tree_depth, use adaptation='low_rank', or rescale the parameters.",
        )
