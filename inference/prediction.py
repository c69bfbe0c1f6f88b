"""What `inference.predict` gives back: probabilities and most probable values of discrete sites, also as a table."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from inference.errors import InputError


@dataclass(frozen=True, eq=False)
class SitePrediction:
    """A discrete site, averaged over the draws of a fit.

    Attributes
    ----------
    name
        The site; ``<site>_states`` for the states of a hidden Markov chain.
    dims
        Names of the axes of its elements: plates, and ``time`` for states.
    coords
        Labels by dim, where the model gives them.
    values
        (K,), or (K, *event): what the site can be.
    probabilities
        (*elements, K): the mean over draws of the exact probabilities given the data and the draw: responsibilities,
        or smoothed state probabilities.
    error
        (*elements, K): Monte Carlo standard errors of ``probabilities``; NaN for too few draws.
    joint
        (*elements), indices into ``values``: the most probable values of all elements together (of a chain, its path),
        those that maximise the mean over draws of the log probability of the whole. None where there is no such path.
    filtered
        (*elements, K), states of chains only: the mean over draws of the probabilities given the data up to each step.
    """

    name: str
    dims: tuple[str, ...]
    coords: Mapping[str, list]
    values: np.ndarray = field(repr=False)
    probabilities: np.ndarray = field(repr=False)
    error: np.ndarray = field(repr=False)
    joint: np.ndarray | None = field(default=None, repr=False)
    filtered: np.ndarray | None = field(default=None, repr=False)

    @property
    def most_probable(self) -> np.ndarray:
        """Most probable value of each element by itself, (*elements), as an index into ``values``."""
        return self.probabilities.argmax(-1)

    @property
    def probability(self) -> np.ndarray:
        """Probability of the most probable value of each element, (*elements)."""
        return self.probabilities.max(-1)

    def to_dataframe(self, *, column: str | None = None) -> pd.DataFrame:
        """Make a table with a row per element.

        Returns
        -------
        pandas.DataFrame
            Index: one level per dim, the model's labels where it has them. Columns: the most probable value, named like
            the site (or ``column``); ``probability`` of it and its Monte Carlo ``error``; ``joint``, the value in the
            most probable joint assignment or path; ``p[0]``, ``p[1]``, ... for every value.
        """
        best = self.most_probable.reshape(-1)
        shares = self.probabilities.reshape(len(best), -1)
        labels = self.values if self.values.ndim == 1 else np.arange(len(self.values))
        if labels.dtype.kind == "f" and np.all(labels == np.round(labels)):  # Pyro's Bernoulli is 0.0 or 1.0
            labels = labels.astype(np.int64)
        columns: dict[str, Any] = {column or self.name: labels[best], "probability": shares[np.arange(len(best)), best]}
        columns["error"] = self.error.reshape(shares.shape)[np.arange(len(best)), best]
        if self.joint is not None:
            columns["joint"] = labels[self.joint.reshape(-1)]
        columns |= {f"p[{label}]": shares[:, k] for k, label in enumerate(labels)}
        return pd.DataFrame(columns, index=self._index())

    def _index(self) -> pd.Index | None:
        shape = self.probabilities.shape[:-1]
        if not shape:
            return None
        axes = [self.coords.get(d, range(n)) for d, n in zip(self.dims, shape, strict=True)]
        if len(axes) == 1:
            return pd.Index(list(axes[0]), name=self.dims[0])
        return pd.MultiIndex.from_product(axes, names=self.dims)


@dataclass(frozen=True, eq=False)
class Prediction(Mapping):
    """The discrete sites of a model, averaged over the draws of a fit; a mapping from names to `SitePrediction`.

    Attributes
    ----------
    sites
        By name.
    num_draws
        How many draws were averaged.
    labels
        What was done about labels, a sentence; empty where they mean something by themselves, or had been aligned.
    """

    sites: dict[str, SitePrediction]
    num_draws: int
    labels: str = ""

    def __getitem__(self, name: str) -> SitePrediction:
        if name not in self.sites:
            raise KeyError(f"no discrete site '{name}'; there are {', '.join(self.sites)}")
        return self.sites[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.sites)

    def __len__(self) -> int:
        return len(self.sites)

    def to_dataframe(self, site: str | None = None) -> pd.DataFrame:
        """Make a table with a row per element, as `SitePrediction.to_dataframe` does.

        Parameters
        ----------
        site
            Which; by default the only one. Of several sites without axes (``state_0``, ``state_1``, ... of a loop) the
            table has a row for each, its value in the column ``value``.
        """
        if site is not None or len(self.sites) == 1:
            name = site if site is not None else next(iter(self.sites))
            if name not in self.sites:
                raise InputError(f"site: expected one of {', '.join(self.sites)}, got '{name}'.")
            return self.sites[name].to_dataframe()
        if any(found.dims for found in self.sites.values()):
            raise InputError(f"site: choose one of {', '.join(self.sites)}, which have axes of their own.")
        tables = {name: found.to_dataframe(column="value") for name, found in self.sites.items()}
        return pd.concat(tables, names=["site"]).droplevel(-1)
