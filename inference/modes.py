"""Looking for modes that a fit has no draws in."""

from dataclasses import dataclass

import numpy as np

from inference.density import Density
from inference.fit import Fit
from inference.restored_density import restored_density
from inference.starts import climb_to_maximum, mode_at

# Two points belong to one mode unless the log density dips by more than this many nats on the line between them: less
# than a nat is a ripple that no sampler or optimiser notices.
MIN_DIP = 1.0
LINE_POINTS = 20
# Other modes count when their Laplace mass is at least this share of the mass where the fit is.
MIN_SHARE = 0.01
# A fit covers a mode if it has there at least this part of the draws that the mode's mass asks for: a tenth allows for
# a rough mass, and is more than the stray draws of a Gaussian that belongs to another mode.
COVERED = 0.1
# Gradients of a search, one at a time: eight climbs of some hundred steps.
TYPICAL_GRADIENTS = 1000


@dataclass(frozen=True)
class ModeSearch:
    """What a search from dispersed starts found.

    Attributes
    ----------
    num_starts, num_settled
        Starts, and those that ended in a proper mode (others ran off, as in the neck of a funnel).
    num_elsewhere
        Settled starts in a mode that is cut off from the fit's by a dip, with at least 1 % of its mass, and in which
        the fit has next to no draws.
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

    Raises
    ------
    InputError
        The model has no flat density, or the fit was loaded without its model.
    """
    with restored_density(fit, num_gradients=TYPICAL_GRADIENTS) as (density, _):
        draws = fit.state["unconstrained"].reshape(-1, density.dim)
        home = climb_to_maximum(density, draws.mean(axis=0))[0]
        mode = mode_at(density, home)
        if mode is None:  # the climb from the fit itself runs off: compare with what the draws carry instead
            home = draws[np.argmax(density.log_density(draws))]
            home_mass = _log_mass_of_draws(density, draws)
        else:
            home_mass = mode.log_mass
        points = density.starts(num_starts, generator=np.random.default_rng(seed))
        ends = [climb_to_maximum(density, point)[0] for point in points]
        settled = [(end, mode.log_mass) for end in ends if (mode := mode_at(density, end)) is not None]
        away = [
            (end, mass) for end, mass in settled if mass > home_mass + np.log(MIN_SHARE) and _dips(density, home, end)
        ]
        elsewhere = _uncovered(density, away, draws, home_mass)
    if elsewhere:
        message = f"{elsewhere} of {num_starts} dispersed starts ended in a mode where the fit has no draws."
    else:
        message = f"{len(settled)} of {num_starts} dispersed starts settled, none in a mode away from the fit."
    return ModeSearch(num_starts, len(settled), elsewhere, message)


def _uncovered(density: Density, away: list[tuple[np.ndarray, float]], draws: np.ndarray, home_mass: float) -> int:
    """Count the ends that lie in modes without their part of the draws (a sampler may have visited several modes).

    Of two equal modes each has half the draws. Ordered by distance from a mode, the draw at a tenth of what the mode
    should have leads into it if the fit covers it.
    """
    spread = draws.std(axis=0)
    spread[spread == 0] = 1.0  # a point guide
    verdicts: list[tuple[np.ndarray, bool]] = []
    count = 0
    for end, mass in away:
        known = next((covered for mode, covered in verdicts if not _dips(density, mode, end)), None)
        if known is None:
            rank = int(COVERED * 0.5 * min(1.0, np.exp(mass - home_mass)) * len(draws))
            distances = (((draws - end) / spread) ** 2).sum(axis=1)
            near = draws[np.argsort(distances)[rank]]
            known = not _dips(density, climb_to_maximum(density, near)[0], end)
            verdicts.append((end, known))
        count += not known
    return count


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
