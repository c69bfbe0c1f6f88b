"""Short chains on laws with known answers: they leave a right distribution alone and move a wrong one to its place."""

import numpy as np
import pytest

from inference.agreement import errors_between
from inference.diagnostics import moments
from inference.short_chains import NUM_CHAINS, Whitening, chain_moments, mobility, short_chains, whitening

NUM_DRAWS = 4000


def gaussian(cov):
    precision = np.linalg.inv(cov)

    def log_density(points):
        gradients = -points @ precision
        return 0.5 * (points * gradients).sum(axis=1), gradients

    return log_density


def correlated(dim, seed=0):
    root = np.random.default_rng(seed).normal(size=(dim, dim)) + np.eye(dim)
    return root @ root.T


def draws_of(cov, seed, *, shift=0.0, scale=1.0):
    """Draws of a Gaussian that is off by ``shift`` marginal sds in every coordinate and by a factor in its sds."""
    white = np.random.default_rng(seed).normal(size=(NUM_DRAWS, len(cov)))
    return white @ np.linalg.cholesky(cov).T * scale + shift * np.sqrt(np.diag(cov))


def chains_from(draws, log_density, **options):
    starts = draws[:: NUM_DRAWS // NUM_CHAINS][:NUM_CHAINS]
    return short_chains(log_density, starts, by=options.pop("by", None) or whitening(draws), **options)


def errors_of(draws, chains):
    reference = chain_moments(chains.points)
    return errors_between(moments(draws[None], independent=True), reference, tail_index=np.zeros(draws.shape[1]))


def beyond(errors, mean, log_sd):
    """By how many standard errors each mean and log sd error misses its truth."""
    return np.concatenate([(errors.mean - mean) / errors.mean_se, (errors.log_sd - log_sd) / errors.log_sd_se])


@pytest.mark.parametrize("dim", [1, 2, 10, 50])
@pytest.mark.parametrize(("shift", "scale"), [(0.0, 1.0), (0.3, 1.0), (0.0, 0.6), (0.0, 1.7)])
def test_a_gaussian_error_is_measured_and_no_other_one_found(dim, shift, scale):
    cov = correlated(dim)
    draws = draws_of(cov, 1, shift=shift, scale=scale)
    chains = chains_from(draws, gaussian(cov), num_transitions=16)
    # Draws that are wrong start chains that still remember a little; the sds of 100 quantities are compared below.
    assert np.abs(beyond(errors_of(draws, chains), shift, np.log(scale))).max() < 4.5
    moved = mobility(chains.starts, chains.points, chains.acceptance)
    assert 0.6 < moved.acceptance < 0.95
    assert moved.stuck == 0.0
    assert (np.abs(moved.memory) - 2 * moved.memory_se).max() < 0.1


def test_intervals_cover():
    """Over 200 fits, of a mean and an sd in each of five correlated coordinates."""
    cov = correlated(5)
    misses = []
    for seed in range(200):
        draws = draws_of(cov, seed, shift=0.1, scale=0.9)
        chains = chains_from(draws, gaussian(cov), seed=seed)
        misses.append(np.abs(beyond(errors_of(draws, chains), 0.1, np.log(0.9))) > 1.96)
    assert 0.93 <= 1.0 - np.mean(misses) <= 0.97


def test_quantiles_of_a_skewed_law_and_their_errors():
    """The log of an exponential variable; its quantiles have a closed form."""

    def log_density(points):  # of u = log x, x ~ Exponential(1), Jacobian included
        return (points - np.exp(points)).sum(axis=1), 1.0 - np.exp(points)

    draws = np.log(np.random.default_rng(0).exponential(size=(NUM_DRAWS, 3))) * 0.7
    reference = chain_moments(np.exp(chains_from(draws, log_density, num_transitions=16).points))
    truth = -np.log1p(-np.array([0.05, 0.5, 0.95]))[:, None]
    assert (np.abs(reference.quantiles - truth) < 4 * reference.quantiles_se).all()
    assert (reference.quantiles_se < 0.1).all()
    assert (np.abs(reference.mean - 1.0) < 4 * reference.mean_se).all()


def test_equal_seeds_give_equal_chains():
    cov = correlated(3)
    draws = draws_of(cov, 0)
    one, same, other = (chains_from(draws, gaussian(cov), seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one.points, same.points)
    assert not np.array_equal(one.points, other.points)


def test_chains_run_on():
    cov = correlated(2)
    draws = draws_of(cov, 0, shift=1.0)
    first = chains_from(draws, gaussian(cov), num_transitions=4)
    second = first.extend(12)
    assert first.points.shape == (NUM_CHAINS, 4, 2)
    assert second.points.shape == (NUM_CHAINS, 12, 2)
    assert second.num_gradients > first.num_gradients
    assert np.abs(beyond(errors_of(draws, second), 1.0, 0.0)).max() < 4.5


def test_chains_that_hardly_move_remember_their_starts():
    """The same wrong draws: with small steps nothing seems wrong, and the memory says why."""
    cov = correlated(10)
    draws = draws_of(cov, 0, shift=0.5)
    moving, creeping = (chains_from(draws, gaussian(cov), step_size=step) for step in (1.0, 0.005))
    free, bound = (mobility(c.starts, c.points, c.acceptance) for c in (moving, creeping))
    assert (np.abs(errors_of(draws, creeping).mean) < 0.1).all()
    assert free.memory.max() < 0.1
    assert bound.memory.min() > 0.9


def test_a_target_that_is_not_white_is_seen_as_one_that_mixes_slowly():
    cov = np.diag([1.0, 1e-6])
    draws = draws_of(cov, 0)
    white, not_white = (chains_from(draws, gaussian(cov), by=by) for by in (None, Whitening(np.zeros(2), np.ones(2))))
    assert mobility(white.starts, white.points, white.acceptance).memory[0] < 0.1
    assert mobility(not_white.starts, not_white.points, not_white.acceptance).memory[0] > 0.5


def test_a_mode_far_away_cannot_be_seen():
    def two_modes(points):  # N(-10, 1) and N(10, 1), equal shares
        side = np.sign(points)
        return -0.5 * ((points - 10 * side) ** 2)[:, 0], -(points - 10 * side)

    draws = np.random.default_rng(0).normal(10.0, 1.0, size=(NUM_DRAWS, 1))
    chains = chains_from(draws, two_modes)
    assert (chains.points > 0).all()
    assert np.abs(errors_of(draws, chains).mean).max() < 0.1


def test_where_the_density_is_not_finite_nothing_is_accepted():
    """A half-normal, minus infinity or NaN below zero, from draws of which some lie outside."""
    for outside in (-np.inf, np.nan):

        def log_density(points, outside=outside):
            return np.where(points > 0, -0.5 * points**2, outside)[:, 0], np.where(points > 0, -points, np.nan)

        draws = np.abs(np.random.default_rng(0).normal(size=(NUM_DRAWS, 1)))
        draws[:5] *= -1.0
        chains = chains_from(draws, log_density, num_transitions=64)
        assert (chains.points > 0).mean() > 0.99
        reference = chain_moments(chains.points)
        assert abs(reference.mean[0] - np.sqrt(2 / np.pi)) < 5 * reference.mean_se[0] + 0.01


def test_the_neck_of_a_funnel_shows_in_the_acceptance_of_its_tail():
    """x ~ N(0, e^v) times 9, v ~ N(0, 2): draws with the right moments of v, the steps too large where v is small."""

    def funnel(points):
        v, x = points[:, :1], points[:, 1:]
        inside = (x**2 * np.exp(-v)).sum(axis=1, keepdims=True)
        value = -0.5 * v**2 / 4 - 0.5 * inside - 0.5 * x.shape[1] * v
        gradient = np.hstack([-v / 4 + 0.5 * inside - 0.5 * x.shape[1], -x * np.exp(-v)])
        return value[:, 0], gradient

    rng = np.random.default_rng(0)
    v = rng.normal(size=(NUM_DRAWS, 1)) * 2
    draws = np.hstack([v, rng.normal(size=(NUM_DRAWS, 9)) * np.exp(v / 2)])
    chains = chains_from(draws, funnel)
    moved = mobility(chains.starts, chains.points, chains.acceptance)
    easy = chains_from(draws_of(correlated(10), 0), gaussian(correlated(10)))
    assert moved.tail_acceptance[0] < 0.4
    assert mobility(easy.starts, easy.points, easy.acceptance).tail_acceptance.min() > 0.6


@pytest.mark.parametrize(("num_draws", "dim"), [(4000, 20), (60, 40), (400, 300), (4000, 1)])
def test_whitening_goes_there_and_back(num_draws, dim):
    draws = np.random.default_rng(0).normal(size=(num_draws, dim)) @ np.linalg.cholesky(correlated(dim)).T + 3.0
    by = whitening(draws)
    np.testing.assert_allclose(by.points(by.white(draws)), draws, atol=1e-8)
    if num_draws >= 10 * dim:
        np.testing.assert_allclose(np.cov(by.white(draws).T), np.eye(dim), atol=1e-2)
    assert whitening(np.ones((50, 3))).scale.shape == (3,)
