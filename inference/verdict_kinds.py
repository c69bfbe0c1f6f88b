"""The verdict: what may be believed, why, and what to do next."""

import math
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from inference.text_table import format_number, format_table, wrap


class VerdictKind(StrEnum):
    """What may be believed. The value is the member's own name."""

    TRUST = "TRUST"
    TRUST_REWEIGHTED = "TRUST_REWEIGHTED"
    MEANS_ONLY = "MEANS_ONLY"
    SOME_PARAMETERS = "SOME_PARAMETERS"
    DO_NOT_TRUST = "DO_NOT_TRUST"
    CANNOT_TELL = "CANNOT_TELL"


HEADLINES = {
    VerdictKind.TRUST: "You can trust means, sds and intervals.",
    VerdictKind.TRUST_REWEIGHTED: "You can trust the re-weighted draws, not the raw ones.",
    VerdictKind.MEANS_ONLY: "You can trust the means only.",
    VerdictKind.SOME_PARAMETERS: "You can trust some parameters, not others.",
    VerdictKind.DO_NOT_TRUST: "Do not trust this fit.",
    VerdictKind.CANNOT_TELL: "Cannot tell.",
}

USE_WEIGHTS = (
    "Weigh every average over the draws by smooth_weights(fit.stats['log_weight']).weights "
    "(inference.diagnostics), or resample the draws by these weights."
)

COLUMN_NAMES = {
    "mean_error": "mean error (sd)",
    "mean_error_se": "+-",
    "sd_ratio": "sd ratio",
    "log_sd_se": "+- (log)",
    "quantile_error": "quantile error (sd)",
    "khat": "k-hat",
    "rhat": "R-hat",
    "ess_bulk": "bulk ESS",
    "ess_tail": "tail ESS",
}


@dataclass(frozen=True)
class QuantityErrors:
    """One quantity, as ``theta[3]``, and its errors: in posterior sds, ratios, or the diagnostics of its chains."""

    label: str
    errors: dict[str, float]


@dataclass(frozen=True)
class Verdict:
    """What may be believed of a fit.

    Attributes
    ----------
    kind
        One of `VerdictKind`.
    reason
        One plain sentence with the numbers that decided.
    worst
        The quantities with the largest errors, worst first.
    next_step
        What to do next.
    checks
        Every number that was looked at, by name.
    remarks
        What else is worth knowing and did not decide.
    usable
        Of ``SOME_PARAMETERS``, the quantities that may be used; else empty.
    """

    kind: VerdictKind
    reason: str
    worst: tuple[QuantityErrors, ...] = ()
    next_step: str = ""
    checks: dict[str, float] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()
    usable: tuple[str, ...] = ()

    @property
    def trusted(self) -> bool:
        """Whether the fit may be used as it stands or with its weights."""
        return self.kind in (VerdictKind.TRUST, VerdictKind.TRUST_REWEIGHTED)

    @property
    def headline(self) -> str:
        """The verdict as a sentence."""
        return HEADLINES[self.kind]

    def to_dict(self) -> dict[str, Any]:
        """Return a value that `json.dumps` takes; numbers that are not finite become None."""
        return {
            "kind": str(self.kind),
            "trusted": self.trusted,
            "headline": self.headline,
            "reason": self.reason,
            "worst": [{"quantity": w.label, **finite(w.errors)} for w in self.worst],
            "next_step": self.next_step,
            "checks": finite(self.checks),
            "remarks": list(self.remarks),
            "usable": list(self.usable),
        }

    def __str__(self) -> str:
        lines = [f"{self.kind}: {self.headline}", *wrap(self.reason)]
        if self.worst:
            columns = list(dict.fromkeys(key for row in self.worst for key in row.errors))
            rows = [[row.label, *(format_number(row.errors.get(key)) for key in columns)] for row in self.worst]
            headings = ["worst quantities", *(COLUMN_NAMES.get(key, key) for key in columns)]
            lines += ["", format_table(headings, rows)]
        for remark in self.remarks:
            lines += wrap(f"Note: {remark}")
        if self.next_step:
            lines += ["", *wrap(f"Next: {self.next_step}")]
        return "\n".join(lines)


def finite(numbers: dict[str, Any]) -> dict[str, Any]:
    """Replace every number that is not finite by None."""
    return {key: None if isinstance(v, float) and not math.isfinite(v) else v for key, v in numbers.items()}
