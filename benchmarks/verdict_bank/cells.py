"""The pairs of one posterior: its fits, the truth about each, and what `check` and k-hat alone say."""

import time
import traceback
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from benchmarks.posteriordb import PORTS
from benchmarks.posteriordb.cell import arguments
from benchmarks.posteriordb.database import Posterior, open_database
from benchmarks.verdict_bank.exact import CONJUGATE, EXACT, conjugate
from benchmarks.verdict_bank.fits import ENGINES, REFERENCE, VARIATIONAL, NotPossibleError, spoilt
from benchmarks.verdict_bank.truth import Known, measure, worst
from inference import Fit, check, fit
from inference.diagnostics import smooth_weights
from inference.verdict_kinds import finite

Row = dict[str, Any]
# One half of a reference's draws is spoilt, the other half judges.
HALVES = slice(None, None, 2), slice(1, None, 2)
NAMES = (*PORTS, *CONJUGATE, *EXACT)


def subject(path: str, name: str) -> tuple[Any, dict[str, Any], Posterior]:
    """Give a model, its data, and its reference."""
    if name in EXACT:
        return EXACT[name].model, {}, EXACT[name].posterior(name)
    if name in CONJUGATE:
        model, posterior = conjugate(name)
        return model, posterior.data, posterior
    posterior = open_database(path).posterior(name)
    return PORTS[name], arguments(PORTS[name], posterior), posterior


def run_posterior(path: str, name: str, kinds: Sequence[str]) -> list[Row]:
    """Run some pairs of a posterior; they share its reference, its moments, and the fit that is spoilt."""
    return list(_rows(*subject(path, name), kinds))


def _rows(model: Any, data: dict[str, Any], posterior: Posterior, kinds: Sequence[str]) -> Iterator[Row]:
    whole, half = Known.of(posterior), Known.of(posterior, draws=HALVES[1])
    made: dict[tuple[Any, int], Fit] = {}

    def by_engine(engine: Any, seed: int) -> Fit:
        if (engine, seed) not in made:
            made[engine, seed] = fit(model, data, engine, seed=seed, progress=False)
        return made[engine, seed]

    for kind in kinds:
        row: Row = {"posterior": posterior.name, "fit": kind}
        begin = time.perf_counter()
        try:
            if kind in ENGINES:
                result = by_engine(*ENGINES[kind])
            else:
                result = spoilt(kind, by_engine(VARIATIONAL, 0), posterior, draws=HALVES[0])
            row["fit_seconds"] = time.perf_counter() - begin
            row |= about(result, half if kind.startswith(REFERENCE) else whole)
        except NotPossibleError as why:
            row["skipped"] = str(why)
        except Exception as error:  # a pair that fails is a row that says so
            at = traceback.extract_tb(error.__traceback__)[-1]
            row["failed"] = f"{type(error).__name__}: {error} ({at.name}, line {at.lineno})".splitlines()[0]
        yield finite(row)


def about(result: Fit, known: Known) -> Row:
    """Hold the verdict on a fit against the truth."""
    begin = time.perf_counter()
    verdict = check(result)
    seconds = time.perf_counter() - begin
    measured = measure(result, known)
    return {
        "method": result.method,
        "verdict": str(verdict.kind),
        "reason": verdict.reason,
        "check_seconds": seconds,
        "truth": str(measured.truth),
        "weighted_truth": measured.weighted_truth and str(measured.weighted_truth),
        "kept": (kept := measured.keeps(verdict)) and str(kept),
        "khat": khat_of(result),
        "worst": worst(measured.raw, known.labels),
        "worst_weighted": worst(measured.weighted, known.labels) if measured.weighted else "",
        "checks": finite(verdict.checks),
    }


def khat_of(result: Fit) -> float:
    """k-hat of a variational fit: of its weights, or of those that its draws were resampled by; NaN where none."""
    if result.method != "vi":
        return float("nan")
    if "importance" in result.state and "log_weight" not in result.stats:
        return float(result.state["importance"]["khat"])
    weights = result.stats.get("log_weight")
    return float("nan") if weights is None else smooth_weights(np.asarray(weights)).khat
