"""What a trained latent-variable model has learnt, for people: scores, latents, gaps and figures in one value."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from inference.amortisation import Amortisation, amortisation
from inference.errors import InputError
from inference.fit import Fit
from inference.latent_rows import LatentRows, Part, latent_rows
from inference.latent_usage import LatentUsage, latent_usage
from inference.row_likelihood import RowLikelihood, log_marginal

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from inference.compare import Comparison

NUM_PICTURES, NUM_SAMPLES, NUM_TRAVERSED = 10, 60, 8
# Values that a latent is moved over: the middle 99.7 % of a standard normal prior.
TRAVERSAL = np.linspace(-3.0, 3.0, 10)
# Draws of the guide for the mean of a row that is drawn as a point.
MEAN_DRAWS = 32


@dataclass(frozen=True, eq=False)
class LatentView:
    """A trained latent-variable model at data, most probably held out. Print it, draw it, or write it as HTML.

    Attributes
    ----------
    likelihood, usage, gaps
        Results of `inference.log_marginal`, `inference.latent_usage` and, where it was asked for,
        `inference.amortisation`.
    means
        Posterior means (N, d) by the guide, unconstrained.
    labels
        Of the rows, (N,), for colours; or None.
    pictures
        Rows to draw, name -> (num, *pixels): ``given``, ``reconstructed``; ``samples`` from the prior; and
        ``traversals``, (num latents, num values, *pixels).
    traversed
        Names of the latents that are moved, those with the largest KL.
    shape
        Of a picture; None where rows are none.
    history, num_trained
        Of the fit: the losses, and the rows that they are of.
    """

    likelihood: RowLikelihood
    usage: LatentUsage
    gaps: Amortisation | None
    means: np.ndarray = field(repr=False)
    labels: np.ndarray | None = field(repr=False)
    pictures: dict[str, np.ndarray] = field(repr=False)
    traversed: tuple[str, ...] = field(repr=False)
    shape: tuple[int, ...] | None
    history: dict[str, np.ndarray] = field(repr=False)
    num_trained: int

    def __str__(self) -> str:
        return "\n\n".join(str(part) for part in (self.likelihood, self.usage, self.gaps) if part is not None)

    @property
    def comparison(self) -> "Comparison":
        """Encoder against NUTS, latent by latent, with this view in its report.

        Raises
        ------
        InputError
            No gaps were asked for.
        """
        if self.gaps is None:
            raise InputError("gaps: none were measured; use latent_view(fit, gaps=4).")
        return replace(self.gaps.comparison, latent=self)

    def tables(self) -> dict[str, pd.DataFrame]:
        """Give the tables by name: a row for each row of the data, for each latent, and for each row with gaps."""
        tables = {"likelihood": self.likelihood.to_frame(), "latents": self.usage.to_frame()}
        return tables | ({} if self.gaps is None else {"gaps": self.gaps.to_frame()})

    def figures(self) -> dict[str, "Figure"]:
        """Draw reconstructions, samples and traversals (of pictures), latents, KLs, gaps and the learning curve."""
        from inference import latent_plots as plots  # brings in matplotlib, which printing does not need

        figures = {}
        if self.shape is not None:
            pairs = {name: self.pictures[name] for name in ("given", "reconstructed")}
            figures["reconstructions"] = plots.picture_grid(pairs, self.shape)
            figures["prior samples"] = plots.sample_figure(self.pictures["samples"], self.shape)
            lines = dict(zip(self.traversed, self.pictures["traversals"], strict=True))
            figures["traversals"] = plots.picture_grid(lines, self.shape)
        if self.means.shape[1] > 1:
            pair = np.argsort(-self.usage.kl)[:2]
            names = [self.usage.labels[i] for i in pair]
            figures["latents"] = plots.latent_figure(self.means[:, pair], names, labels=self.labels)
        figures["latent usage"] = plots.usage_figure(self.usage)
        if self.gaps is not None:
            figures |= self.gaps.figures()
        if np.isfinite(np.asarray(self.history.get("loss", ()), dtype=float)).any():
            figures["learning curve"] = plots.learning_figure(self.history, self.num_trained)
        return figures

    def to_html(self, path: str | Path) -> Path:
        """Write the comparison of encoder and NUTS, with this view, as one HTML file."""
        return self.comparison.to_html(path)


def latent_view(
    fit: Fit,
    data: Mapping[str, Any] | None = None,
    *,
    labels: Any = None,
    image_shape: tuple[int, ...] | None = None,
    num_samples: int = 5000,
    gaps: int = 4,
    seed: int = 0,
) -> LatentView:
    """Score a trained latent-variable model, and show what it has learnt.

    Parameters
    ----------
    fit, data
        As for `inference.log_marginal`; held-out data, if possible.
    labels
        Of the rows (N,), for colours.
    image_shape
        (H, W), where rows are pictures and that cannot be told from their shape.
    num_samples
        Importance samples for each row.
    gaps
        Rows whose amortisation gap is measured with NUTS; 0 for none.
    seed
        Of everything random.

    Raises
    ------
    InputError
        As `inference.log_marginal`.

    Examples
    --------
    >>> view = latent_view(vae_fit, {"x": test_images}, labels=digits)
    >>> print(view)
    >>> view.to_html("vae.html")
    """
    from inference.latent_plots import image_shape as shape_of

    usage = latent_usage(fit, data, seed=seed)
    with latent_rows(fit, data, seed=seed) as rows:
        site = next(iter(rows.sites.observed.values()))
        shape = shape_of(site.shape[1:], image_shape)
        means = np.concatenate([rows.points(part, MEAN_DRAWS).mean(0).double().numpy() for part in rows.blocks()])
        order = np.argsort(-usage.kl)[:NUM_TRAVERSED]
        pictures = {} if shape is None or rows.sites.discrete else _pictures(rows, site.name, order)
        num_gaps = min(gaps, rows.num_rows)
    if labels is not None and len(labels) != len(means):
        raise InputError(f"labels: expected one for each of {len(means)} rows, got {len(labels)}.")
    return LatentView(
        likelihood=log_marginal(fit, data, num_samples=num_samples, seed=seed),
        usage=usage,
        gaps=amortisation(fit, data, rows=num_gaps, seed=seed) if num_gaps else None,
        means=means,
        labels=None if labels is None else np.asarray(labels),
        pictures=pictures,
        traversed=tuple(usage.labels[i] for i in order),
        shape=shape if pictures else None,
        history=fit.history,
        num_trained=_num_rows(fit),
    )


def _num_rows(fit: Fit) -> int:
    """Rows that were trained on: the losses are sums over them."""
    training = fit.state.get("training")
    if training is not None:  # some rows may have been held out
        return training["rows"]
    return max((len(v) for v in fit.data.values() if isinstance(v, torch.Tensor) and v.dim()), default=1)


def _pictures(rows: LatentRows, site: str, order: np.ndarray) -> dict[str, np.ndarray]:
    """Decode what the figures show."""
    part = rows.part(rows.chosen(min(NUM_PICTURES, rows.num_rows)))
    centre = rows.points(part, MEAN_DRAWS).mean(0, keepdim=True)
    samples = rows.part(np.arange(NUM_SAMPLES) % rows.num_rows)
    one = rows.part([0])
    moved = centre[:, :1].expand(len(order) * len(TRAVERSAL), 1, -1).clone()
    for i, latent in enumerate(order):
        moved[i * len(TRAVERSAL) : (i + 1) * len(TRAVERSAL), 0, latent] = torch.as_tensor(TRAVERSAL, dtype=moved.dtype)
    traversals = decoded(rows, moved, one, site)[:, 0]
    return {
        "given": rows.sites.observations[site][torch.as_tensor(part.index)].double().numpy(),
        "reconstructed": decoded(rows, centre, part, site)[0],
        "samples": decoded(rows, rows.prior(samples.data, 1), samples, site)[0],
        "traversals": traversals.reshape(len(order), len(TRAVERSAL), *traversals.shape[1:]),
    }


def decoded(rows: LatentRows, points: torch.Tensor, part: Part, site: str) -> np.ndarray:
    """Means of the observed site (S, n, *shape) at unconstrained latents (S, n, d)."""
    mean = rows.distributions(points, part.data)[site].mean
    return mean.detach().double().reshape(*points.shape[:2], *mean.shape[1:]).numpy()
