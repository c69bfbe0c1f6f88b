"""The encoder's half of a variational autoencoder: from what a network gives to a distribution of the latent vector."""

from collections.abc import Callable
from functools import cache

import pyro.distributions as dist
import torch
import torch.nn.functional as F
from pyro.nn import ConditionalAutoRegressiveNN
from torch.distributions import constraints

from ppl_models.networks import Network

# Keeps the encoder's scale off zero, where its log density is without bound: a thousandth of the prior's.
LEAST_SCALE = 1e-3
# Least width of the masked network of a flow.
FLOW_WIDTH = 64
# A new layer keeps sigmoid(2) = 0.88 of its input, so that a stack of them starts near the identity (Kingma et al.
# 2016, section 4, ask for 1 to 2).
FIRST_GATE = 2.0


def standard_normal(like: torch.Tensor, num_latents: int) -> dist.TorchDistribution:
    """Give the prior of a latent vector, one event, in the dtype of the pictures."""
    return dist.Normal(like.new_zeros(num_latents), like.new_ones(num_latents)).to_event(1)


def diagonal_normal(output: torch.Tensor) -> dist.TorchDistribution:
    """Give independent normals of one event from a network's output (..., 2 D): D locations and D raw scales."""
    loc, raw = output.chunk(2, -1)
    return dist.Normal(loc, F.softplus(raw) + LEAST_SCALE).to_event(1)


def posterior(output: torch.Tensor, num_latents: int, num_flows: int) -> dist.TorchDistribution:
    """Give q(z | x), a normal with ``num_flows`` inverse autoregressive layers on top (Kingma et al. 2016).

    Parameters
    ----------
    output
        Of the encoder, (..., `num_encoded`): locations, raw scales and, with flows, as many numbers of context.
    num_latents, num_flows
        Settings of the model.
    """
    base = diagonal_normal(output[..., : 2 * num_latents])
    if not num_flows:
        return base
    context = output[..., 2 * num_latents :]
    network = _autoregressive(num_latents)
    layers = [
        InverseAutoregressive(network.bind(f"flow_{i}", output), context, backwards=i % 2 == 1)
        for i in range(num_flows)
    ]
    return dist.TransformedDistribution(base, layers)


def num_encoded(num_latents: int, num_flows: int) -> int:
    """Give the number of outputs that an encoder needs for `posterior`."""
    return (3 if num_flows else 2) * num_latents


def check_latents(num_latents: int, num_flows: int = 0, *, name: str = "num_latents") -> None:
    """Refuse sizes that are no whole numbers, no latents, and flows over a single number.

    Raises
    ------
    ValueError
        Such a setting.
    """
    for setting, value, least in ((name, num_latents, 1), ("num_flows", num_flows, 0)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{setting}: expected a whole number from {least}, got {value!r}.")
    if num_flows and num_latents < 2:
        raise ValueError(f"num_flows: a flow needs num_latents of at least 2, got {num_latents}.")


@cache
def _autoregressive(num_latents: int) -> Network:
    """Give a network of which output i depends on inputs before i, and on the context (Germain et al. 2015)."""
    width, order = [max(FLOW_WIDTH, num_latents)], torch.arange(num_latents)
    return Network(
        lambda: ConditionalAutoRegressiveNN(
            num_latents, num_latents, width, permutation=order, nonlinearity=torch.nn.Tanh()
        )
    )


class InverseAutoregressive(torch.distributions.Transform):
    """One layer y_i = g_i x_i + (1 - g_i) m_i, where the gate g_i in (0, 1) and m_i depend on x_1, ..., x_{i-1}.

    Parameters
    ----------
    network
        Gives m and the gates' logits from x and the context, autoregressively.
    context
        (..., D), from the encoder.
    backwards
        Take the coordinates in the opposite order.
    """

    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True

    def __init__(
        self,
        network: Callable[..., tuple[torch.Tensor, torch.Tensor]],
        context: torch.Tensor,
        *,
        backwards: bool,
        cache_size: int = 1,
    ) -> None:
        super().__init__(cache_size=cache_size)
        self.network, self.context, self.backwards = network, context, backwards
        self._last: tuple[torch.Tensor, torch.Tensor] | None = None

    def with_cache(self, cache_size: int = 1) -> "InverseAutoregressive":
        """Copy with another size of cache."""
        if cache_size == self._cache_size:
            return self
        return InverseAutoregressive(self.network, self.context, backwards=self.backwards, cache_size=cache_size)

    def _shift_and_gate(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        shift, logit = self.network(x, self.context.expand(*x.shape[:-1], -1))
        return shift, logit + FIRST_GATE

    def _turned(self, values: torch.Tensor) -> torch.Tensor:
        return values.flip(-1) if self.backwards else values

    def _call(self, x: torch.Tensor) -> torch.Tensor:
        x = self._turned(x)
        shift, logit = self._shift_and_gate(x)
        gate = logit.sigmoid()
        y = self._turned(gate * x + (1 - gate) * shift)
        self._last = y, F.logsigmoid(logit).sum(-1)
        return y

    def _inverse(self, y: torch.Tensor) -> torch.Tensor:
        """Solve for one coordinate after the other."""
        y = self._turned(y)
        x = torch.zeros_like(y)
        for i in range(y.shape[-1]):
            shift, logit = self._shift_and_gate(x)
            gate = logit[..., i].sigmoid()
            solved = (y[..., i] - (1 - gate) * shift[..., i]) / gate
            x = torch.cat([x[..., :i], solved.unsqueeze(-1), x[..., i + 1 :]], -1)
        return self._turned(x)

    def log_abs_det_jacobian(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Sum the logs of the gates."""
        if self._last is not None and self._last[0] is y:
            return self._last[1]
        return F.logsigmoid(self._shift_and_gate(self._turned(x))[1]).sum(-1)
