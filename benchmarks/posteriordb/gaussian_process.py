"""Functions drawn from a Gaussian process."""

import pyro
import pyro.distributions as dist
import torch

JITTER = 1e-10


def gp_poisson(x, k):
    """Counts whose log rate is a smooth function of x."""
    rho = pyro.sample("rho", dist.Gamma(25.0, 4.0))
    alpha = pyro.sample("alpha", dist.HalfNormal(2.0))
    distance = (x[:, None] - x) / rho
    covariance = alpha**2 * (-0.5 * distance**2).exp() + JITTER * torch.eye(len(x))
    z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([len(x)]).to_event(1))
    f = pyro.deterministic("f", torch.linalg.cholesky(covariance) @ z)
    with pyro.plate("data", len(x)):
        pyro.sample("k", dist.Poisson(f.exp()), obs=k)
