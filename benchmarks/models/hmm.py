"""Hidden Markov model with Gaussian emissions, states told apart by the order of their means."""

from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from scipy import stats
from scipy.special import logsumexp

from benchmarks.models.case import Case


def hmm(y, prior):
    num_states = len(prior)
    with pyro.plate("state", num_states):
        transition = pyro.sample("transition", dist.Dirichlet(prior))
        scale = pyro.sample("scale", dist.LogNormal(0.0, 0.5))
    low = pyro.sample("low", dist.Normal(0.0, 5.0))
    with pyro.plate("gaps", num_states - 1):
        gap = pyro.sample("gap", dist.LogNormal(1.0, 0.5))
    loc = low + torch.cat([torch.zeros(1), gap.cumsum(0)])
    start = torch.full((num_states,), 1.0 / num_states).log()
    pyro.sample("y", dist.DiscreteHMM(start, transition.log(), dist.Normal(loc, scale), duration=len(y)), obs=y)


def _numpyro():
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist
    from jax import lax

    def log_likelihood(emission, transition):
        """Forward algorithm on probabilities rescaled at each step, faster than on their logarithms."""
        shift = emission.max(1, keepdims=True)

        def step(state, weight):
            joint = (state[:, None] * transition).sum(0) * weight  # faster than a product of matrices so small
            total = joint.sum()
            return joint / total, total

        start = jnp.full(len(transition), 1.0 / len(transition))
        _, totals = lax.scan(step, start, jnp.exp(emission - shift))
        return jnp.log(totals).sum() + shift.sum()

    def model(y, prior):
        num_states = len(prior)
        with numpyro.plate("state", num_states):
            transition = numpyro.sample("transition", dist.Dirichlet(prior))
            scale = numpyro.sample("scale", dist.LogNormal(0.0, 0.5))
        low = numpyro.sample("low", dist.Normal(0.0, 5.0))
        with numpyro.plate("gaps", num_states - 1):
            gap = numpyro.sample("gap", dist.LogNormal(1.0, 0.5))
        loc = low + jnp.concatenate([jnp.zeros(1), jnp.cumsum(gap)])
        numpyro.factor("y", log_likelihood(dist.Normal(loc, scale).log_prob(y[:, None]), transition))

    return model


def _pymc(data):
    import pymc as pm
    import pytensor
    import pytensor.tensor as pt

    def step(weight, state, transition):
        joint = (state[:, None] * transition).sum(0) * weight  # faster than a product of matrices so small
        total = joint.sum()
        return joint / total, total

    num_states = len(data["prior"])
    with pm.Model() as model:
        transition = pm.Dirichlet("transition", data["prior"])
        scale = pm.LogNormal("scale", 0.0, 0.5, shape=num_states)
        low = pm.Normal("low", 0.0, 5.0)
        gap = pm.LogNormal("gap", 1.0, 0.5, shape=num_states - 1)
        loc = low + pt.concatenate([pt.zeros(1), pt.cumsum(gap)])
        emission = pm.logp(pm.Normal.dist(loc, scale), data["y"][:, None])
        shift = emission.max(axis=1, keepdims=True)
        start = pt.full((num_states,), 1.0 / num_states)
        (_, totals), _ = pytensor.scan(
            step, sequences=[pt.exp(emission - shift)], outputs_info=[start, None], non_sequences=[transition]
        )
        pm.Potential("y", pt.log(totals).sum() + shift.sum())
    return model


STAN = """
data { int T; int K; vector[T] y; array[K] vector[K] prior; }
parameters {
  array[K] simplex[K] transition; vector<lower=0>[K] scale; real low; vector<lower=0>[K - 1] gap;
}
model {
  vector[K] loc = low + append_row(0, cumulative_sum(gap));
  matrix[K, K] rows;
  matrix[K, T] emission;
  for (k in 1:K) {
    transition[k] ~ dirichlet(prior[k]);
    rows[k] = transition[k]';
    for (t in 1:T) emission[k, t] = normal_lpdf(y[t] | loc[k], scale[k]);
  }
  scale ~ lognormal(0, 0.5);
  low ~ normal(0, 5);
  gap ~ lognormal(1, 0.5);
  target += hmm_marginal(emission, rows, rows' * rep_vector(1.0 / K, K));
}
"""


def hmm_data(num_states: int, num_steps: int) -> dict[str, np.ndarray]:
    """Simulate sticky states with means three apart; ``prior`` holds the Dirichlet parameters of the rows."""
    rng = np.random.default_rng(num_states * num_steps)
    transition = np.full((num_states, num_states), 0.2 / max(1, num_states - 1))
    np.fill_diagonal(transition, 0.8)
    states = [0]
    for _ in range(num_steps - 1):
        states.append(rng.choice(num_states, p=transition[states[-1]]))
    y = 3.0 * (np.array(states) - (num_states - 1) / 2) + rng.normal(size=num_steps)
    return {"y": y, "prior": 1.0 + 2.0 * np.eye(num_states)}


def _draw(num_states, rng):
    return {
        "transition": rng.dirichlet(2 * np.ones(num_states), num_states),
        "scale": rng.lognormal(0, 0.5, num_states),
        "low": rng.normal(-3, 1),
        "gap": rng.lognormal(1, 0.5, num_states - 1),
    }


def _log_joint(values, data):
    transition, scale, low, gap = (values[name] for name in ("transition", "scale", "low", "gap"))
    prior = sum(stats.dirichlet.logpdf(row, a) for row, a in zip(transition, data["prior"], strict=True))
    prior += stats.lognorm.logpdf(scale, 0.5).sum() + stats.norm.logpdf(low, 0, 5)
    prior += stats.lognorm.logpdf(gap, 0.5, scale=np.e).sum()
    loc = low + np.concatenate([[0.0], np.cumsum(gap)])
    state = np.full(len(loc), -np.log(len(loc)))
    for y in data["y"]:
        state = logsumexp(state[:, None] + np.log(transition), axis=0) + stats.norm.logpdf(y, loc, scale)
    return prior + logsumexp(state)


def hmm_case(num_states: int, num_steps: int) -> Case:
    """Make a case of any size."""
    return Case(
        name="hmm" if (num_states, num_steps) == (3, 200) else f"hmm-{num_states}x{num_steps}",
        title=f"HMM, K={num_states}, T={num_steps}",
        data=partial(hmm_data, num_states, num_steps),
        pyro=hmm,
        numpyro=_numpyro,
        pymc=_pymc,
        stan=STAN,
        stan_extra=lambda data: {"T": len(data["y"]), "K": len(data["prior"])},
        quantities=("transition", "scale", "low", "gap"),
        draw=partial(_draw, num_states),
        log_joint=_log_joint,
    )
