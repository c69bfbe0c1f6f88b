"""How far a fit is from a reference posterior, and whether that passes; the arithmetic is that of `compare`."""

from dataclasses import dataclass
from math import log

import numpy as np
import pandas as pd

from benchmarks.posteriordb.database import Posterior
from inference import Fit, compare, from_draws
from inference.agreement import errors_between
from inference.diagnostics import JointDistance, Moments, moments, smooth_weights, weighted_moments
from inference.quantities import quantities

# A fit passes when no mean, nor end of an interval where tails are heavy, is off by more than a tenth of an sd and four
# Monte Carlo errors, and no sd by more than 15 %.
MEAN_LIMIT, SD_LIMIT, SIGMAS = 0.1, log(1.15), 4.0
# Chains with less than a hundred effective draws have not answered, whatever they say.
WORTHLESS = 0.1


@dataclass(frozen=True)
class Accuracy:
    """Errors of a fit, the worst of each kind, in sds of the reference.

    Attributes
    ----------
    mean, mean_se, mean_at
        Mean difference, its Monte Carlo error, and of which quantity.
    log_sd, sd_at
        Log sd ratio.
    quantile, quantile_at
        Difference of a 5, 50 or 95 % quantile; NaN against published moments.
    joint
        Distance of the joint distributions; None against published moments.
    passes
        Whether everything is within the limits.
    weighted_passes
        Whether every mean and sd is after importance weighting; None where there are no weights.
    """

    mean: float
    mean_se: float
    mean_at: str
    log_sd: float
    sd_at: str
    quantile: float
    quantile_at: str
    joint: JointDistance | None
    passes: bool
    weighted_passes: bool | None


# Draws that are not finite are nowhere near.
NOT_FINITE = Accuracy(np.nan, np.nan, "", np.nan, "", np.nan, "", None, passes=False, weighted_passes=None)


def accuracy(fit: Fit, posterior: Posterior) -> Accuracy:
    """Measure a fit against a reference, over the sites that the reference has."""
    if quantities(fit).not_finite():
        return NOT_FINITE
    table, joint = _against_draws(fit, posterior) if posterior.draws else (_against_moments(fit, posterior), None)
    weighted = None
    if table["weighted_mean"].notna().any():
        weighted = bool(_within(table["weighted_mean"], table["weighted_mean_se"], table["weighted_log_sd"]).all())
    mean, log_sd, quantile = table["mean"].abs(), table["log_sd"].abs(), table[["q05", "q50", "q95"]].abs()
    ends = (quantile <= MEAN_LIMIT + SIGMAS * table[["q05_se", "q50_se", "q95_se"]].to_numpy()).all(axis=1)
    passes = _within(table["mean"], table["mean_se"], table["log_sd"]) & (ends | ~table["heavy"])
    at = _worst(mean)
    sd_at, quantile_at = _worst(log_sd), _worst(quantile.max(axis=1))
    return Accuracy(
        mean=float(table["mean"][at]),
        mean_se=float(table["mean_se"][at]),
        mean_at=at,
        log_sd=float(table["log_sd"][sd_at]),
        sd_at=sd_at,
        quantile=float(quantile.max(axis=1)[quantile_at]),
        quantile_at=quantile_at,
        joint=joint,
        passes=bool(passes.all()),
        weighted_passes=weighted,
    )


def _within(mean: pd.Series, mean_se: pd.Series, log_sd: pd.Series) -> pd.Series:
    """Whether mean and sd are within the limits; what heavy tails make impossible to judge is not held against."""
    precise = ~(mean_se > WORTHLESS)
    return precise & ~(mean.abs() > MEAN_LIMIT + SIGMAS * mean_se) & ~(log_sd.abs() > SD_LIMIT)


def _worst(errors: pd.Series) -> str:
    return str(errors.fillna(-1.0).idxmax())


def _against_draws(fit: Fit, posterior: Posterior) -> tuple[pd.DataFrame, JointDistance | None]:
    reference = from_draws(posterior.draws, source=posterior.name)
    found = compare({"fit": fit, "reference": reference}, reference="reference")
    table = found.table.set_index("quantity")
    columns = {"mean": "mean_difference", "mean_se": "mean_difference_se"}
    columns |= {f"weighted_{name}": f"weighted_{theirs}" for name, theirs in columns.items()}
    columns["heavy"] = "heavy_tailed"
    columns |= {f"{q}{end}": f"{q}_difference{end}" for q in ("q05", "q50", "q95") for end in ("", "_se")}
    chosen = pd.DataFrame({ours: table[theirs] for ours, theirs in columns.items()})
    logs = {"log_sd": np.log(table["sd_ratio"]), "weighted_log_sd": np.log(table["weighted_sd_ratio"])}
    return chosen.assign(**logs), found.joints.get("fit")


def published_moments(posterior: Posterior) -> tuple[list[str], Moments]:
    """Give the labels of a posterior without draws, and its published moments; quantiles are NaN."""
    labels = [site + label for site, shape in posterior.shapes.items() for label in _indices(shape)]
    mean, sd, mean_se = (
        np.concatenate([getattr(published, part).ravel() for published in posterior.moments.values()])
        for part in ("mean", "sd", "mean_se")
    )
    nothing = np.full((3, len(labels)), np.nan)
    # A mean known to sd / sqrt(n) comes with an sd known to 1 / sqrt(2 n).
    return labels, Moments(mean, mean_se, sd, mean_se / sd / np.sqrt(2.0), nothing, nothing)


def _against_moments(fit: Fit, posterior: Posterior) -> pd.DataFrame:
    found = quantities(fit)
    wanted, reference = published_moments(posterior)
    found = found.select(np.asarray([found.labels.index(label) for label in wanted]))
    nothing, light = np.full((3, len(wanted)), np.nan), np.zeros(len(wanted))
    errors = errors_between(moments(found.draws, independent=fit.independent), reference, tail_index=light)
    columns = {"mean": errors.mean, "mean_se": errors.mean_se, "log_sd": errors.log_sd, "heavy": errors.heavy}
    columns |= dict.fromkeys(("weighted_mean", "weighted_mean_se", "weighted_log_sd"), nothing[0])
    weights = smooth_weights(fit.stats["log_weight"]) if "log_weight" in fit.stats else None
    if weights is not None and np.isfinite(weights.khat):
        weighted = errors_between(weighted_moments(found.pooled, weights.weights), reference, tail_index=light)
        columns |= {"weighted_mean": weighted.mean, "weighted_mean_se": weighted.mean_se}
        columns["weighted_log_sd"] = weighted.log_sd
    for i, name in enumerate(("q05", "q50", "q95")):
        columns |= {name: errors.quantile[i], f"{name}_se": errors.quantile_se[i]}
    return pd.DataFrame(columns, index=wanted)


def _indices(shape: tuple[int, ...]) -> list[str]:
    return [f"[{','.join(map(str, index))}]" if index else "" for index in np.ndindex(shape)]
