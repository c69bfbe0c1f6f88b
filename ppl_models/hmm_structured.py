"""Hidden Markov models by how states move: sticky, left to right, by covariates; regressions; several chains."""

import itertools
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch

from ppl_models import sequences
from ppl_models.datasets import standardise
from ppl_models.hmm import gaussian_hmm
from ppl_models.hmm_parts import (
    beside,
    by_state,
    centre_and_spread,
    check_count,
    check_covariates,
    check_series,
    every_step,
    observe,
    sample_chain,
    sample_scale,
    steps_with_values,
)
from ppl_models.hmm_simulation import simulate
from ppl_models.model import Model
from ppl_models.order_statistics import OrderStatistics

# Stays counted in advance for each state of a sticky chain: with two states an expected stay of a dozen steps.
STICKINESS = 10.0
# Prior of the probability to stay in a left-to-right chain: Beta(9, 1), ten steps expected, a hundred no surprise.
STAY = (9.0, 1.0)
# Prior of the log odds of a move against staying: mean -2 (one step in eight) and sd 1.5 for covariates at their mean.
MOVE = (-2.0, 1.5)
# A standardised covariate changes log odds by no more than 2 with 95 % probability.
MOVE_COEF_SD = 1.0
# Joint states of a factorial model: the work grows with their square.
MAX_JOINT_STATES = 1024


def sticky_hmm(
    *,
    x: torch.Tensor,
    K: int = 2,
    stickiness: float = STICKINESS,
    lengths: torch.Tensor | None = None,
    centre: torch.Tensor | None = None,
    spread: torch.Tensor | None = None,
) -> torch.Tensor:
    """Take `gaussian_hmm` with states that last: ``stickiness`` stays are counted in advance for each of them.

    Fox et al. 2011 (Ann. Appl. Stat. 5) put such a mass on staying. ``x`` has shape (steps,), or (sequences, steps)
    with ``lengths``; NaN is missing.
    """
    return gaussian_hmm(x=x, K=K, lengths=lengths, stickiness=stickiness, centre=centre, spread=spread)


def left_to_right_hmm(
    *,
    x: torch.Tensor,
    K: int = 2,
    lengths: torch.Tensor | None = None,
    centre: torch.Tensor | None = None,
    spread: torch.Tensor | None = None,
) -> torch.Tensor:
    """Pass through K regimes in turn, never back: a series with K - 1 change points, each with a level of its own.

    The chain starts in its first state; state k moves to the next with probability ``1 - stay[k]``, which all have
    from a Beta(9, 1) (Chib 1998, J. Econometrics 86). The levels need no order: states are told apart by time.
    """
    check_count("K", K, least=2)
    check_series("x", x)
    seen = steps_with_values(lengths, x)
    centre, spread = centre_and_spread(x, centre, spread, seen)
    with pyro.plate("change", K - 1):
        stay = pyro.sample("stay", dist.Beta(x.new_tensor(STAY[0]), STAY[1]))
    states = pyro.plate("state", K)
    with states:
        loc = pyro.sample("loc", dist.Normal(centre, spread))
    scale = sample_scale(states, spread)
    last = torch.zeros_like(stay[..., :1])
    here = torch.cat([stay.log(), last], -1).unsqueeze(-1)
    onward = torch.cat([(-stay).log1p(), last], -1).unsqueeze(-1)
    never = x.new_tensor(-torch.inf)
    same = torch.eye(K, dtype=torch.bool)
    following = torch.diag(torch.ones(K - 1, dtype=torch.bool), 1)
    transition = torch.where(same, here, torch.where(following, onward, never))
    initial = torch.where(torch.arange(K) == 0, x.new_tensor(0.0), never)
    emission = dist.Normal(every_step(loc), every_step(scale))
    return observe(x, initial, every_step(transition, 1), emission, seen)


def transition_covariate_hmm(
    *,
    x: torch.Tensor,
    z: torch.Tensor,
    K: int = 2,
    centre: torch.Tensor | None = None,
    spread: torch.Tensor | None = None,
) -> torch.Tensor:
    """Let covariates move the states: the log odds of each move, against staying, are linear in them.

    The step into step t is governed by ``z[t]``; so ``z[0]`` is without effect. Sites ``move`` (K, K - 1) and
    ``move_coef`` (K, K - 1, covariates) hold, for each state, the others in increasing order (a multinomial logit, as
    in Diebold, Lee & Weinbach 1994). Emissions as in `gaussian_hmm`. ``x`` (steps,), ``z`` (steps, covariates),
    standardised.
    """
    check_count("K", K, least=2)
    check_series("x", x)
    check_covariates("z", z, x)
    centre, spread = centre_and_spread(x, centre, spread)
    initial = pyro.sample("initial", dist.Dirichlet(x.new_ones(K))).log()
    states = pyro.plate("state", K)
    with states:
        move = pyro.sample("move", dist.Normal(x.new_full((K - 1,), MOVE[0]), MOVE[1]).to_event(1))
        coef = pyro.sample("move_coef", dist.Normal(x.new_zeros(K - 1, z.shape[-1]), MOVE_COEF_SD).to_event(2))
    loc = pyro.sample("loc", OrderStatistics(dist.Normal(centre, spread), K))
    scale = sample_scale(states, spread)
    # At one step and T = 1 there is no move; a chain of one step takes any single map.
    into = z[1:] if len(z) > 1 else z
    odds = (every_step(coef, 2) * into[:, None, None, :]).sum(-1) + every_step(move, 1)
    odds = torch.cat([odds, torch.zeros_like(odds[..., :1])], -1)
    place = [[K - 1 if i == j else j - (j > i) for j in range(K)] for i in range(K)]
    transition = odds[..., torch.arange(K).unsqueeze(-1), torch.tensor(place)].log_softmax(-1)
    return observe(x, initial, transition, dist.Normal(loc.unsqueeze(-2), every_step(scale)))


def regression_hmm(
    *,
    x: torch.Tensor,
    z: torch.Tensor,
    K: int = 2,
    centre: torch.Tensor | None = None,
    spread: torch.Tensor | None = None,
) -> torch.Tensor:
    """Regress on covariates with coefficients that switch with the regime (Goldfeld & Quandt 1973).

    Intercepts in increasing order with the priors of the means in `gaussian_hmm`; coefficients normal with sd
    ``spread``, that of ``x``, since covariates are standardised. ``x`` (steps,), NaN missing; ``z`` (steps,
    covariates).
    """
    check_count("K", K)
    check_series("x", x)
    check_covariates("z", z, x)
    centre, spread = centre_and_spread(x, centre, spread)
    states = pyro.plate("state", K)
    initial, transition = sample_chain(states, x)
    intercept = pyro.sample("intercept", OrderStatistics(dist.Normal(centre, spread), K))
    with states:
        coef = pyro.sample("coef", dist.Normal(x.new_zeros(z.shape[-1]), spread).to_event(1))
    scale = sample_scale(states, spread)
    mean = intercept.unsqueeze(-2) + z @ beside(coef, 1).mT
    return observe(x, initial, transition, dist.Normal(mean, every_step(scale)))


def factorial_hmm(
    *,
    x: torch.Tensor,
    M: int = 2,
    K: int = 2,
    centre: torch.Tensor | None = None,
    spread: torch.Tensor | None = None,
) -> torch.Tensor:
    """Add up what M independent chains of K states each contribute to a series (Ghahramani & Jordan 1997).

    Their paths are summed out exactly, by the joint chain of K^M states: state ``sum_m k_m K^(M - 1 - m)``. The first
    state of each chain contributes nothing, each further one a positive ``step`` more, half-normal with scale
    ``spread``; ``base`` is normal around ``centre - spread``. The chains are exchangeable. ``x`` (steps,), NaN missing.
    """
    check_count("M", M)
    check_count("K", K, least=2)
    check_series("x", x)
    if K**M > MAX_JOINT_STATES:
        raise ValueError(f"M: {M} chains of {K} states have {K**M} joint states; expected at most {MAX_JOINT_STATES}.")
    centre, spread = centre_and_spread(x, centre, spread)
    base = pyro.sample("base", dist.Normal(centre - spread, spread))
    scale = pyro.sample("scale", dist.LogNormal((spread / 2).log(), 0.75))
    rows = x.new_ones(K, K)
    with pyro.plate("chain", M):
        initial = pyro.sample("initial", dist.Dirichlet(rows[0]))
        transition = pyro.sample("transition", dist.Dirichlet(rows).to_event(1))
        step = pyro.sample("step", dist.HalfNormal(spread.expand(K - 1)).to_event(1))
    initial, transition, step = beside(initial, 1), beside(transition, 2), beside(step, 1)
    level = torch.cat([torch.zeros_like(step[..., :1]), step.cumsum(-1)], -1)
    codes = torch.tensor(list(itertools.product(range(K), repeat=M)))
    starts, maps, mean = 0.0, 0.0, base.unsqueeze(-1)
    for m, code in enumerate(codes.T):
        starts = starts + initial[..., m, :].log()[..., code]
        maps = maps + transition[..., m, :, :].log()[..., code.unsqueeze(-1), code]
        mean = mean + level[..., m, :][..., code]
    emission = dist.Normal(mean.unsqueeze(-2), scale.unsqueeze(-1).unsqueeze(-1).expand(*mean.shape[:-1], 1, 1))
    return observe(x, starts, maps.unsqueeze(-3), emission)


def by_step(draws: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Put the chains of every draw of `factorial_hmm` in order of what they contribute at most."""
    key = np.asarray(draws["step"]).sum(-1)
    named = {"chain_transition" if name == "transition" else name: value for name, value in draws.items()}
    ordered = by_state({n: v for n, v in named.items() if n in ("initial", "chain_transition", "step")}, key)
    return {n.removeprefix("chain_"): v for n, v in ordered.items()} | {
        n: np.asarray(draws[n]) for n in ("base", "scale") if n in draws
    }


def _inflation_and_interest() -> dict[str, Any]:
    """Ask whether high interest ends high inflation: inflation, and the interest of the quarter before."""
    interest = sequences.interest().numpy()
    before = np.concatenate([interest[:1], interest[:-1]])
    return {"x": sequences.inflation(), "z": torch.from_numpy(standardise(before[:, None])), "K": 2}


def _unemployment() -> dict[str, Any]:
    inflation = standardise(sequences.inflation().numpy()[:, None])
    return {"x": sequences.unemployment(), "z": torch.from_numpy(inflation), "K": 2}


STICKY_HMM = Model(
    name="sticky_hmm",
    model=sticky_hmm,
    data=lambda: {"x": sequences.inflation(), "K": 2},
    simulate=partial(simulate, sticky_hmm, scaled=True),
    summary="regimes that last, means in order (inflation in the USA, quarterly 1959-2009)",
    may_miss="x",
)
LEFT_TO_RIGHT_HMM = Model(
    name="left_to_right_hmm",
    model=left_to_right_hmm,
    data=lambda: {"x": sequences.nile(), "K": 2},
    simulate=partial(simulate, left_to_right_hmm, scaled=True),
    summary="regimes passed through in turn: change points (volume of the Nile, 1871-1970)",
    may_miss="x",
)
TRANSITION_COVARIATE_HMM = Model(
    name="transition_covariate_hmm",
    model=transition_covariate_hmm,
    data=_inflation_and_interest,
    simulate=partial(simulate, transition_covariate_hmm, scaled=True, covariates=True),
    summary="regimes moved by a covariate (inflation in the USA, by the interest before)",
    may_miss="x",
)
REGRESSION_HMM = Model(
    name="regression_hmm",
    model=regression_hmm,
    data=_unemployment,
    simulate=partial(simulate, regression_hmm, scaled=True, covariates=True),
    summary="a regression that switches (unemployment by inflation, the Phillips curve, USA 1959-2009)",
    may_miss="x",
)
FACTORIAL_HMM = Model(
    name="factorial_hmm",
    model=factorial_hmm,
    data=lambda: {"x": sequences.unemployment(), "M": 2, "K": 2},
    simulate=partial(simulate, factorial_hmm, scaled=True, integers={"M": 2}),
    summary="a sum of independent chains, by their joint chain (unemployment in the USA, quarterly 1959-2009)",
    identify=by_step,
    may_miss="x",
)
