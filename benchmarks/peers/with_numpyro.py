"""NumPyro's NUTS in float64; the variant is the way its chains are run."""

import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.machine import num_cores
from benchmarks.models import Case
from benchmarks.peers.run import Run, Settings, Steps, StepsRun

REQUIRES = ("numpyro",)


def prepare(case: Case, variant: str = "sequential") -> Callable[[Settings], Run]:
    # "parallel" wants a device per chain; more threads than cores share them.
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={max(4, num_cores())}"
    import jax
    import numpyro
    from numpyro.infer import MCMC, NUTS

    numpyro.enable_x64()
    numpyro.set_platform("cpu")
    model = case.numpyro()

    def run(settings: Settings) -> Run:
        begin = time.perf_counter()
        mcmc = MCMC(
            NUTS(model, target_accept_prob=settings.target_accept),
            num_warmup=settings.warmup,
            num_samples=settings.draws,
            num_chains=settings.chains,
            chain_method=variant,
            progress_bar=False,
        )
        states, key, data = _keep_states(mcmc), jax.random.PRNGKey(settings.seed), case.data()
        _keep_compiled()
        draws, steps = _run(mcmc, key, data)
        total = time.perf_counter() - begin
        # Again, with the same key: now everything is compiled, and the starting points are known.
        if variant != "parallel":  # compiled as one with the rest
            mcmc._get_cached_init_state = lambda *_: _joined(states)
        begin = time.perf_counter()
        again, _ = _run(mcmc, key, data)
        sampling = min(total, time.perf_counter() - begin)
        assert all(np.array_equal(draws[name], again[name]) for name in draws)
        kept = {name: draws[name][:, settings.warmup :] for name in case.quantities}
        return Run(draws=kept, num_gradients=int(steps.sum()), sampling=sampling, total=total, note=variant)

    return run


def _run(mcmc: Any, key: Any, data: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Draw, warm-up kept, so that the gradients of the warm-up can be counted."""
    iterations = mcmc.num_warmup + mcmc.num_samples
    mcmc._set_collection_params(0, iterations, iterations, "sample")
    mcmc.run(key, extra_fields=("num_steps",), **data)
    draws = {name: np.asarray(value) for name, value in mcmc.get_samples(group_by_chain=True).items()}
    return draws, np.asarray(mcmc.get_extra_fields()["num_steps"])


def _keep_states(mcmc: Any) -> list[Any]:
    """Keep the states that initialisation gives."""
    states, init = [], mcmc.sampler.init

    def kept(*args: Any, **kwargs: Any) -> Any:
        states.append(init(*args, **kwargs))
        return states[-1]

    mcmc.sampler.init = kept
    return states


def _joined(states: list[Any]) -> Any:
    import jax

    return states[0] if len(states) == 1 else jax.tree.map(lambda *leaves: jax.numpy.stack(leaves), *states)


def _keep_compiled() -> None:
    """Let later chains and the second run use what the first compiled.

    NumPyro 0.22 makes a new `jit` or `pmap` of the same function each time, for which JAX 0.10 compiles again. This
    spares it some start-up as well.
    """
    import numpyro.infer.mcmc
    import numpyro.util

    jitted, original, pmapped, pmap = {}, numpyro.util.maybe_jit, [], numpyro.infer.mcmc.pmap

    def kept_jit(function: Any, **options: Any) -> Any:
        return jitted.setdefault((function, *options.items()), original(function, **options))

    def kept_pmap(function: Any) -> Any:
        if not pmapped:
            pmapped.append(pmap(function))
        return pmapped[0]

    numpyro.util.maybe_jit, numpyro.infer.mcmc.pmap = kept_jit, kept_pmap


def prepare_svi(case: Case, variant: str = "") -> Callable[[Steps], StepsRun]:
    import jax
    import numpyro
    from numpyro.infer import SVI, Trace_ELBO
    from numpyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
    from numpyro.optim import Adam

    numpyro.enable_x64()
    numpyro.set_platform("cpu")
    guides, model = {"normal": AutoNormal, "multivariate_normal": AutoMultivariateNormal}, case.numpyro()

    def run(settings: Steps) -> StepsRun:
        begin = time.perf_counter()
        data = case.data()
        svi = SVI(model, guides[settings.guide](model), Adam(settings.lr), Trace_ELBO())
        state = svi.init(jax.random.PRNGKey(settings.seed), **data)
        # What `SVI.run` does, compiled as a whole, so that it can be timed without its compilation.
        steps = jax.jit(lambda state: jax.lax.scan(lambda s, _: svi.update(s, **data), state, length=settings.steps))
        jax.block_until_ready(steps(state))
        total = time.perf_counter() - begin
        start = time.perf_counter()
        _, losses = jax.block_until_ready(steps(state))
        stepping = time.perf_counter() - start
        return StepsRun(steps=settings.steps, stepping=stepping, total=total, loss=float(losses[-1]))

    return run
