"""Pyro's ``DiscreteHMM`` as one differentiable operator, so that its recording is small whatever the number of steps.

Pyro multiplies the T transition matrices pairwise, which records as some twenty operations per halving of T, and in
a way that recording cannot differentiate. Here a whole chain is one node of the graph, its gradient another.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from pyro.distributions import DiscreteHMM
from torch import Tensor
from torch._functorch.autograd_function import enable_single_level_autograd_function
from torch.autograd.forward_ad import _set_fwd_grad_enabled

# A product of scaled probabilities below this has lost terms to underflow (which begins at 1e-308) that may matter.
_UNDERFLOW = 1e-280
# The terms that are then added up one by one, at most this many numbers at once (float64: 32 MB).
_CHUNK_NUMBERS = 2**22


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
    batch = torch.broadcast_shapes(initial.shape[:-1], transition.shape[:-3], observation.shape[:-2])
    steps = max(transition.shape[-3], observation.shape[-2])
    states = max(initial.shape[-1], transition.shape[-1], observation.shape[-1])
    return torch.ops.ppl.markov_log_sum(
        initial.to(dtype).expand(*batch, states),
        transition.to(dtype).expand(*batch, transition.shape[-3], states, states),
        observation.to(dtype).expand(*batch, steps, states),
    )


def _log_sum_kernel(initial: Tensor, transition: Tensor, observation: Tensor) -> Tensor:
    """Compute ``ppl::markov_log_sum``, (*batch): minus infinity where every path is impossible.

    Parameters
    ----------
    initial, transition, observation
        (*batch, K), (*batch, T or 1, K, K), (*batch, T, K): one dtype, and the same ``batch`` throughout.
    """
    start, logits = _flat_logits(initial, transition, observation)
    while logits.shape[1] > 1:
        logits = _halved(logits)
    last = _log_matmul(start.unsqueeze(1), logits.squeeze(1))
    return last.squeeze(1).logsumexp(-1).reshape(initial.shape[:-1]).to(initial.dtype)


def _marginals_kernel(initial: Tensor, transition: Tensor, observation: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Compute ``ppl::markov_marginals``: how often each logit is used by a path, given the observations.

    These are the gradients of ``ppl::markov_log_sum``, shaped as its arguments; zero where every path is impossible.
    """
    start, logits = _flat_logits(initial, transition, observation)
    before, after = _messages(start, logits)
    joint = before.unsqueeze(-1) + logits + after.unsqueeze(-2)
    possible = joint.flatten(2).amax(-1) != -torch.inf
    pairs = torch.softmax(joint.flatten(2), -1)
    pairs = torch.where(possible.unsqueeze(-1), pairs, 0.0).reshape(joint.shape)
    by_time = pairs if transition.shape[-3] == pairs.shape[1] else pairs.sum(1)
    results = pairs[:, 0].sum(-1), by_time, pairs.sum(-2)
    arguments = initial, transition, observation
    return tuple(r.reshape(a.shape).to(a.dtype, copy=True) for r, a in zip(results, arguments, strict=True))


def _flat_logits(initial: Tensor, transition: Tensor, observation: Tensor) -> tuple[Tensor, Tensor]:
    """Join transitions and observations to logits (B, T, K, K), float64, one batch dimension; start is (B, K)."""
    logits = transition.to(torch.float64) + observation.to(torch.float64).unsqueeze(-2)
    return initial.to(torch.float64).reshape(-1, initial.shape[-1]), logits.reshape(-1, *logits.shape[-3:])


def _halved(logits: Tensor) -> Tensor:
    """Multiply neighbours in time, (B, n, K, K) to (B, n/2, K, K); the last of an odd number stays."""
    whole = logits.shape[1] // 2 * 2
    products = _log_matmul(logits[:, 0:whole:2], logits[:, 1:whole:2])
    return torch.cat([products, logits[:, whole:]], 1)


def _messages(start: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
    """Log weights (B, T, K) of each state before each step, and of all that follows a state after each step.

    A parallel scan over time (Sarkka and Garcia-Fernandez 2019, algorithms 1 and 3): products of ever longer blocks
    of steps on the way up, and messages into ever shorter blocks on the way down.
    """
    blocks = [logits]
    while blocks[-1].shape[1] > 1:
        blocks.append(_halved(blocks[-1]))
    before, after = start.unsqueeze(1), torch.zeros_like(start).unsqueeze(1)
    for block in reversed(blocks[:-1]):
        whole = block.shape[1] // 2 * 2
        inner_before, inner_after = block.new_empty(block.shape[:3]), block.new_empty(block.shape[:3])
        inner_before[:, 0::2] = before
        inner_before[:, 1::2] = _log_matmul(before[:, : whole // 2, None, :], block[:, 0:whole:2]).squeeze(-2)
        inner_after[:, 1::2] = after[:, : whole // 2]
        inner_after[:, 0:whole:2] = _log_matmul(block[:, 1:whole:2], after[:, : whole // 2, :, None]).squeeze(-1)
        inner_after[:, whole:] = after[:, whole // 2 :]
        before, after = inner_before, inner_after
    return before, after


def _log_matmul(x: Tensor, y: Tensor) -> Tensor:
    """Logarithm of ``exp(x) @ exp(y)`` to full precision, also where the scaled product underflows."""
    lowest = torch.finfo(x.dtype).min  # instead of -inf, of which the difference would be NaN
    x_max, y_max = x.amax(-1, keepdim=True).clamp(min=lowest), y.amax(-2, keepdim=True).clamp(min=lowest)
    product = torch.matmul((x - x_max).exp(), (y - y_max).exp())
    result = product.log() + x_max + y_max
    low = product < _UNDERFLOW
    if low.any():
        batch, (rows, inner), columns = result.shape[:-2], x.shape[-2:], y.shape[-1]
        x, y = x.expand(*batch, rows, inner).flatten(0, -3), y.expand(*batch, inner, columns).flatten(0, -3)
        exact = [
            torch.logsumexp(x[n, i, :] + y[n, :, j], -1)
            for n, i, j in (part.unbind(1) for part in low.flatten(0, -3).nonzero().split(_CHUNK_NUMBERS // inner + 1))
        ]
        result[low] = torch.cat(exact)
    return result


# Autograd. `torch.library.register_autograd` would be simpler, but does not work under `torch.func.grad` (pytorch issue
# 168393); a function of a single level does, because the dispatcher has peeled off the outer levels by then.


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
