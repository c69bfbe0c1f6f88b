"""Running workers one after another, each with caches of its own, and reading what they measured."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from arviz_stats.base import array_stats

from benchmarks.tables import Measured

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Where results are kept, and how workers are run.

    Attributes
    ----------
    folder
        Results; what is found there is not run again, unless its peer is in ``again``.
    pythons
        Interpreter of each peer.
    limit
        Seconds after which a worker is stopped.
    """

    folder: Path
    pythons: Mapping[str, str]
    limit: float
    again: tuple[str, ...] = ()

    def run(self, task: str, model: str, peer: str, label: str, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Give the facts of one run, from the folder or made now; ``facts["failed"]`` is the reason if it failed."""
        name = peer.partition(":")[0]
        out = self.folder / task / model / f"{peer.replace(':', '-')}-{label}"
        facts = out / "facts.json"
        if not facts.exists() or name in self.again:
            print(f"{task}: {model}, {peer}, {label}", file=sys.stderr, flush=True)
            shutil.rmtree(out, ignore_errors=True)
            out.mkdir(parents=True)
            reason = self._work([self.pythons[name], "-m", "benchmarks.worker", task, str(out), peer, model], settings)
            if reason:
                facts.write_text(json.dumps({"failed": reason}))
        found = json.loads(facts.read_text())
        draws = out / "draws.npz"
        return {**found, "draws": dict(np.load(draws)) if draws.exists() else {}}

    def _work(self, command: list[str], settings: Mapping[str, Any]) -> str:
        """Run a worker; why it failed, or nothing."""
        with tempfile.TemporaryDirectory() as fresh:
            environment = {**os.environ, **fresh_caches(fresh), "JAX_PLATFORMS": "cpu", "MPLBACKEND": "Agg"}
            if command[5].startswith("stan"):  # half a minute a program: built once, the time of that is remembered
                environment["XDG_CACHE_HOME"] = str(self.folder.resolve() / "stan-cache")
            try:
                done = subprocess.run(
                    [*command, json.dumps(settings)],
                    cwd=ROOT,
                    env=environment,
                    capture_output=True,
                    text=True,
                    timeout=self.limit,
                    check=False,
                )
            except subprocess.TimeoutExpired:
                return f"over {self.limit:.0f} s"
        return "" if done.returncode == 0 else (done.stderr.strip().splitlines() or ["failed"])[-1]


def fresh_caches(folder: str) -> dict[str, str]:
    """Point every cache that a peer may have to an empty folder."""
    return {
        "PPL_CACHE_DIR": f"{folder}/ppl",
        "XDG_CACHE_HOME": f"{folder}/xdg",
        "NUMBA_CACHE_DIR": f"{folder}/numba",
        "PYTENSOR_FLAGS": f"base_compiledir={folder}/pytensor",
        "TORCHINDUCTOR_CACHE_DIR": f"{folder}/inductor",
    }


def flat(draws: Mapping[str, np.ndarray]) -> np.ndarray:
    """Join draws by name (chain, draw, ...) into one array (chain, draw, Q), names in order of the alphabet."""
    return np.concatenate([draws[name].reshape(*draws[name].shape[:2], -1) for name in sorted(draws)], axis=-1)


def measured(model: str, peer: str, facts: Mapping[str, Any], difference: float) -> Measured:
    """Turn the facts of a run into what the tables show."""
    ess = float(np.min(array_stats.ess(flat(facts["draws"]), chain_axis=0, draw_axis=1, method="bulk")))
    name, _, variant = peer.partition(":")
    return Measured(
        model=model,
        peer=name,
        variant=variant,
        microseconds=1e6 * facts["sampling"] / facts["num_gradients"],
        rate=ess / facts["sampling"],
        rate_with_start=ess / facts["total"],
        start=facts["total"] - facts["sampling"],
        peak=facts["peak"],
        difference=difference,
        note=facts["note"],
    )


def differences(means: np.ndarray, errors: np.ndarray, peers: list[str]) -> np.ndarray:
    """Compare the means (run, Q) of each run with those of the runs of all other peers, in standard errors.

    Returns
    -------
    ndarray
        The largest absolute difference over quantities, by run; zero where there is no other peer.
    """
    weights, result = errors**-2.0, np.zeros(len(peers))
    for i, peer in enumerate(peers):
        others = np.array([other != peer for other in peers])
        if others.any():
            total = weights[others].sum(0)
            pooled = (weights[others] * means[others]).sum(0) / total
            result[i] = np.max(np.abs(means[i] - pooled) / np.sqrt(errors[i] ** 2 + 1.0 / total))
    return result


def compared(results: Mapping[tuple[str, str, int], dict[str, Any]]) -> list[Measured]:
    """Measure all runs that succeeded, by (model, peer, seed), and compare their posterior means."""
    by_model = defaultdict(list)
    for (model, peer, _), facts in results.items():
        if "failed" not in facts:
            by_model[model].append((peer, facts))
    rows = []
    for model, runs in by_model.items():
        draws = [flat(facts["draws"]) for _, facts in runs]
        means = np.array([x.mean((0, 1)) for x in draws])
        errors = np.array([array_stats.mcse(x, chain_axis=0, draw_axis=1, method="mean") for x in draws])
        apart = differences(means, errors, [peer.partition(":")[0] for peer, _ in runs])
        rows += [measured(model, peer, facts, float(z)) for (peer, facts), z in zip(runs, apart, strict=True)]
    return rows
