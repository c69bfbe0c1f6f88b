"""Simple likelihoods with several modes."""

import pyro
import pyro.distributions as dist
import torch


def slcp(y):
    """Four points from a normal in the plane; the signs of two scales do not matter."""
    theta = pyro.sample("theta", dist.Uniform(-3.0, 3.0).expand([5]).to_event(1))
    s1, s2, r = theta[2] ** 2, theta[3] ** 2, theta[4].tanh()
    covariance = torch.stack([s1**2 + 1e-6, r * s1 * s2, r * s1 * s2, s2**2 + 1e-6]).reshape(2, 2)
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.MultivariateNormal(theta[:2], covariance), obs=y)
