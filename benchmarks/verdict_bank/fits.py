"""The fits of the bank: by engines, as they come, and spoilt on purpose.

Fits are spoilt by an affine map of unconstrained draws, so that their weights are exact. Spoilt Gaussians are made from
AutoVI's, the best there is. Spoilt references are exact draws x moved to y = A x + b: their density is p(x) / |det A|,
so that log weights log p(y) - log p(x) are known but for a constant, which cancels. These carry the posterior's own
skewness and tails, which no Gaussian does. `check` runs on either for real, on model and data.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from benchmarks.posteriordb.database import Posterior
from inference import SVI, AutoVI, Fit, Laplace, Status
from inference.conditional import complete
from inference.density import Density
from inference.gaussian import Gaussian, gaussian_draws
from inference.restored_density import restored_density
from inference.sites import Sites

SHAPE = (4, 1000)
NUM_DRAWS = SHAPE[0] * SHAPE[1]

# AutoVI's own answer goes over to NUTS where a Gaussian does not do; below a budget of one it never does.
VARIATIONAL = AutoVI(budget=0.9)
ENGINES: Mapping[str, tuple[Any, int]] = {
    "auto, seed 0": (AutoVI(), 0),
    "auto, seed 1": (AutoVI(), 1),
    "auto without NUTS, seed 0": (VARIATIONAL, 0),
    "auto without NUTS, seed 1": (VARIATIONAL, 1),
    "svi normal": (SVI(guide="normal"), 0),
    "svi multivariate_normal": (SVI(guide="multivariate_normal"), 0),
    "svi normal lbfgs": (SVI(guide="normal", optimizer="lbfgs"), 0),
    "laplace": (Laplace(), 0),
    "unconverged, 30 steps": (SVI(num_steps=30), 0),
    "unconverged, 200 steps": (SVI(guide="multivariate_normal", num_steps=200), 0),
}


class NotPossibleError(Exception):
    """A posterior does not bear this kind of fit."""


@dataclass(frozen=True)
class Spoil:
    """A change of every unconstrained coordinate, or of one: ``factor`` of its sd, ``shift`` in sds."""

    factor: float = 1.0
    shift: float = 0.0
    only_one: bool = False

    def factors_and_shifts(self, dim: int) -> tuple[np.ndarray, np.ndarray]:
        """Give (D,) of each; the one coordinate is that in the middle."""
        chosen = np.arange(dim) == dim // 2 if self.only_one else np.ones(dim, dtype=bool)
        return np.where(chosen, self.factor, 1.0), np.where(chosen, self.shift, 0.0)


SPOILS: Mapping[str, Spoil] = {
    "as it is": Spoil(),
    "narrow": Spoil(factor=0.7),
    "one narrow": Spoil(factor=0.5, only_one=True),
    "one shifted": Spoil(shift=0.3, only_one=True),
    "all shifted": Spoil(shift=0.25),
    "wide": Spoil(factor=1.4),
}
GAUSSIAN, REFERENCE = "gaussian, ", "reference, "
ONE_MODE = "reference, one mode"
KINDS = (*ENGINES, *(f"{GAUSSIAN}{name}" for name in SPOILS), *(f"{REFERENCE}{name}" for name in SPOILS), ONE_MODE)

# Which draws of a posterior with several modes belong to one of them.
ONE_OF_THE_MODES: Mapping[str, Callable[[Mapping[str, np.ndarray]], np.ndarray]] = {
    "low_dim_gauss_mix_collapse-low_dim_gauss_mix_collapse": lambda draws: draws["mu"][:, 0] < draws["mu"][:, 1],
    "sbibm-slcp_obs2": lambda draws: (draws["theta"][:, 2] > 0) & (draws["theta"][:, 3] > 0),
    "two modes, .7 and .3": lambda draws: draws["x"].mean(1) < 2.5,
    "two modes, .9 and .1, D = 5": lambda draws: draws["x"].mean(1) < 2.0,
    "two modes, .6 and .4, one narrow": lambda draws: draws["x"].mean(1) < 2.5,
    "held out: two equal modes, D = 10": lambda draws: draws["x"].mean(1) < 1.5,
    "held out: two modes, one wide, D = 4": lambda draws: draws["x"].mean(1) < 2.5,
    "held out: two modes, .75 and .25, D = 20": lambda draws: draws["x"].mean(1) < 1.25,
}


def spoilt(kind: str, base: Fit, posterior: Posterior, *, draws: slice) -> Fit:
    """Make a spoilt fit from one by `VARIATIONAL`; ``draws`` are those of the reference that may be used.

    Raises
    ------
    NotPossibleError
        There are no draws of every latent site to spoil, or only one mode.
    """
    if kind.startswith(REFERENCE) and not posterior.draws:
        raise NotPossibleError("moments have no draws to spoil")
    if kind == ONE_MODE and posterior.name not in ONE_OF_THE_MODES:
        raise NotPossibleError("it has one mode")
    with restored_density(base, num_gradients=np.inf) as (density, sites):
        if kind.startswith(GAUSSIAN):
            made = _of_gaussian(base, density, SPOILS[kind.removeprefix(GAUSSIAN)])
        else:
            flat = {n: v[:, draws].reshape(-1, *v.shape[2:]) for n, v in posterior.draws.items()}
            if kind == ONE_MODE:
                flat = {name: value[ONE_OF_THE_MODES[posterior.name](flat)] for name, value in flat.items()}
            made = _of_reference(density, flat, SPOILS[kind.removeprefix(REFERENCE)] if kind != ONE_MODE else Spoil())
        return _as_fit(base, sites, *made)


Made = tuple[dict[str, np.ndarray], np.ndarray, dict[str, np.ndarray]]


def _of_gaussian(base: Fit, density: Density, spoil: Spoil) -> Made:
    loc, scale = base.state["loc"], np.atleast_2d(base.state["scale"])
    factors, shifts = spoil.factors_and_shifts(density.dim)
    q = Gaussian(loc + shifts * np.linalg.norm(scale, axis=1), factors[:, None] * scale)
    return gaussian_draws(density, q, np.random.default_rng(base.seed).standard_normal((NUM_DRAWS, density.dim)))


def _of_reference(density: Density, draws: Mapping[str, np.ndarray], spoil: Spoil) -> Made:
    """Move exact draws; those that rounding has put at the end of a support are left out."""
    if not set(density.sites.latent) <= set(draws):
        raise NotPossibleError("the reference has other sites than the model")
    exact, _ = density.unconstrain(draws)
    exact = exact[np.isfinite(exact).all(axis=1)]
    exact = exact[np.random.default_rng(0).choice(len(exact), NUM_DRAWS, replace=len(exact) < NUM_DRAWS)]
    factors, shifts = spoil.factors_and_shifts(density.dim)
    centre, sd = exact.mean(axis=0), exact.std(axis=0)
    moved = centre + factors * (exact - centre) + shifts * sd
    log_p = density.log_density(moved)
    log_q = density.log_density(exact) - np.log(factors).sum()
    return density.constrain(moved), moved, {"lp": log_p, "log_q": log_q, "log_weight": log_p - log_q}


def _as_fit(
    base: Fit, sites: Sites, draws: dict[str, np.ndarray], points: np.ndarray, stats: dict[str, np.ndarray]
) -> Fit:
    draws = complete(sites, draws)
    # What AutoVI has seen on its way (modes, starts that agree) is not known of a fit that somebody hands in.
    state = {name: base.state[name] for name in ("function", "dtype", "params", "dims", "discrete", "labels")}
    state |= {"unconstrained": points.reshape(*SHAPE, -1), "num_gradients": 0, "backend": "by hand"}
    return replace(
        base,
        draws={name: value.reshape(*SHAPE, *value.shape[1:]) for name, value in draws.items()},
        stats={name: value.reshape(SHAPE) for name, value in stats.items()},
        status=Status("converged", "Made by hand."),
        engine=Laplace(),
        state=state,
    )
