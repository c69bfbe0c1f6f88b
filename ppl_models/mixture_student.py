"""A mixture of Student t components, in which rows far from every centre do not pull scales up."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch

from ppl_models import datasets
from ppl_models.mixture import by_location, simulate_rows
from ppl_models.mixture_data import settings_from
from ppl_models.mixture_normal import (
    known_moments,
    maybe_flat,
    observe,
    sample_components,
    sample_weights,
)
from ppl_models.mixture_start import normal_start
from ppl_models.model import Model

# Gamma(2, 0.1) for degrees of freedom (Juarez & Steel 2010, J. Bus. Econ. Stat. 28): from heavy tails to nearly normal.
DF_SHAPE, DF_RATE = 2.0, 0.1


def student_mixture(
    *,
    x: torch.Tensor,
    K: int = 2,
    covariance: str = "full",
    flat: bool = False,
    data_mean: torch.Tensor | None = None,
    data_cov: torch.Tensor | None = None,
) -> torch.Tensor:
    """Mix K multivariate t distributions, each with its own degrees of freedom (Peel & McLachlan 2000).

    Arguments, priors and missing entries are those of `gaussian_mixture`; ``scale`` and ``covariance`` are those of
    the normal that the t distribution becomes as its degrees of freedom ``df`` grow. The labels have no order.
    """
    known = known_moments(x, K, covariance, data_mean, data_cov, flat=flat)
    weights = sample_weights(x, K, flat=flat)
    plate = pyro.plate("component", K)
    components = sample_components(known, plate, covariance, flat=flat)
    with plate:
        df = pyro.sample("df", maybe_flat(dist.Gamma(x.new_tensor(DF_SHAPE), x.new_tensor(DF_RATE)), flat=flat))
    return observe(x, weights, components, df)


def _start(data: Mapping[str, Any], seed: int) -> dict[str, np.ndarray]:
    """Start as normals, whose degrees of freedom have their prior mean."""
    start = normal_start(student_mixture, data, seed)
    return start | {"df": np.full_like(start["weights"], DF_SHAPE / DF_RATE)}


def _data() -> dict[str, Any]:
    return {"x": datasets.tumours(), "K": 2}


STUDENT_MIXTURE = Model(
    name="student_mixture",
    model=student_mixture,
    data=_data,
    simulate=partial(simulate_rows, student_mixture, num_columns=2),
    summary="mixture of multivariate t distributions (size and texture of 569 tumours)",
    identify=by_location,
    start=_start,
    table="x",
    settings_from=settings_from,
)
