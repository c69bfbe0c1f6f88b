"""A comparison as text for a terminal."""

from dataclasses import replace
from typing import TYPE_CHECKING

from inference.text_table import format_number, format_table, wrap
from inference.verdict_kinds import Verdict

if TYPE_CHECKING:
    import pandas as pd

    from inference.compare import Comparison

MAX_ROWS = 20  # per candidate: what a terminal shows without scrolling past the verdict

HEADINGS = [
    "quantity",
    "mean error",
    "+-",
    "sd ratio",
    "+-",
    "5 % end",
    "median",
    "95 % end",
    "distance",
    "",
    "weighted",
]
COLUMNS = [
    "mean_difference",
    "mean_difference_se",
    "sd_ratio",
    "sd_ratio_se",
    "q05_difference",
    "q50_difference",
    "q95_difference",
    "wasserstein",
]


def comparison_text(comparison: "Comparison") -> str:
    """Tables of the worst quantities, then costs, then the verdicts: what matters most stands last, at the prompt."""
    lines = []
    for name in comparison.verdicts:
        title = f"{comparison.fits[name].model_name}: {name} against {comparison.reference}".removeprefix(": ")
        lines += [f"{title}: {comparison.fits[name].engine!r}", ""]
        lines += [*_candidate_table(comparison, name), *_wrapped(candidate_facts(comparison, name)), ""]
    lines += [str(comparison.latent), ""] if comparison.latent is not None else [_cost_table(comparison), ""]
    for remark in [*engine_notes(comparison), *comparison.remarks]:
        lines += [*wrap(remark), ""]
    lines += [f"Reference {comparison.reference}: {comparison.reference_verdict}", ""]
    for name, verdict in comparison.verdicts.items():
        lines += [f"{name}: {_without_table(verdict)}", ""]
    return "\n".join(lines).rstrip()


def _candidate_table(comparison: "Comparison", name: str) -> list[str]:
    table = comparison.rows(name)
    if table.empty:
        return ["No numbers: see the verdict."]
    weighted = table["weighted_mean_difference"].notna().any() or table["weighted_sd_ratio"].notna().any()
    rows = []
    for row in table.head(MAX_ROWS).to_dict(orient="records"):
        cells = [row["quantity"] + (" (heavy tails)" if row["heavy_tailed"] else "")]
        cells += [_signed(row[key]) if key.endswith("difference") else format_number(row[key]) for key in COLUMNS]
        cells.append("" if row["judgement"] == "good" else row["judgement"])
        if weighted:
            cells.append(f"{_signed(row['weighted_mean_difference'])} / {format_number(row['weighted_sd_ratio'])}")
        rows.append(cells)
    lines = [format_table(HEADINGS if weighted else HEADINGS[:-1], rows)]
    if len(table) > MAX_ROWS:
        lines.append(f"({len(table) - MAX_ROWS} more quantities with smaller errors are not shown)")
    explained = "Errors, ends and distance (Wasserstein) in posterior sds of the reference; +- is Monte Carlo error."
    return [*lines, explained + (" weighted: mean error / sd ratio after re-weighting." if weighted else "")]


def _wrapped(lines: list[str]) -> list[str]:
    return [part for line in lines for part in wrap(line)]


def candidate_facts(comparison: "Comparison", name: str) -> list[str]:
    """Sentences on what the table does not show: importance weights, and the correlation that differs most."""
    checks, lines = comparison.verdicts[name].checks, []
    if "khat" in checks:
        lines.append(
            f"PSIS k-hat {checks['khat']:.2f} (usable below {checks['khat_limit']:.2f}), "
            f"importance sample worth {checks['is_ess']:.0f} draws."
        )
    pair = comparison.correlations.get(name)
    if pair:
        lines.append(
            f"Largest correlation difference: {pair.first} and {pair.second}, {pair.candidate:+.2f} here, "
            f"{pair.reference:+.2f} in the reference (+- {pair.se:.2f})."
        )
    joint = comparison.joints.get(name)
    if joint:
        lines.append(
            f"Joint distribution (sliced Wasserstein): {joint.distance:.3f} sd from the reference's; exact draws would "
            f"be about {joint.expected:.3f} away."
        )
    return lines


def cost_parts(row: "pd.Series") -> str:
    """Write where the time of one fit went, from its row of the costs."""
    return ", ".join(
        f"{key.removeprefix('seconds_').replace('_', ' ')} {format_seconds(value)}"
        for key, value in row.items()
        if str(key).startswith("seconds_") and value > 0  # NaN: a part that another fit has
    )


def _cost_table(comparison: "Comparison") -> str:
    costs, rows = comparison.costs, []
    for name, row in costs.iterrows():
        rows.append(
            [
                str(name),
                format_seconds(row["seconds"]),
                f"{int(row['num_gradients'])}",
                format_number(row["gradients_per_effective_draw"]),
                "" if name == comparison.reference else f"{format_number(row['speed_up'])} x",
                comparison.fits[name].state["backend"],
                cost_parts(row),
            ]
        )
    headings = ["cost", "time", "gradients", "per effective draw", "speed-up", "ran on", "parts"]
    return format_table(headings, rows, left=(0, 5, 6))


def engine_notes(comparison: "Comparison") -> list[str]:
    """List what the engines remark on how they ran; a remark that several make stands once."""
    makers: dict[str, list[str]] = {}
    for name, fit in comparison.fits.items():
        for note in fit.notes:
            makers.setdefault(note, []).append(name)
    return [f"{', '.join(names)}: {note}." for note, names in makers.items()]


def format_seconds(seconds: float) -> str:
    """Seconds with a unit that suits their size."""
    if seconds < 1e-3:
        return f"{seconds * 1e6:.0f} us"
    if seconds < 1:
        return f"{seconds * 1e3:.0f} ms"
    return f"{seconds:.1f} s" if seconds < 120 else f"{seconds / 60:.1f} min"


def _signed(value: float) -> str:
    text = format_number(value)
    return f"+{text}" if value > 0 else text


def _without_table(verdict: Verdict) -> str:
    """Print a verdict without its table of worst quantities, which stands above already."""
    return str(replace(verdict, worst=()))
