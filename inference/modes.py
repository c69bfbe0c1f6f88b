"""Looking for modes that a fit has no draws in."""

from dataclasses import dataclass

import numpy as np

from inference.autovi import climb_to_mode
from inference.density import Density
from inference.fit import Fit
from inference.gaussian import laplace

# Two points belong to one mode unless the log density dips by more than this many nats on the line between them: less
# than a nat is a ripple that no sampler or optimiser notices.
MIN_DIP = 1.0
LINE_POINTS = 20
# Other modes count when their Laplace mass is at least this share of the mass where the fit is.
MIN_SHARE = 0.01
# An end point is a mode when the gradient, in units of the local standard deviations, has all but vanished.
SETTLED_GRADIENT = 1e-2


@dataclass(frozen=True)
class ModeSearch:
    """What a search from dispersed starts found.

    Attributes
    ----------
    num_starts, num_settled
        Starts, and those that ended in a proper mode (others ran off, as in the neck of a funnel).
    num_elsewhere
        Settled starts in a mode that is cut off from the fit by a dip, with at least 1 % of its mass.
    message
        One sentence.
    """

    num_starts: int
    num_settled: int
    num_elsewhere: int
    message: str


def search_modes(fit: Fit, *, num_starts: int = 8, seed: int = 0) -> ModeSearch:
    """Climb from dispersed starts and see whether there are modes where the fit has no draws.

    Starts are uniform on (-2, 2) of the unconstrained space. A mode counts if the log density dips between it and the
    fit's own mode, and if its Laplace mass, exp(log p + D/2 log 2 pi - 1/2 log det H), is not negligible beside the
    fit's. A narrow mode far from every start is missed, as by every search from finitely many starts.

    Parameters
    ----------
    fit
        A fit with a flat density (``fit.state["unconstrained"]``).
    num_starts
        Number of starts.
    seed
        Seed of the starts.
    """
    with fit.restored() as sites:
        density = Density(sites, hold_params=True)
        draws = fit.state["unconstrained"].reshape(-1, density.dim)
        home = climb_to_mode(density, draws.mean(axis=0))
        log_mass = _log_mass(density, home)
        if log_mass is None:  # the climb from the fit itself runs off: compare with what the draws carry instead
            home = draws[np.argmax(density.log_density(draws))]
            log_mass = _log_mass_of_draws(density, draws)
        points = density.starts(num_starts, generator=np.random.default_rng(seed))
        ends = [climb_to_mode(density, point) for point in points]
        masses = [_log_mass(density, end) for end in ends]
        elsewhere = [
            end
            for end, mass in zip(ends, masses, strict=True)
            if mass is not None and mass > log_mass + np.log(MIN_SHARE) and _dips(density, home, end)
        ]
    settled = sum(mass is not None for mass in masses)
    if elsewhere:
        message = f"{len(elsewhere)} of {num_starts} dispersed starts ended in a mode where the fit has no draws."
    else:
        message = f"{settled} of {num_starts} dispersed starts settled, none in a mode away from the fit."
    return ModeSearch(num_starts, settled, len(elsewhere), message)


def _log_mass(density: Density, mode: np.ndarray) -> float | None:
    """Laplace's log mass of a mode, or None where it is no proper mode."""
    q = laplace(density.grad, mode, full_rank=density.dim <= 250)
    if q is None:
        return None
    value, gradient = density.value_and_grad(mode)
    scaled = gradient @ q.scale if q.full_rank else gradient * q.scale
    if not np.isfinite(value) or np.abs(scaled).max() > SETTLED_GRADIENT:
        return None
    return value + 0.5 * density.dim * np.log(2 * np.pi) + q.log_det


def _log_mass_of_draws(density: Density, draws: np.ndarray) -> float:
    """Log mass of a Gaussian with the draws' covariance, through the mean log density of the draws."""
    spread = np.cov(draws, rowvar=False).reshape(density.dim, density.dim)
    _, log_det = np.linalg.slogdet(spread)
    entropy = 0.5 * density.dim * (1 + np.log(2 * np.pi)) + 0.5 * log_det
    return float(density.log_density(draws[:: max(1, len(draws) // 500)]).mean() + entropy)


def _dips(density: Density, one: np.ndarray, other: np.ndarray) -> bool:
    """Whether the log density dips on the line between two points."""
    share = np.linspace(0, 1, LINE_POINTS)[:, None]
    values = density.log_density((1 - share) * one + share * other)
    return bool(np.min(values) < min(values[0], values[-1]) - MIN_DIP or not np.isfinite(values).all())
