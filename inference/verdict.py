"""From diagnostics to plain words: whether a fit may be believed, without another one to compare with."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from inference.chain_verdict import judge_chains, judge_given, look_once_more
from inference.fit import Fit
from inference.label_view import with_label_view
from inference.modes import modes_seen
from inference.quantities import Quantities, quantities
from inference.resampled_verdict import judge_resampled
from inference.row_verdict import judge_rows
from inference.verdict_kinds import QuantityErrors, Verdict, VerdictKind
from inference.weight_verdict import finish, judge_weights

__all__ = ["QuantityErrors", "Verdict", "VerdictKind", "check"]


def check(fit: Fit, *, search: Callable[[Fit], Any] | None = None) -> Verdict:
    """Judge one fit by itself.

    A Markov chain is judged by R-hat, effective sample sizes, divergences, energy and tree depth, and by a search for
    modes that all chains have missed (R-hat sees only what chains disagree about). A variational fit
    climbs a ladder: did the optimisation settle and do its starts agree, how far do importance weights move its
    moments (PSIS k-hat, raw against weighted), where the weights do not suffice how far do short Markov chains move its
    draws (TADDAA), and are there modes where it has no draws? It is never trusted on k-hat alone, and where these
    checks do not suffice the answer is "cannot tell": compare with NUTS then. Where components are exchangeable, labels
    are aligned first: chains in different labellings agree, and a mode under other labels is no other mode.

    A trained latent-variable model, whose latents all belong to rows, is judged row by row at its trained parameters
    (`inference.row_verdict`): by NUTS on a few rows, and by the k-hat of each of many.

    Parameters
    ----------
    fit
        Any result of `inference.fit`.
    search
        How to look for other modes; by default `inference.modes.modes_seen`. Takes the fit and returns a value with
        ``num_settled``, ``num_elsewhere`` and ``message``.

    Raises
    ------
    InputError
        The fit has no continuous quantity.

    Examples
    --------
    >>> verdict = check(fit(model, data, AutoVI()))
    >>> print(verdict)
    """
    by_rows = judge_rows(fit)
    if by_rows is not None:
        return by_rows
    seen, remark = with_label_view({"fit": fit}, reference="fit")
    fit = seen["fit"]
    verdict = check_quantities(fit, quantities(fit), search=search)
    return replace(verdict, remarks=(*verdict.remarks, remark)) if remark else verdict


def check_quantities(fit: Fit, found: Quantities, *, search: Callable[[Fit], Any] | None = None) -> Verdict:
    """Do what `check` does, for quantities already taken from the fit."""
    bad = found.not_finite()
    if bad:
        label, count = next(iter(bad.items()))
        return Verdict(
            VerdictKind.CANNOT_TELL,
            f"{len(bad)} of {len(found.labels)} quantities have draws that are not finite, {label} {count} of them.",
            next_step="Look for overflow in the model or a diverged optimisation, then fit again.",
            checks={"num_not_finite": float(sum(bad.values()))},
        )
    if fit.method == "mcmc":
        verdict = judge_chains(fit, found)
        # Chains that start from a fit can only find what it has found, and their R-hat with them.
        finishing = finish if "mode_search" in fit.state else look_once_more
        return finishing(fit, found, verdict, search or modes_seen)
    if fit.method == "given":
        return judge_given(fit, found)
    judge = judge_resampled if "importance" in fit.state and "log_weight" not in fit.stats else judge_weights
    return judge(fit, found, search=search or modes_seen)
