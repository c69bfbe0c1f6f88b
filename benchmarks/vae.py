"""Variational autoencoders: time of a training step beside a loop written by hand in PyTorch, and how well they score.

    python -m benchmarks.vae --section throughput [--repeats 5]
    python -m benchmarks.vae --section digits [--seeds 5]
    python -m benchmarks.vae --section mnist --data mnist.npz --minutes 25            # on a CPU
    python -m benchmarks.vae --section mnist --k 50 --epochs 3280 --batch-size 20 --lr 0.001 --schedule paper \
        --rows 10000 --device auto                                                    # in full, on a GPU

``--out`` names a document in which the section is replaced or added.
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
from benchmarks.vae_likelihood import SCHEDULES, digits, mnist
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
    rows = [row for sizes in (DIGITS, MNIST) for row in compared(sizes, options.repeats)]
    header = ["batches of 256", "loop", "ms a step", "processor ms a step", "SVI / this loop"]
    lead = (
        f"Milliseconds of a training step, analytic KL, Adam, float32, {options.threads} thread(s), median of "
        f"{options.repeats} repeats that take turns; the ratio is that of processor times."
    )
    return f"### Throughput\n\n{lead}\n\n{markdown(header, rows)}"


SECTIONS: dict[str, Callable[[argparse.Namespace], str]] = {"throughput": throughput, "digits": digits, "mnist": mnist}


def parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--section", default="throughput", choices=list(SECTIONS))
    made.add_argument("--repeats", type=int, default=5, help="throughput: of each loop")
    made.add_argument("--threads", type=int, default=1)
    made.add_argument("--seeds", type=int, default=5, help="digits: so many trainings")
    made.add_argument("--num-samples", type=int, default=5000, help="of importance sampling, for each picture")
    made.add_argument("--data", help="mnist: the file or folder; by default it is downloaded")
    made.add_argument("--k", type=int, default=1, help="mnist: draws of the bound; 1 is the ELBO")
    made.add_argument("--epochs", type=int, help="mnist: by default as many as the time limit allows")
    made.add_argument("--minutes", type=float, default=25.0, help="mnist: of training; on a CPU those of the processor")
    made.add_argument("--batch-size", type=int, default=100, help="mnist")
    made.add_argument("--lr", type=float, default=1e-3, help="mnist: first learning rate")
    made.add_argument("--schedule", default="cosine", choices=list(SCHEDULES), help="mnist")
    made.add_argument("--rows", type=int, default=1000, help="mnist: test pictures that are scored with all samples")
    made.add_argument("--device", default="cpu", choices=["auto", "cpu", "cuda"], help="mnist")
    made.add_argument("--seed", type=int, default=0, help="mnist")
    made.add_argument("--progress", action="store_true", help="show a bar with the current bound")
    made.add_argument("--out", type=Path, help="a document whose section of this name is replaced or added")
    return made


def main() -> None:
    options = parser().parse_args()
    torch.set_num_threads(options.threads)
    parts = [machine.described(), SECTIONS[options.section](options)]
    publish("vae", parts, options.out, mark=f"vae {options.section}")


if __name__ == "__main__":
    main()
