"""What a fit gets wrong, by a reference that it has not seen: the truth that a verdict is held against.

Defined once, by the limits of `inference.limits` that verdicts themselves speak in. An estimate (mean, log sd, or
quantile where tails are too heavy for an sd) is **wrong** when its error exceeds the tolerance by more than Monte Carlo
error: a user who was told that it is within the tolerance was told something untrue. It is **right** when its error
is within the GOOD limit but for Monte Carlo error, and within the tolerance, and when that Monte Carlo error is itself
under half the tolerance (chains with ten effective draws have not answered): a user could have been told so. Between
the two either answer will do: grey. A fit is wrong when any of its quantities is, right when all are.
"""

from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from benchmarks.posteriordb.accuracy import published_moments
from benchmarks.posteriordb.database import Posterior
from inference import Fit, Verdict, from_draws, limits
from inference.agreement import Errors, errors_between
from inference.diagnostics import Moments, moments, smooth_weights, tail_index, weighted_moments
from inference.quantities import Quantities, quantities
from inference.second_opinion import raw_moments
from inference.verdict import VerdictKind

# Of the worst of a hundred quantities, with three estimates each, chance exceeds this once in ten fits; an error has to
# be that far beyond its tolerance as well, so that a right fit is never called wrong.
SIGMAS = 3.0


class Truth(StrEnum):
    """Whether draws are right."""

    RIGHT = "right"
    GREY = "grey"
    WRONG = "wrong"


@dataclass(frozen=True, eq=False)
class Known:
    """A reference: moments and tail index of its quantities."""

    labels: tuple[str, ...]
    moments: Moments
    tail_index: np.ndarray

    @classmethod
    def of(cls, posterior: Posterior, *, draws: slice = slice(None)) -> "Known":
        """Take a reference's draws, or some of each chain, or its published moments."""
        if not posterior.draws:
            labels, published = published_moments(posterior)
            return cls(tuple(labels), published, np.zeros(len(labels)))
        found = quantities(from_draws({name: value[:, draws] for name, value in posterior.draws.items()}))
        return cls(found.labels, moments(found.draws, independent=False), tail_index(found.draws))

    def errors(self, found: Quantities, ours: Moments) -> Errors:
        """Errors of the moments of a fit's quantities, in the order of this reference."""
        at = np.array([found.labels.index(label) for label in self.labels])
        return errors_between(_chosen(ours, at), self.moments, tail_index=self.tail_index)


def _chosen(ours: Moments, at: np.ndarray) -> Moments:
    return Moments(**{name: value[..., at] for name, value in vars(ours).items()})


@dataclass(frozen=True, eq=False)
class Measured:
    """Errors of a fit's draws, and of its weighted draws where it has weights that can be smoothed."""

    known: Known
    raw: Errors
    weighted: Errors | None

    @property
    def truth(self) -> Truth:
        """Of the raw draws."""
        return judged(self.raw)

    @property
    def weighted_truth(self) -> Truth | None:
        """Of the weighted draws."""
        return None if self.weighted is None else judged(self.weighted)

    def keeps(self, verdict: Verdict) -> Truth | None:
        """Whether what a verdict vouches for is right; None where it vouches for nothing."""
        if verdict.kind is VerdictKind.TRUST:
            return self.truth
        if verdict.kind is VerdictKind.TRUST_REWEIGHTED:
            return self.weighted_truth
        if verdict.kind is VerdictKind.SOME_PARAMETERS:
            return judged(self.raw, np.isin(self.known.labels, verdict.usable))
        if verdict.kind is VerdictKind.MEANS_ONLY:
            off, error = self.raw.means
            beyond = np.abs(off) - SIGMAS * error > limits.MEANS_ONLY_TOLERANCE
            return Truth.WRONG if beyond.any() else Truth.RIGHT
        return None


def measure(fit: Fit, known: Known) -> Measured:
    """Measure a fit; draws that are not finite are infinitely far."""
    found = quantities(fit)
    ours = raw_moments(fit, found) if fit.independent else moments(found.draws, independent=False)
    weights = smooth_weights(fit.stats["log_weight"]) if "log_weight" in fit.stats else None
    weighted = None
    if weights is not None and np.isfinite(weights.khat):
        weighted = known.errors(found, weighted_moments(found.pooled, weights.weights))
    return Measured(known, known.errors(found, ours), weighted)


def judged(errors: Errors, among: Collection[bool] | None = None) -> Truth:
    """Judge errors, of some quantities."""
    among = np.ones(errors.mean.shape, dtype=bool) if among is None else np.asarray(among)
    size, allowed = np.abs(errors.size)[:, among], SIGMAS * errors.se[:, among]
    if (size - allowed > errors.tolerance[:, among]).any():
        return Truth.WRONG
    unknown = np.isnan(size)  # an sd that does not exist, a quantile that was not published
    tolerance = errors.tolerance[:, among]
    within = (size - allowed <= errors.good[:, among]) & (size <= tolerance) & (errors.se[:, among] <= tolerance / 2)
    return Truth.RIGHT if (within | unknown).all() else Truth.GREY


def worst(errors: Errors, labels: Collection[str]) -> str:
    """Name the worst error."""
    ratio = np.nan_to_num(np.abs(errors.size) / errors.tolerance)
    kind, at = np.unravel_index(int(ratio.argmax()), ratio.shape)
    name = ("mean", "log sd", "5 %", "50 %", "95 %")[kind]
    return f"{name} of {list(labels)[at]} {errors.size[kind, at]:+.2f} ± {errors.se[kind, at]:.2f}"
