"""A log density in the coordinates in which a Gaussian is standard.

NUTS with a mass matrix M is NUTS with the unit matrix in coordinates z, x = loc + L z, where L L^T is the inverse of M
(Neal 2011, section 4.1). So a full covariance as mass matrix needs no sampler that knows of full matrices: a diagonal,
adapted in z, corrects the scales that the covariance got wrong.
"""

from typing import Any

import numpy as np
import torch

from inference.density import Density
from inference.errors import one_line
from inference.gaussian import Gaussian
from inference.native.whiten import WhitenedFunction
from inference.nutpie_chains import Chains


class Whitened:
    """The log density of x = loc + scale z, as a function of z, without the constant log |det scale|.

    Attributes
    ----------
    dim
        D.
    native
        Made around the density's native code; None where it has none.
    reason
        As that of `Density`.
    """

    def __init__(self, density: Density, within: Gaussian) -> None:
        self.density, self.within = density, within
        self.dim, self.reason = density.dim, density.reason
        self.native: Any = None
        if density.native is not None:
            try:
                self.native = WhitenedFunction(density.native, within.loc, within.scale)
            except Exception as error:  # of the compiler
                self.reason = (
                    f"no native code for whitened coordinates, so that it runs through Python: {one_line(error)}"
                )

    @property
    def backend(self) -> str:
        """Name of the way in which the density is evaluated."""
        return f"whitened {self.density.backend}"

    @property
    def num_gradients(self) -> int:
        """Gradients that the density has given."""
        return self.density.num_gradients

    @num_gradients.setter
    def num_gradients(self, value: int) -> None:
        self.density.num_gradients = value

    def value_and_grad(self, z: np.ndarray) -> tuple[float, np.ndarray]:
        """Log density and its gradient (D,) at one z (D,)."""
        scale = self.within.scale
        value, gradient = self.density.value_and_grad(self.within.transform(z))
        return value, gradient @ scale if self.within.full_rank else gradient * scale

    def eager(self, z: torch.Tensor) -> torch.Tensor:
        """Log density at one z (D,), by running the Pyro model."""
        loc, scale = (torch.as_tensor(part, dtype=z.dtype) for part in (self.within.loc, self.within.scale))
        return self.density.eager(loc + (scale @ z if self.within.full_rank else scale * z))

    def in_x(self, points: np.ndarray, stats: dict[str, np.ndarray], adapted: dict[str, np.ndarray]) -> Chains:
        """Map draws z (chain, draw, D), and the diagonal of the inverse mass matrix (chain, D), to x."""
        squares = self.within.scale**2
        mass = adapted["inverse_mass"]
        mass = mass @ squares.T if self.within.full_rank else mass * squares
        return self.within.transform(points), stats, adapted | {"inverse_mass": mass}
