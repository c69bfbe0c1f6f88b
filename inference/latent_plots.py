"""Figures of latent-variable models: pictures, latents, gaps. They draw arrays; `inference.latent_view` makes these."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse

from inference.errors import InputError
from inference.plots import COLOURS, REFERENCE_COLOUR, plain_text, style

if TYPE_CHECKING:
    from inference.amortisation import Amortisation
    from inference.impute import Imputation
    from inference.latent_usage import LatentUsage

Shape = tuple[int, ...]

TILE = 0.62  # inches: a digit of 28 pixels is still readable
NUM_POINTS = 5000  # of a scatter plot; more hide each other
NUM_CHAIN_POINTS = 800
MAX_GAP_ROWS = 30
ELLIPSE_SDS = 2.0
MAX_BARS = 100


def image_shape(shape: Shape, given: Shape | None = None) -> Shape | None:
    """Tell how to draw a row of this shape as a picture: (H, W), or (H, W, 3); None where it is none.

    Parameters
    ----------
    shape
        Of a row: (H, W), (C, H, W) with one or three channels, or (P,) with a square number of pixels.
    given
        What the user says, which wins.

    Raises
    ------
    InputError
        ``given`` has another number of pixels.
    """
    if given is not None:
        if int(np.prod(given)) != int(np.prod(shape)) or len(given) not in (2, 3):
            raise InputError(f"image_shape: expected (H, W) with {int(np.prod(shape))} pixels, got {given}.")
        return tuple(given)
    if len(shape) == 3 and shape[0] in (1, 3):
        return shape[1:] if shape[0] == 1 else shape
    if len(shape) == 2:
        return shape
    side = round(np.sqrt(shape[0])) if len(shape) == 1 else 0
    return (side, side) if side > 2 and side**2 == shape[0] else None


def picture_grid(rows: Mapping[str, np.ndarray], shape: Shape, *, limits: tuple[float, float] | None = None) -> Figure:
    """Draw pictures in rows with a name each: originals over reconstructions, or latents that are moved.

    Parameters
    ----------
    rows
        Name -> (num, *pixels); NaN is drawn in colour, as missing.
    shape
        Of a picture.
    limits
        Black and white; by default the least and the largest value.
    """
    num = max(len(pictures) for pictures in rows.values())
    values = np.concatenate([np.ravel(pictures) for pictures in rows.values()])
    low, high = limits or (float(np.nanmin(values)), float(np.nanmax(values)))
    with style():
        figure = Figure(figsize=(TILE * num + 1.2, TILE * len(rows) + 0.1), layout="constrained")
        axes = np.atleast_2d(figure.subplots(len(rows), num, squeeze=False))
        for line, (name, pictures) in zip(axes, rows.items(), strict=True):
            for ax, picture in zip(line, pictures, strict=False):
                _picture(ax, picture, shape, low, high)
            for ax in line[len(pictures) :]:
                ax.set_axis_off()
            line[0].set_ylabel(plain_text(name), rotation=0, ha="right", va="center")
    return figure


def _picture(ax: Axes, picture: np.ndarray, shape: Shape, low: float, high: float) -> None:
    image = np.moveaxis(picture.reshape(shape), 0, -1) if len(shape) == 3 else picture.reshape(shape)
    if len(shape) == 3:
        image = np.clip((image - low) / max(high - low, 1e-12), 0, 1)
    shades = mpl.colormaps["gray"].with_extremes(bad=COLOURS[5])
    ax.imshow(np.ma.masked_invalid(image), cmap=shades, vmin=low, vmax=high, interpolation="nearest")
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(False)


def sample_figure(pictures: np.ndarray, shape: Shape, *, num_columns: int = 10) -> Figure:
    """Draw pictures (num, *pixels) decoded from the prior, in a square."""
    lines = [pictures[i : i + num_columns] for i in range(0, len(pictures), num_columns)]
    return picture_grid({"\n" * i: line for i, line in enumerate(lines)}, shape)


def latent_figure(means: np.ndarray, names: Sequence[str], *, labels: np.ndarray | None = None) -> Figure:
    """Draw the posterior means (N, 2) of two latents, in the colours of labels (N,) where there are some."""
    chosen = np.linspace(0, len(means) - 1, min(len(means), NUM_POINTS)).astype(int)
    points = means[chosen]
    with style():
        figure = Figure(figsize=(5.4, 4.6), layout="constrained")
        ax = figure.subplots()
        if labels is None:
            ax.scatter(*points.T, s=6, alpha=0.5, linewidths=0)
        else:
            own, codes = np.unique(np.asarray(labels), return_inverse=True)
            if len(codes) != len(means):
                raise InputError(f"labels: expected one for each of {len(means)} rows, got {len(codes)}.")
            colours = mpl.colormaps["tab10" if len(own) <= 10 else "tab20"]
            for k, label in enumerate(own):
                at = points[codes[chosen] == k]
                ax.scatter(*at.T, s=8, alpha=0.7, linewidths=0, color=colours(k % colours.N), label=str(label))
            if len(own) <= 20:
                figure.legend(loc="outside right center", markerscale=2)
        ax.set(xlabel=plain_text(names[0]), ylabel=plain_text(names[1]))
        ax.set_aspect("equal", adjustable="datalim")
    return figure


def usage_figure(usage: "LatentUsage") -> Figure:
    """Draw the KL of every latent, the largest first; inactive ones in grey."""
    table = usage.to_frame().head(MAX_BARS)
    with style():
        figure = Figure(figsize=(max(4.0, 0.12 * len(table) + 1.5), 2.6), layout="constrained")
        ax = figure.subplots()
        colours = np.where(table["active"], COLOURS[0], "#bbbbbb")
        ax.bar(np.arange(len(table)), table["kl"], color=colours)
        ax.set(ylabel="KL to the prior (nats)", xlabel=f"latents; {usage.num_active} of {len(usage.labels)} active")
        if len(table) <= 20:
            ax.set_xticks(np.arange(len(table)), [plain_text(label) for label in table.index], rotation=45, ha="right")
        else:
            ax.set_xticks([])
    return figure


def learning_figure(history: Mapping[str, np.ndarray], num_rows: int) -> Figure:
    """Draw the bound per row over the steps, as it was trained, and on rows held out where there were some."""
    elbo = -np.asarray(history["loss"], dtype=float).ravel() / num_rows
    steps = np.arange(1, elbo.size + 1)
    width = max(1, elbo.size // 50)
    smooth = np.convolve(elbo, np.ones(width) / width, mode="valid")
    with style():
        figure = Figure(figsize=(5.5, 2.8), layout="constrained")
        ax = figure.subplots()
        ax.plot(steps, elbo, color=COLOURS[0], alpha=0.25, lw=0.7)
        ax.plot(steps[width - 1 :], smooth, color=COLOURS[0], lw=1.5, label="trained on")
        shown = [smooth]
        held_out = np.asarray(history.get("validation_elbo", ()), dtype=float)
        if held_out.size and len(history.get("validation_step", ())) == held_out.size:
            ax.plot(history["validation_step"], held_out, color=COLOURS[1], marker="o", ms=3, label="held out")
            ax.legend(loc="lower right")
            shown.append(held_out)
        # The first steps are hundreds of nats lower, and would flatten what matters.
        ends = np.concatenate([part[len(part) // 10 :] for part in shown])
        ends = ends[np.isfinite(ends)]
        if ends.size:
            margin = 0.05 * (np.ptp(ends) or 1.0)
            ax.set_ylim(ends.min() - margin, ends.max() + margin)
        ax.set(xlabel="step", ylabel="ELBO per row (nats)")
    return figure


def gap_figure(gaps: "Amortisation") -> Figure:
    """Draw approximation and amortisation gaps of rows as bars on each other, with Monte Carlo errors."""
    table = gaps.table.head(MAX_GAP_ROWS)
    at = np.arange(len(table))
    with style():
        figure = Figure(figsize=(max(4.0, 0.35 * len(table) + 2.0), 2.8), layout="constrained")
        ax = figure.subplots()
        below = table["approximation_gap"].to_numpy()
        ax.bar(at, below, color=COLOURS[0], label="approximation")
        error = table["amortisation_gap_se"]
        ax.bar(at, table["amortisation_gap"], bottom=below, yerr=error, color=COLOURS[1], label="amortisation")
        ax.axhline(0.0, color="#333333", lw=0.6)
        ax.set_xticks(at, [str(row) for row in table.index], rotation=90 if len(table) > 12 else 0)
        ax.set(xlabel="row", ylabel="nats below log p(x)")
        figure.legend(loc="outside upper left", ncols=2)
    return figure


def posterior_figure(gaps: "Amortisation", *, num_rows: int = 4) -> Figure:
    """Draw the posteriors of a few rows in two latents: draws of NUTS, ellipses of encoder and free Gaussian.

    The two latents of a row are those in which the encoder's mean or sd is the furthest off. Ellipses cover two sds.
    """
    shown = gaps.posteriors[:num_rows]
    with style():
        figure = Figure(figsize=(2.6 * len(shown) + 0.3, 3.0), layout="constrained")
        axes = np.atleast_1d(figure.subplots(1, len(shown)))
        for ax, row, found in zip(axes, gaps.rows, shown, strict=False):
            mean_error, log_sd_error = found.errors
            pair = np.sort(np.argsort(-np.maximum(np.abs(mean_error), np.abs(log_sd_error)))[:2])
            if len(pair) < 2:
                _one_latent(ax, found.chains.ravel(), found.encoder[:, 0], found.free.loc[0], found.free.scale.item())
                ax.set(xlabel=plain_text(gaps.labels[0]), title=f"row {row}")
                continue
            draws = found.chains.reshape(-1, found.chains.shape[-1])[:, pair]
            some = np.linspace(0, len(draws) - 1, min(len(draws), NUM_CHAIN_POINTS)).astype(int)
            ax.scatter(*draws[some].T, s=4, color=REFERENCE_COLOUR, alpha=0.4, linewidths=0)
            _ellipse(ax, found.encoder[:, pair].mean(0), np.cov(found.encoder[:, pair].T), COLOURS[1])
            scale = found.free.scale if found.free.full_rank else np.diag(found.free.scale)
            _ellipse(ax, found.free.loc[pair], (scale @ scale.T)[np.ix_(pair, pair)], COLOURS[0])
            names = [plain_text(gaps.labels[i]) for i in pair]
            ax.set(xlabel=names[0], ylabel=names[1], title=f"row {row}")
        handles = [mpl.lines.Line2D([], [], ls="", marker=".", color=REFERENCE_COLOUR, label="NUTS")]
        for colour, name in ((COLOURS[1], "encoder"), (COLOURS[0], "fitted to the row")):
            handles.append(mpl.lines.Line2D([], [], color=colour, label=name))
        figure.legend(handles=handles, loc="outside upper left", ncols=3)
    return figure


def _ellipse(ax: Axes, centre: np.ndarray, cov: np.ndarray, colour: str) -> None:
    lengths, axes = np.linalg.eigh(cov)
    width, height = 2 * ELLIPSE_SDS * np.sqrt(np.maximum(lengths, 0.0))
    angle = np.degrees(np.arctan2(axes[1, 0], axes[0, 0]))
    ax.add_patch(Ellipse(centre, width, height, angle=angle, fill=False, color=colour, lw=1.5))
    ax.plot(*centre, marker="+", color=colour)


def _one_latent(ax: Axes, draws: np.ndarray, encoder: np.ndarray, loc: float, scale: float) -> None:
    ax.hist(draws, bins=50, density=True, color=REFERENCE_COLOUR, alpha=0.4)
    grid = np.linspace(draws.min(), draws.max(), 200)
    for mean, sd, colour in ((encoder.mean(), encoder.std(), COLOURS[1]), (loc, abs(scale), COLOURS[0])):
        ax.plot(grid, np.exp(-0.5 * ((grid - mean) / sd) ** 2) / (sd * np.sqrt(2 * np.pi)), color=colour)


def imputation_figure(found: "Imputation", given: np.ndarray, *, shape: Shape | None = None, num: int = 8) -> Figure:
    """Draw rows with their gaps, the posterior means of these, and their sds; intervals where rows are no pictures.

    Parameters
    ----------
    found
        Result of `inference.impute`.
    given
        The data (N, ...) with NaN.
    shape
        Of a picture, where it cannot be told.
    """
    gaps = found.missing.reshape(len(found.rows), -1)
    chosen = np.flatnonzero(gaps.any(axis=1))[:num]
    if not len(chosen):
        raise InputError("found: no entry is missing in these rows; there is nothing to draw.")
    picture = image_shape(found.mean.shape[1:], shape)
    if picture is not None:
        rows = {"given": np.asarray(given)[found.rows[chosen]], "mean": found.mean[chosen]}
        return picture_grid(rows | {"sd": found.sd[chosen]}, picture)
    with style():
        figure = Figure(figsize=(5.5, 1.3 * len(chosen) + 0.5), layout="constrained")
        for ax, i in zip(np.atleast_1d(figure.subplots(len(chosen), 1, sharex=True)), chosen, strict=True):
            mean, low, high = (np.ravel(value[i]) for value in (found.mean, found.low, found.high))
            at, missing = np.arange(mean.size), gaps[i]
            ax.plot(at[~missing], mean[~missing], ls="", marker="o", ms=4, color=REFERENCE_COLOUR)
            error = np.abs(np.stack([low, high]) - mean)[:, missing]
            ax.errorbar(at[missing], mean[missing], yerr=error, ls="", marker="o", ms=4, color=COLOURS[1])
            ax.set(ylabel=f"row {found.rows[i]}")
        figure.supxlabel("entry; missing ones with their 90 % intervals", fontsize=9)
    return figure
