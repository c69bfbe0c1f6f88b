"""Mixtures for binary and count data: Bernoulli, Poisson and multinomial components."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch

from ppl_models import datasets
from ppl_models.mixture_data import check_counts, check_mixture
from ppl_models.mixture_normal import maybe_flat, pick, sample_weights
from ppl_models.mixture_start import arguments, cluster, cluster_means, shares
from ppl_models.model import Model, Simulation
from ppl_models.rows import seen_only
from ppl_models.simulation import draw, own_stream
from ppl_models.units import InUnits

# Prior sd of a log rate around the column's mean: with 95 % probability within a factor of seven.
LOG_RATE_SD = 1.0


def bernoulli_mixture(*, x: torch.Tensor, K: int = 2, flat: bool = False) -> torch.Tensor:
    """Mix K kinds of rows of independent binary entries (latent classes), probabilities uniform a priori.

    Parameters
    ----------
    x
        (rows, D), zeros and ones. NaN marks a missing entry, which is integrated out.
    K
        Number of components.
    flat
        No priors, for a maximum of the likelihood.
    """
    check_mixture(x, K, dims=(2,), flat=flat)
    check_counts(x, binary=True)
    weights = sample_weights(x, K, flat=flat)
    with pyro.plate("component", K):
        prior = dist.Beta(x.new_ones(x.shape[1]), x.new_ones(x.shape[1])).to_event(1)
        probability = pyro.sample("probability", maybe_flat(prior, flat=flat))
    with pyro.plate("data", len(x)):
        assignment = pyro.sample("assignment", dist.Categorical(weights), infer={"enumerate": "parallel"})
        entries = dist.Bernoulli(pick(probability, assignment, 1))
        return pyro.sample("x", seen_only(entries, x).to_event(1), obs=x)


def poisson_mixture(
    *, x: torch.Tensor, K: int = 2, flat: bool = False, data_mean: torch.Tensor | None = None
) -> torch.Tensor:
    """Mix K kinds of rows of independent counts; log rates are normal around the log means of the columns.

    Parameters
    ----------
    x
        (rows, D), counts as floating numbers. NaN marks a missing entry, which is integrated out.
    K
        Number of components.
    flat
        No priors, for a maximum of the likelihood.
    data_mean
        Means (D,) of the columns, from which the prior is made; by default those of ``x``.
    """
    check_mixture(x, K, dims=(2,), flat=flat)
    check_counts(x)
    mean = _mean_count(x) if data_mean is None else torch.as_tensor(data_mean).to(x).expand(x.shape[1:])
    weights = sample_weights(x, K, flat=flat)
    with pyro.plate("component", K):
        width = torch.full_like(mean, LOG_RATE_SD)
        prior = InUnits(dist.LogNormal(mean.log(), width), mean.log(), width).to_event(1)
        rate = pyro.sample("rate", maybe_flat(prior, flat=flat))
    with pyro.plate("data", len(x)):
        assignment = pyro.sample("assignment", dist.Categorical(weights), infer={"enumerate": "parallel"})
        entries = dist.Poisson(pick(rate, assignment, 1))
        return pyro.sample("x", seen_only(entries, x).to_event(1), obs=x)


def _mean_count(x: torch.Tensor) -> torch.Tensor:
    """Mean of each column's entries; a column of zeros has that of half a count."""
    seen = ~x.isnan()
    total = torch.where(seen, x, torch.zeros_like(x)).sum(0)
    return total.clamp_min(0.5) / seen.sum(0)


def multinomial_mixture(*, x: torch.Tensor, K: int = 2, flat: bool = False) -> torch.Tensor:
    """Mix K kinds of rows whose counts share out a known total, shares uniform on the simplex a priori.

    Parameters
    ----------
    x
        (rows, D), counts as floating numbers; the total of a row may be any.
    K
        Number of components.
    flat
        No priors, for a maximum of the likelihood.
    """
    check_mixture(x, K, dims=(2,), flat=flat)
    check_counts(x)
    if bool(x.isnan().any()):
        raise ValueError("x: a count is missing (NaN); the total of its row is then unknown. Leave the row out.")
    weights = sample_weights(x, K, flat=flat)
    with pyro.plate("component", K):
        share = pyro.sample("share", maybe_flat(dist.Dirichlet(x.new_ones(x.shape[1])), flat=flat))
    with pyro.plate("data", len(x)):
        assignment = pyro.sample("assignment", dist.Categorical(weights), infer={"enumerate": "parallel"})
        counts = Shares(x.sum(-1), pick(share, assignment, 1))
        return pyro.sample("x", counts, obs=x)


class Shares(dist.TorchDistribution):
    """Multinomial counts whose totals differ from row to row (torch's own wants one total).

    Parameters
    ----------
    total
        (...), whole numbers.
    share
        (..., D), on the simplex.
    """

    arg_constraints = {}
    support = torch.distributions.constraints.independent(torch.distributions.constraints.nonnegative_integer, 1)

    def __init__(self, total: torch.Tensor, share: torch.Tensor, *, validate_args: bool | None = None) -> None:
        self.total, self.share = total, share
        batch_shape = torch.broadcast_shapes(total.shape, share.shape[:-1])
        super().__init__(batch_shape, share.shape[-1:], validate_args=validate_args)

    def expand(self, batch_shape: torch.Size, _instance: Any = None) -> "Shares":
        """Repeat the distribution to a larger batch shape."""
        batch_shape = torch.Size(batch_shape)
        return Shares(self.total.expand(batch_shape), self.share.expand(batch_shape + self.event_shape))

    def sample(self, sample_shape: torch.Size = torch.Size()) -> torch.Tensor:  # noqa: B008
        """Draw one entry after the other, binomial out of what is left; shape ``sample_shape + batch_shape + (D,)``."""
        shape = torch.Size(sample_shape) + self.batch_shape
        with torch.no_grad():
            left, rest, counts = self.total.expand(shape), torch.ones_like(self.share[..., 0]), []
            for share in self.share.unbind(-1)[:-1]:
                chance = (share / rest.clamp_min(torch.finfo(rest.dtype).tiny)).clamp(0, 1)
                counts.append(torch.binomial(left.contiguous(), chance.expand(shape).contiguous()))
                left, rest = left - counts[-1], rest - share
            return torch.stack([*counts, left], -1)

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        """Log probability of counts (..., D)."""
        arrangements = torch.lgamma(value.sum(-1) + 1) - torch.lgamma(value + 1).sum(-1)
        return arrangements + torch.xlogy(value, self.share).sum(-1)


def _simulate(
    model: Callable[..., Any],
    seed: int,
    *,
    num_rows: int = 100,
    num_columns: int = 4,
    K: int = 2,
    truth: Mapping[str, Any] | None = None,
    entry: float = 0.0,
    known: Mapping[str, Any] | None = None,
    **settings: Any,
) -> Simulation:
    """Draw from the prior; every entry of the argument ``x`` is ``entry`` at first."""
    with own_stream(seed):
        inputs = {"x": torch.full((num_rows, num_columns), entry), "K": K}
        return draw(model, inputs, truth=truth, **{**(known or {}), **settings})


def by_total(draws: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Relabel the components of every draw by increasing total rate; ``weights`` (..., K), ``rate`` (..., K, D)."""
    order = np.argsort(draws["rate"].sum(-1), axis=-1)
    relabelled = {"rate": np.take_along_axis(draws["rate"], order[..., None], -2)}
    if "weights" in draws:
        relabelled["weights"] = np.take_along_axis(draws["weights"], order, -1)
    if "assignment" in draws:
        relabelled["assignment"] = np.take_along_axis(np.argsort(order, -1), draws["assignment"], -1)
    return relabelled


def _start(
    model: Callable[..., Any],
    site: str,
    to_site: Callable[[np.ndarray], np.ndarray],
    data: Mapping[str, Any],
    seed: int,
) -> dict[str, np.ndarray]:
    """Start from the means of a clustering, which ``to_site`` turns into the parameters."""
    given = arguments(model, data)
    x, K = given["x"].astype(np.float64), given["K"]
    labels = cluster(x, K, seed)
    means = cluster_means(x, labels, K, np.nanmean(x, axis=0))
    return {"weights": shares(labels, K), site: to_site(means)}


def _off_the_edge(means: np.ndarray) -> np.ndarray:
    return np.clip(means, 0.01, 0.99)


def _positive(means: np.ndarray) -> np.ndarray:
    return np.maximum(means, 0.01)


def _as_shares(means: np.ndarray) -> np.ndarray:
    return _positive(means) / _positive(means).sum(axis=1, keepdims=True)


BERNOULLI_MIXTURE = Model(
    name="bernoulli_mixture",
    model=bernoulli_mixture,
    data=lambda: {"x": datasets.digit_pixels(), "K": 3},
    simulate=partial(_simulate, bernoulli_mixture),
    start=partial(_start, bernoulli_mixture, "probability", _off_the_edge),
    summary="mixture of rows of independent binary entries (pixels of 100 handwritten digits 0, 1, 2)",
    table="x",
)
POISSON_MIXTURE = Model(
    name="poisson_mixture",
    model=poisson_mixture,
    data=lambda: {"x": datasets.exercises(), "K": 3},
    simulate=partial(_simulate, poisson_mixture, known={"data_mean": torch.tensor(10.0, dtype=torch.float64)}),
    identify=by_total,
    start=partial(_start, poisson_mixture, "rate", _positive),
    settings_from=lambda data: {"data_mean": data["data_mean"] if "data_mean" in data else _mean_count(data["x"])},
    summary="mixture of rows of counts (chin-ups, sit-ups and jumps of 20 men)",
    table="x",
)
MULTINOMIAL_MIXTURE = Model(
    name="multinomial_mixture",
    model=multinomial_mixture,
    data=lambda: {"x": datasets.digit_rows(), "K": 3},
    simulate=partial(_simulate, multinomial_mixture, entry=5.0),
    start=partial(_start, multinomial_mixture, "share", _as_shares),
    summary="mixture of rows of counts with known totals (dark pixels by line of 100 handwritten digits 0, 1, 2)",
    table="x",
)
