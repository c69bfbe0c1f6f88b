"""Stan through PyStan."""

import importlib.metadata
import re
import sys
import time
from collections.abc import Callable
from functools import partial
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

from benchmarks.machine import num_cores
from benchmarks.models import Case
from benchmarks.peers.run import Run, Settings
from benchmarks.stan_program import timed_build

REQUIRES = ("stan", "httpstan")


def prepare(case: Case, variant: str = "") -> Callable[[Settings], Run]:
    stan = _import_stan()

    def run(settings: Settings) -> Run:
        begin = time.perf_counter()
        build = partial(stan.build, case.stan, data=case.stan_data(), random_seed=settings.seed)
        posterior, saved = timed_build(f"pystan {case.stan}", build)
        result = posterior.sample(
            num_chains=settings.chains,
            num_warmup=settings.warmup,
            num_samples=settings.draws,
            save_warmup=True,
            delta=settings.target_accept,
        )
        total = time.perf_counter() - begin
        elapsed = [_elapsed(output) for output in result.stan_outputs]
        shape = (settings.iterations, settings.chains)
        draws = {name: np.asarray(result[name]) for name in case.quantities}
        by_chain = {name: np.moveaxis(x.reshape(*x.shape[:-1], *shape), (-1, -2), (0, 1)) for name, x in draws.items()}
        kept = {name: x[:, settings.warmup :] for name, x in by_chain.items()}
        return Run(
            draws={name: x[..., 0] if x.shape[2:] == (1,) else x for name, x in kept.items()},
            num_gradients=int(result["n_leapfrog__"].sum()),
            sampling=sum(elapsed) / min(num_cores(), settings.chains),
            total=total + saved,
        )

    return run


def _elapsed(output: bytes) -> float:
    """Seconds of one chain by Stan's own clock, which leaves out the passing of draws from process to process."""
    phases = (b"Warm-up", b"Sampling")  # each is said twice, to the log and among the draws
    return sum(float(re.search(rb"([\d.e+-]+) seconds \(" + phase, output)[1]) for phase in phases)


def _import_stan() -> Any:
    """Import PyStan, which asks for one function of `pkg_resources`, which setuptools no longer has."""
    try:
        import pkg_resources  # noqa: F401
    except ModuleNotFoundError:
        stand_in = ModuleType("pkg_resources")
        stand_in.EntryPoint = SimpleNamespace
        stand_in.iter_entry_points = lambda group: iter(importlib.metadata.entry_points(group=group))
        sys.modules["pkg_resources"] = stand_in
    import stan

    return stan
