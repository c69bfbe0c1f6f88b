"""The rungs of `AutoVI`: from one Gaussian up to what the posterior needs, each judged by its importance weights."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count

import numpy as np

from inference import limits
from inference.bent import fit_bent
from inference.density import Density
from inference.errors import InputError
from inference.gaussian import (
    MAX_FULL_RANK,
    Family,
    Fitted,
    Gaussian,
    base_draws,
    elbo,
    fit_gaussian,
    linear_response,
)
from inference.importance import Proposals, joined, propose
from inference.modes import MIN_SHARE
from inference.progress import bar
from inference.starts import Climbed, Mode, best_gaussian, best_of, find_modes

# The objective on N fixed draws over-fits them by the gap between its bound and that on fresh draws. N doubles until the
# gap is under the larger of this and two standard errors (Burroni, Domke & Sheldon 2024), up to MAX_DRAWS.
GAP = 0.05
MIN_DRAWS, MAX_DRAWS, FRESH_DRAWS = 256, 4096, 1024
# Fresh draws are fewer in very many dimensions, so that the batch stays under 128 MB.
MAX_FRESH_NUMBERS = 2**24
# Two fits agree when their bounds differ by less than this, in nats, plus two standard errors.
AGREEMENT = 0.1
# The second fit starts this many of Laplace's sds away, at twice its width.
AWAY, WIDTH = 2.0, 2.0
# A family has to gain more than this, in nats, plus two standard errors, or the simpler one stays.
WORTHWHILE = 0.02
# Proposals at the end, per draw that is returned: at least, so that resampling seldom repeats one, and at most.
LEAST_PROPOSALS, MOST_PROPOSALS = 2, 20


@dataclass(frozen=True)
class Target:
    """What the draws are for: the k-hat and the effective sample size that end the climb."""

    khat: float
    ess: float


# Of 20 independent quantities the worst mean is then off by about .15, .1 and .06 sd. k-hat: `inference.limits`.
TARGETS = {
    "means": Target(limits.KHAT_REWEIGHTED, 400.0),
    "sds": Target(limits.KHAT_REWEIGHTED, 1000.0),
    "intervals": Target(limits.KHAT_TRUST, 2000.0),
}


@dataclass(frozen=True)
class Rung:
    """One rung of the ladder as it is kept in ``fit.state["ladder"]``.

    Attributes
    ----------
    name
        ``"gaussian"``, ``"bent"``, ...
    elbo, elbo_se
        Bound of the fitted distribution and its standard error, in nats.
    khat, ess_share
        Of importance sampling from it: Pareto shape, and effective sample size per proposal.
    num_gradients
        Evaluations of the density, with or without gradient, on this rung.
    seconds
        Wall time.
    """

    name: str
    elbo: float
    elbo_se: float
    khat: float
    ess_share: float
    num_gradients: int
    seconds: float


@dataclass(eq=False)
class Ladder:
    """The climb for one density.

    Parameters
    ----------
    density
        The log density.
    rng
        Everything random.
    target
        When to stop.
    num_draws
        Draws that are asked for.
    max_evaluations
        No rung is begun after so many evaluations of the density.
    """

    density: Density
    rng: np.random.Generator
    target: Target
    num_draws: int
    max_evaluations: float
    rungs: list[Rung] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    gradient_norms: list[float] = field(default_factory=list)
    num_evaluations: int = 0

    def __post_init__(self) -> None:
        dim = self.density.dim
        self.full_rank = dim <= MAX_FULL_RANK
        self.fresh = self.rng.standard_normal((min(FRESH_DRAWS, max(64, MAX_FRESH_NUMBERS // dim)), dim))
        self.climbed = Climbed((), (), 0)
        self.agree, self.bounds = True, np.zeros(0)
        self.settled, self.gap = True, 0.0

    def grad(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Log densities and gradients, counted."""
        self.num_evaluations += len(points)
        return self.density.grad(points)

    def log_density(self, points: np.ndarray) -> np.ndarray:
        """Log densities, counted."""
        self.num_evaluations += len(points)
        return self.density.log_density(points)

    # --- Gaussians --------------------------------------------------------------------------------------------------

    def start(self, num_starts: int) -> list[Gaussian]:
        """Look for modes, and give a Gaussian to start from for each that counts; the heaviest first."""
        points = self.density.starts(num_starts, generator=self.rng)
        if self.full_rank:
            self.climbed = find_modes(self.density, bar(points, desc="AutoVI: looking for modes"))
        heavy = [m for m in self.climbed.modes if m.log_mass > self.climbed.modes[0].log_mass + np.log(MIN_SHARE)]
        if heavy:
            z = self._draws(MIN_DRAWS, random_radius=False)
            return [best_of(self.log_density, [m.laplace, _unit(m)], z) for m in heavy]
        z = self._draws(MIN_DRAWS // 4, random_radius=False)
        found = [best_gaussian(self.density, point, z, full_rank=self.full_rank) for point in points[:2]]
        return sorted(found, key=lambda q: -elbo(self.log_density, q, z)[0])[:1]

    def fit_gaussians(self, starts: Sequence[Gaussian]) -> list[Fitted]:
        """Fit one Gaussian from each start, and the first again from elsewhere."""
        begin, before = time.perf_counter(), self.num_evaluations
        z = self._draws(MIN_DRAWS, random_radius=False)
        first = self._kept(fit_gaussian(self.grad, starts[0], z))
        again = fit_gaussian(self.grad, self._away(starts[0]), z)
        bounds = [elbo(self.log_density, found.q, self.fresh) for found in (first, again)]
        self.bounds = np.array([bound for bound, _ in bounds])
        if not np.isfinite(self.bounds).any():
            raise InputError(
                "model: no Gaussian with a finite bound was found from any start; the density is not finite on a "
                "region of positive probability. Tighten the priors or constrain the parameters of the likelihood."
            )
        best = int(np.argmax(self.bounds))
        self.agree = bool(abs(np.diff(self.bounds)[0]) < AGREEMENT + 2 * bounds[best][1])
        first = self._doubled((first, again)[best], lambda q, z: fit_gaussian(self.grad, q, z))
        others = [
            self._doubled(self._kept(fit_gaussian(self.grad, start, z)), lambda q, z: fit_gaussian(self.grad, q, z))
            for start in starts[1:]
        ]
        self._spent = time.perf_counter() - begin, self.num_evaluations - before
        return [first, *others]

    def bend(self, fitted: Sequence[Fitted]) -> list[Fitted]:
        """Bend each Gaussian, where that raises its bound on fresh draws."""
        begin, before = time.perf_counter(), self.num_evaluations
        better = []
        for found in fitted:
            base = found.q
            z = self._draws(2 * MIN_DRAWS, random_radius=True)
            bent = self._kept(fit_bent(self.grad, base, z))
            bent = self._doubled(bent, lambda q, z, base=base: fit_bent(self.grad, base, z, earlier=q), num=len(z))
            old, new = elbo(self.log_density, base, self.fresh), elbo(self.log_density, bent.q, self.fresh)
            gains = new[0] - old[0] > WORTHWHILE
            better.append(bent if gains else found)
        self._spent = time.perf_counter() - begin, self.num_evaluations - before
        return better

    def spread(self, fitted: Fitted) -> Fitted:
        """Give a mean field the covariance of linear response, where that raises its bound."""
        wide = linear_response(self.grad, fitted.q, self._draws(MIN_DRAWS, random_radius=False))
        if wide is None:
            return fitted
        gain = elbo(self.log_density, wide, self.fresh)[0] - elbo(self.log_density, fitted.q, self.fresh)[0]
        return Fitted(wide, fitted.elbo + gain, fitted.settled, fitted.losses, fitted.gradient_norms) if gain > 0 else fitted

    # --- Weights ----------------------------------------------------------------------------------------------------

    def weigh(self, name: str, components: Sequence[Family], log_masses: Sequence[float]) -> Proposals:
        """Weigh as many proposals as draws are asked for, and keep what they say of the rung."""
        begin, before = time.perf_counter(), self.num_evaluations
        found = self._propose(components, log_masses, self.num_draws)
        seconds, num = self._spent
        self.rungs.append(
            Rung(
                name,
                found.elbo,
                found.elbo_se,
                found.khat,
                found.ess / len(found.points),
                num + self.num_evaluations - before,
                seconds + time.perf_counter() - begin,
            )
        )
        return found

    def good(self, found: Proposals) -> bool:
        """Whether these weights, with as many more proposals as `enough` allows, reach the target."""
        share = found.ess / len(found.points)
        return found.khat < self.target.khat and share * LEAST_PROPOSALS * self.num_draws >= self.target.ess

    def enough(self, found: Proposals, components: Sequence[Family], log_masses: Sequence[float]) -> Proposals:
        """Propose until the effective sample size is reached, or the allowance ends."""
        share = max(found.ess / len(found.points), 1.0 / MOST_PROPOSALS)
        wanted = np.clip(
            1.2 * self.target.ess / share, LEAST_PROPOSALS * self.num_draws, MOST_PROPOSALS * self.num_draws
        )
        allowed = self.max_evaluations - self.num_evaluations
        more = int(min(wanted - len(found.points), max(allowed, self.num_draws)))
        return joined(found, self._propose(components, log_masses, more))

    def _propose(self, components: Sequence[Family], log_masses: Sequence[float], num: int) -> Proposals:
        return propose(self.log_density, components, log_masses, num, dim=self.density.dim, rng=self.rng)

    # --- Parts ------------------------------------------------------------------------------------------------------

    def _draws(self, num: int, *, random_radius: bool) -> np.ndarray:
        num = max(num, 4 * self.density.dim) if self.full_rank else num
        return base_draws(num, self.density.dim, full_rank=self.full_rank, random_radius=random_radius, rng=self.rng)

    def _away(self, start: Gaussian) -> Gaussian:
        direction = self.rng.standard_normal((1, self.density.dim))
        direction *= AWAY / np.sqrt((direction**2).mean())
        return Gaussian(start.transform(direction)[0], WIDTH * start.scale)

    def _kept(self, fitted: Fitted) -> Fitted:
        self.losses.extend(fitted.losses)
        self.gradient_norms.extend(fitted.gradient_norms)
        return fitted

    def _doubled(self, fitted: Fitted, refit, num: int = MIN_DRAWS) -> Fitted:
        """Double the fixed draws until the bound on fresh draws has caught up with the optimised one."""
        for _ in bar(count(), desc="AutoVI: doubling draws"):
            outside, error = elbo(self.log_density, fitted.q, self.fresh)
            self.gap, self.settled = fitted.elbo - outside, fitted.settled
            if self.gap < max(GAP, 2 * error) or 2 * num > MAX_DRAWS or self.num_evaluations > self.max_evaluations:
                return fitted
            num *= 2
            fitted = self._kept(refit(fitted.q, self._draws(num, random_radius=True)))
        raise AssertionError("unreachable")


def _unit(mode: Mode) -> Gaussian:
    return Gaussian(mode.laplace.loc, np.eye(len(mode.laplace.loc)))
