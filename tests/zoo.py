"""Models for the shared tests, as users write them. One table: a new model or engine is tested by adding a row."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions.transforms import OrderedTransform
from pyro.infer import config_enumerate
from pyro.ops.indexing import Vindex

from inference import NUTS, SVI, AutoVI, Laplace


@dataclass(frozen=True)
class Case:
    """A model, its data, and whether the flat density can be recorded as a graph."""

    model: Callable[..., Any]
    data: dict[str, Any]
    recorded: bool = True


def schools(y, sigma):
    mu = pyro.sample("mu", dist.Normal(0, 5))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("school", len(y)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        theta = pyro.deterministic("theta", mu + tau * z)
        pyro.sample("y", dist.Normal(theta, sigma), obs=y)


def logistic(x, y):
    coef = pyro.sample("coef", dist.Normal(torch.zeros(x.shape[1]), 1.0).to_event(1))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Bernoulli(logits=x @ coef), obs=y)


def mixture_tutorial(y):
    """Indexes as the tutorials do, which Pyro's vectorised tools cannot run."""
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(2)))
    with pyro.plate("component", 2):
        loc = pyro.sample("loc", dist.Normal(torch.tensor([-3.0, 3.0]), 1.0))
    with pyro.plate("data", len(y)):
        z = pyro.sample("assignment", dist.Categorical(weights))
        pyro.sample("y", dist.Normal(loc[z], 1.0), obs=y)


@config_enumerate
def mixture_vectorised(y):
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(2)))
    with pyro.plate("component", 2):
        loc = pyro.sample("loc", dist.Normal(torch.tensor([-3.0, 3.0]), 1.0))
    with pyro.plate("data", len(y)):
        z = pyro.sample("assignment", dist.Categorical(weights))
        pyro.sample("y", dist.Normal(Vindex(loc)[..., z], 1.0), obs=y)


def mixture_by_hand(y):
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(2)))
    with pyro.plate("component", 2):
        loc = pyro.sample("loc", dist.Normal(torch.tensor([-3.0, 3.0]), 1.0))
    with pyro.plate("data", len(y)):
        terms = weights.log() + dist.Normal(loc, 1.0).log_prob(y[:, None])
        pyro.factor("likelihood", torch.logsumexp(terms, -1))


def hmm(y):
    transition = pyro.sample("transition", dist.Dirichlet(torch.ones(2, 2)).to_event(1))
    loc = pyro.sample("loc", dist.Normal(torch.tensor([-1.0, 1.0]), 1.0).to_event(1))
    state = 0
    for t in pyro.markov(range(len(y))):
        state = pyro.sample(f"state_{t}", dist.Categorical(transition[state]))
        pyro.sample(f"y_{t}", dist.Normal(loc[state], 1.0), obs=y[t])


def moving_support(y):
    """The support of ``theta`` depends on another latent, which a transform frozen at a first trace gets wrong."""
    scale = pyro.sample("scale", dist.Gamma(3.0, 1.0))
    theta = pyro.sample("theta", dist.Uniform(-scale, scale))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(theta, 1.0), obs=y)


def correlated(y):
    """Event dims, a correlation matrix, and nested plates."""
    factor = pyro.sample("factor", dist.LKJCholesky(3, 2.0))
    with pyro.plate("outer", 2, dim=-2), pyro.plate("inner", 4, dim=-1):
        x = pyro.sample("x", dist.MultivariateNormal(torch.zeros(3), scale_tril=factor))
        pyro.sample("y", dist.Normal(x, 1.0).to_event(1), obs=y)


def ordered_grades(x, grade):
    """Cutpoints in increasing order, and an ordered outcome."""
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    base = dist.Normal(torch.tensor([-1.0, 0.0, 1.0]), 1.0).to_event(1)
    cutpoints = pyro.sample("cutpoints", dist.TransformedDistribution(base, OrderedTransform()))
    with pyro.plate("data", len(x)):
        pyro.sample("grade", dist.OrderedLogistic(slope * x, cutpoints), obs=grade)


def partly_missing(y, seen):
    """Values that were not seen are latent; some more are left out of the likelihood."""
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y, obs_mask=seen)
        with poutine.mask(mask=seen):
            pyro.sample("again", dist.StudentT(4.0, mu, 1.0), obs=y)


def scaled_likelihood(y):
    """A likelihood that counts two and a half times."""
    rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
    with pyro.plate("data", len(y)), poutine.scale(scale=2.5):
        pyro.sample("y", dist.Poisson(rate), obs=y)


def flat_priors(y):
    """No prior on location and scale but their support."""
    loc = pyro.sample("loc", dist.ImproperUniform(dist.constraints.real, (), ()))
    scale = pyro.sample("scale", dist.ImproperUniform(dist.constraints.positive, (), ()))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(loc, scale), obs=y)


def gaussian_process(x, y):
    """A covariance that depends on latents, and its Cholesky factor."""
    length = pyro.sample("length", dist.LogNormal(0.0, 1.0))
    noise = pyro.sample("noise", dist.HalfNormal(1.0))
    covariance = torch.exp(-0.5 * ((x[:, None] - x) / length) ** 2) + (noise**2 + 1e-6) * torch.eye(len(x))
    pyro.sample("y", dist.MultivariateNormal(torch.zeros(len(x)), covariance), obs=y)


def branching(y):
    """Python control flow on a latent value cannot be recorded."""
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    scale = 1.0 if mu > 0 else 2.0
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu, scale), obs=y)


def _normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


SCHOOLS = {
    "y": torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0]),
    "sigma": torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0]),
}
TWO_CLUSTERS = {"y": torch.cat([_normal(20, seed=1) - 3, _normal(20, seed=2) + 3])}
_X = _normal(100, 3)
CASES = {
    "schools": Case(schools, SCHOOLS),
    "logistic": Case(logistic, {"x": _X, "y": (_X[:, 0] + _normal(100, seed=3) > 0).double()}),
    "mixture_tutorial": Case(mixture_tutorial, TWO_CLUSTERS),
    "mixture_vectorised": Case(mixture_vectorised, TWO_CLUSTERS),
    "mixture_by_hand": Case(mixture_by_hand, TWO_CLUSTERS),
    "hmm": Case(hmm, {"y": _normal(8)}),
    "moving_support": Case(moving_support, {"y": _normal(10)}),
    "correlated": Case(correlated, {"y": _normal(2, 4, 3)}),
    "branching": Case(branching, {"y": _normal(10)}, recorded=False),
}
# Kinds of models of which only the density is tested.
MORE_CASES = {
    "ordered_grades": Case(ordered_grades, {"x": _normal(30), "grade": torch.arange(30) % 4}),
    "partly_missing": Case(partly_missing, {"y": _normal(12), "seen": torch.arange(12) % 3 > 0}),
    "scaled_likelihood": Case(scaled_likelihood, {"y": torch.tensor([0.0, 3.0, 2.0, 5.0])}),
    "flat_priors": Case(flat_priors, {"y": _normal(10)}),
    "gaussian_process": Case(gaussian_process, {"x": _normal(15), "y": _normal(15, seed=4)}),
}

# Small settings: these test contracts, not accuracy.
ENGINES = {
    "nuts": NUTS(num_warmup=100, num_samples=60, num_chains=2),
    "nuts_low_rank": NUTS(num_warmup=100, num_samples=60, num_chains=2, adaptation="low_rank"),
    "nuts_pyro": NUTS(num_warmup=30, num_samples=60, num_chains=2, backend="pyro"),
    "auto": AutoVI(num_samples=60, num_chains=2, num_starts=2),
    "laplace": Laplace(num_samples=60, num_chains=2),
    "svi_normal": SVI(num_steps=200, num_samples=60, num_chains=2),
    "svi_multivariate_normal": SVI(guide="multivariate_normal", num_steps=200, num_samples=60, num_chains=2),
    "svi_fixed_draws": SVI(guide="multivariate_normal", optimizer="lbfgs", num_steps=40, num_samples=60, num_chains=2),
    "svi_realnvp": SVI(guide="realnvp", num_steps=10, num_particles=2, num_samples=60, num_chains=2),
}
