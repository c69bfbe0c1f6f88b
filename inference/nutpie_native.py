"""nutpie on a compiled density: no Python in the loop, chains in threads on all cores.

nutpie samples PyMC models through the addresses of two C functions (`_lib.LogpFunc`, `_lib.ExpandFunc`). Compiled
densities have the same signatures, so they enter by that door. It is not a documented interface: where a version of
nutpie has changed it, `native_model` raises, and the engine goes through Python instead.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from nutpie import _lib
from nutpie.sample import CompiledModel

from inference.native import NativeFunction


@dataclass(frozen=True, eq=False)
class NativeModel(CompiledModel):
    """A compiled density as nutpie's sampler wants its models."""

    native: NativeFunction
    dim: int
    start: Callable[[int], np.ndarray]

    @property
    def n_dim(self) -> int:
        """Length of the unconstrained vector."""
        return self.dim

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of what is stored of each draw."""
        return {"point": (self.dim,)}

    @property
    def coords(self) -> dict[str, Any]:
        """No labels: the caller names the coordinates."""
        return {}

    def _make_model(self, init_mean: Any) -> Any:
        constants = self.native.constants_address
        density = _lib.LogpFunc(self.native.log_density_address, constants, self.native)
        copy = _lib.ExpandFunc(self.dim, self.dim, self.native.copy_address, constants, self.native)
        sizes = {"coordinate": self.dim}
        variables = _lib.PyVariable.new_variables(["point"], ["float64"], [(self.dim,)], sizes, self.dims)
        return _lib.PyMcModel(density, copy, variables, self.dim, sizes, {}, self.start, None)

    def _make_sampler(self, settings: Any, init_mean: Any, cores: int, progress_type: Any, store: Any) -> Any:
        return _lib.PySampler.from_pymc(settings, cores, self._make_model(init_mean), progress_type, store)


def native_model(native: NativeFunction, dim: int, start: Callable[[int], np.ndarray]) -> NativeModel:
    """Wrap a compiled density for `nutpie.sample`.

    Parameters
    ----------
    native
        Compiled from a graph that takes a point (D,) and gives (gradient, value).
    dim
        D.
    start
        Takes a seed, returns a starting point (D,).

    Raises
    ------
    Exception
        Of any kind, where nutpie's interface is another one.
    """
    model = NativeModel(dims={"point": ("coordinate",)}, native=native, dim=dim, start=start)
    model._make_model(None)  # fails here rather than in the middle of `nutpie.sample`
    if not hasattr(_lib.PySampler, "from_pymc"):
        raise AttributeError("nutpie has no PySampler.from_pymc")
    return model
