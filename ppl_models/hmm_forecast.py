"""What a hidden Markov chain does next: its states and values after the last step seen, exactly and as draws."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions import TorchDistribution
from pyro.poutine.util import site_is_subsample

from ppl_models.hidden_markov import HiddenMarkov
from ppl_models.hmm_emissions import Autoregression


@dataclass(frozen=True)
class Forecast:
    """What follows a sequence, for each of h further steps.

    Attributes
    ----------
    state
        Probability of each state, (*batch, h, K).
    mean, sd
        Of the value, over states and emission: (*batch, h, *event). None for an autoregression, whose values have no
        simple distribution; use ``draws``.
    draws
        (num_samples, *batch, h, *event).
    state_draws
        The paths that emitted them, (num_samples, *batch, h).
    """

    state: torch.Tensor
    mean: torch.Tensor | None
    sd: torch.Tensor | None
    draws: torch.Tensor
    state_draws: torch.Tensor


@torch.no_grad()
def last_state(chain: HiddenMarkov, value: torch.Tensor) -> torch.Tensor:
    """Give the probabilities of the last state given all values, (*batch, K): the end of the forward recursion.

    For sequences that are shorter than the longest, the state after their last value is the same chain left to itself.

    Raises
    ------
    ValueError
        The sequence is impossible under every path.
    """
    initial, transition, observation = chain.chain_logits(value)
    weight = initial + observation[..., 0, :]
    for t in range(1, chain.num_steps):
        step = transition[..., t - 1 if transition.shape[-3] > 1 else 0, :, :]
        weight = torch.logsumexp(weight.unsqueeze(-1) + step, -2) + observation[..., t, :]
    total = weight.logsumexp(-1, keepdim=True)
    if not total.isfinite().all():
        raise ValueError("value: expected a sequence that is possible, got one of density zero; nothing can follow it.")
    return (weight - total).exp()


@torch.no_grad()
def forecast(
    chain: HiddenMarkov,
    value: torch.Tensor,
    num_steps: int,
    *,
    num_samples: int = 1000,
    transition_logits: torch.Tensor | None = None,
    emission: TorchDistribution | None = None,
) -> Forecast:
    """Continue sequences by ``num_steps`` steps; draws come from torch's stream.

    Parameters
    ----------
    chain
        One chain, or a batch of them (one for each posterior draw: `chain_at`).
    value
        The sequences seen, (*batch, T, *event), all of full length.
    transition_logits
        (*batch, 1 or num_steps, K, K), of the steps to come, where those seen differ in time.
    emission
        Of the steps to come, batch shape (*batch, 1 or num_steps, K), where it differs in time.

    Raises
    ------
    ValueError
        ``num_steps`` is below 1, or future transitions or emissions are wanting, or sequences end before the last step.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps: expected at least one step to forecast, got {num_steps}.")
    if chain.mask is not None and not chain.mask[..., -1].all():
        raise ValueError("value: some sequences end before the last step; forecast each from its own end.")
    given = {"transition_logits": transition_logits, "emission": emission}
    emission = chain.emission if emission is None else emission
    maps = chain.transition_logits if transition_logits is None else transition_logits
    for name, steps in (("transition_logits", maps.shape[-3]), ("emission", emission.batch_shape[-2])):
        # Those of the past do not do for the future, even if there are as many.
        if steps != 1 and (given[name] is None or steps != num_steps):
            raise ValueError(f"{name}: expected those of the {num_steps} steps to come, since they differ in time.")
    states = [_moved(last_state(chain, value), maps[..., 0, :, :])]
    for t in range(1, num_steps):
        states.append(_moved(states[-1], maps[..., t if maps.shape[-3] > 1 else 0, :, :]))
    state = torch.stack(states, -2)
    later = maps[..., 1:, :, :] if maps.shape[-3] > 1 else maps
    # Rounding makes the rows sum to one a little less exactly than validation asks.
    follower = HiddenMarkov(states[0].log(), later, emission, num_steps, validate_args=False)
    shape = torch.broadcast_shapes(follower.batch_shape, state.shape[:-2])
    if isinstance(emission, Autoregression):
        paths = follower.expand(shape).sample_with_states((num_samples,))[1]
        return Forecast(state, None, None, _continued(emission, value, paths), paths)
    draws, paths = follower.expand(shape).sample_with_states((num_samples,))
    return Forecast(state, *_moments(emission, state), draws, paths)


def _moved(state: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """Probabilities of the next state, (*batch, K)."""
    return (state.unsqueeze(-2) @ logits.exp()).squeeze(-2)


def _moments(emission: TorchDistribution, state: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Mean and sd of mixtures of emissions with weights ``state`` (*batch, h, K); None where codes have no mean."""
    if emission.has_enumerate_support and not emission.event_shape and not hasattr(emission, "rate"):
        return None, None
    weight = state.reshape(*state.shape, *[1] * len(emission.event_shape))
    dim = state.dim() - 1
    mean = (weight * emission.mean).sum(dim)
    square = (weight * (emission.variance + emission.mean.square())).sum(dim)
    return mean, (square - mean.square()).clamp(min=0).sqrt()


def _continued(emission: Autoregression, value: torch.Tensor, paths: torch.Tensor) -> torch.Tensor:
    """Draw values for paths of states (*shape, h) that go on from the values seen."""
    shape = paths.shape[:-1]
    values = list(value.expand(*shape, value.shape[-1]).unbind(-1))
    for t in range(paths.shape[-1]):
        here = paths[..., t, None]
        loc, scale = (
            p.expand(*shape, p.shape[-1]).gather(-1, here).squeeze(-1) for p in (emission.loc, emission.scale)
        )
        mean = loc
        for p in range(1, min(emission.coef.shape[-1], len(values)) + 1):
            coef = emission.coef[..., p - 1].expand(*shape, emission.coef.shape[-2]).gather(-1, here).squeeze(-1)
            mean = mean + coef * (values[-p] - loc)
        values.append(mean + scale * torch.randn_like(mean))
    return torch.stack(values[value.shape[-1] :], -1)


@torch.no_grad()
def chain_at(
    model: Callable[..., Any], data: Mapping[str, Any], draws: Mapping[str, torch.Tensor], site: str = "x"
) -> HiddenMarkov:
    """Give the chain of a model at posterior draws: a batch of `HiddenMarkov`, one for each draw.

    Parameters
    ----------
    model, data
        A model of this package and its arguments.
    draws
        Value of every latent site, with one leading axis of draws: (num, *site shape).

    Returns
    -------
    HiddenMarkov
        Batch shape (num, 1) for one sequence, (num, sequences) for several.
    """
    num = {len(value) for value in draws.values()}
    if len(num) != 1:
        raise ValueError(f"draws: expected equally many for every site, got {sorted(num)}.")
    sites = {
        name: node
        for name, node in poutine.trace(model).get_trace(**data).nodes.items()
        if node["type"] == "sample" and not node["is_observed"] and not site_is_subsample(node)
    }
    if missing := [name for name in sites if name not in draws]:
        raise ValueError(f"draws: expected every latent site of the model, {', '.join(missing)} too.")
    placed = {}
    for name, node in sites.items():
        value = torch.as_tensor(draws[name])
        # A site outside the plates of the model keeps a place for them.
        placed[name] = value if any(f.vectorized for f in node["cond_indep_stack"]) else value.unsqueeze(1)

    def together() -> None:
        with pyro.plate("_draws", *num, dim=-2):
            model(**data)

    return poutine.trace(poutine.condition(together, data=placed)).get_trace().nodes[site]["fn"]
