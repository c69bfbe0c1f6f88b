"""From runs to tables: medians over repeats, the best variant of a peer, ratios, geometric means, Markdown."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from math import exp, isfinite, log
from statistics import median

# Means of 100 quantities from right samplers differ by more than this many standard errors once in 10 000 tables.
MAX_DIFFERENCE = 5.0
BASELINES = ("numpyro", "pymc+nutpie", "stan", "stan+nutpie")


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One run, or the median of several, of one peer on one model.

    Attributes
    ----------
    model, peer, variant
        What was run.
    microseconds
        Of sampling per gradient.
    rate, rate_with_start
        Minimum bulk effective sample size per second, of sampling and of everything.
    start
        Seconds of everything but sampling.
    peak
        Resident memory of the process at its largest, MB.
    difference
        Largest difference of a posterior mean from that of the other peers, in Monte Carlo standard errors.
    note
        What the reader must know.
    """

    model: str
    peer: str
    variant: str = ""
    microseconds: float
    rate: float
    rate_with_start: float
    start: float
    peak: float
    difference: float = 0.0
    note: str = ""


NUMBERS = ("microseconds", "rate", "rate_with_start", "start", "peak")
Summary = dict[tuple[str, str], Measured]


def summarise(runs: Iterable[Measured]) -> Summary:
    """Take medians over the repeats of a variant, then the variant with the highest rate; by (model, peer)."""

    def which(run: Measured) -> tuple[str, str, str]:
        return run.model, run.peer, run.variant

    best: Summary = {}
    for (model, peer, variant), group in groupby(sorted(runs, key=which), key=which):
        repeats = list(group)
        medians = {name: median(getattr(run, name) for run in repeats) for name in NUMBERS}
        difference = max(run.difference for run in repeats)
        row = Measured(model=model, peer=peer, variant=variant, difference=difference, note=repeats[0].note, **medians)
        if (model, peer) not in best or row.rate > best[model, peer].rate:
            best[model, peer] = row
    return best


def geometric_mean(values: Iterable[float]) -> float:
    """Geometric mean; not a number if there are none."""
    logs = [log(value) for value in values]
    return exp(sum(logs) / len(logs)) if logs else float("nan")


def mean_cell(values: Sequence[float]) -> str:
    """Write the geometric mean of the values there are, and how many there are if some are missing."""
    known = [value for value in values if isfinite(value)]
    return f"**{number(geometric_mean(known))}**" + (
        f" ({len(known)} of {len(values)})" if len(known) < len(values) else ""
    )


def ratios(summary: Summary, models: Sequence[str], peers: Sequence[str], *, field: str = "rate") -> list[float]:
    """Ratio of ours to the best of some peers, model by model; NaN where either was not measured."""
    result = []
    for model in models:
        others = [getattr(summary[model, peer], field) for peer in peers if (model, peer) in summary]
        known = (model, "ours") in summary and others
        result.append(getattr(summary[model, "ours"], field) / max(others) if known else float("nan"))
    return result


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Lay out a Markdown table."""
    lines = [list(header), ["---"] * len(header), *(list(row) for row in rows)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def number(value: float | None) -> str:
    """Write a number to about three digits; a dash if it was not measured."""
    if value is None or not isfinite(value):
        return "–"
    if abs(value) >= 100:
        return f"{value:,.0f}".replace(",", " ")
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2g}" if abs(value) < 1 else f"{value:.2f}"


def peer_table(
    summary: Summary, titles: Mapping[str, str], peers: Mapping[str, str], cell: Callable[[Measured], str]
) -> str:
    """Peers in rows, models in columns; ``titles`` and ``peers`` map names to what is shown."""
    rows = []
    for peer, shown in peers.items():
        if any((model, peer) in summary for model in titles):
            rows.append([shown, *(cell(summary[m, peer]) if (m, peer) in summary else "–" for m in titles)])
    return markdown(["", *titles.values()], rows)


def ratio_table(summary: Summary, titles: Mapping[str, str]) -> str:
    """Ours against Pyro, NumPyro and the best of the others, per model and in the geometric mean."""
    rows = []
    for what, field in (("", "rate"), (", with start-up", "rate_with_start")):
        for shown, peers in (("Pyro", ["pyro"]), ("NumPyro", ["numpyro"]), ("best peer", BASELINES)):
            values = ratios(summary, list(titles), peers, field=field)
            rows.append([f"ours / {shown}{what}", *map(number, values), mean_cell(values)])
    return markdown(["", *titles.values(), "geometric mean"], rows)


def disagreements(summary: Summary) -> list[str]:
    """Sentences on peers whose posterior means differ from the others' by more than Monte Carlo error."""
    return [
        f"{row.peer}, {row.model}: a posterior mean differs from the others' by {row.difference:.1f} standard errors"
        for row in summary.values()
        if row.difference > MAX_DIFFERENCE
    ]
