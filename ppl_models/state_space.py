"""State-space models: a level, a level with a trend (exact, by Kalman), and stochastic volatility (not linear)."""

from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import torch

from ppl_models import sequences
from ppl_models.hmm_parts import centre_and_spread, check_series
from ppl_models.hmm_simulation import simulate
from ppl_models.linear_gaussian import LinearGaussian
from ppl_models.model import Model

# Sd of what stands before the first step, in sds of the series: wide, and still proper.
FIRST_SD = 2.0
# Prior of the persistence of volatility, Beta(20, 2): half a shock is left after 3 to 40 steps (90 %).
PERSISTENCE = (20.0, 2.0)
# Scale of a step of the log variance: a change of sd by half is a large one.
STEP_SCALE = 0.5


def local_level(
    *, x: torch.Tensor, centre: torch.Tensor | None = None, spread: torch.Tensor | None = None
) -> torch.Tensor:
    """See a random walk through noise; the walk is integrated out by the Kalman filter.

    The sds of the walk's step and of the noise are half-normal with scale ``spread``; the level before the first step
    is normal around ``centre`` with sd ``2 spread``. These are sd and mean of ``x`` unless given. ``x`` (steps,); NaN
    is missing.
    """
    _check_single(x)
    centre, spread = centre_and_spread(x, centre, spread)
    level_sd = pyro.sample("level_sd", dist.HalfNormal(spread))
    noise_sd = pyro.sample("noise_sd", dist.HalfNormal(spread))
    one = x.new_ones(1)
    chain = LinearGaussian(
        centre * one, FIRST_SD * spread * one, one.unsqueeze(-1), level_sd.unsqueeze(-1), one, noise_sd, len(x)
    )
    return pyro.sample("x", chain, obs=x)


def local_linear_trend(
    *,
    x: torch.Tensor,
    centre: torch.Tensor | None = None,
    spread: torch.Tensor | None = None,
    change: torch.Tensor | None = None,
) -> torch.Tensor:
    """See a level with a slope, both wandering, through noise (Harvey 1989, section 2.3.2); both integrated out.

    All three sds are half-normal with scale ``change``, by default the sd of the differences of ``x``; the first slope
    is normal with sd ``2 change`` around their mean, zero where ``change`` is given; the first level as in
    `local_level`. ``x`` (steps,), at least two unless ``change`` is given.
    """
    _check_single(x)
    centre, spread = centre_and_spread(x, centre, spread)
    if change is None and len(x) < 2:
        raise ValueError("x: expected two steps at least, from which to tell the scale of changes; or give change.")
    differences = x.diff() if change is None else torch.zeros_like(x)
    slope, change = centre_and_spread(differences, None, change)
    level_sd = pyro.sample("level_sd", dist.HalfNormal(change))
    trend_sd = pyro.sample("trend_sd", dist.HalfNormal(change))
    noise_sd = pyro.sample("noise_sd", dist.HalfNormal(change))
    chain = LinearGaussian(
        torch.stack([centre, slope]),
        FIRST_SD * torch.stack([spread, change]),
        x.new_tensor([[1.0, 1.0], [0.0, 1.0]]),
        torch.stack([level_sd, trend_sd], -1),
        x.new_tensor([1.0, 0.0]),
        noise_sd,
        len(x),
    )
    return pyro.sample("x", chain, obs=x)


def stochastic_volatility(*, x: torch.Tensor, spread: torch.Tensor | None = None) -> torch.Tensor:
    """Let the sd of a series around zero wander: its log variance is an autoregression (Taylor 1982).

    ``log_variance[t] = level + persistence (log_variance[t - 1] - level) + step_scale shock[t]``, stationary. The
    latents are the independent shocks, which a guide and a sampler find easier than the path. ``level`` is normal
    around the log variance of ``x`` (or of ``spread``). ``x`` (steps,).
    """
    _check_single(x)
    _, spread = centre_and_spread(x, None, spread)
    level = pyro.sample("level", dist.Normal(2 * spread.log(), 1.0))
    persistence = pyro.sample("persistence", dist.Beta(x.new_tensor(PERSISTENCE[0]), PERSISTENCE[1]))
    step_scale = pyro.sample("step_scale", dist.HalfNormal(x.new_tensor(STEP_SCALE)))
    steps = pyro.plate("step", len(x))
    with steps:
        shock = pyro.sample("shock", dist.Normal(x.new_tensor(0.0), 1.0))
        first = torch.arange(len(x)) == 0
        settled = torch.where(first, (1 - persistence.square()).rsqrt(), x.new_tensor(1.0))
        path = level + step_scale * _accumulated(shock * settled, persistence)
        sd = pyro.deterministic("sd", (path / 2).exp(), event_dim=0)
        return pyro.sample("x", dist.Normal(x.new_tensor(0.0), sd), obs=x)


def _accumulated(shocks: torch.Tensor, persistence: torch.Tensor) -> torch.Tensor:
    """Solve ``y[t] = persistence y[t - 1] + shocks[t]`` along the last axis, twice as far back at each pass."""
    lag, power = 1, persistence
    while lag < shocks.shape[-1]:
        before = torch.cat([torch.zeros_like(shocks[..., :lag]), shocks[..., :-lag]], -1)
        shocks = shocks + power * before
        lag, power = 2 * lag, power.square()
    return shocks


def _check_single(x: torch.Tensor) -> None:
    check_series("x", x)
    if x.dim() != 1:
        raise ValueError(f"x: expected one series of shape (steps,), got {tuple(x.shape)}; fit one at a time.")


def _inflation_changes() -> dict[str, Any]:
    changes = sequences.inflation().diff()
    return {"x": changes - changes.mean()}


LOCAL_LEVEL = Model(
    name="local_level",
    model=local_level,
    data=lambda: {"x": sequences.nile()},
    simulate=partial(simulate, local_level, scaled=True),
    summary="a random walk seen through noise, integrated out by Kalman (volume of the Nile, 1871-1970)",
    may_miss="x",
)
LOCAL_LINEAR_TREND = Model(
    name="local_linear_trend",
    model=local_linear_trend,
    data=lambda: {"x": sequences.log_gdp()},
    simulate=partial(simulate, local_linear_trend, scaled=True, settings={"change": 1.0}),
    summary="level and slope that wander, integrated out by Kalman (log GDP of the USA, quarterly 1959-2009)",
    may_miss="x",
)
STOCHASTIC_VOLATILITY = Model(
    name="stochastic_volatility",
    model=stochastic_volatility,
    data=_inflation_changes,
    simulate=partial(simulate, stochastic_volatility, settings={"spread": 1.0}),
    summary="a series whose sd wanders (changes of inflation in the USA, quarterly 1959-2009)",
)
