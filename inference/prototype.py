"""The first run of a model whose discrete sites are enumerated, and what sums them out."""

from collections.abc import Callable

from pyro import poutine
from pyro.infer.mcmc.util import TraceEinsumEvaluator

from inference.errors import InputError, one_line
from inference.sites import Sites, trace_at_start


def prototype_of(model: Callable, sites: Sites) -> poutine.Trace:
    """Run the enumerated model once.

    Raises
    ------
    InputError
        It fails.
    """
    try:
        return trace_at_start(model, sites.data)
    except Exception as error:
        said = f"{type(error).__name__}: {one_line(error)}"
        if not sites.discrete:
            raise InputError(f"model: ran once and fails when it is run again ({said}).") from error
        names = ", ".join(f"'{n}'" for n in sites.discrete)
        raise InputError(
            f"model: fails when the discrete site {names} is enumerated ({said}); index with "
            f"pyro.ops.indexing.Vindex and keep the last {sites.max_plate_nesting} batch dims for plates."
        ) from error


def evaluator_of(prototype: poutine.Trace, sites: Sites) -> TraceEinsumEvaluator:
    """Give what sums the factors of a trace over the discrete sites.

    Raises
    ------
    InputError
        The shapes of the model do not fit.
    """
    try:
        return TraceEinsumEvaluator(prototype, bool(sites.discrete), sites.max_plate_nesting)
    except ValueError as error:
        raise InputError(
            f"model: its shapes do not fit the enumeration of {', '.join(sites.discrete)} ({one_line(error)}). An "
            "enumerated value has its states in a new leading dim: let it broadcast; put independent data in plates."
        ) from error
