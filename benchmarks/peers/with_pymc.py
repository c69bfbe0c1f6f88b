"""PyMC's model, compiled by numba, sampled by nutpie."""

import time
from collections.abc import Callable

import numpy as np

from benchmarks.models import Case
from benchmarks.peers.run import Run, Settings, Steps, StepsRun

REQUIRES = ("pymc", "numba", "nutpie")


def prepare(case: Case, variant: str = "") -> Callable[[Settings], Run]:
    import nutpie
    import pymc  # noqa: F401

    def run(settings: Settings) -> Run:
        begin = time.perf_counter()
        compiled = nutpie.compile_pymc_model(case.pymc(case.data()))
        return sample(compiled, case, settings, begin=begin)

    return run


def sample(compiled: object, case: Case, settings: Settings, *, begin: float) -> Run:
    """Sample a compiled model with nutpie; ``begin`` is when the clock of the total started."""
    import nutpie

    start = time.perf_counter()
    trace = nutpie.sample(
        compiled,
        draws=settings.draws,
        tune=settings.warmup,
        chains=settings.chains,
        seed=settings.seed,
        target_accept=settings.target_accept,
        progress_bar=False,
    )
    end = time.perf_counter()
    steps = [int(trace[group]["n_steps"].values.sum()) for group in ("warmup_sample_stats", "sample_stats")]
    return Run(
        draws={name: np.asarray(trace["posterior"][name]) for name in case.quantities},
        num_gradients=sum(steps),
        sampling=end - start,
        total=end - begin,
    )


def prepare_svi(case: Case, variant: str = "") -> Callable[[Steps], StepsRun]:
    import pymc as pm
    import pytensor

    methods = {"normal": pm.ADVI, "multivariate_normal": pm.FullRankADVI}
    if variant:
        pytensor.config.mode = variant.upper()

    def run(settings: Steps) -> StepsRun:
        begin = time.perf_counter()
        model = case.pymc(case.data())
        inference = methods[settings.guide](model=model, random_seed=settings.seed)
        optimizer = pm.adam(learning_rate=settings.lr)
        inference.fit(10, obj_optimizer=optimizer, progressbar=False)
        start = time.perf_counter()
        inference.refine(settings.steps, progressbar=False)
        end = time.perf_counter()
        loss = float(inference.hist[-1])
        return StepsRun(steps=settings.steps, stepping=end - start, total=end - begin, loss=loss, note=variant)

    return run
