"""Linear, logistic and Poisson regression with weakly informative priors; all but one on standardised covariates."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import torch

from ppl_models import datasets
from ppl_models.model import Model, Simulation
from ppl_models.simulation import draw, own_stream


def _linear_predictor(x: torch.Tensor, intercept_sd: float, coef_sd: float) -> torch.Tensor:
    """Sample intercept and coefficients; give their combination for every row, shape (rows,)."""
    intercept = pyro.sample("intercept", dist.Normal(0.0, intercept_sd))
    with pyro.plate("covariate", x.shape[-1]):
        coef = pyro.sample("coef", dist.Normal(0.0, coef_sd))
    return intercept + coef @ x.T


def linear_regression(
    *, x: torch.Tensor, y: torch.Tensor, intercept_sd: float = 1.0, coef_sd: float = 1.0, noise_scale: float = 1.0
) -> torch.Tensor:
    """Predict a normal outcome, standardised like the covariates, so that every prior scale is one.

    With both sides in sd units a coefficient beyond 2 is hardly possible, and the noise sd cannot much exceed the
    outcome's own sd of 1. ``x`` has shape (rows, covariates), ``y`` (rows,).
    """
    mean = _linear_predictor(x, intercept_sd, coef_sd)
    noise_sd = pyro.sample("noise_sd", dist.HalfNormal(noise_scale))
    with pyro.plate("data", len(x)):
        return pyro.sample("y", dist.Normal(mean, noise_sd), obs=y)


def logistic_regression(
    *, x: torch.Tensor, y: torch.Tensor, intercept_sd: float = 2.5, coef_sd: float = 2.5
) -> torch.Tensor:
    """Predict a binary outcome, 0 or 1 in a floating dtype.

    A change of 5 in the logit leads from 8 % to 92 %, more than one covariate should do by itself; so 5 is put at two
    prior sds (the scale that Gelman et al. 2008, Ann. Appl. Stat. 2, give their Cauchy prior). It also keeps the
    posterior proper where the classes can be separated. ``x`` has shape (rows, covariates), ``y`` (rows,).
    """
    logits = _linear_predictor(x, intercept_sd, coef_sd)
    with pyro.plate("data", len(x)):
        return pyro.sample("y", dist.Bernoulli(logits=logits), obs=y)


def poisson_regression(
    *, x: torch.Tensor, y: torch.Tensor, intercept_sd: float = 2.5, coef_sd: float = 0.5
) -> torch.Tensor:
    """Predict counts, in a floating dtype, with the logarithm as link.

    At typical covariates the rate is below exp(5), about 150, with 95 % probability, and above 1/150; one sd of a
    covariate changes it by no more than a factor of exp(1), about 2.7. ``x`` has shape (rows, covariates), ``y``
    (rows,).
    """
    log_rate = _linear_predictor(x, intercept_sd, coef_sd)
    with pyro.plate("data", len(x)):
        return pyro.sample("y", dist.Poisson(log_rate.exp()), obs=y)


def interaction_regression(*, x: torch.Tensor, group: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Predict a normal, standardised outcome by one covariate, with an intercept and a slope for each of two groups.

    The story of terrain ruggedness in McElreath's "Statistical Rethinking" (chapter 8): ``x`` counts from a zero that
    means something, not from its mean. So intercepts and slopes are correlated, and a guide with independent parameters
    has far too small sds. ``x``, ``group`` (0 or 1) and ``y`` have shape (rows,).
    """
    intercept = pyro.sample("intercept", dist.Normal(0.0, 1.0))
    group_effect = pyro.sample("group_effect", dist.Normal(0.0, 1.0))
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    interaction = pyro.sample("interaction", dist.Normal(0.0, 1.0))
    noise_sd = pyro.sample("noise_sd", dist.HalfNormal(1.0))
    mean = intercept + group_effect * group + (slope + interaction * group) * x
    with pyro.plate("data", len(x)):
        return pyro.sample("y", dist.Normal(mean, noise_sd), obs=y)


def _simulate(
    model: Callable[..., Any],
    seed: int,
    *,
    num_rows: int = 100,
    num_covariates: int = 3,
    truth: Mapping[str, Any] | None = None,
    **settings: float,
) -> Simulation:
    with own_stream(seed):
        inputs = {"x": torch.randn(num_rows, num_covariates), "y": torch.zeros(num_rows)}
        return draw(model, inputs, truth=truth, **settings)


def _simulate_interaction(seed: int, *, num_rows: int = 100, truth: Mapping[str, Any] | None = None) -> Simulation:
    with own_stream(seed):
        group = (torch.arange(num_rows) % 2).to(torch.get_default_dtype())
        inputs = {"x": 1 + torch.randn(num_rows), "group": group, "y": torch.zeros(num_rows)}
        return draw(interaction_regression, inputs, truth=truth)


def _interaction_data() -> dict[str, Any]:
    return dict(zip(("x", "group", "y"), datasets.diabetes_by_sex(), strict=True))


def _data(load: Callable[[], datasets.Table]) -> dict[str, Any]:
    table = load()
    return {"x": table.x, "y": table.y}


def _coords(load: Callable[[], datasets.Table], data: Mapping[str, Any]) -> dict[str, list]:
    table = load()
    return datasets.labels_if_same(data["x"], table.x, covariate=table.covariates)


def _regression(model: Callable[..., Any], load: Callable[[], datasets.Table], summary: str) -> Model:
    return Model(
        name=model.__name__,
        model=model,
        data=partial(_data, load),
        simulate=partial(_simulate, model),
        summary=summary,
        coords=partial(_coords, load),
    )


LINEAR_REGRESSION = _regression(
    linear_regression, datasets.diabetes, "linear regression (progression of diabetes, 442 patients)"
)
LOGISTIC_REGRESSION = _regression(
    logistic_regression, datasets.breast_cancer, "logistic regression (malignant tumours, 569 patients)"
)
POISSON_REGRESSION = _regression(
    poisson_regression, datasets.chin_ups, "Poisson regression (chin-ups of 20 men; more dispersed than Poisson)"
)
INTERACTION_REGRESSION = Model(
    name="interaction_regression",
    model=interaction_regression,
    data=_interaction_data,
    simulate=_simulate_interaction,
    summary="two intercepts and two slopes, strongly correlated (diabetes by body mass index and sex, 442 patients)",
)
