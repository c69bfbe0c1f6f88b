"""A compiled log density in other coordinates, without compiling it again: a small function around its address."""

import ctypes
from functools import cache
from pathlib import Path

import numpy as np

from inference.native.compiler import build
from inference.native.function import NativeFunction


class _Whitened(ctypes.Structure):
    """The struct ``Whitened`` of ``whiten.cpp``."""

    _fields_ = [(name, ctypes.c_void_p) for name in ("inner", "data", "loc", "scale", "transposed")]


class WhitenedFunction:
    """The log density of x = loc + scale z as a function of z, for `inference.nutpie_native.native_model`.

    Its value is log p(x), without the constant log |det scale|; a gradient costs D^2 multiplications more.

    Parameters
    ----------
    native
        A compiled graph from a point x (D,) to (gradient, value).
    loc
        (D,).
    scale
        (D, D), lower triangular, or (D,).

    Attributes
    ----------
    log_density_address, constants_address, copy_address
        As those of `NativeFunction`; valid as long as this object lives.

    Raises
    ------
    NoCompiler, CompileFailed
        The function, which is compiled once per machine, could not be.
    """

    def __init__(self, native: NativeFunction, loc: np.ndarray, scale: np.ndarray) -> None:
        self._native = native
        self._arrays = [np.array(loc, np.float64), np.array(scale, np.float64, order="C")]
        if scale.ndim == 2:
            self._arrays.append(np.array(scale.T, np.float64, order="C"))
        self._whitened = _Whitened(
            native.log_density_address, native.constants_address, *(a.ctypes.data for a in self._arrays)
        )
        self._function = _library().ppl_whitened
        self.log_density_address = ctypes.cast(self._function, ctypes.c_void_p).value
        self.constants_address = ctypes.addressof(self._whitened)
        self.copy_address = native.copy_address


@cache
def _library() -> ctypes.CDLL:
    return ctypes.CDLL(str(build((Path(__file__).parent / "whiten.cpp").read_text())))
