"""Fitting a Gaussian to a log density on fixed draws: deterministic, by L-BFGS.

The expectation in the ELBO is replaced by an average over N fixed base draws z_n (sample-average approximation), so
that the objective is a smooth function without noise (DADVI: Giordano, Ingram & Broderick 2024; for a full covariance
the draws must be more than D). With the structured draws made here the objective equals the exact ELBO for every
quadratic log density, so a Gaussian posterior is recovered exactly, mean and covariance.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from scipy.linalg import solve_triangular
from scipy.optimize import minimize

from inference.density import Density

# A full covariance has D^2/2 numbers and needs N >= 2D draws; beyond this many dimensions a mean field is fitted.
MAX_FULL_RANK = 250
# L-BFGS ends when the largest gradient component is under this share of 1 + |loss|: far below the Monte Carlo error of
# any draw count used here. A loss that falls by less than LOSS_TOLERANCE of itself in a step has arrived as well.
GRADIENT_TOLERANCE, LOSS_TOLERANCE = 1e-5, 1e-11
# L-BFGS goes in rounds of so many steps, each in the coordinates that whiten what the last one found: from Laplace's
# Gaussian in 91 dimensions that took 50 evaluations in place of 540.
ROUND_STEPS, MAX_ROUNDS = 20, 25
# Loss given to the line search where the density is not finite: large enough to be refused, finite so it can step back.
REFUSED = 1e30

LogDensity = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True, eq=False)
class Gaussian:
    """A Gaussian over unconstrained vectors.

    Attributes
    ----------
    loc
        Mean, (D,).
    scale
        Lower triangular factor of the covariance, (D, D), or the standard deviations, (D,), for a mean field.
    """

    loc: np.ndarray
    scale: np.ndarray

    @property
    def full_rank(self) -> bool:
        """Whether the covariance is full."""
        return self.scale.ndim == 2

    def transform(self, z: np.ndarray) -> np.ndarray:
        """Map base draws (n, D) to draws (n, D)."""
        return self.loc + (z @ self.scale.T if self.full_rank else z * self.scale)

    def whiten(self, points: np.ndarray) -> np.ndarray:
        """Map points (n, D) to the base draws (n, D) that `transform` maps to them."""
        centred = points - self.loc
        return solve_triangular(self.scale, centred.T, lower=True).T if self.full_rank else centred / self.scale

    def mean_field(self) -> "Gaussian":
        """Give the best mean field for a full covariance: with the same mean and diagonal of the precision."""
        factor = np.linalg.inv(self.scale)
        return Gaussian(self.loc, 1.0 / np.sqrt((factor**2).sum(axis=0)))

    @property
    def log_det(self) -> float:
        """Log determinant of the scale."""
        return float(np.log(np.abs(np.diag(self.scale) if self.full_rank else self.scale)).sum())

    def log_q(self, z: np.ndarray) -> np.ndarray:
        """Log densities (n,) of the draws that base draws (n, D) are mapped to."""
        return -0.5 * (z**2).sum(axis=1) - 0.5 * z.shape[1] * np.log(2 * np.pi) - self.log_det


def base_draws(num: int, dim: int, *, full_rank: bool, random_radius: bool, rng: np.random.Generator) -> np.ndarray:
    """Make at least ``num`` structured base draws (N, D), with mean zero and, exactly, second moments one.

    Full rank: rows of random orthogonal matrices and their negatives, N a multiple of 2D, so that the mean of z z^T is
    the identity; a block of 2D rows has radius sqrt(D), or with ``random_radius`` chi-distributed radii rescaled to
    mean square D. Mean field: antithetic normal draws, each coordinate rescaled to mean square one.
    """
    if not full_rank:
        half = rng.standard_normal((max(num // 2, 1), dim))
        half /= np.sqrt((half**2).mean(axis=0))
        return np.concatenate([half, -half])
    blocks = max(1, -(-num // (2 * dim)))
    radii = np.sqrt(rng.chisquare(dim, size=blocks)) if random_radius and blocks > 1 else np.ones(blocks)
    radii *= np.sqrt(dim / (radii**2).mean())
    rows = [r * _orthogonal(dim, rng) for r in radii]
    return np.concatenate([sign * row for row in rows for sign in (1, -1)])


def _orthogonal(dim: int, rng: np.random.Generator) -> np.ndarray:
    q, r = np.linalg.qr(rng.standard_normal((dim, dim)))
    return q * np.sign(np.diag(r))  # the signs make the matrix uniform (Haar) over the orthogonal group


class Family(Protocol):
    """A smooth invertible map of the standard normal distribution: `Gaussian`, `inference.bent.Bent`."""

    def transform(self, z: np.ndarray) -> np.ndarray:
        """Map base draws (n, D) to draws (n, D)."""
        ...

    def log_q(self, z: np.ndarray) -> np.ndarray:
        """Log densities (n,) of the draws that base draws (n, D) are mapped to."""
        ...

    def whiten(self, points: np.ndarray) -> np.ndarray:
        """Give the base draws (n, D) that are mapped to points (n, D)."""
        ...


@dataclass(frozen=True, eq=False)
class Fitted:
    """A distribution fitted on fixed draws.

    Attributes
    ----------
    q
        The optimum.
    elbo
        The bound on the draws it was fitted to, in nats.
    settled
        Whether the optimiser ended at a stationary point.
    losses, gradient_norms
        One per evaluation.
    """

    q: Family
    elbo: float
    settled: bool
    losses: np.ndarray
    gradient_norms: np.ndarray


class Objective(Protocol):
    """A loss on fixed draws, without the constant of the entropy, over the parameters of a family in one vector."""

    def family(self, vector: np.ndarray) -> Family:
        """Give the distribution with these parameters."""
        ...

    def evaluate(self, vector: np.ndarray) -> tuple[float, np.ndarray] | None:
        """Loss and gradient; None where they are not finite."""
        ...


def fit_gaussian(log_density: LogDensity, start: Gaussian, z: np.ndarray) -> Fitted:
    """Maximise the ELBO on base draws ``z`` (N, D), starting from ``start``.

    The loss is ``-log det L - mean_n log p(m + L z_n)`` plus the entropy's constant, optimised in the coordinates that
    whiten ``start``, where L starts at the identity.

    Parameters
    ----------
    log_density
        Points (n, D) to log densities (n,) and gradients (n, D).
    """
    losses: list[np.ndarray] = []
    norms: list[np.ndarray] = []
    for _ in range(MAX_ROUNDS):
        problem = _Problem(log_density, start, z)
        found, arrived = minimise(problem, problem.initial, z.shape[1], num_steps=ROUND_STEPS)
        losses.append(found.losses)
        norms.append(found.gradient_norms)
        start = found.q
        if arrived:
            break
    return replace(found, losses=np.concatenate(losses), gradient_norms=np.concatenate(norms))


def minimise(
    objective: Objective, initial: np.ndarray, dim: int, *, num_steps: int, tolerance: float = LOSS_TOLERANCE
) -> tuple[Fitted, bool]:
    """Minimise a loss on fixed draws of D dimensions by L-BFGS; whether it arrived before its steps were spent."""
    losses: list[float] = []
    norms: list[float] = []

    def loss_and_gradient(vector: np.ndarray) -> tuple[float, np.ndarray]:
        with np.errstate(over="ignore", invalid="ignore"):
            found = objective.evaluate(vector)
        if found is None or not np.isfinite(found[0]):
            return REFUSED, np.zeros_like(vector)
        losses.append(found[0])
        norms.append(float(np.linalg.norm(found[1])))
        return found

    result = minimize(
        loss_and_gradient,
        initial,
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": num_steps, "maxcor": 20, "ftol": tolerance, "gtol": 1e-8},
    )
    settled = result.fun < REFUSED and np.abs(result.jac).max() < 100 * GRADIENT_TOLERANCE * (1 + abs(result.fun))
    entropy = 0.5 * dim * (1 + np.log(2 * np.pi))
    fitted = Fitted(
        q=objective.family(result.x),
        elbo=entropy - result.fun,
        settled=bool(settled),
        losses=np.array(losses) - entropy,
        gradient_norms=np.array(norms),
    )
    return fitted, result.nit < num_steps


class _Problem:
    """The loss of `fit_gaussian` over one vector: shift, then the logarithm of the diagonal, then the rest of L."""

    def __init__(self, log_density: LogDensity, start: Gaussian, z: np.ndarray) -> None:
        self.log_density, self.start, self.z = log_density, start, z
        self.dim = z.shape[1]
        self.lower = np.tril_indices(self.dim, -1) if start.full_rank else (np.zeros(0, int), np.zeros(0, int))
        self.initial = np.zeros(2 * self.dim + len(self.lower[0]))

    def _unpack(self, vector: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        shift, log_diagonal = vector[: self.dim], vector[self.dim : 2 * self.dim]
        if not self.start.full_rank:
            return shift, np.exp(log_diagonal)
        factor = np.diag(np.exp(log_diagonal))
        factor[self.lower] = vector[2 * self.dim :]
        return shift, factor

    def family(self, vector: np.ndarray) -> Gaussian:
        shift, factor = self._unpack(vector)
        start = self.start
        if not start.full_rank:
            return Gaussian(start.loc + start.scale * shift, start.scale * factor)
        return Gaussian(start.loc + start.scale @ shift, start.scale @ factor)

    def evaluate(self, vector: np.ndarray) -> tuple[float, np.ndarray] | None:
        """Loss and gradient; None where they are not finite."""
        candidate = self.family(vector)
        points = candidate.transform(self.z)
        if not np.isfinite(points).all():
            return None
        values, gradients = self.log_density(points)
        if not (np.isfinite(values).all() and np.isfinite(gradients).all()):
            return None
        loss = -candidate.log_det - values.mean()
        _, factor = self._unpack(vector)
        if not self.start.full_rank:
            scores = gradients * self.start.scale
            by_diagonal = (scores * self.z).mean(axis=0)
            return loss, np.concatenate([-scores.mean(axis=0), -1 - by_diagonal * factor])
        scores = gradients @ self.start.scale
        weighted = scores.T @ self.z / len(self.z)
        by_diagonal = np.diag(weighted) * np.diag(factor)
        return loss, -np.concatenate([scores.mean(axis=0), 1 + by_diagonal, weighted[self.lower]])


def laplace(log_density: LogDensity, mode: np.ndarray, *, full_rank: bool) -> Gaussian | None:
    """Gaussian with the curvature of the log density at a mode, or None where that is not negative definite."""
    precision = curvature(log_density, mode)
    if not np.isfinite(precision).all():
        return None
    if not full_rank:
        diagonal = np.diag(precision)
        return Gaussian(mode, diagonal**-0.5) if (diagonal > 0).all() else None
    return from_precision(mode, precision)


def from_precision(loc: np.ndarray, precision: np.ndarray) -> Gaussian | None:
    """Full-rank Gaussian with a precision matrix (D, D), or None where that is not positive definite."""
    try:
        # With precision = U^T U, the inverse of U is a factor of the covariance; QR makes it lower triangular.
        upper = np.linalg.cholesky((precision + precision.T) / 2).T
        factor = np.linalg.cholesky(np.linalg.solve(upper, np.linalg.solve(upper.T, np.eye(len(loc)))))
    except np.linalg.LinAlgError:
        return None
    return Gaussian(loc, factor)


def curvature(log_density: LogDensity, point: np.ndarray) -> np.ndarray:
    """Minus the Hessian of the log density at a point, (D, D); not finite where a gradient beside it is not.

    By central differences of the gradient in one batch of 2D points; the step 1e-4 (1 + |x|) balances rounding
    (1e-16/1e-4) and truncation (1e-8) of float64.
    """
    dim = len(point)
    step = 1e-4 * (1 + np.abs(point))
    offsets = np.diag(step)
    _, gradients = log_density(np.concatenate([point + offsets, point - offsets]))
    with np.errstate(invalid="ignore"):
        hessian = (gradients[:dim] - gradients[dim:]) / (2 * step[:, None])
    return -(hessian + hessian.T) / 2


def linear_response(log_density: LogDensity, q: Gaussian, z: np.ndarray) -> Gaussian | None:
    """Gaussian with the mean of a fitted mean field, and the covariance of its linear response.

    That is the inverse of the expected curvature E_q[-Hessian], the derivative of the fitted mean with respect to a
    tilt of the log density where skewness is neglected (Giordano, Broderick & Jordan 2018, eq. 10); exact for a
    Gaussian posterior. Expectations are over base draws ``z`` (n, D), Hessians by central differences of the mean
    gradient. None where it is not positive definite.
    """
    points, dim = q.transform(z), len(q.loc)
    step = 1e-3 * q.scale
    rows = []
    for i in range(dim):
        offset = np.zeros(dim)
        offset[i] = step[i]
        above, below = (log_density(points + sign * offset)[1].mean(axis=0) for sign in (1, -1))
        rows.append((below - above) / (2 * step[i]))
    return from_precision(q.loc, np.array(rows))


def elbo(log_density: Callable[[np.ndarray], np.ndarray], q: Family, z: np.ndarray) -> tuple[float, float]:
    """ELBO of ``q`` and its standard error, in nats, on base draws ``z`` (n, D) from the standard normal."""
    return mean_and_error(log_density(q.transform(z)) - q.log_q(z))


def unused_gain(points: np.ndarray, gradients: np.ndarray) -> float:
    """Estimate how many nats the ELBO of q would gain if its draws were only shifted and rescaled.

    At the optimum of every family that can shift and rescale its coordinates, E[g] = 0 and E[g_i (x_i - m_i)] = -1,
    where g is the gradient of log p (Stein's identities, in the directions of the family). Off it, a shift gains about
    g^T C g / 2 with C the covariance of q, and a coordinate whose scale is r times its best value, for which
    s_i = 1 + E[g_i (x_i - m_i)] = 1 - r^2, gains -log(1 - s_i)/2 - s_i/2. Both are exact for a Gaussian log p. Products
    are taken between two halves of the draws, so that Monte Carlo noise does not count as a gain.

    Parameters
    ----------
    points, gradients
        Draws from q (n, D) and gradients of log p at them (n, D).
    """
    centred = points - points.mean(axis=0)
    halves = [slice(0, None, 2), slice(1, None, 2)]
    one, other = (gradients[h].mean(axis=0) for h in halves)
    shift = 0.5 * float(np.mean((centred @ one) * (centred @ other)))
    first, second = (1 + (gradients[h] * centred[h]).mean(axis=0) for h in halves)
    s = np.sign(first) * np.sqrt(np.abs(first * second))
    s = np.minimum(s, 0.999)  # beyond 1 the log density is convex there, and no scale is best
    rescale = np.sign(first * second) * (-0.5 * np.log1p(-s) - 0.5 * s)
    return shift + float(rescale.sum())


def mean_and_error(log_weights: np.ndarray) -> tuple[float, float]:
    """Give the mean of log weights, which is the ELBO, and its standard error; minus infinity if any is not finite."""
    if not np.isfinite(log_weights).all():
        return -np.inf, np.inf
    return float(log_weights.mean()), float(log_weights.std(ddof=1) / np.sqrt(len(log_weights)))


def gaussian_draws(
    density: Density, q: Gaussian, z: np.ndarray
) -> tuple[dict[str, np.ndarray], np.ndarray, dict[str, np.ndarray]]:
    """Draw from ``q`` with base draws ``z`` (n, D).

    Returns
    -------
    draws : dict
        Latent sites, ``name -> (n, *shape)``.
    points : ndarray
        Unconstrained draws, (n, D).
    stats : dict
        ``lp``, ``log_q``, ``log_weight``, each (n,).
    """
    points = q.transform(z)
    log_p, log_q = density.log_density(points), q.log_q(z)
    return density.constrain(points), points, {"lp": log_p, "log_q": log_q, "log_weight": log_p - log_q}
