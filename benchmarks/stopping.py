"""Stopping rules of SVI: how near the optimum of the guide's family they stop, and after how much work.

Errors are of the fitted Gaussian itself, without Monte Carlo error of draws, on the unconstrained space: the largest
difference of a mean, in sds of the optimum, and of a log sd. The optimum is L-BFGS's on 4096 fixed draws; its own
error, between two sets of draws, is the row 'optimum'. Prints Markdown.

Usage: python -m benchmarks.stopping [--database ../shared/posteriordb] [--seeds 5] [--out docs/svi.md]
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import pyro

from benchmarks import machine
from benchmarks.command import publish
from benchmarks.models import CASES
from benchmarks.posteriordb import PORTS
from benchmarks.posteriordb.cell import arguments
from benchmarks.posteriordb.database import open_database
from benchmarks.tables import markdown, number
from inference import SVI, fit, fixed_draws
from inference.fit import Fit
from inference.gaussian_iterates import GaussianIterates

REFERENCE_DRAWS = 4096
BOTH = ("normal", "multivariate_normal")
# By default the plateau rule takes one draw a step and RABVI ten; each is run with the other's, too.
RULES = {
    "plateau": {"stopping": "plateau"},
    "plateau, 10 draws": {"stopping": "plateau", "num_particles": 10},
    "rabvi, 1 draw": {"stopping": "rabvi", "num_particles": 1},
    "rabvi": {"stopping": "rabvi"},
}


class Stopped(NamedTuple):
    """One run: its errors, its work, and whether it says converged."""

    mean: float
    log_sd: float
    steps: int
    seconds: float
    ok: bool


def problems(database: Path) -> dict[str, tuple[Callable[..., Any], dict[str, Any], tuple[str, ...]]]:
    """Models with their data and guides, by title."""
    stored = open_database(database)
    names = ("eight_schools-eight_schools_noncentered", "radon_contextual_effects_minnesota_halfnormal")
    schools, radon = ((PORTS[name], arguments(PORTS[name], stored.posterior(name))) for name in names)
    logistic = CASES["logistic-1000x20"]
    return {
        "eight schools": (*schools, BOTH),
        "logistic regression": (logistic.pyro, logistic.data(), BOTH),
        # The optimum of its full rank, 4186 parameters, takes L-BFGS too long on so many draws.
        "radon": (*radon, ("normal",)),
    }


def gaussian_moments(fitted: Fit) -> tuple[np.ndarray, np.ndarray]:
    """Means and log sds, (D,) each, of the guide's Gaussian."""
    with fitted.restored():
        params = [p for _, p in pyro.get_param_store().named_parameters()]
        row = np.concatenate([p.detach().numpy().ravel() for p in params])
        both = GaussianIterates(fitted.state["guide"], params).moments(row[None])[0]
    return both[: len(both) // 2], both[len(both) // 2 :]


def optimum(model: Callable, data: dict[str, Any], guide: str, seed: int) -> Fit:
    """Fit on many fixed draws from the start, rather than on as many as are needed."""
    before, fixed_draws.MIN_DRAWS = fixed_draws.MIN_DRAWS, REFERENCE_DRAWS
    before_most, fixed_draws.MAX_GRADIENTS = fixed_draws.MAX_GRADIENTS, 10**8
    try:
        return fit(model, data, SVI(guide=guide, optimizer="lbfgs"), seed=seed, progress=False)
    finally:
        fixed_draws.MIN_DRAWS, fixed_draws.MAX_GRADIENTS = before, before_most


def stopped(fitted: Fit, reference: Fit) -> Stopped:
    """Compare a run with the optimum."""
    (mean, log_sd), (best, best_log_sd) = gaussian_moments(fitted), gaussian_moments(reference)
    return Stopped(
        float(np.abs((mean - best) / np.exp(best_log_sd)).max()),
        float(np.abs(log_sd - best_log_sd).max()),
        len(fitted.history["loss"]),
        fitted.seconds["optimisation"],
        fitted.status.ok,
    )


def table(database: Path, seeds: int, titles: list[str], rules: list[str]) -> str:
    """One row per model, guide and rule: medians over seeds, and the largest in brackets."""
    rows = []
    for title, (model, data, guides) in problems(database).items():
        for guide in guides if title in titles else ():
            reference, other = (optimum(model, data, guide, seed) for seed in (1, 2))
            own = stopped(other, reference)
            rows.append([title, guide, "optimum", f"{own.mean:.3f}", f"{own.log_sd:.3f}", "", number(own.seconds), ""])
            print(rows[-1], file=sys.stderr, flush=True)
            for rule in rules:
                engine = SVI(guide=guide, **RULES[rule])
                # The first run of a shape compiles or finds its library; only steps are timed.
                runs = [
                    stopped(fit(model, data, engine, seed=seed, progress=False), reference)
                    for seed in range(1, seeds + 1)
                ]
                rows.append([title, guide, rule, *_cells(runs)])
                print(rows[-1], file=sys.stderr, flush=True)
    header = ["model", "guide", "rule", "error of a mean, sds", "of a log sd", "steps", "seconds", "converged"]
    return markdown(header, rows)


def _cells(runs: list[Stopped]) -> list[str]:
    def both(values: list[float], shown: Callable[[float], str]) -> str:
        return f"{shown(median(values))} ({shown(max(values))})"

    return [
        both([run.mean for run in runs], "{:.2f}".format),
        both([run.log_sd for run in runs], "{:.2f}".format),
        both([run.steps for run in runs], "{:.0f}".format),
        both([run.seconds for run in runs], number),
        f"{sum(run.ok for run in runs)} of {len(runs)}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--database", type=Path, default=Path("../shared/posteriordb"))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--models", nargs="+", default=["eight schools", "logistic regression", "radon"])
    parser.add_argument("--rules", nargs="+", default=list(RULES), choices=list(RULES))
    parser.add_argument("--out", type=Path, help="a document whose section of this name is replaced or added")
    options = parser.parse_args()
    made = table(options.database, options.seeds, options.models, options.rules)
    publish("stopping", [machine.described(), made], options.out)


if __name__ == "__main__":
    main()
