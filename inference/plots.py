"""Figures of a comparison. Nothing here touches the caller's rcParams, and no figure stays open in pyplot."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from arviz_base import from_dict
from arviz_plots import plot_rank, plot_trace
from arviz_stats.base import array_stats
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from inference import limits
from inference.quantities import Quantities, quantities
from inference.text_table import shorten

if TYPE_CHECKING:
    from inference.compare import Comparison

# Okabe and Ito's palette, distinguishable by the colour-blind; grey is the reference.
REFERENCE_COLOUR = "#555555"
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "D", "^", "v", "P")
NUM_MARGINALS = 9
NUM_CHAIN_PLOTS = 4
MAX_ERROR_ROWS = 40  # more do not fit on a page; the worst are shown
NUM_RANKS = 200  # draws of each chain in a rank plot
NUM_POINTS = 1000  # in a scatter plot: enough to see a shape, few enough to see through
LABEL_WIDTH = 24  # characters of a quantity's name on an axis
STYLE = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.facecolor": "white",
    "axes.facecolor": "white",
    "savefig.facecolor": "white",
    "legend.frameon": False,
    "axes.prop_cycle": mpl.cycler(color=COLOURS),
}


def comparison_figures(comparison: "Comparison") -> dict[str, Figure]:
    """Draw what a comparison found.

    Returns
    -------
    dict
        ``marginals`` (densities of the worst quantities), ``errors`` (mean differences, sd ratios and interval ends
        with Monte Carlo error), and where they apply ``pair`` (the two quantities whose correlation differs most),
        ``loss`` (of variational fits), ``trace`` and ``ranks`` (of a reference that is a Markov chain).
    """
    with style():
        draws = {name: q for name in comparison.fits if not (q := quantities(comparison.fits[name])).not_finite()}
        figures = {}
        if not comparison.table.empty:
            figures["marginals"] = _marginals(comparison, draws)
            figures["errors"] = _errors(comparison)
            if comparison.correlations:
                figures["pair"] = _pair(comparison, draws)
        if any(_has_loss(comparison, name) for name in comparison.fits):
            figures["loss"] = _loss(comparison)
        if comparison.fits[comparison.reference].method == "mcmc" and comparison.reference in draws:
            figures |= _chains(comparison, draws[comparison.reference])
    return figures


@contextmanager
def style() -> Iterator[None]:
    """Our settings over matplotlib's defaults, and the caller's put back."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(STYLE)
        yield


def _colours(comparison: "Comparison") -> dict[str, str]:
    names = [name for name in comparison.fits if name != comparison.reference]
    return {comparison.reference: REFERENCE_COLOUR} | {n: COLOURS[i % len(COLOURS)] for i, n in enumerate(names)}


def _by_severity(comparison: "Comparison") -> list[str]:
    """Names of quantities, the worst over all candidates first."""
    worst = comparison.table.groupby("quantity", sort=False)["severity"].max()
    return list(worst.sort_values(ascending=False, kind="stable").index)


def _column(found: Quantities, label: str) -> np.ndarray:
    return found.pooled[:, found.labels.index(label)]


# --- Marginals --------------------------------------------------------------------------------------------------------


def _marginals(comparison: "Comparison", draws: dict[str, Quantities]) -> Figure:
    labels, colours = _by_severity(comparison)[:NUM_MARGINALS], _colours(comparison)
    num_columns = min(3, len(labels))
    num_rows = -(-len(labels) // num_columns)
    figure = Figure(figsize=(max(5.0, 3.0 * num_columns), 2.1 * num_rows + 0.6), layout="constrained")
    axes = np.atleast_1d(figure.subplots(num_rows, num_columns)).ravel()
    for ax, label in zip(axes, labels, strict=False):
        window = _window([_column(found, label) for found in draws.values()])
        for name in [comparison.reference, *comparison.verdicts]:
            if name in draws:
                _density(ax, _column(draws[name], label), window, colours[name], fill=name == comparison.reference)
        ax.set(title=plain_text(label, LABEL_WIDTH + 8), yticks=[], xlim=window)
        ax.set_ylim(bottom=0)
        ax.spines["left"].set_visible(False)
        ax.locator_params(axis="x", nbins=5)
    for ax in axes[len(labels) :]:
        ax.set_visible(False)
    filled = {"color": colours[comparison.reference], "alpha": 0.35}
    handles = [mpl.patches.Patch(**filled, label=f"{plain_text(comparison.reference)} (reference)")]
    handles += [
        mpl.lines.Line2D([], [], color=colours[n], label=plain_text(n)) for n in comparison.verdicts if n in draws
    ]
    figure.legend(handles=handles, loc="outside upper left", ncols=len(handles))
    return figure


def _window(columns: list[np.ndarray]) -> tuple[float, float]:
    """Where the mass is: heavy tails would otherwise squeeze every density into a spike."""
    low = min(np.quantile(c, 0.002) for c in columns)
    high = max(np.quantile(c, 0.998) for c in columns)
    middle = np.quantile(columns[0], [0.05, 0.95])
    reach = 2.0 * (middle[1] - middle[0])
    low, high = max(low, middle[0] - reach), min(high, middle[1] + reach)
    pad = 0.03 * (high - low) or 1.0
    return float(low - pad), float(high + pad)


def _density(ax: Axes, column: np.ndarray, window: tuple[float, float], colour: str, *, fill: bool) -> None:
    inside = column[(column >= window[0]) & (column <= window[1])]
    if np.ptp(inside) == 0 if inside.size else True:  # a point estimate has no density
        value = float(np.clip(np.median(column), *window))
        ax.axvline(value, color=colour, linewidth=1.8)
        return
    grid, density, _ = array_stats.kde(inside, bw="scott")  # smoother than the default, for a picture
    density = density * inside.size / column.size
    if fill:
        ax.fill_between(grid, density, color=colour, alpha=0.35, linewidth=0)
    else:
        ax.plot(grid, density, color=colour, linewidth=1.6)


# --- Errors -----------------------------------------------------------------------------------------------------------


def _errors(comparison: "Comparison") -> Figure:
    """Three panels over the same quantities: mean difference, sd ratio, interval ends."""
    labels, names = _by_severity(comparison), list(comparison.table["candidate"].unique())
    shown = labels[:MAX_ERROR_ROWS]
    height = max(2.6, 1.3 + 0.17 * len(shown) * max(1.0, 0.6 * len(names)))
    figure = Figure(figsize=(9.0, height), layout="constrained")
    means, sds, ends = figure.subplots(1, 3, sharey=True)
    colours, table = _colours(comparison), comparison.table.set_index(["candidate", "quantity"])
    for i, name in enumerate(names):
        rows = table.loc[name].loc[shown]
        # Candidates share a row of height one, side by side, the first on top.
        at = np.arange(len(shown)) + (i - (len(names) - 1) / 2) * 0.7 / len(names)
        style = {"color": colours[name], "marker": MARKERS[i % len(MARKERS)]}
        no_mean = rows["mean_difference"].isna()
        middle = rows["mean_difference"].where(~no_mean, rows["q50_difference"])
        middle_se = rows["mean_difference_se"].where(~no_mean, rows["q50_difference_se"])
        _dots(means, middle, middle_se, at, **style, limit=1.0)
        ratio_se = rows["sd_ratio_se"] / rows["sd_ratio"]
        _dots(sds, np.log(rows["sd_ratio"]), ratio_se, at, **style, limit=float(np.log(2.5)))
        for side, marker, lift in (("q05", "<", -0.07), ("q95", ">", 0.07)):
            style["marker"] = marker
            _dots(ends, rows[f"{side}_difference"], rows[f"{side}_difference_se"], at + lift, **style, limit=1.0)
    _zones(means, limits.MEAN_GOOD, limits.MEAN_TOLERANCE)
    _zones(sds, limits.LOG_SD_GOOD, limits.LOG_SD_TOLERANCE)
    _zones(ends, limits.QUANTILE_GOOD, limits.QUANTILE_TOLERANCE)
    means.set_yticks(range(len(shown)), [plain_text(label) for label in shown])
    means.set_ylim(len(shown) - 0.4, -0.6)
    means.set(xlabel="difference (reference sds)", title="Mean (median if tails are heavy)")
    ends.set(xlabel="difference (reference sds)", title="Interval ends: 5 % (<) and 95 % (>)")
    _ratio_axis(sds)
    points = {"linestyle": "", "markersize": 5}
    handles = [
        mpl.lines.Line2D([], [], color=colours[n], marker=MARKERS[i % len(MARKERS)], label=plain_text(n), **points)
        for i, n in enumerate(names)
    ]
    note = f" (worst {len(shown)} of {len(labels)} quantities)" if len(labels) > len(shown) else ""
    figure.legend(handles=handles, loc="outside upper left", ncols=len(handles))
    explained = f"Bars: two Monte Carlo standard errors. Shaded: small, tolerable{note}"
    figure.supxlabel(explained, fontsize=8, color="#444444")
    return figure


def _dots(
    ax: Axes, values: np.ndarray, errors: np.ndarray, at: np.ndarray, *, color: str, marker: str, limit: float
) -> None:
    """Points with error bars; a point beyond the axis is drawn hollow at its edge."""
    values, errors = np.asarray(values, dtype=float), np.asarray(errors, dtype=float)
    known = np.isfinite(values)
    values, errors, at = values[known], errors[known], at[known]
    beyond = np.abs(values) > limit
    clipped = np.clip(values, -limit, limit)
    low, high = np.clip(values - 2 * errors, -limit, limit), np.clip(values + 2 * errors, -limit, limit)
    ax.hlines(at, low, high, color=color, linewidth=1.0)
    ax.scatter(clipped[~beyond], at[~beyond], color=color, marker=marker, s=14, linewidths=0, zorder=3)
    ax.scatter(clipped[beyond], at[beyond], edgecolors=color, facecolors="white", marker=marker, s=22, zorder=3)


def _zones(ax: Axes, good: float, tolerance: float) -> None:
    ax.axvspan(-tolerance, tolerance, color="#888888", alpha=0.13, linewidth=0)
    ax.axvspan(-good, good, color="#888888", alpha=0.18, linewidth=0)
    ax.axvline(0.0, color="#444444", linewidth=0.8)
    reach = max(np.abs(ax.dataLim.intervalx).max(), 1.6 * tolerance) * 1.08
    ax.set_xlim(-reach, reach)
    ax.locator_params(axis="x", nbins=6)
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)


def _ratio_axis(ax: Axes) -> None:
    """Label logarithms as ratios, so that half and double are equally far from one."""
    ticks = np.array([0.4, 0.5, 0.67, 0.8, 1.0, 1.25, 1.5, 2.0, 2.5])
    low, high = ax.get_xlim()
    inside = np.log(ticks[(np.log(ticks) >= low) & (np.log(ticks) <= high)])
    ax.xaxis.set_major_locator(FixedLocator(inside))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{np.exp(value):.3g}"))
    ax.set(xlabel="candidate / reference (log scale)", title="Standard deviation")


# --- Pairs, loss, chains ----------------------------------------------------------------------------------------------


def _pair(comparison: "Comparison", draws: dict[str, Quantities]) -> Figure:
    """One scatter plot for each fit, of the two quantities whose correlation differs most anywhere."""
    pair = max(comparison.correlations.values(), key=lambda p: abs(p.candidate - p.reference))
    names, colours = list(draws), _colours(comparison)
    names.sort(key=lambda n: n != comparison.reference)
    num_columns = min(4, len(names))
    num_rows = -(-len(names) // num_columns)
    figure = Figure(figsize=(max(5.0, 2.6 * num_columns), 2.6 * num_rows + 0.3), layout="constrained")
    axes = np.atleast_1d(figure.subplots(num_rows, num_columns, sharex=True, sharey=True)).ravel()
    columns = {n: (_column(draws[n], pair.first), _column(draws[n], pair.second)) for n in names}
    for ax, name in zip(axes, names, strict=False):
        x, y = (c[:: max(1, len(c) // NUM_POINTS)] for c in columns[name])
        ax.scatter(x, y, s=5, alpha=0.35, color=colours[name], linewidths=0)
        spread = min(np.ptp(x), np.ptp(y)) > 0
        correlation = f"correlation {np.corrcoef(*columns[name])[0, 1]:+.2f}" if spread else "no spread"
        ax.set_title(f"{plain_text(name)}: {correlation}")
    axes[0].set_xlim(_window([columns[n][0] for n in names]))
    axes[0].set_ylim(_window([columns[n][1] for n in names]))
    for ax in axes[len(names) :]:
        ax.set_visible(False)
    figure.supxlabel(plain_text(pair.first, 40), fontsize=9)
    figure.supylabel(plain_text(pair.second, 40), fontsize=9)
    return figure


def _has_loss(comparison: "Comparison", name: str) -> bool:
    return np.isfinite(np.asarray(comparison.fits[name].history.get("loss", []), dtype=float)).any()


def _loss(comparison: "Comparison") -> Figure:
    """Loss above its lowest running value: nats where they matter at the end, decades at the beginning."""
    names, colours = [n for n in comparison.fits if _has_loss(comparison, n)], _colours(comparison)
    figure = Figure(figsize=(max(4.5, 3.0 * len(names)), 2.6), layout="constrained")
    for ax, name in zip(np.atleast_1d(figure.subplots(1, len(names))), names, strict=True):
        loss = np.asarray(comparison.fits[name].history["loss"], dtype=float).ravel()
        steps, loss = np.arange(1, loss.size + 1)[np.isfinite(loss)], loss[np.isfinite(loss)]
        width = max(1, loss.size // 50)
        smooth = np.convolve(loss, np.ones(width) / width, mode="valid")
        ax.plot(steps, loss - smooth.min(), color=colours[name], alpha=0.3, linewidth=0.7)
        ax.plot(steps[width - 1 :], smooth - smooth.min(), color=colours[name], linewidth=1.5)
        ax.set_yscale("symlog", linthresh=1.0)
        ax.yaxis.set_minor_locator(NullLocator())
        ax.set(title=f"{plain_text(name)}: {comparison.fits[name].status.kind}", xlabel="step")
    figure.supylabel("loss above its lowest (nats)", fontsize=9)
    return figure


def _chains(comparison: "Comparison", reference: Quantities) -> dict[str, Figure]:
    """Traces and rank plots of the reference's worst mixing quantities, by ArviZ."""
    labels = [row.label for row in comparison.reference_verdict.worst[:NUM_CHAIN_PLOTS]]
    if not labels:
        return {}
    worst = {_as_name(label): reference.draws[:, :, reference.labels.index(label)] for label in labels}
    # Rank bands hold for independent draws and are simulated point by point: a thinned chain is right and quick.
    thinned = {name: draws[:, :: max(1, draws.shape[1] // NUM_RANKS)] for name, draws in worst.items()}
    size = {"figsize": (8.5, 1.0 + 1.5 * -(-len(worst) // 2)), "figsize_units": "inches"}
    figures = {}
    for name, plot in (("trace", plot_trace), ("ranks", plot_rank)):
        tree = from_dict({"posterior": worst if name == "trace" else thinned})
        drawn = plot(tree, backend="matplotlib", figure_kwargs=size, col_wrap=2)
        figures[name] = drawn.viz["figure"].item()
        figures[name].set_layout_engine("constrained")
        for line in (line for ax in figures[name].axes for line in ax.lines):
            line.set(linewidth=0.5 if name == "trace" else 1.2, alpha=0.8)
        plt.close(figures[name])
    return figures


def plain_text(label: str, width: int = LABEL_WIDTH) -> str:
    """Shorten a name from outside and keep matplotlib from reading a formula into it."""
    return shorten(label, width).replace("$", r"\$")


def _as_name(label: str) -> str:
    """Make a label the name of a variable, in which xarray takes no slash."""
    return plain_text(label.replace("/", "\N{DIVISION SLASH}"))
