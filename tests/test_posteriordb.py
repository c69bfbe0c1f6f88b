"""NUTS against reference posteriors that nobody here made (posteriordb: 10 000 thinned draws of Stan each)."""

import json
from dataclasses import replace

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

from inference import NUTS, check, fit
from inference.verdict_kinds import VerdictKind
from ppl_models import MODELS
from ppl_models.mixture import OrderStatistics
from tests.accuracy import SIGMAS, standard_errors

ENGINE = NUTS(num_warmup=400, num_samples=700, num_chains=2)


def blr(X, y):
    """Coefficients N(0, 10), noise half-normal of scale 10."""
    beta = pyro.sample("beta", dist.Normal(torch.zeros(X.shape[1]), 10.0).to_event(1))
    sigma = pyro.sample("sigma", dist.HalfNormal(10.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(X @ beta, sigma), obs=y)


def low_dim_gauss_mix(y):
    """Two ordered components, assignments summed out."""
    mu = pyro.sample("mu", OrderStatistics(dist.Normal(0.0, 2.0), 2))
    sigma = pyro.sample("sigma", dist.HalfNormal(2.0).expand([2]).to_event(1))
    theta = pyro.sample("theta", dist.Beta(5.0, 5.0))
    with pyro.plate("data", len(y)):
        second = pyro.sample("second", dist.Bernoulli(1 - theta)).long()
        pyro.sample("y", dist.Normal(mu[second], sigma[second]), obs=y)


PORTS = {
    "eight_schools-eight_schools_noncentered": MODELS["eight_schools"],
    "sblrc-blr": blr,
    "low_dim_gauss_mix-low_dim_gauss_mix": low_dim_gauss_mix,
}


def load(folder, arguments):
    data = json.loads((folder / "data.json").read_text())
    reference = np.load(folder / "reference_draws.npz")
    sites = json.loads((folder / "info.json").read_text())["dims"]
    return {name: np.asarray(data[name], dtype=float) for name in arguments}, {name: reference[name] for name in sites}


def arguments_of(model):
    code = getattr(model, "model", model).__code__
    names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    return [name for name in names if name in ("X", "y", "sigma")]


def distances(draws, reference):
    """Differences of mean and of log sd, in posterior sds, with their Monte Carlo errors."""
    mean_error, sd_error = standard_errors(draws)
    scale = reference.std((0, 1))
    count = reference.shape[0] * reference.shape[1]
    mean = (draws.mean((0, 1)) - reference.mean((0, 1))) / scale
    log_sd = np.log(draws.std((0, 1)) / scale)
    # 10 000 nearly independent draws: 0.01 sd on a mean; for the sd twice the normal 0.7 %, for the heavier tails
    return mean, np.hypot(mean_error / scale, count**-0.5), log_sd, np.hypot(sd_error / scale, 2 * (2 * count) ** -0.5)


@pytest.mark.parametrize("name", PORTS)
def test_nuts_agrees_with_stan(name, shared):
    model = PORTS[name]
    data, reference = load(shared / "posteriordb" / name, arguments_of(model))
    result = fit(model, data, ENGINE, seed=1)
    for site, truth in reference.items():
        mean, mean_error, log_sd, sd_error = distances(result.draws[site], truth)
        assert np.all(mean_error < 0.15), "too few effective draws for this check to mean anything"
        assert np.all(np.abs(mean) < SIGMAS * mean_error), site
        assert np.all(np.abs(log_sd) < SIGMAS * sd_error), site


def test_a_wrong_prior_is_seen(shared):
    """The control: the same check refuses a posterior that is off by a prior."""
    data, reference = load(shared / "posteriordb" / "sblrc-blr", ["X", "y"])

    def shrunk(X, y):
        pyro.poutine.scale(lambda: blr(X, y), 0.5)()

    result = fit(shrunk, data, ENGINE, seed=1)
    log_sd, error = distances(result.draws["beta"], reference["beta"])[2:]
    assert np.any(np.abs(log_sd) > SIGMAS * error)


def test_centred_eight_schools_diverge_and_say_so(shared):
    model = MODELS["eight_schools_centered"]
    folder = shared / "posteriordb" / "eight_schools-eight_schools_centered"
    data, reference = load(folder, ["y", "sigma"])
    result = fit(model, data, replace(ENGINE, num_chains=8), seed=1)  # chains that stick in the neck differ a lot
    assert result.stats["diverging"].sum() > 0
    verdict = check(result)
    assert verdict.kind is not VerdictKind.TRUST
    assert "diverg" in str(verdict)
    for site in ("mu", "theta"):  # the neck of the funnel is missed, so only a rough agreement can be asked
        mean, *_ = distances(result.draws[site], reference[site])
        assert np.all(np.abs(mean) < 0.5)
