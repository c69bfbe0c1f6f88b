"""Series that depend on their own past."""

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints

from benchmarks.posteriordb.priors import flat


def garch11(y, sigma1):
    """A series whose variance follows its own past; (alpha1, beta1) uniform where they sum to less than one."""
    mu = flat("mu")
    alpha0 = flat("alpha0", constraints.positive)
    shares = pyro.sample("shares", dist.Dirichlet(torch.ones(3)))
    alpha1 = pyro.deterministic("alpha1", shares[0])
    beta1 = pyro.deterministic("beta1", shares[1])
    surprise = (y - mu).square()
    variances = [torch.as_tensor(sigma1**2)]
    for t in range(1, len(y)):
        variances.append(alpha0 + alpha1 * surprise[t - 1] + beta1 * variances[-1])
    with pyro.plate("time", len(y)):
        pyro.sample("y", dist.Normal(mu, torch.stack(variances).sqrt()), obs=y)


def ar_k(y, K):
    """Autoregression on the last K values; the first K are given."""
    alpha = pyro.sample("alpha", dist.Normal(0.0, 10.0))
    beta = pyro.sample("beta", dist.Normal(0.0, 10.0).expand([K]).to_event(1))
    sigma = pyro.sample("sigma", dist.HalfCauchy(2.5))
    past = y.unfold(0, K, 1)[:-1].flip(-1)
    with pyro.plate("time", len(y) - K):
        pyro.sample("y", dist.Normal(alpha + past @ beta, sigma), obs=y[K:])
