"""SVI steps without Python: gradients from compiled code, and the loop around them in C++."""

import ctypes
import time
from functools import cache
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch

from inference.native.compiler import build
from inference.optimise import AdamRates
from inference.stopping import BLOCK_STEPS
from inference.svi_graph import NoiseStream, StepGraph
from inference.svi_loop import Taken

# A call into native code lasts about this long, so that Ctrl-C is heard and the progress bar moves.
_SECONDS_PER_CALL = 0.1
# Steps in the first call, before their time is known.
_FIRST_STEPS = 16
_REAL = {torch.float64: "double", torch.float32: "float"}
_FAILED = 2


class _Run(ctypes.Structure):
    """The struct ``Run`` of ``adam.cpp``."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("evaluate", "constants", "inputs", "outputs")),
        *((name, ctypes.c_int64) for name in ("num_numbers", "num_params", "num_noise")),
        ("noise_sizes", ctypes.c_void_p),
        ("particles", ctypes.c_int64),
        *((name, ctypes.c_double) for name in ("eps", "clip_norm")),
        *((name, ctypes.c_int64) for name in ("step", "block_steps", "averaged")),
        *((name, ctypes.c_void_p) for name in ("params", "first", "second", "gradient", "part", "loss", "average")),
        *((name, ctypes.c_int64) for name in ("record", "num_steps")),
        *((name, ctypes.c_void_p) for name in ("noise", "rates", "losses", "norms", "means")),
        *((name, ctypes.c_int64) for name in ("num_means", "status")),
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
        self._call = _library(_REAL[dtype]).ppl_adam
        self._call.restype = ctypes.c_int64
        self.params, self._function, self._rates = list(recorded.params), function, rates
        self._noise = NoiseStream(recorded, num_steps)
        self._pace = _FIRST_STEPS
        # The numbers of all parameters in one row, and rows of the same length beside it.
        self._rows = {"params": torch.cat([p.detach().reshape(-1) for p in recorded.params])}
        self._rows |= {n: torch.zeros_like(self._rows["params"]) for n in ("first", "second", "gradient", "average")}
        several = recorded.particles > 1
        self._rows["part"] = torch.zeros_like(self._rows["params"]) if several else self._rows["gradient"]
        self._rows["loss"] = torch.zeros(1, dtype=dtype)
        self._sizes = [p.numel() for p in recorded.params]
        starts = [0, *accumulate(self._sizes)][:-1]
        params, part = (self._rows[name].data_ptr() for name in ("params", "part"))
        width = dtype.itemsize
        self._tables = {
            "inputs": _addresses([*(params + width * s for s in starts), *(0 for _ in recorded.noise)]),
            "outputs": _addresses([self._rows["loss"].data_ptr(), *(part + width * s for s in starts)]),
            "noise_sizes": np.array([noise.shape.numel() for noise in recorded.noise], np.int64),
        }
        self._run = _Run(
            evaluate=function.evaluate_address,
            constants=function.constants_address,
            num_numbers=sum(self._sizes),
            num_params=len(recorded.params),
            num_noise=len(recorded.noise),
            particles=recorded.particles,
            eps=rates.eps,
            clip_norm=rates.clip_norm or 0.0,
            block_steps=BLOCK_STEPS,
            **{name: row.data_ptr() for name, row in self._rows.items()},
            **{name: table.ctypes.data for name, table in self._tables.items()},
        )

    def take(self, most: int, *, record: bool) -> Taken:
        """Take steps for about a tenth of a second."""
        num, noise = self._noise.take(min(most, self._pace))
        addresses = _addresses([part.data_ptr() for part in noise])
        rates, losses, norms = self._rates.take(num), np.empty(num), np.empty(num)
        params, run = self._rows["params"], self._run
        means = np.empty(((run.averaged + num) // BLOCK_STEPS if record else 0, len(params)), params.numpy().dtype)
        run.num_steps, run.record = num, record
        for name, array in {
            "noise": addresses,
            "rates": rates,
            "losses": losses,
            "norms": norms,
            "means": means,
        }.items():
            setattr(run, name, array.ctypes.data)
        begin = time.perf_counter()
        taken = self._call(ctypes.byref(run))
        if run.status == _FAILED:
            raise RuntimeError("the compiled step failed")
        self._write()
        elapsed = time.perf_counter() - begin
        self._pace = max(1, min(8 * num, int(_SECONDS_PER_CALL * num / max(elapsed, 1e-9))))
        return Taken(losses[:taken], norms[:taken], means[: run.num_means], bool(run.status))

    def shrink(self, factor: float) -> None:
        """Multiply the learning rate."""
        self._rates.shrink(factor)

    def move(self, row: np.ndarray) -> None:
        """Move the parameters; see `inference.svi_loop.Steps.move`."""
        self._rows["params"].copy_(torch.as_tensor(row))
        self._write()

    def _write(self) -> None:
        for p, part in zip(self.params, self._rows["params"].split(self._sizes), strict=True):
            p.data.copy_(part.view_as(p))


def _addresses(numbers: list[int]) -> np.ndarray:
    return np.array(numbers, np.uintp)


@cache
def _library(real: str) -> ctypes.CDLL:
    source = (Path(__file__).parent / "native" / "adam.cpp").read_text()
    return ctypes.CDLL(str(build(f"typedef {real} Real;\n{source}")))
