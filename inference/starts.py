"""Where an optimisation or a chain begins."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np
from scipy.optimize import minimize

from inference.cluster_starts import labels_of, proposed_starts
from inference.dear_climb import climb_dear, uphill
from inference.density import Density
from inference.exchangeable import exchangeable
from inference.gaussian import MAX_FULL_RANK, Gaussian, curvature, elbo, laplace
from inference.graph import python_seconds
from inference.label_copies import nearest_copies
from inference.progress import bar

# The ascent to a mode that offers a Laplace start is short: a mode may lie at infinity (funnels).
MODE_STEPS, MODE_RESTARTS = 100, 4
LEVEL = 0.1  # a gradient not worth another search: its steps would gain a hundredth of a nat, if scales are near one
# After the climb, Newton's steps: near the maximum each doubles the digits that are right. Where the climb was cut
# short (a hundred steps are few when sds differ by thousands) they do most of the work.
NEWTON_STEPS = 30
FEW_STEPS = 3  # where each of the Hessian's gradients is a run of Pyro's
# A Hessian whose gradients take torch longer (compiled code is some ten times faster) is dear: Newton's steps do
# without. It is counted, not timed, so that equal seeds take equal ways.
DEAR_SECONDS = 5.0
DEAR_DRAWS = 16  # there, to choose a start by: where data are so many, bounds differ by far more than their noise
# Curvatures below this share of the largest are rounding.
FLAT = 1e-14
AT_EDGE = 1e-8  # relative change of the values, for a step of one of the unconstrained coordinates
# Slope, in nats per local sd, at which the density is within 1e-14 nats of its maximum.
EXACT = 1e-7
# Slope up to which an end counts as a maximum: within 1e-8 nats; rounding of a large sum can leave as much.
SETTLED = 1e-4
# An end point is a mode when the gradient, in units of the local standard deviations, has all but vanished.
SETTLED_GRADIENT = 1e-2
NUM_PROPOSED = 4  # of a model: from random points most climbs in a large mixture end in a poor mode
# Climbs of a model with labels end at many heights. Where only one has reached the highest, so many more begin at
# clusterings, at most, until another one has.
MAX_MORE = 12
# Short steps uphill before it is asked whether a climb is on the slope of a known mode. They are slow where another
# mode has other scales, so only what is then at most so many nats, and one for each dimension, below the mode belongs
# to it: from far down the way to any maximum leads up, and a second mode was missed by 31 of 32 climbs.
ASCENT_STEPS, NEAR = 40, 10.0
MOST = 0.5
ARRIVED = 0.5  # nats: half of the dip that parts two modes, so that what is as high and not cut off is the same mode
# Where a gradient is dear, a climb that has come no nearer than so many nats for each dimension to the height of a
# known mode is not followed to its end: to outweigh that a mode would have to be exp(10) times as wide in all of them.
LOW = 10.0
# Dimensions of Laplace's Gaussian there: it takes two gradients for each. It is moved by at most so many local sds.
MAX_DEAR, STEP = 1000, 1.0
# Entries of a gradient are cut to this size, whose square is a number: at the edge of a support they can be larger.
STEEPEST = 1e150
# Two points belong to one mode unless the log density dips by more than this many nats on the line between them: less
# than a nat is a ripple that no sampler or optimiser notices.
MIN_DIP = 1.0
LINE_POINTS = 20


def best_gaussian(density: Density, point: np.ndarray, z: np.ndarray, *, full_rank: bool) -> Gaussian:
    """Choose, by the bound on base draws ``z`` (n, D), between Gaussians at a point (D,) and above it.

    A Laplace start alone can be catastrophic (a mode at the neck of a funnel), so it has to win. Where its curvatures
    are dear, or where there are none (a mixture has flat directions, and the climb may not have arrived), a narrow
    Gaussian stands in for it.
    """
    eye = np.eye(len(point)) if full_rank else np.ones(len(point))
    candidates = [Gaussian(point, scale * eye) for scale in (1.0, 0.1)]
    end, dear = climb_to_mode(density, point), is_dear(density)
    at_mode = None if dear else laplace(density.grad, end, full_rank=full_rank)
    candidates += [Gaussian(end, scale * eye) for scale in (0.1, 0.01)] if at_mode is None else [at_mode]
    return best_of(density.log_density, candidates, z[: DEAR_DRAWS if dear else None])


def is_dear(density: Density) -> bool:
    """Whether a Hessian takes long; one by torch, of which compiled code may take a tenth."""
    return density.graph is not None and 2 * density.dim * python_seconds(density.graph) > DEAR_SECONDS


def best_of(log_density: Callable[[np.ndarray], np.ndarray], candidates: Sequence[Gaussian], z: np.ndarray) -> Gaussian:
    """Choose by the bound on base draws ``z`` (n, D)."""
    return max(candidates, key=lambda q: elbo(log_density, q, z)[0])


def climb_to_mode(density: Density, point: np.ndarray) -> np.ndarray:
    """Follow L-BFGS uphill from a point (D,), for at most `MODE_STEPS` steps, to a point of higher log density."""

    def loss(x: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = density.value_and_grad(x)
        if not (np.isfinite(value) and np.isfinite(gradient).all()):
            return 1e30, np.zeros_like(x)
        return -value, -gradient

    steps = MODE_STEPS
    for _ in range(MODE_RESTARTS):  # a line that leaves the support ends the search, however steep it is there
        found = minimize(loss, point, jac=True, method="L-BFGS-B", options={"maxiter": steps})
        point, steps = found.x, steps - found.nit
        if steps <= 0 or np.abs(found.jac).max() < LEVEL:
            break
    return point


def climb_to_maximum(density: Density, point: np.ndarray) -> tuple[np.ndarray, bool]:
    """Climb from a point (D,) by L-BFGS, then by Newton's method, without a Hessian where that is too large or dear.

    Returns
    -------
    end : ndarray
        (D,).
    settled : bool
        Whether it is a maximum.
    """
    if density.dim > MAX_FULL_RANK:
        return climb_dear(density, point, settled=SETTLED_GRADIENT)
    if is_dear(density):
        end, settled = climb_dear(density, point, settled=SETTLED_GRADIENT)
        return (end, True) if settled else _polished(density, end)
    return _polished(density, climb_to_mode(density, point))


def _polished(density: Density, point: np.ndarray) -> tuple[np.ndarray, bool]:
    """Go on by Newton's method; whether the end is a maximum.

    Where the density is not concave, its curvatures count by their size (Dauphin et al. 2014, saddle-free Newton), so
    that every step goes uphill.
    """
    slope, proper = np.inf, False
    for _ in range(NEWTON_STEPS if density.backend != "eager" else FEW_STEPS):
        value, gradient = density.value_and_grad(point)
        precision = curvature(density.grad, point)
        if not (np.isfinite(precision).all() and np.isfinite(value)):
            return point, False
        curvatures, axes = np.linalg.eigh(precision)
        proper = bool(curvatures[0] > 0) or _at_edge(density, point, curvatures, axes)
        along = axes.T @ gradient
        sizes = np.maximum(np.abs(curvatures), FLAT * np.abs(curvatures).max())
        slope = np.sqrt((along**2 / sizes).max())
        if slope < EXACT and proper:
            break
        ahead = uphill(density, point, axes @ (along / sizes), value)
        if ahead is None:  # rounding
            break
        point = ahead
    return point, proper and bool(slope < SETTLED)


def _at_edge(density: Density, point: np.ndarray, curvatures: np.ndarray, axes: np.ndarray) -> bool:
    """Whether a density of the constrained values is flat only where these are at an edge of their support.

    A transition that no datum shows has probability zero at the maximum, where a flat prior lets it: its logit may be
    anything far below zero. Flat directions along which the values do move have no maximum.
    """
    flat = np.abs(curvatures) <= FLAT * np.abs(curvatures).max()
    if density.jacobian or (curvatures[~flat] < 0).any():
        return False
    moves = np.concatenate([point + axes[:, flat].T, point - axes[:, flat].T, point[None]])
    for value in density.constrain(moves).values():
        if not (np.abs(value - value[-1]) <= AT_EDGE * (1 + np.abs(value[-1]))).all():
            return False
    return True


@dataclass(frozen=True)
class Mode:
    """A proper mode: Laplace's Gaussian there, and the log of its mass, exp(log p + D/2 log 2 pi - 1/2 log det H)."""

    laplace: Gaussian
    log_mass: float

    @property
    def log_density(self) -> float:
        """Log density at its top."""
        return self.log_mass - 0.5 * len(self.laplace.loc) * np.log(2 * np.pi) - self.laplace.log_det


def mode_at(density: Density, point: np.ndarray) -> Mode | None:
    """Describe the mode at a point (D,); None where there is no proper mode."""
    q = laplace(density.grad, point, full_rank=density.dim <= (MAX_DEAR if density.is_dear else MAX_FULL_RANK))
    if q is None:
        return None
    value, gradient = density.value_and_grad(point)
    scaled = gradient @ q.scale if q.full_rank else gradient * q.scale
    if density.is_dear and q.full_rank and np.linalg.norm(scaled) < STEP:
        # The climb did without a Hessian, and guessed how far it is. With one Newton's next step costs one gradient.
        q = Gaussian(point + q.scale @ scaled, q.scale)
        value, gradient = density.value_and_grad(q.loc)
        scaled = gradient @ q.scale
    if not np.isfinite(value) or np.abs(scaled).max() > SETTLED_GRADIENT:
        return None
    return Mode(q, float(value + 0.5 * density.dim * np.log(2 * np.pi) + q.log_det))


@dataclass(frozen=True, eq=False)
class Climbed:
    """Where climbs from dispersed starts ended.

    Attributes
    ----------
    modes
        Proper modes, no two of them without a dip between them, the largest mass first.
    counts
        How many starts ended in each.
    num_lost
        Starts that ended in no proper mode: ran off along a funnel, or stopped where it is flat.
    """

    modes: tuple[Mode, ...]
    counts: tuple[int, ...]
    num_lost: int


def find_modes(density: Density, points: np.ndarray, *, known: Climbed | None = None) -> Climbed:
    """Climb from points (n, D).

    Once a mode is known the others go up together for some short steps, and those that are then near it, with no dip
    between, are not followed further. With one mode that saves nearly all of the work. A mode that is a known one with
    its components relabelled counts as that: K! equal modes are one. Where there are such components every point climbs
    by itself: of mixtures, most starts lead to poor modes (two components on one cluster, one on two), and steps that
    suit a poor mode lead others to it, too.

    Parameters
    ----------
    known
        What has been found before; it is part of what comes back.
    """
    known = known or Climbed((), (), 0)
    modes, counts, lost = list(known.modes), list(known.counts), known.num_lost
    together = not exchangeable(density)
    for _ in bar(count(), desc="looking for modes"):
        if modes and len(points) and together:
            points = _ascend(density, points, modes[0])
            slopes = _on_slopes(density, modes, points, within=NEAR + density.dim)
            for known_mode in (slope for slope in slopes if slope is not None):
                counts[known_mode] += 1
            others = np.array([slope is None for slope in slopes])
            # Where short steps lead few to a known mode, climbs one by one are as cheap.
            together = others.mean() < MOST
            points = points[others]
        if not len(points):
            break
        point, points = points[0], points[1:]
        if modes and exchangeable(density):
            point = nearest_copies(density, modes[0].laplace, climb_to_mode(density, point)[None])[0]
            slope = _on_slope(density, modes, point, within=NEAR + density.dim)
            if slope is not None:
                counts[slope] += 1
                continue
            if _is_low(density, modes, point):
                lost += 1
                continue
        point = climb_to_maximum(density, point)[0]
        mode = None if _is_low(density, modes, point) else mode_at(density, point)
        slope = None if mode is None else _on_slope(density, modes, mode.laplace.loc)
        if mode is None:
            lost += 1
        elif slope is None:
            modes.append(mode)
            counts.append(1)
        else:
            counts[slope] += 1
    order = sorted(range(len(modes)), key=lambda i: -modes[i].log_mass)
    return Climbed(tuple(modes[i] for i in order), tuple(counts[i] for i in order), lost)


def _is_low(density: Density, modes: Sequence[Mode], point: np.ndarray) -> bool:
    """Whether a point (D,) is so far below known modes that it is not worth a Hessian where a gradient is dear."""
    if not (density.is_dear and modes):
        return False
    top = max(mode.log_density for mode in modes)
    return not density.log_density(point[None])[0] > top - LOW * density.dim


def _ascend(density: Density, points: np.ndarray, mode: Mode) -> np.ndarray:
    """Take short steps uphill from points (n, D), all at once, in coordinates that whiten a mode's Gaussian.

    A step is at most one sd, or a fifth of the way to the Gaussian's centre, so that no mode is jumped over. A point
    that has arrived, as high as the mode but for `ARRIVED`, stays where it is.
    """
    q, top = mode.laplace, mode.log_density
    white = q.whiten(points)
    values, gradients = density.grad(points)
    for _ in range(ASCENT_STEPS):
        going = np.flatnonzero(~(np.abs(values - top) < ARRIVED))
        if not len(going):
            break
        at, slope = white[going], gradients[going]
        uphill = np.nan_to_num(slope @ q.scale if q.full_rank else slope * q.scale)
        uphill = np.clip(uphill, -STEEPEST, STEEPEST)
        most = np.maximum(1.0, 0.2 * np.linalg.norm(at, axis=1))
        length = np.linalg.norm(uphill, axis=1)
        ahead = at + uphill * np.minimum(1.0, most / np.maximum(length, 1e-300))[:, None]
        new_values, new_gradients = density.grad(q.transform(ahead))
        better = new_values > values[going]
        white[going] = np.where(better[:, None], ahead, at)
        values[going] = np.where(better, new_values, values[going])
        gradients[going] = np.where(better[:, None], new_gradients, slope / 4)
    return q.transform(white)


def _on_slope(density: Density, modes: Sequence[Mode], point: np.ndarray, *, within: float = np.inf) -> int | None:
    """Find the mode that a point (D,) belongs to; see `_on_slopes`."""
    return _on_slopes(density, modes, point[None], within=within)[0]


def _on_slopes(
    density: Density, modes: Sequence[Mode], points: np.ndarray, *, within: float = np.inf
) -> list[int | None]:
    """Find for each point (n, D) the first mode from which the log density falls to it without a dip.

    It falls by at most ``within`` nats. The point may be any of its copies under other labels.
    """
    found: list[int | None] = [None] * len(points)
    for i, mode in enumerate(modes):
        left = [k for k, known in enumerate(found) if known is None]
        if not left:
            break
        lines = _on_lines(density, mode.laplace.loc, nearest_copies(density, mode.laplace, points[left]))
        for k, values in zip(left, lines, strict=True):
            if not _dips(values) and values[0] - values[-1] <= within:
                found[k] = i
    return found


def apart(density: Density, mode: Mode, point: np.ndarray) -> bool:
    """Whether the log density dips between a mode and the copy of a point (D,) that is nearest to it."""
    return _on_slope(density, [mode], point) is None


def dips(density: Density, one: np.ndarray, other: np.ndarray) -> bool:
    """Whether the log density dips on the line between two points."""
    return _dips(_on_lines(density, one, other[None])[0])


def _on_lines(density: Density, one: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Log densities (n, LINE_POINTS) on the way from a point (D,) to each of others (n, D)."""
    share = np.linspace(0, 1, LINE_POINTS)[:, None]
    lines = (1 - share) * one + share * others[:, None, :]
    return density.log_density(lines.reshape(-1, len(one))).reshape(len(others), LINE_POINTS)


def _dips(values: np.ndarray) -> bool:
    return bool(np.min(values) < min(values[0], values[-1]) - MIN_DIP or not np.isfinite(values).all())


def all_starts(density: Density, num: int, rng: np.random.Generator) -> np.ndarray:
    """Give what points the model proposes, or a clustering of its data, and dispersed ones (num, D)."""
    proposed = proposed_starts(density, NUM_PROPOSED, generator=rng)
    return np.concatenate([proposed, density.starts(num, generator=rng)])


def climb_again(density: Density, climbed: Climbed, rng: np.random.Generator) -> Climbed:
    """Add climbs from further clusterings where but one has reached the highest mode of a model with labels."""
    for _ in range(MAX_MORE // NUM_PROPOSED):
        if not reached_once(density, climbed):
            break
        points = proposed_starts(density, NUM_PROPOSED, generator=rng)
        if not len(points):
            points = density.starts(NUM_PROPOSED, generator=rng)
        climbed = find_modes(density, points, known=climbed)
    return climbed


def reached_once(density: Density, climbed: Climbed) -> bool:
    """Whether climbs of a model with labels have ended in several modes, one of them alone in the heaviest.

    Then there may be a heavier one still: of mixtures in many columns nearly all climbs end in poor modes, each in one
    of its own.
    """
    alone = bool(climbed.modes) and climbed.counts[0] == 1 and sum(climbed.counts) > 1
    return alone and (labels_of(density) is not None or bool(exchangeable(density)))
