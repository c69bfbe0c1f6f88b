"""Chains from a variational fit: they start at its draws, with its covariance as mass matrix.

Zhang et al. (2022, Pathfinder) start chains at draws of a fit; the covariance spares the warm-up what takes it longest,
to learn scales and correlations.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.covariance import ledoit_wolf

from inference.density import Density
from inference.errors import InputError
from inference.fit import Fit
from inference.gaussian import MAX_FULL_RANK, Gaussian
from inference.nutpie_chains import TARGET_ACCEPT, Start, nutpie_chains
from inference.whitened import Whitened

# Draws of which chains take theirs at random: two of four chains take the same one with probability 1 %.
MAX_POOL = 512
# What the covariance of n draws whitens has a condition number of ((1 + r) / (1 - r))^2, r^2 = D / n: 3.7 with 10 draws
# a dimension, which costs NUTS a factor of two. With fewer it is shrunk towards its diagonal.
DRAWS_PER_DIM = 10


def check_init(init: Any) -> None:
    """Refuse as ``init`` what is no fit, or a fit without draws to start from."""
    if init is None:
        return
    if not isinstance(init, Fit):
        raise InputError(f"init: expected a Fit, of AutoVI() for instance, or None, got {init!r}.")
    if "unconstrained" not in init.state:
        raise InputError(
            f"init: the fit by {init.engine!r} has no draws on the unconstrained space (a model without a flat "
            "density, or draws from elsewhere); give a fit by AutoVI, Laplace or SVI, or None."
        )


def warm_start(density: Density, init: Fit, *, seed: int) -> tuple[Whitened, Start]:
    """Give the coordinates that whiten a fit, and a function from a chain's seed to its start in them.

    The Gaussian is the one that was fitted where there is one, else that of the draws' mean and covariance; above
    `MAX_FULL_RANK` dimensions it has scales only.

    Raises
    ------
    InputError
        Another model's fit, a point, or no draw at which the density is finite.
    """
    points = points_of(init, density, argument="init")
    target = Whitened(density, _gaussian(init, points))
    return target, _starts(target, points, seed=seed)


def points_of(source: Fit, density: Density, *, argument: str) -> np.ndarray:
    """Give the draws of a fit on the unconstrained space, (n, D).

    Raises
    ------
    InputError
        Another model's fit, or a point. The message names ``argument``.
    """
    if list(source.state["labels"]) != density.labels:
        raise InputError(
            f"{argument}: the fit is of another model, or of data of another size: it has "
            f"{_listing(source.state['labels'])}; this model, at these data, has {_listing(density.labels)}. Fit this "
            "model by AutoVI, say."
        )
    points = np.asarray(source.state["unconstrained"], np.float64).reshape(-1, density.dim)
    fixed = [label for label, spread in zip(density.labels, np.ptp(points, axis=0), strict=True) if not spread > 0]
    if fixed:
        raise InputError(
            f"{argument}: the draws of {source.engine!r} have no spread in {', '.join(fixed[:3])}, so no covariance; "
            "give a fit by AutoVI, Laplace or SVI with a guide that is no point."
        )
    return points


def sample_from(
    density: Density,
    loc: np.ndarray,
    scale: np.ndarray,
    starts: np.ndarray,
    *,
    num_warmup: int,
    num_samples: int,
    num_chains: int,
    seed: int,
    target_accept: float = TARGET_ACCEPT,
    progress: bool = False,
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Sample a density by NUTS from a Gaussian fit: its draws as starts, its covariance as mass matrix.

    Parameters
    ----------
    density
        Compiled before, if it is to be native code.
    loc
        (D,).
    scale
        Lower triangular factor of the covariance (D, D), or standard deviations (D,).
    starts
        Points (n, D) of which each chain takes one, at random; many, so that chains take different ones.
    num_warmup, num_samples, num_chains, seed, target_accept, progress
        As for `inference.NUTS`.

    Returns
    -------
    points : ndarray
        Draws after the warm-up, (chain, draw, D); fewer chains or draws after an interruption.
    stats : dict
        As those of `inference.NUTS`, (chain, draw). ``n_steps`` does not count the warm-up; ``density.num_gradients``
        does.

    Raises
    ------
    InputError
        The density is finite at none of the starts, or the factor is not lower triangular.
    """
    if scale.ndim == 2 and np.triu(scale, 1).any():
        raise InputError(
            "scale: expected a lower triangular factor, got numbers above the diagonal; take its Cholesky."
        )
    target = Whitened(density, Gaussian(loc, scale))
    points, stats, adapted = nutpie_chains(
        target,
        _starts(target, starts, seed=seed),
        num_warmup=num_warmup,
        num_samples=num_samples,
        num_chains=num_chains,
        seed=seed,
        target_accept=target_accept,
        progress=progress,
    )
    density.reason = target.reason
    points, stats, _ = target.in_x(points, stats, adapted)
    return points[:, num_warmup:], {name: value[:, num_warmup:] for name, value in stats.items()}


def _listing(labels: Sequence[str]) -> str:
    return f"{len(labels)} coordinates ({', '.join([*labels[:4], *['...'] * (len(labels) > 4)])})"


def _gaussian(init: Fit, points: np.ndarray) -> Gaussian:
    """Give the Gaussian of a fit with these draws (n, D)."""
    dim = points.shape[1]
    loc, scale = (np.asarray(init.state.get(name, ()), np.float64) for name in ("loc", "scale"))
    if loc.shape == (dim,) and scale.shape in ((dim,), (dim, dim)):
        return Gaussian(loc, scale)
    return gaussian_of(points)


def gaussian_of(points: np.ndarray) -> Gaussian:
    """Give the Gaussian with the mean and covariance of points (n, D), or their sds in very many dimensions."""
    loc, sds = points.mean(axis=0), points.std(axis=0)
    if points.shape[1] > MAX_FULL_RANK:
        return Gaussian(loc, sds)
    return Gaussian(loc, sds[:, None] * _correlation_factor((points - loc) / sds))


def _correlation_factor(z: np.ndarray) -> np.ndarray:
    """Give a lower triangular factor (D, D) of the correlation matrix of standardised draws (n, D)."""
    num, dim = z.shape
    if num >= DRAWS_PER_DIM * dim:
        try:
            return np.linalg.cholesky(z.T @ z / num)
        except np.linalg.LinAlgError:  # coordinates that are one, but for rounding
            pass
    return np.linalg.cholesky(ledoit_wolf(z, assume_centered=True)[0])


def _starts(target: Whitened, points: np.ndarray, *, seed: int) -> Start:
    """Give a function from a chain's seed to a start z (D,), one of the points x (n, D), at random."""
    density, generator = target.density, np.random.default_rng(seed)
    pool = points[generator.permutation(len(points))[:MAX_POOL]]
    values, gradients = density.grad(pool)
    pool = pool[np.isfinite(values) & np.isfinite(gradients).all(axis=1)]
    if not len(pool):
        raise InputError(
            "init: the density is not finite at any of the fit's draws, so that no chain can start there; is the fit "
            "of other data? Sample without init."
        )
    starts = target.within.whiten(pool)
    return lambda chain_seed: starts[np.random.default_rng(chain_seed).integers(len(starts))]
