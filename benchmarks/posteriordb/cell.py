"""One cell of the table: one posterior, one engine, one seed."""

import inspect
import time
import traceback
from typing import Any

from benchmarks.gradient import single_costs
from benchmarks.posteriordb import PORTS
from benchmarks.posteriordb.accuracy import accuracy
from benchmarks.posteriordb.database import Posterior, open_database
from inference import Fit, check, fit
from inference.diagnostics import chain_mixing
from inference.engine_names import parse_engines
from inference.quantities import quantities
from inference.verdict_kinds import finite

Row = dict[str, Any]

# What a fit spends before its first step and after its last.
START_UP = ("setup", "compile", "other_sites")


def arguments(model: Any, posterior: Posterior) -> dict[str, Any]:
    """Choose the data that a port takes."""
    return {name: posterior.data[name] for name in inspect.signature(model).parameters}


def run_cell(path: str, name: str, engine: str, seed: int) -> Row:
    """Fit and compare; whatever goes wrong is the row's ``failed``."""
    row: Row = {"posterior": name, "engine": engine, "seed": seed}
    begin = time.perf_counter()
    try:
        posterior = open_database(path).posterior(name)
        row["dimension"] = posterior.dimension
        model, data = PORTS[name], arguments(PORTS[name], posterior)
        result = fit(model, data, parse_engines(engine)[engine], seed=seed, progress=False)
        row |= about_fit(result) | about_accuracy(result, posterior)
        if engine == "nuts":
            row |= single_costs(model, data)
    except Exception as error:  # a cell that fails is a row that says so
        at = traceback.extract_tb(error.__traceback__)[-1]
        row["failed"] = f"{type(error).__name__}: {error} ({at.name}, line {at.lineno})".splitlines()[0]
    row["wall_seconds"] = time.perf_counter() - begin
    return finite(row)


def about_fit(result: Fit) -> Row:
    """What the fit says of itself."""
    start = sum(value for part, value in result.seconds.items() if part in START_UP)
    row: Row = {
        "seconds": sum(result.seconds.values()) - start,
        "start_up_seconds": start,
        "num_gradients": result.num_gradients,
        "backend": result.state["backend"],
        "notes": list(result.notes),
        "status": result.status.kind,
    }
    if "elbo" in result.state:
        row |= {"elbo": float(result.state["elbo"]), "rung": result.state.get("rung", "")}
    if not result.independent:
        mixing = chain_mixing(quantities(result).draws)
        row |= {"rhat": float(mixing.rhat.max()), "min_ess": float(min(mixing.ess_bulk.min(), mixing.ess_tail.min()))}
    if "diverging" in result.stats:
        row["num_divergent"] = int(result.stats["diverging"].sum())
    begin = time.perf_counter()
    verdict = check(result)
    return row | {
        "verdict": str(verdict.kind),
        "reason": verdict.reason,
        "khat": verdict.checks.get("khat"),
        "check_seconds": time.perf_counter() - begin,
    }


def about_accuracy(result: Fit, posterior: Posterior) -> Row:
    """How far the fit is from the reference."""
    found = accuracy(result, posterior)
    joint = {"joint": found.joint.distance, "joint_expected": found.joint.expected} if found.joint else {}
    return {name: value for name, value in vars(found).items() if name != "joint"} | joint
