"""Pyro's ``DiscreteHMM`` as one differentiable operator, small in a graph and quick in native code.

Pyro multiplies T transition matrices pairwise: thirty operations for every halving of T, and O(T K^3) work. Here a
whole chain is one node of the graph, its gradient another, which native code computes together in O(T K^2).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from pyro.distributions import DiscreteHMM
from torch import Tensor
from torch._functorch.autograd_function import enable_single_level_autograd_function
from torch.autograd.forward_ad import _set_fwd_grad_enabled

# A product of scaled probabilities below this has lost terms to underflow (which begins at 1e-308) that may matter.
_UNDERFLOW = 1e-280
# Chains are taken together up to this many logits (float64: 2 MB, so that intermediate results stay in the cache).
_CHUNK_NUMBERS = 2**18
# A longer chain is taken in blocks of steps of so many logits (8 MB, of which a dozen arrays live at a time).
_BLOCK_NUMBERS = 2**20


@contextmanager
def markov_operators() -> Iterator[None]:
    """Let ``DiscreteHMM.log_prob`` use the operator of this module while a model is recorded."""
    original, DiscreteHMM.log_prob = DiscreteHMM.log_prob, _log_prob
    try:
        yield
    finally:
        DiscreteHMM.log_prob = original


def _log_prob(self: DiscreteHMM, value: Tensor) -> Tensor:
    if self._validate_args:
        self._validate_sample(value)
    value = value.unsqueeze(-1 - self.observation_dist.event_dim)
    return log_sum(self.initial_logits, self.transition_logits, self.observation_dist.log_prob(value))


def log_sum(initial: Tensor, transition: Tensor, observation: Tensor) -> Tensor:
    """Log of the sum, over all state paths k_0 ... k_T, of the exponential of a path's logits.

    The logit of a path is ``initial[k_0] + sum_t (transition[t, k_{t-1}, k_t] + observation[t, k_t])``. Batch
    dimensions broadcast.

    Parameters
    ----------
    initial
        (..., K).
    transition
        (K, K), (..., 1, K, K) or (..., T, K, K).
    observation
        (..., T, K), or (..., 1, K) beside T transitions.
    """
    if transition.dim() == 2:
        transition = transition.unsqueeze(0)
    dtype = torch.promote_types(torch.promote_types(initial.dtype, transition.dtype), observation.dtype)
    # Not torch's, which imports sympy (half a second).
    batch = np.broadcast_shapes(initial.shape[:-1], transition.shape[:-3], observation.shape[:-2])
    steps = max(transition.shape[-3], observation.shape[-2])
    states = max(initial.shape[-1], transition.shape[-1], observation.shape[-1])
    return torch.ops.ppl.markov_log_sum(
        initial.to(dtype).expand(*batch, states),
        transition.to(dtype).expand(*batch, transition.shape[-3], states, states),
        observation.to(dtype).expand(*batch, steps, states),
    )


@np.errstate(all="ignore")  # infinite logits are allowed
def _log_sum_kernel(initial: Tensor, transition: Tensor, observation: Tensor) -> Tensor:
    """Compute ``ppl::markov_log_sum``, (*batch): minus infinity where every path is impossible.

    Parameters
    ----------
    initial, transition, observation
        (*batch, K), (*batch, T or 1, K, K), (*batch, T, K): one dtype, and the same ``batch`` throughout.
    """
    results = []
    for start, blocks in _chunks(initial, transition, observation):
        for block in blocks:
            start = _log_matmul(start, _product(block()))
        results.append(np.logaddexp.reduce(start[0, :, 0], axis=0))
    return torch.as_tensor(np.concatenate(results)).reshape(initial.shape[:-1]).to(initial.dtype)


@np.errstate(all="ignore")
def _marginals_kernel(initial: Tensor, transition: Tensor, observation: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Compute ``ppl::markov_marginals``: how often each logit is used by a path, given the observations.

    These are the gradients of ``ppl::markov_log_sum``, shaped as its arguments; zero where every path is impossible.
    """
    results = []
    for start, blocks in _chunks(initial, transition, observation):
        starts = [start]
        for block in blocks[:-1]:
            starts.append(_log_matmul(starts[-1], _product(block())))
        after, parts = np.zeros_like(start).swapaxes(0, 1), []
        for start, block in zip(reversed(starts), reversed(blocks), strict=True):
            pairs, after = _pair_probabilities(start, block(), after)
            used = pairs if transition.shape[-3] == observation.shape[-2] else pairs.sum(2, keepdims=True)
            parts.append((pairs[:, :, 0].sum(1).T, used.transpose(3, 2, 0, 1), pairs.sum(0).transpose(2, 1, 0)))
        firsts, used, arrivals = zip(*reversed(parts), strict=True)
        used = np.concatenate(used, 1) if transition.shape[-3] == observation.shape[-2] else sum(used)
        results.append((firsts[0], used, np.concatenate(arrivals, 1)))
    arguments = initial, transition, observation
    return tuple(
        torch.as_tensor(np.ascontiguousarray(np.concatenate(parts))).reshape(a.shape).to(a.dtype)
        for parts, a in zip(zip(*results, strict=True), arguments, strict=True)
    )


def _chunks(
    initial: Tensor, transition: Tensor, observation: Tensor
) -> Iterator[tuple[np.ndarray, list[Callable[[], np.ndarray]]]]:
    """Yield starts (1, K, 1, B) and blocks of steps, for parts of the batch that fit the cache, float64.

    A block, when called, gives its logits (K, K, n, B). The small dimensions come first, so that operations run along
    the long ones.
    """
    steps, states = observation.shape[-2:]
    start, maps, weights = (
        x.numpy(force=True).astype(np.float64, copy=False) for x in (initial, transition, observation)
    )
    start = start.reshape(1, -1, 1, states).swapaxes(1, 3)
    maps = maps.reshape(-1, *maps.shape[-3:]).transpose(2, 3, 1, 0)
    weights = weights.reshape(1, -1, steps, states).transpose(0, 3, 2, 1)
    length = min(steps, max(2, _BLOCK_NUMBERS // states**2))
    size = max(1, _CHUNK_NUMBERS // (length * states * states))
    for i in range(0, start.shape[-1], size):
        part = slice(i, i + size)
        blocks = [
            partial(_logits, maps[..., part], weights[..., part], slice(first, first + length))
            for first in range(0, steps, length)
        ]
        yield start[..., part], blocks


def _logits(maps: np.ndarray, weights: np.ndarray, block: slice) -> np.ndarray:
    """Add transitions and observations of some steps, (K, K, n, B)."""
    return np.ascontiguousarray((maps if maps.shape[2] == 1 else maps[:, :, block]) + weights[:, :, block])


def _product(logits: np.ndarray) -> np.ndarray:
    """Multiply all steps, (K, K, n, B) to (K, K, 1, B)."""
    while logits.shape[2] > 1:
        logits = _halved(logits)
    return logits


def _pair_probabilities(start: np.ndarray, logits: np.ndarray, end: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Give the probability of each pair of states at each step of a block, and the log weights after the block before.

    Parameters
    ----------
    start, end
        Log weights of each state before the block (1, K, 1, B), and of all that follows it (K, 1, 1, B).
    """
    before, after = _messages(start, logits, end)
    pairs = logits + before.swapaxes(0, 1) + after.swapaxes(0, 1)
    highest = pairs.max((0, 1))
    possible = highest != -np.inf
    pairs = np.exp(pairs - np.where(possible, highest, 0.0))
    pairs /= np.where(possible, pairs.sum((0, 1)), 1.0)
    return pairs, _log_matmul(logits[:, :, :1], after[:, :, :1])


def _halved(logits: np.ndarray) -> np.ndarray:
    """Multiply neighbours in time, (K, K, n, B) to (K, K, n/2, B); the last of an odd number stays."""
    whole = logits.shape[2] // 2 * 2
    products = _log_matmul(logits[:, :, 0:whole:2], logits[:, :, 1:whole:2])
    return np.concatenate([products, logits[:, :, whole:]], 2)


def _messages(start: np.ndarray, logits: np.ndarray, end: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Log weights of each state before each step (1, K, T, B), and of all that follows after each step (K, 1, T, B).

    A parallel scan over time (Sarkka and Garcia-Fernandez 2019, section IV): products of ever longer blocks of steps
    on the way up, messages into ever shorter blocks on the way down.
    """
    blocks = [logits]
    while blocks[-1].shape[2] > 1:
        blocks.append(_halved(blocks[-1]))
    before, after = start, end
    for block in reversed(blocks[:-1]):
        num, whole = block.shape[2], block.shape[2] // 2 * 2
        outer_before, outer_after = before, after
        before, after = (np.empty((*x.shape[:2], num, x.shape[3])) for x in (before, after))
        before[:, :, 0::2] = outer_before
        before[:, :, 1::2] = _log_matmul(outer_before[:, :, : whole // 2], block[:, :, 0:whole:2])
        after[:, :, 1::2] = outer_after[:, :, : whole // 2]
        after[:, :, 0:whole:2] = _log_matmul(block[:, :, 1:whole:2], outer_after[:, :, : whole // 2])
        after[:, :, whole:] = outer_after[:, :, whole // 2 :]
    return before, after


def _log_matmul(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Logarithm of ``exp(x) @ exp(y)`` over the first two dims, to full precision also where the product underflows."""
    lowest = np.finfo(np.float64).min  # instead of -inf, of which the difference would be NaN
    x_max, y_max = np.maximum(x.max(1, keepdims=True), lowest), np.maximum(y.max(0, keepdims=True), lowest)
    x_scaled, y_scaled = np.exp(x - x_max), np.exp(y - y_max)
    product = x_scaled[:, 0, None] * y_scaled[None, 0]
    for k in range(1, len(y)):
        product += x_scaled[:, k, None] * y_scaled[None, k]
    result = np.log(product) + x_max + y_max
    low = product < _UNDERFLOW
    if low.any():
        places = np.nonzero(low)
        size = _CHUNK_NUMBERS // len(y) + 1
        for first in range(0, len(places[0]), size):
            i, j, t, b = (place[first : first + size] for place in places)
            result[i, j, t, b] = np.logaddexp.reduce(x[i, :, t, b].T + y[:, j, t, b], axis=0)
    return result


# Autograd. `torch.library.custom_op` and `register_autograd` would be simpler, but import torch's compiler at the first
# call (2 s) and do not work under `torch.func.grad` (pytorch issue 168393). A function of a single level does: the
# dispatcher has peeled off the outer levels by then.


class _LogSumFunction(torch.autograd.function._SingleLevelFunction):
    @staticmethod
    def forward(ctx: Any, keys: Any, *arguments: Tensor) -> Tensor:
        ctx.save_for_backward(*arguments)
        return _below_autograd(torch.ops.ppl.markov_log_sum.default, keys, *arguments)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor, Tensor, Tensor]:
        initial, transition, observation = torch.ops.ppl.markov_marginals(*ctx.saved_tensors)
        column = gradient.unsqueeze(-1)
        return None, column * initial, column[..., None, None] * transition, column.unsqueeze(-1) * observation


class _MarginalsFunction(torch.autograd.function._SingleLevelFunction):
    @staticmethod
    def forward(ctx: Any, keys: Any, *arguments: Tensor) -> tuple[Tensor, ...]:
        return _below_autograd(torch.ops.ppl.markov_marginals.default, keys, *arguments)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        raise NotImplementedError("second derivatives of a recorded DiscreteHMM are not available")


def _below_autograd(operator: torch._ops.OpOverload, keys: Any, *arguments: Tensor) -> Any:
    # A function's forward runs without gradients, which the outer levels of `torch.func` need all the same.
    with torch.enable_grad(), _set_fwd_grad_enabled(True), torch._C._AutoDispatchBelowAutograd():
        return operator.redispatch(keys & torch._C._after_autograd_keyset, *arguments)


def _log_sum_autograd(keys: Any, *arguments: Tensor) -> Tensor:
    with enable_single_level_autograd_function():
        return _LogSumFunction.apply(keys, *arguments)


def _marginals_autograd(keys: Any, *arguments: Tensor) -> tuple[Tensor, ...]:
    with enable_single_level_autograd_function():
        return _MarginalsFunction.apply(keys, *arguments)


def _log_sum_shape(initial: Tensor, transition: Tensor, observation: Tensor) -> Tensor:
    return initial.new_empty(initial.shape[:-1])


def _marginals_shapes(*arguments: Tensor) -> tuple[Tensor, ...]:
    return tuple(a.new_empty(a.shape) for a in arguments)


def _log_sum_vmap(info: Any, in_dims: tuple[int | None, ...], *arguments: Tensor) -> tuple[Tensor, int]:
    return torch.ops.ppl.markov_log_sum(*_batch_first(info, in_dims, arguments)), 0


def _marginals_vmap(info: Any, in_dims: tuple[int | None, ...], *arguments: Tensor) -> tuple[Any, tuple[int, ...]]:
    return torch.ops.ppl.markov_marginals(*_batch_first(info, in_dims, arguments)), (0, 0, 0)


def _batch_first(info: Any, in_dims: tuple[int | None, ...], arguments: tuple[Tensor, ...]) -> list[Tensor]:
    return [
        a.expand(info.batch_size, *a.shape) if dim is None else a.movedim(dim, 0)
        for a, dim in zip(arguments, in_dims, strict=True)
    ]


_LIBRARY = torch.library.Library("ppl", "FRAGMENT")  # the operators live as long as this object
for _name, _result, _kernel, _autograd, _shape, _vmap in (
    ("markov_log_sum", "Tensor", _log_sum_kernel, _log_sum_autograd, _log_sum_shape, _log_sum_vmap),
    (
        "markov_marginals",
        "(Tensor, Tensor, Tensor)",
        _marginals_kernel,
        _marginals_autograd,
        _marginals_shapes,
        _marginals_vmap,
    ),
):
    _LIBRARY.define(f"{_name}(Tensor initial, Tensor transition, Tensor observation) -> {_result}")
    _LIBRARY.impl(_name, _kernel, "CompositeExplicitAutograd")
    _LIBRARY.impl(_name, _autograd, "Autograd", with_keyset=True)
    torch.library.register_fake(f"ppl::{_name}", _shape, lib=_LIBRARY)
    torch.library.register_vmap(f"ppl::{_name}", _vmap, lib=_LIBRARY)
