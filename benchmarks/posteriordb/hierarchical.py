"""Groups that share a prior."""

import pyro
import pyro.distributions as dist
import torch


def eight_schools_centered(y, sigma):
    """Effects of coaching in eight schools, drawn from their prior as they stand: a funnel."""
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", len(y)):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(theta, sigma), obs=y)


def eight_schools_noncentered(y, sigma):
    """The same posterior in standardised effects."""
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", len(y)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        theta = pyro.deterministic("theta", mu + tau * z)
        pyro.sample("y", dist.Normal(theta, sigma), obs=y)


def radon_contextual_effects(J, county_idx, log_uranium, floor, floor_by_county, log_radon):
    """Radon in the houses of Minnesota: an intercept for each county, and the county's own covariates."""
    mean = pyro.sample("county_effect_mean", dist.Normal(0.0, 1.0))
    scale = pyro.sample("county_effect_scale", dist.HalfNormal(1.0))
    weight = pyro.sample("weight", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
    noise = pyro.sample("log_radon_scale", dist.HalfNormal(1.0))
    with pyro.plate("counties", J):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        effect = pyro.deterministic("county_effect", mean + scale * z)
    covariates = torch.stack([log_uranium, floor.to(log_uranium), floor_by_county], -1)
    with pyro.plate("houses", len(log_radon)):
        level = covariates @ weight + effect[county_idx - 1]
        pyro.sample("log_radon", dist.Normal(level, noise), obs=log_radon)
