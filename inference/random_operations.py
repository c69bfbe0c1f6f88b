"""Random operations in recorded graphs."""

from collections.abc import Callable
from itertools import accumulate
from typing import Any

import torch
from torch.fx import GraphModule


def categorical(probs: torch.Tensor, num_samples: int, *rest: Any, **named: Any) -> torch.Tensor:
    """Draw by inverting the distribution function: ten times faster than torch's multinomial for one draw a row.

    Weights that are no distribution (NaN, all zero) give a state that does not exist.
    """
    if num_samples != 1:
        return torch.multinomial(probs, num_samples, *rest, **named)
    cumulative = probs.cumsum(-1)
    total = cumulative[..., -1:]
    state = (cumulative <= torch.rand_like(total) * total).sum(-1, keepdim=True)
    last = probs.shape[-1] - 1
    return torch.where(total > 0, state.clamp(max=last), last + 1)


# Up to so many states their weights are taken one after another, over all that is drawn at once, which is faster than
# along an axis of few.
_FEW_STATES = 32


def draw_states(logits: torch.Tensor) -> torch.Tensor:
    """Draw a state (...) from log weights (..., K) by inverting the distribution function."""
    if logits.shape[-1] > _FEW_STATES:
        return categorical(logits.softmax(-1), 1)[..., 0].clamp(max=logits.shape[-1] - 1)
    top = logits.amax(-1)
    cumulative = list(accumulate((each - top).exp() for each in logits.unbind(-1)))
    threshold = torch.rand_like(top) * cumulative[-1]
    return sum((each <= threshold).long() for each in cumulative[:-1]) + torch.zeros_like(top, dtype=torch.long)


# These random operations cannot be batched by vmap, or not fast; the ones they are replaced by can, and have the same
# distribution.
BATCHABLE_DRAWS: dict[Any, Callable[..., torch.Tensor]] = {
    operation: draw
    for operations, draw in (
        (("normal_", "normal_functional"), lambda x, mean=0.0, std=1.0: mean + std * torch.randn_like(x)),
        (("uniform_", "uniform"), lambda x, low=0.0, high=1.0: low + (high - low) * torch.rand_like(x)),
        (("exponential_", "exponential"), lambda x, rate=1.0: -torch.log1p(-torch.rand_like(x)) / rate),
        (
            ("cauchy_", "cauchy"),
            lambda x, loc=0.0, scale=1.0: loc + scale * torch.tan(torch.pi * (torch.rand_like(x) - 0.5)),
        ),
        (("multinomial",), categorical),
    )
    for operation in (getattr(torch.ops.aten, name) for name in operations)
}


def batchable(graph: GraphModule) -> GraphModule:
    """Replace the random operations of a graph that vmap cannot batch (in place)."""
    for node in graph.graph.nodes:
        draw = BATCHABLE_DRAWS.get(getattr(node.target, "overloadpacket", None))
        if draw is not None:
            node.target, node.kwargs = draw, {} if draw is not categorical else node.kwargs
    return graph
