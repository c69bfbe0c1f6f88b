"""Linear and logistic regressions."""

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints

from benchmarks.posteriordb.priors import flat, restricted


def columns(*values):
    """Join columns into a design matrix with an intercept first, (N, 1 + number of columns)."""
    values = [value.to(torch.get_default_dtype()) for value in values]
    return torch.stack([torch.ones_like(values[0]), *values], -1)


def linear(X, y, *, sigma=None):
    """Regress with flat coefficients, and flat noise unless it is given."""
    beta = flat("beta", shape=(X.shape[-1],))
    sigma = flat("sigma", constraints.positive) if sigma is None else sigma
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(X @ beta, sigma), obs=y)


def blr(X, y):
    """Linear regression with weak normal priors."""
    beta = pyro.sample("beta", dist.Normal(0.0, 10.0).expand([X.shape[-1]]).to_event(1))
    sigma = pyro.sample("sigma", dist.HalfNormal(10.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(X @ beta, sigma), obs=y)


def diamonds(X, Y):
    """Prices of diamonds on 24 centred columns that nearly repeat each other."""
    centred = X[:, 1:] - X[:, 1:].mean(0)
    b = pyro.sample("b", dist.Normal(0.0, 1.0).expand([centred.shape[-1]]).to_event(1))
    intercept = pyro.sample("Intercept", dist.StudentT(3.0, 8.0, 10.0))
    sigma = restricted("sigma", dist.StudentT(3.0, 0.0, 10.0), constraints.positive)
    with pyro.plate("data", len(Y)):
        pyro.sample("Y", dist.Normal(intercept + centred @ b, sigma), obs=Y)


def nes(partyid7, real_ideo, race_adj, age_discrete, educ1, gender, income):
    """Party identification on ideology and what people are."""
    ages = [age_discrete == age for age in (2, 3, 4)]
    linear(columns(real_ideo, race_adj, *ages, educ1, gender, income), partyid7)


def logearn_interaction(earn, height, male):
    """Log earnings on height and sex."""
    linear(columns(height, male, height * male), earn.log())


def earn_height(earn, height):
    """Earnings on height, in dollars and inches."""
    linear(columns(height), earn)


def kidscore_interaction(kid_score, mom_hs, mom_iq):
    """Test scores of children on their mothers' school and IQ."""
    sigma = pyro.sample("sigma", dist.HalfCauchy(2.5))
    linear(columns(mom_hs, mom_iq, mom_hs * mom_iq), kid_score, sigma=sigma)


def kidscore_mom_work(kid_score, mom_work):
    """Test scores of children on their mothers' work."""
    linear(columns(*[mom_work == kind for kind in (2, 3, 4)]), kid_score)


def logmesquite_logvas(weight, diam1, diam2, canopy_height, total_height, density, group):
    """Leaf weight of mesquite bushes on their volume, area, shape."""
    volume, area, shape = diam1 * diam2 * canopy_height, diam1 * diam2, diam1 / diam2
    logs = [value.log() for value in (volume, area, shape, total_height, density)]
    linear(columns(*logs, group), weight.log())


def kilpisjarvi(x, y, pmualpha, psalpha, pmubeta, psbeta):
    """Summer temperatures on the year, not centred: intercept and slope are one line."""
    alpha = pyro.sample("alpha", dist.Normal(pmualpha, psalpha))
    beta = pyro.sample("beta", dist.Normal(pmubeta, psbeta))
    sigma = flat("sigma", constraints.positive)
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(alpha + beta * x, sigma), obs=y)


def wells(switched, dist, arsenic):  # the data call the distance so
    """Do households switch to another well?"""
    alpha, beta = flat("alpha"), flat("beta", shape=(2,))
    logits = alpha + torch.stack([dist / 100.0, arsenic], -1) @ beta
    with pyro.plate("data", len(switched)):
        pyro.sample("switched", pyro.distributions.Bernoulli(logits=logits), obs=switched.to(logits))


def _earlier(y):
    """Numbers of earlier avoidances and shocks, each (dog, trial)."""
    shocks = y.cumsum(1) - y
    return torch.arange(y.shape[1]) - shocks, shocks


def dogs(y):
    """Dogs that learn to avoid a shock, on the logit scale."""
    avoidances, shocks = _earlier(y)
    beta = pyro.sample("beta", dist.Normal(0.0, 100.0).expand([3]).to_event(1))
    logits = beta[0] + beta[1] * avoidances + beta[2] * shocks
    with pyro.plate("dogs", len(y), dim=-2), pyro.plate("trials", y.shape[1], dim=-1):
        pyro.sample("y", dist.Bernoulli(logits=logits), obs=y.to(logits))


def dogs_multiplicative(y):
    """The same on the scale of probabilities; the first trial, always a shock, says nothing."""
    avoidances, shocks = _earlier(y)
    a = pyro.sample("a", dist.Uniform(0.0, 1.0))
    b = pyro.sample("b", dist.Uniform(0.0, 1.0))
    log_prob = (shocks * a.log() + avoidances * b.log())[:, 1:]
    shocked = y[:, 1:].to(log_prob)
    with pyro.plate("dogs", len(y), dim=-2), pyro.plate("trials", y.shape[1] - 1, dim=-1):
        pyro.sample("y", dist.Bernoulli(log_prob.exp()), obs=shocked)
