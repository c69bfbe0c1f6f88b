"""Supports whose unconstrained coordinates are in units of the data, as Stan's ``offset`` and ``multiplier`` make them.

Optimisers and samplers start near zero of the unconstrained space and take steps of order one there. A location of 4000
grams with a scale of 800 is of order one only after its units are taken out; the site itself keeps them.
"""

from typing import Any

import pyro.distributions as dist
import torch
from torch.distributions import biject_to, constraints, transform_to, transforms


class Reached(constraints.Constraint):
    """A support together with the bijection that reaches it from unconstrained space.

    Parameters
    ----------
    support
        What values must satisfy.
    transform
        The bijection onto it, in place of the one that is registered for ``support``.
    """

    # The bijection is made from data, not from other latents: for `inference.supports`.
    fixed = True

    def __init__(self, support: constraints.Constraint, transform: transforms.Transform) -> None:
        self.support, self.transform = support, transform
        super().__init__()

    @property
    def event_dim(self) -> int:
        """Number of dims of one value."""
        return self.support.event_dim

    @property
    def is_discrete(self) -> bool:
        """Never: an unconstrained space is continuous."""
        return False

    def __repr__(self) -> str:
        """Name the support, whatever reaches it."""
        return repr(self.support)

    def check(self, value: torch.Tensor) -> torch.Tensor:
        """Whether values are in the support."""
        return self.support.check(value)


@transform_to.register(Reached)
@biject_to.register(Reached)
def _reach(constraint: Reached) -> transforms.Transform:
    return constraint.transform


def in_units(offset: torch.Tensor, multiplier: torch.Tensor, support: constraints.Constraint) -> Reached:
    """Reach a univariate support from ``offset + multiplier * free``: the real line, or the positive half by exp."""
    affine = transforms.AffineTransform(offset, multiplier)
    return Reached(support, transforms.ComposeTransform([affine, biject_to(support)]))


class InUnits(dist.TorchDistribution):
    """A univariate distribution with a `Reached` support.

    Parameters
    ----------
    base_dist
        Univariate and continuous (event shape ``()``).
    offset, multiplier
        What is taken out of the unconstrained coordinate: a typical value and its scale there; tensors that broadcast
        against the batch shape from the right.
    """

    arg_constraints = {}

    def __init__(
        self,
        base_dist: dist.TorchDistribution,
        offset: torch.Tensor,
        multiplier: torch.Tensor,
        *,
        validate_args: bool | None = None,
    ) -> None:
        self.base_dist, self.offset, self.multiplier = base_dist, offset, multiplier
        super().__init__(base_dist.batch_shape, validate_args=validate_args)

    @constraints.dependent_property(is_discrete=False, event_dim=0)
    def support(self) -> Reached:
        """Reach the support of the base in units of the data."""
        return in_units(self.offset, self.multiplier, self.base_dist.support)

    @property
    def has_rsample(self) -> bool:
        """As the base."""
        return self.base_dist.has_rsample

    def expand(self, batch_shape: torch.Size, _instance: Any = None) -> "InUnits":
        """Repeat the distribution to a larger batch shape."""
        return InUnits(self.base_dist.expand(torch.Size(batch_shape)), self.offset, self.multiplier)

    def sample(self, sample_shape: torch.Size = torch.Size()) -> torch.Tensor:  # noqa: B008
        """Draw, shape ``sample_shape + batch_shape``."""
        return self.base_dist.sample(sample_shape)

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> torch.Tensor:  # noqa: B008
        """Draw with a gradient, shape ``sample_shape + batch_shape``."""
        return self.base_dist.rsample(sample_shape)

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        """Log density of the base."""
        return self.base_dist.log_prob(value)


class CovarianceTransform(transforms.Transform):
    """Map free numbers (..., D (D + 1) / 2) to covariance matrices (..., D, D).

    The covariance is L L' with L = F T; T is lower triangular with a diagonal of exponentials (Stan's ``cov_matrix``),
    F the Cholesky factor of a matrix of typical size: zero free numbers stand for F F'.

    Parameters
    ----------
    factor
        F, lower triangular, (D, D).
    step
        A free number of one changes the logarithm of a diagonal entry of T by so much.
    """

    domain = constraints.real_vector
    codomain = constraints.positive_definite
    bijective = True

    def __init__(self, factor: torch.Tensor, step: float, cache_size: int = 0) -> None:
        super().__init__(cache_size=cache_size)
        self.factor, self.step = factor, step
        self.size = factor.shape[-1]
        lower = torch.tril_indices(self.size, self.size)
        self.rows, self.columns = lower[0], lower[1]
        # place of each entry among the free numbers; one past the end stands for the zeros above the diagonal
        self.places = torch.full((self.size, self.size), lower.shape[1])
        self.places[self.rows, self.columns] = torch.arange(lower.shape[1])

    def __eq__(self, other: object) -> bool:
        """Whether it is the same map."""
        return (
            isinstance(other, CovarianceTransform)
            and torch.equal(self.factor, other.factor)
            and self.step == other.step
        )

    __hash__ = None

    def with_cache(self, cache_size: int = 1) -> "CovarianceTransform":
        """Copy with another size of cache."""
        return CovarianceTransform(self.factor, self.step, cache_size)

    def _triangle(self, free: torch.Tensor) -> torch.Tensor:
        free = torch.cat([self.step * free, torch.zeros_like(free[..., :1])], -1)
        raw = free[..., self.places]
        diagonal = torch.eye(self.size, dtype=torch.bool)
        return torch.where(diagonal, torch.where(diagonal, raw, torch.zeros_like(raw)).exp(), raw)

    def _call(self, free: torch.Tensor) -> torch.Tensor:
        root = self.factor @ self._triangle(free)
        return root @ root.mT

    def _inverse(self, covariance: torch.Tensor) -> torch.Tensor:
        root = torch.linalg.cholesky(covariance)
        triangle = torch.linalg.solve_triangular(self.factor.expand(root.shape), root, upper=False)
        raw = triangle[..., self.rows, self.columns]
        on_diagonal = self.rows == self.columns
        return torch.where(on_diagonal, torch.where(on_diagonal, raw, torch.ones_like(raw)).log(), raw) / self.step

    def log_abs_det_jacobian(self, free: torch.Tensor, covariance: torch.Tensor) -> torch.Tensor:
        """Sum the Jacobians of T, of L = F T, and of L L' (Muirhead 1982, theorem 2.1.9)."""
        on_diagonal = self.rows == self.columns
        log_diagonal = self.step * free[..., on_diagonal]
        powers = torch.arange(self.size, 0, -1).to(free)  # D, ..., 1: the power of each diagonal entry of L
        log_factor = self.factor.diagonal(dim1=-2, dim2=-1).log()
        constant = self.size * torch.tensor(2.0).log() + len(self.rows) * torch.tensor(self.step).log()
        return (
            constant.to(free)
            + ((powers + 1) * log_diagonal).sum(-1)  # T, and its share in L L'
            + ((powers + powers.flip(0)) * log_factor).sum(-1)  # F's share in L L', and F T
        )

    def forward_shape(self, shape: torch.Size) -> torch.Size:
        """(..., D (D + 1) / 2) to (..., D, D)."""
        return torch.Size([*shape[:-1], self.size, self.size])

    def inverse_shape(self, shape: torch.Size) -> torch.Size:
        """(..., D, D) to (..., D (D + 1) / 2)."""
        return torch.Size([*shape[:-2], len(self.rows)])


class InverseWishart(dist.TorchDistribution):
    """Inverse Wishart distribution of a covariance matrix (Gelman et al., BDA3, appendix A).

    Unlike independent priors for scales and correlations it falls to zero faster than any power as the covariance
    becomes singular in whatever direction, so that a component of a mixture cannot collapse on a point or a line.

    Parameters
    ----------
    df
        Degrees of freedom, above D - 1.
    factor
        Lower Cholesky factor (D, D) of the scale matrix, which is df - D - 1 times the mean.
    """

    arg_constraints = {}
    # With D + 2 degrees of freedom a standard deviation is known to a factor of about two: half a unit of its log.
    STEP = 0.5

    def __init__(
        self,
        df: float,
        factor: torch.Tensor,
        batch_shape: torch.Size = torch.Size(),  # noqa: B008
        *,
        validate_args: bool | None = None,
    ) -> None:
        size = factor.shape[-1]
        if df <= size - 1:
            raise ValueError(f"InverseWishart: df must exceed D - 1 = {size - 1}, got {df}.")
        self.df, self.factor = df, factor
        super().__init__(torch.Size(batch_shape), torch.Size([size, size]), validate_args=validate_args)

    @constraints.dependent_property(is_discrete=False, event_dim=2)
    def support(self) -> Reached:
        """Positive definite matrices, reached in units of the scale matrix."""
        return Reached(constraints.positive_definite, CovarianceTransform(self.factor, self.STEP))

    def expand(self, batch_shape: torch.Size, _instance: Any = None) -> "InverseWishart":
        """Repeat the distribution to a larger batch shape."""
        return InverseWishart(self.df, self.factor, torch.Size(batch_shape))

    def sample(self, sample_shape: torch.Size = torch.Size()) -> torch.Tensor:  # noqa: B008
        """Draw by Bartlett's decomposition of the inverse, shape ``sample_shape + batch_shape + (D, D)``."""
        shape = torch.Size(sample_shape) + self.batch_shape
        size = self.event_shape[-1]
        with torch.no_grad():
            half = (self.df - torch.arange(size).to(self.factor)) / 2
            diagonal = (2 * torch.distributions.Gamma(half, torch.ones_like(half)).sample(shape)).sqrt()
            normal = torch.randn(*shape, size, size).to(self.factor)
            bartlett = normal.tril(-1) + torch.diag_embed(diagonal)
            inverse = torch.linalg.solve_triangular(bartlett, torch.eye(size).to(self.factor), upper=False)
            root = self.factor @ inverse.mT
            return root @ root.mT

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        """Log density at covariance matrices (..., D, D)."""
        size, df = self.event_shape[-1], torch.as_tensor(self.df).to(self.factor)
        root = torch.linalg.cholesky(value)
        scaled = torch.linalg.solve_triangular(root, self.factor.expand(root.shape), upper=False)
        log_det = 2 * root.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        log_det_scale = 2 * self.factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        constant = df / 2 * (log_det_scale - size * torch.tensor(2.0).log()) - torch.mvlgamma(df / 2, size)
        return constant - (df + size + 1) / 2 * log_det - 0.5 * scaled.square().sum((-2, -1))
