"""Models with posteriors in closed form: the rulers by which inference is measured."""

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from scipy import special, stats

from ppl_models import datasets
from ppl_models.model import Exact, Model, Simulation
from ppl_models.simulation import draw, own_stream

# Density of the Earth relative to water: Cavendish's 29 determinations of 1798 (as in Stigler 1977, Ann. Statist. 5).
EARTH_DENSITY = [
    *(5.50, 5.61, 4.88, 5.07, 5.26, 5.55, 5.36, 5.29, 5.58, 5.65, 5.57, 5.53, 5.62, 5.29, 5.44),
    *(5.34, 5.79, 5.10, 5.27, 5.39, 5.42, 5.47, 5.63, 5.34, 5.46, 5.30, 5.75, 5.68, 5.85),
]
# Women who applied to the six largest graduate departments at Berkeley in 1973, and those admitted (Bickel,
# Hammel & O'Connell 1975, Science 187; counts as in R's `UCBAdmissions`).
APPLIED = [108.0, 25.0, 593.0, 375.0, 393.0, 341.0]
ADMITTED = [89.0, 17.0, 202.0, 131.0, 94.0, 24.0]
DEPARTMENTS = ["A", "B", "C", "D", "E", "F"]


def _arguments(model: Callable[..., Any], data: Mapping[str, Any]) -> dict[str, Any]:
    """Complete the data by the model's defaults, as numpy, so that `exact` and the model cannot drift apart."""
    bound = inspect.signature(model).bind(**data)
    bound.apply_defaults()
    return {name: np.asarray(value, dtype=np.float64) for name, value in bound.arguments.items()}


# Normal mean -----------------------------------------------------------------------------------------------------


def normal_mean(
    *, y: torch.Tensor, noise_sd: float = 0.2, prior_mean: float = 5.5, prior_sd: float = 0.5
) -> torch.Tensor:
    """Measure one quantity repeatedly with a known error.

    The default prior is Newton's guess, a century before the measurements, that the Earth is "five or six times"
    as dense as water (Principia, book III, proposition 10). ``y`` has shape (rows,).
    """
    mu = pyro.sample("mu", dist.Normal(prior_mean, prior_sd))
    with pyro.plate("data", len(y)):
        return pyro.sample("y", dist.Normal(mu, noise_sd), obs=y)


def normal_mean_guide(
    *, y: torch.Tensor, noise_sd: float = 0.2, prior_mean: float = 5.5, prior_sd: float = 0.5
) -> torch.Tensor:
    """Guess a normal, the family that contains the exact posterior, starting at the prior."""
    loc = pyro.param("mu_loc", lambda: y.new_tensor(prior_mean))
    scale = pyro.param("mu_scale", lambda: y.new_tensor(prior_sd), constraint=constraints.positive)
    return pyro.sample("mu", dist.Normal(loc, scale))


def normal_mean_exact(data: Mapping[str, Any]) -> Exact:
    """Give the posterior of `normal_mean` (Gelman et al., BDA3, section 2.5)."""
    y, noise_sd, prior_mean, prior_sd = _arguments(normal_mean, data).values()
    precision = len(y) / noise_sd**2 + 1 / prior_sd**2
    mean, sd = (y.sum() / noise_sd**2 + prior_mean / prior_sd**2) / precision, precision**-0.5
    # Bayes' rule read backwards, p(y) = p(y | mu) p(mu) / p(mu | y), holds at any mu; here at the posterior mean.
    log_evidence = (
        stats.norm.logpdf(y, mean, noise_sd).sum()
        + stats.norm.logpdf(mean, prior_mean, prior_sd)
        - stats.norm.logpdf(mean, mean, sd)
    )
    return Exact({"mu": np.asarray(mean)}, {"mu": np.asarray(sd)}, float(log_evidence))


def _normal_mean_data() -> dict[str, Any]:
    return {"y": torch.tensor(EARTH_DENSITY, dtype=torch.float64)}


def _simulate_normal_mean(
    seed: int, *, num_rows: int = 29, truth: Mapping[str, Any] | None = None, **settings: float
) -> Simulation:
    with own_stream(seed):
        return draw(normal_mean, {"y": torch.zeros(num_rows)}, truth=truth, **settings)


# Beta-binomial ---------------------------------------------------------------------------------------------------


def beta_binomial(
    *, successes: torch.Tensor, trials: torch.Tensor, prior_a: float = 1.0, prior_b: float = 1.0
) -> torch.Tensor:
    """Count successes in known numbers of trials, one unknown probability per group, groups independent.

    The default prior is uniform. ``successes`` and ``trials`` have shape (groups,) and a floating dtype.
    """
    with pyro.plate("group", len(trials)):
        probability = pyro.sample("probability", dist.Beta(prior_a, prior_b))
        return pyro.sample("successes", dist.Binomial(trials, probability), obs=successes)


def beta_binomial_exact(data: Mapping[str, Any]) -> Exact:
    """Give the posterior of `beta_binomial`: a Beta per group; the evidence is beta-binomial (BDA3, section 2.4)."""
    successes, trials, prior_a, prior_b = _arguments(beta_binomial, data).values()
    posterior = stats.beta(prior_a + successes, prior_b + trials - successes)
    log_evidence = stats.betabinom.logpmf(successes, trials, prior_a, prior_b).sum()
    return Exact({"probability": posterior.mean()}, {"probability": posterior.std()}, float(log_evidence))


def _beta_binomial_data() -> dict[str, Any]:
    return {
        "successes": torch.tensor(ADMITTED, dtype=torch.float64),
        "trials": torch.tensor(APPLIED, dtype=torch.float64),
    }


def _simulate_beta_binomial(
    seed: int, *, num_groups: int = 6, num_trials: int = 50, truth: Mapping[str, Any] | None = None, **settings: float
) -> Simulation:
    trials = torch.full((num_groups,), float(num_trials), dtype=torch.float64)
    with own_stream(seed):
        return draw(beta_binomial, {"successes": torch.zeros(num_groups), "trials": trials}, truth=truth, **settings)


# Linear regression -----------------------------------------------------------------------------------------------


def bayesian_linear_regression(
    *,
    x: torch.Tensor,
    y: torch.Tensor,
    intercept_scale: float = 10.0,
    coef_scale: float = 5.0,
    variance_shape: float = 3.0,
    variance_rate: float = 1.0,
) -> torch.Tensor:
    """Regress linearly with the conjugate normal-inverse-gamma prior, noise variance unknown.

    The prior sds of intercept and coefficients are multiples of the noise sd, which is what makes the posterior exact;
    five and ten noise sds are wide for standardised covariates. Shape 3 is the smallest whole number for which the
    variance has a prior sd. ``x`` has shape (rows, covariates), ``y`` (rows,).
    """
    variance = pyro.sample("variance", dist.InverseGamma(variance_shape, variance_rate))
    noise_sd = variance.sqrt()
    intercept = pyro.sample("intercept", dist.Normal(0.0, intercept_scale * noise_sd))
    with pyro.plate("covariate", x.shape[-1]):
        coef = pyro.sample("coef", dist.Normal(0.0, coef_scale * noise_sd))
    with pyro.plate("data", len(x)):
        return pyro.sample("y", dist.Normal(intercept + coef @ x.T, noise_sd), obs=y)


def bayesian_linear_regression_exact(data: Mapping[str, Any]) -> Exact:
    """Give the posterior of `bayesian_linear_regression` (Bishop 2006, exercises 3.12 and 3.23; BDA3, section 14.2).

    The variance is inverse-gamma; intercept and coefficients are jointly multivariate t.

    Raises
    ------
    ValueError
        So few rows, with so small a ``variance_shape``, that the variance has no posterior sd.
    """
    x, y, intercept_scale, coef_scale, shape, rate = _arguments(bayesian_linear_regression, data).values()
    design = np.column_stack([np.ones(len(x)), x])
    prior_precision = np.r_[intercept_scale, np.full(x.shape[1], coef_scale)] ** -2.0  # in units of 1 / variance
    precision = design.T @ design + np.diag(prior_precision)
    mean = np.linalg.solve(precision, design.T @ y)
    post_shape = shape + len(y) / 2
    if post_shape <= 2:
        raise ValueError(
            f"variance_shape: shape + rows / 2 must exceed 2, got {float(post_shape)}; raise it or add rows."
        )
    # Sums of squares, not the usual difference of large numbers, so that no digits cancel.
    post_rate = rate + 0.5 * (np.sum((y - design @ mean) ** 2) + np.sum(prior_precision * mean**2))
    variance = post_rate / (post_shape - 1)
    sd = np.sqrt(variance * np.diag(np.linalg.inv(precision)))
    log_evidence = (
        -0.5 * len(y) * math.log(2 * math.pi)
        + 0.5 * (np.log(prior_precision).sum() - np.linalg.slogdet(precision).logabsdet)
        + shape * np.log(rate)
        - post_shape * np.log(post_rate)
        + special.gammaln(post_shape)
        - special.gammaln(shape)
    )
    return Exact(
        {"variance": np.asarray(variance), "intercept": np.asarray(mean[0]), "coef": mean[1:]},
        {"variance": np.asarray(variance / np.sqrt(post_shape - 2)), "intercept": np.asarray(sd[0]), "coef": sd[1:]},
        float(log_evidence),
    )


def _bayesian_linear_regression_data() -> dict[str, Any]:
    table = datasets.iris_petal_width()
    return {"x": table.x, "y": table.y}


def _simulate_bayesian_linear_regression(
    seed: int,
    *,
    num_rows: int = 50,
    num_covariates: int = 3,
    truth: Mapping[str, Any] | None = None,
    **settings: float,
) -> Simulation:
    with own_stream(seed):
        inputs = {"x": torch.randn(num_rows, num_covariates), "y": torch.zeros(num_rows)}
        return draw(bayesian_linear_regression, inputs, truth=truth, **settings)


def _bayesian_linear_regression_coords(data: Mapping[str, Any]) -> dict[str, list]:
    table = datasets.iris_petal_width()
    return datasets.labels_if_same(data["x"], table.x, covariate=table.covariates)


NORMAL_MEAN = Model(
    name="normal_mean",
    model=normal_mean,
    data=_normal_mean_data,
    simulate=_simulate_normal_mean,
    summary="mean of normal measurements with known error, exact posterior (density of the Earth, Cavendish 1798)",
    guide=normal_mean_guide,
    exact=normal_mean_exact,
)
BETA_BINOMIAL = Model(
    name="beta_binomial",
    model=beta_binomial,
    data=_beta_binomial_data,
    simulate=_simulate_beta_binomial,
    summary="a probability per group, exact posterior (women admitted by department, Berkeley 1973)",
    exact=beta_binomial_exact,
    coords=lambda data: datasets.labels_if_same(
        data["trials"], torch.tensor(APPLIED, dtype=torch.float64), group=DEPARTMENTS
    ),
)
BAYESIAN_LINEAR_REGRESSION = Model(
    name="bayesian_linear_regression",
    model=bayesian_linear_regression,
    data=_bayesian_linear_regression_data,
    simulate=_simulate_bayesian_linear_regression,
    summary="linear regression with conjugate prior, exact posterior (petal width of irises)",
    exact=bayesian_linear_regression_exact,
    coords=_bayesian_linear_regression_coords,
)
