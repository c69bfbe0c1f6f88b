"""Recognising hidden Markov chains in observed sites.

A chain is an observed site whose distribution has the method ``chain_logits(value)``, or is Pyro's ``DiscreteHMM``;
masks, expansions and ``to_event`` around it are looked through.
"""

from collections.abc import Mapping
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Independent

Logits = tuple[Tensor, Tensor, Tensor]


def find_chain(distribution: Any) -> Any:
    """Give the chain inside a distribution, or None."""
    while isinstance(distribution, dist.MaskedDistribution | dist.ExpandedDistribution | Independent):
        distribution = distribution.base_dist
    if isinstance(distribution, dist.DiscreteHMM) or callable(getattr(distribution, "chain_logits", None)):
        return distribution
    return None


def chain_logits(node: Mapping[str, Any]) -> dict[str, Tensor]:
    """Logits of the chain of a traced site, at its value.

    Returns
    -------
    dict
        ``initial`` (*batch, K), ``transition`` (*batch, 1 or T - 1, K, K) and ``observation`` (*batch, T, K), as
        `inference.hidden_markov.Chains` takes them: state t is the one that value t comes from. ``observation`` has
        all of the batch, the axes of the others broadcast. Steps that a mask leaves out have logit 0.
    """
    value = node["value"]
    initial, transition, observation, inner = _logits(node["fn"], value)
    observation = _masked(observation, node["mask"], inner)
    batch = tuple(value.shape[: value.dim() - find_chain(node["fn"]).event_dim])
    parts = {"initial": (initial, 1), "transition": (transition, 3), "observation": (observation, 2)}
    padded = {name: x.reshape((1,) * (len(batch) - x.dim() + event) + x.shape) for name, (x, event) in parts.items()}
    padded["observation"] = padded["observation"].expand(*batch, *observation.shape[-2:])
    return padded


def _logits(fn: Any, value: Tensor) -> tuple[Tensor, Tensor, Tensor, int]:
    """Give the logits, and how many batch axes of the chain are event axes of ``fn``."""
    if isinstance(fn, dist.MaskedDistribution):
        initial, transition, observation, inner = _logits(fn.base_dist, value)
        return initial, transition, _masked(observation, fn._mask, inner), inner
    if isinstance(fn, dist.ExpandedDistribution):
        return _logits(fn.base_dist, value)
    if isinstance(fn, Independent):
        *logits, inner = _logits(fn.base_dist, value)
        return *logits, inner + fn.reinterpreted_batch_ndims
    logits = _of_discrete_hmm(fn, value) if isinstance(fn, dist.DiscreteHMM) else fn.chain_logits(value)
    return *logits, 0


def _masked(observation: Tensor, mask: Any, inner: int) -> Tensor:
    if mask is None or mask is True:
        return observation
    mask = torch.as_tensor(mask, device=observation.device)
    return torch.where(mask.reshape(mask.shape + (1,) * (inner + 2)), observation, 0.0)


def _of_discrete_hmm(fn: dist.DiscreteHMM, value: Tensor) -> Logits:
    """Fold the transition that Pyro makes before the first value into the initial probabilities."""
    observation = fn.observation_dist.log_prob(value.unsqueeze(-1 - fn.observation_dist.event_dim))
    transition = fn.transition_logits
    if transition.dim() == 2:
        transition = transition.unsqueeze(0)
    steps = max(transition.shape[-3], observation.shape[-2])
    observation = observation.expand(*observation.shape[:-2], steps, observation.shape[-1])
    first = torch.logsumexp(fn.initial_logits.unsqueeze(-1) + transition[..., 0, :, :], -2)
    return first, transition if transition.shape[-3] == 1 else transition[..., 1:, :, :], observation
