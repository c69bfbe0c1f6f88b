"""Sorted draws of one distribution on the line."""

import math
from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.distributions.transforms import OrderedTransform
from torch.distributions.transforms import AffineTransform, ComposeTransform

from ppl_models.units import Reached


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
    offset, multiplier
        Taken out of the unconstrained coordinates, see `ppl_models.units`; numbers or tensors of shape ().
    """

    arg_constraints = {}

    def __init__(
        self,
        base_dist: dist.TorchDistribution,
        size: int,
        *,
        offset: torch.Tensor | float = 0.0,
        multiplier: torch.Tensor | float = 1.0,
        validate_args: bool | None = None,
    ) -> None:
        if base_dist.event_shape or size < 1:
            raise ValueError(
                f"OrderStatistics: expected a univariate base_dist and size >= 1, got event shape "
                f"{tuple(base_dist.event_shape)} and size {size}."
            )
        self.base_dist = base_dist
        self.offset, self.multiplier = offset, multiplier
        super().__init__(base_dist.batch_shape, torch.Size([size]), validate_args=validate_args)

    @constraints.dependent_property(is_discrete=False, event_dim=1)
    def support(self) -> Reached:
        """Increasing vectors, reached in units of the data."""
        affine = AffineTransform(self.offset, self.multiplier, event_dim=1)
        return Reached(constraints.ordered_vector, ComposeTransform([OrderedTransform(), affine]))

    @property
    def has_rsample(self) -> bool:
        """Sorting is differentiable almost everywhere, so this is the base's affair."""
        return self.base_dist.has_rsample

    def expand(self, batch_shape: torch.Size, _instance: Any = None) -> "OrderStatistics":
        """Repeat the distribution to a larger batch shape."""
        base_dist = self.base_dist.expand(torch.Size(batch_shape))
        return OrderStatistics(
            base_dist,
            self.event_shape[0],
            offset=self.offset,
            multiplier=self.multiplier,
            validate_args=self._validate_args,
        )

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
