"""The seven models of the benchmarks, `CASES`, and larger ones of `benchmarks.mixtures_hmm`, `LARGE`."""

from benchmarks.models.autoregression import AUTOREGRESSION
from benchmarks.models.case import Case
from benchmarks.models.groups import GROUPS
from benchmarks.models.hmm import hmm_case
from benchmarks.models.logistic import logistic_case
from benchmarks.models.mixture import MIXTURE
from benchmarks.models.mixture_2d import mixture_2d_case
from benchmarks.models.schools import SCHOOLS

CASES: dict[str, Case] = {
    case.name: case
    for case in (
        SCHOOLS,
        logistic_case(1000, 20),
        logistic_case(20000, 50),
        MIXTURE,
        hmm_case(3, 200),
        GROUPS,
        AUTOREGRESSION,
    )
}

LARGE: dict[str, Case] = {case.name: case for case in (mixture_2d_case(10_000), hmm_case(3, 500))}

__all__ = ["CASES", "LARGE", "Case", "hmm_case", "logistic_case", "mixture_2d_case"]
