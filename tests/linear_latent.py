"""The linear-Gaussian latent-variable model: evidence and posterior are known, and the guide is as wrong as asked."""

from dataclasses import dataclass

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from scipy.stats import multivariate_normal

from inference import SVI, Fit, fit

NOISE = 0.6


@dataclass(frozen=True, eq=False)
class Linear:
    """x = W z + b + noise, z standard normal (L), x (D): exact answers."""

    weight: np.ndarray
    offset: np.ndarray

    @property
    def covariance(self) -> np.ndarray:
        """Posterior covariance of z, (L, L)."""
        return np.linalg.inv(np.eye(self.weight.shape[1]) + self.weight.T @ self.weight / NOISE**2)

    def mean(self, x: np.ndarray) -> np.ndarray:
        """Posterior means (N, L) of z at rows (N, D)."""
        return (x - self.offset) @ (self.covariance @ self.weight.T / NOISE**2).T

    def log_p(self, x: np.ndarray) -> np.ndarray:
        """Log evidence (N,) of rows (N, D)."""
        cov = self.weight @ self.weight.T + NOISE**2 * np.eye(len(self.offset))
        return multivariate_normal(self.offset, cov).logpdf(x)

    def kl(self, mean: np.ndarray, factor: np.ndarray, x: np.ndarray) -> np.ndarray:
        """KL (N,) from Gaussians with means (N, L) and one factor (L, L) to the posteriors of rows."""
        precision, num = np.linalg.inv(self.covariance), len(self.covariance)
        shift = self.mean(x) - mean
        trace = np.trace(precision @ factor @ factor.T) - num
        log_det = np.linalg.slogdet(self.covariance)[1] - 2 * np.log(np.diag(factor)).sum()
        return 0.5 * (trace + log_det + np.einsum("ni,ij,nj->n", shift, precision, shift))


def model(x):
    weight, offset = pyro.param("weight"), pyro.param("offset")
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(weight.shape[1]), 1.0).to_event(1))
        seen = ~x.isnan()
        filled = torch.where(seen, x, 0.0)
        normal = dist.Normal(z @ weight.T + offset, NOISE).mask(seen).to_event(1)
        pyro.sample("x", normal, obs=filled)


model.may_miss = "x"


def guide(x):
    with pyro.plate("data", len(x)):
        loc = torch.nan_to_num(x) @ pyro.param("encoder").T + pyro.param("shift")
        pyro.sample("z", dist.MultivariateNormal(loc, scale_tril=pyro.param("factor").tril()))


def mean_field_guide(x):
    with pyro.plate("data", len(x)):
        loc = torch.nan_to_num(x) @ pyro.param("encoder").T + pyro.param("shift")
        pyro.sample("z", dist.Normal(loc, pyro.param("factor").diagonal()).to_event(1))


def linear(num_latents: int = 2, num_columns: int = 5, *, seed: int = 0, size: float = 1.0) -> Linear:
    rng = np.random.default_rng(seed)
    return Linear(size * rng.normal(size=(num_columns, num_latents)), rng.normal(size=num_columns))


def rows_of(truth: Linear, num: int, *, seed: int = 1) -> np.ndarray:
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(num, truth.weight.shape[1]))
    return z @ truth.weight.T + truth.offset + NOISE * rng.normal(size=(num, len(truth.offset)))


def trained(
    truth: Linear,
    x: np.ndarray,
    *,
    shift: float = 0.0,
    factor: np.ndarray | None = None,
    used_guide=guide,
    dtype: str = "float64",
    used_model=model,
) -> Fit:
    """Give the fit whose guide has the exact posterior means, shifted by ``shift`` in every latent, and this factor."""
    encoder = truth.covariance @ truth.weight.T / NOISE**2
    values = {
        "weight": truth.weight,
        "offset": truth.offset,
        "encoder": encoder,
        "shift": -encoder @ truth.offset + shift,
        "factor": np.linalg.cholesky(truth.covariance) if factor is None else factor,
    }
    tensors = {name: torch.as_tensor(value, dtype=getattr(torch, dtype)) for name, value in values.items()}

    def started(run):
        def function(x):
            for name, value in tensors.items():
                pyro.param(name, value.clone())
            return run(x)

        return function

    own = started(used_model)
    own.may_miss = "x"
    engine = SVI(
        guide=started(used_guide), num_steps=1, lr=1e-12, dtype=dtype, backend="pyro", num_samples=10, num_chains=2
    )
    return fit(own, {"x": x}, engine, seed=3)


def model_at(truth: Linear):
    """Give the model with its parameters as constants."""
    weight, offset = torch.as_tensor(truth.weight), torch.as_tensor(truth.offset)

    def function(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(weight.shape[1]), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ weight.T + offset, NOISE).to_event(1), obs=x)

    return function
