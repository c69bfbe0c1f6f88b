"""A compiled graph as a function of arrays, and as an address for callers written in C or Rust."""

import ctypes
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.fx import GraphModule

from inference.native.compiler import ADVICE, NoCompiler, build, find_compiler
from inference.native.emit import emit
from inference.native.lower import Lowered, lower
from inference.native.values import BOOL, INT

# A batch that takes longer than this, in seconds, is shared out over threads, which takes some 0.05 ms.
WORTH_THREADS = 2e-4
# How long a compiler takes, on one core of 2023: to start, read the runtime and link, and per line.
COMPILE_SECONDS = 0.2
LINE_SECONDS = 3e-4
# Full optimisation of a long text takes longer than its square (8800 lines: 8.7 s, and 2.0 s the quick way).
QUICK_LINES = 3000


def compile_graph(graph: GraphModule, *example: torch.Tensor, worth: float = float("inf")) -> "NativeFunction":
    """Compile a recorded graph whose constants are folded; the library comes from the cache where it is known.

    Parameters
    ----------
    graph
        As `inference.graph.record` gives it. Its constants are read where they lie in memory, not copied.
    example
        Tensors of the shapes and dtypes of its arguments.
    worth
        Seconds that native code would save: nothing is compiled that takes longer to compile.

    Raises
    ------
    NotWorthIt
        Compiling is expected to take more than ``worth`` seconds.
    Unsupported
        An operation for which there is no native code, or a graph too large to compile.
    NoCompiler, CompileFailed
        There is no compiler, or it did not accept the source.
    """
    if find_compiler() is None:
        raise NoCompiler(ADVICE)
    lowered = lower(graph, example)
    single = any(t.dtype == torch.float32 for t in example)
    source = emit(lowered, single=single)
    lines = source.count("\n")
    quick = lines > QUICK_LINES
    expected = COMPILE_SECONDS + LINE_SECONDS * lines
    if expected > worth:  # whatever lies in the cache: equal seeds must take equal ways
        raise NotWorthIt(f"compiling would take {expected:.1f} s and save {worth:.1f} s")
    return NativeFunction(lowered, build(source, quick=quick), single=single)


class NotWorthIt(Exception):  # noqa: N818 - a choice rather than an error
    """Compiling would take longer than it saves."""


class NativeFunction:
    """A compiled function of arrays.

    Attributes
    ----------
    evaluate_address, constants_address
        The C function ``int64_t (const void* const* inputs, void* const* outputs, const void* const* constants)``, and
        its last argument. Both are valid as long as this object lives.
    log_density_address
        The function that nutpie calls, for graphs from a point to (gradient, value); else None.
    """

    def __init__(self, lowered: Lowered, library: Path, *, single: bool) -> None:
        self._real = np.dtype(np.float32 if single else np.float64)
        self._library = ctypes.CDLL(str(library))
        self._constants = [value for _, _, value in lowered.constants]  # kept alive
        self._table = (ctypes.c_void_p * max(1, len(self._constants)))(*(t.data_ptr() for t in self._constants))
        self._input_shapes = [v.shape for v in lowered.inputs]
        self._input_dtypes = [self._dtype(v.dtype) for v in lowered.inputs]
        self._outputs = [(t.shape, self._dtype(t.dtype)) for t in lowered.outputs]
        self.evaluate = self._library.ppl_evaluate
        self.evaluate.restype = ctypes.c_int64
        self.evaluate_address = _address_of(self.evaluate)
        self.constants_address = ctypes.addressof(self._table)
        density = getattr(self._library, "ppl_log_density", None)
        self.log_density_address = _address_of(density) if density else None
        self.copy_address = _address_of(self._library.ppl_copy) if density else None
        self._batch = self._library.ppl_batch if density else None
        if density:
            self._batch.argtypes = (ctypes.c_int64, *(ctypes.c_void_p,) * 4)
        self._use_threads = getattr(self._library, "ppl_use_threads", None)
        self._seconds: float | None = None  # that a point took

    def _dtype(self, name: str) -> np.dtype:
        return np.dtype({INT: np.int64, BOOL: np.bool_}.get(name, self._real))

    def __call__(self, *inputs: Any) -> tuple[np.ndarray, ...]:
        """Evaluate at arrays of the shapes of the example; new arrays come back.

        Long loops over rows are shared out over the cores; the numbers do not depend on how many there are.
        """
        arrays = [np.asarray(x, dtype, order="C") for x, dtype in zip(inputs, self._input_dtypes, strict=True)]
        for array, shape in zip(arrays, self._input_shapes, strict=True):
            if array.shape != shape:
                raise ValueError(f"inputs: expected shape {shape}, got {array.shape}.")
        outputs = [np.empty(shape, dtype) for shape, dtype in self._outputs]
        with self._all_cores():
            failed = self.evaluate(_pointers(arrays), _pointers(outputs), self._table)
        if failed:
            raise MemoryError("native code: no memory for its intermediate results.")
        return tuple(outputs)

    def batch(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Gradients (n, D) and values (n,) at points (n, D), for a graph from a point to (gradient, value).

        Points are shared out over the cores; the numbers do not depend on how many there are.
        """
        points = np.ascontiguousarray(points, np.float64)
        (dim,) = self._input_shapes[0]
        if points.ndim != 2 or points.shape[1] != dim:
            raise ValueError(f"points: expected shape (n, {dim}), got {points.shape}.")
        gradients, values = np.empty_like(points), np.empty(len(points))
        if self._seconds is None and len(points):
            begin = time.perf_counter()
            self._fill(points[:1], gradients[:1], values[:1])
            self._seconds = time.perf_counter() - begin
        if not len(points) or self._seconds * len(points) < WORTH_THREADS:
            self._fill(points, gradients, values)
            return gradients, values
        if len(points) < num_cores():  # then within an evaluation, over rows
            with self._all_cores():
                self._fill(points, gradients, values)
            return gradients, values
        cuts = np.linspace(0, len(points), num_cores() + 1).astype(int)
        own, *others = (slice(a, b) for a, b in pairwise(cuts))
        tasks = [
            _threads(os.getpid()).submit(self._fill, points[part], gradients[part], values[part]) for part in others
        ]
        begin = time.perf_counter()
        self._fill(points[own], gradients[own], values[own])
        self._seconds = (time.perf_counter() - begin) / own.stop
        for task in tasks:
            task.result()
        return gradients, values

    @contextmanager
    def _all_cores(self) -> Iterator[None]:
        """Let one evaluation use all cores, if it has loops that are worth it; only of this thread."""
        if self._use_threads is None:
            yield
            return
        self._use_threads(ctypes.c_int64(num_cores()))
        try:
            yield
        finally:
            self._use_threads(ctypes.c_int64(1))

    def _fill(self, points: np.ndarray, gradients: np.ndarray, values: np.ndarray) -> None:
        if self._batch(len(points), points.ctypes.data, gradients.ctypes.data, values.ctypes.data, self._table):
            raise MemoryError("native code: no memory for its intermediate results.")


def num_cores() -> int:
    """Count the cores that this process may use, which in a container are fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache
def _threads(process: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(num_cores(), thread_name_prefix="ppl-batch")


def _address_of(function: Any) -> int:
    return ctypes.cast(function, ctypes.c_void_p).value


def _pointers(arrays: list[np.ndarray]) -> ctypes.Array:
    return (ctypes.c_void_p * len(arrays))(*(a.ctypes.data for a in arrays))
