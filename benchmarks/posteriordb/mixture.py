"""Mixtures: an observation belongs to a component that is not seen, and is summed out."""

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints

from benchmarks.posteriordb.priors import restricted


def two_normals(mu, y):
    sigma = pyro.sample("sigma", dist.HalfNormal(2.0).expand([2]).to_event(1))
    theta = pyro.sample("theta", dist.Beta(5.0, 5.0))
    with pyro.plate("data", len(y)):
        component = pyro.sample("component", dist.Bernoulli(1.0 - theta), infer={"enumerate": "parallel"}).long()
        pyro.sample("y", dist.Normal(mu[component], sigma[component]), obs=y)


def low_dim_gauss_mix(y):
    """Two normal components with ordered means."""
    prior = dist.Normal(0.0, 2.0).expand([2]).to_event(1)
    two_normals(restricted("mu", prior, constraints.ordered_vector), y)


def low_dim_gauss_mix_collapse(y):
    """The same without an order: two equal modes."""
    two_normals(pyro.sample("mu", dist.Normal(0.0, 2.0).expand([2]).to_event(1)), y)


def capture_recapture(y, M, T):
    """Which of M rows are animals? Those seen at least once, and an unknown number of others (the M0 model)."""
    omega = pyro.sample("omega", dist.Uniform(0.0, 1.0))
    p = pyro.sample("p", dist.Uniform(0.0, 1.0))
    times_seen = y.sum(-1).to(torch.get_default_dtype())
    with pyro.plate("rows", M):
        is_animal = pyro.sample("is_animal", dist.Bernoulli(omega), infer={"enumerate": "parallel"})
        pyro.sample("times_seen", dist.Binomial(T, is_animal * p), obs=times_seen)
