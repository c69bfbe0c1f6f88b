"""The rulers measured by other rulers: quadrature, importance sampling, scipy's marginal densities, calibration."""

import numpy as np
import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from scipy import integrate, stats

from ppl_models import MODELS, Exact
from ppl_models.simulation import own_stream

pytestmark = pytest.mark.usefixtures("direct_pyro")


def log_joint(model, data, **latents):
    """Log density of the Pyro function itself, so that its defaults and those of `exact` are compared too."""
    return float(poutine.trace(poutine.condition(model.model, data=latents)).get_trace(**data).log_prob_sum())


def by_quadrature(model, data, site, shape, lower, upper, guess):
    """Mean, sd and log evidence of a model with one scalar latent, by adaptive quadrature around a guess."""
    top = log_joint(model, data, **{site: torch.tensor(guess).expand(shape)})

    def moment(power):
        def integrand(value):
            log_density = log_joint(model, data, **{site: torch.tensor(value).expand(shape)})
            return value**power * np.exp(log_density - top)

        value, error = integrate.quad(integrand, lower, upper, points=[guess], epsabs=0, epsrel=1e-10, limit=200)
        assert error < 1e-8 * value
        return value

    mass, first, second = moment(0), moment(1), moment(2)
    return first / mass, np.sqrt(second / mass - (first / mass) ** 2), top + np.log(mass)


def assert_agrees(exact, site, answer):
    mean, sd, log_evidence = answer
    np.testing.assert_allclose(exact.mean[site].item(), mean, rtol=1e-8)
    np.testing.assert_allclose(exact.sd[site].item(), sd, rtol=1e-5)  # a difference of moments: five digits left
    np.testing.assert_allclose(exact.log_evidence, log_evidence, rtol=1e-8)


NORMAL_SETTINGS = [{}, {"noise_sd": 0.7, "prior_mean": 4.0, "prior_sd": 0.1}]


@pytest.mark.parametrize("settings", NORMAL_SETTINGS)
def test_normal_mean_against_quadrature(settings):
    model = MODELS["normal_mean"]
    data = model.data() | settings
    answer = by_quadrature(model, data, "mu", (), 3.0, 7.0, 5.4 if not settings else 4.6)
    assert_agrees(model.exact(data), "mu", answer)
    with pytest.raises(AssertionError):  # control: another prior has another answer
        assert_agrees(model.exact(data | {"prior_sd": 0.11}), "mu", answer)


@pytest.mark.parametrize("settings", [{}, {"prior_a": 2.5, "prior_b": 4.0}])
def test_beta_binomial_against_quadrature(settings):
    model = MODELS["beta_binomial"]
    data = model.data()
    log_evidence = 0.0
    for successes, trials in zip(data["successes"], data["trials"], strict=True):
        group = {"successes": successes.reshape(1), "trials": trials.reshape(1)} | settings
        answer = by_quadrature(model, group, "probability", (1,), 0.0, 1.0, float(successes / trials))
        assert_agrees(model.exact(group), "probability", answer)
        log_evidence += answer[2]
        with pytest.raises(AssertionError):  # control: one success more
            assert_agrees(model.exact(group | {"successes": group["successes"] + 1}), "probability", answer)
    np.testing.assert_allclose(model.exact(data | settings).log_evidence, log_evidence, rtol=1e-8)


LINEAR_SETTINGS = [
    {},
    {"intercept_scale": 12.0, "coef_scale": 1.5, "variance_shape": 5.0, "variance_rate": 0.5},
]


def linear_regression_by_quadrature(data, settings):
    """Mean, sd and log evidence by integrating over the log variance v, given which everything is normal.

    Given v, y is normal with covariance v S, S = I + Z P Z', and the coefficients have mean P Z' S^-1 y and covariance
    v (P - P Z' S^-1 Z P), Z the design and P the prior covariance: the view from the rows, where `exact` takes the
    view from the columns.
    """
    s = {"intercept_scale": 10.0, "coef_scale": 5.0, "variance_shape": 3.0, "variance_rate": 1.0} | settings
    x, y = data["x"].numpy(), data["y"].numpy()
    design = np.column_stack([np.ones(len(x)), x])
    prior = np.diag(np.r_[s["intercept_scale"], np.full(x.shape[1], s["coef_scale"])] ** 2)
    rows = np.eye(len(y)) + design @ prior @ design.T
    log_v = np.linspace(
        -8, 6, 4001
    )  # equal steps: exact to machine precision for a smooth bump that vanishes at the ends
    v = np.exp(log_v)
    log_density = (
        stats.multivariate_normal(cov=rows).logpdf(y / np.sqrt(v)[:, None])
        - 0.5 * len(y) * log_v
        + stats.invgamma(s["variance_shape"], scale=s["variance_rate"]).logpdf(v)
        + log_v
    )
    log_evidence = np.logaddexp.reduce(log_density) + np.log(log_v[1] - log_v[0])
    weight = np.exp(log_density - np.logaddexp.reduce(log_density))
    variance = weight @ v
    gain = prior @ design.T @ np.linalg.inv(rows)
    coef, coef_sd = gain @ y, np.sqrt(variance * np.diag(prior - gain @ design @ prior))
    mean = {"variance": variance, "intercept": coef[0], "coef": coef[1:]}
    sd = {"variance": np.sqrt(weight @ (v - variance) ** 2), "intercept": coef_sd[0], "coef": coef_sd[1:]}
    return Exact(mean, sd, log_evidence)


def assert_same(exact, answer):
    for name in ("variance", "intercept", "coef"):
        np.testing.assert_allclose(exact.mean[name], answer.mean[name], rtol=1e-7)
        np.testing.assert_allclose(exact.sd[name], answer.sd[name], rtol=1e-7)
    np.testing.assert_allclose(exact.log_evidence, answer.log_evidence, rtol=1e-8)


@pytest.mark.parametrize("settings", LINEAR_SETTINGS)
def test_linear_regression_against_quadrature(settings):
    model = MODELS["bayesian_linear_regression"]
    for data in (model.data(), model.simulate(0, num_rows=4, num_covariates=6).data):
        answer = linear_regression_by_quadrature(data, settings)
        assert_same(model.exact(data | settings), answer)
        with pytest.raises(AssertionError):  # control: another prior has another answer
            assert_same(model.exact(data | settings | {"variance_rate": 1.01}), answer)


def importance_sampling_z(exact, model, data, num_draws=20_000):
    """Standardised errors of `exact` (means, second moments, evidence) against importance sampling on the Pyro model.

    Proposals around least squares: an inverse-gamma of about twice the width for the variance and t with 5 degrees of
    freedom for the rest, so the weights are bounded. Each z is about standard normal if `exact` is right.
    """
    rng = np.random.default_rng(2)
    num_covariates = data["x"].shape[1]
    design = np.column_stack([np.ones(len(data["x"])), data["x"]])
    centre, *_ = np.linalg.lstsq(design, data["y"].numpy(), rcond=None)
    residual = np.var(data["y"].numpy() - design @ centre)
    q_variance = stats.invgamma(a=15, scale=16 * residual)
    q_coef = stats.multivariate_t(centre, residual * np.linalg.inv(design.T @ design), df=5)
    variance, coef = q_variance.rvs(num_draws, random_state=rng), q_coef.rvs(num_draws, random_state=rng)
    log_q = q_variance.logpdf(variance) + q_coef.logpdf(coef)
    latents = {
        "variance": torch.from_numpy(variance)[:, None],
        "intercept": torch.from_numpy(coef[:, :1]),
        "coef": torch.from_numpy(coef[:, 1:]),
    }

    def vectorised():
        with pyro.plate("particles", num_draws, dim=-2):
            model.model(**data)

    trace = poutine.trace(poutine.condition(vectorised, data=latents)).get_trace()
    trace.compute_log_prob()
    sites = [trace.nodes[n]["log_prob"].sum(-1) for n in ("variance", "intercept", "coef", "y")]
    weight = np.exp(sum(sites).numpy() - log_q - exact.log_evidence)
    assert weight.sum() ** 2 / (weight**2).sum() > num_draws / 10  # enough effective draws for the errors below
    z = [(weight.mean() - 1) / (weight.std() / np.sqrt(num_draws))]
    columns = {"variance": variance[:, None], "intercept": coef[:, :1], "coef": coef[:, 1:]}
    for name, draws in columns.items():
        mean, sd = np.atleast_1d(exact.mean[name]), np.atleast_1d(exact.sd[name])
        assert draws.shape[1] == len(mean) == (num_covariates if name == "coef" else 1)
        for power, value in ((1, 0.0), (2, 1.0)):
            term = weight[:, None] * (((draws - mean) / sd) ** power - value)
            z.extend(term.mean(0) / (term.std(0) / np.sqrt(num_draws)))
    return np.array(z)


@pytest.mark.parametrize("settings", LINEAR_SETTINGS)
def test_linear_regression_against_importance_sampling(settings):
    model = MODELS["bayesian_linear_regression"]
    data = model.data() | settings
    exact = model.exact(data)
    assert np.abs(importance_sampling_z(exact, model, data)).max() < 4  # 11 of them, in standard errors
    for wrong in (  # controls: each kind of error is seen
        Exact({**exact.mean, "coef": exact.mean["coef"] + 0.1 * exact.sd["coef"]}, exact.sd, exact.log_evidence),
        Exact(exact.mean, {**exact.sd, "variance": exact.sd["variance"] * 1.1}, exact.log_evidence),
        Exact(exact.mean, exact.sd, exact.log_evidence + 0.1),
    ):
        assert np.abs(importance_sampling_z(wrong, model, data)).max() > 5


def test_linear_regression_without_a_posterior_sd_is_refused():
    model = MODELS["bayesian_linear_regression"]
    data = model.simulate(0, num_rows=1, num_covariates=1).data
    with pytest.raises(ValueError, match="variance_shape: shape \\+ rows / 2 must exceed 2, got 1.5"):
        model.exact(data | {"variance_shape": 1.0})


CALIBRATION_SIZES = {
    "normal_mean": {"num_rows": 4},
    "beta_binomial": {"num_groups": 1, "num_trials": 7},
    "bayesian_linear_regression": {"num_rows": 8, "num_covariates": 2},
}


def calibration_z(model, num_replicates=300, **overrides):
    """Standardised mean of u and u^2 - 1, u = (truth - mean) / sd: zero on average over draws from the prior."""
    rows = []
    for seed in range(num_replicates):
        truth, data = model.simulate(seed, **CALIBRATION_SIZES[model.name])
        exact = model.exact(data | overrides)
        u = np.concatenate([np.atleast_1d((truth[n].numpy() - m) / exact.sd[n]) for n, m in exact.mean.items()])
        rows.append(np.concatenate([u, u**2 - 1]))
    rows = np.array(rows)
    return rows.mean(0) / (rows.std(0) / np.sqrt(num_replicates))


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("normal_mean", {"noise_sd": 0.4}),
        ("beta_binomial", {"prior_a": 3.0}),
        ("bayesian_linear_regression", {"variance_rate": 2.0}),
    ],
)
def test_simulation_and_exact_posterior_are_calibrated(name, wrong):
    assert np.abs(calibration_z(MODELS[name])).max() < 4
    assert np.abs(calibration_z(MODELS[name], **wrong)).max() > 5  # control: a posterior under another prior


def test_the_hand_written_guide_reaches_the_exact_posterior():
    model = MODELS["normal_mean"]
    data = model.data() | {"prior_mean": 15.0, "prior_sd": 20.0}  # starts 260 posterior sds from the answer
    exact = model.exact(data)

    def errors():
        loc, scale = pyro.param("mu_loc").item(), pyro.param("mu_scale").item()
        return abs(loc - exact.mean["mu"]) / exact.sd["mu"], abs(scale / exact.sd["mu"] - 1)

    num_steps = 1500
    # From 0.5 to 0.0001: far at first, then fine enough for the tolerances below.
    optimiser = pyro.optim.ClippedAdam({"lr": 0.5, "lrd": 0.0002 ** (1 / num_steps)})
    with pyro.get_param_store().scope(), own_stream(1):
        svi = SVI(
            model.model,
            model.guide,
            optimiser,
            Trace_ELBO(num_particles=16, vectorize_particles=True, max_plate_nesting=1),
        )
        svi.step(**data)
        assert min(errors()) > 10  # control: it starts far
        for _ in range(num_steps):
            svi.step(**data)
        shift, spread = errors()
    assert shift < 0.05
    assert spread < 0.05
