"""Variational autoencoders: time of a training step beside a loop written by hand in PyTorch.

Usage: python -m benchmarks.vae [--section throughput] [--repeats 5] [--threads 1] [--out docs/benchmarks.md]
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch

from benchmarks import machine
from benchmarks.command import publish
from benchmarks.tables import markdown
from benchmarks.vae_loops import DIGITS, MNIST, Architecture, by_hand, by_svi, pictures

# Rows: whole batches, so that both loops do the same; steps: of the shorter and of the longer run, whose difference is
# free of what comes before the first step.
BATCHES = 20
STEPS = {DIGITS.name: (100, 900), MNIST.name: (40, 160)}


def per_step(run: Callable[[int], list[float]], few: int, many: int) -> tuple[float, float]:
    """Seconds and processor seconds of a step, from a short and a long run."""
    run(2)  # torch imports parts of itself at the first optimiser
    begin = time.perf_counter(), time.process_time()
    run(few)
    middle = time.perf_counter(), time.process_time()
    run(many)
    end = time.perf_counter(), time.process_time()
    return tuple((e - m - (m - b)) / (many - few) for b, m, e in zip(begin, middle, end, strict=True))


def compared(sizes: Architecture, repeats: int) -> list[list[str]]:
    """Rows of the table of one architecture: the loops take turns, and each is the median of its repeats."""
    x = pictures(sizes, BATCHES * sizes.batch)
    loops: dict[str, Callable[[int], list[float]]] = {
        "by hand": lambda num: by_hand(x, sizes, num, fused=False),
        "by hand, fused Adam": lambda num: by_hand(x, sizes, num, fused=True),
        "SVI": lambda num: by_svi(x, sizes, num),
    }
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in loops}
    for _ in range(repeats):
        for name, run in loops.items():
            times[name].append(per_step(run, *STEPS[sizes.name]))
            print(f"{sizes.name}, {name}: {1e3 * times[name][-1][1]:.2f} ms", file=sys.stderr, flush=True)
    wall, cpu = ({name: median(t[i] for t in found) for name, found in times.items()} for i in (0, 1))
    rows = []
    for name in loops:
        ratios = [f"{cpu['SVI'] / cpu[name]:.2f}" if name != "SVI" else ""]
        rows.append([sizes.name, name, f"{1e3 * wall[name]:.2f}", f"{1e3 * cpu[name]:.2f}", *ratios])
    return rows


def throughput(options: argparse.Namespace) -> str:
    """Compare the time of a step."""
    torch.set_num_threads(options.threads)
    rows = [row for sizes in (DIGITS, MNIST) for row in compared(sizes, options.repeats)]
    header = ["batches of 256", "loop", "ms a step", "processor ms a step", "SVI / this loop"]
    lead = (
        f"Milliseconds of a training step, analytic KL, Adam, float32, {options.threads} thread(s), median of "
        f"{options.repeats} repeats that take turns; the ratio is that of processor times."
    )
    return f"### Throughput\n\n{lead}\n\n{markdown(header, rows)}"


SECTIONS: dict[str, Callable[[argparse.Namespace], str]] = {"throughput": throughput}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--section", nargs="+", default=list(SECTIONS), choices=list(SECTIONS))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="a document whose section of this name is replaced or added")
    options = parser.parse_args()
    publish("vae", [machine.described(), *(SECTIONS[name](options) for name in options.section)], options.out)


if __name__ == "__main__":
    main()
