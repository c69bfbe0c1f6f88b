"""NUTS: ours against Pyro, NumPyro, PyMC + nutpie, Stan and Stan + nutpie, on seven models.

Four chains of 500 + 1000 iterations, target acceptance 0.8, all cores. Each run is a process of its own, one after
another, with empty caches. Prints Markdown. A peer that cannot be installed beside the others may live in an
environment of its own (``--python stan=/path/to/python``).

Usage: python -m benchmarks.nuts [--models schools hmm ...] [--peers ours numpyro ...] [--repeats 3]
       [--out docs/benchmarks.md] [--reuse DIR] [--again ours] [--time-limit 300]
"""

from collections.abc import Mapping
from typing import Any

from benchmarks.command import bench_of, peers_parser, publish
from benchmarks.measure import Bench, compared
from benchmarks.models import CASES
from benchmarks.peers import TITLES, VARIANTS
from benchmarks.startup import startup_table
from benchmarks.tables import Measured, disagreements, number, peer_table, ratio_table, summarise

# A variant this many times slower than the best is not just unlucky.
FAR = 1.5

DEFINITIONS = """
Microseconds per gradient: seconds of warm-up and draws, all chains on all cores, over the number of leapfrog \
steps. ESS: the smallest bulk effective sample size of any latent quantity, by ArviZ, the same function for all; \
its seconds are those of warm-up and draws, or with start-up everything from the model and the data to the draws in \
memory: recording, compiling, starting points (imports are left out). Ours: without the draws of discrete sites \
that were summed out, which no other peer gives. Pyro draws its chains one after the other unless there are more \
cores than chains; then one chain is run, which has the same rates, and cut short if it would take more than half a \
minute. NumPyro: the best of its three chain methods, float64. Stan: seconds by its own clock, without the passing \
of draws between PyStan's processes. Stan + nutpie: a library of our own with BridgeStan's interface, Stan's \
headers from httpstan. Memory: the process itself, not its compilers. Medians over repeats with different seeds; \
posterior means agree between all peers unless said.
"""


Results = dict[tuple[str, str, int], dict[str, Any]]


def measure(bench: Bench, models: list[str], repeats: int) -> Results:
    """Run everything, by (model, peer with variant, seed).

    Peers take turns, so that a slow minute of the machine hits all. Variants that the first seed shows to fail, or to
    be far from the best of their peer, are not run again.
    """
    results: Results = {}
    for seed in range(1, repeats + 1):
        for model in models:
            for peer in bench.pythons:
                names = [f"{peer}:{variant}" if variant else peer for variant in VARIANTS.get(peer, ("",))]
                for name in names if seed == 1 else worthwhile(results, model, names):
                    results[model, name, seed] = bench.run("nuts", model, name, str(seed), {"seed": seed})
    return results


def worthwhile(results: Results, model: str, names: list[str]) -> list[str]:
    """Choose the variants that succeeded in less than `FAR` times the sampling seconds of the fastest."""
    succeeded = {name: results[model, name, 1] for name in names if "failed" not in results[model, name, 1]}
    seconds = {name: facts["sampling"] for name, facts in succeeded.items()}
    return [name for name in seconds if seconds[name] <= FAR * min(seconds.values())]


def report(results: Mapping[tuple[str, str, int], dict[str, Any]], models: list[str]) -> str:
    """Write the tables."""
    summary = summarise(compared(results))
    titles = {name: CASES[name].title for name in models}

    def table(cell: Any) -> str:
        return peer_table(summary, titles, TITLES, cell)

    def agreement(row: Measured) -> str:
        return f"{row.difference:.1f}"

    parts = [
        ("Microseconds per gradient", table(lambda row: number(row.microseconds))),
        ("Minimum ESS per second", table(lambda row: number(row.rate))),
        ("Minimum ESS per second, with start-up", table(lambda row: number(row.rate_with_start))),
        ("Ratios of minimum ESS per second", ratio_table(summary, titles)),
        ("Start-up, seconds", table(lambda row: number(row.start))),
        ("Peak resident memory, MB", table(lambda row: number(row.peak))),
        (
            "Largest difference of a posterior mean from the other peers', in Monte Carlo standard errors",
            table(agreement),
        ),
    ]
    notes = disagreements(summary)
    notes += [
        f"{peer}, {model}, seed {seed}: {f['failed']}" for (model, peer, seed), f in results.items() if "failed" in f
    ]
    notes += sorted({f"{row.peer}, {row.model}: {row.note}" for row in summary.values() if row.note})
    text = "\n\n".join(f"### {title}\n\n{body}" for title, body in parts)
    return f"{text}\n\n{DEFINITIONS.strip()}\n\n" + "\n".join(f"- {note}" for note in notes)


def main() -> None:
    parser = peers_parser(__doc__, models=CASES, peers=TITLES)
    parser.add_argument("--no-startup", action="store_true", help="leave out the start-up times of ours")
    arguments = parser.parse_args()
    bench, head = bench_of(arguments)
    results = measure(bench, arguments.models, arguments.repeats)
    parts = [head, report(results, arguments.models)]
    if "ours" in bench.pythons and not arguments.no_startup:
        parts.append(f"### From nothing to a posterior of eight schools\n\n{startup_table()}")
    publish("nuts", parts, arguments.out)


if __name__ == "__main__":
    main()
