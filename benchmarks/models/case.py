"""`Case`: one model, written for Pyro, NumPyro, PyMC and Stan, with the same data and priors."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class Case:
    """One model of the benchmark.

    Attributes
    ----------
    name, title
        Short name for the command line, and what the tables call it.
    data
        Makes the data: numpy arrays, float64 or int64, the same at every call.
    pyro
        An unmodified Pyro function of the data.
    numpyro
        Gives a NumPyro function of the data (imports NumPyro, hence not the function itself).
    pymc
        Gives a PyMC model from the data (imports PyMC).
    stan
        Stan program; its data block is the data with ``stan_extra``.
    stan_extra
        Gives what the Stan program wants beside the data (sizes) or in its place (integers).
    quantities
        The latent sites, constrained, by the names they have in all four: what effective sample sizes are taken over.
    draw
        Draws values of ``quantities`` from (about) the prior, for comparing log densities.
    log_joint
        Log joint density of values of ``quantities`` and the data on the constrained space, up to a constant, by
        numpy and scipy only: what all four are checked against.
    """

    name: str
    title: str
    data: Callable[[], Arrays]
    pyro: Callable[..., Any]
    numpyro: Callable[[], Callable[..., Any]]
    pymc: Callable[[Arrays], Any]
    stan: str
    stan_extra: Callable[[Arrays], dict[str, Any]]
    quantities: tuple[str, ...]
    draw: Callable[[np.random.Generator], Arrays]
    log_joint: Callable[[Mapping[str, np.ndarray], Arrays], float]

    def stan_data(self) -> dict[str, Any]:
        """Give the data as the Stan program wants it; indices count from one."""
        data = self.data()
        shifted = {name: value + 1 if name.endswith("_index") else value for name, value in data.items()}
        return {**shifted, **self.stan_extra(data)}
