"""Mixture of three Gaussians in two dimensions; components are told apart by the order of their first coordinates."""

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import config_enumerate
from scipy import stats
from scipy.special import logsumexp

from benchmarks.models.case import Case

CENTRES = np.array([[-3.0, 0.0], [0.0, 2.0], [3.0, -1.0]])
WEIGHTS, SCALES = np.array([0.25, 0.35, 0.4]), np.array([[1.0, 0.7], [0.8, 1.2], [1.1, 0.9]])


@config_enumerate
def mixture_2d(y):
    weights = pyro.sample("weights", dist.Dirichlet(2.0 * torch.ones(3)))
    low = pyro.sample("low", dist.Normal(0.0, 5.0))
    with pyro.plate("gaps", 2):
        gap = pyro.sample("gap", dist.LogNormal(1.0, 0.5))
    with pyro.plate("component", 3):
        height = pyro.sample("height", dist.Normal(0.0, 5.0))
        scale = pyro.sample("scale", dist.LogNormal(torch.zeros(2), 0.5).to_event(1))
    loc = torch.stack([low + torch.cat([torch.zeros(1), gap.cumsum(0)]), height], -1)
    with pyro.plate("row", len(y)):
        assignment = pyro.sample("assignment", dist.Categorical(weights))
        pyro.sample("y", dist.Normal(loc[assignment], scale[assignment]).to_event(1), obs=y)


def _numpyro():
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist

    def model(y):
        weights = numpyro.sample("weights", dist.Dirichlet(2.0 * jnp.ones(3)))
        low = numpyro.sample("low", dist.Normal(0.0, 5.0))
        with numpyro.plate("gaps", 2):
            gap = numpyro.sample("gap", dist.LogNormal(1.0, 0.5))
        with numpyro.plate("component", 3):
            height = numpyro.sample("height", dist.Normal(0.0, 5.0))
            scale = numpyro.sample("scale", dist.LogNormal(jnp.zeros(2), 0.5).to_event(1))
        loc = jnp.stack([low + jnp.concatenate([jnp.zeros(1), jnp.cumsum(gap)]), height], -1)
        components = dist.Normal(loc, scale).to_event(1)
        with numpyro.plate("row", len(y)):
            numpyro.sample("y", dist.MixtureSameFamily(dist.Categorical(weights), components), obs=y)

    return model


def _pymc(data):
    import pymc as pm
    import pytensor.tensor as pt

    with pm.Model() as model:
        weights = pm.Dirichlet("weights", 2 * np.ones(3))
        low = pm.Normal("low", 0.0, 5.0)
        gap = pm.LogNormal("gap", 1.0, 0.5, shape=2)
        height = pm.Normal("height", 0.0, 5.0, shape=3)
        scale = pm.LogNormal("scale", 0.0, 0.5, shape=(3, 2))
        loc = pt.stack([low + pt.concatenate([pt.zeros(1), pt.cumsum(gap)]), height], axis=1)
        rows = pm.logp(pm.Normal.dist(loc, scale), data["y"][:, None]).sum(-1)
        pm.Potential("y", pm.math.logsumexp(pt.log(weights) + rows, axis=1).sum())
    return model


STAN = """
data { int N; array[N] vector[2] y; }
parameters {
  simplex[3] weights; real low; vector<lower=0>[2] gap; vector[3] height; array[3] vector<lower=0>[2] scale;
}
model {
  vector[3] side = low + append_row(0, cumulative_sum(gap));
  vector[3] log_weights = log(weights);
  weights ~ dirichlet([2, 2, 2]');
  low ~ normal(0, 5);
  gap ~ lognormal(1, 0.5);
  height ~ normal(0, 5);
  for (k in 1:3) scale[k] ~ lognormal(0, 0.5);
  for (n in 1:N) {
    vector[3] terms = log_weights;
    for (k in 1:3) terms[k] += normal_lpdf(y[n] | [side[k], height[k]]', scale[k]);
    target += log_sum_exp(terms);
  }
}
"""


def _data(num_rows):
    rng = np.random.default_rng(num_rows)
    component = rng.choice(3, num_rows, p=WEIGHTS)
    return {"y": CENTRES[component] + SCALES[component] * rng.normal(size=(num_rows, 2))}


def _draw(rng):
    return {
        "weights": rng.dirichlet([2, 2, 2]),
        "low": rng.normal(-3, 1),
        "gap": rng.lognormal(1, 0.5, 2),
        "height": rng.normal(0, 2, 3),
        "scale": rng.lognormal(0, 0.5, (3, 2)),
    }


def _log_joint(values, data):
    weights, low, gap, height, scale = (values[name] for name in ("weights", "low", "gap", "height", "scale"))
    prior = stats.dirichlet.logpdf(weights, [2, 2, 2]) + stats.norm.logpdf(low, 0, 5)
    prior += stats.lognorm.logpdf(gap, 0.5, scale=np.e).sum() + stats.norm.logpdf(height, 0, 5).sum()
    prior += stats.lognorm.logpdf(scale, 0.5).sum()
    loc = np.stack([low + np.concatenate([[0.0], np.cumsum(gap)]), height], -1)
    terms = np.log(weights) + stats.norm.logpdf(data["y"][:, None], loc, scale).sum(-1)
    return prior + logsumexp(terms, axis=1).sum()


def mixture_2d_case(num_rows: int) -> Case:
    """Make a case of any size."""
    return Case(
        name=f"mixture-2d-{num_rows}",
        title=f"mixture, N={num_rows}, D=2, K=3",
        data=lambda: _data(num_rows),
        pyro=mixture_2d,
        numpyro=_numpyro,
        pymc=_pymc,
        stan=STAN,
        stan_extra=lambda data: {"N": len(data["y"])},
        quantities=("weights", "low", "gap", "height", "scale"),
        draw=_draw,
        log_joint=_log_joint,
    )
