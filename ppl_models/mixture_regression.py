"""A mixture of linear regressions: rows of different kinds follow different lines."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch

from ppl_models import datasets
from ppl_models.mixture_data import check_mixture, moments
from ppl_models.mixture_normal import LOC_SD, LOC_UNIT, LOG_SCALE_SD, maybe_flat, pick, sample_weights
from ppl_models.model import Model, Simulation
from ppl_models.simulation import draw, own_stream
from ppl_models.units import InUnits


def regression_mixture(
    *,
    x: torch.Tensor,
    y: torch.Tensor,
    K: int = 2,
    flat: bool = False,
    y_mean: torch.Tensor | None = None,
    y_sd: torch.Tensor | None = None,
) -> torch.Tensor:
    """Mix K linear regressions with normal noise (DeSarbo & Cron 1988, J. Classif. 5).

    Priors refer to standardised covariates and take their scale from ``y``: coefficients and intercepts are normal with
    two sds of y, noise is log-normal around half of one. The labels have no order.

    Parameters
    ----------
    x
        Standardised covariates, (rows, D).
    y
        Outcome, (rows,).
    K
        Number of lines.
    flat
        No priors, for a maximum of the likelihood.
    y_mean, y_sd
        Mean and standard deviation of the outcome, from which the priors are made; by default those of ``y``.
    """
    check_mixture(x, K, dims=(2,), flat=flat)
    if y.shape != x.shape[:1]:
        raise ValueError(f"y: expected shape ({len(x)},), one outcome for each row of x, got {tuple(y.shape)}.")
    if bool(x.isnan().any()):
        raise ValueError(
            "x: a covariate is missing (NaN), and the model has no distribution for it; leave the row out."
        )
    if y_mean is None or y_sd is None:
        known = moments(y, None, None, correlated=False)
        y_mean, y_sd = known.mean, known.sd
    mean, sd = torch.as_tensor(y_mean).to(x), torch.as_tensor(y_sd).to(x)
    weights = sample_weights(x, K, flat=flat)
    half = sd.log() - math.log(2)
    width = torch.full_like(half, LOG_SCALE_SD)
    with pyro.plate("component", K):
        at = InUnits(dist.Normal(mean, LOC_SD * sd), mean, LOC_UNIT * sd)
        intercept = pyro.sample("intercept", maybe_flat(at, flat=flat))
        zero = torch.zeros_like(x[0])
        slopes = InUnits(dist.Normal(zero, LOC_SD * sd), zero, LOC_UNIT * sd).to_event(1)
        coef = pyro.sample("coef", maybe_flat(slopes, flat=flat))
        sigma = pyro.sample("sigma", maybe_flat(InUnits(dist.LogNormal(half, width), half, width), flat=flat))
    with pyro.plate("data", len(x)):
        assignment = pyro.sample("assignment", dist.Categorical(weights), infer={"enumerate": "parallel"})
        line = pick(intercept, assignment) + (pick(coef, assignment, 1) * x).sum(-1)
        return pyro.sample("y", dist.Normal(line, pick(sigma, assignment)), obs=y)


def by_intercept(draws: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Relabel the lines of every draw by increasing intercept; shapes (..., K), ``coef`` (..., K, D)."""
    order = np.argsort(draws["intercept"], axis=-1)
    relabelled = {
        name: np.take_along_axis(draws[name], order, -1) for name in ("weights", "intercept", "sigma") if name in draws
    }
    if "coef" in draws:
        relabelled["coef"] = np.take_along_axis(draws["coef"], order[..., None], -2)
    if "assignment" in draws:
        relabelled["assignment"] = np.take_along_axis(np.argsort(order, -1), draws["assignment"], -1)
    return relabelled


def _data() -> dict[str, Any]:
    table = datasets.sepals()
    return {"x": table.x, "y": table.y, "K": 2}


def _simulate(
    seed: int,
    *,
    num_rows: int = 100,
    num_covariates: int = 1,
    K: int = 2,
    truth: Mapping[str, Any] | None = None,
    **settings: Any,
) -> Simulation:
    with own_stream(seed):
        inputs = {"x": torch.randn(num_rows, num_covariates), "y": torch.zeros(num_rows), "K": K}
        known = {"y_mean": torch.zeros(()), "y_sd": torch.ones(())}
        return draw(regression_mixture, inputs, truth=truth, **known | settings)


def _settings_from(data: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    known = moments(data["y"], None, None, correlated=False)
    return {"y_mean": data.get("y_mean", known.mean), "y_sd": data.get("y_sd", known.sd)}


REGRESSION_MIXTURE = Model(
    name="regression_mixture",
    model=regression_mixture,
    data=_data,
    simulate=_simulate,
    summary="mixture of linear regressions (sepal width of irises by sepal length, two lines)",
    identify=by_intercept,
    table="x",
    settings_from=_settings_from,
)
