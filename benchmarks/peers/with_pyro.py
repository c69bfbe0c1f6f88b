"""Pyro's own NUTS, as its users run it."""

import multiprocessing
import os
import time
from collections.abc import Callable
from typing import Any

from benchmarks.models import Case
from benchmarks.peers.run import Run, Settings, Steps, StepsRun

REQUIRES = ("pyro",)
# A chain that would take longer is cut, warm-up and draws alike, but not to less than this share.
MAX_SECONDS, MIN_SHARE = 30.0, 0.3
LEAPFROG_STEPS = 9  # per iteration, about, on these models


def prepare(case: Case, variant: str = "") -> Callable[[Settings], Run]:
    import pyro
    import torch
    from pyro.infer import MCMC, NUTS

    torch.set_default_dtype(torch.float64)
    count = _count_gradients()

    def run(settings: Settings) -> Run:
        pyro.set_rng_seed(settings.seed)
        data = {name: torch.as_tensor(value) for name, value in case.data().items()}
        kernel = _Timed(NUTS(case.pyro, target_accept_prob=settings.target_accept))
        # With too few cores Pyro draws its chains one after the other, so one of them has the rates of all.
        together = (os.cpu_count() or 1) > settings.chains
        share = 1.0 if together else _share(NUTS(case.pyro), data, settings)
        begin = time.perf_counter()
        mcmc = MCMC(
            kernel.kernel,
            num_samples=int(share * settings.draws),
            warmup_steps=int(share * settings.warmup),
            num_chains=settings.chains if together else 1,
            disable_progbar=True,
        )
        count.value = 0
        mcmc.run(**data)
        total = time.perf_counter() - begin
        samples = mcmc.get_samples(group_by_chain=True)
        cut = f" of {int(share * settings.warmup)} + {int(share * settings.draws)} iterations" if share < 1.0 else ""
        return Run(
            draws={name: samples[name].numpy() for name in case.quantities},
            num_gradients=count.value,
            sampling=total - kernel.setup_seconds,
            total=total,
            note="" if together else f"one chain{cut}",
        )

    return run


def _share(kernel: Any, data: dict[str, Any], settings: Settings) -> float:
    """Choose the share of the iterations that takes about `MAX_SECONDS`; rates need not more."""
    from pyro.ops import integrator

    kernel.setup(0, **data)
    start = kernel.initial_params
    begin = time.perf_counter()
    for _ in range(20):
        integrator.potential_grad(kernel.potential_fn, start)
    seconds = (time.perf_counter() - begin) / 20 * LEAPFROG_STEPS * settings.iterations
    return min(1.0, max(MIN_SHARE, MAX_SECONDS / seconds))


class _Timed:
    """A kernel whose setup is timed where it happens in this process."""

    def __init__(self, kernel: Any) -> None:
        self.kernel, self.setup_seconds = kernel, 0.0
        setup = kernel.setup

        def timed(*args: Any, **kwargs: Any) -> None:
            begin = time.perf_counter()
            setup(*args, **kwargs)
            self.setup_seconds += time.perf_counter() - begin

        kernel.setup = timed


def _count_gradients() -> Any:
    """Count calls of Pyro's gradient, in forked processes too."""
    from pyro.ops import integrator

    count, original = multiprocessing.Value("q", 0), integrator.potential_grad

    def counted(*args: Any, **kwargs: Any) -> Any:
        with count.get_lock():
            count.value += 1
        return original(*args, **kwargs)

    integrator.potential_grad = counted
    return count


def prepare_svi(case: Case, variant: str = "") -> Callable[[Steps], StepsRun]:
    import pyro
    import torch
    from pyro.infer import SVI, Trace_ELBO
    from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
    from pyro.optim import Adam

    torch.set_default_dtype(torch.float64)
    guides = {"normal": AutoNormal, "multivariate_normal": AutoMultivariateNormal}

    def run(settings: Steps) -> StepsRun:
        pyro.set_rng_seed(settings.seed)
        begin = time.perf_counter()
        data = {name: torch.as_tensor(value) for name, value in case.data().items()}
        svi = SVI(case.pyro, guides[settings.guide](case.pyro), Adam({"lr": settings.lr}), Trace_ELBO())
        for _ in range(10):
            svi.step(**data)
        start = time.perf_counter()
        for _ in range(settings.steps):
            loss = svi.step(**data)
        end = time.perf_counter()
        return StepsRun(steps=settings.steps, stepping=end - start, total=end - begin, loss=loss)

    return run
