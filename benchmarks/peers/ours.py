"""Ours: `fit` with `NUTS`; the variant, if any, is its backend."""

import time
from collections.abc import Callable

from benchmarks.models import Case
from benchmarks.peers.run import Run, Settings, Steps, StepsRun

REQUIRES = ("inference",)


def prepare(case: Case, variant: str = "") -> Callable[[Settings], Run]:
    from inference import NUTS, fit

    options = {"backend": variant} if variant else {}

    def run(settings: Settings) -> Run:
        engine = NUTS(
            num_warmup=settings.warmup,
            num_samples=settings.draws,
            num_chains=settings.chains,
            target_accept=settings.target_accept,
            **options,
        )
        begin = time.perf_counter()
        result = fit(case.pyro, case.data(), engine, seed=settings.seed, progress=False)
        elapsed = time.perf_counter() - begin
        # `fit` also draws the summed-out discrete sites, one per row and draw, which no other peer does.
        total = elapsed - result.seconds["other_sites"]
        return Run(
            draws={name: result.draws[name] for name in case.quantities},
            num_gradients=result.num_gradients,
            sampling=result.seconds["warmup"] + result.seconds["sampling"],
            total=total,
            parts=dict(result.seconds),
            note="; ".join([result.state["backend"], *result.notes]),
        )

    return run


def prepare_svi(case: Case, variant: str = "") -> Callable[[Steps], StepsRun]:
    from inference import SVI, fit

    def run(settings: Steps) -> StepsRun:
        engine = SVI(guide=settings.guide, num_steps=settings.steps, lr=settings.lr)
        begin = time.perf_counter()
        result = fit(case.pyro, case.data(), engine, seed=settings.seed, progress=False)
        elapsed = time.perf_counter() - begin
        return StepsRun(
            steps=settings.steps,
            stepping=result.seconds["optimisation"],
            total=elapsed,
            loss=float(result.history["loss"][-1]),
            note=result.state["backend"],
        )

    return run
