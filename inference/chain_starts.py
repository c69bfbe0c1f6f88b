"""Where Markov chains begin: dispersed, but in the posterior."""

from collections.abc import Callable

import numpy as np

from inference.density import Density
from inference.gaussian import MAX_FULL_RANK
from inference.starts import Mode, all_starts, climb_to_maximum, mode_at, proposed_starts

# A chain does not start in a mode with less than exp(-20), or 2e-9, of the mass of the largest one seen: no draw of the
# posterior would lie there, and Laplace's masses are not wrong by so much.
NEGLIGIBLE = -20.0
START_TRIES = 20
START_WIDTH = 2.0  # wider than the posterior, so that chains that do not mix still show it
NUM_CLIMBS = 8  # to see which modes there are; as many as `inference.modes.search_modes`


def chain_starts(density: Density, *, seed: int) -> Callable[[int], np.ndarray]:
    """Give a function from a chain's seed to its start (D,): dispersed, but in the posterior.

    Each chain climbs from a dispersed point of its own, and starts around the mode that it reaches, at twice the
    standard deviations of Laplace's Gaussian. A chain that begins thousands of nats below the posterior can end its
    warm-up in a mode 60 nats below it and stay there for ever: one in ten does in a hidden Markov model of two states.
    Modes of negligible mass are passed over; where most climbs end in such, later ones begin where the model proposes.
    Where the climb ends in no proper mode (a funnel, a flat direction) the chain starts where the climb began; so it
    does in more than `MAX_FULL_RANK` dimensions, where curvatures would cost as much as chains. Compare Pathfinder's
    use for chains (Zhang et al. 2022, section 5).

    Parameters
    ----------
    density
        What will be sampled.
    seed
        Seed of the climbs that show which modes there are.
    """
    if density.dim > MAX_FULL_RANK:
        return lambda chain_seed: density.starts(1, generator=np.random.default_rng(chain_seed))[0]
    rng = np.random.default_rng(seed)
    seen = [_mode_above(density, point) for point in all_starts(density, NUM_CLIMBS, rng)]
    least = max((mode.log_mass for mode in seen if mode), default=-np.inf) + NEGLIGIBLE

    def start(chain_seed: int) -> np.ndarray:
        generator = np.random.default_rng(chain_seed)
        for attempt in range(START_TRIES):
            proposed = proposed_starts(density, 1 if attempt >= START_TRIES // 2 else 0, generator=generator)
            point = proposed[0] if len(proposed) else density.starts(1, generator=generator)[0]
            mode = _mode_above(density, point)
            if mode is None:
                return point
            if mode.log_mass >= least:
                near = mode.laplace.transform(START_WIDTH * generator.standard_normal((START_TRIES, density.dim)))
                values, gradients = density.grad(near)
                usable = np.isfinite(values) & np.isfinite(gradients).all(axis=1)
                return near[np.argmax(usable)] if usable.any() else point
        return point

    return start


def _mode_above(density: Density, point: np.ndarray) -> Mode | None:
    return mode_at(density, climb_to_maximum(density, point)[0])
