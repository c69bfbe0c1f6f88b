"""Verdict on a trained latent-variable model, row by row: the joint k-hat of ten thousand latents says nothing.

What is judged is the guide's posterior of each row's latents, at the trained parameters: on a few rows against NUTS,
and on many by the importance weights of each.
"""

import numpy as np

from inference import limits
from inference.amortisation import Amortisation, amortisation
from inference.errors import InputError
from inference.fit import Fit
from inference.latent_rows import row_plate
from inference.latent_usage import LatentUsage, latent_usage
from inference.row_likelihood import RowLikelihood, log_marginal
from inference.verdict_kinds import Verdict, VerdictKind

# Rows that are weighed, with so many draws each, and rows that are sampled by NUTS; seconds for a network of 200 units.
NUM_WEIGHED, NUM_DRAWS, NUM_SAMPLED = 200, 1000, 4
NUM_WARMUP, NUM_SAMPLES = 300, 500
# Models without parameters are judged jointly up to so many latents, where the joint weights may still be good.
MAX_JOINT = 1000
# Share of rows whose weights may be poor: of 200 rows, 10.
POOR_SHARE = 0.05
BY_ROWS = "impute(fit, method='weighted') and log_marginal(fit) weigh each row's draws by its own weights."


def judge_rows(fit: Fit) -> Verdict | None:
    """Judge a fit whose latents all belong to rows; None where it is of another kind."""
    if not _has_rows(fit) or fit.status.kind == "diverged":
        return None
    try:
        likelihood = log_marginal(fit, rows=_some_rows(fit), num_samples=NUM_DRAWS, seed=fit.seed)
        usage = latent_usage(fit, seed=fit.seed)
        gaps = amortisation(
            fit,
            rows=min(NUM_SAMPLED, _some_rows(fit)),
            num_warmup=NUM_WARMUP,
            num_samples=NUM_SAMPLES,
            seed=fit.seed,
        )
    except InputError:  # a guide whose density does not split into rows
        return None
    return verdict_by_rows(fit, likelihood, usage, gaps)


def _has_rows(fit: Fit) -> bool:
    if fit.method != "vi" or fit.model is None or fit.state.get("guide") is None:
        return False
    with fit.restored() as sites:
        try:
            row_plate(sites)
        except InputError:
            return False
        return bool(sites.params) or sum(int(np.prod(s.shape)) for s in sites.latent.values()) > MAX_JOINT


def _some_rows(fit: Fit) -> int:
    with fit.restored() as sites:
        return min(NUM_WEIGHED, sites.plate_sizes[row_plate(sites)])


def verdict_by_rows(fit: Fit, likelihood: RowLikelihood, usage: LatentUsage, gaps: Amortisation) -> Verdict:
    """Put together what weights of many rows and chains of a few say of the guide."""
    comparison = gaps.comparison
    found = comparison.verdicts["encoder"]
    poor = float(np.mean(likelihood.poor))
    weighted = float(np.mean(~(likelihood.khat < limits.KHAT_REWEIGHTED)))
    off = float(gaps.table["mean_error"].max())
    rows = f"{len(gaps.rows)} rows against NUTS"
    khats = f"k-hat is above {likelihood.khat_limit:.2f} in {poor:.0%} of {len(likelihood.khat)} rows"
    lost = gaps.summary
    if comparison.reference_verdict.kind is not VerdictKind.TRUST or (gaps.table["rhat"] > limits.RHAT_BROKEN).any():
        kind = VerdictKind.CANNOT_TELL
        reason = f"The chains of {rows} cannot be relied upon; {khats}."
        next_step = "Look at amortisation(fit, num_samples=5000): posteriors of several modes need longer chains."
    elif found.kind is VerdictKind.TRUST and poor <= POOR_SHARE:
        kind, reason = (
            VerdictKind.TRUST,
            f"The guide agrees with NUTS in every latent of {len(gaps.rows)} rows; {khats}.",
        )
        next_step = "Use the draws as they are."
    elif found.kind is VerdictKind.TRUST:
        kind, reason = VerdictKind.CANNOT_TELL, f"The guide agrees with NUTS on {len(gaps.rows)} rows, but {khats}."
        next_step = f"Look at the others: amortisation(fit, rows=...) on {_names(likelihood)}."
    elif weighted <= POOR_SHARE and _weights_agree(gaps):
        kind = VerdictKind.TRUST_REWEIGHTED
        reason = f"Raw draws are off ({rows}: {_first(found.reason)}), but weights are reliable: {khats}. {lost}"
        next_step = BY_ROWS
    elif off <= limits.MEANS_ONLY_TOLERANCE:
        kind = VerdictKind.MEANS_ONLY
        low, high = gaps.table["sd_ratio_low"].min(), gaps.table["sd_ratio_high"].max()
        reason = (
            f"Means are within {off:.2f} sd ({rows}), but sds are {low:.2f} to {high:.2f} times theirs; {khats}. {lost}"
        )
        next_step = _remedy(gaps)
    else:
        kind = VerdictKind.DO_NOT_TRUST
        reason = f"The guide's means are off by up to {off:.2f} sd ({rows}); {khats}. {lost}"
        next_step = _remedy(gaps)
    worst = found.worst if found.worst else ()
    return Verdict(kind, reason, worst, next_step, _numbers(likelihood, usage, gaps), _remarks(fit, usage, gaps))


def _weights_agree(gaps: Amortisation) -> bool:
    """Whether importance sampling and NUTS give the same log p(x) for the rows that both have seen."""
    table = gaps.table
    difference = np.abs(table["log_p_is"] - table["log_p"])
    return bool((difference < limits.Z_UNRELIABLE * np.hypot(table["log_p_is_se"], table["log_p_se"]) + 0.01).all())


def _remedy(gaps: Amortisation) -> str:
    amortised = gaps.mean("amortisation_gap")[0] > gaps.mean("approximation_gap")[0]
    larger = "give the encoder more width or training" if amortised else "give the guide a richer family (a flow)"
    return f"To come nearer, {larger}; for single rows take NUTS: amortisation(fit, rows=...). {BY_ROWS}"


def _first(text: str) -> str:
    return text.split(". ")[0].split("; ")[0].rstrip(".")


def _names(likelihood: RowLikelihood) -> str:
    return "rows " + ", ".join(map(str, likelihood.rows[likelihood.poor][:5]))


def _numbers(likelihood: RowLikelihood, usage: LatentUsage, gaps: Amortisation) -> dict[str, float]:
    numbers = {
        "poor_khat_share": float(np.mean(likelihood.poor)),
        "log_p": likelihood.mean,
        "log_p_se": likelihood.mean_se,
        "elbo": float(likelihood.elbo.mean()),
        "num_active": float(usage.num_active),
        "max_mean_error": float(gaps.table["mean_error"].max()),
    }
    for name in ("approximation_gap", "amortisation_gap"):
        numbers[name], numbers[f"{name}_se"] = gaps.mean(name)
    return numbers


def _remarks(fit: Fit, usage: LatentUsage, gaps: Amortisation) -> tuple[str, ...]:
    remarks = ["Judged on the latents of single rows, at the trained parameters; whether these are the best is another "
               "question, which held-out rows answer (log_marginal)."]  # fmt: skip
    if not fit.status.ok:
        remarks.append(f"The training is not settled ({fit.status.kind}): {fit.status.message}")
    if usage.num_active < len(usage.labels):
        remarks.append(str(usage).replace("\n", " "))
    return (*remarks, *gaps.remarks)
