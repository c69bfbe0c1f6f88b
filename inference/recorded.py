"""Recordings of densities, kept for the next fit of the same model to data of the same shapes."""

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import torch
from torch.fx import GraphModule
from torch.utils._pytree import tree_flatten, tree_unflatten

from inference.fingerprint import Unknown, digest, fingerprint
from inference.graph import Recording

logger = logging.getLogger(__name__)

# Recordings kept by one process: a study has a few models and a few sizes of data.
MAX_KEPT = 16
# A recording with more numbers of its own (a model that closes over its data) is not kept: 16 are then 128 MB at most.
MAX_KEPT_NUMBERS = 2**20

_lock = threading.Lock()
# By what tells the model and the data, and by the values that were read; the last used last.
_kept: OrderedDict[tuple[Hashable, tuple], Recording] = OrderedDict()
_count = 0


def num_recordings() -> int:
    """Count the densities that this process has recorded so far."""
    return _count


def clear() -> None:
    """Forget all recordings."""
    with _lock:
        _kept.clear()


class Inputs:
    """The data of a model, parted into tensors, which a recording takes as inputs, and the rest.

    Attributes
    ----------
    tensors
        In the order in which `join` takes them.
    """

    def __init__(self, data: Mapping[str, Any]) -> None:
        self._leaves, self._spec = tree_flatten(dict(data))
        self._places = [i for i, leaf in enumerate(self._leaves) if isinstance(leaf, torch.Tensor)]
        self.tensors = [self._leaves[i] for i in self._places]

    def join(self, tensors: Sequence[torch.Tensor]) -> dict[str, Any]:
        """Give the data, with other tensors in the places of its own."""
        leaves = list(self._leaves)
        for i, tensor in zip(self._places, tensors, strict=True):
            leaves[i] = tensor
        return tree_unflatten(leaves, self._spec)

    def signature(self) -> Hashable:
        """Tell structure, shapes and dtypes, and the values of all that is no tensor.

        Raises
        ------
        Unknown
            The data hold an object whose value cannot be told.
        """
        rest = [fingerprint(leaf) for leaf in self._leaves if not isinstance(leaf, torch.Tensor)]
        tensors = [(i, tuple(t.shape), t.stride(), t.dtype) for i, t in zip(self._places, self.tensors, strict=True)]
        return str(self._spec), tuple(tensors), tuple(rest)


def bound_graph(
    function: Callable[..., Any],
    point: torch.Tensor,
    inputs: Inputs,
    *,
    key: Callable[[], Hashable],
    check: Callable[[GraphModule, bool], None],
) -> GraphModule:
    """Give the graph of ``point -> (gradient, value)`` of ``function(point, *inputs.tensors)``, kept or recorded now.

    Parameters
    ----------
    key
        Tells the function from others, or raises `Unknown`: then it is recorded anew, and not kept.
    check
        Called with a graph and whether its recording was made for other data; raises where the graph is wrong.
    """
    global _count
    try:
        told = key(), inputs.signature()
    except Unknown:
        told = None
    kept = None if told is None else _find(told, inputs)
    if kept is not None:
        try:
            graph = kept.bind(*inputs.tensors)
            check(graph, True)
        except Exception as error:  # the model computes something else now, for a reason that its key does not show
            logger.info("recording anew: %s", error)
        else:
            return graph
    recording = Recording(function, [point], inputs.tensors, gradient=True)
    _count += 1
    graph = recording.bind(*inputs.tensors)
    check(graph, False)
    if told is not None:
        _keep(told, inputs, recording)
    return graph


def _find(told: Hashable, inputs: Inputs) -> Recording | None:
    """Look for a recording that holds for these data."""
    with _lock:
        for (key, read), recording in _kept.items():
            if key == told and all(digest(inputs.tensors[i]) == value for i, value in read):
                _kept.move_to_end((key, read))
                return recording
    return None


def _keep(told: Hashable, inputs: Inputs, recording: Recording) -> None:
    if recording.num_constants > MAX_KEPT_NUMBERS:
        return
    with _lock:
        _kept[told, tuple((i, digest(inputs.tensors[i])) for i in sorted(recording.read))] = recording
        while len(_kept) > MAX_KEPT:
            _kept.popitem(last=False)
