"""Autoregression of order five, conditional on the first five values, with the priors of posteriordb's arK."""

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from scipy import stats

from benchmarks.models.case import Case


def autoregression(y, order=5):
    intercept = pyro.sample("intercept", dist.Normal(0.0, 10.0))
    coef = pyro.sample("coef", dist.Normal(torch.zeros(order), 10.0).to_event(1))
    sigma = pyro.sample("sigma", dist.HalfCauchy(2.5))
    lags = y.unfold(0, order, 1)[:-1].flip(-1)
    with pyro.plate("time", len(y) - order):
        pyro.sample("y", dist.Normal(intercept + lags @ coef, sigma), obs=y[order:])


def _numpyro():
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist

    def model(y, order=5):
        intercept = numpyro.sample("intercept", dist.Normal(0.0, 10.0))
        coef = numpyro.sample("coef", dist.Normal(jnp.zeros(order), 10.0).to_event(1))
        sigma = numpyro.sample("sigma", dist.HalfCauchy(2.5))
        lags = jnp.asarray(_lags(y))
        with numpyro.plate("time", len(y) - order):
            numpyro.sample("y", dist.Normal(intercept + lags @ coef, sigma), obs=y[order:])

    return model


def _pymc(data):
    import pymc as pm

    with pm.Model() as model:
        intercept = pm.Normal("intercept", 0.0, 10.0)
        coef = pm.Normal("coef", 0.0, 10.0, shape=5)
        sigma = pm.HalfCauchy("sigma", 2.5)
        pm.Normal("y", intercept + _lags(data["y"]) @ coef, sigma, observed=data["y"][5:])
    return model


STAN = """
data { int T; vector[T] y; }
transformed data {
  matrix[T - 5, 5] lags;
  for (k in 1:5) lags[, k] = y[6 - k : T - k];
}
parameters { real intercept; vector[5] coef; real<lower=0> sigma; }
model {
  intercept ~ normal(0, 10);
  coef ~ normal(0, 10);
  sigma ~ cauchy(0, 2.5);
  y[6:T] ~ normal_id_glm(lags, intercept, coef, sigma);
}
"""


def _lags(y, order=5):
    return np.lib.stride_tricks.sliding_window_view(np.asarray(y), order)[:-1, ::-1].copy()


def _data():
    rng = np.random.default_rng(5)
    y = np.zeros(250)
    for t in range(5, 250):
        y[t] = 0.5 + y[t - 5 : t][::-1] @ np.array([0.4, -0.3, 0.2, 0.1, -0.2]) + rng.normal()
    return {"y": y[50:]}


def _draw(rng):
    return {"intercept": rng.normal(), "coef": 0.3 * rng.normal(size=5), "sigma": abs(rng.normal()) + 0.5}


def _log_joint(values, data):
    prior = stats.norm.logpdf(values["intercept"], 0, 10) + stats.norm.logpdf(values["coef"], 0, 10).sum()
    prior += stats.halfcauchy.logpdf(values["sigma"], 0, 2.5)
    mean = values["intercept"] + _lags(data["y"]) @ values["coef"]
    return prior + stats.norm.logpdf(data["y"][5:], mean, values["sigma"]).sum()


AUTOREGRESSION = Case(
    name="ar5",
    title="AR(5), T=200",
    data=_data,
    pyro=autoregression,
    numpyro=_numpyro,
    pymc=_pymc,
    stan=STAN,
    stan_extra=lambda data: {"T": len(data["y"])},
    quantities=("intercept", "coef", "sigma"),
    draw=_draw,
    log_joint=_log_joint,
)
