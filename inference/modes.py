"""Looking for modes that a fit has no draws in."""

from dataclasses import dataclass

import numpy as np
from scipy.stats import chi2

from inference.density import Density
from inference.exchangeable import exchangeable
from inference.fit import Fit
from inference.gaussian import MAX_FULL_RANK
from inference.label_copies import nearest_copies
from inference.restored_density import restored_density
from inference.short_chains import whitening
from inference.starts import (
    Climbed,
    Mode,
    all_starts,
    apart,
    climb_again,
    climb_to_maximum,
    dips,
    find_modes,
    mode_at,
    reached_once,
)

# Other modes count when their Laplace mass is at least this share of the mass where the fit is.
MIN_SHARE = 0.01
# A fit covers a mode if it has there at least this part of the draws that the mode's mass asks for: a tenth allows for
# a rough mass, and is more than the stray draws of a Gaussian that belongs to another mode.
COVERED = 0.1
NUM_STARTS = 8
# Other starts are dispersed about the fit itself, in pairs to either side of it, so many of its sds away. Where the fit
# sits in one mode, another at D of its sds is uphill from half of space: one of a pair at r sds gets there with
# probability 2 Phi(-D / 2 r) if modes are equally wide, in any number of dimensions: six pairs miss a mode at 7 sds
# once in 700, one at 20 sds once in eight.
REACHES = (4.0, 8.0, 16.0, 4.0, 8.0, 16.0)
# A narrow mode is uphill from little of space. Values are cheaper than climbs, so of so many more points at each
# distance those that stand out most begin climbs, too. Above a Cauchy distribution about the draws neither their own
# mode nor heavy tails stand out, but a needle does only near its tip; above a Gaussian all that is uphill from another
# mode does, and so do heavy tails. With the former alone one search of five missed a needle at 6 sds, a third as wide
# as the fit; with both one of thirty.
CLOUD, NUM_HIGHEST = 350, 2
# A draw is in a mode if it is as near as all but one in a thousand draws of Laplace's Gaussian there.
WITHIN = 0.999
# Draws of which the highest is taken for where the fit is.
SOME_DRAWS = 200
# Gradients of a search, one at a time: some thirty climbs, most of which are cut short.
TYPICAL_GRADIENTS = 2000


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
    reached_once
        Whether the model has labels, and but one start of several ended in the heaviest mode.
    """

    num_starts: int
    num_settled: int
    num_elsewhere: int
    message: str
    reached_once: bool = False


def modes_seen(fit: Fit) -> ModeSearch:
    """Give what the engine has seen of modes, if it has looked from as many starts, or search."""
    seen = fit.state.get("mode_search")
    return ModeSearch(**seen) if seen and seen["num_starts"] >= NUM_STARTS else search_modes(fit)


def search_modes(fit: Fit, *, num_starts: int = NUM_STARTS, seed: int = 0) -> ModeSearch:
    """Climb from dispersed starts and see whether there are modes where the fit has no draws.

    Starts are uniform on (-2, 2) of the unconstrained space, where the model proposes some (`ppl_models.Model.start`),
    and besides (where that has at most `MAX_FULL_RANK`
    dimensions) dispersed about the fit, at several of its sds to either side: a posterior need not lie near zero, nor
    have a scale near one. A mode counts if the log density dips between it and the fit's own mode, and if its Laplace
    mass, exp(log p + D/2 log 2 pi - 1/2 log det H), is not negligible beside the fit's. Modes that are one another with
    exchangeable components relabelled are one. A narrow mode far from every start is missed, as by every search from
    finitely many starts.

    Parameters
    ----------
    fit
        A fit with a flat density (``fit.state["unconstrained"]``).
    num_starts
        Number of starts on (-2, 2), at least one.
    seed
        Seed of the starts.

    Raises
    ------
    InputError
        The model has no flat density, or the fit was loaded without its model.
    """
    with restored_density(fit, num_gradients=TYPICAL_GRADIENTS) as (density, _):
        draws = fit.state["unconstrained"].reshape(-1, density.dim)
        rng = np.random.default_rng(seed)
        near = climb_again(density, find_modes(density, all_starts(density, num_starts, rng)), rng)
        seen = seen_from(density, draws, near)
        return seen if seen.num_elsewhere else seen_from(density, draws, look_about(density, draws, near, rng))


def look_about(density: Density, draws: np.ndarray, climbed: Climbed, rng: np.random.Generator) -> Climbed:
    """Add what climbs from about the draws (n, D) of a fit find to what others have found."""
    if density.dim > MAX_FULL_RANK or (climbed.num_lost and not climbed.modes):  # a funnel: as long and as vain
        return climbed
    return find_modes(density, starts_about(density, draws, rng), known=climbed)


def starts_about(density: Density, draws: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Give points about draws (n, D): pairs to either side, several sds away, and those of a cloud that stand out."""
    about, dim = whitening(draws), density.dim
    z = rng.standard_normal((len(REACHES), dim)) * np.array(REACHES)[:, None]
    pairs = _finite(density, about.points(np.concatenate([z, -z])))
    if density.backend == "eager":  # Pyro, point by point
        return pairs
    distances = sorted(set(REACHES))
    cloud = rng.standard_normal((len(distances), CLOUD, dim)) * np.array(distances)[:, None, None]
    values, squares = density.log_density(about.points(cloud.reshape(-1, dim))), (cloud**2).sum(axis=-1)
    values = np.where(np.isfinite(values), values, -np.inf).reshape(squares.shape)
    heights = np.stack([values + 0.5 * (1 + dim) * np.log1p(squares), values + 0.5 * squares])
    highest = np.argsort(-heights, axis=-1)[:, :, :NUM_HIGHEST]  # (criterion, distance, of the cloud)
    chosen = np.concatenate([cloud[i, np.unique(highest[:, i])] for i in range(len(distances))])
    return np.concatenate([_finite(density, about.points(chosen)), pairs])


def _finite(density: Density, points: np.ndarray) -> np.ndarray:
    values, gradients = density.grad(points)
    return points[np.isfinite(values) & np.isfinite(gradients).all(axis=1)]


def seen_from(density: Density, draws: np.ndarray, climbed: Climbed) -> ModeSearch:
    """See which modes that climbs have found are without draws (n, D) of a fit."""
    some = draws[:: max(1, len(draws) // SOME_DRAWS)]
    best = some[np.argmax(density.log_density(some))]
    home = next((mode for mode in climbed.modes if not apart(density, mode, best)), None)
    if home is None:
        home = mode_at(density, climb_to_maximum(density, best)[0])
    # Where the climb from the draws runs off, as in a funnel, compare with what the draws carry instead.
    home_mass = home.log_mass if home else _log_mass_of_draws(density, draws)
    where = home.laplace.loc if home else best
    elsewhere = sum(
        count
        for mode, count in zip(climbed.modes, climbed.counts, strict=True)
        if mode is not home
        and mode.log_mass > home_mass + np.log(MIN_SHARE)
        and apart(density, mode, where)
        and not _covered(density, draws, mode, home_mass)
    )
    settled = sum(climbed.counts)
    num = settled + climbed.num_lost
    if elsewhere:
        message = f"{elsewhere} of {num} dispersed starts ended in a mode where the fit has no draws."
    else:
        message = f"{settled} of {num} dispersed starts settled, none in a mode away from the fit."
    return ModeSearch(num, settled, elsewhere, message, reached_once(density, climbed))


def _covered(density: Density, draws: np.ndarray, mode: Mode, home_mass: float) -> bool:
    """Whether a mode away from home has its part of the draws (a sampler may have visited several modes).

    Of two equal modes each has half the draws. Ordered by distance from a mode, the draw at a tenth of what the mode
    should have lies in it if the fit covers it. To lead into it is not enough: draws of a wide fit lie on the slopes
    of modes that they do not reach.
    """
    draws = nearest_copies(density, mode.laplace, draws)
    spread = draws.std(axis=0)
    spread[spread == 0] = 1.0  # a point guide
    end = mode.laplace.loc
    rank = int(COVERED * 0.5 * min(1.0, np.exp(mode.log_mass - home_mass)) * len(draws))
    distances = (mode.laplace.whiten(draws) ** 2).sum(axis=1)
    # In units of the mode where a component may be all but empty elsewhere, and its parameters as wide as their prior.
    order = np.argsort(distances) if exchangeable(density) else np.argsort((((draws - end) / spread) ** 2).sum(axis=1))
    near = draws[order[rank]]
    inside = distances[order[rank]] < chi2.ppf(WITHIN, density.dim)
    return inside and (not dips(density, near, end) or not dips(density, climb_to_maximum(density, near)[0], end))


def _log_mass_of_draws(density: Density, draws: np.ndarray) -> float:
    """Log mass of a Gaussian with the draws' covariance, through the mean log density of the draws."""
    spread = np.cov(draws, rowvar=False).reshape(density.dim, density.dim)
    _, log_det = np.linalg.slogdet(spread)
    entropy = 0.5 * density.dim * (1 + np.log(2 * np.pi)) + 0.5 * log_det
    return float(density.log_density(draws[:: max(1, len(draws) // SOME_DRAWS)]).mean() + entropy)
