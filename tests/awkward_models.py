"""Small models and guides for tests of what is refused: most of them are wrong, or wrong for some engine."""

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints

from inference import NUTS, SVI, AutoVI, isolated
from inference.sites import Sites, read_sites
from inference.validate import model_function, prepare_data

ENGINES = {
    "nuts": NUTS(num_warmup=10, num_samples=4, num_chains=1),
    "svi": SVI(num_steps=2, num_samples=4, num_chains=1),
    "auto": AutoVI(num_samples=4, num_chains=1, num_starts=1),
}
Y = [1.0, 2.0, 4.0]


def read(model: Any, data: Any) -> Sites:
    """Read a model as `fit` does before any engine runs."""
    with isolated(seed=1):
        function = model_function(model)
        sites = read_sites(function, prepare_data(function, data))
        sites.require_density()
        return sites


def normal(y, sigma=1.0):
    mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
    with pyro.plate("row", len(y)):
        pyro.sample("obs", dist.Normal(mu, sigma), obs=y)


def counts(y):
    rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
    with pyro.plate("row", len(y)):
        pyro.sample("obs", dist.Poisson(rate), obs=y)


def coins(y):
    p = pyro.sample("p", dist.Beta(1.0, 1.0))
    with pyro.plate("row", len(y)):
        pyro.sample("obs", dist.Bernoulli(p), obs=y)


def colours(y):
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(3)))
    with pyro.plate("row", len(y)):
        pyro.sample("obs", dist.Categorical(weights), obs=y)


def simplexes(y):
    scale = pyro.sample("scale", dist.HalfNormal(1.0))
    with pyro.plate("row", len(y)):
        pyro.sample("obs", dist.Dirichlet(scale.expand(3)), obs=y)


def three_rows(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
    with pyro.plate("row", 3):
        pyro.sample("obs", dist.Normal(mu, 1.0), obs=y)


def regression(x, y):
    coef = pyro.sample("coef", dist.Normal(torch.zeros(x.shape[1]), 1.0).to_event(1))
    with pyro.plate("row", len(y)):
        pyro.sample("obs", dist.Normal(x @ coef, 1.0), obs=y)


def latent_of_wrong_length(y, size=2):
    with pyro.plate("row", len(y)):
        mu = pyro.sample("mu", dist.Normal(torch.zeros(size), 1.0))
        pyro.sample("obs", dist.Normal(mu, 1.0), obs=y)


def no_latent(y):
    with pyro.plate("row", len(y)):
        pyro.sample("obs", dist.Normal(0.0, 1.0), obs=y)


def no_sample(y):
    return y.sum()


def only_discrete(y):
    z = pyro.sample("z", dist.Bernoulli(0.3))
    with pyro.plate("row", len(y)):
        pyro.sample("obs", dist.Normal(z, 1.0), obs=y)


def raises(y):
    pyro.sample("mu", dist.Normal(0.0, 1.0))
    raise KeyError("tank")


def poisson_latent(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    k = pyro.sample("k", dist.Poisson(3.0))
    with pyro.plate("row", len(y)):
        pyro.sample("obs", dist.Normal(mu + k, 1.0), obs=y)


def bounded_latent(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    k = pyro.sample("k", dist.Binomial(4, torch.tensor(0.5)))
    with pyro.plate("row", len(y)):
        pyro.sample("obs", dist.Normal(mu + k, 1.0), obs=y)


def subsampled(y, size=2):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("row", len(y), subsample_size=size) as rows:
        pyro.sample("obs", dist.Normal(mu, 1.0), obs=y[rows])


def noisy(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("row", len(y)):
        pyro.sample("obs", dist.Normal(mu + torch.randn(len(y)), 1.0), obs=y)


def with_param(y):
    width = pyro.param("width", torch.tensor(1.0), constraint=constraints.positive)
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("row", len(y)):
        pyro.sample("obs", dist.Normal(mu, width), obs=y)


def out_of_reach(y, shift=100.0):
    """At no start within (-2, 2) does the support reach the data."""
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("row", len(y)):
        pyro.sample("obs", dist.Uniform(shift + mu, shift + mu + 50), obs=y)


def guide_without_mu(y):
    pyro.sample("other", dist.Normal(0.0, 1.0))


def guide_with_more(y):
    pyro.sample("mu", dist.Normal(0.0, 1.0))
    pyro.sample("helper", dist.Normal(0.0, 1.0))


def guide_of_wrong_shape(y):
    pyro.sample("mu", dist.Normal(torch.zeros(2), 1.0).to_event(1))


def guide_without_arguments():
    pyro.sample("mu", dist.Normal(0.0, 1.0))


def guide_that_fails(y):
    raise KeyError("tank")


def runaway_guide(y):
    loc = pyro.param("loc", torch.tensor(torch.inf))
    pyro.sample("mu", dist.Delta(loc))


def guide_of_mu_and_k(y):
    pyro.sample("mu", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 1.0))
    pyro.sample("k", dist.Poisson(pyro.param("rate", torch.tensor(1.0), constraint=constraints.positive)))
