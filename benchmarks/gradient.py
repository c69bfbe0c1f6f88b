"""One gradient of the log density: native code, recorded graph, eager Pyro; and how its cost grows with the data.

Usage: python -m benchmarks.gradient [--models schools ...] [--largest 1000000] [--no-growth] [--out docs/benchmarks.md]
"""

import ctypes
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from benchmarks import machine
from benchmarks.command import parser, publish
from benchmarks.models import CASES, Case, hmm_case, logistic_case
from benchmarks.tables import markdown, number
from inference.density import Density
from inference.isolation import isolated
from inference.native import NativeFunction
from inference.native.compiler import build
from inference.sites import read_sites
from inference.validate import prepare_data

BATCH = 64
BLOCK_SECONDS, NUM_BLOCKS = 0.05, 7
ROWS = (10, 100, 1000, 10_000, 100_000, 1_000_000)
STATES = (2, 4, 8, 16, 32)
STEPS = (20, 200, 2000, 20_000)

# Calls a compiled density again and again, as nutpie does: no Python in the loop.
LOOP = """
#include <cstdint>
extern "C" void repeat(int64_t (*evaluate)(const void *const *, void *const *, const void *const *),
                       const void *const *inputs, void *const *outputs, const void *const *constants, int64_t times) {
  for (int64_t i = 0; i < times; ++i) evaluate(inputs, outputs, constants);
}
"""


@dataclass(frozen=True, kw_only=True)
class Costs:
    """Microseconds per gradient, and seconds until there is one; NaN where it was not measured."""

    native: float
    native_batch: float
    graph: float
    graph_batch: float
    eager: float
    recording: float
    compiling: float
    note: str = ""

    def cells(self) -> list[str]:
        """Write the numbers for a row of a table."""
        compiled, recorded = (self.native, self.native_batch), (self.graph, self.graph_batch)
        times = (*compiled, *recorded, self.eager, self.eager / self.native)
        return [number(value) for value in (*times, self.recording, self.compiling)]


HEADER = [
    *("native", f"native, batch of {BATCH}", "recorded graph", f"recorded graph, batch of {BATCH}", "eager Pyro"),
    *("eager / native", "recording, s", "compiling, s"),
]


def best_microseconds(block: Callable[[int], None]) -> float:
    """Time ``block(n)``, which does something n times: the least over several blocks, per time."""
    times, elapsed = 1, 0.0
    while elapsed < BLOCK_SECONDS:
        begin = time.perf_counter()
        block(times)
        elapsed = time.perf_counter() - begin
        times = times if elapsed >= BLOCK_SECONDS else times * max(2, min(10, int(BLOCK_SECONDS / max(elapsed, 1e-7))))
    results = []
    for _ in range(NUM_BLOCKS if elapsed < 1.0 else 1):
        begin = time.perf_counter()
        block(times)
        results.append((time.perf_counter() - begin) / times)
    return 1e6 * min(results)


def repeated(function: Callable[[], object]) -> Callable[[int], None]:
    """Make a block that calls a Python function n times."""

    def block(times: int) -> None:
        for _ in range(times):
            function()

    return block


def native_block(native: NativeFunction, point: np.ndarray) -> Callable[[int], None]:
    """Make a block that calls a compiled density n times from C."""
    gradient, value = np.empty_like(point), np.empty(())
    inputs, outputs = ((ctypes.c_void_p * len(a))(*(x.ctypes.data for x in a)) for a in ([point], [gradient, value]))
    loop = ctypes.CDLL(str(build(LOOP))).repeat
    evaluate, constants = ctypes.c_void_p(native.evaluate_address), ctypes.c_void_p(native.constants_address)

    def block(times: int) -> None:
        loop(evaluate, inputs, outputs, constants, ctypes.c_int64(times))
        if not (np.isfinite(value) and np.isfinite(gradient).all()):
            raise ArithmeticError(f"not finite at {point}")

    return block


def costs(case: Case) -> Costs:
    """Measure one model."""
    with isolated(0, dtype=torch.float64, own=[case.pyro]):
        sites = read_sites(case.pyro, prepare_data(case.pyro, case.data()))
        begin = time.perf_counter()
        density = Density(sites)
        recording = time.perf_counter() - begin
        points = density.starts(BATCH, generator=np.random.default_rng(0))

        def batch() -> float:
            return best_microseconds(repeated(lambda: density.grad(points))) / BATCH

        eager = _eager_microseconds(density, points[0])
        graph = best_microseconds(repeated(lambda: density.value_and_grad(points[0])))
        graph_batch = batch()
        begin = time.perf_counter()
        density.compile()
        compiling = time.perf_counter() - begin
        compiled = density.native is not None
        return Costs(
            native=best_microseconds(native_block(density.native, points[0])) if compiled else float("nan"),
            native_batch=batch() if compiled else float("nan"),
            graph=graph,
            graph_batch=graph_batch,
            eager=eager,
            recording=recording,
            compiling=compiling,
            note=density.reason,
        )


def single_costs(model: Callable[..., Any], data: Mapping[str, Any]) -> dict[str, float]:
    """Measure one gradient of a model: in native code, where there is any, and by Pyro itself."""
    with isolated(0, dtype=torch.float64, own=[model]):
        density = Density(read_sites(model, prepare_data(model, data)))
        (point,) = density.starts(1, generator=np.random.default_rng(0))
        found = {"eager_microseconds": _eager_microseconds(density, point)}
        density.compile()
        if density.native is not None:
            found["native_microseconds"] = best_microseconds(native_block(density.native, point))
        return found


def _eager_microseconds(density: Density, point: np.ndarray) -> float:
    leaf = torch.as_tensor(point)
    return best_microseconds(repeated(lambda: _eager(density, leaf)))


def _eager(density: Density, point: torch.Tensor) -> torch.Tensor:
    leaf = point.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(density.eager(leaf), leaf)
    return gradient


def table(first: str, cases: dict[str, Case], *, per: str = "", sizes: tuple[int, ...] = ()) -> str:
    """Measure cases, a row each; with ``sizes`` a last column of nanoseconds per unit of size."""
    rows, notes = [], []
    for i, (shown, case) in enumerate(cases.items()):
        print(f"gradient: {case.name}", file=sys.stderr, flush=True)
        found = costs(case)
        rows.append([shown, *found.cells(), *([number(1e3 * found.native / sizes[i])] if sizes else [])])
        notes += [f"- {shown}: {found.note}"] if found.note else []
    header = [first, *HEADER, *([f"native, ns per {per}"] if sizes else [])]
    return "\n\n".join([markdown(header, rows), *notes])


def main() -> None:
    arguments_parser = parser(__doc__)
    arguments_parser.add_argument("--largest", type=int, default=ROWS[-1], help="most rows of the logistic regression")
    arguments_parser.add_argument("--no-growth", action="store_true", help="only the seven models")
    arguments = arguments_parser.parse_args()
    parts = [
        machine.described(),
        "Microseconds per gradient, the least of several blocks: compiled code called from C, as nutpie calls it; "
        "the recorded graph by `Density.value_and_grad`; batches by `Density.grad`, per point; the Pyro model itself "
        "under autograd.",
        table("model", {CASES[name].title: CASES[name] for name in arguments.models}),
    ]
    if not arguments.no_growth:
        rows = tuple(n for n in ROWS if n <= arguments.largest)
        regressions = {f"{n} rows": logistic_case(n, 4) for n in rows}
        chains = {f"{k} states": hmm_case(k, 200) for k in STATES}
        series = {f"{t} steps": hmm_case(3, t) for t in STEPS}
        parts += [
            "### Logistic regression with 4 columns\n\n" + table("", regressions, per="row", sizes=rows),
            "### Hidden Markov model, T=200\n\n" + table("", chains, per="state", sizes=STATES),
            "### Hidden Markov model, K=3\n\n" + table("", series, per="step", sizes=STEPS),
        ]
    publish("gradient", parts, arguments.out)


if __name__ == "__main__":
    main()
