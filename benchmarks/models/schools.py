"""Eight schools, non-centred (Rubin 1981), with the priors of posteriordb."""

import numpy as np
import pyro
import pyro.distributions as dist
from scipy import stats

from benchmarks.models.case import Case


def schools(y, sigma):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("school", len(y)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(mu + tau * z, sigma), obs=y)


def _numpyro():
    import numpyro
    import numpyro.distributions as dist

    def model(y, sigma):
        mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
        tau = numpyro.sample("tau", dist.HalfCauchy(5.0))
        with numpyro.plate("school", len(y)):
            z = numpyro.sample("z", dist.Normal(0.0, 1.0))
            numpyro.sample("y", dist.Normal(mu + tau * z, sigma), obs=y)

    return model


def _pymc(data):
    import pymc as pm

    with pm.Model() as model:
        mu = pm.Normal("mu", 0.0, 5.0)
        tau = pm.HalfCauchy("tau", 5.0)
        z = pm.Normal("z", 0.0, 1.0, shape=len(data["y"]))
        pm.Normal("y", mu + tau * z, data["sigma"], observed=data["y"])
    return model


STAN = """
data { int J; vector[J] y; vector[J] sigma; }
parameters { real mu; real<lower=0> tau; vector[J] z; }
model {
  mu ~ normal(0, 5);
  tau ~ cauchy(0, 5);
  z ~ std_normal();
  y ~ normal(mu + tau * z, sigma);
}
"""


def _data():
    return {
        "y": np.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0]),
        "sigma": np.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0]),
    }


def _draw(rng):
    return {"mu": rng.normal(0, 5), "tau": abs(rng.normal(0, 5)), "z": rng.normal(size=8)}


def _log_joint(values, data):
    mu, tau, z = values["mu"], values["tau"], values["z"]
    prior = stats.norm.logpdf(mu, 0, 5) + stats.halfcauchy.logpdf(tau, 0, 5) + stats.norm.logpdf(z).sum()
    return prior + stats.norm.logpdf(data["y"], mu + tau * z, data["sigma"]).sum()


SCHOOLS = Case(
    name="schools",
    title="eight schools",
    data=_data,
    pyro=schools,
    numpyro=_numpyro,
    pymc=_pymc,
    stan=STAN,
    stan_extra=lambda data: {"J": len(data["y"])},
    quantities=("mu", "tau", "z"),
    draw=_draw,
    log_joint=_log_joint,
)
