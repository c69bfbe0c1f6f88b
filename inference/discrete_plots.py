"""Figures of discrete sites: clusters, responsibilities, co-clustering, and the states of a series."""

from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse
from sklearn.decomposition import PCA

from inference.errors import InputError
from inference.plots import COLOURS, plain_text, style
from inference.prediction import SitePrediction

# More points hide each other, more columns of bars are thinner than a pixel.
NUM_POINTS, NUM_BARS = 4000, 1500
# A row whose most probable value has less than this probability is drawn as an open marker: one in ten is wrong.
CERTAIN = 0.9
MAX_PAIRS = 4  # columns that are drawn against each other; beyond, their principal components
MIN_WEIGHT = 3.0  # rows that a component must have for an ellipse
ELLIPSE_SDS = 2.0
MAX_SEQUENCES = 3
MANY_COLUMNS = 8  # of a series: more are drawn as an image


def palette(num: int) -> list:
    """Give so many colours, distinguishable by the colour-blind up to six."""
    if num <= len(COLOURS):
        return list(COLOURS[:num])
    return [*COLOURS, *(mpl.colormaps["tab20"](i % 20) for i in range(num - len(COLOURS)))]


def cluster_figure(values: np.ndarray, found: SitePrediction, *, columns: Sequence[str] | None = None) -> Figure:
    """Draw rows in the colours of their most probable clusters, uncertain ones as open markers.

    Parameters
    ----------
    values
        (N,) or (N, D), the observed rows; NaN where missing. Up to four columns are drawn against each other, more as
        their first two principal components (of the standardised columns, missing values at their mean).
    found
        Assignments with elements (N,).
    columns
        Names of the columns.

    Raises
    ------
    InputError
        Rows and assignments do not match.
    """
    values = np.asarray(values, dtype=np.float64)
    values = values[:, None] if values.ndim == 1 else values
    shares = found.probabilities
    if values.ndim != 2 or shares.ndim != 2 or len(values) != len(shares):
        raise InputError(
            f"values: expected (N,) or (N, D) with N of the assignments {shares.shape}, got {values.shape}."
        )
    names = list(columns) if columns is not None else [f"column {i}" for i in range(values.shape[1])]
    if values.shape[1] > MAX_PAIRS:
        values, names = _principal(values)
    with style():
        draw = _histogram if values.shape[1] == 1 else _pairs
        return draw(values, shares, names, found)


def _principal(values: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """First two principal components of standardised columns."""
    spread = np.nanstd(values, axis=0)
    z = np.nan_to_num((values - np.nanmean(values, axis=0)) / np.where(spread > 0, spread, 1.0))
    model = PCA(2).fit(z)
    shares = model.explained_variance_ratio_
    return model.transform(z), [f"component {i + 1} ({share:.0%} of the variance)" for i, share in enumerate(shares)]


def _histogram(values: np.ndarray, shares: np.ndarray, names: list[str], found: SitePrediction) -> Figure:
    figure = Figure(figsize=(6.0, 3.2), layout="constrained")
    ax = figure.subplots()
    x = values[:, 0]
    seen = np.isfinite(x)
    edges = np.histogram_bin_edges(x[seen], bins="fd")
    edges = np.linspace(edges[0], edges[-1], int(np.clip(len(edges), 26, 200)))  # fewer hide a second hump
    num = shares.shape[1]
    weights = [shares[seen, k] for k in range(num)]
    ax.hist([x[seen]] * num, bins=edges, weights=weights, stacked=True, color=palette(num), label=_labels(found))
    ax.set(xlabel=names[0], ylabel="expected number of rows")
    _legend(figure, found, num)
    return figure


def _pairs(values: np.ndarray, shares: np.ndarray, names: list[str], found: SitePrediction) -> Figure:
    num = values.shape[1] - 1
    size = 4.6 if num == 1 else 2.6 * num
    figure = Figure(figsize=(size + 0.6, size), layout="constrained")
    axes = np.atleast_2d(figure.subplots(num, num, sharex="col", sharey="row", squeeze=False))
    for row in range(num):
        for column in range(num):
            ax = axes[row, column]
            if column > row:
                ax.set_visible(False)
                continue
            _scatter(ax, values[:, [column, row + 1]], shares)
            ax.set(xlabel=names[column] if row == num - 1 else "", ylabel=names[row + 1] if column == 0 else "")
    _legend(figure, found, shares.shape[1], uncertain=bool((found.probability < CERTAIN).any()))
    return figure


def _scatter(ax: Axes, points: np.ndarray, shares: np.ndarray) -> None:
    """Scatter two columns, with an ellipse of two sds about the rows that each component takes responsibility for."""
    colours = palette(shares.shape[1])
    seen = np.isfinite(points).all(axis=1)
    points, shares = points[seen], shares[seen]
    for k, colour in enumerate(colours):
        weight = shares[:, k]
        if weight.sum() < MIN_WEIGHT:
            continue
        centre, cov = np.average(points, axis=0, weights=weight), np.cov(points.T, aweights=weight)
        lengths, axes = np.linalg.eigh(cov)
        width, height = 2 * ELLIPSE_SDS * np.sqrt(np.maximum(lengths, 0.0))
        angle = np.degrees(np.arctan2(axes[1, 0], axes[0, 0]))
        ax.add_patch(Ellipse(centre, width, height, angle=angle, fill=False, color=colour, lw=1.0))
    some = np.linspace(0, len(points) - 1, min(len(points), NUM_POINTS)).astype(int)
    best, sure = shares[some].argmax(axis=1), shares[some].max(axis=1) >= CERTAIN
    own = np.array([mpl.colors.to_rgba(colour) for colour in colours])[best]
    at = points[some]
    ax.scatter(*at[sure].T, c=own[sure], s=9, alpha=0.7, linewidths=0)
    ax.scatter(*at[~sure].T, facecolors="none", edgecolors=own[~sure], s=16, linewidths=0.9)


def _labels(found: SitePrediction) -> list[str]:
    return [str(v) if np.ndim(v) == 0 else str(i) for i, v in enumerate(found.values)]


def _legend(figure: Figure, found: SitePrediction, num: int, *, uncertain: bool = False) -> None:
    sizes = found.probabilities.reshape(-1, num).sum(axis=0)
    handles = [
        mpl.patches.Patch(color=colour, label=f"{label}: {size:.0f}")
        for colour, label, size in zip(palette(num), _labels(found), sizes, strict=True)
        if size >= 0.5
    ]
    if uncertain:
        ring = mpl.lines.Line2D([], [], ls="", marker="o", mfc="none", mec="#555555", label=f"below {CERTAIN:.0%}")
        handles.append(ring)
    title = plain_text(found.name)
    figure.legend(handles=handles, loc="outside upper left", ncols=min(len(handles), 6), title=title, alignment="left")


def responsibility_figure(found: SitePrediction) -> Figure:
    """Draw the probabilities of every element as a stacked bar, clusters side by side, the certain rows first.

    Parameters
    ----------
    found
        Assignments with elements (N,).
    """
    shares = found.probabilities
    order = np.lexsort((-found.probability, found.most_probable))
    order = order[np.linspace(0, len(order) - 1, min(len(order), NUM_BARS)).astype(int)]
    with style():
        figure = Figure(figsize=(6.5, 2.4), layout="constrained")
        ax = figure.subplots()
        _stacked(ax, np.arange(len(order)), shares[order])
        ax.set(xlabel="rows, ordered", ylabel="probability", xticks=[])
        _legend(figure, found, shares.shape[1])
    return figure


def _stacked(ax: Axes, x: np.ndarray, shares: np.ndarray) -> None:
    """Bars of width one without gaps; they add up to one."""
    edges = np.append(x, x[-1] + 1) - 0.5
    tops = np.cumsum(shares, axis=1)
    for k, colour in enumerate(palette(shares.shape[1])):
        ax.stairs(tops[:, k], edges, baseline=tops[:, k] - shares[:, k], fill=True, color=colour)
    ax.set(ylim=(0, 1), xlim=(edges[0], edges[-1]))


def co_clustering_figure(similarity: np.ndarray, clustering: np.ndarray) -> Figure:
    """Draw how often two rows are in one cluster, rows by clusters and in each the surest first.

    Parameters
    ----------
    similarity
        (N, N), posterior probabilities that two rows share a cluster.
    clustering
        (N,), the cluster of each row; lines part them.
    """
    clustering = np.asarray(clustering)
    own = np.where(clustering[:, None] == clustering, similarity, 0.0).sum(axis=1)
    order = np.lexsort((-own, clustering))  # the certain rows first, as in `responsibility_figure`
    with style():
        figure = Figure(figsize=(4.6, 4.0), layout="constrained")
        ax = figure.subplots()
        image = ax.imshow(similarity[np.ix_(order, order)], vmin=0, vmax=1, cmap="cividis", interpolation="nearest")
        for edge in np.flatnonzero(np.diff(clustering[order])) + 0.5:
            ax.axhline(edge, color="white", lw=0.6)
            ax.axvline(edge, color="white", lw=0.6)
        ax.set(xticks=[], yticks=[], xlabel="rows, by cluster", ylabel="rows, by cluster")
        ax.spines[:].set_visible(False)
        figure.colorbar(image, ax=ax, label="probability of one cluster", shrink=0.8)
    return figure


def state_figure(series: np.ndarray, found: SitePrediction, *, name: str = "value") -> Figure:
    """Draw series over the colours of their most probable states, and below the probabilities of all states.

    Parameters
    ----------
    series
        (T,) or (T, D) of one sequence, (S, T) or (S, T, D) of several, of which the first three are drawn. More than
        eight columns are drawn as an image.
    found
        States with elements (T,) or (S, T).

    Raises
    ------
    InputError
        Series and states do not match.
    """
    series, shares = np.asarray(series, dtype=np.float64), found.probabilities
    if shares.ndim == 2:
        series, shares = series[None], shares[None]
    if series.shape[:2] != shares.shape[:2]:
        raise InputError(
            f"series: expected the sequences and steps of the states {shares.shape[:-1]}, got {series.shape}."
        )
    num = min(len(series), MAX_SEQUENCES)
    with style():
        figure = Figure(figsize=(7.5, 2.9 * num + 0.4), layout="constrained")
        axes = figure.subplots(2 * num, 1, height_ratios=[2, 1] * num, squeeze=False)[:, 0]
        for i in range(num):
            above, below = axes[2 * i : 2 * i + 2]
            _series(above, series[i], shares[i])
            above.set(ylabel=plain_text(name) if num == 1 else f"{plain_text(name)}, sequence {i}", xticklabels=[])
            _stacked(below, np.arange(len(shares[i])), shares[i])
            below.set(ylabel="probability", xlabel="time" if i == num - 1 else "")
        _legend(figure, found, shares.shape[-1])
    return figure


def _series(ax: Axes, series: np.ndarray, shares: np.ndarray) -> None:
    columns = series[:, None] if series.ndim == 1 else series.reshape(len(series), -1)
    time, states = np.arange(len(columns)), shares.argmax(axis=1)
    if columns.shape[1] > MANY_COLUMNS:
        ax.imshow(columns.T, aspect="auto", origin="lower", cmap="Greys", interpolation="nearest")
    else:
        starts = np.flatnonzero(np.diff(states, prepend=-1))
        ends = np.append(starts[1:], len(states))
        colours = palette(shares.shape[1])
        for start, end in zip(starts, ends, strict=True):
            ax.axvspan(start - 0.5, end - 0.5, color=colours[states[start]], alpha=0.25, lw=0)
        for column in columns.T:
            ax.plot(time, column, color="#333333", lw=0.9, marker=".", ms=2.5)
    ax.set_xlim(-0.5, len(columns) - 0.5)
