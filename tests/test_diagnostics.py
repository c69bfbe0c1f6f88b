"""Pure array functions: laws, known indices, and errors that mean what they say."""

import numpy as np
import pytest

from inference.diagnostics import (
    PROBABILITIES,
    chain_mixing,
    correlations,
    functional_khat,
    has_spread,
    khat_limit,
    moments,
    raw_against_weighted,
    smooth_weights,
    standardise,
    tail_index,
    wasserstein,
    weighted_moments,
)


def gaussian_weights(seed: int, *, sd: float, dimension: int, num_draws: int = 10_000, shift: float = 0.0):
    z = np.random.default_rng(seed).normal(size=(num_draws, dimension))
    x = shift + sd * z
    return x, (0.5 * z**2 + np.log(sd) - 0.5 * x**2).sum(axis=1)


# Medians of 7 runs at S = 10 000, noise .05 (notes/vi-algorithms.md, section 2.3).
SCALE_TABLE = [(0.8, 1, 0.36), (0.8, 5, 0.40), (0.8, 20, 0.61), (0.7, 1, 0.49), (0.7, 5, 0.53), (0.6, 1, 0.59)]
SHIFT_TABLE = [(0.25, 10, 0.19), (0.5, 5, 0.28), (1.0, 2, 0.46)]


@pytest.mark.parametrize(("sd", "dimension", "expected"), SCALE_TABLE)
def test_khat_of_a_narrow_gaussian_matches_the_calibration_table(sd, dimension, expected):
    runs = [smooth_weights(gaussian_weights(s, sd=sd, dimension=dimension)[1]).khat for s in range(15)]
    assert np.median(runs) == pytest.approx(expected, abs=0.1)  # twice the error of two medians


@pytest.mark.parametrize(("shift", "dimension", "expected"), SHIFT_TABLE)
def test_khat_of_a_shifted_gaussian_matches_the_calibration_table(shift, dimension, expected):
    runs = [smooth_weights(gaussian_weights(s, sd=1.0, dimension=dimension, shift=shift)[1]).khat for s in range(15)]
    assert np.median(runs) == pytest.approx(expected, abs=0.1)


def test_khat_orders_scales_and_does_not_see_a_constant_factor():
    khats = [smooth_weights(gaussian_weights(0, sd=s, dimension=3)[1]).khat for s in (0.95, 0.8, 0.65, 0.5)]
    assert khats == sorted(khats)
    log_weight = gaussian_weights(0, sd=0.7, dimension=3)[1]
    assert smooth_weights(log_weight + 1234.5).khat == pytest.approx(smooth_weights(log_weight).khat, rel=1e-6)


def test_weighted_moments_repair_a_narrow_gaussian():
    x, log_weight = gaussian_weights(3, sd=0.8, dimension=2, shift=0.3)
    estimate = weighted_moments(x, smooth_weights(log_weight).weights)
    assert np.all(np.abs(estimate.mean) < 4 * estimate.mean_se)
    assert np.all(np.abs(np.log(estimate.sd)) < 4 * estimate.log_sd_se + 0.02)  # .02: smoothing bias at k = .4
    assert np.all(np.abs(estimate.quantiles - np.array([[-1.645], [0.0], [1.645]])) < 4 * estimate.quantiles_se + 0.02)
    assert np.all(np.abs(x.mean(axis=0)) > 0.25)  # negative control: the raw mean is wrong


def test_equal_weights_give_the_plain_moments():
    x = np.random.default_rng(0).normal(size=(4, 500, 3))
    flat = x.reshape(-1, 3)
    plain, weighted = moments(x, independent=True), weighted_moments(flat, np.full(2000, 1 / 2000))
    np.testing.assert_allclose(weighted.mean, plain.mean, atol=1e-12)
    np.testing.assert_allclose(weighted.mean_se, plain.mean_se, rtol=1e-3)
    np.testing.assert_allclose(weighted.log_sd_se, plain.log_sd_se, rtol=1e-3)
    np.testing.assert_allclose(weighted.quantiles, plain.quantiles, atol=0.02)
    np.testing.assert_allclose(weighted.quantiles_se, plain.quantiles_se, rtol=0.1)


def test_constant_weights_are_not_mistaken_for_a_tail():
    for noise in (0.0, 1e-9):
        log_weight = -3.0 + noise * np.random.default_rng(0).normal(size=4000)
        weights = smooth_weights(log_weight)
        assert weights.khat == 0.0
        assert weights.ess == pytest.approx(4000)
    x = np.random.default_rng(1).normal(size=(4000, 2))
    assert np.all(functional_khat(x, log_weight, centre=np.zeros(2)) == 0.0)


def test_weights_that_cannot_be_used_give_nan_and_not_a_number():
    log_weight = np.random.default_rng(0).normal(size=1000)
    for bad in (np.nan, np.inf):
        assert np.isnan(smooth_weights(np.append(log_weight, bad)).khat)
    assert np.isnan(smooth_weights(np.full(1000, -np.inf)).khat)


def test_a_draw_outside_the_support_has_no_weight():
    log_weight = np.append(np.random.default_rng(0).normal(size=1000) * 0.3, -np.inf)
    weights = smooth_weights(log_weight)
    assert weights.weights[-1] == 0.0
    assert weights.weights.sum() == pytest.approx(1.0)
    assert np.isfinite(weights.khat)


@pytest.mark.parametrize("spread", [30.0, 300.0, 2000.0, 1e5])
def test_one_draw_carrying_everything_never_looks_harmless(spread):
    """ArviZ alone gives k-hat .03 at a spread of 2000 nats, because the whole tail underflows."""
    weights = smooth_weights(spread * np.random.default_rng(0).normal(size=4000))
    assert not weights.khat < 2.0
    assert not weights.ess > 10.0


@pytest.mark.parametrize(("num_draws", "limit"), [(100, 0.5), (1000, 2 / 3), (2200, 0.7), (10**6, 0.7)])
def test_khat_limit_depends_on_the_number_of_draws(num_draws, limit):
    assert khat_limit(num_draws) == pytest.approx(limit, abs=2e-3)


def test_functional_khat_is_larger_than_khat_where_the_moments_are_harder():
    x, log_weight = gaussian_weights(5, sd=0.6, dimension=1)
    assert functional_khat(x, log_weight, centre=np.zeros(1))[0] > smooth_weights(log_weight).khat - 0.02


def test_raw_against_weighted_finds_a_known_shift_and_scale():
    x, log_weight = gaussian_weights(2, sd=0.9, dimension=2, shift=0.2)
    shift = raw_against_weighted(x, smooth_weights(log_weight).weights)
    assert np.all(np.abs(shift.mean - 0.2) < 4 * shift.mean_se)
    assert np.all(np.abs(shift.log_sd - np.log(0.9)) < 4 * shift.log_sd_se)
    assert np.all(shift.mean_se < 0.02)  # paired: smaller than the error of either mean would suggest
    assert shift.tail[0, 0] > 0.0  # more of the target lies below q's 5 % point than 5 %


def test_raw_against_weighted_is_exactly_zero_for_equal_weights():
    x = np.random.default_rng(0).normal(size=(1000, 2))
    shift = raw_against_weighted(x, np.full(1000, 1e-3))
    for name in ("mean", "mean_se", "log_sd", "log_sd_se", "tail", "tail_se"):
        np.testing.assert_allclose(getattr(shift, name), 0.0, atol=1e-12)


def ar1(seed: int, *, rho: float, num_quantities: int) -> np.ndarray:
    x = np.random.default_rng(seed).normal(size=(4, 1000, num_quantities))
    for t in range(1, 1000):
        x[:, t] = rho * x[:, t - 1] + np.sqrt(1 - rho**2) * x[:, t]
    return x


@pytest.mark.parametrize("rho", [-0.5, 0.0, 0.6])
def test_standard_errors_are_the_spread_of_the_estimates(rho):
    """Standardised estimates of 150 independent chains have spread one, for antithetic chains too."""
    estimate = moments(ar1(0, rho=rho, num_quantities=150), independent=False)
    truth = np.array([[-1.6449], [0.0], [1.6449]])
    scores = {
        "mean": estimate.mean / estimate.mean_se,
        "sd": np.log(estimate.sd) / estimate.log_sd_se,
        "low": ((estimate.quantiles - truth) / estimate.quantiles_se)[0],
        "median": ((estimate.quantiles - truth) / estimate.quantiles_se)[1],
    }
    for name, score in scores.items():
        # sd of a sample sd of 150 is 6 %; four of them, and 10 % for errors that are estimates themselves
        assert 0.66 < score.std() < 1.4, (name, score.std())


def test_independent_draws_have_the_textbook_errors():
    x = np.random.default_rng(0).normal(size=(4, 1000, 20))
    estimate = moments(x, independent=True)
    np.testing.assert_allclose(estimate.mean_se, 1 / np.sqrt(4000), rtol=0.05)
    np.testing.assert_allclose(estimate.log_sd_se, 1 / np.sqrt(8000), rtol=0.1)
    density = np.exp(-0.5 * 1.6449**2) / np.sqrt(2 * np.pi)
    np.testing.assert_allclose(
        estimate.quantiles_se[0], np.sqrt(0.05 * 0.95 / 4000) / density, rtol=0.5
    )  # half a gap of few order statistics
    assert estimate.quantiles.shape == (len(PROBABILITIES), 20)


@pytest.mark.parametrize("scale", [1e-18, 1e12])
def test_diagnostics_do_not_depend_on_the_unit(scale):
    x = ar1(1, rho=0.5, num_quantities=3)
    one, other = chain_mixing(x), chain_mixing(7.0 * scale + scale * x)
    np.testing.assert_allclose(other.rhat, one.rhat, rtol=1e-6)
    np.testing.assert_allclose(other.ess_bulk, one.ess_bulk, rtol=1e-6)
    np.testing.assert_allclose(other.ess_tail, one.ess_tail, rtol=1e-6)


def test_chain_mixing_sees_chains_that_disagree_or_do_not_move():
    x = np.random.default_rng(0).normal(size=(4, 500, 3))
    assert np.all(chain_mixing(x).rhat < 1.01)
    x[0, :, 0] += 2.0
    x[0, :, 1] = 0.5
    mixing = chain_mixing(x)
    assert np.all(mixing.rhat[:2] > 1.05)
    assert mixing.rhat[2] < 1.01


def test_one_chain_has_no_rhat():
    mixing = chain_mixing(np.random.default_rng(0).normal(size=(1, 500, 2)))
    assert np.all(np.isnan(mixing.rhat))
    assert np.all(mixing.ess_bulk > 300)


def test_tail_index_tells_cauchy_from_gaussian():
    rng = np.random.default_rng(0)
    assert np.all(tail_index(rng.normal(size=(4, 1000, 20))) < 0.2)
    assert np.all(tail_index(np.abs(rng.standard_cauchy(size=(4, 1000, 20)))) > 0.5)
    assert np.all(tail_index(rng.uniform(size=(4, 1000, 5))) < 0.1)
    assert np.all(tail_index(np.round(rng.normal(size=(4, 1000, 2)))) < 0.5)  # ties are no tail


def test_has_spread_ignores_rounding():
    x = np.random.default_rng(0).normal(size=(2, 100, 3))
    x[:, :, 1] = 1.0 + 1e-16 * x[:, :, 1]
    x[:, :, 2] = 1e6 + 1e-4 * x[:, :, 2]
    np.testing.assert_array_equal(has_spread(x), [True, False, True])


def test_wasserstein_of_a_shift_is_the_shift():
    x = np.random.default_rng(0).normal(size=(4, 500, 2))
    np.testing.assert_allclose(wasserstein(x + 0.7, x), 0.7, rtol=1e-9)
    np.testing.assert_allclose(wasserstein(x, x), 0.0, atol=1e-12)


def test_correlations_match_numpy():
    x = np.random.default_rng(0).normal(size=(2, 300, 3))
    x[..., 1] += x[..., 0]
    np.testing.assert_allclose(correlations(x), np.corrcoef(x.reshape(-1, 3).T), atol=1e-12)


def test_equal_draws_have_no_spread_to_standardise():
    """Their mean differs from them by rounding, which must not be blown up to one."""
    draws = np.full((4, 1000, 3), [0.1, 1e9 / 3, -7.3])
    assert (standardise(draws) == 0).all()
    assert (correlations(draws) == 0).all()
