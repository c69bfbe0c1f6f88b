"""Logistic regression on standard normal covariates."""

from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from scipy import stats
from scipy.special import log_expit

from benchmarks.models.case import Case


def logistic(x, y):
    intercept = pyro.sample("intercept", dist.Normal(0.0, 2.5))
    coef = pyro.sample("coef", dist.Normal(torch.zeros(x.shape[1]), 1.0).to_event(1))
    with pyro.plate("row", len(y)):
        pyro.sample("y", dist.Bernoulli(logits=intercept + x @ coef), obs=y)


def _numpyro():
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist

    def model(x, y):
        intercept = numpyro.sample("intercept", dist.Normal(0.0, 2.5))
        coef = numpyro.sample("coef", dist.Normal(jnp.zeros(x.shape[1]), 1.0).to_event(1))
        with numpyro.plate("row", len(y)):
            numpyro.sample("y", dist.Bernoulli(logits=intercept + x @ coef), obs=y)

    return model


def _pymc(data):
    import pymc as pm

    with pm.Model() as model:
        intercept = pm.Normal("intercept", 0.0, 2.5)
        coef = pm.Normal("coef", 0.0, 1.0, shape=data["x"].shape[1])
        pm.Bernoulli("y", logit_p=intercept + data["x"] @ coef, observed=data["y"])
    return model


STAN = """
data { int N; int P; matrix[N, P] x; array[N] int<lower=0, upper=1> y; }
parameters { real intercept; vector[P] coef; }
model {
  intercept ~ normal(0, 2.5);
  coef ~ std_normal();
  y ~ bernoulli_logit_glm(x, intercept, coef);
}
"""


def logistic_data(num_rows: int, num_columns: int) -> dict[str, np.ndarray]:
    """Simulate; the linear predictor has standard deviation 1.5 whatever the number of columns."""
    rng = np.random.default_rng(num_rows + num_columns)
    x = rng.normal(size=(num_rows, num_columns))
    coef = rng.normal(size=num_columns)
    predictor = 0.3 + x @ (1.5 * coef / np.linalg.norm(coef))
    return {"x": x, "y": (rng.logistic(size=num_rows) < predictor).astype(np.float64)}


def _draw(num_columns, rng):
    return {"intercept": rng.normal(0, 1), "coef": 0.3 * rng.normal(size=num_columns)}


def _log_joint(values, data):
    intercept, coef = values["intercept"], values["coef"]
    signs = 2 * data["y"] - 1
    prior = stats.norm.logpdf(intercept, 0, 2.5) + stats.norm.logpdf(coef).sum()
    return prior + log_expit(signs * (intercept + data["x"] @ coef)).sum()


def _stan_extra(data):
    return {"N": data["x"].shape[0], "P": data["x"].shape[1], "y": data["y"].astype(np.int64)}


def logistic_case(num_rows: int, num_columns: int) -> Case:
    """Make a case of any size."""
    return Case(
        name=f"logistic-{num_rows}x{num_columns}",
        title=f"logistic {num_rows} x {num_columns}",
        data=partial(logistic_data, num_rows, num_columns),
        pyro=logistic,
        numpyro=_numpyro,
        pymc=_pymc,
        stan=STAN,
        stan_extra=_stan_extra,
        quantities=("intercept", "coef"),
        draw=partial(_draw, num_columns),
        log_joint=_log_joint,
    )
