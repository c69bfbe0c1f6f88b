"""Gaussian mixtures on the line, with the assignments of rows to components summed out by enumeration."""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.distributions.transforms import OrderedTransform
from pyro.ops.indexing import Vindex

from ppl_models import datasets
from ppl_models.model import Model, Simulation
from ppl_models.simulation import draw, own_stream

# Prior sd of log scale: with 95 % probability a component's sd is within a factor of 4.5 of `scale_median`.
LOG_SCALE_SD = 0.75
# Dirichlet concentration: 2 keeps weights off zero, where a component is empty and its location and scale are free.
CONCENTRATION = 2.0


class OrderStatistics(dist.TorchDistribution):
    """The sorted values of ``size`` independent draws from one distribution on the line.

    The ``size!`` orders of a draw all sort to the same vector, so the density at an increasing vector is ``size!``
    times the product of the single densities. Outside the support `log_prob` is checked by validation only.

    Parameters
    ----------
    base_dist
        Continuous univariate distribution (event shape ``()``).
    size
        Number of draws, the length of the event.
    """

    arg_constraints = {}
    support = constraints.ordered_vector

    def __init__(self, base_dist: dist.TorchDistribution, size: int, *, validate_args: bool | None = None) -> None:
        if base_dist.event_shape or size < 1:
            raise ValueError(
                f"OrderStatistics: expected a univariate base_dist and size >= 1, got event shape "
                f"{tuple(base_dist.event_shape)} and size {size}."
            )
        self.base_dist = base_dist
        super().__init__(base_dist.batch_shape, torch.Size([size]), validate_args=validate_args)

    @property
    def has_rsample(self) -> bool:
        """Sorting is differentiable almost everywhere, so this is the base's affair."""
        return self.base_dist.has_rsample

    def expand(self, batch_shape: torch.Size, _instance: Any = None) -> "OrderStatistics":
        """Repeat the distribution to a larger batch shape."""
        base_dist = self.base_dist.expand(torch.Size(batch_shape))
        return OrderStatistics(base_dist, self.event_shape[0], validate_args=self._validate_args)

    def sample(self, sample_shape: torch.Size = torch.Size()) -> torch.Tensor:  # noqa: B008
        """Draw, shape ``sample_shape + batch_shape + (size,)``."""
        with torch.no_grad():
            return self._sorted(self.base_dist.sample, sample_shape)

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> torch.Tensor:  # noqa: B008
        """Draw with a gradient, shape ``sample_shape + batch_shape + (size,)``."""
        return self._sorted(self.base_dist.rsample, sample_shape)

    def _sorted(self, sampler: Callable[..., torch.Tensor], sample_shape: torch.Size) -> torch.Tensor:
        values = sampler(self.event_shape + torch.Size(sample_shape))
        return values.movedim(0, -1).sort(-1).values

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        """Log density at increasing vectors, shape of ``value`` without its last axis."""
        if self._validate_args:
            self._validate_sample(value)
        each = self.base_dist.log_prob(value.movedim(-1, 0))
        return each.sum(0) + math.lgamma(self.event_shape[0] + 1)


def _observe(x: torch.Tensor, weights: torch.Tensor, loc: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Assign every row to a component and observe it. The components are the last axis of the three parameters."""
    with pyro.plate("data", len(x)):
        assignment = pyro.sample("assignment", dist.Categorical(weights), infer={"enumerate": "parallel"})
        # Vindex picks a component per row whatever batch axes enumeration or vectorisation have added on the left.
        row_loc, row_scale = Vindex(loc)[..., assignment], Vindex(scale)[..., assignment]
        return pyro.sample("x", dist.Normal(row_loc, row_scale), obs=x)


def gaussian_mixture(
    *, x: torch.Tensor, K: int = 2, loc_mean: float = 4.0, loc_sd: float = 2.0, scale_median: float = 0.5
) -> torch.Tensor:
    """Mix K normals on the line, their locations in increasing order, so that the labels mean something.

    The locations are the order statistics of K normal draws: the exchangeable prior restricted to one of its K!
    equal parts. The scales are log-normal because x is rounded: a component on one repeated value would have a density
    without bound, and only a prior that falls faster than any power of the scale prevents it. The default priors suit
    petal lengths in centimetres. ``x`` has shape (rows,).
    """
    weights = pyro.sample("weights", dist.Dirichlet(x.new_full((K,), CONCENTRATION)))
    loc = pyro.sample("loc", OrderStatistics(dist.Normal(loc_mean, loc_sd), K))
    with pyro.plate("component", K):
        scale = pyro.sample("scale", dist.LogNormal(math.log(scale_median), LOG_SCALE_SD))
    return _observe(x, weights, loc, scale.unsqueeze(-2))


def gaussian_mixture_exchangeable(
    *, x: torch.Tensor, K: int = 2, loc_mean: float = 4.0, loc_sd: float = 2.0, scale_median: float = 0.5
) -> torch.Tensor:
    """Take the order from `gaussian_mixture`: K! equal modes, one for each labelling.

    Compare label-free quantities only (`identify`); sorting the locations of its draws gives the posterior of
    `gaussian_mixture`. ``x`` has shape (rows,).
    """
    weights = pyro.sample("weights", dist.Dirichlet(x.new_full((K,), CONCENTRATION)))
    with pyro.plate("component", K):
        loc = pyro.sample("loc", dist.Normal(loc_mean, loc_sd))
        scale = pyro.sample("scale", dist.LogNormal(math.log(scale_median), LOG_SCALE_SD))
    return _observe(x, weights, loc.unsqueeze(-2), scale.unsqueeze(-2))


def gaussian_mixture_guide(
    *, x: torch.Tensor, K: int = 2, loc_mean: float = 4.0, loc_sd: float = 2.0, scale_median: float = 0.5
) -> None:
    """Guess weights, locations and scales independently; the assignments are left out, being summed out.

    The ordered locations are a transformed normal, so every draw is in order whatever the parameters. They start at
    normal quantiles around the mean of x.
    """
    concentration = pyro.param("weights_concentration", lambda: x.new_full((K,), 10.0), constraint=constraints.positive)
    pyro.sample("weights", dist.Dirichlet(concentration))

    def start() -> torch.Tensor:
        quantiles = torch.special.ndtri((torch.arange(K).to(x) + 0.5) / K)
        return OrderedTransform().inv(x.mean() + x.std() * quantiles)

    free_loc = pyro.param("loc_free_loc", start)
    free_scale = pyro.param("loc_free_scale", lambda: x.new_full((K,), 0.1), constraint=constraints.positive)
    free = dist.Normal(free_loc, free_scale).to_event(1)
    pyro.sample("loc", dist.TransformedDistribution(free, [OrderedTransform()]))

    log_loc = pyro.param("scale_log_loc", lambda: (x.std() / K).log().expand(K).clone())
    log_scale = pyro.param("scale_log_scale", lambda: x.new_full((K,), 0.1), constraint=constraints.positive)
    with pyro.plate("component", K):
        pyro.sample("scale", dist.LogNormal(log_loc, log_scale))


def by_location(draws: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Relabel the components of every draw by increasing location.

    Parameters
    ----------
    draws
        ``loc`` of shape (..., K) and, where present, ``weights`` and ``scale`` of the same shape and ``assignment`` of
        shape (..., rows).

    Returns
    -------
    dict
        The same quantities, unchanged by any permutation of labels within a draw.
    """
    order = np.argsort(draws["loc"], axis=-1)
    relabelled = {
        name: np.take_along_axis(np.asarray(draws[name]), order, axis=-1)
        for name in ("weights", "loc", "scale")
        if name in draws
    }
    if "assignment" in draws:
        rank = np.argsort(order, axis=-1)  # inverse permutation: old label -> new label
        relabelled["assignment"] = np.take_along_axis(rank, np.asarray(draws["assignment"]), axis=-1)
    return relabelled


def _data() -> dict[str, Any]:
    return {"x": datasets.iris_petal_length(), "K": 2}


def _simulate(
    model: Callable[..., Any],
    seed: int,
    *,
    num_rows: int = 150,
    K: int = 2,
    truth: Mapping[str, Any] | None = None,
    **settings: float,
) -> Simulation:
    with own_stream(seed):
        return draw(model, {"x": torch.zeros(num_rows), "K": K}, truth=truth, **settings)


GAUSSIAN_MIXTURE = Model(
    name="gaussian_mixture",
    model=gaussian_mixture,
    data=_data,
    simulate=partial(_simulate, gaussian_mixture),
    summary="mixture of normals with ordered locations, assignments summed out (petal length of irises)",
    guide=gaussian_mixture_guide,
)
GAUSSIAN_MIXTURE_EXCHANGEABLE = Model(
    name="gaussian_mixture_exchangeable",
    model=gaussian_mixture_exchangeable,
    data=_data,
    simulate=partial(_simulate, gaussian_mixture_exchangeable),
    summary="the same mixture without the order: K! equal modes",
    identify=by_location,
)
