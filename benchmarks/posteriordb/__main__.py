"""Fits against posteriors that nobody here made, by engine.

Usage: python -m benchmarks.posteriordb [--engine nuts,nuts:low_rank,svi:normal,svi:multivariate_normal,laplace,auto]
       [--only PATTERN] [--database ../shared/posteriordb] [--seeds 1] [--jobs 1] [--results out/posteriordb.jsonl]
       [--again] [--out docs/accuracy.md]

A checkout of posteriordb serves as database, too: what is ported is run. A finished cell is not run again unless
``--again`` is given. Exit status 1 if a cell failed.
"""

import argparse
import fnmatch
import json
import sys
from pathlib import Path

from joblib import Parallel, delayed

from benchmarks import machine
from benchmarks.command import publish
from benchmarks.posteriordb import PORTS
from benchmarks.posteriordb.cell import Row, run_cell
from benchmarks.posteriordb.database import open_database
from benchmarks.posteriordb.report import report
from inference.engine_names import parse_engines
from inference.errors import InputError

ENGINES = "nuts,nuts:low_rank,svi:normal,svi:multivariate_normal,laplace,auto"
Key = tuple[str, str, int]


def read_results(path: Path) -> dict[Key, Row]:
    """Read the cells that are finished."""
    lines = path.read_text().splitlines() if path.exists() else []
    rows = [json.loads(line) for line in lines]
    return {(row["posterior"], row["engine"], row["seed"]): row for row in rows}


def run(database: Path, keys: list[Key], results: Path, *, jobs: int, again: bool) -> list[Row]:
    """Run the cells that are not finished, write each as soon as it is done, and give all of them in order."""
    done = {} if again else read_results(results)
    results.parent.mkdir(parents=True, exist_ok=True)
    todo = [key for key in keys if key not in done]
    finished = Parallel(n_jobs=jobs, return_as="generator_unordered")(
        delayed(run_cell)(str(database), *key) for key in todo
    )
    for i, row in enumerate(finished, start=1):
        done[row["posterior"], row["engine"], row["seed"]] = row
        with results.open("a") as file:
            file.write(json.dumps(row) + "\n")
        outcome = row.get("failed") or f"passes: {row['passes']}, {row['verdict']}"
        shown = f"{row['posterior']}, {row['engine']}, seed {row['seed']}: {outcome}, {row['wall_seconds']:.1f} s"
        print(f"[{i}/{len(todo)}] {shown}", file=sys.stderr, flush=True)
    return [done[key] for key in keys]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--engine", default=ENGINES, help="names separated by commas")
    parser.add_argument("--only", default="*", metavar="PATTERN", help="names of posteriors, as in 'kidiq*'")
    parser.add_argument("--database", type=Path, default=Path("../shared/posteriordb"))
    parser.add_argument("--seeds", type=int, default=1, help="how many, counted from zero")
    parser.add_argument("--jobs", type=int, default=1, help="cells at a time")
    parser.add_argument("--results", type=Path, default=Path("out/posteriordb.jsonl"))
    parser.add_argument("--again", action="store_true", help="run finished cells again")
    parser.add_argument("--out", type=Path, help="a document whose section of this name is replaced or added")
    given = parser.parse_args()
    engines = given.engine.split(",")
    try:
        known = open_database(given.database).folders
        parse_engines(given.engine)
    except InputError as error:
        parser.error(str(error))
    names = [name for name in PORTS if name in known and fnmatch.fnmatch(name, given.only)]
    if not names:
        parser.error(f"--only {given.only}: no ported posterior of {given.database} has such a name")
    keys = [(name, engine, seed) for engine in engines for name in names for seed in range(given.seeds)]
    rows = run(given.database, keys, given.results, jobs=given.jobs, again=given.again)
    publish("posteriordb", [machine.described(), report(rows)], given.out)
    sys.exit(any("failed" in row for row in rows))


if __name__ == "__main__":
    main()
