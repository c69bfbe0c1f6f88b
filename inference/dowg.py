"""DoWG, an optimiser without a learning rate (Khaled, Mishchenko & Jin 2023, algorithm 1)."""

from collections.abc import Callable, Iterable
from typing import Any

import torch

# The first step is this share of 1 + |x_0|, as Ivgi, Hinder & Carmon (2023) advise: too small costs a few steps, since
# the estimate of the distance then doubles, and too large may leave the region where the start makes sense.
FIRST_DISTANCE = 1e-4


class DoWG(torch.optim.Optimizer):
    """Distance over weighted gradients: the step adapts to how far the iterates have come.

    With r_t the largest distance from the start so far, v_t = v_{t-1} + r_t^2 |g_t|^2, and x moves by
    -lr r_t^2 / sqrt(v_t) g_t. Distances and norms are over all parameters together.

    Parameters
    ----------
    params
        Parameters, or groups of them.
    lr
        Multiplies every step; 1 is the published algorithm.
    first_distance
        The first estimate of the distance, relative to 1 + the norm of the start.
    """

    def __init__(self, params: Iterable[Any], lr: float = 1.0, first_distance: float = FIRST_DISTANCE) -> None:
        super().__init__(params, {"lr": lr, "first_distance": first_distance})
        self.distance: float | None = None
        self.weighted_gradients = 0.0

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Take one step."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        pairs = [(p, group) for group in self.param_groups for p in group["params"] if p.grad is not None]
        for p, _ in pairs:
            if "start" not in self.state[p]:
                self.state[p]["start"] = p.detach().clone()
        if self.distance is None:
            norm = _norm(self.state[p]["start"] for p, _ in pairs)
            self.distance = self.param_groups[0]["first_distance"] * (1 + norm)
        self.distance = max(self.distance, _norm(p - self.state[p]["start"] for p, _ in pairs))
        square = self.distance**2
        self.weighted_gradients += square * _norm(p.grad for p, _ in pairs) ** 2
        if self.weighted_gradients > 0:
            for p, group in pairs:
                p.sub_(p.grad, alpha=group["lr"] * square / self.weighted_gradients**0.5)
        return loss


def _norm(tensors: Iterable[torch.Tensor]) -> float:
    return sum(float((t.double() ** 2).sum()) for t in tensors) ** 0.5
