"""The networks of a deep Markov model: its gated transition, and an inference network that runs backwards in time."""

from functools import cache

import torch
from torch import nn
from torch.nn import functional as F

from ppl_models.networks import Network

# Least sd of a step: float32 squares differences in sds.
LEAST_SCALE = 1e-3


class Swish(nn.Module):
    """``v * sigmoid(v)``: smooth, so that the density of a path has no corners for NUTS to meet.

    ``swish(v) - swish(-v) = v``, so that a network of it can be linear. (torch's own, `torch.nn.SiLU`, has a derivative
    that `torch.vmap` takes slowly, and says so on the terminal.)
    """

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Apply to each number."""
        return values * values.sigmoid()


class GatedTransition(nn.Module):
    """Mean and sd of the next state: a gate opens from a linear map to a network (Krishnan et al. 2017, section 5)."""

    def __init__(self, num_latents: int, hidden: int) -> None:
        super().__init__()
        self.gate = nn.Sequential(nn.Linear(num_latents, hidden), Swish(), nn.Linear(hidden, num_latents))
        self.proposal = nn.Sequential(nn.Linear(num_latents, hidden), Swish(), nn.Linear(hidden, num_latents))
        self.linear = nn.Linear(num_latents, num_latents)
        self.scale = nn.Sequential(Swish(), nn.Linear(num_latents, num_latents))
        with torch.no_grad():  # a state that stays is what the linear map begins with
            self.linear.weight.copy_(torch.eye(num_latents))
            self.linear.bias.zero_()

    def forward(self, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Take states (..., L) to means and sds (..., L)."""
        gate, proposal, linear = self.gate(state).sigmoid(), self.proposal(state), self.linear(state)
        return linear + gate * (proposal - linear), F.softplus(self.scale(proposal)) + LEAST_SCALE


class Emitter(nn.Sequential):
    """What a state says of the values of its step: two hidden layers, from (..., L) to (..., D)."""

    def __init__(self, num_latents: int, hidden: int, num_features: int) -> None:
        super().__init__(
            nn.Linear(num_latents, hidden), Swish(), nn.Linear(hidden, hidden), Swish(), nn.Linear(hidden, num_features)
        )


class Combiner(nn.Module):
    """Guess of a state from the one before and what follows (Krishnan et al. 2017, section 4: the structured guide)."""

    def __init__(self, num_latents: int, rnn_hidden: int) -> None:
        super().__init__()
        self.state = nn.Linear(num_latents, rnn_hidden)
        self.loc_and_scale = nn.Linear(rnn_hidden, 2 * num_latents)

    def forward(self, state: torch.Tensor, later: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Take states (..., L) and summaries of this and later steps (..., R) to means and sds (..., L)."""
        both = 0.5 * (self.state(state).tanh() + later)
        loc, scale = self.loc_and_scale(both).chunk(2, -1)
        return loc, F.softplus(scale) + LEAST_SCALE


class BackwardGRU(nn.GRU):
    """Summary of each step and all later ones of sequences, each read from its own end (Cho et al. 2014)."""

    def __init__(self, num_features: int, rnn_hidden: int) -> None:
        super().__init__(num_features, rnn_hidden, batch_first=True)

    def forward(self, x: torch.Tensor, lengths: torch.Tensor | None = None) -> torch.Tensor:
        """Take sequences (S, T, D), of which so many steps count, to summaries (S, T, R), zero beyond the longest."""
        longest = x.shape[1] if lengths is None else int(lengths.max())
        steps = torch.arange(longest)
        if lengths is None:
            order = steps.flip(0).expand(len(x), -1)
        else:  # steps beyond the end stay in place: after all others, where nothing reads them
            order = torch.where(steps < lengths.unsqueeze(-1), lengths.unsqueeze(-1) - 1 - steps, steps)
        order = order.unsqueeze(-1)
        summary, _ = super().forward(x.gather(1, order.expand(-1, -1, x.shape[-1])))
        return F.pad(summary.gather(1, order.expand(summary.shape)), (0, 0, 0, x.shape[1] - longest))


@cache
def gated_transition(num_latents: int, hidden: int) -> Network:
    """Give the network of a state's move."""
    return Network(lambda: GatedTransition(num_latents, hidden))


@cache
def emitter(num_latents: int, hidden: int, num_features: int) -> Network:
    """Give the network from a state to the values of its step."""
    return Network(lambda: Emitter(num_latents, hidden, num_features))


@cache
def combiner(num_latents: int, rnn_hidden: int) -> Network:
    """Give the network that joins a state with what follows."""
    return Network(lambda: Combiner(num_latents, rnn_hidden))


@cache
def backward_gru(num_features: int, rnn_hidden: int) -> Network:
    """Give the network that reads sequences backwards."""
    return Network(lambda: BackwardGRU(num_features, rnn_hidden))
