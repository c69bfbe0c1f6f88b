"""Log likelihood of each row under a trained latent-variable model, by importance sampling from its guide."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import logsumexp

from inference.diagnostics import LARGEST_LOG_RANGE, khat_limit, smooth_weights
from inference.fit import Fit
from inference.latent_rows import LatentRows, Part, Rows, latent_rows
from inference.nuts import check_count

MIN_DRAWS = 100  # fewer have no tail to judge: k-hat is read off the largest fifth


@dataclass(frozen=True, eq=False)
class RowLikelihood:
    """Importance-sampled log p(x) and ELBO of every row, in nats. Errors are Monte Carlo standard errors.

    Attributes
    ----------
    rows
        Row numbers, (N,).
    log_p, se
        Log mean weight of each row, (N,), and its standard error by the delta method. Its expectation is a lower bound
        of log p(x): it is the importance-weighted bound with ``num_samples`` draws (Burda et al. 2016).
    elbo, elbo_se
        Mean log weight, (N,).
    khat
        Pareto shape of the weights' tail, (N,); from ``khat_limit`` on, ``log_p`` is too low by more than ``se`` says.
        Minus infinity where all weights are equal, NaN where it cannot be told.
    num_samples
        Draws of each row.
    notes
        How it was run, where that is not the usual way.
    """

    rows: np.ndarray = field(repr=False)
    log_p: np.ndarray = field(repr=False)
    se: np.ndarray = field(repr=False)
    elbo: np.ndarray = field(repr=False)
    elbo_se: np.ndarray = field(repr=False)
    khat: np.ndarray = field(repr=False)
    num_samples: int
    notes: tuple[str, ...] = ()

    @property
    def total(self) -> float:
        """Sum over rows: the log likelihood of the data."""
        return float(self.log_p.sum())

    @property
    def total_se(self) -> float:
        """Monte Carlo standard error of ``total``; rows have draws of their own."""
        return float(np.sqrt(np.sum(self.se**2)))

    @property
    def mean(self) -> float:
        """Average over rows; minus this is the negative log-likelihood that papers report."""
        return float(self.log_p.mean())

    @property
    def mean_se(self) -> float:
        """Monte Carlo standard error of ``mean``."""
        return self.total_se / len(self.log_p)

    @property
    def sampling_se(self) -> float:
        """Standard error of ``mean`` as that of a sample of rows: how far another test set of this size would be."""
        return float(self.log_p.std(ddof=1) / np.sqrt(len(self.log_p))) if len(self.log_p) > 1 else float("nan")

    @property
    def khat_limit(self) -> float:
        """Limit of k-hat for so many draws, at most .7 (Vehtari et al. 2024)."""
        return khat_limit(self.num_samples)

    @property
    def poor(self) -> np.ndarray:
        """Whether a row's weights have too heavy a tail, (N,)."""
        return ~(self.khat < self.khat_limit)

    @property
    def warning(self) -> str:
        """What is wrong with the estimate, in a sentence; empty where nothing is."""
        bad = ~np.isfinite(self.log_p)
        if bad.any():
            return f"{bad.sum()} rows have no finite log p(x), row {self.rows[bad][0]} first."
        if not self.poor.any():
            return ""
        return (
            f"k-hat is above {self.khat_limit:.2f} in {self.poor.sum()} of {len(self.poor)} rows "
            f"({self.poor.mean():.0%}): a few draws carry their estimates, which are then likely too low. Take more "
            "draws, or bracket(fit) on some rows."
        )

    def __str__(self) -> str:
        lines = [
            f"log p(x) {self.mean:.3f} +- {self.mean_se:.3f} nats per row, by {self.num_samples} importance samples "
            f"for each of {len(self.log_p)} rows (another sample of rows: +- {self.sampling_se:.2f})",
            f"ELBO     {self.elbo.mean():.3f} +- {np.sqrt(np.sum(self.elbo_se**2)) / len(self.elbo):.3f} nats per row, "
            f"{self.mean - self.elbo.mean():.3f} below",
        ]
        return "\n".join([*lines, *([self.warning] if self.warning else []), *self.notes])

    def to_frame(self) -> pd.DataFrame:
        """Give a row for each row of the data."""
        names = ("log_p", "se", "elbo", "elbo_se", "khat")
        return pd.DataFrame({name: getattr(self, name) for name in names}, index=pd.Index(self.rows, name="row"))


def log_marginal(
    fit: Fit,
    data: Mapping[str, Any] | None = None,
    *,
    rows: int | Rows | None = None,
    num_samples: int = 5000,
    seed: int = 0,
) -> RowLikelihood:
    """Estimate log p(x) of every row of a trained latent-variable model by importance sampling from its guide.

    log p(x) = log E_q[p(x, z) / q(z | x)], an average over draws from the guide. Parameters are held at their trained
    values. Scales in model and guide (a weighted KL) are left out, since they are no part of p(x).

    Parameters
    ----------
    fit
        By ``SVI(guide=...)``, of a model whose latents and observations lie in one plate.
    data
        Rows to score, every array anew; by default those of the fit. New rows need an amortised guide.
    rows
        Row numbers, or how many, evenly spread; by default all.
    num_samples
        Draws for each row. Memory does not grow with rows times draws.
    seed
        Of the draws.

    Raises
    ------
    InputError
        Latents outside of the plate of the rows, a guide that does not know these rows, or whose density does not
        split into rows.

    References
    ----------
    Burda, Grosse & Salakhutdinov 2016, Importance Weighted Autoencoders, equation 8 and theorem 1.

    Examples
    --------
    >>> print(log_marginal(vae_fit, {"x": test_images}))
    """
    check_count("num_samples", num_samples, least=MIN_DRAWS)
    with latent_rows(fit, data, seed=seed) as found:
        index = found.chosen(found.num_rows if rows is None else rows)
        parts = [_block(found, block, num_samples) for block in found.blocks(index)]
        notes = tuple(found.reasons)
    log_p, se, elbo, elbo_se, khat = (np.concatenate(column) for column in zip(*parts, strict=True))
    return RowLikelihood(index, log_p, se, elbo, elbo_se, khat, num_samples, notes)


def _block(found: LatentRows, block: Part, num: int) -> tuple[np.ndarray, ...]:
    log_weight = np.concatenate([piece.log_weight for piece in found.draws(block, num)])
    log_p, se = log_mean_exp(log_weight)
    elbo_se = log_weight.std(axis=0, ddof=1) / np.sqrt(num)
    return log_p, se, log_weight.mean(axis=0), elbo_se, row_khat(log_weight)


def log_mean_exp(log_weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Log of the mean of weights over the first axis, (S, n) to (n,), and its standard error by the delta method."""
    num = len(log_weight)
    value = logsumexp(log_weight, axis=0) - np.log(num)
    with np.errstate(invalid="ignore", over="ignore"):
        relative = np.exp(log_weight - value)
    return value, relative.std(axis=0, ddof=1) / np.sqrt(num)


def row_khat(log_weight: np.ndarray) -> np.ndarray:
    """Pareto shapes (n,) of the tails of log weights (S, n), by ArviZ."""
    return np.array([_khat(column) for column in log_weight.T])


def _khat(log_weight: np.ndarray) -> float:
    if not np.isfinite(log_weight).all():
        return np.nan
    # An exact guide leaves rounding: of the density's sums in float32, some 1e-4 nats, which has no tail.
    if np.ptp(log_weight) < 1e-2:
        return -np.inf
    if np.ptp(log_weight) > LARGEST_LOG_RANGE:
        return np.inf
    return smooth_weights(log_weight).khat
