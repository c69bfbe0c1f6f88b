"""Climbing to a maximum where a Hessian would be too dear: many dimensions, or many data.

L-BFGS climbs until a step gains next to nothing, then Newton's steps follow whose linear equations conjugate gradients
solve, with products of the Hessian and a vector by differences of gradients (Nocedal & Wright 2006, section 7.1). The
inverse Hessian that L-BFGS has gathered preconditions them, so that few products are needed, whatever the units. The
length of Newton's step in local sds, sqrt(g^T H^-1 g), tells how far the maximum is; its half square is the gain that
is left, in nats, which means the same for ten data and for a million.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import LbfgsInvHessProduct, minimize

from inference.density import Density

# A climb by L-BFGS ends when a step gains fewer nats: Newton's steps are better then. Its memory is larger than
# scipy's: a gradient costs far more than the products of it with forty vectors.
LEAST_GAIN, MEMORY = 1e-4, 40
MAX_CLIMBS = 10
# Steps of the rounds of one climb: units learnt from 20 steps halve those that are left (58 gradients in place of 93 on
# a mixture of eight normals in eight dimensions).
ROUNDS = 20, 40, 80
# Conjugate gradients end when the last so many steps added less than this share of the gain, which then is about the
# share that is missing (Hestenes & Stiefel 1952): Newton's next step has it.
ENOUGH, DELAY, MAX_PRODUCTS = 0.05, 3, 60
# Difference of gradients over so many local sds: by its square root each, rounding and skewness leave four digits.
APART_SDS = 1e-4
FAR_OFF = 100.0  # a length that was this much off is measured again
# Products after which a direction along which the density is not concave would have shown, as extreme curvatures do by
# Lanczos's method.
PROBES = 8
# Newton's steps shorter than so many local sds are followed by others; from farther L-BFGS climbs again.
NEAR = 1.0
HALVINGS = 10
REFUSED = 1e30  # the loss where the density is not finite

Product = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True, eq=False)
class Solved:
    """Newton's step (D,).

    Attributes
    ----------
    length
        In local sds.
    proper
        Whether the density is concave along all directions in which products were made.
    num_products
        How many these were.
    """

    step: np.ndarray
    length: float
    proper: bool
    num_products: int


def climb_dear(density: Density, point: np.ndarray, *, settled: float) -> tuple[np.ndarray, bool]:
    """Climb from a point (D,); whether the end is a maximum.

    Parameters
    ----------
    settled
        Distance from the maximum, in local sds, up to which an end counts as one.
    """
    inverse = None
    for _ in range(MAX_CLIMBS):
        if inverse is None:
            point, inverse = _climb(density, point)
        value, gradient = density.value_and_grad(point)
        if not np.isfinite(value):
            return point, False
        found = newton_step(density, point, gradient, inverse)
        ahead = uphill(density, point, found.step, value)
        # The step leaves at most the square root of ENOUGH of its length. Where it is not seen to go up, rounding
        # hides its gain, if no more than that is left.
        left = found.length * (1.0 if ahead is None else np.sqrt(ENOUGH))
        if found.proper and left < max(settled, np.sqrt(np.finfo(np.float64).eps * abs(value))):
            concave = found.num_products >= PROBES or _concave(density, point, gradient, inverse)
            return (point if ahead is None else ahead), concave
        if ahead is None:
            return point, False
        point = ahead
        if not (found.proper and found.length < NEAR):
            inverse = None
    return point, False


def uphill(density: Density, point: np.ndarray, step: np.ndarray, value: float) -> np.ndarray | None:
    """Take Newton's step, halved until the density rises: far from the maximum the curvature misleads."""
    for _ in range(HALVINGS):
        ahead = density.value_and_grad(point + step)[0]
        if ahead > value:
            return point + step
        step = step / 2
    return None


def _climb(density: Density, point: np.ndarray) -> tuple[np.ndarray, Product]:
    """Climb by L-BFGS; the end, and the inverse Hessian of minus the log density that was gathered on the way.

    It goes in rounds, each in units of the coordinates that the steps and changes of gradient of the last one suggest,
    since sds may differ by thousands.
    """
    units, gathered = np.ones_like(point), None
    size = max(1.0, abs(density.value_and_grad(point)[0]))
    for steps in ROUNDS:
        if gathered is not None and gathered.n_corrs:
            units = _suggested(units, gathered)
        found = _lbfgs(density, point, units, steps, LEAST_GAIN / size)
        point, gathered = units * found.x, found.hess_inv
        if found.nit < steps:
            break
    return point, _inverse(units, gathered)


def _suggested(units: np.ndarray, gathered: LbfgsInvHessProduct) -> np.ndarray:
    """Give units (D,) in which steps (M, D) and changes of gradient (M, D) would have been of one size."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = ((gathered.sk**2).sum(axis=0) / (gathered.yk**2).sum(axis=0)) ** 0.25
    return units * np.where(np.isfinite(ratio) & (ratio > 0), ratio, 1.0)


def _inverse(units: np.ndarray, gathered: LbfgsInvHessProduct) -> Product:
    """Give the inverse Hessian that steps and changes of gradient tell, in the coordinates themselves.

    Where they tell nothing scipy's has the curvature one; this one has that of the last step (Nocedal & Wright 2006,
    equation 7.20): it takes another unit of length, and back.
    """
    if not gathered.n_corrs:
        return lambda vector: units**2 * vector
    step, change = gathered.sk[-1], gathered.yk[-1]
    size = np.sqrt((step @ change) / (change @ change))
    scaled = LbfgsInvHessProduct(gathered.sk / size, gathered.yk * size)
    return lambda vector: units * size * scaled.matvec(units * size * vector)


def _lbfgs(density: Density, point: np.ndarray, units: np.ndarray, steps: int, tolerance: float) -> Any:
    def loss(x: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = density.value_and_grad(units * x)
        if not (np.isfinite(value) and np.isfinite(gradient).all()):
            return REFUSED, np.zeros_like(x)
        return -value, -gradient * units

    options = {"maxiter": steps, "maxcor": MEMORY, "ftol": tolerance, "gtol": 0.0}
    return minimize(loss, point / units, jac=True, method="L-BFGS-B", options=options)


def newton_step(density: Density, point: np.ndarray, gradient: np.ndarray, inverse: Product) -> Solved:
    """Solve for Newton's step by conjugate gradients, preconditioned by an approximate ``inverse`` Hessian.

    Where a direction turns up in which the density is not concave the step so far is taken, or the preconditioned
    gradient: both go uphill (Steihaug 1983).
    """
    products = _Products(density, point, gradient)
    step, gains, residual = np.zeros_like(gradient), [0.0], gradient
    ahead = direction = inverse(residual)
    squared = length = residual @ ahead
    number = 0
    for number in range(1, min(MAX_PRODUCTS, 2 * len(point)) + 1):
        if not squared > 0:  # nothing is left, or the preconditioner is rounding
            break
        product, bend = products.along(direction, length)
        if not bend > 0:
            return Solved(
                step if gains[-1] else ahead, float(np.sqrt(max(gains[-1], squared))), proper=False, num_products=number
            )
        size = squared / bend
        step, residual = step + size * direction, residual - size * product
        gains.append(gains[-1] + size * squared)
        if len(gains) > DELAY + 1 and gains[-1] - gains[-1 - DELAY] < ENOUGH * gains[-1]:
            break
        ahead = inverse(residual)
        before, squared = squared, residual @ ahead
        direction = ahead + squared / before * direction
        length = squared + (squared / before) ** 2 * length
    return Solved(step, float(np.sqrt(gains[-1])), proper=bool(np.isfinite(gains[-1])), num_products=number)


def _concave(density: Density, point: np.ndarray, gradient: np.ndarray, inverse: Product) -> bool:
    """Look for a direction in which the density is not concave, by conjugate gradients from a random one.

    Their directions span those in which the curvature is extreme, as Lanczos's method does.
    """
    products = _Products(density, point, gradient)
    residual = np.random.default_rng(0).standard_normal(len(point))
    direction = inverse(residual)
    squared = length = residual @ direction
    for _ in range(min(PROBES, len(point))):
        product, bend = products.along(direction, length)
        if not bend > 0:
            return False
        residual = residual - squared / bend * product
        ahead = inverse(residual)
        before, squared = squared, residual @ ahead
        if not squared > 0:
            break
        direction = ahead + squared / before * direction
        length = squared + (squared / before) ** 2 * length
    return True


class _Products:
    """Products of minus the Hessian at a point (D,) with vectors, by differences of gradients."""

    def __init__(self, density: Density, point: np.ndarray, gradient: np.ndarray) -> None:
        self.density, self.point, self.gradient = density, point, gradient

    def along(self, direction: np.ndarray, squared: float) -> tuple[np.ndarray, float]:
        """Give the product with a direction (D,), and the curvature along it; ``squared``: a guess of that."""
        for _ in range(2):
            scale = APART_SDS / np.sqrt(squared)
            beside = self.density.value_and_grad(self.point + scale * direction)[1]
            product = (self.gradient - beside) / scale
            bend = float(direction @ product)
            if not squared / FAR_OFF**2 < abs(bend) < squared * FAR_OFF**2 and abs(bend) > 0:
                squared = abs(bend)
                continue
            break
        return product, bend
