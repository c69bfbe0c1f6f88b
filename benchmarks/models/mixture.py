"""Mixture of two Gaussians, the assignments enumerated; components are told apart by their order."""

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import config_enumerate
from scipy import stats
from scipy.special import logsumexp

from benchmarks.models.case import Case


@config_enumerate
def mixture(y):
    weights = pyro.sample("weights", dist.Dirichlet(2.0 * torch.ones(2)))
    low = pyro.sample("low", dist.Normal(0.0, 5.0))
    gap = pyro.sample("gap", dist.LogNormal(1.0, 0.5))
    with pyro.plate("component", 2):
        scale = pyro.sample("scale", dist.LogNormal(0.0, 0.5))
    loc = torch.stack([low, low + gap])
    with pyro.plate("row", len(y)):
        assignment = pyro.sample("assignment", dist.Categorical(weights))
        pyro.sample("y", dist.Normal(loc[assignment], scale[assignment]), obs=y)


def _numpyro():
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist

    def model(y):
        weights = numpyro.sample("weights", dist.Dirichlet(2.0 * jnp.ones(2)))
        low = numpyro.sample("low", dist.Normal(0.0, 5.0))
        gap = numpyro.sample("gap", dist.LogNormal(1.0, 0.5))
        with numpyro.plate("component", 2):
            scale = numpyro.sample("scale", dist.LogNormal(0.0, 0.5))
        components = dist.Normal(jnp.stack([low, low + gap]), scale)
        with numpyro.plate("row", len(y)):
            numpyro.sample("y", dist.MixtureSameFamily(dist.Categorical(weights), components), obs=y)

    return model


def _pymc(data):
    import pymc as pm
    import pytensor.tensor as pt

    with pm.Model() as model:
        weights = pm.Dirichlet("weights", [2.0, 2.0])
        low = pm.Normal("low", 0.0, 5.0)
        gap = pm.LogNormal("gap", 1.0, 0.5)
        scale = pm.LogNormal("scale", 0.0, 0.5, shape=2)
        pm.NormalMixture("y", weights, pt.stack([low, low + gap]), sigma=scale, observed=data["y"])
    return model


STAN = """
data { int N; vector[N] y; }
parameters { simplex[2] weights; real low; real<lower=0> gap; vector<lower=0>[2] scale; }
model {
  weights ~ dirichlet([2, 2]');
  low ~ normal(0, 5);
  gap ~ lognormal(1, 0.5);
  scale ~ lognormal(0, 0.5);
  for (n in 1:N)
    target += log_mix(weights[1], normal_lpdf(y[n] | low, scale[1]), normal_lpdf(y[n] | low + gap, scale[2]));
}
"""


def _data():
    rng = np.random.default_rng(2)
    first = rng.random(1000) < 0.35
    return {"y": np.where(first, rng.normal(-1.5, 0.8, 1000), rng.normal(1.5, 1.2, 1000))}


def _draw(rng):
    return {
        "weights": rng.dirichlet([2, 2]),
        "low": rng.normal(0, 2),
        "gap": rng.lognormal(1, 0.5),
        "scale": rng.lognormal(0, 0.5, 2),
    }


def _log_joint(values, data):
    weights, low, gap, scale = (values[name] for name in ("weights", "low", "gap", "scale"))
    prior = stats.dirichlet.logpdf(weights, [2, 2]) + stats.norm.logpdf(low, 0, 5)
    prior += stats.lognorm.logpdf(gap, 0.5, scale=np.e) + stats.lognorm.logpdf(scale, 0.5).sum()
    terms = np.log(weights) + stats.norm.logpdf(data["y"][:, None], [low, low + gap], scale)
    return prior + logsumexp(terms, axis=1).sum()


MIXTURE = Case(
    name="mixture",
    title="mixture, N=1000",
    data=_data,
    pyro=mixture,
    numpyro=_numpyro,
    pymc=_pymc,
    stan=STAN,
    stan_extra=lambda data: {"N": len(data["y"])},
    quantities=("weights", "low", "gap", "scale"),
    draw=_draw,
    log_joint=_log_joint,
)
