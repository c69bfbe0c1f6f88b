"""How often is `check` wrong? Over a bank of posteriors and fits with known truth, k-hat alone beside it.

Usage: python -m benchmarks.verdict_bank [--only PATTERN] [--fits PATTERN] [--database ../shared/posteriordb] [--jobs 1]
       [--results out/verdict_bank.jsonl] [--again] [--out docs/verdicts.md]

The posteriors are those of `benchmarks.posteriordb`, as far as there is a database that has them, and exact ones. A
finished pair is not run again unless ``--again`` is given.
"""

import argparse
import fnmatch
import json
import sys
import time
from pathlib import Path

from joblib import Parallel, delayed

from benchmarks import machine
from benchmarks.command import publish
from benchmarks.posteriordb import PORTS
from benchmarks.posteriordb.database import open_database
from benchmarks.verdict_bank.cells import NAMES, Row, run_posterior
from benchmarks.verdict_bank.fits import KINDS
from benchmarks.verdict_bank.report import report
from inference.errors import InputError

Key = tuple[str, str]


def read_results(path: Path) -> dict[Key, Row]:
    """Read the pairs that are finished."""
    lines = path.read_text().splitlines() if path.exists() else []
    rows = [json.loads(line) for line in lines]
    return {(row["posterior"], row["fit"]): row for row in rows}


def run(database: Path, keys: list[Key], results: Path, *, jobs: int, again: bool) -> list[Row]:
    """Run the pairs that are not finished, posterior by posterior, and give all of them in order."""
    done = {} if again else read_results(results)
    results.parent.mkdir(parents=True, exist_ok=True)
    todo: dict[str, list[str]] = {}
    for name, kind in keys:
        if (name, kind) not in done:
            todo.setdefault(name, []).append(kind)
    finished = Parallel(n_jobs=jobs, return_as="generator_unordered")(
        delayed(run_posterior)(str(database), name, kinds) for name, kinds in todo.items()
    )
    begin = time.perf_counter()
    for i, rows in enumerate(finished, start=1):
        done |= {(row["posterior"], row["fit"]): row for row in rows}
        with results.open("a") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
        spent = time.perf_counter() - begin
        print(
            f"[{i}/{len(todo)}] {rows[0]['posterior']}: {len(rows)} pairs, {spent:.0f} s", file=sys.stderr, flush=True
        )
    return [done[key] for key in keys]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="*", metavar="PATTERN", help="names of posteriors, as in 'gaussian*'")
    parser.add_argument("--fits", default="*", metavar="PATTERN", help="kinds of fits, as in 'svi*'")
    parser.add_argument("--database", type=Path, default=Path("../shared/posteriordb"))
    parser.add_argument("--jobs", type=int, default=1, help="posteriors at a time")
    parser.add_argument("--results", type=Path, default=Path("out/verdict_bank.jsonl"))
    parser.add_argument("--again", action="store_true", help="run finished pairs again")
    parser.add_argument("--out", type=Path, help="a document whose section of this name is replaced or added")
    given = parser.parse_args()
    try:
        known = open_database(given.database).folders
    except InputError as error:
        print(f"without the ported posteriors: {error}", file=sys.stderr)
        known = {}
    names = [n for n in NAMES if (n not in PORTS or n in known) and fnmatch.fnmatch(n, given.only)]
    kinds = [kind for kind in KINDS if fnmatch.fnmatch(kind, given.fits)]
    if not names or not kinds:
        parser.error(f"nothing is named --only {given.only} --fits {given.fits}")
    keys = [(name, kind) for name in names for kind in kinds]
    rows = run(given.database, keys, given.results, jobs=given.jobs, again=given.again)
    publish("verdict_bank", [machine.described(), report(rows)], given.out)


if __name__ == "__main__":
    main()
