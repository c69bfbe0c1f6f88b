"""The rungs of `AutoVI`: from one Gaussian up to what the posterior needs, each judged by its importance weights."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from inference import limits
from inference.bent import fit_bent
from inference.density import Density
from inference.gaussian import (
    MAX_FULL_RANK,
    Fitted,
    Gaussian,
    base_draws,
    fit_gaussian,
    linear_response,
)
from inference.graph import native_seconds
from inference.importance import Proposals, joined, propose
from inference.modes import MIN_SHARE, SOME_DRAWS, look_about
from inference.starts import MAX_DEAR, Climbed, Mode, all_starts, best_gaussian, best_of, climb_again, find_modes

# Fits begin on few fixed draws, from two starts; the better one goes on with more.
FIRST_DRAWS, DRAWS, MAX_DRAWS = 32, 128, 4096
# The objective on N fixed draws over-fits them by the gap between its bound and that on fresh draws. Where that is more
# than this and two standard errors, and the weights are poor, N is doubled (compare Burroni, Domke & Sheldon 2024).
GAP = 0.1
# Two fits agree when their bounds on the same draws differ by less than this, in nats.
AGREEMENT = 0.1
# The second fit starts this many of Laplace's sds away, at twice its width.
AWAY, WIDTH = 2.0, 2.0
MAX_TWICE = 50  # dimensions; in more it takes as long as what it guards against
# Proposals at the end are worth this part of the draws that are returned, so that Monte Carlo errors of independent
# draws are theirs; at most so many are made for a draw.
WORTH, MOST_PROPOSALS = 0.9, 20
# Starts that are tried where no climb ended in a mode.
NUM_BLIND = 2
# A rung is good enough when its proposals are worth this part of as many draws, and more would not be much better.
GOOD_SHARE = 0.6
# Evaluations of fixed draws that a fit takes, if it starts near its end; one that bends a Gaussian takes twice as many.
TYPICAL_STEPS = 20
# What bending one draw takes, in seconds for each dimension; counted in more dimensions than MANY, where it is several
# times what native code takes for the gradient of a time series, and NUTS needs nothing like it.
BENDING_SECONDS, MANY = 1.5e-7, 100
# Log weights with this sd are worth exp(-.5) of as many draws, if they are normal, which is `GOOD_SHARE`.
NEARLY = 0.7
# Of all evaluations that are allowed, the last proposals may be so many.
LAST_SHARE = 0.5
# Draws for the covariance of linear response; exact for a Gaussian with any number.
RESPONSE_DRAWS, MAX_RESPONSE = 32, 2000


# What the draws are for, and the effective sample size that is asked of them: the worst mean of 20 quantities is then
# off by about .15, .1 and .06 sd.
TARGETS = {
    "means": limits.IS_ESS,
    "sds": 1000.0,
    "intervals": 2000.0,
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
    num_draws
        Fixed draws that it was fitted on.
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
    num_draws: int
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
        Effective sample size that is asked for.
    num_draws
        Draws that are asked for.
    max_evaluations
        What is expected to need more evaluations of the density than that, in all, is not begun.
    """

    density: Density
    rng: np.random.Generator
    target: float
    num_draws: int
    max_evaluations: float
    rungs: list[Rung] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    gradient_norms: list[float] = field(default_factory=list)
    num_evaluations: int = 0

    def __post_init__(self) -> None:
        self.dear = self.density.is_dear and self.density.dim <= MAX_DEAR
        self.full_rank = self.density.dim <= MAX_FULL_RANK
        # Fewer have no tail to judge; where an evaluation is dear, more have to be asked for.
        self.num_proposals = limits.MIN_DRAWS if self.dear else max(self.num_draws, limits.MIN_DRAWS)
        self.climbed, self.modes = Climbed((), (), 0), []
        self.points = np.zeros((0, self.density.dim))
        self.bounds, self.agree = np.zeros(0), True

    def grad(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Log densities and gradients, counted."""
        self.num_evaluations += len(points)
        return self.density.grad(points)

    def log_density(self, points: np.ndarray) -> np.ndarray:
        """Log densities, counted."""
        self.num_evaluations += len(points)
        return self.density.log_density(points)

    def may_spend(self, num: float) -> bool:
        """Whether the allowance bears so many more evaluations."""
        return self.num_evaluations + num <= self.max_evaluations

    def cost(self, num: int, *, bent: bool = False) -> float:
        """Predict what a fit on so many draws costs, in evaluations; a bent one with the arithmetic of its map."""
        if not bent:
            return TYPICAL_STEPS * self._num_fixed(num)
        dim, graph = self.density.dim, self.density.graph
        heavy = dim > MANY and graph is not None and self.density.native is not None
        each = 1.0 + (BENDING_SECONDS * dim / native_seconds(graph) if heavy else 0.0)
        return 2 * TYPICAL_STEPS * self._num_fixed(num) * each

    # --- Rungs ------------------------------------------------------------------------------------------------------

    def search(self, num_starts: int) -> None:
        """Look for modes."""
        self.points = all_starts(self.density, num_starts, self.rng)
        if self.full_rank or self.dear:
            self._search(lambda: climb_again(self.density, find_modes(self.density, self.points), self.rng))

    def starts(self) -> list[Gaussian]:
        """Give a Gaussian to start from for each mode that counts; the heaviest first."""
        if self.modes and self.dear:
            found = [mode.laplace for mode in self.modes]
            return found if self.full_rank else [q.mean_field() for q in found]
        if self.modes:
            return [self._above(mode) for mode in self.modes]
        z = self._draws(FIRST_DRAWS)
        found = [best_gaussian(self.density, point, z, full_rank=self.full_rank) for point in self.points[:NUM_BLIND]]
        return [best_of(self.log_density, found, z)]

    def nearly_gaussian(self) -> bool:
        """Whether Laplace's Gaussians will do: where a fit is dear, or a few draws have weights that hardly vary."""
        if self.dear or not self.modes:
            return bool(self.modes)
        z = self._draws(FIRST_DRAWS)
        weights = [self.log_density(mode.laplace.transform(z)) - mode.laplace.log_q(z) for mode in self.modes]
        return all(np.std(of_mode) < NEARLY for of_mode in weights)

    def laplace(self) -> list[Fitted]:
        """Take Laplace's Gaussian of each mode for a fit."""
        none = np.zeros(0)
        return [
            Fitted(mode.laplace, mode.log_mass, settled=True, losses=none, gradient_norms=none) for mode in self.modes
        ]

    def gaussian(self, starts: Sequence[Gaussian]) -> list[Fitted]:
        """Fit a Gaussian from each start; in few dimensions the first one from elsewhere too."""
        few = self._draws(FIRST_DRAWS)
        twice = (starts[0], self._away(starts[0])) if self.density.dim <= MAX_TWICE else (starts[0],)
        tries = [fit_gaussian(self.grad, start, few) for start in twice]
        ends = [found for found in tries if found.settled] or tries
        self.bounds = np.array([found.elbo for found in ends])
        self.agree = bool(np.ptp(self.bounds) < AGREEMENT)
        firsts = [max(tries, key=lambda found: found.elbo)]
        firsts += [fit_gaussian(self.grad, start, few) for start in starts[1:]]
        return self._refitted(firsts)

    def missed(self, fitted: list[Fitted]) -> list[Fitted]:
        """Look for modes about the fits, too; give a fit for each mode that counts now."""
        if not self.modes or self.dear:  # so many climbs would take longer than all the rest
            return fitted
        known = dict(zip(map(id, self.modes), fitted, strict=True))
        draws = [found.q.transform(self.rng.standard_normal((SOME_DRAWS, self.density.dim))) for found in fitted]
        self._search(lambda: look_about(self.density, np.concatenate(draws), self.climbed, self.rng))
        few = self._draws(FIRST_DRAWS)
        for mode in self.modes:
            if id(mode) not in known:
                (known[id(mode)],) = self._refitted([fit_gaussian(self.grad, self._above(mode), few)])
        return [known[id(mode)] for mode in self.modes]

    def bent(self, fitted: Sequence[Fitted], num: int) -> list[Fitted]:
        """Bend fitted Gaussians, or fit what is bent again on more draws."""
        z = self._draws(num, random_radius=True)
        return [self._kept(fit_bent(self.grad, found.q, z)) for found in fitted]

    def linear_response(self, fitted: Fitted) -> Fitted | None:
        """Give a mean field the covariance of its linear response; None where that does not raise its bound."""
        z = self._draws(RESPONSE_DRAWS)
        wide = linear_response(self.grad, fitted.q, z) if self.density.dim <= MAX_RESPONSE else None
        if wide is None or best_of(self.log_density, [fitted.q, wide], z) is fitted.q:
            return None
        return replace(fitted, q=wide)

    def climb(
        self,
        name: str,
        fit: Callable[[int], list[Fitted]],
        num: int,
        *,
        most: int = MAX_DRAWS,
        num_proposals: int | None = None,
    ) -> tuple[Proposals, list[Fitted]]:
        """Fit on ``num`` to ``most`` draws, until the bound is not over-fitted, and weigh proposals from the result."""
        begin, before = time.perf_counter(), self.num_evaluations
        while True:
            fitted = fit(num)
            found = self._propose(fitted, num_proposals or self.num_proposals)
            over_fitted = fitted[0].elbo - found.elbo > GAP + 2 * found.elbo_se or found.elbo_se > GAP
            dear = 2 * num > most or not self.may_spend(self.cost(2 * num, bent=name == "bent"))
            if len(fitted) > 1 or not over_fitted or self.acceptable(found) or dear:
                break
            num *= 2
        seconds, spent = time.perf_counter() - begin, self.num_evaluations - before
        self.rungs.append(Rung(name, found.elbo, found.elbo_se, found.khat, found.share, num, spent, seconds))
        return found, fitted

    # --- Weights ----------------------------------------------------------------------------------------------------

    def acceptable(self, found: Proposals) -> bool:
        """Whether enough proposals of this kind would do."""
        return found.khat < limits.KHAT_REWEIGHTED and found.share * MOST_PROPOSALS * self.num_proposals >= self.target

    def good(self, found: Proposals) -> bool:
        """Whether the climb may end here: another rung would gain little, or cost more than it saves."""
        if self.dear:
            return self.acceptable(found)
        return found.khat < limits.KHAT_REWEIGHTED and found.share >= GOOD_SHARE

    def enough(self, found: Proposals, fitted: Sequence[Fitted]) -> Proposals:
        """Propose until they are worth the draws that are asked for, or at least the target, or the allowance ends."""
        least = limits.IS_ESS if self.dear else self.target
        wanted = max(1.1 * least, WORTH * self.num_draws) / max(found.share, 1.0 / MOST_PROPOSALS)
        allowed = max(LAST_SHARE * self.max_evaluations, self.num_proposals)
        num = int(min(wanted, MOST_PROPOSALS * self.num_proposals) - len(found.points))
        return joined(found, self._propose(fitted, min(num, int(allowed)))) if num > 0 else found

    def _propose(self, fitted: Sequence[Fitted], num: int) -> Proposals:
        components, masses = [found.q for found in fitted], [found.elbo for found in fitted]
        return propose(self.log_density, components, masses, num, dim=self.density.dim, rng=self.rng)

    # --- Parts ------------------------------------------------------------------------------------------------------

    def _draws(self, num: int, *, random_radius: bool = False) -> np.ndarray:
        dim, num = self.density.dim, self._num_fixed(num)
        return base_draws(num, dim, full_rank=self.full_rank, random_radius=random_radius, rng=self.rng)

    def _num_fixed(self, num: int) -> int:
        """Count the fixed draws of a fit: a full covariance in many dimensions needs more than are asked for."""
        dim = self.density.dim
        return max(num, 2 * dim * (num // FIRST_DRAWS) // 2, 2 * dim) if self.full_rank else num

    def _search(self, climbs: Callable[[], Climbed]) -> None:
        """Climb; keep what is found, and of it the modes that count."""
        before = self.density.num_gradients
        self.climbed = climbs()
        self.num_evaluations += self.density.num_gradients - before
        modes = self.climbed.modes
        self.modes = [mode for mode in modes if mode.log_mass > modes[0].log_mass + np.log(MIN_SHARE)]

    def _above(self, mode: Mode) -> Gaussian:
        """Choose between two Gaussians to start from at a mode."""
        return best_of(self.log_density, [mode.laplace, _unit(mode)], self._draws(FIRST_DRAWS))

    def _refitted(self, firsts: Sequence[Fitted]) -> list[Fitted]:
        """Fit on more draws, from fits on few."""
        many = self._draws(DRAWS)
        return [self._kept(fit_gaussian(self.grad, found.q, many)) for found in firsts]

    def _away(self, start: Gaussian) -> Gaussian:
        direction = self.rng.standard_normal((1, self.density.dim))
        direction *= AWAY / np.sqrt((direction**2).mean())
        return Gaussian(start.transform(direction)[0], WIDTH * start.scale)

    def _kept(self, fitted: Fitted) -> Fitted:
        self.losses.extend(fitted.losses)
        self.gradient_norms.extend(fitted.gradient_norms)
        return fitted


def _unit(mode: Mode) -> Gaussian:
    return Gaussian(mode.laplace.loc, np.eye(len(mode.laplace.loc)))
