"""Hidden Markov models by what a state emits: numbers, vectors, counts, categories, chords, autoregressive series."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch

from ppl_models import sequences
from ppl_models.hmm_emissions import Autoregression
from ppl_models.hmm_parts import (
    LOG_SCALE_SD,
    beside,
    by_state,
    centre_and_spread,
    check_codes,
    check_count,
    check_series,
    every_step,
    log_positive,
    observe,
    sample_chain,
    sample_scale,
    steps_with_values,
)
from ppl_models.hmm_simulation import simulate
from ppl_models.model import Model
from ppl_models.order_statistics import OrderStatistics

# Prior sd of the log rate of a state: rates within a factor of 7 of the mean count with 95 % probability.
LOG_RATE_SD = 1.0
# Both parameters of the Beta prior of a switch.
SWITCH_COUNTS = 1.25
# Of each coefficient of an autoregression: most of the prior lies in the stationary region.
COEF_SD = 0.5


def gaussian_hmm(
    *,
    x: torch.Tensor,
    K: int = 2,
    lengths: torch.Tensor | None = None,
    stickiness: float = 0.0,
    centre: torch.Tensor | None = None,
    spread: torch.Tensor | None = None,
) -> torch.Tensor:
    """Let each of K regimes emit normal numbers of its own mean and sd, means in increasing order.

    The means are order statistics of normals around ``centre`` with sd ``spread``; sds lie around half of ``spread``.
    These are the mean and sd of ``x`` unless given. So many stays as ``stickiness`` are counted in advance for each
    state. ``x`` has shape (steps,), or (sequences, steps) with ``lengths`` (sequences,); NaN is missing.
    """
    check_count("K", K)
    check_series("x", x)
    if not stickiness >= 0:
        raise ValueError(f"stickiness: expected a number of at least 0, got {stickiness}.")
    seen = steps_with_values(lengths, x)
    centre, spread = centre_and_spread(x, centre, spread, seen)
    states = pyro.plate("state", K)
    initial, transition = sample_chain(states, x, stickiness=stickiness)
    loc = pyro.sample("loc", OrderStatistics(dist.Normal(centre, spread), K))
    scale = sample_scale(states, spread)
    return observe(x, initial, transition, dist.Normal(loc.unsqueeze(-2), every_step(scale)), seen)


def gaussian_hmm_diagonal(
    *,
    x: torch.Tensor,
    K: int = 2,
    lengths: torch.Tensor | None = None,
    centre: torch.Tensor | None = None,
    spread: torch.Tensor | None = None,
) -> torch.Tensor:
    """Let each of K regimes emit vectors of independent normals; the regimes are exchangeable.

    Priors as in `gaussian_hmm`, for each feature by its own mean and sd, without the order. ``x`` has shape
    (steps, features) or (sequences, steps, features).
    """
    check_count("K", K)
    check_series("x", x, event_dim=1)
    seen = steps_with_values(lengths, x, event_dim=1)
    _, loc, scale, initial, transition = _sample_vectors(x, K, seen, centre, spread)
    return observe(x, initial, transition, dist.Normal(every_step(loc, 1), every_step(scale, 1)).to_event(1), seen)


def gaussian_hmm_full(
    *,
    x: torch.Tensor,
    K: int = 2,
    lengths: torch.Tensor | None = None,
    centre: torch.Tensor | None = None,
    spread: torch.Tensor | None = None,
) -> torch.Tensor:
    """Let each of K regimes emit normal vectors with correlations of its own, of which the LKJ prior favours weak ones.

    Otherwise as `gaussian_hmm_diagonal`; the site ``correlation`` is the Cholesky factor of the correlation matrix.
    """
    check_count("K", K)
    check_series("x", x, event_dim=1)
    seen = steps_with_values(lengths, x, event_dim=1)
    states, loc, scale, initial, transition = _sample_vectors(x, K, seen, centre, spread)
    with states:
        correlation = pyro.sample("correlation", dist.LKJCholesky(x.shape[-1], x.new_tensor(2.0)))
    root = every_step(scale.unsqueeze(-1) * correlation, 2)
    return observe(x, initial, transition, dist.MultivariateNormal(every_step(loc, 1), scale_tril=root), seen)


def _sample_vectors(
    x: torch.Tensor,
    K: int,
    seen: torch.Tensor | None,
    centre: torch.Tensor | None,
    spread: torch.Tensor | None,
) -> tuple[pyro.plate, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Give the plate of states, and sample their means and sds (K, features), start and transitions."""
    centre, spread = centre_and_spread(x, centre, spread, seen, event_dim=1)
    centre, spread = (value.expand(x.shape[-1]) for value in (centre, spread))
    states = pyro.plate("state", K)
    initial, transition = sample_chain(states, x)
    with states:
        loc = pyro.sample("loc", dist.Normal(centre, spread).to_event(1))
        scale = pyro.sample("scale", dist.LogNormal((spread / 2).log(), LOG_SCALE_SD).to_event(1))
    return states, loc, scale, initial, transition


def poisson_hmm(
    *, x: torch.Tensor, K: int = 2, lengths: torch.Tensor | None = None, centre: torch.Tensor | None = None
) -> torch.Tensor:
    """Let each of K regimes emit counts at a rate of its own, rates in increasing order.

    The log rates are order statistics of normals of sd 1 around the log of ``centre``, by default the mean of ``x``.
    ``x`` holds whole numbers in a floating dtype, shape (steps,) or (sequences, steps) with ``lengths``; NaN is
    missing.
    """
    check_count("K", K)
    check_series("x", x)
    seen = steps_with_values(lengths, x)
    check_codes("x", x, seen)
    centre, _ = centre_and_spread(x, centre, None, seen)
    states = pyro.plate("state", K)
    initial, transition = sample_chain(states, x)
    log_rate = pyro.sample("log_rate", OrderStatistics(dist.Normal(log_positive(centre), LOG_RATE_SD), K))
    rate = log_rate.exp()
    pyro.deterministic("rate", rate, event_dim=1)
    return observe(x, initial, transition, dist.Poisson(rate.unsqueeze(-2)), seen)


def categorical_hmm(*, x: torch.Tensor, C: int, K: int = 2, lengths: torch.Tensor | None = None) -> torch.Tensor:
    """Let each of K states emit one of C categories by its own table, uniform in the prior; states are exchangeable.

    ``x`` holds codes 0 to C - 1 in a floating dtype, shape (steps,) or (sequences, steps) with ``lengths``; NaN is
    missing.
    """
    check_count("K", K)
    check_count("C", C)
    check_series("x", x)
    seen = steps_with_values(lengths, x)
    check_codes("x", x, seen, highest=C - 1)
    states = pyro.plate("state", K)
    initial, transition = sample_chain(states, x)
    with states:
        emission = pyro.sample("emission", dist.Dirichlet(x.new_ones(C)))
    return observe(x, initial, transition, dist.Categorical(logits=every_step(emission.log(), 1)), seen)


def bernoulli_hmm(*, x: torch.Tensor, K: int = 2, lengths: torch.Tensor | None = None) -> torch.Tensor:
    """Let each of K states switch every one of D features on with a probability of its own (polyphonic music).

    The prior Beta(1.25, 1.25) is nearly uniform, but zero at 0 and 1: a point estimate calls nothing impossible that it
    has not seen yet. States are exchangeable.
    ``x`` holds 0 and 1 in a floating dtype, shape (steps, features) or (sequences, steps, features) with ``lengths``.
    """
    check_count("K", K)
    check_series("x", x, event_dim=1)
    seen = steps_with_values(lengths, x, event_dim=1)
    check_codes("x", x, seen, highest=1)
    states = pyro.plate("state", K)
    initial, transition = sample_chain(states, x)
    counts = x.new_full((x.shape[-1],), SWITCH_COUNTS)
    with states:
        probability = pyro.sample("probability", dist.Beta(counts, counts).to_event(1))
    logits = torch.logit(probability, eps=torch.finfo(x.dtype).eps)  # at 0 and 1 too, which rounding can give
    return observe(x, initial, transition, dist.Bernoulli(logits=every_step(logits, 1)).to_event(1), seen)


def autoregressive_hmm(
    *,
    x: torch.Tensor,
    K: int = 2,
    order: int = 1,
    centre: torch.Tensor | None = None,
    spread: torch.Tensor | None = None,
) -> torch.Tensor:
    """Let each of K regimes pull a series to its own level, with its own memory of the ``order`` values before.

    See `Autoregression`; levels in increasing order with priors as in `gaussian_hmm`, coefficients normal with sd 0.5.
    ``x`` has shape (steps,) and no gaps.
    """
    check_count("K", K)
    check_count("order", order)
    check_series("x", x)
    centre, spread = centre_and_spread(x, centre, spread)
    states = pyro.plate("state", K)
    initial, transition = sample_chain(states, x)
    loc = pyro.sample("loc", OrderStatistics(dist.Normal(centre, spread), K))
    scale = sample_scale(states, spread)
    with states:
        coef = pyro.sample("coef", dist.Normal(x.new_zeros(order), COEF_SD).to_event(1))
    return observe(x, initial, transition, Autoregression(loc, beside(scale), beside(coef, 1)))


def _by_first_feature(draws: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return by_state(draws, np.asarray(draws["loc"])[..., 0])


def _by_first_category(draws: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return by_state(draws, np.asarray(draws["emission"])[..., 0])


def _by_number_on(draws: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return by_state(draws, np.asarray(draws["probability"]).sum(-1))


def _categorical_data() -> dict[str, Any]:
    x, categories = sequences.gettysburg_letters()
    return {"x": x, "C": len(categories), "K": 2}


GAUSSIAN_HMM = Model(
    name="gaussian_hmm",
    model=gaussian_hmm,
    data=lambda: {"x": sequences.inflation(), "K": 2},
    simulate=partial(simulate, gaussian_hmm, scaled=True),
    summary="regimes with normal values, means in order (inflation in the USA, quarterly 1959-2009)",
    may_miss="x",
)
GAUSSIAN_HMM_DIAGONAL = Model(
    name="gaussian_hmm_diagonal",
    model=gaussian_hmm_diagonal,
    data=lambda: {"x": sequences.inflation_and_unemployment(), "K": 2},
    simulate=partial(simulate, gaussian_hmm_diagonal, scaled=True, vectors=True),
    summary="regimes with independent normal features (inflation, unemployment and interest, US 1959-2009)",
    identify=_by_first_feature,
    may_miss="x",
)
GAUSSIAN_HMM_FULL = Model(
    name="gaussian_hmm_full",
    model=gaussian_hmm_full,
    data=lambda: {"x": sequences.inflation_and_unemployment(), "K": 2},
    simulate=partial(simulate, gaussian_hmm_full, scaled=True, vectors=True),
    summary="regimes with correlated normal features (inflation, unemployment and interest, US 1959-2009)",
    identify=_by_first_feature,
    may_miss="x",
)
POISSON_HMM = Model(
    name="poisson_hmm",
    model=poisson_hmm,
    data=lambda: {"x": sequences.earthquakes(), "K": 2},
    simulate=partial(simulate, poisson_hmm, settings={"centre": 5.0}),
    summary="regimes with Poisson counts, rates in order (major earthquakes per year, 1900-2006)",
    may_miss="x",
)
CATEGORICAL_HMM = Model(
    name="categorical_hmm",
    model=categorical_hmm,
    data=_categorical_data,
    simulate=partial(simulate, categorical_hmm, integers={"C": 4}),
    summary="states that emit categories (letters of the Gettysburg Address: vowels and consonants)",
    identify=_by_first_category,
    may_miss="x",
)
BERNOULLI_HMM = Model(
    name="bernoulli_hmm",
    model=bernoulli_hmm,
    data=lambda: {"x": sequences.warm_months(), "K": 2},
    simulate=partial(simulate, bernoulli_hmm, vectors=True),
    summary="states that switch features on (months warmer than usual in the eastern Pacific, 1950-2010)",
    identify=_by_number_on,
    may_miss="x",
)
AUTOREGRESSIVE_HMM = Model(
    name="autoregressive_hmm",
    model=autoregressive_hmm,
    data=lambda: {"x": sequences.sunspots(), "K": 2, "order": 2},
    simulate=partial(simulate, autoregressive_hmm, scaled=True, integers={"order": 1}),
    summary="autoregressions that switch (roots of the yearly sunspot numbers, 1700-2008)",
)
