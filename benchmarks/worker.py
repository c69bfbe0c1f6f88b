"""One run of one peer on one model in a process of its own.

``python -m benchmarks.worker TASK OUT PEER MODEL SETTINGS``: ``TASK`` is "nuts" or "svi", ``PEER`` may have a variant
(numpyro:parallel), ``SETTINGS`` is JSON. Writes facts.json, and the draws if there are any, draws.npz, to folder OUT.
"""

import json
import resource
import sys
import warnings
from dataclasses import asdict
from pathlib import Path

import numpy as np

from benchmarks.models import CASES, LARGE
from benchmarks.peers import module
from benchmarks.peers.run import Settings, Steps


def main() -> None:
    task, out, peer, model, settings = sys.argv[1:]
    warnings.simplefilter("ignore")
    name, _, variant = peer.partition(":")
    prepare, kind = {"nuts": ("prepare", Settings), "svi": ("prepare_svi", Steps)}[task]
    work = getattr(module(name), prepare)((CASES | LARGE)[model], *([variant] if variant else []))
    facts = asdict(work(kind(**json.loads(settings))))
    draws = facts.pop("draws", None)
    # Linux counts in kB, macOS in bytes. Taken here, before anything of ours loads what the peer does not need.
    facts["peak"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e3 if sys.platform == "linux" else 1e6)
    if draws is not None:
        np.savez(Path(out) / "draws.npz", **draws)
    (Path(out) / "facts.json").write_text(json.dumps(facts))


if __name__ == "__main__":
    main()
