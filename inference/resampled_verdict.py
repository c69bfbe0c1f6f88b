"""Verdict on a variational fit whose draws an engine has already resampled by their importance weights."""

from collections.abc import Callable
from typing import Any

import numpy as np

from inference import limits
from inference.diagnostics import has_spread
from inference.errors import InputError
from inference.fit import Fit
from inference.quantities import Quantities
from inference.second_opinion import Opinion, ask_chains, judge_opinion
from inference.verdict_kinds import Verdict, VerdictKind
from inference.weight_verdict import COMPARE, finish, unsettled


def judge_resampled(
    fit: Fit, found: Quantities, *, search: Callable[[Fit], Any], ask: Callable[..., Opinion] = ask_chains
) -> Verdict:
    """Judge by the k-hat of the resampling, by short chains where that does not suffice, and by a search for modes.

    ``fit.state["importance"]`` has the weights' ``khat``, ``khat_limit`` and ``ess``, and ``num_proposals``.
    """
    found = found.select(has_spread(found.draws))
    if fit.status.kind == "diverged":
        reason = f"The optimisation diverged: {fit.status.message}"
        return Verdict(VerdictKind.DO_NOT_TRUST, reason, next_step="Fit again.")
    importance = {name: float(value) for name, value in fit.state["importance"].items()}
    checks = {"khat": importance["khat"], "khat_limit": importance["khat_limit"], "is_ess": importance["ess"]}
    numbers = (
        f"the draws are resampled from {importance['num_proposals']:.0f} proposals with k-hat {checks['khat']:.2f}, "
        f"worth {checks['is_ess']:.0f} draws"
    )
    if reason := unsettled(fit):
        next_step = "Give it more steps or starts, and check again."
        return Verdict(VerdictKind.CANNOT_TELL, reason, next_step=next_step, checks=checks)
    if not found.labels:
        return Verdict(VerdictKind.CANNOT_TELL, "No quantity varies.", next_step=COMPARE, checks=checks)
    error = limits.Z / np.sqrt(max(checks["is_ess"], 1.0))
    enough = checks["is_ess"] >= limits.IS_ESS
    by_weights = Verdict(
        VerdictKind.TRUST,
        f"The fit is settled, and {numbers}, so that means are known to {error:.2f} sd.",
        next_step="Use the draws as they are.",
        checks=checks,
    )
    if enough and checks["khat"] < limits.KHAT_REWEIGHTED:
        return finish(fit, found, by_weights, search)
    verdict = None
    try:
        opinion = ask(fit, found)
    except InputError:  # no flat density, or a fit loaded without its model
        pass
    else:
        checks |= opinion.numbers
        verdict = judge_opinion(opinion, None, f"The importance weights do not suffice ({numbers})")
        verdict.checks.update(checks)
    if verdict is None or verdict.kind is VerdictKind.CANNOT_TELL:
        if enough and checks["khat"] < limits.KHAT_REWEIGHTED:
            verdict = by_weights
        elif verdict is None:
            reason = f"The importance weights do not suffice to judge the draws: {numbers}."
            verdict = Verdict(VerdictKind.CANNOT_TELL, reason, next_step=COMPARE, checks=checks)
    return finish(fit, found, verdict, search)
