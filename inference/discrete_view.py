"""What a fit says of the discrete sites of its model, for people: sentences, tables and figures."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

from inference.clusterings import Clusterings, clusterings
from inference.errors import InputError
from inference.fit import Fit
from inference.predict import predict
from inference.prediction import Prediction, SitePrediction
from inference.relabel import with_aligned_labels

# Rows times draws whose probabilities are averaged, about a second; with more rows fewer draws, evenly spread.
MAX_TERMS, MIN_DRAWS = 2e6, 25


@dataclass(frozen=True, eq=False)
class DiscreteView:
    """Discrete sites of a fit, labels aligned where components are exchangeable. Print it, draw it, or take the tables.

    Attributes
    ----------
    prediction
        Probabilities and most probable values by site.
    clusterings
        The posterior over clusterings, of every site with an assignment for each row.
    labels
        What was done about labels, a sentence; empty where they mean something by themselves.
    data, coords
        Of the fit.
    """

    prediction: Prediction
    clusterings: dict[str, Clusterings]
    labels: str
    data: dict[str, Any]
    coords: dict[str, list]

    def __str__(self) -> str:
        lines = [self.labels, *map(str, self.clusterings.values())]
        lines += [_path(site) for site in self.prediction.values() if "time" in site.dims]
        return "\n".join(filter(None, lines))

    def tables(self) -> dict[str, pd.DataFrame]:
        """Give a table for each site with axes: a row per element, see `SitePrediction.to_dataframe`."""
        return {name: site.to_dataframe() for name, site in self.prediction.items() if site.dims}

    def figures(self) -> dict[str, Figure]:
        """Draw clusters, responsibilities and co-clustering of assignments, and states over their series."""
        from inference import discrete_plots as plots  # brings in matplotlib, which printing does not need

        figures = {}
        for name, site in self.prediction.items():
            if "time" in site.dims:
                series = np.asarray(self.data.get(name.removesuffix("_states"), np.zeros(0)))
                if series.shape[: len(site.dims)] == site.probabilities.shape[:-1]:
                    figures[f"states of {name}"] = plots.state_figure(series, site, name=name.removesuffix("_states"))
            elif len(site.dims) == 1:
                values, columns = _columns(self.data, len(site.probabilities), self.coords)
                if columns:
                    figures[f"clusters of {name}"] = plots.cluster_figure(values, site, columns=columns)
                figures[f"responsibilities of {name}"] = plots.responsibility_figure(site)
                if name in self.clusterings:
                    found = self.clusterings[name]
                    drawn = plots.co_clustering_figure(found.similarity, found.point[found.rows])
                    figures[f"co-clustering of {name}"] = drawn
        return figures


def discrete_view(fit: Fit) -> DiscreteView | None:
    """Look at the discrete sites of a fit; None where it has none, or lacks the model that they follow from.

    Examples
    --------
    >>> view = discrete_view(fit(mixture, data, NUTS()))
    >>> print(view)
    >>> view.tables()["assignment"]
    """
    if fit.model is None:
        return None
    try:
        fit, labels = with_aligned_labels(fit)
        num_rows = max((len(v) for v in fit.data.values() if isinstance(v, torch.Tensor) and v.dim()), default=1)
        num_draws = int(np.clip(MAX_TERMS / (num_rows * fit.num_chains), MIN_DRAWS, fit.num_draws))
        prediction = predict(fit, num_draws=min(num_draws, fit.num_draws))
    except InputError:  # no discrete site, or one in a plate that is subsampled
        return None
    rows = [name for name, site in prediction.items() if len(site.dims) == 1 and "time" not in site.dims]
    found = {name: clusterings(fit, site=name) for name in rows if name in fit.draws}
    return DiscreteView(prediction, found, labels, fit.data, fit.coords)


def _path(site: SitePrediction) -> str:
    """Tell in a sentence how clear the states of chains are."""
    sure = (site.probability > 0.9).mean()
    shares = site.probabilities.reshape(-1, site.probabilities.shape[-1]).mean(axis=0)
    parts = ", ".join(f"{label} for {share:.0%}" for label, share in zip(site.values, shares, strict=True))
    return f"{site.name}: states {parts} of the time; {sure:.0%} of the steps have a state with probability above 0.9."


def _columns(data: dict[str, Any], num_rows: int, coords: dict[str, list]) -> tuple[np.ndarray, list[str]]:
    """Join the arrays of the data that have a row for each element, (N, D), with a name for each column."""
    arrays = {n: v.numpy(force=True) for n, v in data.items() if isinstance(v, torch.Tensor) and v.dim() in (1, 2)}
    arrays = {name: value for name, value in arrays.items() if len(value) == num_rows}
    names = []
    for name, value in arrays.items():
        labels = coords.get(f"{name}_dim_1", range(value[:1].size))
        own = [label if isinstance(label, str) else f"{name}[{label}]" for label in labels]
        names += [name] if value.ndim == 1 else own
    if not names:
        return np.zeros((num_rows, 0)), []
    return np.column_stack([value.astype(np.float64) for value in arrays.values()]), names
