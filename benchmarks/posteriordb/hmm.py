"""Hidden Markov models, their states summed out by the forward recursion."""

import math

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints

from benchmarks.posteriordb.priors import restricted


def transitions(theta, num_steps):
    """Log transition probabilities (T, K, K) for `DiscreteHMM`, whose first observation follows a transition.

    The first state is uniform, whatever the state before it.
    """
    K = theta.shape[-1]
    first = torch.full((1, K, K), -math.log(K))
    return torch.cat([first, theta.log().expand(num_steps - 1, K, K)])


def hmm_example(y):
    """Two states with normal emissions of sd one and ordered positive means."""
    theta1 = pyro.sample("theta1", dist.Dirichlet(torch.ones(2)))
    theta2 = pyro.sample("theta2", dist.Dirichlet(torch.ones(2)))
    prior = dist.Normal(torch.tensor([3.0, 10.0]), 1.0).to_event(1)
    mu = restricted("mu", prior, constraints.positive_ordered_vector)
    logits = transitions(torch.stack([theta1, theta2]), len(y))
    pyro.sample("y", dist.DiscreteHMM(torch.zeros(2), logits, dist.Normal(mu, 1.0)), obs=y)


def hmm_drive_0(u, v, alpha):
    """Does a basketball player drive to the hoop? Speed and distance with exponential emissions."""
    alpha = alpha.to(torch.get_default_dtype())
    theta1 = pyro.sample("theta1", dist.Dirichlet(alpha[0]))
    theta2 = pyro.sample("theta2", dist.Dirichlet(alpha[1]))
    prior = dist.Normal(torch.tensor([0.0, 3.0]), 1.0).to_event(1)
    phi = restricted("phi", prior, constraints.positive_ordered_vector)
    lam = restricted("lambda", prior, constraints.positive_ordered_vector)
    logits = transitions(torch.stack([theta1, theta2]), len(u))
    emission = dist.Exponential(torch.stack([phi, lam], -1)).to_event(1)
    pyro.sample("uv", dist.DiscreteHMM(torch.zeros(2), logits, emission), obs=torch.stack([u, v], -1))
