"""A Stan program sampled by nutpie, through our own library with the interface of BridgeStan."""

import time
from collections.abc import Callable

from benchmarks.models import Case
from benchmarks.peers import with_pymc
from benchmarks.peers.run import Run, Settings

REQUIRES = ("httpstan", "nutpie", "stanio")


def prepare(case: Case, variant: str = "") -> Callable[[Settings], Run]:
    from nutpie import _lib
    from nutpie.compile_stan import CompiledStanModel

    from benchmarks.stan_program import library, timed_build

    def run(settings: Settings) -> Run:
        begin = time.perf_counter()
        path, saved = timed_build(f"nutpie {case.stan}", lambda: library(case.stan))
        compiled = CompiledStanModel(
            code=case.stan,
            library=_lib.StanLibrary(path),
            dims={},
            _coords={},
            model_name=case.name,
            model=None,
            data=None,
        ).with_data(**case.stan_data())
        return with_pymc.sample(compiled, case, settings, begin=begin - saved)

    return run
