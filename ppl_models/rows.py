"""Distributions of rows with missing entries (NaN), which are integrated out."""

import math
from typing import Any

import pyro.distributions as dist
import torch
from torch.distributions import constraints

# Distances go by products of entries up to so many columns: 153 products for each row.
MAX_PRODUCTS = 16


class _OrMissing(constraints.Constraint):
    """A support, or NaN in an entry that is missing."""

    is_discrete = False

    def __init__(self, support: constraints.Constraint) -> None:
        self.support, self.is_discrete = support, support.is_discrete
        super().__init__()

    def check(self, value: torch.Tensor) -> torch.Tensor:
        return self.support.check(value) | value.isnan()


class SeenOnly(dist.TorchDistribution):
    """A univariate distribution; a value that is NaN is missing and has log probability zero.

    Parameters
    ----------
    base_dist
        Univariate (event shape ``()``), with zero or one half in its support.
    """

    arg_constraints = {}

    def __init__(self, base_dist: dist.TorchDistribution, *, validate_args: bool | None = None) -> None:
        self.base_dist = base_dist
        super().__init__(base_dist.batch_shape, validate_args=validate_args)

    @constraints.dependent_property(is_discrete=False, event_dim=0)
    def support(self) -> constraints.Constraint:
        """Allow the values of the base, and NaN."""
        return _OrMissing(self.base_dist.support)

    @property
    def mean(self) -> torch.Tensor:
        """Give that of the base."""
        return self.base_dist.mean

    @property
    def variance(self) -> torch.Tensor:
        """Give that of the base."""
        return self.base_dist.variance

    def expand(self, batch_shape: torch.Size, _instance: Any = None) -> "SeenOnly":
        """Repeat the distribution to a larger batch shape."""
        return SeenOnly(self.base_dist.expand(torch.Size(batch_shape)))

    def sample(self, sample_shape: torch.Size = torch.Size()) -> torch.Tensor:  # noqa: B008
        """Draw; nothing that is drawn is missing."""
        return self.base_dist.sample(sample_shape)

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        """Log density of the base, zero where ``value`` is NaN."""
        seen = ~value.isnan()
        # The value is filled in before the density sees it: a gradient passes NaN on even where it is not selected.
        log_prob = self.base_dist.log_prob(torch.where(seen, value, torch.zeros_like(value)))
        return torch.where(seen, log_prob, torch.zeros_like(log_prob))


def seen_only(base_dist: dist.TorchDistribution, x: torch.Tensor) -> dist.TorchDistribution:
    """Give the distribution itself where nothing is missing, which is cheaper, else `SeenOnly`."""
    return SeenOnly(base_dist) if x.is_floating_point() and bool(x.isnan().any()) else base_dist


class NormalRows(dist.TorchDistribution):
    """Multivariate normal rows with missing entries; with ``df``, multivariate Student t (Lange, Little & Taylor 1989).

    A row contributes the density of its entries that are seen, which is again normal (or t) with that part of the
    location and covariance; a row without any contributes nothing.

    Parameters
    ----------
    loc
        (..., D).
    scale
        (..., D), or (..., 1): standard deviations of independent entries. Give this or ``scale_tril``.
    scale_tril
        (..., D, D), Cholesky factor of the covariance.
    df
        (...): degrees of freedom of a t distribution; its covariance is df / (df - 2) times that of ``scale``.
    """

    arg_constraints = {}
    support = constraints.independent(_OrMissing(constraints.real), 1)

    def __init__(
        self,
        loc: torch.Tensor,
        *,
        scale: torch.Tensor | None = None,
        scale_tril: torch.Tensor | None = None,
        df: torch.Tensor | None = None,
        validate_args: bool | None = None,
    ) -> None:
        self.loc, self.scale, self.scale_tril, self.df = loc, scale, scale_tril, df
        parts = [loc.shape[:-1]]
        parts += [] if scale is None else [scale.shape[:-1]]
        parts += [] if scale_tril is None else [scale_tril.shape[:-2]]
        parts += [] if df is None else [df.shape]
        super().__init__(torch.broadcast_shapes(*parts), loc.shape[-1:], validate_args=validate_args)

    def expand(self, batch_shape: torch.Size, _instance: Any = None) -> "NormalRows":
        """Repeat the distribution to a larger batch shape."""
        new = NormalRows(self.loc, scale=self.scale, scale_tril=self.scale_tril, df=self.df)
        new._batch_shape = torch.Size(batch_shape)
        return new

    def sample(self, sample_shape: torch.Size = torch.Size()) -> torch.Tensor:  # noqa: B008
        """Draw, shape ``sample_shape + batch_shape + (D,)``; nothing that is drawn is missing."""
        shape = torch.Size(sample_shape) + self.batch_shape
        with torch.no_grad():
            step = torch.randn(*shape, *self.event_shape, dtype=self.loc.dtype)
            full = self.scale_tril is not None
            step = (self.scale_tril @ step[..., None])[..., 0] if full else self.scale * step
            if self.df is not None:
                half = (self.df / 2).expand(shape)
                step = step / (torch.distributions.Gamma(half, half).sample()[..., None]).sqrt()
            return self.loc + step

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        """Log density of what is seen of rows (..., D)."""
        seen = ~value.isnan()
        if bool(seen.all()):
            size = torch.tensor(float(value.shape[-1])).to(value)
            distance, log_det = self._diagonal(value) if self.scale_tril is None else self._full(value)
        else:
            size = seen.sum(-1).to(value)
            filled = torch.where(seen, value, torch.zeros_like(value))
            if self.scale_tril is None:
                distance, log_det = self._diagonal(filled, seen)
            else:
                distance, log_det = self._full_in_parts(filled, seen)
        if self.df is None:
            return -0.5 * (distance + log_det + math.log(2 * math.pi) * size)
        total = self.df + size
        return (
            torch.lgamma(total / 2)
            - torch.lgamma(self.df / 2)
            - 0.5 * (size * (self.df * math.pi).log() + log_det + total * torch.log1p(distance / self.df))
        )

    def _diagonal(self, value: torch.Tensor, seen: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Squared Mahalanobis distances and log determinants of independent entries."""
        logs = 2 * self.scale.log().expand(self.scale.shape[:-1] + self.event_shape)
        if seen is None and self._one_loc and _one(self.scale) and value.dim() == 2 and value.dtype == torch.float64:
            return self._by_squares(value), logs.sum(-1)
        squares = ((value - self.loc) / self.scale).square()
        if seen is not None:
            squares = torch.where(seen, squares, torch.zeros_like(squares))
            logs = torch.where(seen, logs, torch.zeros_like(logs))
        return squares.sum(-1), logs.sum(-1)

    def _full(self, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Squared Mahalanobis distances and log determinants, by inverse Cholesky factors: one per component."""
        size = self.event_shape[0]
        identity = torch.eye(size).to(value).expand(self.scale_tril.shape)
        whitener = torch.linalg.solve_triangular(self.scale_tril, identity, upper=False)
        log_det = -2 * whitener.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        if whitener.dim() > 2 and whitener.shape[-3] > 1:  # one for each row, as when assignments are drawn
            white = (whitener @ (value - self.loc).unsqueeze(-1)).squeeze(-1)
        elif self._one_loc and value.dim() == 2 and size <= MAX_PRODUCTS and value.dtype == torch.float64:
            return self._by_products(value, whitener), log_det
        else:
            white = (value - self.loc) @ (whitener.squeeze(-3) if whitener.dim() > 2 else whitener).mT
        return white.square().sum(-1), log_det

    @property
    def _one_loc(self) -> bool:
        """Whether all rows of a component share the location: not where assignments are drawn."""
        return _one(self.loc)

    def _by_squares(self, value: torch.Tensor) -> torch.Tensor:
        """Squared distances of independent entries, as `_by_products` has them for others."""
        center = value.mean(0)
        x, loc = value - center, (self.loc if self.loc.dim() > 1 else self.loc[None]) - center
        products = torch.cat([x * x, x, torch.ones_like(x[..., :1])], -1)
        precision = (self.scale**-2).expand(torch.broadcast_shapes(self.scale.shape, loc.shape))
        linear = precision * loc
        constant = (linear * loc).sum(-1, keepdim=True)
        return torch.cat([precision, -2 * linear, constant], -1).squeeze(-2) @ products.mT

    def _by_products(self, value: torch.Tensor, whitener: torch.Tensor) -> torch.Tensor:
        """Squared distances as a matrix product: they are linear in the products of a row's entries.

        The products are made of data alone, so that a fit makes them once; value and gradient are then one product of
        (K, P) and (P, rows) matrices each. About the mean of the data, so that few digits cancel: a row at r sds of a
        component from the mean loses 2 log10(r) of sixteen.
        """
        center = value.mean(0)
        x, loc = value - center, (self.loc if self.loc.dim() > 1 else self.loc[None]) - center
        size = value.shape[-1]
        rows, columns = torch.tril_indices(size, size)
        products = torch.cat([x[..., rows] * x[..., columns], x, torch.ones_like(x[..., :1])], -1)
        precision = whitener.mT @ whitener
        linear = (precision @ loc.unsqueeze(-1)).squeeze(-1)
        twice = torch.where(rows == columns, 1.0, 2.0).to(x)
        quadratic = (precision[..., rows, columns] * twice).expand(*linear.shape[:-1], len(rows))
        constant = (linear * loc).sum(-1, keepdim=True)
        return torch.cat([quadratic, -2 * linear, constant], -1).squeeze(-2) @ products.mT

    def _full_in_parts(self, filled: torch.Tensor, seen: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Take rows with the same entries seen together; those that are missing become independent unit normals.

        With the rows and columns of the missing entries replaced by those of the identity, and the differences there by
        zero, the quadratic form and the determinant are those of the entries that are seen.
        """
        patterns, which = torch.unique(seen, dim=0, return_inverse=True)
        distances, log_dets, rows = [], [], []
        for number, pattern in enumerate(patterns):
            row = (which == number).nonzero()[:, 0]
            root, loc = _of_rows(self.scale_tril, row, 2), _of_rows(self.loc, row, 1)
            block = root @ root.mT * (pattern[:, None] & pattern) + torch.diag_embed((~pattern).to(filled))
            loc = torch.where(pattern, loc, torch.zeros_like(loc))
            part = NormalRows(loc, scale_tril=torch.linalg.cholesky(block))
            distance, log_det = part._full(filled[row])
            distances.append(distance)
            log_dets.append(log_det.expand(distance.shape))
            rows.append(row)
        order = torch.cat(rows).argsort()
        return torch.cat(distances, -1)[..., order], torch.cat(log_dets, -1)[..., order]


def _of_rows(values: torch.Tensor, row: torch.Tensor, event_dim: int) -> torch.Tensor:
    """Take rows of parameters (..., rows, *event), or all of those that are the same for every row."""
    place = values.dim() - event_dim - 1
    return values if place < 0 or values.shape[place] == 1 else values.index_select(place, row)


def _one(values: torch.Tensor) -> bool:
    """Whether values (..., rows, D), or (D,), are the same for all rows."""
    return values.dim() == 1 or values.shape[-2] == 1
