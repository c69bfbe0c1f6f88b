"""`compare`: how far other fits are from a reference, judged only after the reference has been judged itself."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from inference.agreement import Errors, errors_between, judge_agreement
from inference.diagnostics import (
    JointDistance,
    Moments,
    Weights,
    correlations,
    has_spread,
    moments,
    sliced_wasserstein,
    smooth_weights,
    tail_index,
    wasserstein,
    weighted_moments,
)
from inference.discrete_view import DiscreteView, discrete_view
from inference.errors import InputError
from inference.fit import Fit
from inference.label_view import with_label_view
from inference.limits import CORRELATION_REMARK
from inference.quantities import Quantities, common_quantities, name_list
from inference.verdict import check_quantities
from inference.verdict_kinds import Verdict, VerdictKind, finite

if TYPE_CHECKING:
    from inference.latent_view import LatentView

# Correlations of more quantities than this would take a matrix of over 100 MB.
MAX_CORRELATED = 4000
# A quantity without spread counts as the same constant when it differs by less than float32 rounding allows.
SAME_CONSTANT = 1e-5


@dataclass(frozen=True)
class CorrelationDifference:
    """The pair of quantities whose correlation differs most between a candidate and the reference."""

    first: str
    second: str
    candidate: float
    reference: float
    se: float


@dataclass(frozen=True)
class Comparison:
    """What `compare` found. Print it, or write it with `to_html`.

    Attributes
    ----------
    fits
        As given, but for the rule by which exchangeable labels were aligned (``fit.state["label_view"]``).
    reference
        Name of the reference.
    reference_verdict
        Verdict on the reference by its own diagnostics. If it is not ``TRUST``, no candidate can be judged.
    verdicts
        One for each candidate.
    table
        One row for each candidate and quantity, errors in reference sds with Monte Carlo standard errors. ``judgement``
        is good, unclear or bad; ``severity`` the largest error as a multiple of its tolerance.
    correlations
        The largest correlation difference of each candidate with more than one quantity.
    joints
        Distance of each candidate's joint distribution from the reference's, beside what chance makes of it.
    costs
        One row for each fit: seconds in all and by part, how many times faster than the reference, gradient
        evaluations, and for chains gradients per effective draw.
    remarks
        What was compared and what was left out.
    latent
        Of `inference.latent_view.LatentView.comparison`, the view that the report shows; else None.
    """

    fits: dict[str, Fit]
    reference: str
    reference_verdict: Verdict
    verdicts: dict[str, Verdict]
    table: pd.DataFrame
    correlations: dict[str, CorrelationDifference]
    joints: dict[str, JointDistance]
    costs: pd.DataFrame
    remarks: tuple[str, ...]
    latent: "LatentView | None" = None

    @property
    def believed(self) -> str:
        """The fit to believe first: the reference if it is healthy, else a candidate that is trusted by its own."""
        trusted = [name for name, verdict in self.verdicts.items() if verdict.trusted]
        return self.reference if self.reference_verdict.trusted or not trusted else trusted[0]

    @cached_property
    def discrete(self) -> DiscreteView | None:
        """Assignments and states by the believed fit; None where the model has none."""
        return discrete_view(self.fits[self.believed])

    def rows(self, candidate: str) -> pd.DataFrame:
        """Give the rows of one candidate, the worst quantity first."""
        if self.table.empty:
            return self.table
        return self.table[self.table["candidate"] == candidate].sort_values("severity", ascending=False)

    def __str__(self) -> str:
        from inference.report_text import comparison_text

        return comparison_text(self)

    def to_html(self, path: str | Path) -> Path:
        """Write one self-contained HTML file with verdicts, tables, figures and how everything was made."""
        from inference.report import write_html  # brings in matplotlib, which printing does not need

        return write_html(self, path)

    def to_dict(self) -> dict[str, Any]:
        """Return a value that `json.dumps` takes; numbers that are not finite become None."""
        return {
            "reference": self.reference,
            "reference_verdict": self.reference_verdict.to_dict(),
            "verdicts": {name: verdict.to_dict() for name, verdict in self.verdicts.items()},
            "table": [finite(row) for row in self.table.to_dict(orient="records")],
            "correlations": {name: finite(vars(pair)) for name, pair in self.correlations.items()},
            "joints": {name: finite(vars(joint)) for name, joint in self.joints.items()},
            "costs": {name: finite(row) for name, row in self.costs.to_dict(orient="index").items()},
            "remarks": list(self.remarks),
        }


def compare(fits: Mapping[str, Fit], *, reference: str = "nuts") -> Comparison:
    """Compare fits of the same posterior with a reference among them.

    The reference is judged first; one that is not healthy itself leaves every candidate at ``CANNOT_TELL``, with the
    numbers still shown. Where the model has ``identify``, its label-free quantities are compared instead of the sites;
    else, where components are exchangeable, all fits are relabelled to the reference, and ``remarks`` says so.

    Parameters
    ----------
    fits
        By name, the reference included.
    reference
        Name of the fit to measure the others by, usually NUTS; or draws of another program (`from_draws`).

    Raises
    ------
    InputError
        Unknown reference, nothing to compare with it, different sites or different data.

    Examples
    --------
    >>> comparison = compare({"nuts": nuts, "auto": auto}, reference="nuts")
    >>> comparison.verdicts["auto"].trusted
    True
    """
    fits = dict(fits)
    if reference not in fits:
        raise InputError(f"reference: expected one of {', '.join(fits) or 'no fits'}, got '{reference}'.")
    if len(fits) < 2:
        raise InputError(f"fits: only the reference '{reference}' was given; add at least one fit to compare with it.")
    _require_same_data(fits, reference)
    fits, relabelled = with_label_view(fits, reference=reference)
    found = common_quantities(fits, reference=reference)
    found, remarks = _drop_constants(found, reference)
    remarks = (relabelled, *remarks) if relabelled else remarks
    extra = {site for fit in fits.values() for site in fit.draws} - set(fits[reference].draws)
    if extra and not found[reference].identified:
        remarks += (f"Not in the reference, and not compared: {name_list(sorted(extra))}.",)
    reference_verdict = check_quantities(fits[reference], found[reference])
    base = _Reference(fits[reference], found[reference]) if not found[reference].not_finite() else None
    rows, verdicts, pairs, joints = [], {}, {}, {}
    for name, fit in fits.items():
        if name == reference:
            continue
        if base is None or found[name].not_finite():
            verdicts[name] = (
                _unusable(reference_verdict, reference) if base is None else check_quantities(fit, found[name])
            )
            continue
        rows.append(_judge(name, fit, found[name], base, reference_verdict, verdicts, pairs))
        if base.correlations is not None:
            joints[name] = sliced_wasserstein(
                found[name].draws,
                base.draws,
                num_effective=_effective_draws(fit, found[name]).min(),
                num_effective_reference=base.ess.min(),
            )
    table = pd.concat(rows, ignore_index=True) if rows else pd.DataFrame(columns=["candidate", "quantity"])
    costs = _costs(fits, found, reference)
    return Comparison(fits, reference, reference_verdict, verdicts, table, pairs, joints, costs, remarks)


class _Reference:
    """What is computed once for the reference: its moments, tails and correlations."""

    def __init__(self, fit: Fit, found: Quantities) -> None:
        self.labels = found.labels
        self.draws = found.draws
        self.moments = moments(found.draws, independent=fit.independent)
        self.tail_index = tail_index(found.draws)
        self.correlations = correlations(found.draws) if len(found.labels) <= MAX_CORRELATED else None
        self.ess = _effective_draws(fit, found)


def _judge(
    name: str,
    fit: Fit,
    found: Quantities,
    base: _Reference,
    reference_verdict: Verdict,
    verdicts: dict[str, Verdict],
    pairs: dict[str, CorrelationDifference],
) -> pd.DataFrame:
    """Compare one candidate: its rows of the table; its verdict and correlation pair are entered by name."""
    estimates = moments(found.draws, independent=fit.independent)
    errors = errors_between(estimates, base.moments, tail_index=base.tail_index)
    weights, weighted, weighted_errors = _weighted(fit, found, base)
    verdict = judge_agreement(base.labels, errors, weighted=weighted_errors, weights=weights)
    pair = _correlation_difference(fit, found, base)
    if pair:
        pairs[name] = pair
    verdicts[name] = _final(fit, found, verdict, reference_verdict, pair)
    return _rows(name, base, estimates, errors, wasserstein(found.draws, base.draws) / errors.scale, weighted_errors)


def _weighted(fit: Fit, found: Quantities, base: _Reference) -> tuple[Weights | None, Moments | None, Errors | None]:
    """Weights of a variational fit and the errors of its weighted moments, where it has a density."""
    if "log_weight" not in fit.stats:
        return None, None, None
    weights = smooth_weights(fit.stats["log_weight"])
    if not np.isfinite(weights.khat):
        return weights, None, None
    weighted = weighted_moments(found.pooled, weights.weights)
    return weights, weighted, errors_between(weighted, base.moments, tail_index=base.tail_index)


def _final(
    fit: Fit, found: Quantities, verdict: Verdict, reference_verdict: Verdict, pair: CorrelationDifference | None
) -> Verdict:
    """Put the verdict on agreement under what is known of the reference and of the candidate itself."""
    remarks = []
    if pair and abs(pair.candidate - pair.reference) - 2 * pair.se > CORRELATION_REMARK:
        remarks.append(
            f"Joint statements are another matter: the correlation of {pair.first} and {pair.second} is "
            f"{pair.candidate:+.2f} here and {pair.reference:+.2f} in the reference."
        )
    if fit.method != "mcmc" and not fit.status.ok:
        remarks.append(f"The optimisation is not settled: {fit.status.message}")
    if reference_verdict.kind is not VerdictKind.TRUST:
        reason = f"The reference cannot be relied upon, nor can the errors shown. {reference_verdict.reason}"
        next_step = f"Mend the reference first: {reference_verdict.next_step}"
        return Verdict(VerdictKind.CANNOT_TELL, reason, verdict.worst, next_step, verdict.checks, tuple(remarks))
    if fit.method == "mcmc":
        own = check_quantities(fit, found)
        if own.kind is not VerdictKind.TRUST:
            return Verdict(own.kind, own.reason, verdict.worst, own.next_step, verdict.checks | own.checks, own.remarks)
    return replace(verdict, remarks=verdict.remarks + tuple(remarks))


def _unusable(reference_verdict: Verdict, reference: str) -> Verdict:
    reason = f"The reference '{reference}' cannot be used. {reference_verdict.reason}"
    return Verdict(
        VerdictKind.CANNOT_TELL, reason, next_step=f"Mend the reference first: {reference_verdict.next_step}"
    )


def _rows(
    name: str, base: _Reference, estimates: Moments, errors: Errors, distance: np.ndarray, weighted: Errors | None
) -> pd.DataFrame:
    """One row for each quantity; the columns are the public names."""
    columns: dict[str, Any] = {
        "candidate": name,
        "quantity": list(base.labels),
        "mean": estimates.mean,
        "sd": estimates.sd,
        "reference_mean": base.moments.mean,
        "reference_sd": base.moments.sd,
        "mean_difference": errors.mean,
        "mean_difference_se": errors.mean_se,
        "sd_ratio": np.exp(errors.log_sd),
        "sd_ratio_se": np.exp(errors.log_sd) * errors.log_sd_se,
    }
    for i, prob in enumerate(("q05", "q50", "q95")):
        columns[f"{prob}_difference"], columns[f"{prob}_difference_se"] = errors.quantile[i], errors.quantile_se[i]
    columns["wasserstein"] = distance
    nothing = np.full(len(base.labels), np.nan)
    columns["weighted_mean_difference"] = weighted.mean if weighted else nothing
    columns["weighted_mean_difference_se"] = weighted.mean_se if weighted else nothing
    columns["weighted_sd_ratio"] = np.exp(weighted.log_sd) if weighted else nothing
    columns["weighted_sd_ratio_se"] = np.exp(weighted.log_sd) * weighted.log_sd_se if weighted else nothing
    columns |= {"heavy_tailed": errors.heavy, "severity": errors.severity, "judgement": errors.states()}
    return pd.DataFrame(columns)


def _correlation_difference(fit: Fit, found: Quantities, base: _Reference) -> CorrelationDifference | None:
    """Find the pair whose correlation differs most; None with fewer than two quantities or with too many."""
    if base.correlations is None or len(base.labels) < 2:
        return None
    ours = correlations(found.draws)
    difference = np.abs(np.triu(ours - base.correlations, k=1))
    i, j = np.unravel_index(int(difference.argmax()), difference.shape)
    ours_ij, theirs_ij = float(ours[i, j]), float(base.correlations[i, j])
    ess = _effective_draws(fit, found)
    # Large-sample variance of a correlation, (1 - rho^2)^2 / n, with effective draws for n.
    variance = (1 - ours_ij**2) ** 2 / min(ess[i], ess[j]) + (1 - theirs_ij**2) ** 2 / min(base.ess[i], base.ess[j])
    return CorrelationDifference(base.labels[i], base.labels[j], ours_ij, theirs_ij, float(np.sqrt(variance)))


def _effective_draws(fit: Fit, found: Quantities) -> np.ndarray:
    if fit.independent:
        return np.full(len(found.labels), float(np.prod(found.draws.shape[:2])))
    return np.maximum(np.nan_to_num(found.mixing.ess_bulk, nan=1.0), 1.0)


def _costs(fits: dict[str, Fit], found: dict[str, Quantities], reference: str) -> pd.DataFrame:
    """Seconds by part, gradients, gradients per effective draw (chains only), and how many times faster."""
    total = {name: float(sum(fit.seconds.values())) for name, fit in fits.items()}
    rows = {}
    for name, fit in fits.items():
        row: dict[str, Any] = {"seconds": total[name]}
        row["speed_up"] = total[reference] / total[name] if total[name] and total[reference] else float("nan")
        row["num_gradients"] = int(fit.num_gradients)
        mcmc = fit.method == "mcmc" and not found[name].not_finite()
        row["min_ess"] = float(_effective_draws(fit, found[name]).min()) if mcmc else float("nan")
        row["gradients_per_effective_draw"] = row["num_gradients"] / row["min_ess"]
        rows[name] = row | {f"seconds_{part}": float(value) for part, value in fit.seconds.items()}
    return pd.DataFrame.from_dict(rows, orient="index")


def _drop_constants(found: dict[str, Quantities], reference: str) -> tuple[dict[str, Quantities], tuple[str, ...]]:
    """Leave out what is the same constant in every fit (a zero above a diagonal, say), and say what was left out."""
    base = found[reference]
    value = base.draws[0, 0]
    constant = ~has_spread(base.draws)
    for other in found.values():
        with np.errstate(invalid="ignore"):  # infinite draws are reported elsewhere
            gap = np.abs(other.draws - value).max(axis=(0, 1))
        constant &= gap <= SAME_CONSTANT * np.maximum(np.abs(value), 1.0)
    if constant.all():
        raise InputError("fits: every quantity is the same constant in all of them; there is nothing to compare.")
    remarks = []
    if base.identified:
        remarks.append("Compared on the model's label-free quantities (identify), not on raw sites.")
    if constant.any():
        names = name_list([label for label, out in zip(base.labels, constant, strict=True) if out])
        remarks.append(f"Left out, being the same constant in every fit: {names}.")
    if base.left_out:
        remarks.append(f"Discrete sites are not compared: {', '.join(base.left_out)}.")
    return {name: q.select(~constant) for name, q in found.items()}, tuple(remarks)


def _require_same_data(fits: dict[str, Fit], reference: str) -> None:
    """Refuse fits whose data differ under the same name: their posteriors are not the same question."""
    base = fits[reference].data
    for name, fit in fits.items():
        for key in base.keys() & fit.data.keys():
            ours, theirs = np.asarray(base[key]), np.asarray(fit.data[key])
            same = ours.shape == theirs.shape
            if same and np.issubdtype(ours.dtype, np.number) and np.issubdtype(theirs.dtype, np.number):
                same = np.allclose(ours, theirs, rtol=SAME_CONSTANT, equal_nan=True)
            elif same:
                same = bool(np.all(ours == theirs))
            if not same:
                raise InputError(
                    f"fits['{name}']: its data '{key}' differ from those of the reference '{reference}'; "
                    "compare fits to the same data."
                )
