"""Partial pooling: the eight schools (Rubin 1981, J. Educ. Stat. 6), in both parameterisations."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import torch

from ppl_models import datasets
from ppl_models.model import Model, Simulation
from ppl_models.simulation import draw, own_stream

SCHOOLS = [
    "Choate",
    "Deerfield",
    "Phillips Andover",
    "Phillips Exeter",
    "Hotchkiss",
    "Lawrenceville",
    "St. Paul's",
    "Mt. Hermon",
]
EFFECTS = [28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0]
STANDARD_ERRORS = [15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0]


def eight_schools(*, y: torch.Tensor, sigma: torch.Tensor, mu_sd: float = 5.0, tau_scale: float = 5.0) -> torch.Tensor:
    """Pool the effects of coaching in several schools, non-centred: an effect is mu plus tau times a standard normal.

    ``y`` is the estimated effect per school and ``sigma`` its known standard error, both of shape (schools,). The
    default priors are those of posteriordb: mu ~ normal(0, 5), tau ~ half-Cauchy(5).
    """
    mu = pyro.sample("mu", dist.Normal(0.0, mu_sd))
    tau = pyro.sample("tau", dist.HalfCauchy(tau_scale))
    with pyro.plate("school", len(sigma)):
        theta_trans = pyro.sample("theta_trans", dist.Normal(0.0, 1.0))
        theta = pyro.deterministic("theta", mu + tau * theta_trans, event_dim=0)
        return pyro.sample("y", dist.Normal(theta, sigma), obs=y)


def eight_schools_centered(
    *, y: torch.Tensor, sigma: torch.Tensor, mu_sd: float = 5.0, tau_scale: float = 5.0
) -> torch.Tensor:
    """Give the posterior of `eight_schools` in the centred form, whose funnel at small tau defeats most samplers."""
    mu = pyro.sample("mu", dist.Normal(0.0, mu_sd))
    tau = pyro.sample("tau", dist.HalfCauchy(tau_scale))
    with pyro.plate("school", len(sigma)):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        return pyro.sample("y", dist.Normal(theta, sigma), obs=y)


def _data() -> dict[str, Any]:
    return {
        "y": torch.tensor(EFFECTS, dtype=torch.float64),
        "sigma": torch.tensor(STANDARD_ERRORS, dtype=torch.float64),
    }


def _simulate(
    model: Callable[..., Any],
    seed: int,
    *,
    num_schools: int = 8,
    truth: Mapping[str, Any] | None = None,
    **settings: float,
) -> Simulation:
    with own_stream(seed):
        sigma = 9.0 + 9.0 * torch.rand(num_schools)  # the range of Rubin's standard errors
        return draw(model, {"y": torch.zeros(num_schools), "sigma": sigma}, truth=truth, **settings)


def _coords(data: Mapping[str, Any]) -> dict[str, list]:
    return datasets.labels_if_same(data["sigma"], _data()["sigma"], school=SCHOOLS)


EIGHT_SCHOOLS = Model(
    name="eight_schools",
    model=eight_schools,
    data=_data,
    simulate=partial(_simulate, eight_schools),
    summary="effects of coaching in eight schools, partially pooled, non-centred",
    coords=_coords,
)
EIGHT_SCHOOLS_CENTERED = Model(
    name="eight_schools_centered",
    model=eight_schools_centered,
    data=_data,
    simulate=partial(_simulate, eight_schools_centered),
    summary="the same posterior in the centred form: a funnel that is hard to sample",
    coords=_coords,
)
