"""Independent features of every step of sequences, of which some steps and some entries are not seen."""

import torch
from pyro.distributions import TorchDistribution
from torch.distributions import constraints


class Features(TorchDistribution):
    """Features that are independent given what they depend on; what is NaN or beyond the end counts nothing.

    Parameters
    ----------
    base_dist
        Batch shape (*batch, T, D), no event dims, with zero in its support.
    seen
        Booleans (sequences, T): which steps lie within the sequences, all by default.
    """

    arg_constraints = {}

    def __init__(
        self, base_dist: TorchDistribution, seen: torch.Tensor | None = None, *, validate_args: bool | None = None
    ) -> None:
        self.base_dist, self.seen = base_dist, seen
        shape = base_dist.batch_shape
        super().__init__(shape[:-2], shape[-2:], validate_args=validate_args)

    @property
    def mean(self) -> torch.Tensor:
        """Expected features, (*batch, T, D), at every step."""
        return self.base_dist.mean

    @constraints.dependent_property
    def support(self) -> constraints.Constraint:
        """Values of the base; NaN, and anything at steps beyond the end."""
        return _Lenient(self.base_dist.support, self.seen)

    def expand(self, batch_shape: torch.Size, _instance: "Features | None" = None) -> "Features":
        """Repeat the distribution to a larger batch shape."""
        new = self._get_checked_instance(Features, _instance)
        new.base_dist, new.seen = self.base_dist.expand(torch.Size(batch_shape) + self.event_shape), self.seen
        TorchDistribution.__init__(new, torch.Size(batch_shape), self.event_shape, validate_args=False)
        new._validate_args = self.__dict__.get("_validate_args")
        return new

    def sample(self, sample_shape: torch.Size = torch.Size()) -> torch.Tensor:  # noqa: B008
        """Draw sequences, shape ``sample_shape + batch_shape + (T, D)``, zero beyond the end."""
        drawn = self.base_dist.sample(sample_shape)
        return drawn if self.seen is None else drawn * self.seen.unsqueeze(-1)

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        """Log density of what is seen of sequences (..., T, D)."""
        if self._validate_args:
            self._validate_sample(value)
        inside = ~value.isnan() if self.seen is None else self.seen.unsqueeze(-1) & ~value.isnan()
        zero = torch.zeros((), dtype=value.dtype)
        # Filled in before the density sees it: a gradient passes NaN on even where it is not selected.
        return torch.where(inside, self.base_dist.log_prob(torch.where(inside, value, zero)), zero).sum((-2, -1))


class _Lenient(constraints.Constraint):
    event_dim = 2

    def __init__(self, base: constraints.Constraint, seen: torch.Tensor | None) -> None:
        self._base, self._seen = base, seen

    @property
    def is_discrete(self) -> bool:
        return self._base.is_discrete

    def check(self, value: torch.Tensor) -> torch.Tensor:
        fine = self._base.check(value) | value.isnan()
        if self._seen is not None:
            fine = fine | ~self._seen.unsqueeze(-1)
        return fine.all(-1).all(-1)
