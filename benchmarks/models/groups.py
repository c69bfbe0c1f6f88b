"""Varying-intercept regression in the shape of the radon data: 85 counties of very different sizes, 900 houses."""

import numpy as np
import pyro
import pyro.distributions as dist
from scipy import stats

from benchmarks.models.case import Case


def groups(y, floor, uranium, county_index):
    intercept = pyro.sample("intercept", dist.Normal(0.0, 5.0))
    slope = pyro.sample("slope", dist.Normal(0.0, 5.0))
    effect = pyro.sample("effect", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfNormal(1.0))
    sigma = pyro.sample("sigma", dist.HalfNormal(1.0))
    with pyro.plate("county", len(uranium)):
        alpha = pyro.sample("alpha", dist.Normal(intercept + slope * uranium, tau))
    with pyro.plate("house", len(y)):
        pyro.sample("y", dist.Normal(alpha[county_index] + effect * floor, sigma), obs=y)


def _numpyro():
    import numpyro
    import numpyro.distributions as dist

    def model(y, floor, uranium, county_index):
        intercept = numpyro.sample("intercept", dist.Normal(0.0, 5.0))
        slope = numpyro.sample("slope", dist.Normal(0.0, 5.0))
        effect = numpyro.sample("effect", dist.Normal(0.0, 5.0))
        tau = numpyro.sample("tau", dist.HalfNormal(1.0))
        sigma = numpyro.sample("sigma", dist.HalfNormal(1.0))
        with numpyro.plate("county", len(uranium)):
            alpha = numpyro.sample("alpha", dist.Normal(intercept + slope * uranium, tau))
        with numpyro.plate("house", len(y)):
            numpyro.sample("y", dist.Normal(alpha[county_index] + effect * floor, sigma), obs=y)

    return model


def _pymc(data):
    import pymc as pm

    with pm.Model() as model:
        intercept = pm.Normal("intercept", 0.0, 5.0)
        slope = pm.Normal("slope", 0.0, 5.0)
        effect = pm.Normal("effect", 0.0, 5.0)
        tau = pm.HalfNormal("tau", 1.0)
        sigma = pm.HalfNormal("sigma", 1.0)
        alpha = pm.Normal("alpha", intercept + slope * data["uranium"], tau)
        pm.Normal("y", alpha[data["county_index"]] + effect * data["floor"], sigma, observed=data["y"])
    return model


STAN = """
data { int N; int J; vector[N] y; vector[N] floor; vector[J] uranium; array[N] int<lower=1, upper=J> county_index; }
transformed data { matrix[N, 1] x = to_matrix(floor, N, 1); }
parameters {
  real intercept; real slope; real effect; real<lower=0> tau; real<lower=0> sigma; vector[J] alpha;
}
model {
  intercept ~ normal(0, 5);
  slope ~ normal(0, 5);
  effect ~ normal(0, 5);
  tau ~ normal(0, 1);
  sigma ~ normal(0, 1);
  alpha ~ normal(intercept + slope * uranium, tau);
  y ~ normal_id_glm(x, alpha[county_index], [effect]', sigma);
}
"""


def _data():
    rng = np.random.default_rng(85)
    shares = rng.dirichlet(np.full(85, 0.6))
    county = np.sort(np.concatenate([np.arange(85), rng.choice(85, size=815, p=shares)]))
    uranium = rng.normal(0, 0.4, 85)
    floor = (rng.random(900) < 0.17).astype(np.float64)
    alpha = 1.5 + 0.7 * uranium + 0.3 * rng.normal(size=85)
    y = alpha[county] - 0.65 * floor + 0.75 * rng.normal(size=900)
    return {"y": y, "floor": floor, "uranium": uranium, "county_index": county}


def _draw(rng):
    values = dict(zip(("intercept", "slope", "effect"), rng.normal(size=3), strict=True))
    tau, sigma = abs(rng.normal(size=2)) + 0.1
    return {**values, "tau": tau, "sigma": sigma, "alpha": values["intercept"] + tau * rng.normal(size=85)}


def _log_joint(values, data):
    prior = sum(stats.norm.logpdf(values[name], 0, 5) for name in ("intercept", "slope", "effect"))
    prior += stats.halfnorm.logpdf([values["tau"], values["sigma"]]).sum()
    mean = values["intercept"] + values["slope"] * data["uranium"]
    prior += stats.norm.logpdf(values["alpha"], mean, values["tau"]).sum()
    predictor = values["alpha"][data["county_index"]] + values["effect"] * data["floor"]
    return prior + stats.norm.logpdf(data["y"], predictor, values["sigma"]).sum()


GROUPS = Case(
    name="groups",
    title="85 groups, 900 rows",
    data=_data,
    pyro=groups,
    numpyro=_numpyro,
    pymc=_pymc,
    stan=STAN,
    stan_extra=lambda data: {"N": len(data["y"]), "J": len(data["uranium"])},
    quantities=("intercept", "slope", "effect", "tau", "sigma", "alpha"),
    draw=_draw,
    log_joint=_log_joint,
)
