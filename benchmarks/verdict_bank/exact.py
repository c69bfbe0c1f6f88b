"""Posteriors whose exact answers are known: closed moments of conjugate models, or independent exact draws.

They are in no database, and no threshold of `inference.limits` was chosen on them. A model without data is the
posterior itself, so that its exact draws are draws from its sites.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch

from benchmarks.posteriordb.database import Posterior, Published
from ppl_models import MODELS

NUM_CHAINS, NUM_DRAWS = 4, 5000
Draws = dict[str, np.ndarray]


@dataclass(frozen=True)
class ExactPosterior:
    """A Pyro function without data, and its exact draws, ``name -> (n, *shape)``."""

    model: Callable[[], Any]
    draw: Callable[[np.random.Generator, int], Draws]

    def posterior(self, name: str) -> Posterior:
        """Give draws in the shape of chains; they are independent."""
        draws = self.draw(np.random.default_rng(20_261_121), NUM_CHAINS * NUM_DRAWS)
        chains = {site: value.reshape(NUM_CHAINS, NUM_DRAWS, *value.shape[1:]) for site, value in draws.items()}
        return Posterior(name, {}, chains, {})


CONJUGATE = ("normal_mean", "beta_binomial", "bayesian_linear_regression")


def conjugate(name: str) -> tuple[Callable[..., Any], Posterior]:
    """Give a model of `ppl_models` and its closed moments, which have no Monte Carlo error."""
    model = MODELS[name]
    data = model.data()
    exact = model.exact(data)
    moments = {site: Published(mean, exact.sd[site], np.zeros_like(mean)) for site, mean in exact.mean.items()}
    return model.model, Posterior(name, data, {}, moments)


# --- Gaussians --------------------------------------------------------------------------------------------------------


def gaussian(covariance: np.ndarray) -> ExactPosterior:
    """Correlated Gaussian."""
    factor, dim = np.linalg.cholesky(covariance), len(covariance)

    def model() -> None:
        pyro.sample("x", dist.MultivariateNormal(torch.zeros(dim), scale_tril=torch.as_tensor(factor)))

    return ExactPosterior(model, lambda rng, num: {"x": rng.standard_normal((num, dim)) @ factor.T})


def autoregressive(dim: int, rho: float) -> np.ndarray:
    """Correlations that fall off by powers of ``rho``."""
    return rho ** np.abs(np.subtract.outer(np.arange(dim), np.arange(dim)))


def stretched(dim: int, ratio: float) -> np.ndarray:
    """Sds that spread over a ratio, along axes at random."""
    axes = np.linalg.qr(np.random.default_rng(0).standard_normal((dim, dim)))[0]
    return axes @ np.diag(np.geomspace(1.0, ratio, dim) ** 2) @ axes.T


# --- Products and others without correlation --------------------------------------------------------------------------


def product(dim: int, make: Callable[[], Any], draw: Callable[..., np.ndarray]) -> ExactPosterior:
    """Independent coordinates; ``draw(rng, size=...)``."""

    def model() -> None:
        pyro.sample("x", make().expand([dim]).to_event(1))

    return ExactPosterior(model, lambda rng, num: {"x": draw(rng, size=(num, dim))})


def student(dim: int, degrees: float) -> ExactPosterior:
    """Heavy-tailed product."""
    return product(dim, lambda: dist.StudentT(degrees), lambda rng, size: rng.standard_t(degrees, size=size))


def joint_student(dim: int, degrees: float) -> ExactPosterior:
    """Multivariate t: one common scale, so that far draws are far in every coordinate."""

    def draw(rng: np.random.Generator, num: int) -> Draws:
        scale = np.sqrt(degrees / rng.chisquare(degrees, size=(num, 1)))
        return {"x": scale * rng.standard_normal((num, dim))}

    def model() -> None:
        pyro.sample("x", dist.MultivariateStudentT(torch.tensor(degrees), torch.zeros(dim), torch.eye(dim)))

    return ExactPosterior(model, draw)


def simplex() -> ExactPosterior:
    """Dirichlet with small and large parts."""
    parts = [0.8, 2.0, 5.0, 12.0]

    def model() -> None:
        pyro.sample("x", dist.Dirichlet(torch.tensor(parts)))

    return ExactPosterior(model, lambda rng, num: {"x": rng.dirichlet(parts, size=num)})


# --- Bent, and with several modes -------------------------------------------------------------------------------------


def banana(curvature: float, width: float) -> ExactPosterior:
    """Let z follow the square of x."""

    def model() -> None:
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.sample("z", dist.Normal(curvature * x**2, width))

    def draw(rng: np.random.Generator, num: int) -> Draws:
        x = rng.standard_normal(num)
        return {"x": x, "z": curvature * x**2 + width * rng.standard_normal(num)}

    return ExactPosterior(model, draw)


def funnel(dim: int, sd: float) -> ExactPosterior:
    """Neal's funnel (2003): the log variance of the others is itself unknown."""

    def model() -> None:
        v = pyro.sample("v", dist.Normal(0.0, sd))
        pyro.sample("x", dist.Normal(0.0, (0.5 * v).exp()).expand([dim - 1]).to_event(1))

    def draw(rng: np.random.Generator, num: int) -> Draws:
        v = sd * rng.standard_normal(num)
        return {"v": v, "x": np.exp(0.5 * v)[:, None] * rng.standard_normal((num, dim - 1))}

    return ExactPosterior(model, draw)


def two_modes(dim: int, *, share: float, apart: float, narrow: float = 1.0) -> ExactPosterior:
    """Mix two spherical Gaussians, the second with mass ``1 - share`` and sd ``narrow``, ``apart`` along every axis."""
    log_masses, places, sds = np.log([share, 1.0 - share]), np.array([0.0, apart]), np.array([1.0, narrow])

    def model() -> None:
        x = pyro.sample("x", dist.ImproperUniform(dist.constraints.real_vector, (), (dim,)))
        parts = dist.Normal(torch.as_tensor(places)[:, None], torch.as_tensor(sds)[:, None])
        pyro.factor("mixture", (torch.as_tensor(log_masses) + parts.log_prob(x).sum(-1)).logsumexp(0))

    def draw(rng: np.random.Generator, num: int) -> Draws:
        which = (rng.uniform(size=(num, 1)) > share).astype(int)
        return {"x": places[which] + sds[which] * rng.standard_normal((num, dim))}

    return ExactPosterior(model, draw)


EXACT: Mapping[str, ExactPosterior] = {
    "gaussian, D = 2, correlation -.8": gaussian(np.array([[1.0, -0.8], [-0.8, 1.0]])),
    "gaussian, D = 50, autoregressive .9": gaussian(autoregressive(50, 0.9)),
    "gaussian, D = 100, sds over 100": gaussian(stretched(100, 100.0)),
    "gaussian, D = 100, autoregressive .3": gaussian(autoregressive(100, 0.3)),
    "student 5, D = 10": student(10, 5.0),
    "student 3, D = 4": student(4, 3.0),
    "joint student 6, D = 20": joint_student(20, 6.0),
    "gumbel, D = 8": product(8, lambda: dist.Gumbel(0.0, 1.0), lambda rng, size: rng.gumbel(size=size)),
    "exponential, D = 5": product(5, lambda: dist.Exponential(1.0), lambda rng, size: rng.exponential(size=size)),
    "logit of uniform, D = 30": product(30, lambda: dist.Uniform(0.0, 1.0), lambda rng, size: rng.uniform(size=size)),
    "beta .8 .8, D = 3": product(3, lambda: dist.Beta(0.8, 0.8), lambda rng, size: rng.beta(0.8, 0.8, size=size)),
    "dirichlet": simplex(),
    "banana, slight": banana(0.3, 0.5),
    "banana, strong": banana(1.0, 0.3),
    "funnel, D = 5, sd 1": funnel(5, 1.0),
    "funnel, D = 10, sd 3": funnel(10, 3.0),
    "two modes, .7 and .3": two_modes(2, share=0.7, apart=5.0),
    "two modes, .9 and .1, D = 5": two_modes(5, share=0.9, apart=4.0),
    "two modes, .6 and .4, one narrow": two_modes(3, share=0.6, apart=3.5, narrow=0.3),
    "two modes that touch": two_modes(2, share=0.6, apart=2.2),
    # Added after the search for modes was sharpened on the four above, and not looked at before.
    "held out: two equal modes, D = 10": two_modes(10, share=0.5, apart=3.0),
    "held out: two modes, one wide, D = 4": two_modes(4, share=0.8, apart=6.0, narrow=2.0),
    "held out: two modes, .75 and .25, D = 20": two_modes(20, share=0.75, apart=2.5),
}
