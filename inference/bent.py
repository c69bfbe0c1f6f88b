"""A bent Gaussian: skewed, with tails of their own, and with locations and scales that move with parent coordinates.

Over base draws z from the standard normal, and inside a Gaussian's location and factor L,

    w_j = (sinh(h_j (asinh z_j + e_j)) - sinh(h_j e_j)) / (h_j cosh(h_j e_j))             f(w) = sqrt(1 + w^2) - 1
    y_i = a_i + sum_{j<i} t_ij w_j + sum_k b_ik f(w_k) + w_i exp(s_i + sum_k (c_ik w_k + d_ik f(w_k)))
    x = loc + L y

where k are a few coordinates before i. w gives every coordinate a skewness e and a tail h (sinh-arcsinh: Jones & Pewsey
2009; here with w near z around zero). The exponential lets scales depend on the parents that a generative story names
first: a funnel is straightened as if its sites were decentred, by as much as the data ask for (compare Gorinova, Moore
& Hoffman 2020), and without another model. f, with slopes of either sign left and right, lets that depend on the side:
a group's effect is as narrow as its prior in the neck of a funnel, and as its data at the other end. All this is an
affine autoregressive flow (Kingma et al. 2016) whose conditioners are linear in w and f(w), so that it is fitted like a
Gaussian: by L-BFGS on fixed draws, with a gradient that is written down here.
"""

from dataclasses import dataclass

import numpy as np

from inference.gaussian import Fitted, Gaussian, LogDensity, minimise

# At most so many parents, those that would gain most: in a hierarchy they are few. Each brings 3 D numbers, which a few
# hundred draws have to bear: in 91 dimensions eight parents were over-fitted by 730 draws, and two are not.
MAX_PARENTS, MIN_PARENTS, CHILDREN = 8, 2, 256
# A quadratic penalty on all that bends, of so many draws' worth: it fades as draws double. Fixed draws have no tails,
# so that without it a few hundred of them choose tails that cost fresh draws several nats.
PENALTY = 30.0
# L-BFGS takes 15 to 60 steps; a fall in the loss by less than this part of it is lost in the weights.
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
        Indices (K,) of the coordinates on which others depend.
    curving
        b, (D, K), zero where the parent is not an earlier coordinate.
    moving
        c and d side by side, (D, 2K), zero likewise.
    """

    base: Gaussian
    shift: np.ndarray
    log_scale: np.ndarray
    skew: np.ndarray
    log_tail: np.ndarray
    linear: np.ndarray
    parents: np.ndarray
    curving: np.ndarray
    moving: np.ndarray

    def transform(self, z: np.ndarray) -> np.ndarray:
        """Map base draws (n, D) to draws (n, D)."""
        w = _Marginal(z, self.skew, self.log_tail).w
        return self.base.transform(self.located(w) + w * np.exp(self.log_scales(w)))

    def log_q(self, z: np.ndarray) -> np.ndarray:
        """Log densities (n,) of the draws that base draws (n, D) are mapped to."""
        marginal = _Marginal(z, self.skew, self.log_tail)
        return self.base.log_q(z) - (self.log_scales(marginal.w) + marginal.log_slope).sum(axis=1)

    def whiten(self, points: np.ndarray) -> np.ndarray:
        """Give the base draws (n, D) that are mapped to points (n, D)."""
        y = self.base.whiten(points)
        w = np.zeros_like(y)
        for i in range(y.shape[1]):  # what it depends on are earlier coordinates, known by now
            w[:, i] = (y[:, i] - self.located(w)[:, i]) * np.exp(-self.log_scales(w)[:, i])
        tail = np.exp(self.log_tail)
        at_zero = tail * self.skew
        return np.sinh(np.arcsinh(w * tail * np.cosh(at_zero) + np.sinh(at_zero)) / tail - self.skew)

    def located(self, w: np.ndarray) -> np.ndarray:
        """Centres (n, D) of the coordinates of y, given w (n, D)."""
        return self.shift + w @ self.linear.T + _even(w[:, self.parents]) @ self.curving.T

    def log_scales(self, w: np.ndarray) -> np.ndarray:
        """Logarithms (n, D) of the scales of the coordinates of y, given w (n, D)."""
        return self.log_scale + _features(w[:, self.parents]) @ self.moving.T


def _even(w: np.ndarray) -> np.ndarray:
    return np.sqrt(1 + w**2) - 1


def _features(w: np.ndarray) -> np.ndarray:
    return np.concatenate([w, _even(w)], axis=1)


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
        self.child = np.arange(self.dim)[:, None] > self.parents  # parents come before their children
        self.children = np.concatenate([self.child, self.child], axis=1)
        self.initial = np.zeros(4 * self.dim + len(self.lower[0]) + 3 * self.child.sum())
        self.bends = np.ones(len(self.initial), bool)  # what is penalised
        self.bends[: 2 * self.dim] = self.bends[4 * self.dim :][: len(self.lower[0])] = False
        if earlier is not None:
            bends = (earlier.shift, earlier.log_scale, earlier.skew, earlier.log_tail, earlier.linear[self.lower])
            self.initial = np.concatenate([*bends, earlier.curving[self.child], earlier.moving[self.children]])

    def _choose_parents(self) -> np.ndarray:
        """Coordinates on which the loss would have the others depend most, by its gradient at the Gaussian."""
        _, gradients = self.log_density(self.start.transform(self.z))
        by_y, features = np.nan_to_num(gradients @ self.start.scale), _features(self.z)
        scales = (by_y * self.z + 1).T @ features / len(self.z)
        places = (by_y - by_y.mean(axis=0)).T @ features[:, self.dim :] / len(self.z)
        parts = (scales[:, : self.dim], scales[:, self.dim :], places)
        strength = sum((np.tril(part, -1) ** 2).sum(axis=0) for part in parts)
        num = np.clip(CHILDREN // self.dim, MIN_PARENTS, MAX_PARENTS)
        return np.sort(np.argsort(-strength)[: min(num, self.dim)])

    def family(self, vector: np.ndarray) -> Bent:
        num_linear, num_curving = len(self.lower[0]), self.child.sum()
        ends = np.cumsum([self.dim, self.dim, self.dim, self.dim, num_linear, num_curving])
        *bends, below, curves, moves = np.split(vector, ends)
        linear, curving, moving = (np.zeros((self.dim, n)) for n in (self.dim, *(len(self.parents) * np.array([1, 2]))))
        linear[self.lower], curving[self.child], moving[self.children] = below, curves, moves
        return Bent(self.start, *bends, linear, self.parents, curving, moving)

    def evaluate(self, vector: np.ndarray) -> tuple[float, np.ndarray] | None:
        """Loss and gradient; None where they are not finite."""
        q, num = self.family(vector), len(self.z)
        marginal = _Marginal(self.z, q.skew, q.log_tail)
        w = marginal.w
        log_scales = q.log_scales(w)
        scale = np.exp(log_scales)
        points = self.start.transform(q.located(w) + scale * w)
        if not np.isfinite(points).all():
            return None
        values, gradients = self.log_density(points)
        if not (np.isfinite(values).all() and np.isfinite(gradients).all()):
            return None
        log_det = log_scales.sum(axis=1) + marginal.log_slope.sum(axis=1)
        bends = np.where(self.bends, vector, 0.0)
        loss = -self.start.log_det - (values + log_det).mean() + 0.5 * PENALTY / num * bends @ bends
        by_y = gradients @ self.start.scale
        by_scale = by_y * scale * w + 1  # by the log scales, whose sum is also part of the log determinant
        of_parents = w[:, q.parents]
        features, slope = _features(of_parents), of_parents / np.sqrt(1 + of_parents**2)
        by_linear, by_even = np.split(by_scale @ q.moving, 2, axis=1)
        by_w = by_y @ q.linear + by_y * scale
        by_w[:, q.parents] += by_linear + (by_even + by_y @ q.curving) * slope
        derivatives = (marginal.by_skew(), marginal.by_log_tail())
        by_bends = [(by_w * of_w + of_slope).mean(axis=0) for of_w, of_slope in derivatives]
        parts = [
            by_y.mean(axis=0),
            by_scale.mean(axis=0),
            *by_bends,
            (by_y.T @ w / num)[self.lower],
            (by_y.T @ _even(of_parents) / num)[self.child],
            (by_scale.T @ features / num)[self.children],
        ]
        return loss, PENALTY / num * bends - np.concatenate(parts)
