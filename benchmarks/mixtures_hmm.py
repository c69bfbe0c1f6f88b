"""Mixtures and hidden Markov models: ours against scikit-learn, NumPyro, hmmlearn, dynamax and Stan.

Each run is a process of its own, one after another; peers take turns. Prints Markdown. Peers that are not installed
are left out; one that lives in an environment of its own is named by ``--python dynamax=/path/to/python`` (which needs
Pyro, too, for the models of the last tables).

Usage: python -m benchmarks.mixtures_hmm [--only point vi chain memory nuts] [--repeats 3] [--quick]
       [--covariances diagonal full] [--out docs/benchmarks.md] [--time-limit 1800]
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import machine, nuts
from benchmarks.command import publish
from benchmarks.measure import ROOT, Bench, compared, fresh_caches
from benchmarks.mixtures_hmm_work import NEAR, REQUIRES
from benchmarks.models import LARGE
from benchmarks.peers import TITLES, module
from benchmarks.tables import disagreements, markdown, number, peer_table, summarise

Facts = dict[str, Any]
# Distances between centres of clusters, in about their sds: EM needs ten steps, or hundreds.
APART = {"apart": 2.0, "overlapping": 1.0}
CHAIN = {"T": 10_000, "K": 5, "repeats": 51}
NUTS_PEERS = ("ours", "numpyro", "stan")
# Sizes of a try of the program itself.
QUICK_ROWS, QUICK_STEPS = 2000, 20


@dataclass(frozen=True, kw_only=True)
class Runner:
    """Runs tasks of `benchmarks.mixtures_hmm_work` by the interpreters of the peers that are installed.

    Attributes
    ----------
    cache
        Folder of the caches of compiled code, empty at first and kept from run to run.
    """

    pythons: Mapping[str, str]
    cache: str
    limit: float
    quick: bool = False
    repeats: int = 3
    failures: list[str] = field(default_factory=list)

    def run(self, task: str, peer: str, settings: Mapping[str, Any]) -> Facts | None:
        """Give what a task measured; None, and a line among the failures, where it failed."""
        print(f"{task}: {peer}, {dict(settings)}", file=sys.stderr, flush=True)
        work = [self.pythons[peer], "-m", "benchmarks.mixtures_hmm_work", f"{task}_{peer}", json.dumps(settings)]
        environment = {**os.environ, **fresh_caches(self.cache), "JAX_PLATFORMS": "cpu"}
        options = {"cwd": ROOT, "env": environment, "capture_output": True, "text": True, "check": False}
        try:
            done = subprocess.run(work, timeout=self.limit, **options)
        except subprocess.TimeoutExpired:
            self.failures.append(f"{task}, {peer}, {json.dumps(settings)}: over {self.limit:.0f} s")
            return None
        if done.returncode:
            said = (done.stderr.strip().splitlines() or ["failed"])[-1]
            self.failures.append(f"{task}, {peer}, {json.dumps(settings)}: {said}")
            return None
        return json.loads(done.stdout.strip().splitlines()[-1])

    def turns(self, task: str, peers: Iterable[str], settings: Mapping[str, Any]) -> dict[str, list[Facts]]:
        """Let the peers that are installed take turns, with another seed each time."""
        found = defaultdict(list)
        for seed in range(self.repeats):
            for peer in (peer for peer in peers if peer in self.pythons):
                facts = self.run(task, peer, {**settings, "seed": seed})
                if facts is not None:
                    found[peer].append(facts)
        return found

    def rows(self, num: int) -> int:
        """Give the number of rows asked for, or few for a try."""
        return QUICK_ROWS if self.quick else num


def middle(runs: Iterable[Facts], name: str) -> float:
    """Median over runs of what is called so; not a number where there is none."""
    values = [run[name] for run in runs]
    return median(values) if values else float("nan")


def point_table(runner: Runner, covariances: Iterable[str]) -> str:
    """Seconds to the maximum of the likelihood of a mixture."""
    header = ["mixture", "", "reached", "log likelihood", "seconds", "processor", "ours / sklearn", "processor", "work"]
    lines = []
    for covariance in covariances:
        for title, apart in APART.items():
            settings = {"rows": runner.rows(100_000), "apart": apart, "covariance": covariance, "max_iter": 300}
            found = runner.turns("point", ("ours", "sklearn"), settings)
            lines += point_lines(f"{covariance}, {title}", found)
    said = (
        "One start each, by seed. *Reached*: runs that ended within a nat of the highest log likelihood that any run "
        "of either found; seconds are medians over these (over all, in brackets, where there are none). Ours: from the "
        "model and the data to the maximum, recorded anew, with the compiled library known; *first*: with an empty "
        "cache. scikit-learn: EM to a nat below its maximum (it is told the number of steps); *by itself*: as it stops "
        "with its own tolerance."
    )
    return f"{markdown(header, lines)}\n\n{said}"


def point_lines(title: str, found: Mapping[str, list[Facts]]) -> list[list[str]]:
    """Rows of the table for one mixture."""
    best = max((run["log_likelihood"] for runs in found.values() for run in runs), default=float("nan"))
    chosen = {}
    for peer, runs in found.items():
        reached = [run for run in runs if run["log_likelihood"] > best - NEAR]
        chosen[peer] = reached, reached or runs
    lines = []
    for peer, (reached, used) in chosen.items():
        ends = f"{len(reached)} of {len(found[peer])}"
        seconds = [number(middle(used, name)) for name in ("seconds", "cpu")]
        seconds = seconds if reached else [f"({text})" for text in seconds]
        ratio = ["", ""]
        if peer == "ours" and chosen.get("sklearn", ([], []))[1]:
            theirs = chosen["sklearn"][1]
            ratio = [number(middle(used, name) / middle(theirs, name)) for name in ("seconds", "cpu")]
        level = max(run["log_likelihood"] for run in used)
        work = (
            f"{middle(used, 'gradients'):.0f} gradients; first {number(middle(used, 'first'))} s"
            if peer == "ours"
            else f"{middle(used, 'iterations'):.0f} steps"
        )
        lines.append([title, peer, ends, f"{level:.2f}", *seconds, *ratio, work])
    if "sklearn" in found:
        defaults = [run["default"] for run in chosen["sklearn"][1]]
        below = best - max(run["log_likelihood"] for run in defaults)
        seconds = [number(middle(defaults, name)) for name in ("seconds", "cpu")]
        steps = f"{middle(defaults, 'its'):.0f} steps"
        lines.append([title, "sklearn by itself", "", f"{number(below)} below the best", *seconds, "", "", steps])
    return lines


def vi_table(runner: Runner, covariances: Iterable[str]) -> str:
    """Seconds of variational inference."""
    lines = []
    for covariance in covariances:
        settings = {"rows": runner.rows(100_000), "apart": APART["apart"], "covariance": covariance, "starts": 2}
        found = replace(runner, repeats=1).turns("vi", ("ours", "sklearn"), settings)  # minutes
        for peer, runs in found.items():
            note = f"{runs[0]['iterations']} steps" if peer == "sklearn" else f"{runs[0]['rung']}: {runs[0]['note']}"
            lines.append([covariance, peer, *(number(middle(runs, name)) for name in ("seconds", "cpu")), note])
    said = (
        "Not the same problem: `BayesianGaussianMixture` has conjugate priors, for which each step is in closed form, "
        "and takes parameters for independent of assignments; `AutoVI` sums the assignments out, corrects its Gaussian "
        "by importance weights, and judges itself."
    )
    return f"{markdown(['covariance', '', 'seconds', 'processor', ''], lines)}\n\n{said}"


def chain_table(runner: Runner) -> str:
    """Milliseconds of a log likelihood, and of one with its gradient."""
    settings = {**CHAIN, "T": runner.rows(CHAIN["T"])}
    found = runner.turns("chain", ("ours", "dynamax", "hmmlearn"), settings)
    values = [run["log_likelihood"] for runs in found.values() for run in runs]
    apart = (max(values) - min(values)) / abs(values[0]) if values else float("nan")
    header = ["", "log likelihood, ms", "with gradient, ms", "ours / this", "with gradient"]
    lines = []
    for peer, runs in found.items():
        cells = [number(1e3 * middle(runs, "forward"))]
        cells.append(number(1e3 * middle(runs, "gradient")) if "gradient" in runs[0] else "–")
        for name in ("forward", "gradient"):
            known = "ours" in found and name in runs[0]
            cells.append(number(middle(found["ours"], "gradient") / middle(runs, name)) if known else "–")
        lines.append([peer, *cells])
    said = (
        f"T={settings['T']}, K={settings['K']}, normal emissions, float64, warm, medians of {settings['repeats']} "
        f"calls. Ours always gives the gradient, too. Log likelihoods agree to {apart:.0e} of their size."
    )
    return f"{markdown(header, lines)}\n\n{said}"


def memory_table(runner: Runner) -> str:
    """Peak memory of mini-batch SVI."""
    settings = {"rows": runner.rows(1_000_000), "batch": 1000, "steps": QUICK_STEPS if runner.quick else 1000}
    facts = runner.run("memory", "ours", settings)
    if facts is None:
        return "failed"
    cells = [f"{settings['rows']}", number(facts["data"]), number(facts["peak"]), number(facts["seconds"])]
    header = ["rows", "data, MB", "peak resident memory, MB", f"seconds of {settings['steps']} steps"]
    return markdown(header, [cells]) + "\n\nD=8, K=8, batches of 1000 rows, all libraries included."


def nuts_tables(runner: Runner, folder: Path) -> str:
    """NUTS on the larger models: as `benchmarks.nuts`, with its definitions."""
    pythons = {peer: runner.pythons[peer] for peer in NUTS_PEERS if peer in runner.pythons}
    bench = Bench(folder=folder, pythons=pythons, limit=runner.limit)
    results = nuts.measure(bench, list(LARGE), runner.repeats)
    summary = summarise(compared(results))
    titles = {name: case.title for name, case in LARGE.items()}

    def table(cell: Callable[[Any], str]) -> str:
        return peer_table(summary, titles, TITLES, cell)

    ratios = [
        [f"ours / {TITLES[peer]}{what}", *(_ratio(summary, name, peer, part) for name in titles)]
        for what, part in (("", "rate"), (", with start-up", "rate_with_start"))
        for peer in NUTS_PEERS[1:]
        if any((name, peer) in summary for name in titles)
    ]
    parts = [
        "Minimum ESS per second:\n\n" + table(lambda row: number(row.rate)),
        "With start-up:\n\n" + table(lambda row: number(row.rate_with_start)),
        "Ratios of minimum ESS per second:\n\n" + markdown(["", *titles.values()], ratios),
        "Largest difference of a posterior mean from the others', in Monte Carlo standard errors:\n\n"
        + table(lambda row: f"{row.difference:.1f}"),
    ]
    failed = [f"{peer}, {model}, seed {s}: {f['failed']}" for (model, peer, s), f in results.items() if "failed" in f]
    return "\n\n".join([*parts, *(f"- {note}" for note in [*disagreements(summary), *failed])])


def _ratio(summary: Mapping[tuple[str, str], Any], model: str, peer: str, part: str) -> str:
    known = (model, "ours") in summary and (model, peer) in summary
    return number(getattr(summary[model, "ours"], part) / getattr(summary[model, peer], part)) if known else "–"


SECTIONS = {
    "point": "Point estimate of a mixture, N=1e5, D=8, K=8",
    "vi": "Variational inference of a mixture, N=1e5, D=8, K=8",
    "chain": "Log likelihood of a hidden Markov model",
    "memory": "Memory of mini-batch SVI",
    "nuts": "NUTS",
}


def report(runner: Runner, only: Iterable[str], covariances: Iterable[str], folder: Path) -> str:
    """Measure, and write the sections asked for."""
    tables = {
        "point": lambda: point_table(runner, covariances),
        "vi": lambda: vi_table(runner, covariances),
        "chain": lambda: chain_table(runner),
        "memory": lambda: memory_table(runner),
        "nuts": lambda: nuts_tables(runner, folder),
    }
    parts = [f"### {SECTIONS[name]}\n\n{tables[name]()}" for name in only]
    return "\n\n".join([*parts, *(f"- {failure}" for failure in runner.failures)])


def available(own: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """Give the interpreters of the peers that are installed, and the names of those that are not."""
    needed = {**REQUIRES, **{peer: module(peer).REQUIRES for peer in NUTS_PEERS}}
    pythons = {peer: own.get(peer, sys.executable) for peer in needed}
    absent = [peer for peer, python in pythons.items() if not machine.has(python, needed[peer])]
    return {peer: python for peer, python in pythons.items() if peer not in absent}, absent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=list(SECTIONS), choices=list(SECTIONS))
    parser.add_argument("--covariances", nargs="+", default=["diagonal", "full"], choices=["diagonal", "full"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="few rows: a try of the program, not of the speed")
    parser.add_argument("--reuse", type=Path, help="folder of raw results of NUTS: what is found is not run again")
    parser.add_argument("--python", nargs="+", default=[], metavar="PEER=PATH", help="interpreter of a peer")
    parser.add_argument("--time-limit", type=float, default=1800.0, help="seconds for one run")
    parser.add_argument("--out", type=Path, help="a document whose section of this name is replaced or added")
    arguments = parser.parse_args()
    pythons, absent = available(dict(pair.split("=", 1) for pair in arguments.python))
    with tempfile.TemporaryDirectory() as cache:
        runner = Runner(
            pythons=pythons, cache=cache, limit=arguments.time_limit, quick=arguments.quick, repeats=arguments.repeats
        )
        folder = arguments.reuse or Path(cache) / "nuts"
        text = report(runner, arguments.only, arguments.covariances, folder)
    threads = os.environ.get("OMP_NUM_THREADS", "as many as cores")
    head = f"{machine.described(pythons)} Threads: {threads}. {arguments.repeats} repeats."
    publish("mixtures_hmm", [f"{head} Absent: {', '.join(absent) or 'none'}.", text], arguments.out)


if __name__ == "__main__":
    main()
