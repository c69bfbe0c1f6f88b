"""Models for the tests of mini-batch training."""

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import nn
from torch.nn import functional

from inference import SVI, fit
from inference.batch_steps import BatchSteps
from inference.batches import MiniBatch, plan_batches
from inference.elbo import make_elbo
from inference.guides import check_guide
from inference.isolation import isolated
from inference.sites import read_sites
from inference.training import _vectorized
from inference.validate import prepare_data

SEED = 3
X = np.random.default_rng(0).normal(size=12)
FEW = {"num_samples": 4, "num_chains": 1}


class LinearVae:
    """x ~ N(W z + b, s^2), z standard normal: the evidence of every row is known. W and s are parameters."""

    columns = 4

    def __init__(self, latents=2):
        self.latents = latents

    def parameters(self):
        generator = np.random.default_rng(0)
        weight = torch.as_tensor(generator.normal(size=(self.columns, self.latents))).to(torch.get_default_dtype())
        w = pyro.param("w", weight)
        s = pyro.param("s", torch.tensor(0.7), constraint=constraints.positive)
        return w, s

    def model(self, *, x, noise=None):
        w, s = self.parameters()
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(self.latents), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ w.T, s).to_event(1), obs=x)

    def guide(self, *, x, noise=None):
        a = pyro.param("a", 0.1 * torch.ones(self.columns, self.latents))
        scale = pyro.param("scale", torch.tensor([0.8, 0.5])[: self.latents].clone(), constraint=constraints.positive)
        kind = dist.Normal if noise is None else FixedNoise
        with pyro.plate("data", len(x)):
            fn = kind(x @ a, scale.expand(len(x), self.latents))
            fn.noise = noise
            pyro.sample("z", fn.to_event(1))

    def wide_guide(self, *, x):
        """The exact posterior means, with sds of one, which are too large: weights are bounded."""
        w, s = self.parameters()
        covariance = torch.linalg.inv(torch.eye(self.latents) + w.T @ w / s**2)
        loc = (x @ w @ covariance / s**2).detach()
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))

    def exact_guide(self, *, x, noise=None):
        w, s = self.parameters()
        precision = torch.eye(self.latents) + w.T @ w / s**2
        covariance = torch.linalg.inv(precision)
        with pyro.plate("data", len(x)):
            loc = x @ w @ covariance / s**2
            pyro.sample("z", dist.MultivariateNormal(loc, covariance_matrix=covariance))

    def log_evidence(self, x, w, s):
        covariance = w @ w.T + s**2 * np.eye(self.columns)
        return torch.distributions.MultivariateNormal(
            torch.zeros(self.columns, dtype=torch.float64), torch.as_tensor(covariance)
        ).log_prob(torch.as_tensor(x))

    def data(self, num=23):
        return {"x": np.random.default_rng(1).normal(size=(num, self.columns)) * 1.5}


class FixedNoise(dist.Normal):
    """A normal distribution whose draws have the noise (rows, draws, columns) of the data, draw by draw."""

    noise = None

    def expand(self, batch_shape, _instance=None):
        new = super().expand(batch_shape, _instance)
        new.__class__, new.noise = FixedNoise, self.noise
        return new

    def rsample(self, sample_shape=()):
        noise = self.noise[:, 0] if self.loc.dim() == 2 else self.noise.movedim(1, 0)
        return self.loc + self.scale * noise


class Images(nn.Module):
    """A small VAE of on-off images, its networks in modules."""

    def __init__(self, pixels=64, hidden=30, latents=4):
        super().__init__()
        self.latents = latents
        self.encoder = nn.Sequential(nn.Linear(pixels, hidden), nn.Tanh(), nn.Linear(hidden, 2 * latents)).float()
        self.decoder = nn.Sequential(nn.Linear(latents, hidden), nn.Tanh(), nn.Linear(hidden, pixels)).float()

    def model(self, *, x):
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([self.latents]).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)

    def guide(self, *, x):
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", len(x)):
            loc, raw = self.encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, functional.softplus(raw) + 1e-3).to_event(1))


class DynamicImages(Images):
    """The same, with pixels that are drawn anew at each step from intensities."""

    def model(self, *, x):
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([self.latents]).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=torch.bernoulli(x))


class Rootless(Images):
    """The same, with a square root at zero, whose gradient is not finite."""

    def model(self, *, x):
        pyro.module("decoder", self.decoder)
        bias = self.decoder[2].bias
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([self.latents]).to_event(1))
            logits = self.decoder(z) + (bias - bias.detach()).abs().sqrt()
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)


def images(num=200):
    """Images (num, 64) with two kinds of rows, so that there is something to learn."""
    generator = np.random.default_rng(0)
    bright = generator.random((2, 64))[generator.integers(2, size=num)]
    return {"x": (generator.random((num, 64)) < bright).astype(np.float32)}


def network(kind=Images):
    torch.manual_seed(0)
    return kind()


def gradients(
    model,
    guide,
    data,
    *,
    size,
    elbo="trace",
    num_particles=1,
    kl_weight=None,
    eager=True,
    seed=SEED,
    dtype=torch.float64,
):
    """Loss and gradients by parameter of every batch of an epoch, and the rows of each."""
    found = []
    with isolated(seed, dtype=dtype):
        prepared = prepare_data(model, data)
        sites = read_sites(model, prepared)
        trace = check_guide(guide, sites)
        batches = plan_batches(sites, size=size, plate=None, seed=seed)
        handler = MiniBatch(batches.plates, batches.total)
        loss = make_elbo(elbo, sites, trace, num_particles=num_particles)
        loss = _vectorized(loss, model, guide, batches, handler)
        steps = BatchSteps(
            *(loss, sites.enumerated if sites.discrete else model, guide, batches, handler),
            mixed_precision=False,
            weighs_kl=kl_weight is not None,
            eager=eager,
        )
        assert eager or steps.name == "recorded graph", steps.reason
        for index in batches.epoch(0):
            value = float(steps.run(batches.take(index), kl_weight))
            store = dict(pyro.get_param_store().named_parameters())
            found.append((len(index), value, {n: p.grad.clone() for n, p in store.items() if p.grad is not None}))
            for p in store.values():
                p.grad = None
    return found


def averaged(found):
    """Average over batches, weighted by their rows."""
    total = sum(rows for rows, _, _ in found)
    value = sum(rows * value for rows, value, _ in found) / total
    return value, {n: sum(rows * g[n] for rows, _, g in found) / total for n in found[0][2]}


def train(vae, data, **options):
    length = {} if "num_steps" in options else {"num_epochs": 5}
    options = {"batch_size": 64, "lr": 0.01, **length, **FEW, **options}
    return fit(vae.model, data, SVI(guide=vae.guide, **options), seed=1)


def params(result):
    return {name: value.detach() for name, value in result.state["params"]["params"].items()}


def assert_equal_params(one, other):
    assert params(one).keys() == params(other).keys()
    assert all(torch.equal(value, params(other)[name]) for name, value in params(one).items())


def regression(*, x, y):
    slope = pyro.sample("slope", dist.Normal(0.0, 10.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(slope * x, 2.0), obs=y)
