"""What the mixtures ask of their data, and what their priors learn from it."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch


class Moments(NamedTuple):
    """Mean and covariance of the data, from which weakly informative priors take their location and scale.

    Attributes
    ----------
    mean, sd
        One per column, shape (D,), or () for data on the line.
    factor
        Lower Cholesky factor of the covariance, (D, D), or (1, 1) for data on the line.
    """

    mean: torch.Tensor
    sd: torch.Tensor
    factor: torch.Tensor


def checking() -> bool:
    """Whether values of the data may be looked at: a recording that has read them holds for them alone."""
    return torch.distributions.Distribution._validate_args


def check_mixture(x: Any, K: int, *, dims: tuple[int, ...] = (1, 2), flat: bool = False) -> None:
    """Refuse what no mixture can be fitted to.

    Parameters
    ----------
    x
        Rows, or rows and columns; NaN marks a missing entry.
    K
        Number of components.
    dims
        How many dims ``x`` may have.
    flat
        Whether there are no priors, so that each component needs a row; with priors new rows may be few.

    Raises
    ------
    ValueError
        Another shape, no rows, or without priors more components than rows.
    """
    shapes = " or ".join({1: "(rows,)", 2: "(rows, columns)"}[dim] for dim in dims)
    if not isinstance(x, torch.Tensor) or x.dim() not in dims or 0 in x.shape:
        got = tuple(x.shape) if isinstance(x, torch.Tensor) else type(x).__name__
        raise ValueError(f"x: expected shape {shapes} with at least one row and column, got {got}.")
    if isinstance(K, bool) or not isinstance(K, int) or K < 1:
        raise ValueError(f"K: expected a number of components from 1, got {K!r}.")
    if flat and len(x) < K:
        raise ValueError(f"K: {K} components cannot be told from {len(x)} rows; lower K or add rows.")


def check_counts(x: torch.Tensor, *, binary: bool = False) -> None:
    """Refuse entries that are neither NaN nor a count (or, with ``binary``, neither 0 nor 1).

    Raises
    ------
    ValueError
        Such an entry, with its place.
    """
    if not checking():
        return
    good = x.isnan() | (((x == 0) | (x == 1)) if binary else ((x >= 0) & (x == x.floor())))
    if not bool(good.all()):
        place = (~good).nonzero()[0].tolist()
        expected = "0 or 1" if binary else "whole numbers from 0"
        raise ValueError(
            f"x: expected {expected}, got {x[tuple(place)].item():g} at index {tuple(place)}; "
            f"{int((~good).sum())} such entries."
        )


def moments(
    x: torch.Tensor, data_mean: torch.Tensor | None, data_cov: torch.Tensor | None, *, correlated: bool
) -> Moments:
    """Give the moments that are known, or those of ``x`` where they are not.

    Missing entries are left out of means and standard deviations; for correlations they are put at the mean.

    Parameters
    ----------
    x
        (rows,) or (rows, D).
    data_mean, data_cov
        (D,) and (D, D), or numbers for data on the line; None: those of ``x``.
    correlated
        Whether the covariance must be one of full rank, or its diagonal is enough.

    Raises
    ------
    ValueError
        A constant column, one without a number in it, or columns of which one follows from the others where that
        matters.
    """
    if data_mean is None or data_cov is None:
        table = x.reshape(len(x), -1)
        seen = ~table.isnan()
        number = seen.sum(0)
        if checking() and bool((number == 0).any()):
            raise ValueError(f"x: {_columns(number == 0)} has no number in it; leave it out.")
        mean = torch.where(seen, table, torch.zeros_like(table)).sum(0) / number
        centred = torch.where(seen, table - mean, torch.zeros_like(table))
        variance = centred.square().sum(0) / number
        # rounding: the variance of a column of one number may be its square times 1e-32
        constant = variance <= 1e-24 * (mean.square() + variance)
        if checking() and bool(constant.any()):
            raise ValueError(f"x: {_columns(constant)} is constant (or has one number only); leave it out.")
        white = centred / variance.sqrt()
        correlation = white.mT @ white / len(x)
        correlation = correlation / correlation.diagonal().sqrt() / correlation.diagonal().sqrt()[:, None]
        covariance = correlation * variance.sqrt() * variance.sqrt()[:, None]
        data_mean = mean.reshape(x.shape[1:]) if data_mean is None else data_mean
        data_cov = covariance if data_cov is None else data_cov
    elif torch.as_tensor(data_mean).numel() not in (1, x[0].numel()):
        known = torch.as_tensor(data_mean).numel()
        raise ValueError(
            f"x: expected {known} columns, as in the data that its priors are made of, got {x[0].numel()}."
        )
    mean = torch.as_tensor(data_mean).to(x).expand(x.shape[1:])
    size = mean.numel()
    covariance = torch.as_tensor(data_cov).to(x).reshape(size, size)
    sd = covariance.diagonal().sqrt()
    if not correlated:
        return Moments(mean, sd.reshape(mean.shape), torch.diag(sd))
    factor, failed = torch.linalg.cholesky_ex(covariance / sd / sd[:, None])
    # a column of which less than 1e-12 of the variance is its own
    if checking() and (bool(failed) or bool((factor.diagonal() < 1e-6).any())):
        raise ValueError(
            "x: its covariance is singular (a column follows from the others, or there are fewer rows than columns); "
            "leave a column out, or use covariance='diagonal'."
        )
    return Moments(mean, sd.reshape(mean.shape), factor * sd[:, None])


def settings_from(data: Mapping[str, Any]) -> dict[str, Any]:
    """Give the moments of a mixture's data as its settings ``data_mean`` and ``data_cov``, which keep its priors.

    With them the model takes rows of any number: a single new one has no variance of its own.
    """
    x = data["x"]
    correlated = x.dim() == 2 and data.get("covariance", "full") in ("full", "tied")
    known = moments(x, data.get("data_mean"), data.get("data_cov"), correlated=correlated)
    covariance = known.factor @ known.factor.mT
    return {"data_mean": known.mean, "data_cov": covariance if x.dim() == 2 else covariance.reshape(())}


def _columns(flags: torch.Tensor) -> str:
    return f"column {flags.reshape(-1).nonzero()[0].item()}" if flags.dim() else "its only column"
