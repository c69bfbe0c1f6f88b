"""Choosing how SVI takes its steps: native code, a recorded graph, or eager Pyro."""

import logging
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from pyro.infer import ELBO

from inference.errors import one_line
from inference.graph import python_seconds
from inference.native import NoCompiler, NotWorthIt, compile_graph
from inference.optimise import AdamRates, PyroStepper, TorchStepper
from inference.svi_graph import StepGraph, UntraceableError, check_same, record_step
from inference.svi_loop import MAX_STEPS, EagerSteps, GraphSteps, Steps
from inference.svi_native import NativeSteps

logger = logging.getLogger(__name__)

BACKENDS = ("auto", "native", "python", "pyro")
# To record and verify a step takes as long as 60 to 100 steps of eager Pyro, which are two to four times slower than
# the recorded ones: fewer steps than these are not worth it.
WORTH_RECORDING = 150
# Without num_steps the plateau rule needs at least 2800 steps.
UNKNOWN_STEPS = 3000
# What the optimiser takes per parameter tensor in Python.
SECONDS_PER_PARAM = 4e-5


class Choice(NamedTuple):
    """A way to take steps, and why it is not a faster one; empty where nothing faster was wanted or there is none."""

    steps: Steps
    reason: str


def choose_steps(
    backend: str,
    loss: ELBO,
    model: Callable,
    guide: Callable,
    data: Mapping[str, Any],
    stepper: TorchStepper | PyroStepper,
    *,
    num_steps: int | None,
) -> Choice:
    """Give the fastest way to take steps that ``backend`` allows and the problem bears.

    Parameters
    ----------
    backend
        One of `BACKENDS`.
    loss, model, guide, data, stepper
        The problem.
    num_steps
        How many steps there will be; None where the plateau rule decides.
    """
    eager, most = EagerSteps(loss, model, guide, data, stepper), num_steps or MAX_STEPS
    expected = num_steps or UNKNOWN_STEPS
    if backend == "pyro" or (backend == "auto" and expected < WORTH_RECORDING):
        return Choice(eager, "")
    try:
        recorded = record_step(loss, model, guide, data)
    except Exception as error:  # recording can fail in as many ways as models can be written
        return Choice(eager, _reason("no recorded graph, so eager Pyro runs the steps", error))
    graph = GraphSteps(recorded, most, stepper)
    if backend == "python":
        return Choice(graph, "")
    step = python_seconds(recorded.graph) * recorded.particles + SECONDS_PER_PARAM * len(recorded.params)
    worth = float("inf") if backend == "native" else expected * step
    try:
        return Choice(_native(recorded, stepper.adam(), most, worth=worth), "")
    except NotWorthIt:
        return Choice(graph, "")
    except NoCompiler as advice:
        return Choice(graph, str(advice))
    except Exception as error:
        return Choice(graph, _reason("no native code, so a recorded graph runs the steps", error))


def _native(recorded: StepGraph, rates: AdamRates | None, most: int, *, worth: float) -> Steps:
    if rates is None:
        raise UntraceableError("the optimiser is not a plain torch.optim.Adam")
    if recorded.draws_inside:
        raise UntraceableError("random numbers depend on parameters, as those of gamma and Dirichlet distributions do")
    if len({t.dtype for t in (*recorded.params, *recorded.noise)}) > 1:
        raise UntraceableError("parameters of several dtypes")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        examples = recorded.examples()
    function = compile_graph(recorded.graph, *examples[0], worth=worth)
    for inputs in examples:
        with torch.no_grad():
            expected = recorded.graph(*inputs)
        check_same(expected, [torch.as_tensor(a) for a in function(*(t.numpy() for t in inputs))])
    return NativeSteps(recorded, function, rates, most)


def _reason(what: str, error: Exception) -> str:
    said = one_line(error) if isinstance(error, UntraceableError) else f"{type(error).__name__}: {one_line(error)}"
    logger.info("%s: %s", what, said)
    return f"{what} ({said})"
