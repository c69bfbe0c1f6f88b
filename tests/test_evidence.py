"""Log evidence against closed forms, against quadrature, and against its own stated errors."""

from dataclasses import replace

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import integrate, special, stats

from inference import NUTS, SVI, AutoVI, InputError, check, fit, from_draws, log_evidence
from inference.diagnostics import smooth_weights
from inference.evidence import kl_gap, two_bridges, weights_evidence
from ppl_models import datasets
from ppl_models.conjugate import BAYESIAN_LINEAR_REGRESSION, BETA_BINOMIAL, NORMAL_MEAN
from ppl_models.hierarchical import EIGHT_SCHOOLS
from tests.handmade_fits import modes

NATS = 0.05
ENGINES = {"nuts": NUTS(num_samples=500), "auto": AutoVI()}

# A fit that keeps the weights of its draws.
GAUSSIAN = SVI(guide="multivariate_normal", optimizer="lbfgs")


def assert_evidence(found, truth):
    assert abs(found.value - truth) < NATS
    assert found.se < NATS / 2
    assert abs(found.value - truth) < 4.5 * found.se + 1e-3


# --- Closed forms -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [NORMAL_MEAN, BETA_BINOMIAL, BAYESIAN_LINEAR_REGRESSION], ids=lambda m: m.name)
@pytest.mark.parametrize("engine", ENGINES)
def test_conjugate_models(model, engine):
    data = model.data()
    made = fit(model, data, ENGINES[engine], seed=1, progress=False)
    truth = model.exact(data).log_evidence
    for method in ("bridge", "psis") if "log_weight" in made.stats else ("bridge",):
        if method == "psis" and smooth_weights(made.stats["log_weight"].ravel()).khat > 0.7:
            continue
        assert_evidence(log_evidence(made, method=method), truth)


# --- Quadrature -------------------------------------------------------------------------------------------------------


def grid_evidence(log_joint, x_range, y_range, num=400):
    """Log of the integral of exp(log_joint(x, y)) over a rectangle, by Simpson's rule in both directions."""
    x, y = np.linspace(*x_range, num + 1), np.linspace(*y_range, num + 1)
    values = log_joint(*np.meshgrid(x, y, indexing="ij"))
    top = values.max()
    assert max(values[0].max(), values[-1].max(), values[:, 0].max(), values[:, -1].max()) < top - 11  # all is inside
    return top + np.log(integrate.simpson(integrate.simpson(np.exp(values - top), x=y), x=x))


def logistic(x: torch.Tensor, y: torch.Tensor) -> None:
    """Two coefficients and no intercept."""
    coef = pyro.sample("coef", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Bernoulli(logits=x @ coef), obs=y)


def logistic_case():
    table = datasets.breast_cancer()
    x, y = table.x[:60, :2].to(torch.float64), table.y[:60].to(torch.float64)

    def log_joint(a, b):
        logits = a[..., None] * x[:, 0].numpy() + b[..., None] * x[:, 1].numpy()
        log_likelihood = (y.numpy() * logits - np.logaddexp(0.0, logits)).sum(-1)
        return stats.norm.logpdf(a) + stats.norm.logpdf(b) + log_likelihood

    return logistic, {"x": x, "y": y}, grid_evidence(log_joint, (-8, 8), (-8, 8))


def schools_case():
    """Ten dimensions, of which the eight effects integrate out: y_j ~ N(mu, tau^2 + sigma_j^2)."""
    data = EIGHT_SCHOOLS.data()
    y, sigma = data["y"].numpy(), data["sigma"].numpy()

    def log_joint(mu, log_tau):
        tau = np.exp(log_tau)
        spread = np.sqrt(tau[..., None] ** 2 + sigma**2)
        prior = stats.norm.logpdf(mu, 0, 5) + stats.halfcauchy.logpdf(tau, scale=5) + log_tau
        return prior + stats.norm.logpdf(y, mu[..., None], spread).sum(-1)

    return EIGHT_SCHOOLS, data, grid_evidence(log_joint, (-40, 40), (-16, 8))


def mixture(y: torch.Tensor) -> None:
    """A share of standard normal noise and a bump somewhere; who is which is summed out."""
    share = pyro.sample("share", dist.Beta(2.0, 2.0))
    loc = pyro.sample("loc", dist.Normal(3.0, 2.0))
    with pyro.plate("rows", len(y)):
        which = pyro.sample("which", dist.Bernoulli(share), infer={"enumerate": "parallel"})
        pyro.sample("y", dist.Normal(which * loc, 1.0), obs=y)


def mixture_case():
    y = datasets.iris_petal_length().to(torch.float64).ravel()[::3] - 1.5

    def log_joint(logit, loc):
        share = special.expit(logit)
        noise, bump = stats.norm.logpdf(y.numpy()), stats.norm.logpdf(y.numpy(), loc[..., None], 1.0)
        each = np.logaddexp(np.log1p(-share)[..., None] + noise, np.log(share)[..., None] + bump)
        jacobian = special.log_expit(logit) + special.log_expit(-logit)
        return stats.beta.logpdf(share, 2, 2) + jacobian + stats.norm.logpdf(loc, 3, 2) + each.sum(-1)

    return mixture, {"y": y}, grid_evidence(log_joint, (-12, 12), (-6, 10), num=600)


CASES = {"logistic": logistic_case, "schools": schools_case, "mixture": mixture_case}


@pytest.mark.parametrize("case", CASES)
def test_quadrature(case):
    model, data, truth = CASES[case]()
    made = fit(model, data, NUTS(num_samples=1000), seed=1, progress=False)
    found = log_evidence(made)
    assert_evidence(found, truth)
    with pytest.raises(AssertionError):  # so that the tolerance bites
        assert_evidence(found, truth + 0.1)


@pytest.mark.parametrize("case", ["logistic", "mixture"])
def test_quadrature_from_a_variational_fit(case):
    model, data, truth = CASES[case]()
    made = fit(model, data, AutoVI(), seed=1, progress=False)
    assert_evidence(log_evidence(made), truth)


def test_a_fit_that_is_too_narrow_still_leads_to_the_evidence():
    """Mean-field draws of a correlated posterior: weights alone are poor, chains mend the draws first."""
    data = BAYESIAN_LINEAR_REGRESSION.data()
    made = fit(BAYESIAN_LINEAR_REGRESSION, data, SVI(num_steps=2000), seed=0, progress=False)
    assert_evidence(log_evidence(made), BAYESIAN_LINEAR_REGRESSION.exact(data).log_evidence)


# --- Errors as stated -------------------------------------------------------------------------------------------------


def log_gamma_draws(rng, shape, rho):
    """Logs of gamma variables of shape 2, skewed to the left, autocorrelated along the second axis."""
    z = rng.normal(size=shape)
    for t in range(1, shape[1]):
        z[:, t] = rho * z[:, t - 1] + np.sqrt(1 - rho**2) * z[:, t]
    return np.log(special.gammaincinv(2.0, special.ndtr(z)))


def log_gamma_density(points):
    """Its integral is Gamma(2)^D = 1."""
    return (2.0 * points - np.exp(points)).sum(axis=1)


@pytest.mark.parametrize(
    ("shape", "rho"),
    [((4, 300, 1), 0), ((4, 300, 5), 0), ((4, 600, 2), 0.9), ((300, 10, 5), 0), ((300, 10, 2), 0.9)],
)
def test_the_bridge_knows_its_error(shape, rho):
    misses = []
    for seed in range(100):
        rng = np.random.default_rng(seed)
        found = two_bridges(log_gamma_density, log_gamma_draws(rng, shape, rho), rng)
        misses.append(found.value / found.se)
    assert 0.7 < np.sqrt(np.mean(np.square(misses))) < 1.3
    assert abs(np.mean(misses)) < 0.4


def test_autocorrelated_draws_are_worth_less():
    shape = (4, 2000, 2)
    slow, fast = (
        two_bridges(log_gamma_density, log_gamma_draws(rng, shape, rho), rng)
        for rho, rng in ((0.95, np.random.default_rng(0)), (0.0, np.random.default_rng(0)))
    )
    assert slow.ess < 0.5 * fast.ess
    assert slow.se > 1.3 * fast.se


@pytest.mark.parametrize("sd", [1.0, 0.9, 1.2])
def test_weights_know_evidence_and_gap(sd):
    """KL(N(0, sd^2), N(0, 1)) is (sd^2 - 1) / 2 - log sd in each coordinate; the normaliser of p is exp(2.5)."""
    misses = []
    for seed in range(100):
        z = np.random.default_rng(seed).normal(size=(4000, 3))
        log_weight = (0.5 * z**2 + np.log(sd) - 0.5 * (sd * z) ** 2).sum(axis=1) + 2.5
        weights = smooth_weights(log_weight)
        value, se = weights_evidence(log_weight, weights)
        gap, gap_se = kl_gap(log_weight, weights)
        truth = 3 * ((sd**2 - 1) / 2 - np.log(sd))
        misses.append(((value - 2.5) / (se + 1e-9), (gap - truth) / (gap_se + 1e-9)))
    misses = np.array(misses)
    if sd == 1.0:
        assert np.abs(misses).max() < 1e-3
    else:
        assert ((np.sqrt((misses**2).mean(axis=0)) > 0.75) & (np.sqrt((misses**2).mean(axis=0)) < 1.3)).all()


def test_check_tells_the_gap():
    made = fit(BETA_BINOMIAL, BETA_BINOMIAL.data(), GAUSSIAN, seed=0, progress=False)
    checks = check(made, search=modes()).checks
    truth = BETA_BINOMIAL.exact(BETA_BINOMIAL.data()).log_evidence - made.stats["log_weight"].mean()
    assert abs(checks["kl_gap"] - truth) < 5 * checks["kl_gap_se"] + 1e-3


# --- Refusals ---------------------------------------------------------------------------------------------------------


def test_what_cannot_give_an_evidence_is_refused():
    data = NORMAL_MEAN.data()
    made = fit(NORMAL_MEAN, data, AutoVI(), seed=0, progress=False)
    chains = fit(NORMAL_MEAN, data, NUTS(num_samples=50, num_chains=2), seed=0, progress=False)
    with pytest.raises(InputError, match="method: expected one of bridge, psis"):
        log_evidence(made, method="harmonic")
    with pytest.raises(InputError, match="seed: expected"):
        log_evidence(made, seed=-1)
    with pytest.raises(InputError, match="importance weights"):
        log_evidence(chains, method="psis")
    with pytest.raises(InputError, match="too few for bridge sampling"):
        log_evidence(chains)
    with pytest.raises(InputError, match="without its model"):
        log_evidence(replace(made, model=None))
    with pytest.raises(InputError, match="no flat log density"):
        log_evidence(from_draws({"mu": np.random.default_rng(0).normal(size=(4, 500))}))
    made = fit(NORMAL_MEAN, data, GAUSSIAN, seed=0, progress=False)
    heavy = np.log1p(np.random.default_rng(0).pareto(0.8, size=(4, 1000)))
    with pytest.raises(InputError, match="k-hat"):
        log_evidence(replace(made, stats={"log_weight": heavy}), method="psis")


def test_it_prints_and_repeats():
    made = fit(NORMAL_MEAN, NORMAL_MEAN.data(), AutoVI(), seed=0, progress=False)
    one = log_evidence(made, seed=3)
    assert one == replace(log_evidence(made, seed=3), khat=one.khat)
    assert "bridge sampling" in str(one)
    assert "k-hat" in str(log_evidence(made, method="psis"))
