"""SVI: microseconds per step, ours against Pyro, NumPyro and PyMC, and how long SVI and AutoVI take to a good bound.

Adam, one particle, float64. Each run of the first tables is a process of its own. Prints Markdown.

Usage: python -m benchmarks.svi [--models schools ...] [--peers ours numpyro ...] [--repeats 3] [--reuse DIR]
       [--again ours] [--out docs/benchmarks.md] [--no-bounds]
"""

import sys
import time
from collections import defaultdict
from statistics import median
from typing import Any

import numpy as np

from benchmarks.command import bench_of, peers_parser, publish
from benchmarks.measure import Bench
from benchmarks.models import CASES
from benchmarks.peers import SVI_VARIANTS, TITLES
from benchmarks.tables import markdown, mean_cell, number

MODELS = ("schools", "logistic-1000x20", "logistic-20000x50", "groups")
PEERS = ("ours", "pyro", "numpyro", "pymc+nutpie")
GUIDES = {"normal": "Mean-field", "multivariate_normal": "Full-rank"}
# Steps that take about a second or more, compiled (ours, NumPyro), interpreted, and in between.
NUM_STEPS = {"ours": 50_000, "numpyro": 50_000, "pyro": 300, "pymc+nutpie": 3_000}
LARGE, LARGE_SHARE = "logistic-20000x50", 0.05
# The bound counts as good within this many nats of the best one of its family; it is known to about a fifth of that.
GOOD = 0.1
GRID = (500, 2000, 8000, 32000)

Times = dict[tuple[str, str, str], float]


def microseconds(bench: Bench, models: list[str], peers: list[str], repeats: int) -> tuple[Times, list[str]]:
    """Microseconds per step by (guide, model, peer): the median over repeats of the best variant; and remarks."""
    times, notes = defaultdict(list), []
    for seed in range(1, repeats + 1):
        for guide in GUIDES:
            for model in models:
                for peer in peers:
                    steps = max(50, int(NUM_STEPS[peer] * (LARGE_SHARE if model == LARGE and peer != "pyro" else 1)))
                    settings = {"seed": seed, "guide": guide, "steps": steps}
                    for variant in SVI_VARIANTS.get(peer, ("",)):
                        name = f"{peer}:{variant}" if variant else peer
                        facts = bench.run("svi", model, name, f"{guide}-{seed}", settings)
                        if "failed" in facts:
                            notes.append(f"{name}, {model}, {guide}: {facts['failed']}")
                            continue
                        times[guide, model, peer, variant].append(1e6 * facts["stepping"] / facts["steps"])
                        if peer == "ours":
                            notes.append(f"ours, {model}, {guide}: {facts['note']}")
    best: Times = {}
    for (guide, model, peer, _), values in times.items():
        best[guide, model, peer] = min(median(values), best.get((guide, model, peer), np.inf))
    return best, sorted(set(notes))


def step_table(times: Times, guide: str, models: list[str], peers: list[str]) -> str:
    """Microseconds by peer and model, and how many times faster ours is than Pyro and than NumPyro."""
    titles = {**TITLES, "pymc+nutpie": "PyMC"}
    rows = [[titles[peer], *(number(times.get((guide, m, peer))) for m in models), ""] for peer in peers]
    for peer in ("pyro", "numpyro"):
        faster = [_ratio(times.get((guide, m, peer)), times.get((guide, m, "ours"))) for m in models]
        rows.append([f"{titles[peer]} / ours", *map(number, faster), mean_cell(faster)])
    return markdown(["microseconds", *(CASES[m].title for m in models), "geometric mean"], rows)


def _ratio(above: float | None, below: float | None) -> float:
    return above / below if above and below else float("nan")


def bound_table(models: list[str], seed: int) -> str:
    """Seconds to within `GOOD` nats of the best bound of each family of guides."""
    rows = []
    for model in models:
        for guide, title in GUIDES.items():
            found = {what: _bound(model, engine, seed) for what, engine in _engines(guide).items()}
            best = max(bound for bound, _ in found.values())
            fixed = "not reached"
            for num_steps in GRID[:-1] if model == LARGE else GRID:
                bound, seconds = _bound(model, _fixed(guide, num_steps), seed)
                best = max(best, bound)
                if bound > best - GOOD:
                    fixed = f"{number(seconds)} ({num_steps} steps)"
                    break
            cells = [f"{number(seconds)} ({best - bound:.2f})" for bound, seconds in found.values()]
            rows.append([CASES[model].title, title, f"{best:.2f}", fixed, *cells, *["–"] * (2 - len(cells))])
    header = ["model", "guide", "best bound", "SVI, fixed number of steps", "SVI() until it stops", "AutoVI()"]
    return markdown(header, rows)


def _fixed(guide: str, num_steps: int) -> Any:
    from inference import SVI

    return SVI(guide=guide, num_steps=num_steps)


def _engines(guide: str) -> dict[str, Any]:
    from inference import SVI, AutoVI

    # AutoVI fits a full covariance on models of this size.
    return {"SVI": SVI(guide=guide), **({"AutoVI": AutoVI()} if guide == "multivariate_normal" else {})}


def _bound(model: str, engine: Any, seed: int) -> tuple[float, float]:
    """Bound on 4000 fresh draws, seconds of setup and optimisation."""
    from inference import fit

    case = CASES[model]
    begin = time.perf_counter()
    result = fit(case.pyro, case.data(), engine, seed=seed, progress=False)
    bound = float(result.stats["log_weight"].mean())
    print(f"{model}, {engine}: {bound:.2f}, {time.perf_counter() - begin:.1f} s", file=sys.stderr, flush=True)
    return bound, result.seconds["setup"] + result.seconds["optimisation"]


def main() -> None:
    parser = peers_parser(__doc__, models=MODELS, peers=PEERS)
    parser.add_argument("--no-bounds", action="store_true", help="leave out the times to a good bound")
    arguments = parser.parse_args()
    bench, head = bench_of(arguments)
    peers = list(bench.pythons)
    times, notes = microseconds(bench, arguments.models, peers, arguments.repeats)
    parts = [head]
    for guide, title in GUIDES.items():
        table = step_table(times, guide, arguments.models, peers)
        parts.append(f"### {title} SVI, microseconds per step\n\n{table}")
    parts.append("\n".join(f"- {note}" for note in notes))
    if "ours" in peers and not arguments.no_bounds:
        title = (
            f"### Seconds to within {GOOD} nats of the best bound\n\nIn brackets: how far below the best it stopped."
        )
        parts.append(f"{title} Setup is included; recordings and libraries of earlier rows may be reused.")
        parts.append(bound_table(arguments.models, seed=1))
    publish("svi", parts, arguments.out)


if __name__ == "__main__":
    main()
