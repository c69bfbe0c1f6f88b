"""Comparison of draws with a truth, in units of Monte Carlo error."""

import numpy as np
from arviz_stats.base import array_stats

# Over a few hundred comparisons per run, 4.5 standard errors make a false alarm less likely than one in a thousand.
SIGMAS = 4.5


def standard_errors(draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Monte Carlo standard errors of mean and sd of draws (chain, draw, ...).

    That of the sd by the effective number of squares: ArviZ's own takes the number for the mean, which in antithetic
    chains is several times the number of draws, and is half of what it should be.
    """
    axes = {"chain_axis": 0, "draw_axis": 1}
    mean_error = array_stats.mcse(draws, **axes, method="mean")
    ess = array_stats.ess(draws, **axes, method="sd")
    sd = draws.std((0, 1))
    kurtosis = ((draws - draws.mean((0, 1))) ** 4).mean((0, 1)) / sd**4
    return mean_error, sd * np.sqrt((kurtosis - 1) / (4 * ess))


def assert_moments(draws: np.ndarray, mean: np.ndarray, sd: np.ndarray, *, bias: float = 0.0) -> None:
    """Demand a mean and sd of draws (chain, draw, ...), within Monte Carlo error plus ``bias`` standard deviations."""
    mean, sd = np.asarray(mean), np.asarray(sd)
    mean_error, sd_error = standard_errors(draws)
    assert np.all(np.isfinite(mean_error))
    # A tolerance as wide as half a standard deviation would let anything pass.
    assert np.all(SIGMAS * mean_error < 0.5 * sd), "too few effective draws for this check to mean anything"
    np.testing.assert_array_less(np.abs(draws.mean((0, 1)) - mean), SIGMAS * mean_error + bias * sd)
    np.testing.assert_array_less(np.abs(draws.std((0, 1)) - sd), SIGMAS * sd_error + bias * sd)
