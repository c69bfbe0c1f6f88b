"""What a model is: a Pyro function together with data, a simulator and known answers."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch


class Simulation(NamedTuple):
    """A made-up data set and what it was made from.

    Attributes
    ----------
    truth
        Value of every latent site, deterministic and discrete ones included.
    data
        Keyword arguments of the model, as `Model.data` gives them.
    """

    truth: dict[str, torch.Tensor]
    data: dict[str, Any]


@dataclass(frozen=True)
class Exact:
    """A posterior in closed form.

    Attributes
    ----------
    mean, sd
        Posterior mean and standard deviation of every latent site, in the site's own shape.
    log_evidence
        Log of the marginal density of the data, every normalising constant included.
    """

    mean: dict[str, np.ndarray]
    sd: dict[str, np.ndarray]
    log_evidence: float


class HeldOut(NamedTuple):
    """Rows that a model with networks is scored on, after training on others.

    Attributes
    ----------
    data
        As `Model.data` gives them, with these rows.
    labels
        What the rows are, (N,), for the colours of a figure; not seen by the model.
    """

    data: dict[str, Any]
    labels: torch.Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Model:
    """A generative story with everything needed to try it.

    Attributes
    ----------
    name
        Key in `ppl_models.MODELS`.
    model
        The Pyro function. Its arguments are keyword-only; an observed site has the name of the argument it observes.
    data
        Gives a small real data set: the function's keyword arguments. Arrays are float64 tensors, sizes Python ints.
        (`inference.fit` converts them to the default dtype; plain Pyro wants that done by hand.)
    simulate
        ``simulate(seed, *, sizes..., truth=None, **settings)`` draws a `Simulation` without touching the caller's
        random streams. ``truth`` fixes some or all latent sites, the rest come from the prior; ``settings`` go to
        the model (prior hyperparameters, say) and into the data.
    summary
        One line on what it is.
    guide
        A hand-written variational family with the model's arguments; it leaves out sites that are summed out.
    exact
        ``exact(data)`` gives the posterior in closed form.
    identify
        Maps draws of shape (chain, draw, ...) to quantities that do not depend on the labels of components.
    coords
        ``coords(data)`` gives the labels of each plate, keyed by plate name, where the data are those of `data`.
    start
        ``start(data, seed)`` gives values of the latent sites near which a climb to a maximum may begin, other ones for
        another seed.
    table
        Name of the argument that is a table (rows, columns): the numeric columns of a CSV file go there, and NaN marks
        a missing entry, of which the model takes account.
    may_miss
        Name of the argument in which NaN marks a missing value, if that is no table.
    settings_from
        ``settings_from(data)`` gives arguments that the model otherwise reads off its data, such as the moments that
        its priors are made of; with them new data are looked at under the priors of the old.
    training
        For models with networks: options of mini-batch training (``inference.SVI``) that suit the default data. Such a
        model is trained with its own guide and judged row by row.
    held_out
        ``held_out()`` gives rows beside those of `data`, to score what was trained.
    """

    name: str
    model: Callable[..., Any]
    data: Callable[[], dict[str, Any]]
    simulate: Callable[..., Simulation]
    summary: str
    guide: Callable[..., Any] | None = None
    exact: Callable[[Mapping[str, Any]], Exact] | None = None
    identify: Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]] | None = None
    coords: Callable[[Mapping[str, Any]], dict[str, list]] | None = None
    start: Callable[[Mapping[str, Any], int], dict[str, np.ndarray]] | None = None
    table: str | None = None
    may_miss: str | None = None
    settings_from: Callable[[Mapping[str, Any]], dict[str, Any]] | None = None
    training: Mapping[str, Any] | None = None
    held_out: Callable[[], HeldOut] | None = None
