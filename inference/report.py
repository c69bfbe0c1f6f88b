"""A comparison as one self-contained HTML file: no network, figures inside, readable on a phone and on paper.

Everything that a model, its data or its user named is escaped.
"""

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from platform import platform, python_version
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure

from inference import limits
from inference.agreement import BAD, UNCLEAR
from inference.plots import comparison_figures
from inference.report_text import candidate_facts, cost_parts, format_seconds
from inference.text_table import format_number
from inference.verdict_kinds import COLUMN_NAMES, Verdict, VerdictKind

if TYPE_CHECKING:
    from inference.compare import Comparison

FIGURE_DPI = 130  # sharp on a screen, and every figure stays well below 1 MB
MAX_ROWS = 200  # per candidate in the page; the rest is in Comparison.table
PACKAGES = ("torch", "pyro-ppl", "nutpie", "arviz-base", "arviz-stats", "arviz-plots", "numpy", "scipy")
TONES = {
    VerdictKind.TRUST: "good",
    VerdictKind.TRUST_REWEIGHTED: "good",
    VerdictKind.MEANS_ONLY: "unclear",
    VerdictKind.SOME_PARAMETERS: "unclear",
    VerdictKind.DO_NOT_TRUST: "bad",
    VerdictKind.CANNOT_TELL: "unknown",
}
CAPTIONS = {
    "marginals": "Posterior densities of the quantities with the largest errors.",
    "errors": "Errors of every candidate in reference sds. A hollow marker lies beyond the axis.",
    "pair": "The two quantities whose correlation differs most.",
    "loss": "Optimisation: it is settled where the curve has become flat.",
    "trace": "Chains of the reference, the worst mixing quantities. They should look alike.",
    "clusters": "Rows in the colours of their most probable clusters. An ellipse covers two sds of the rows that a "
    "component answers for; open markers are rows whose cluster has a probability below 90 %.",
    "responsibilities": "Probabilities of each row's cluster, one bar a row.",
    "co-clustering": "How probably two rows are in one cluster, whatever its label. Lines part the clusters of the "
    "point clustering.",
    "states": "The series over its most probable states, and the probabilities of all states.",
    "reconstructions": "Rows as they are given (missing entries in blue), and decoded from the means of their codes.",
    "prior samples": "Decoded draws of the prior.",
    "traversals": "One latent of a row is moved from -3 to 3 at a time; those with the largest KL.",
    "latents": "Posterior means of the rows in the two latents with the largest KL.",
    "latent usage": "KL from the encoder to the prior by latent. Inactive latents, in grey, are the same for all rows.",
    "gaps": "What the family of the encoder and the encoder itself lose against log p(x), with Monte Carlo errors.",
    "posteriors": "Draws of NUTS, the encoder, and a Gaussian fitted to the row alone, in the two latents in which the "
    "encoder is the furthest off. Ellipses cover two sds.",
    "learning curve": "The bound per row during training.",
    "ranks": "Ranks of the same chains: lines inside the grey area agree with each other.",
}
STYLESHEET = Path(__file__).with_name("report.css")


def write_html(comparison: "Comparison", path: str | Path) -> Path:
    """Write the report of a comparison.

    Parameters
    ----------
    comparison
        Result of `inference.compare`.
    path
        File to write; its folder must exist.
    """
    path = Path(path)
    path.write_text(html(comparison), encoding="utf-8")
    return path


def html(comparison: "Comparison") -> str:
    """Return the whole page."""
    names = ", ".join(comparison.verdicts)
    sections = [
        _verdicts(comparison),
        _how_to_read(comparison),
        _figures(comparison_figures(comparison), ("marginals", "errors", "pair")),
        _discrete(comparison),
        _latent(comparison),
        *(_table(comparison, name) for name in comparison.verdicts),
        _costs(comparison),
        _how_made(comparison),
    ]
    model = comparison.fits[comparison.reference].model_name
    title = f"{model}: {names} against {comparison.reference}".removeprefix(": ")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{STYLESHEET.read_text(encoding='utf-8')}</style></head>\n"
        f"<body><main>\n<h1>{escape(title)}</h1>\n" + "\n".join(sections) + "\n</main></body></html>\n"
    )


# --- Verdicts ---------------------------------------------------------------------------------------------------------


def _verdicts(comparison: "Comparison") -> str:
    cards = [_card(name, verdict) for name, verdict in comparison.verdicts.items()]
    cards.append(_card(f"{comparison.reference} (reference)", comparison.reference_verdict))
    remarks = "".join(f"<p class='quiet'>{escape(r)}</p>" for r in comparison.remarks)
    return f"<section class='cards'>{''.join(cards)}</section>{remarks}"


def _card(name: str, verdict: Verdict) -> str:
    worst = ""
    if verdict.worst:
        keys = list(dict.fromkeys(key for row in verdict.worst for key in row.errors))
        rows = [[row.label, *(format_number(row.errors.get(key)) for key in keys)] for row in verdict.worst]
        headings = ["quantity", *(COLUMN_NAMES.get(k, k).replace("+-", "±") for k in keys)]
        worst = f"<details><summary>Worst quantities</summary>{_grid(headings, rows)}</details>"
    remarks = "".join(f"<p class='quiet'>{escape(r)}</p>" for r in verdict.remarks)
    return (
        f"<article class='card {TONES[verdict.kind]}'><h2>{escape(name)}</h2>"
        f"<p class='headline'><span class='tag'>{escape(verdict.kind.replace('_', ' '))}</span> "
        f"{escape(verdict.headline)}</p><p>{escape(verdict.reason)}</p>{remarks}"
        f"<p><b>Next:</b> {escape(verdict.next_step)}</p>{worst}</article>"
    )


def _how_to_read(comparison: "Comparison") -> str:
    return (
        "<details class='panel'><summary>How to read this page</summary>"
        f"<p>The reference, <b>{escape(comparison.reference)}</b>, was judged first, by its own diagnostics. Every "
        "other fit is measured against it, one quantity at a time. Lengths are in posterior standard deviations of the "
        "reference, so +0.5 means half a posterior sd too high. Numbers after ± are one Monte Carlo standard error.</p>"
        f"<p>An error is called <b>bad</b> when it exceeds {limits.MEAN_GOOD} sd for a mean, 10 % for an sd or "
        f"{limits.QUANTILE_GOOD} sd for a quantile by more than Monte Carlo error explains, and is excluded when "
        f"it is below {limits.MEAN_TOLERANCE} sd, 25 % and {limits.QUANTILE_TOLERANCE} sd, Monte Carlo error included. "
        "In between it is <b>unclear</b>: more draws would tell.</p>"
        "<p>Quantities with very heavy tails have no sd worth comparing and are judged by their quantiles, in units of "
        "the reference's 90 % interval divided by 3.29.</p></details>"
    )


# --- Tables -----------------------------------------------------------------------------------------------------------


def _table(comparison: "Comparison", name: str) -> str:
    table = comparison.rows(name)
    if table.empty:
        return ""
    weighted = table["weighted_mean_difference"].notna().any()
    groups = ["mean error", "sd ratio", "5 %", "median", "95 %", "distance"]
    headings = ["quantity", *groups, *(["weighted mean", "weighted sd"] if weighted else [])]
    rows, tones = [], []
    for row in table.head(MAX_ROWS).to_dict(orient="records"):
        cells = [
            row["quantity"] + (" (heavy tails)" if row["heavy_tailed"] else ""),
            _pair(row, "mean_difference"),
            _pair(row, "sd_ratio"),
            *(_pair(row, f"{q}_difference") for q in ("q05", "q50", "q95")),
            format_number(row["wasserstein"]),
        ]
        if weighted:
            cells += [_pair(row, "weighted_mean_difference"), _pair(row, "weighted_sd_ratio")]
        rows.append(cells)
        tones.append([row["judgement"], *_tones(row)])
    rest = len(table) - len(rows)
    more = f"<p class='quiet'>{rest} quantities with smaller errors are not shown.</p>" if rest > 0 else ""
    heading = f"<h2>{escape(name)}, quantity by quantity</h2>"
    return f"<section>{heading}{_grid(headings, rows, tones)}{more}{_facts(comparison, name)}</section>"


def _tones(row: Mapping[str, Any]) -> list[str]:
    """Colour of each error cell: the same rule as the verdict's, cell by cell."""
    sd_se = row["sd_ratio_se"] / row["sd_ratio"] if row["sd_ratio"] else 0.0
    no_mean = np.isnan(row["mean_difference"])
    median = (limits.MEAN_GOOD, limits.MEAN_TOLERANCE) if no_mean else (limits.QUANTILE_GOOD, limits.QUANTILE_TOLERANCE)
    quantile = (limits.QUANTILE_GOOD, limits.QUANTILE_TOLERANCE)
    cells = [
        (row["mean_difference"], row["mean_difference_se"], (limits.MEAN_GOOD, limits.MEAN_TOLERANCE)),
        (np.log(row["sd_ratio"]), sd_se, (limits.LOG_SD_GOOD, limits.LOG_SD_TOLERANCE)),
        (row["q05_difference"], row["q05_difference_se"], quantile),
        (row["q50_difference"], row["q50_difference_se"], median),
        (row["q95_difference"], row["q95_difference_se"], quantile),
    ]
    return [_tone(abs(value), se, *bounds) for value, se, bounds in cells]


def _tone(size: float, se: float, good: float, tolerance: float) -> str:
    if size - limits.Z * se > good:
        return BAD
    return UNCLEAR if size + limits.Z * se > tolerance else ""


def _facts(comparison: "Comparison", name: str) -> str:
    return "".join(f"<p>{escape(line.replace('+-', '±'))}</p>" for line in candidate_facts(comparison, name))


def _costs(comparison: "Comparison") -> str:
    rows = []
    for name, row in comparison.costs.iterrows():
        rows.append(
            [
                str(name),
                format_seconds(row["seconds"]),
                "" if name == comparison.reference else f"{format_number(row['speed_up'])} ×",
                f"{int(row['num_gradients']):,}".replace(",", " "),
                format_number(row["gradients_per_effective_draw"]),
                comparison.fits[name].state["backend"],
                cost_parts(row),
            ]
        )
    headings = ["fit", "time", "speed-up", "gradients", "per effective draw", "ran on", "parts"]
    return f"<section><h2>Cost</h2>{_grid(headings, rows)}</section>"


def _grid(headings: Sequence[str], rows: Iterable[Sequence[str]], tones: Sequence[Sequence[str]] = ()) -> str:
    """Build a table; ``tones`` gives the class of each cell, its first entry that of the row's name."""
    head = "".join(f"<th>{escape(h)}</th>" for h in headings)
    body = []
    for i, row in enumerate(rows):
        classes = [*tones[i], *[""] * len(row)] if tones else [""] * len(row)
        cells = [
            f"<td class='{c}'>{escape(text)}</td>" if c else f"<td>{escape(text)}</td>"
            for text, c in zip(row, classes, strict=False)
        ]
        body.append(f"<tr>{''.join(cells)}</tr>")
    return f"<div class='scroll'><table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"


def _pair(row: Mapping[str, Any], key: str) -> str:
    value, se = row[key], row[f"{key}_se"]
    if np.isnan(value):
        return "-"
    sign = "+" if value > 0 and "difference" in key else ""
    return f"{sign}{value:.2f} ± {se:.2f}"


# --- Figures and provenance -------------------------------------------------------------------------------------------


def _figures(figures: Mapping[str, Figure], first: Sequence[str]) -> str:
    """Embed the figures that show the answer, and fold away those that show how it came about."""
    shown = "".join(_figure(name, figures[name]) for name in first if name in figures)
    folded = "".join(_figure(name, figure) for name, figure in figures.items() if name not in first)
    if folded:
        folded = f"<details class='panel'><summary>Optimisation and chains</summary>{folded}</details>"
    return f"<section>{shown}{folded}</section>"


def _figure(name: str, figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=FIGURE_DPI, metadata={"Software": None})
    image = base64.b64encode(buffer.getvalue()).decode("ascii")
    caption = escape(CAPTIONS.get(name.split(" of ")[0], name))
    return (
        f"<figure><img alt='{caption}' src='data:image/png;base64,{image}'><figcaption>{caption}</figcaption></figure>"
    )


def _discrete(comparison: "Comparison") -> str:
    """Clusters and states by the believed fit; empty where the model has none."""
    view = comparison.discrete
    if view is None:
        return ""
    said = "".join(f"<p>{escape(line)}</p>" for line in str(view).splitlines())
    figures = view.figures()
    heading = f"<h2>Discrete sites, by {escape(comparison.believed)}</h2>"
    return f"<section>{heading}{said}{''.join(_figure(name, figure) for name, figure in figures.items())}</section>"


def _latent(comparison: "Comparison") -> str:
    """Scores, latents and figures of a trained latent-variable model; empty where the fits are of another kind."""
    view = comparison.latent
    if view is None:
        return ""
    said = "".join(f"<pre>{escape(part)}</pre>" for part in str(view).split("\n\n"))
    figures = "".join(_figure(name, figure) for name, figure in view.figures().items())
    return f"<section><h2>Latent variables</h2><div class='scroll'>{said}</div>{figures}</section>"


def _how_made(comparison: "Comparison") -> str:
    parts = []
    for name, fit in comparison.fits.items():
        facts = [
            ("engine", repr(fit.engine)),
            ("seed", str(fit.seed)),
            ("draws", f"{fit.num_chains} chains of {fit.num_draws}"),
            ("status", f"{fit.status.kind}: {fit.status.message}"),
            *(("note", note) for note in fit.notes),
        ]
        parts.append(f"<h3>{escape(name)}</h3>{_definitions(facts)}")
    data = comparison.fits[comparison.reference].data
    shapes = [(name, _shape(value)) for name, value in data.items()]
    versions = [
        ("Python", f"{python_version()} on {platform()}"),
        *((p, _version(p)) for p in ("ppl-verdict", *PACKAGES)),
    ]
    parts.append(f"<h3>Data</h3>{_definitions(shapes)}" if shapes else "")
    parts.append(f"<h3>Versions</h3>{_definitions(versions)}")
    return f"<section><h2>How it was made</h2>{''.join(parts)}</section>"


def _definitions(facts: Iterable[tuple[str, str]]) -> str:
    return "<dl>" + "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in facts) + "</dl>"


def _shape(value: Any) -> str:
    shape = getattr(value, "shape", None)
    if shape is None or len(shape) == 0:
        return str(value if shape is None else value.item())
    return f"{' × '.join(map(str, shape))}, {str(getattr(value, 'dtype', '')).removeprefix('torch.')}"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
