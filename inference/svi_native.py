"""SVI steps without Python: gradients from compiled code, and the loop around them in C++."""

import ctypes
import time
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from inference.native.compiler import build
from inference.optimise import AdamRates
from inference.svi_graph import NoiseStream, StepGraph
from inference.svi_loop import Taken

# A call into native code lasts about this long, so that Ctrl-C is heard and the progress bar moves.
_SECONDS_PER_CALL = 0.1
# Steps in the first call, before their time is known.
_FIRST_STEPS = 16
_SYMBOLS = {torch.float64: "ppl_adam_float64", torch.float32: "ppl_adam_float32"}
_FAILED = 2


class _Run(ctypes.Structure):
    """The struct ``Run`` of ``adam.cpp``."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("evaluate", "constants")),
        ("num_params", ctypes.c_int64),
        ("param_sizes", ctypes.c_void_p),
        ("num_noise", ctypes.c_int64),
        ("noise_sizes", ctypes.c_void_p),
        ("particles", ctypes.c_int64),
        *((name, ctypes.c_double) for name in ("eps", "clip_norm")),
        *((name, ctypes.c_int64) for name in ("step", "averaged")),
        *((name, ctypes.c_void_p) for name in ("params", "first", "second", "average")),
        ("add_to_average", ctypes.c_int64),
        ("num_steps", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("noise", "rates", "losses", "norms")),
        ("status", ctypes.c_int64),
    ]


class NativeSteps:
    """Steps of Adam in native code; see `inference.svi_loop.Steps`.

    Parameters
    ----------
    recorded
        The step: its parameters, which are moved, and its noise.
    function
        Its graph, compiled: anything with ``evaluate_address`` and ``constants_address``.
    rates
        Settings of the optimiser.
    num_steps
        The most steps that will be taken.
    """

    name = "native"

    def __init__(self, recorded: StepGraph, function: Any, rates: AdamRates, num_steps: int) -> None:
        dtype = recorded.params[0].dtype
        self._call = getattr(_library(), _SYMBOLS[dtype])
        self._call.restype = ctypes.c_int64
        self._params, self._function, self._rates = recorded.params, function, rates
        self._noise = NoiseStream(recorded, num_steps)
        self._pace = _FIRST_STEPS
        # The numbers of all parameters in one row, and what Adam and the average keep of them.
        self._flat = torch.cat([p.detach().reshape(-1) for p in recorded.params])
        self._first, self._second, self._average = (torch.zeros_like(self._flat) for _ in range(3))
        self._sizes = [
            np.array([t.shape.numel() for t in tensors], np.int64) for tensors in (recorded.params, recorded.noise)
        ]
        self._run = _Run(
            evaluate=function.evaluate_address,
            constants=function.constants_address,
            num_params=len(recorded.params),
            param_sizes=self._sizes[0].ctypes.data,
            num_noise=len(recorded.noise),
            noise_sizes=self._sizes[1].ctypes.data,
            particles=recorded.particles,
            eps=rates.eps,
            clip_norm=rates.clip_norm or 0.0,
            params=self._flat.data_ptr(),
            first=self._first.data_ptr(),
            second=self._second.data_ptr(),
            average=self._average.data_ptr(),
        )

    def take(self, most: int, *, average: bool) -> Taken:
        """Take steps for about a tenth of a second."""
        num, noise = self._noise.take(min(most, self._pace))
        addresses = np.array([part.data_ptr() for part in noise], np.uintp)
        rates, losses, norms = self._rates.take(num), np.empty(num), np.empty(num)
        run = self._run
        run.num_steps, run.add_to_average, run.noise = num, average, addresses.ctypes.data
        run.rates, run.losses, run.norms = rates.ctypes.data, losses.ctypes.data, norms.ctypes.data
        begin = time.perf_counter()
        taken = self._call(ctypes.byref(run))
        if run.status == _FAILED:
            raise RuntimeError("the compiled step failed")
        self._write(self._flat)
        elapsed = time.perf_counter() - begin
        self._pace = max(1, min(8 * num, int(_SECONDS_PER_CALL * num / max(elapsed, 1e-9))))
        return Taken(losses[:taken], norms[:taken], bool(run.status))

    def shrink(self, factor: float) -> None:
        """Multiply the learning rate."""
        self._rates.shrink(factor)

    def settle(self) -> None:
        """Move the parameters to the average of their iterates."""
        if self._run.averaged:
            self._write(self._average)

    def _write(self, numbers: torch.Tensor) -> None:
        for p, part in zip(self._params, numbers.split(self._sizes[0].tolist()), strict=True):
            p.data.copy_(part.view_as(p))


@cache
def _library() -> ctypes.CDLL:
    return ctypes.CDLL(str(build((Path(__file__).parent / "native" / "adam.cpp").read_text())))
