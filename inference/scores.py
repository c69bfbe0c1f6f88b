"""How well the draws of a fit predict data: held-out log densities, and those of each step of a series."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xarray as xr

from inference.batch_means import MAX_LOG_BATCHES, LogBatchMeans, batch_ids
from inference.conditional import as_tensors, stream_chains, stream_log_likelihood, term_layout
from inference.datatree import MAX_GROUP
from inference.errors import InputError
from inference.fit import Fit
from inference.new_data import latent_draws, sites_at
from inference.sites import Sites


@dataclass(frozen=True, eq=False)
class TermScore:
    """Log predictive densities of one observed site.

    Attributes
    ----------
    dims
        Names of the axes of the elements: its plates. A hidden Markov chain is one element.
    pointwise, error
        (*elements): log of the mean over draws of p(element given the draw), and its Monte Carlo standard error.
    total, total_error
        Sum over the elements, and its Monte Carlo standard error. The sum says how well each element is predicted by
        itself, as LOO does; it is not the log density of all of them together.
    num_steps
        Of a hidden Markov chain, the number of steps that were observed (not masked), over all sequences; else None.
    """

    dims: tuple[str, ...]
    pointwise: np.ndarray = field(repr=False)
    error: np.ndarray = field(repr=False)
    total: float
    total_error: float
    num_steps: int | None = None

    @property
    def per_step(self) -> float:
        """Average log predictive density per observed step of a hidden Markov chain."""
        if self.num_steps is None:
            raise InputError("per_step: only hidden Markov chains have steps; use total / pointwise.size.")
        return self.total / self.num_steps


@dataclass(frozen=True, eq=False)
class PredictiveScore(Mapping):
    """Log predictive densities of new data by observed site; a mapping from names to `TermScore`.

    Attributes
    ----------
    terms
        By site; sites that share a discrete latent have one joint term, named ``a+b``.
    num_draws
        How many draws were averaged.
    """

    terms: dict[str, TermScore]
    num_draws: int

    def __getitem__(self, name: str) -> TermScore:
        return self.terms[name]

    def __iter__(self) -> Any:
        return iter(self.terms)

    def __len__(self) -> int:
        return len(self.terms)

    @property
    def total(self) -> float:
        """Sum over the elements of all sites."""
        return sum(term.total for term in self.terms.values())

    @property
    def total_error(self) -> float:
        """Upper bound of the Monte Carlo standard error of ``total``; exact for one site."""
        return sum(term.total_error for term in self.terms.values())


def log_predictive(
    fit: Fit, new_data: Mapping[str, Any] | None = None, *, num_draws: int | None = None
) -> PredictiveScore:
    """Score data by the log of their mean density over the draws of a fit, discrete latents summed out.

    Each element of a plate is scored by itself, log mean_s p(y_i | draw s), a whole sequence where the site is a hidden
    Markov chain. Memory does not grow with the number of draws.

    Parameters
    ----------
    fit
        From any engine; its draws are taken as they are.
    new_data
        Held-out data, as for `inference.predict.predict`. By default the data of the fit, which gives the log pointwise
        predictive density (lppd of Gelman et al. 2014): no held-out score, since the fit has seen them.
    num_draws
        Average so many draws of each chain, evenly spread; by default all.

    Returns
    -------
    PredictiveScore
        By observed site, with Monte Carlo standard errors from batches of draws. They need densities of finite variance
        over the draws: a long new sequence that a few draws dominate has a larger error than they say.

    Raises
    ------
    InputError
        As `inference.predict.predict`; or the model observes nothing.

    Examples
    --------
    >>> log_predictive(fit, {"x": held_out}).total
    """
    with fit.restored() as own:
        sites = sites_at(fit, own, new_data)
        if not sites.observed:
            raise InputError("model: has no observed site, so there is nothing to score.")
        draws, shape = latent_draws(fit, sites, num_draws)
        ids = batch_ids(*shape, independent=fit.independent, most=MAX_LOG_BATCHES)
        dims, _ = term_layout(sites, draws)
        means = {name: LogBatchMeans(ids) for name in dims}
        for part in stream_log_likelihood(sites, draws):
            for name, value in part.items():
                means[name].add(value)
        steps = {name: _observed_steps(sites, draws, name) for name in sites.chains if name in means}
    terms = {}
    for name, mean in means.items():
        values, error, total_error = mean.result()
        terms[name] = TermScore(dims[name], values, error, float(values.sum()), total_error, steps.get(name))
    return PredictiveScore(terms, len(ids))


def _observed_steps(sites: Sites, draws: Mapping[str, np.ndarray], observed: str) -> int:
    """Count the steps of a chain that say something of its states: a masked step has logit 0 for all of them."""
    one = as_tensors({name: value[:1] for name, value in draws.items()})
    (chains,) = stream_chains(sites, one, observed)
    return int((chains.observation != 0).any(1).sum())


def step_log_densities(
    fit: Fit, new_data: Mapping[str, Any] | None = None, *, num_draws: int | None = None
) -> xr.Dataset:
    """Log densities of each step of hidden Markov chains given the steps before it, log p(y_t | y_1 ... y_(t-1), draw).

    They are what the filter gives on its way, and sum to the log likelihood of the sequence; leave-future-out scores
    (Burkner, Gabry & Vehtari 2020) are made of them. A masked step has 0.

    Parameters
    ----------
    fit, new_data, num_draws
        As for `log_predictive`.

    Returns
    -------
    xarray.Dataset
        One variable per chain, with dims chain, draw, those of its plates, and time.

    Raises
    ------
    InputError
        As `log_predictive`; no hidden Markov chain; or more numbers than can be held.
    """
    with fit.restored() as own:
        sites = sites_at(fit, own, new_data)
        if not sites.chains:
            raise InputError(
                "model: has no hidden Markov chain (an observed site with chain_logits, or a DiscreteHMM)."
            )
        draws, shape = latent_draws(fit, sites, num_draws)
        result = {}
        for observed, path in sites.chains.items():
            size = shape[0] * shape[1] * int(np.prod(path.shape))
            if size > MAX_GROUP:
                raise InputError(
                    f"site '{observed}': {size} step densities are more than {MAX_GROUP}; choose a smaller num_draws."
                )
            if sites.discrete:
                raise InputError(
                    f"site '{observed}': its steps have no density of their own beside other discrete sites "
                    f"({', '.join(sites.discrete)})."
                )
            parts = [chains.step_log_densities for chains in stream_chains(sites, as_tensors(draws), observed)]
            values = np.concatenate(parts).reshape(*shape, *path.shape)
            result[observed] = (("chain", "draw", *path.dims), values)
    return xr.Dataset(result)
