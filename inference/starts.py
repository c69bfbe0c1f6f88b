"""Where an optimisation begins: the best of a few dispersed Gaussians, by their bound."""

import numpy as np
from scipy.optimize import minimize

from inference.density import Density
from inference.gaussian import Gaussian, elbo, laplace

# The ascent to a mode that offers a Laplace start is short: a mode may lie at infinity (funnels).
MODE_STEPS = 100


def best_gaussian(density: Density, point: np.ndarray, z: np.ndarray, *, full_rank: bool) -> Gaussian:
    """Choose, by the bound on base draws ``z`` (n, D), between Gaussians at a point (D,) and a Laplace fit above it.

    A Laplace start alone can be catastrophic (a mode at the neck of a funnel), so it has to win.
    """
    eye = np.eye(len(point)) if full_rank else np.ones(len(point))
    candidates = [Gaussian(point, scale * eye) for scale in (1.0, 0.1)]
    at_mode = laplace(density.grad, climb_to_mode(density, point), full_rank=full_rank)
    candidates += [at_mode] if at_mode is not None else []
    return max(candidates, key=lambda q: elbo(density.log_density, q, z)[0])


def climb_to_mode(density: Density, point: np.ndarray) -> np.ndarray:
    """Follow L-BFGS uphill from a point (D,), for at most `MODE_STEPS` steps, to a point of higher log density."""

    def loss(x: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = density.value_and_grad(x)
        if not (np.isfinite(value) and np.isfinite(gradient).all()):
            return 1e30, np.zeros_like(x)
        return -value, -gradient

    return minimize(loss, point, jac=True, method="L-BFGS-B", options={"maxiter": MODE_STEPS}).x
