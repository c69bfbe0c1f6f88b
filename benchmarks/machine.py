"""What the tables say about where they were made: date, processor, cores, versions."""

import datetime
import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = (
    *("ppl-verdict", "torch", "pyro-ppl", "nutpie", "numpy", "numpyro", "jax", "pymc", "pytensor", "numba"),
    *("pystan", "httpstan", "arviz-stats", "scikit-learn", "hmmlearn", "dynamax"),
)


def processor() -> str:
    """Name the processor."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def num_cores() -> int:
    """Count the cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def versions(python: str = sys.executable) -> dict[str, str]:
    """Give the versions of the packages that an interpreter has."""
    if python == sys.executable:
        return {name: found for name in PACKAGES if (found := _version(name))}
    code = "import json; from benchmarks.machine import versions; print(json.dumps(versions()))"
    return json.loads(subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout)


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def has(python: str, modules: tuple[str, ...]) -> bool:
    """Whether an interpreter has all of these modules."""
    code = f"import sys; from importlib.util import find_spec; sys.exit(not all(map(find_spec, {modules!r})))"
    return subprocess.run([python, "-c", code], check=False).returncode == 0


def described(pythons: Mapping[str, str] | None = None) -> str:
    """One paragraph for the head of a table; ``pythons`` maps peers to interpreters of their own."""
    found = versions()
    for python in set((pythons or {}).values()):
        found = {**versions(python), **found}
    cores, today = num_cores(), datetime.date.today().isoformat()
    packages = ", ".join(f"{name} {number}" for name, number in found.items())
    return f"{today}; {processor()}, {cores} cores; Python {platform.python_version()}; {packages}."
