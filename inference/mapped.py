"""A function of one draw, applied to all draws: recorded and batched, in parts of bounded memory."""

import logging
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pyro
import torch
from torch.utils._pytree import tree_leaves, tree_map

from inference.graph import MAX_BATCH_NUMBERS, batched, loop, record, widest

logger = logging.getLogger(__name__)


def map_draws(function: Callable[[Any], Any], values: Any, *, random: bool = False) -> dict[str, np.ndarray]:
    """Apply a function of one draw to all draws: recorded and batched where that works, else one by one.

    Parameters
    ----------
    function
        Takes one draw (a tensor or a dict of tensors), returns a dict of tensors.
    values
        The draws: a tensor or a dict of tensors with a leading axis over draws.
    random
        Whether ``function`` draws random numbers. If not, the batched result is checked against ``function`` itself.

    Returns
    -------
    dict
        The results as arrays with a leading axis over draws.
    """
    total, begin = len(tree_leaves(values)[0]), 0
    result: dict[str, np.ndarray] = {}
    for part in stream_draws(function, values, random=random):
        for name, value in part.items():
            if begin == 0:
                result[name] = np.empty((total, *value.shape[1:]), dtype=value.dtype)
            result[name][begin : begin + len(value)] = value
        begin += len(value)
    return result


def stream_draws(
    function: Callable[[Any], Any], values: Any, *, random: bool = False, numbers: int = MAX_BATCH_NUMBERS
) -> Iterator[dict[str, np.ndarray]]:
    """Do as `map_draws` does, and yield the results of as many draws as fit in ``numbers`` intermediate numbers."""
    total = len(tree_leaves(values)[0])
    many, size = _map_many(function, values, random=random, numbers=numbers)
    for begin in range(0, total, size):
        part = tree_map(lambda t, i=begin: t[i : i + size], values)
        with torch.no_grad(), pyro.validation_enabled(False):
            try:
                result = many(part)
            except Exception as error:  # torch raises many types here; one by one is slow and right
                logger.info("one draw at a time: %s", error)
                many = partial(loop, function)
                result = many(part)
        yield {name: value.detach().numpy() for name, value in result.items()}


def _map_many(function: Callable[[Any], Any], values: Any, *, random: bool, numbers: int) -> tuple[Callable, int]:
    """Give the function of many draws, and for how many at a time."""
    first, last = (tree_map(lambda t, i=i: t[i], values) for i in (0, -1))
    with torch.no_grad(), pyro.validation_enabled(False):
        try:
            graph = record(function, first)
            graph.graph.eliminate_dead_code(lambda node: node.op in ("placeholder", "output"))  # unused draws, too
            graph.recompile()
            many, size = batched(graph, numbers=1), max(1, numbers // widest(graph))
            if not random:
                result = many(tree_map(lambda t: t[-1:], values))
                if not _same(function(last), {name: value[-1] for name, value in result.items()}):
                    raise ArithmeticError("the recorded function differs from the function itself")
        except Exception as error:
            logger.info("one draw at a time: %s", error)
            outputs = sum(value.numel() for value in function(first).values())
            return partial(loop, function), max(1, numbers // max(1, outputs))
    return many, size


def _same(expected: dict[str, torch.Tensor], got: dict[str, torch.Tensor]) -> bool:
    return all(
        torch.allclose(got[name].double(), value.double(), rtol=1e-6, atol=1e-9, equal_nan=True)
        for name, value in expected.items()
    )
