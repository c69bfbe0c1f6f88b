"""Error rates of verdicts over the bank as Markdown tables, with k-hat alone beside them."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from scipy.stats import binomtest

from benchmarks.posteriordb import PORTS
from benchmarks.tables import markdown
from benchmarks.verdict_bank.cells import Row
from benchmarks.verdict_bank.exact import EXACT
from benchmarks.verdict_bank.fits import ENGINES, GAUSSIAN, ONE_MODE, REFERENCE, SPOILS
from benchmarks.verdict_bank.truth import Truth
from inference import limits
from inference.diagnostics import khat_limit
from inference.verdict import VerdictKind

TRUSTED = (VerdictKind.TRUST, VerdictKind.TRUST_REWEIGHTED)
# What is widely done: draws are used as they are where k-hat is below the largest limit for usable weights.
KHAT_ALONE = khat_limit(10**9)
SHOWN_ALARMS = 12
BOTH = ", of both"

EXPLAINED = f"""
Truth: draws are **wrong** when an error of a mean or of a log sd (of a quantile where tails are heavy) is beyond \
tolerance ({limits.MEAN_TOLERANCE} sd; a factor of 1.25; {limits.QUANTILE_TOLERANCE} sd) by more than three Monte \
Carlo errors, **right** when all are within {limits.MEAN_GOOD} sd, 10 % and {limits.QUANTILE_GOOD} sd but for \
three Monte Carlo errors, and **grey** in between, where either answer will do. False trust: a verdict vouches for \
what is wrong (`TRUST` for the draws, `TRUST_REWEIGHTED` for the weighted draws, `SOME_PARAMETERS` for those it does \
not name, `MEANS_ONLY` for means to {limits.MEANS_ONLY_TOLERANCE} sd), among all pairs in which something is. False \
alarm: draws are right, and the verdict is neither `TRUST` nor `TRUST_REWEIGHTED`, so that "cannot tell" is one. \
k-hat alone: draws are trusted as they are, or weighted, where it is below {KHAT_ALONE}; pairs without weights \
(AutoVI that went on to NUTS) do not count for it. In brackets: 95 % Wilson intervals.
"""


@dataclass(frozen=True)
class Rate:
    """So many of so many."""

    count: int
    of: int

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval."""
        found = binomtest(self.count, self.of).proportion_ci(method="wilson")
        return found.low, found.high

    def __str__(self) -> str:
        if not self.of:
            return "–"
        low, high = self.interval
        return f"{self.count} of {self.of}: {self.count / self.of:.1%} ({low:.1%} to {high:.1%})"


def false_trust(rows: Sequence[Row]) -> Rate:
    """How often `check` vouches for what is wrong."""
    wrong = [row for row in rows if Truth.WRONG in (row["truth"], row["kept"])]
    return Rate(sum(row["kept"] == Truth.WRONG for row in wrong), len(wrong))


def false_alarm(rows: Sequence[Row]) -> Rate:
    """How often `check` does not trust what is right."""
    right = [row for row in rows if row["truth"] == Truth.RIGHT]
    return Rate(sum(row["verdict"] not in TRUSTED for row in right), len(right))


def khat_false_trust(rows: Sequence[Row]) -> Rate:
    """The same of k-hat alone."""
    wrong = [row for row in rows if row["truth"] == Truth.WRONG and row["method"] == "vi"]
    return Rate(sum(_small(row) for row in wrong), len(wrong))


def weighting_false_trust(rows: Sequence[Row]) -> Rate:
    """How often weighted draws are wrong that k-hat alone lets pass, among the same pairs as `khat_false_trust`."""
    wrong = [row for row in rows if row["truth"] == Truth.WRONG and row["method"] == "vi"]
    return Rate(
        sum(_small(row) and (row["weighted_truth"] or row["truth"]) == Truth.WRONG for row in wrong), len(wrong)
    )


def khat_false_alarm(rows: Sequence[Row]) -> Rate:
    """The same of k-hat alone."""
    right = [row for row in rows if row["truth"] == Truth.RIGHT and row["method"] == "vi"]
    return Rate(sum(not _small(row) for row in right), len(right))


def _small(row: Row) -> bool:
    return row["khat"] is not None and row["khat"] < KHAT_ALONE


GROUPS: Mapping[str, Callable[[Row], bool]] = {
    "**all**": lambda row: True,
    "posteriordb and published": lambda row: row["posterior"] in PORTS,
    "exact": lambda row: row["posterior"] not in PORTS,
    "fits as they come": lambda row: row["fit"] in ENGINES,
    "AutoVI": lambda row: row["fit"].startswith("auto"),
    "SVI, Laplace": lambda row: row["fit"].startswith(("svi", "laplace")),
    "unconverged": lambda row: row["fit"].startswith("unconverged"),
    "spoilt Gaussians": lambda row: row["fit"].startswith(GAUSSIAN),
    "spoilt references": lambda row: row["fit"].startswith(REFERENCE),
    **{f"{name}{BOTH}": lambda row, end=f", {name}": row["fit"].endswith(end) for name in SPOILS},
    "one mode of several": lambda row: row["fit"] == ONE_MODE,
}


def report(rows: Sequence[Row]) -> str:
    """Write all tables."""
    rows = [row for row in rows if "skipped" not in row]
    done = [row for row in rows if "failed" not in row]
    posteriors = dict.fromkeys(row["posterior"] for row in done)
    exact = sum(name in EXACT for name in posteriors)
    truths = Counter(row["truth"] for row in done)
    counted = (
        f"{len(done)} pairs of {len(posteriors)} posteriors ({sum(name in PORTS for name in posteriors)} ported, "
        f"{len(posteriors) - exact - sum(name in PORTS for name in posteriors)} conjugate, {exact} with exact draws): "
        + ", ".join(f"{truths[truth]} {truth}" for truth in Truth)
        + f". {len(rows) - len(done)} fits failed. "
        + f"`check` takes {sum(row['check_seconds'] for row in done) / max(len(done), 1):.2f} s in the mean."
    )
    parts = [EXPLAINED.strip(), counted, rates(done), verdicts(done)]
    return "\n\n".join([*parts, trusted_wrongly(done), alarms(done), failures(rows)]).rstrip()


def rates(rows: Sequence[Row]) -> str:
    """Rates by group."""
    trusts = ("`check`: false trust", "k-hat alone: false trust", "k-hat alone, re-weighted: false trust")
    header = ["", *trusts, "`check`: false alarm", "k-hat alone: false alarm"]
    body = []
    for name, belongs in GROUPS.items():
        mine = [row for row in rows if belongs(row)]
        trusts = false_trust(mine), khat_false_trust(mine), weighting_false_trust(mine)
        found = (*trusts, false_alarm(mine), khat_false_alarm(mine))
        body.append([name, *map(str, found)])
    return markdown(header, body)


def verdicts(rows: Sequence[Row]) -> str:
    """Count verdicts by truth, and by what was done to a fit."""
    groups = {f"raw draws {truth}": [row for row in rows if row["truth"] == truth] for truth in Truth}
    groups |= {name: [row for row in rows if GROUPS[name](row)] for name in GROUPS if name.endswith(BOTH)}
    body = []
    for name, mine in groups.items():
        counts = Counter(row["verdict"] for row in mine)
        body.append([name, *(str(counts[kind]) for kind in VerdictKind)])
    return markdown(["", *VerdictKind], body)


def trusted_wrongly(rows: Sequence[Row]) -> str:
    """List every false trust."""
    wrong = [row for row in rows if row["kept"] == Truth.WRONG]
    if not wrong:
        return "No verdict vouches for what is wrong."
    body = []
    for row in wrong:
        error = row["worst_weighted"] if row["verdict"] == VerdictKind.TRUST_REWEIGHTED else row["worst"]
        body.append([row["posterior"], row["fit"], row["verdict"], _khat(row), error])
    return "Every false trust:\n\n" + markdown(["posterior", "fit", "verdict", "k-hat", "worst error"], body)


def alarms(rows: Sequence[Row]) -> str:
    """Where right fits are most often not trusted."""
    alarmed = [row for row in rows if row["truth"] == Truth.RIGHT and row["verdict"] not in TRUSTED]
    if not alarmed:
        return "No false alarm."
    counts = Counter(row["posterior"] for row in alarmed).most_common(SHOWN_ALARMS)
    body = []
    for name, count in counts:
        mine = [row for row in alarmed if row["posterior"] == name]
        right = sum(row["truth"] == Truth.RIGHT for row in rows if row["posterior"] == name)
        body.append([name, f"{count} of {right}", mine[0]["fit"], mine[0]["reason"].replace("|", "/")])
    shown = f"False alarms, the {SHOWN_ALARMS} posteriors with most of them, with the first reason given:"
    return f"{shown}\n\n" + markdown(["posterior", "alarms among right fits", "such as", "reason"], body)


def failures(rows: Sequence[Row]) -> str:
    """List what failed, and why."""
    return "\n".join(f"- {row['posterior']}, {row['fit']}: {row['failed']}" for row in rows if "failed" in row)


def _khat(row: Row) -> str:
    return "–" if row["khat"] is None else f"{row['khat']:.2f}"
