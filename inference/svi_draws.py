"""Draws from the guide that SVI has fitted, and a doubt about optima that the draws themselves deny."""

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from inference.conditional import MAX_DRAWN
from inference.density import Density
from inference.errors import InputError
from inference.fit import Status
from inference.gaussian import gaussian_draws, laplace, mean_and_error, unused_gain
from inference.guides import draw_guide, unconstrained_draws
from inference.sites import Sites

# Draws from which it is estimated how much shifting and rescaling them would gain.
GAIN_DRAWS = 1000
# Chains are kept while each has as many draws as R-hat needs.
_FEWEST = 4


@dataclass(frozen=True, eq=False)
class Drawn:
    """Draws from a fitted guide; the fields of `inference.fit.Run` of the same names."""

    draws: dict[str, np.ndarray]
    stats: dict[str, np.ndarray]
    state: dict[str, Any]
    notes: tuple[str, ...]


def affordable(sites: Sites, shape: tuple[int, int]) -> tuple[tuple[int, int], str]:
    """Give so many chains and draws that all sites together have at most `MAX_DRAWN` numbers, and say if they are few.

    First draws are left out, down to 4 in each chain, then chains, then draws of the one that is left.
    """
    kept = {**sites.latent, **sites.unenumerable, **sites.deterministic}
    each = sum(prod(site.shape) for site in kept.values())
    num = max(1, MAX_DRAWN // max(each, 1))
    chains, draws = shape
    if chains * draws <= num:
        return shape, ""
    chains = max(1, min(chains, num // _FEWEST))
    draws = max(1, min(draws, num // chains))
    return (chains, draws), (
        f"{chains} x {draws} draws were kept in place of {shape[0]} x {shape[1]}: each has {each} numbers, and more "
        f"than {MAX_DRAWN} are not held"
    )


def draw(
    guide: Callable,
    sites: Sites,
    density: Density | None,
    shape: tuple[int, int],
    *,
    laplace_seed: int | None,
    reason: str = "",
) -> Drawn:
    """Draw from a fitted guide.

    Parameters
    ----------
    guide, sites
        The guide and its model.
    density
        The flat density, for log weights; None where there is none.
    shape
        Chains and draws in each.
    laplace_seed
        Where the guide is a point at the mode: draw from Laplace's Gaussian there, with this seed.
    reason
        Why there is no density, where it is none of the usual reasons.
    """
    notes = [density.reason] if density is not None and density.reason else []
    state: dict[str, Any] = {}
    if laplace_seed is not None:
        draws, points, stats = _laplace_draws(guide, sites, density, shape, laplace_seed)
    else:
        draws, log_q = draw_guide(guide, sites, shape[0] * shape[1])
        if density is None:
            points, stats = None, {}
            usual = "no log weights: the model has no flat log density (subsampled plates or integer sites)"
            notes.append(reason or usual)
        else:
            points, stats, remark = unconstrained_draws(density, draws, log_q)
            notes += [remark] if remark else []
    if points is not None:
        state |= {"unconstrained": points.reshape(*shape, -1), "labels": density.labels}
    if "log_weight" in stats:
        bound, error = mean_and_error(stats["log_weight"])
        state |= {"elbo": bound, "elbo_se": error}
    return Drawn(
        draws={name: value.reshape(*shape, *value.shape[1:]) for name, value in draws.items()},
        stats={name: value.reshape(shape) for name, value in stats.items()},
        state=state,
        notes=tuple(notes),
    )


def confirmed(status: Status, density: Density | None, drawn: Drawn, limit: float) -> Status:
    """Doubt convergence where shifting and rescaling the draws would gain more than ``limit`` nats of ELBO."""
    if not status.ok or not np.isfinite(drawn.state.get("elbo", np.nan)):
        return status
    points = drawn.state["unconstrained"].reshape(-1, density.dim)[:GAIN_DRAWS]
    gain = unused_gain(points, density.grad(points)[1])
    if gain <= limit:
        return status
    return Status(
        "budget_spent",
        f"The loss has stopped improving, but shifting and rescaling the draws alone would gain {gain:.1f} nats: "
        "the steps are too small for the scale of the parameters, or the guide is too rigid. Raise lr, rescale the "
        "data, or use another guide.",
    )


def _laplace_draws(guide: Any, sites: Sites, density: Density | None, shape: tuple[int, int], seed: int) -> tuple:
    """Draw from the Gaussian with the curvature of the (marginal) density at the mode that the guide has found."""
    if density is None:
        raise InputError("guide='laplace': needs a flat log density; the model has subsampled plates or integer sites.")
    mode, _ = draw_guide(guide, sites, 1)
    point, _ = density.unconstrain(mode)
    q = laplace(density.grad, point[0], full_rank=True)
    if q is None:
        raise InputError(
            "guide='laplace': the curvature at the mode is not positive definite, so there is no Laplace "
            "approximation; the mode may lie at a boundary or at infinity. Use guide='normal' or NUTS."
        )
    z = np.random.default_rng(seed).standard_normal((shape[0] * shape[1], density.dim))
    return gaussian_draws(density, q, z)
