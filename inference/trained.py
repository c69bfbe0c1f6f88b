"""Models with networks on the command line: trained with their own guide on some rows, scored on others."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from inference.batches import plan_batches, split
from inference.errors import InputError
from inference.fit import Fit, fit
from inference.isolation import isolated
from inference.sites import read_sites
from inference.svi import SVI
from inference.validate import missing_argument, model_function, prepare_data

# Of a user's own rows so many are held out: the share that text books hold out.
HELD_OUT = 0.2
# Posterior draws of every row of the training data are many numbers that nobody looks at.
NUM_DRAWS = {"num_samples": 100, "num_chains": 1}


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows to train on, and others to score.

    Attributes
    ----------
    train, test
        Arguments of the model.
    labels
        Of the test rows, for colours; or None.
    """

    train: dict[str, Any]
    test: dict[str, Any]
    labels: torch.Tensor | None = field(default=None)


def has_networks(model: Any) -> bool:
    """Whether a model says how its networks are trained (``ppl_models.Model.training``)."""
    return getattr(model, "training", None) is not None


def own_engine(model: Any, **settings: Any) -> SVI:
    """Give the engine that trains a model's networks with its own guide, as the model says; ``settings`` override."""
    return SVI(guide=model.guide, **{**NUM_DRAWS, **model.training, **settings})


def rows_of(model: Any, data: Mapping[str, Any], *, bundled: bool, seed: int) -> Rows:
    """Give rows to train on, and rows to score: those beside the bundled data, or a part of the user's own.

    Parameters
    ----------
    model
        A model with networks.
    data
        Its arguments.
    bundled
        Whether the data are the model's own; settings among them may differ.
    seed
        Chooses the rows that are held out.

    Raises
    ------
    InputError
        The data do not suit the model, or have too few rows.
    """
    if bundled and model.held_out is not None:
        test, labels = model.held_out()
        return Rows(dict(data), {**data, **test}, labels)
    function = model_function(model)
    with isolated(seed, dtype=torch.float32, own=[function]):
        sites = read_sites(function, prepare_data(function, data, may_miss=missing_argument(model)))
        if max(sites.plate_sizes.values(), default=0) < 2:
            raise InputError("data: expected at least two rows, one to train on and one to score.")
        train, test = split(plan_batches(sites, size=1, plate=None, seed=seed), HELD_OUT)
        return Rows(train.take(train.rows), test.take(test.rows))


def train(model: Any, data: Mapping[str, Any], *, seed: int, progress: bool | None = None, **settings: Any) -> Fit:
    """Train a model's networks; a batch is at most all rows. ``settings`` are as for `own_engine`."""
    # from a file arrays are not yet tensors, and may be lists
    lengths = [len(value) for value in data.values() if getattr(value, "ndim", isinstance(value, list))]
    batch_size = min(model.training["batch_size"], max(lengths, default=1))
    return fit(model, data, own_engine(model, batch_size=batch_size, **settings), seed=seed, progress=progress)
