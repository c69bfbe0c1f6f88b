"""What the hidden Markov models share: their chains of states, scales of priors, lengths, and how they observe."""

from collections.abc import Mapping

import numpy as np
import pyro
import pyro.distributions as dist
import torch

from ppl_models.hidden_markov import HiddenMarkov

# Prior sd of the log sd of a state: with 95 % probability within a factor of 4.5 of half the sd of the data.
LOG_SCALE_SD = 0.75


def check_count(name: str, value: int, *, least: int = 1) -> None:
    """Raise ValueError where a size is no whole number of at least ``least``."""
    if not isinstance(value, int) or value < least:
        raise ValueError(f"{name}: expected a whole number of at least {least}, got {value!r}.")


def check_series(name: str, x: torch.Tensor, *, event_dim: int = 0) -> None:
    """Raise ValueError where data are not one sequence or several, of one step at least."""
    axes = "(steps" + ", features" * event_dim + ")"
    if x.dim() not in (1 + event_dim, 2 + event_dim) or x.numel() == 0:
        raise ValueError(
            f"{name}: expected shape {axes} or (sequences, {axes[1:]}, none of them 0, got {tuple(x.shape)}."
        )


def check_covariates(name: str, z: torch.Tensor, x: torch.Tensor) -> None:
    """Raise ValueError where covariates (steps, covariates) do not belong to the steps of one sequence ``x``."""
    if x.dim() != 1 or z.dim() != 2 or len(z) != len(x):
        raise ValueError(
            f"{name}: expected shape (steps, covariates) beside x of shape (steps,), got {tuple(z.shape)} beside "
            f"{tuple(x.shape)}."
        )


def steps_with_values(lengths: torch.Tensor | None, x: torch.Tensor, *, event_dim: int = 0) -> torch.Tensor | None:
    """Give which steps of padded sequences (S, T, ...) lie within their lengths (S,): booleans (S, T).

    Raises
    ------
    ValueError
        ``lengths`` come with a single sequence, are of another number, no whole numbers, below 1 or beyond T.
    """
    if lengths is None:
        return None
    steps = x.shape[-1 - event_dim]
    if x.dim() != 2 + event_dim:
        raise ValueError("lengths: expected with several sequences, got one sequence; leave lengths out.")
    if lengths.shape != x.shape[:1]:
        raise ValueError(f"lengths: expected one for each of {len(x)} sequences, got shape {tuple(lengths.shape)}.")
    # Values of the data are read when validation is on only: a recording that read them holds for them alone.
    if torch.distributions.Distribution._validate_args:
        bad = (lengths < 1) | (lengths > steps) | (lengths != lengths.round())
        if bad.any():
            at = int(bad.nonzero()[0])
            raise ValueError(
                f"lengths: expected whole numbers from 1 to the padded length {steps}, got {lengths[at].item():g} for "
                f"sequence {at}; drop empty sequences, or pad to the longest."
            )
    return torch.arange(steps) < lengths.unsqueeze(-1)


def check_codes(name: str, x: torch.Tensor, seen: torch.Tensor | None, *, highest: int | None = None) -> None:
    """Raise ValueError where entries (..., T) or (..., T, D) inside sequences are neither NaN nor 0, ..., highest."""
    if not torch.distributions.Distribution._validate_args:  # see `steps_with_values`
        return
    inside = x.isnan() | ((x >= 0) & (x == x.floor()) & (x <= (torch.inf if highest is None else highest)))
    if seen is not None:
        inside = inside | ~seen.reshape(seen.shape + (1,) * (x.dim() - seen.dim()))
    if not inside.all():
        place = tuple((~inside).nonzero()[0].tolist())
        expected = "whole numbers from 0" + ("" if highest is None else f" to {highest}")
        at = place[0] if len(place) == 1 else place
        raise ValueError(
            f"{name}: expected {expected}, got {x[place].item():g} at index {at}; {int((~inside).sum())} such entries."
        )


def centre_and_spread(
    x: torch.Tensor,
    centre: torch.Tensor | float | None,
    spread: torch.Tensor | float | None,
    seen: torch.Tensor | None = None,
    *,
    event_dim: int = 0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Give the location and scale of priors: those given, else mean and sd of the data, for each feature.

    Constant data have no scale; 1 is taken, so that the prior is proper.
    """
    if seen is not None:
        x = torch.where(seen.reshape(*seen.shape, *[1] * event_dim), x, torch.nan)
    rows = x.reshape(-1, *x.shape[x.dim() - event_dim :])
    mean = rows.nanmean(0).nan_to_num(0.0)
    sd = (rows - mean).square().nanmean(0).sqrt().nan_to_num(0.0)
    sd = torch.where(sd > 0, sd, torch.ones_like(sd))
    return (
        mean if centre is None else torch.as_tensor(centre).to(x),
        sd if spread is None else torch.as_tensor(spread).to(x),
    )


def beside(parameter: torch.Tensor, event_dim: int = 0) -> torch.Tensor:
    """Make room for a plate of sequences left of the states: (*outer, K, *event) to (*outer, 1, K, *event).

    ``outer`` are the plates around the model (vectorised particles); without any the shape stays.
    """
    return parameter.unsqueeze(-2 - event_dim) if parameter.dim() > 1 + event_dim else parameter


def every_step(parameter: torch.Tensor, event_dim: int = 0) -> torch.Tensor:
    """Give a parameter of states, (*outer, K, *event), room for sequences and for time: (*outer, 1, 1, K, *event)."""
    return beside(parameter, event_dim).unsqueeze(-2 - event_dim)


def sample_scale(states: pyro.plate, spread: torch.Tensor) -> torch.Tensor:
    """Sample the sds of the states, around half the sd of the data, in the plate of states: (K,)."""
    with states:
        return pyro.sample("scale", dist.LogNormal((spread / 2).log(), LOG_SCALE_SD))


def sample_chain(
    states: pyro.plate, like: torch.Tensor, *, stickiness: float = 0.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sample where a chain starts and how it moves, rows uniform but for ``stickiness``, counted as stays seen before.

    Returns
    -------
    tuple
        Logarithms of the sites ``initial`` (K,) and ``transition`` (K, K), shaped for `HiddenMarkov`.
    """
    initial = pyro.sample("initial", dist.Dirichlet(like.new_ones(states.size)))
    prior = 1.0 + stickiness * torch.eye(states.size).to(like)
    with states:
        transition = pyro.sample("transition", dist.Dirichlet(prior))
    return initial.log(), every_step(transition.log(), 1)


def observe(
    x: torch.Tensor,
    initial: torch.Tensor,
    transition: torch.Tensor,
    emission: dist.TorchDistribution,
    seen: torch.Tensor | None = None,
) -> torch.Tensor:
    """Observe one sequence, or several in the plate ``sequence``, as the site ``x``."""
    event_dim = len(emission.event_shape)
    chain = HiddenMarkov(initial, transition, emission, x.shape[-1 - event_dim], mask=seen)
    if x.dim() == 1 + event_dim:
        return pyro.sample("x", chain, obs=x)
    with pyro.plate("sequence", len(x)):
        return pyro.sample("x", chain, obs=x)


def by_state(draws: Mapping[str, np.ndarray], key: np.ndarray) -> dict[str, np.ndarray]:
    """Rename the states of every draw so that ``key`` increases.

    Parameters
    ----------
    draws
        Sites whose first axis after those of ``key`` but its last is that of states; ``transition`` has a second one.
    key
        (..., K), one number for each state: a location.

    Returns
    -------
    dict
        The same quantities, unchanged by any permutation of the states within a draw.
    """
    order = np.argsort(key, axis=-1)
    lead = key.ndim - 1
    result = {}
    for name, values in draws.items():
        values = np.asarray(values)
        if values.ndim <= lead or values.shape[lead] != key.shape[-1]:
            continue
        index = order.reshape(*order.shape, *[1] * (values.ndim - key.ndim))
        moved = np.take_along_axis(values, index, axis=lead)
        if name == "transition":
            moved = np.take_along_axis(moved, order[..., None, :], axis=-1)
        result[name] = moved
    return result


def log_positive(value: torch.Tensor) -> torch.Tensor:
    """Logarithm of data means, of 1/2 where a mean of counts is zero."""
    return torch.where(value > 0, value, 0.5).log()
