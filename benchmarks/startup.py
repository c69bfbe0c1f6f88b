"""Start-up of ours: from `fit` to a posterior on a machine that never compiled, then again, then from the cache.

Usage: python -m benchmarks.startup [--repeats 3]
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from statistics import median

from benchmarks import machine
from benchmarks.measure import ROOT, fresh_caches
from benchmarks.models import CASES
from benchmarks.tables import markdown, number

IMPORT = """
import time
begin = time.perf_counter()
import pyro
between = time.perf_counter()
import inference
print(time.perf_counter() - between)
"""


def fit_seconds(models: list[str]) -> list[float]:
    """Fit models one after another in this process; wall seconds of each, imports left out."""
    from inference import NUTS, fit

    engine, result = NUTS(num_warmup=500, num_samples=1000), []
    for name in models:
        data = CASES[name].data()
        begin = time.perf_counter()
        fit(CASES[name].pyro, data, engine, seed=1, progress=False)
        result.append(time.perf_counter() - begin)
    return result


def _run(cache: str, code: str) -> list[float]:
    """Run code in a fresh process; the numbers it printed."""
    environment = {**os.environ, **fresh_caches(cache)}
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    return [float(word) for word in done.stdout.split()]


def measure_once() -> dict[str, float]:
    """Measure each start once."""
    fits = "from benchmarks.startup import fit_seconds; print(*fit_seconds({!r}))"
    with tempfile.TemporaryDirectory() as cache:
        first, further = _run(cache, fits.format(["schools", "ar5"]))
        (cached,) = _run(cache, fits.format(["schools"]))
        (imported,) = _run(cache, IMPORT)
    return {
        "eight schools, empty cache": first,
        "a further model of that size (AR(5)), same process, empty cache": further,
        "eight schools, second process, from the cache": cached,
        "`import inference` beyond `import pyro`": imported,
    }


def startup_table(repeats: int = 3) -> str:
    """Seconds of `fit`, medians over repeats."""
    runs = [measure_once() for _ in range(repeats)]
    rows = [[what, number(median(run[what] for run in runs))] for what in runs[0]]
    return markdown(["from `fit` to the draws (4 x (500 + 1000))", "seconds"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    print(machine.described())
    print()
    print(startup_table(arguments.repeats))


if __name__ == "__main__":
    main()
