"""What a hidden state emits: log probabilities of values under every state, missing entries marginalised, and draws."""

import math

import torch
from pyro.distributions import (
    Bernoulli,
    Categorical,
    Independent,
    MultivariateNormal,
    Normal,
    Poisson,
    TorchDistribution,
)
from torch.distributions import constraints
from torch.nn.functional import logsigmoid


def is_missing(value: torch.Tensor) -> torch.Tensor:
    """Say which entries are NaN; integers have none."""
    return value.isnan() if value.is_floating_point() else torch.zeros_like(value, dtype=torch.bool)


def filled(emission: TorchDistribution, value: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Put a number that the emission can have where an entry is missing or its step masked, so that no NaN arises."""
    empty = is_missing(value)
    if mask is not None:
        empty = empty | ~mask.reshape(*mask.shape, *[1] * len(emission.event_shape))
    return torch.where(empty, torch.tensor(_possible(emission), dtype=value.dtype), value)


def state_log_probs(emission: TorchDistribution, value: torch.Tensor, missing: torch.Tensor) -> torch.Tensor:
    """Give the log probability of each step's value under each state, shape (*batch, T, K).

    Parameters
    ----------
    emission
        Batch shape (*batch, 1 or T, K).
    value
        (*batch, T, *event), the missing entries filled with possible ones.
    missing
        Which entries are missing, shaped as ``value``: they add nothing. Where all of a step's are, its row is 0.
    """
    if hasattr(emission, "state_log_probs"):
        return emission.state_log_probs(value, missing)
    if isinstance(emission, Independent) and isinstance(emission.base_dist, Bernoulli):
        return _bernoulli(emission.base_dist.logits, value, missing)
    if isinstance(emission, Categorical):
        return _categorical(emission.logits, value, missing)
    event_dim = len(emission.event_shape)
    place = -1 - event_dim
    if isinstance(emission, MultivariateNormal):
        if missing.any():
            emission, value = _marginal(emission, missing.unsqueeze(place)), value
            surplus = 0.5 * math.log(2 * math.pi) * missing.sum(-1, keepdim=True)
            centred = torch.where(missing.unsqueeze(place), emission.loc, value.unsqueeze(place))
            return emission.log_prob(centred) + surplus
        return emission.log_prob(value.unsqueeze(place))
    if isinstance(emission, Independent) and event_dim == emission.reinterpreted_batch_ndims:
        each = emission.base_dist.log_prob(value.unsqueeze(place))
        each = torch.where(missing.unsqueeze(place), 0.0, each)
        return each.flatten(-event_dim).sum(-1)
    log_probs = emission.log_prob(value.unsqueeze(place))
    gone = missing.flatten(-event_dim).any(-1) if event_dim else missing  # entries that cannot be told apart
    return torch.where(gone.unsqueeze(-1), 0.0, log_probs)


def _bernoulli(logits: torch.Tensor, value: torch.Tensor, missing: torch.Tensor) -> torch.Tensor:
    """Sum over D switches (*batch, 1 or T, K, D) without an array of T K D numbers, where all steps are alike."""
    if logits.shape[-3] > 1:
        value, missing = value.unsqueeze(-2), missing.unsqueeze(-2)
        return torch.where(missing, 0.0, value * logits + logsigmoid(-logits)).sum(-1)
    logits = logits.squeeze(-3).mT
    seen = (~missing).to(logits.dtype)
    return (value.to(logits.dtype) * seen) @ logits + seen @ logsigmoid(-logits)


def _categorical(logits: torch.Tensor, value: torch.Tensor, missing: torch.Tensor) -> torch.Tensor:
    """Look the category up in every state's table (*batch, 1 or T, K, C)."""
    index = value.long().unsqueeze(-1).unsqueeze(-1)
    batch = torch.broadcast_shapes(logits.shape[:-2], value.shape)
    if logits.shape[-3] == 1 and math.prod(logits.shape[:-3]) == 1:  # one table: rows of it, no copies
        found = logits.reshape(*logits.shape[-2:]).mT[value.long()]
    else:
        logits = logits.expand(*batch, *logits.shape[-2:])
        found = logits.gather(-1, index.expand(*batch, logits.shape[-2], 1)).squeeze(-1)
    return torch.where(missing.unsqueeze(-1), 0.0, found)


def _marginal(emission: MultivariateNormal, missing: torch.Tensor) -> MultivariateNormal:
    """Give the normal whose missing entries are independent, of variance one: its density is the others' times theirs.

    ``missing`` has shape (*batch, T, 1, D).
    """
    pair = missing.unsqueeze(-1) | missing.unsqueeze(-2)
    identity = torch.eye(missing.shape[-1], dtype=emission.loc.dtype)
    covariance = torch.where(pair, identity, emission.covariance_matrix)
    loc = emission.loc.expand(covariance.shape[:-1])
    return MultivariateNormal(loc, covariance, validate_args=False)


def state_values(emission: TorchDistribution, states: torch.Tensor) -> torch.Tensor:
    """Draw a value for each step from its state, shape (*shape, T, *event) for states (*shape, T)."""
    if hasattr(emission, "state_values"):
        return emission.state_values(states)
    K, event = emission.batch_shape[-1], emission.event_shape
    everything = emission.expand(torch.Size([*states.shape, K])).sample()
    index = states.reshape(*states.shape, 1, *[1] * len(event)).expand(*states.shape, 1, *event)
    return everything.gather(states.dim(), index).squeeze(states.dim()).to(_parameter_dtype(emission))


def _parameter_dtype(emission: TorchDistribution) -> torch.dtype:
    """Give the dtype of the parameters, which is that of all data: counts and codes are drawn in it, too."""
    base = getattr(emission, "base_dist", emission)
    for name in ("logits", "loc", "rate", "scale"):
        if isinstance(getattr(base, name, None), torch.Tensor):
            return getattr(base, name).dtype
    return torch.get_default_dtype()


def check_values(emission: TorchDistribution, value: torch.Tensor, mask: torch.Tensor | None) -> None:
    """Raise ValueError where a value is none that the emission can have, and name it."""
    if getattr(emission, "refuses_missing", False) and is_missing(value).any():
        raise ValueError(
            f"value: {int(is_missing(value).sum())} entries are NaN, but each value depends on those before it; impute "
            "them, or use an emission without memory."
        )
    possible = filled(emission, value, mask)
    event_dim = len(emission.event_shape)
    ok = emission.support.check(possible.unsqueeze(-1 - event_dim)).any(-1)  # under one state at least
    ok = ok & (possible.isfinite().flatten(-event_dim).all(-1) if event_dim else possible.isfinite())
    if not ok.all():
        at = tuple(torch.nonzero(~ok)[0].tolist())
        raise ValueError(f"value: expected {_wanted(emission)}, got {possible[at].tolist()} at index {at}.")


def _wanted(emission: TorchDistribution) -> str:
    base = emission.base_dist if isinstance(emission, Independent) else emission
    if isinstance(base, Categorical):
        C = base.logits.shape[-1]
        return f"categories coded 0 to {C - 1}"
    if isinstance(base, Poisson):
        return "counts (whole numbers from 0)"
    if isinstance(base, Bernoulli):
        return "zeros and ones"
    return "finite numbers" if isinstance(base, Normal | MultivariateNormal) else f"values in {emission.support}"


def _possible(emission: TorchDistribution) -> float:
    """Give a number that every state can emit."""
    support = emission.support
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    for number in (0.0, 1.0, 0.5):
        # An event that is no product (a simplex) has no number of its own; its log probability is masked as a whole.
        if support.event_dim == 0 and support.check(torch.tensor(number)).all():
            return number
    return 0.0


class Autoregression:
    """Normal emissions whose mean leans on the P values before: each state has a level and P coefficients.

    Given state k, ``y[t] = loc[k] + sum_p coef[k, p - 1] (y[t - p] - loc[k]) + scale[k] noise``. Values before the
    first step count as ``loc[k]``, so that every step has a density and a series can be drawn from nothing.

    Parameters
    ----------
    loc, scale
        (*batch, K).
    coef
        (*batch, K, P).
    """

    event_shape = torch.Size()
    support = constraints.real
    refuses_missing = True

    def __init__(self, loc: torch.Tensor, scale: torch.Tensor, coef: torch.Tensor) -> None:
        self.loc, self.scale, self.coef = loc, scale, coef
        batch = torch.broadcast_shapes(loc.shape, scale.shape, coef.shape[:-1])
        self.batch_shape = torch.Size([*batch[:-1], 1, batch[-1]])

    def state_log_probs(self, value: torch.Tensor, missing: torch.Tensor) -> torch.Tensor:
        """Give the log density of each step given those before and each state, (*batch, T, K)."""
        deviation = value.unsqueeze(-1) - self.loc.unsqueeze(-2)
        error = deviation
        for p in range(1, min(self.coef.shape[-1], value.shape[-1] - 1) + 1):
            start = torch.zeros_like(deviation[..., :p, :])
            before = torch.cat([start, deviation[..., :-p, :]], -2)
            error = error - self.coef[..., p - 1].unsqueeze(-2) * before
        return Normal(0.0, self.scale.unsqueeze(-2), validate_args=False).log_prob(error)

    def state_values(self, states: torch.Tensor) -> torch.Tensor:
        """Draw a series for each path of states (*shape, T), step by step."""
        shape = states.shape[:-1]
        noise = torch.randn(states.shape, dtype=self.loc.dtype)

        def of_state(parameter: torch.Tensor, t: int) -> torch.Tensor:
            parameter = parameter.expand(*shape, parameter.shape[-1])
            return parameter.gather(-1, states[..., t, None]).squeeze(-1)

        values: list[torch.Tensor] = []
        for t in range(states.shape[-1]):
            level = of_state(self.loc, t)
            mean = level
            for p in range(1, min(self.coef.shape[-1], t) + 1):
                mean = mean + of_state(self.coef[..., p - 1], t) * (values[t - p] - level)
            values.append(mean + of_state(self.scale, t) * noise[..., t])
        return torch.stack(values, -1)
