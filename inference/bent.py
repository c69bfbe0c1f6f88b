"""A bent Gaussian: skewed, with tails of their own, and scales that move with other coordinates.

Over base draws z from the standard normal, and inside a Gaussian's location and factor L,

    w_j = (sinh(h_j (asinh z_j + e_j)) - sinh(h_j e_j)) / (h_j cosh(h_j e_j))
    y_i = a_i + w_i exp(s_i + sum_{k<i} c_ik z_k) + sum_{j<i} t_ij w_j          x = loc + L y

w gives every coordinate a skewness e and a tail h (sinh-arcsinh: Jones & Pewsey 2009; here with w near z around zero).
The middle term lets the scale of a coordinate depend on earlier ones, which are its parents in a generative story: a
funnel is bent straight as if its sites were decentred, by as much as the data ask for (compare Gorinova, Moore &
Hoffman 2020), and without another model. It is an affine autoregressive flow (Kingma et al. 2016) whose networks are
linear, so that it is fitted like a Gaussian: by L-BFGS on fixed draws, with a gradient that is written down here.
"""

from dataclasses import dataclass

import numpy as np

from inference.gaussian import Fitted, Gaussian, LogDensity, minimise

# Scales depend on at most so many earlier coordinates, those that would gain most: the parents of a hierarchy are few,
# and with D^2/2 more numbers the fit would need many more draws.
MAX_PARENTS = 8
# A quadratic penalty on skewness and tail, of so many draws' worth: it fades as draws double. Fixed draws have no
# tails, so that without it 256 of them choose tails that cost fresh draws several nats.
PENALTY = 30.0
# L-BFGS takes 15 to 50 steps; a fall in the loss by less than this part of it is lost in the weights.
MAX_STEPS, LOSS_TOLERANCE = 100, 1e-7


@dataclass(frozen=True, eq=False)
class Bent:
    """A bent Gaussian over unconstrained vectors; with zeros everywhere it is ``base``.

    Attributes
    ----------
    base
        Full-rank Gaussian around which it is bent.
    shift, log_scale, skew, log_tail
        a, s, e and log h, each (D,).
    linear
        t, strictly lower triangular, (D, D).
    parents
        Indices (K,) of the coordinates on which scales depend.
    moving
        c at those coordinates, (D, K), zero where the parent is not an earlier coordinate.
    """

    base: Gaussian
    shift: np.ndarray
    log_scale: np.ndarray
    skew: np.ndarray
    log_tail: np.ndarray
    linear: np.ndarray
    parents: np.ndarray
    moving: np.ndarray

    def transform(self, z: np.ndarray) -> np.ndarray:
        """Map base draws (n, D) to draws (n, D)."""
        marginal = _Marginal(z, self.skew, self.log_tail)
        scale = np.exp(self.log_scale + z[:, self.parents] @ self.moving.T)
        return self.base.transform(self.shift + marginal.w @ self.linear.T + scale * marginal.w)

    def log_q(self, z: np.ndarray) -> np.ndarray:
        """Log densities (n,) of the draws that base draws (n, D) are mapped to."""
        marginal = _Marginal(z, self.skew, self.log_tail)
        scales = self.log_scale + z[:, self.parents] @ self.moving.T
        return self.base.log_q(z) - (scales + marginal.log_slope).sum(axis=1)

    def invert(self, points: np.ndarray) -> np.ndarray:
        """Give the base draws (n, D) that are mapped to points (n, D)."""
        y = self.base.invert(points) - self.shift
        w, z = np.zeros_like(y), np.zeros_like(y)
        tail, at_zero = np.exp(self.log_tail), np.exp(self.log_tail) * self.skew
        for i in range(y.shape[1]):  # parents are earlier coordinates, so that they are known by now
            scale = np.exp(self.log_scale[i] + z[:, self.parents] @ self.moving[i])
            w[:, i] = (y[:, i] - w[:, :i] @ self.linear[i, :i]) / scale
            inner = np.arcsinh(w[:, i] * tail[i] * np.cosh(at_zero[i]) + np.sinh(at_zero[i]))
            z[:, i] = np.sinh(inner / tail[i] - self.skew[i])
        return z


class _Marginal:
    """The map from z to w, its log slope, and its derivatives by skewness and log tail."""

    def __init__(self, z: np.ndarray, skew: np.ndarray, log_tail: np.ndarray) -> None:
        self.tail = np.exp(log_tail)
        self.inner = self.tail * (np.arcsinh(z) + skew)
        self.at_zero = self.tail * skew
        self.cosh, self.cosh_zero = np.cosh(self.inner), np.cosh(self.at_zero)
        self.tanh_zero = np.tanh(self.at_zero)
        self.w = (np.sinh(self.inner) - np.sinh(self.at_zero)) / (self.tail * self.cosh_zero)
        self.log_slope = np.log(self.cosh / self.cosh_zero) - 0.5 * np.log1p(z**2)

    def by_skew(self) -> tuple[np.ndarray, np.ndarray]:
        """Give the derivatives of w and of the log slope."""
        ratio = self.cosh / self.cosh_zero
        return ratio - 1 - self.w * self.tanh_zero * self.tail, self.tail * (np.tanh(self.inner) - self.tanh_zero)

    def by_log_tail(self) -> tuple[np.ndarray, np.ndarray]:
        """Give the derivatives of w and of the log slope."""
        ratio = self.cosh / self.cosh_zero
        inner = (ratio * self.inner - self.at_zero) / self.tail
        by_slope = np.tanh(self.inner) * self.inner - self.tanh_zero * self.at_zero
        return inner - self.w * (1 + self.tanh_zero * self.at_zero), by_slope


def fit_bent(log_density: LogDensity, start: Gaussian | Bent, z: np.ndarray) -> Fitted:
    """Maximise the ELBO of a bent Gaussian on base draws ``z`` (N, D).

    Parameters
    ----------
    log_density
        Points (n, D) to log densities (n,) and gradients (n, D).
    start
        The Gaussian that is bent, or a fit on other draws to go on from.
    """
    problem = _Problem(log_density, start, z)
    return minimise(problem, problem.initial, z.shape[1], num_steps=MAX_STEPS, tolerance=LOSS_TOLERANCE)[0]


class _Problem:
    """The loss of `fit_bent` over one vector."""

    def __init__(self, log_density: LogDensity, start: Gaussian | Bent, z: np.ndarray) -> None:
        earlier = start if isinstance(start, Bent) else None
        self.log_density, self.start, self.z = log_density, start.base if earlier else start, z
        self.dim = z.shape[1]
        self.lower = np.tril_indices(self.dim, -1)
        self.parents = self._choose_parents() if earlier is None else earlier.parents
        self.free = np.arange(self.dim)[:, None] > self.parents  # parents come before their children
        self.initial = np.zeros(4 * self.dim + len(self.lower[0]) + self.free.sum())
        if earlier is not None:
            parts = (earlier.shift, earlier.log_scale, earlier.skew, earlier.log_tail)
            self.initial = np.concatenate([*parts, earlier.linear[self.lower], earlier.moving[self.free]])

    def _choose_parents(self) -> np.ndarray:
        """Coordinates on which the loss would have the scales depend most, by its gradient at the Gaussian."""
        _, gradients = self.log_density(self.start.transform(self.z))
        scores = (gradients @ self.start.scale * self.z + 1).T @ self.z / len(self.z)
        strength = (np.tril(np.nan_to_num(scores), -1) ** 2).sum(axis=0)
        return np.sort(np.argsort(-strength)[: min(MAX_PARENTS, self.dim)])

    def family(self, vector: np.ndarray) -> Bent:
        shift, log_scale, skew, log_tail, rest = np.split(vector, np.arange(1, 5) * self.dim)
        linear, moving = np.zeros((self.dim, self.dim)), np.zeros(self.free.shape)
        linear[self.lower] = rest[: len(self.lower[0])]
        moving[self.free] = rest[len(self.lower[0]) :]
        return Bent(self.start, shift, log_scale, skew, log_tail, linear, self.parents, moving)

    def evaluate(self, vector: np.ndarray) -> tuple[float, np.ndarray] | None:
        """Loss and gradient; None where they are not finite."""
        q, num = self.family(vector), len(self.z)
        marginal = _Marginal(self.z, q.skew, q.log_tail)
        w = marginal.w
        log_scales = q.log_scale + self.z[:, q.parents] @ q.moving.T
        scale = np.exp(log_scales)
        points = self.start.transform(q.shift + w @ q.linear.T + scale * w)
        if not np.isfinite(points).all():
            return None
        values, gradients = self.log_density(points)
        if not (np.isfinite(values).all() and np.isfinite(gradients).all()):
            return None
        bends = np.concatenate([q.skew, q.log_tail])
        penalty = PENALTY / num * bends
        log_det = log_scales.sum(axis=1) + marginal.log_slope.sum(axis=1)
        loss = -self.start.log_det - (values + log_det).mean() + 0.5 * penalty @ bends
        by_y = gradients @ self.start.scale
        by_scale = by_y * scale * w + 1  # by the log scales, whose sum is also part of the log determinant
        by_w = by_y @ q.linear + by_y * scale
        by_bends = [
            (by_w * of_w + of_slope).mean(axis=0) for of_w, of_slope in (marginal.by_skew(), marginal.by_log_tail())
        ]
        parts = [
            by_y.mean(axis=0),
            by_scale.mean(axis=0),
            np.concatenate(by_bends) - penalty,
            (by_y.T @ w / num)[self.lower],
            (by_scale.T @ self.z[:, q.parents] / num)[self.free],
        ]
        return loss, -np.concatenate(parts)
