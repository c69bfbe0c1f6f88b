"""The terrain-like demonstration: correlated intercepts and slopes halve the sds of a mean field, and we say so.

McElreath's regression of income on terrain ruggedness, inside and outside Africa, is the usual example; ours has the
same story on data that come along.
"""

import numpy as np
import pytest
from scipy.stats import halfnorm

from inference import NUTS, SVI, AutoVI, check, compare, fit
from inference.verdict_kinds import VerdictKind
from ppl_models import MODELS
from tests.accuracy import SIGMAS, assert_moments, standard_errors

MODEL = MODELS["interaction_regression"]
COEFFICIENTS = ("intercept", "group_effect", "slope", "interaction")
MEANS_ONLY_OR_WORSE = {
    VerdictKind.MEANS_ONLY,
    VerdictKind.SOME_PARAMETERS,
    VerdictKind.DO_NOT_TRUST,
    VerdictKind.CANNOT_TELL,
}


def centred(data):
    """The same data with both predictors centred: next to no correlation is left."""
    return data | {"x": data["x"] - data["x"].mean(), "group": data["group"] - data["group"].mean()}


@pytest.fixture(scope="module")
def comparison():
    data = MODEL.data()
    engines = {"nuts": NUTS(), "auto": AutoVI(), "mean field": SVI(guide="normal")}
    return compare({name: fit(MODEL, data, engine, seed=1) for name, engine in engines.items()})


def exact_moments(data):
    """Means and sds of every site. Given the noise everything is Gaussian, so only the noise is integrated."""
    x, group, y = (data[name].numpy() for name in ("x", "group", "y"))
    design = np.column_stack([np.ones_like(x), group, x, group * x])
    noise = np.linspace(0.6, 1.1, 401)  # its posterior is .81 +- .03
    log_weight, means, covariances = [], [], []
    for sd in noise:
        precision = design.T @ design / sd**2 + np.eye(4)
        covariances.append(np.linalg.inv(precision))
        means.append(covariances[-1] @ design.T @ y / sd**2)
        quadratic = (y @ y) / sd**2 - means[-1] @ precision @ means[-1]
        log_weight.append(-len(y) * np.log(sd) - 0.5 * (np.linalg.slogdet(precision)[1] + quadratic))
    log_weight = np.array(log_weight) + halfnorm.logpdf(noise)
    weight = np.exp(log_weight - log_weight.max())
    weight /= weight.sum()
    assert max(weight[0], weight[-1]) < 1e-8, "the grid is wide enough"
    mean = weight @ np.array(means)
    sd = np.sqrt(weight @ (np.diagonal(covariances, axis1=1, axis2=2) + (np.array(means) - mean) ** 2))
    exact = dict(zip(COEFFICIENTS, zip(mean, sd, strict=True), strict=True))
    noise_mean = weight @ noise
    return exact | {"noise_sd": (noise_mean, np.sqrt(weight @ (noise - noise_mean) ** 2))}


def mean_field_ratios(data, noise_sd):
    """Sd of the best mean field, by that of the posterior: (P_ii)^-1/2 by (P^-1)_ii^1/2, P the precision matrix."""
    x, group = data["x"].numpy(), data["group"].numpy()
    design = np.column_stack([np.ones_like(x), group, x, group * x])
    precision = design.T @ design / noise_sd**2 + np.eye(4)
    return 1 / np.sqrt(np.diag(precision) * np.diag(np.linalg.inv(precision)))


def test_nuts_and_auto_are_right(comparison):
    exact = exact_moments(comparison.fits["nuts"].data)
    for name, (mean, sd) in exact.items():
        assert_moments(comparison.fits["nuts"].draws[name], mean, sd)
        assert_moments(comparison.fits["auto"].draws[name], mean, sd, bias=0.05)


def test_the_mean_field_has_half_of_the_sds_of_nuts(comparison):
    nuts, mean_field = comparison.fits["nuts"], comparison.fits["mean field"]
    expected = mean_field_ratios(nuts.data, exact_moments(nuts.data)["noise_sd"][0])
    assert np.all((expected > 0.45) & (expected < 0.6))  # about half
    assert mean_field.status.ok  # nothing else would tell
    for name, ratio in zip(COEFFICIENTS, expected, strict=True):
        (_, nuts_error), (_, error) = standard_errors(nuts.draws[name]), standard_errors(mean_field.draws[name])
        sd, reference = mean_field.draws[name].std(), nuts.draws[name].std()
        # 5 %: the noise of the last steps of the optimiser, averaged but not gone.
        tolerance = 0.05 + SIGMAS * np.hypot(error / sd, nuts_error / reference)
        assert abs(np.log(sd / reference / ratio)) < tolerance, name


def test_the_verdicts(comparison):
    assert comparison.reference_verdict.kind is VerdictKind.TRUST
    assert comparison.verdicts["auto"].kind is VerdictKind.TRUST
    assert check(comparison.fits["auto"]).trusted
    assert comparison.verdicts["mean field"].kind in MEANS_ONLY_OR_WORSE - {VerdictKind.CANNOT_TELL}
    assert check(comparison.fits["mean field"]).kind in MEANS_ONLY_OR_WORSE


def test_control_with_centred_predictors_the_mean_field_is_right():
    data = centred(MODEL.data())
    ratios = mean_field_ratios(data, 0.81)
    assert np.all(ratios > 0.97)
    fits = {"nuts": fit(MODEL, data, NUTS(), seed=1), "mean field": fit(MODEL, data, SVI(guide="normal"), seed=1)}
    assert compare(fits).verdicts["mean field"].trusted
    assert check(fits["mean field"]).trusted
