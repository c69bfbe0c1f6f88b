import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

from inference import AutoVI, InputError, fit
from inference.density import Density
from inference.gaussian import MAX_FULL_RANK, Gaussian, base_draws, elbo, fit_gaussian, laplace, unused_gain
from inference.isolation import isolated
from inference.sites import read_sites
from inference.starts import climb_to_mode
from tests.accuracy import assert_moments
from tests.zoo import SCHOOLS, schools

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("dim", [1, 3, 10])
@pytest.mark.parametrize("random_radius", [True, False])
def test_full_rank_draws_have_exact_moments(dim, random_radius):
    z = base_draws(7 * dim, dim, full_rank=True, random_radius=random_radius, rng=RNG)
    assert len(z) >= 7 * dim
    assert len(z) % (2 * dim) == 0
    np.testing.assert_allclose(z.mean(0), 0, atol=1e-12)
    np.testing.assert_allclose(z.T @ z / len(z), np.eye(dim), atol=1e-12)
    radii = np.linalg.norm(z, axis=1)
    assert (np.ptp(radii) > 1e-6) == random_radius


def test_mean_field_draws_have_exact_marginal_moments():
    z = base_draws(64, 500, full_rank=False, random_radius=False, rng=RNG)
    assert z.shape == (64, 500)
    np.testing.assert_allclose(z.mean(0), 0, atol=1e-12)
    np.testing.assert_allclose((z**2).mean(0), 1, atol=1e-12)
    control = RNG.standard_normal((64, 500))
    assert np.abs((control**2).mean(0) - 1).max() > 0.2


def gaussian_target(dim):
    root = np.tril(RNG.normal(size=(dim, dim))) + 3 * np.eye(dim)
    covariance, mean = root @ root.T, 20 * RNG.normal(size=dim)
    precision = np.linalg.inv(covariance)

    def log_density(points):
        off = points - mean
        return -0.5 * np.einsum("ni,ij,nj->n", off, precision, off), -off @ precision

    return log_density, mean, covariance


@pytest.mark.parametrize("dim", [1, 4, 12])
def test_a_gaussian_is_recovered_exactly_from_2d_draws(dim):
    log_density, mean, covariance = gaussian_target(dim)
    z = base_draws(2 * dim, dim, full_rank=True, random_radius=False, rng=RNG)
    result = fit_gaussian(log_density, Gaussian(np.zeros(dim), np.eye(dim)), z)
    assert result.settled
    np.testing.assert_allclose(result.q.loc, mean, atol=1e-3 * np.sqrt(covariance.max()))
    np.testing.assert_allclose(result.q.scale @ result.q.scale.T, covariance, rtol=2e-3, atol=1e-2)
    log_normaliser = 0.5 * np.linalg.slogdet(2 * np.pi * covariance)[1]
    assert result.elbo == pytest.approx(log_normaliser, abs=1e-4)


def test_independent_draws_do_not_recover_it():
    log_density, _, covariance = gaussian_target(4)
    result = fit_gaussian(log_density, Gaussian(np.zeros(4), np.eye(4)), RNG.standard_normal((16, 4)))
    assert np.abs(np.diag(result.q.scale @ result.q.scale.T) / np.diag(covariance) - 1).max() > 0.05


def test_mean_field_has_the_conditional_standard_deviations():
    log_density, mean, covariance = gaussian_target(5)
    z = base_draws(4000, 5, full_rank=True, random_radius=False, rng=RNG)  # exact second moments, also off the diagonal
    result = fit_gaussian(log_density, Gaussian(np.zeros(5), np.ones(5)), z)
    np.testing.assert_allclose(result.q.loc, mean, atol=1e-2)
    np.testing.assert_allclose(result.q.scale, np.diag(np.linalg.inv(covariance)) ** -0.5, rtol=1e-2)


def test_the_gradient_equals_finite_differences():
    from inference.gaussian import _Problem

    def log_density(x):
        return -np.cosh(x).sum(1) + 0.3 * x[:, 0] * x[:, 1], -np.sinh(x) + 0.3 * x[:, [1, 0]]

    for scale in (np.array([[0.8, 0.0], [0.3, 0.5]]), np.array([0.8, 0.5])):
        problem = _Problem(log_density, Gaussian(np.array([0.2, -0.1]), scale), RNG.standard_normal((40, 2)))
        at = 0.3 * RNG.normal(size=problem.initial.shape)
        _, gradient = problem.evaluate(at)
        for i in range(len(at)):
            step = np.zeros_like(at)
            step[i] = 1e-6
            up, down = problem.evaluate(at + step)[0], problem.evaluate(at - step)[0]
            assert gradient[i] == pytest.approx((up - down) / 2e-6, abs=1e-6)


def test_laplace_of_a_gaussian_is_the_gaussian():
    log_density, mean, covariance = gaussian_target(6)
    q = laplace(log_density, mean, full_rank=True)
    np.testing.assert_allclose(q.scale @ q.scale.T, covariance, rtol=1e-5, atol=1e-5)
    assert np.allclose(q.scale, np.tril(q.scale))
    assert laplace(lambda x: tuple(-part for part in log_density(x)), mean, full_rank=True) is None


def test_elbo_of_the_exact_gaussian_is_the_log_normaliser():
    log_density, mean, covariance = gaussian_target(3)
    q = Gaussian(mean, np.linalg.cholesky(covariance))
    bound, error = elbo(lambda x: log_density(x)[0], q, RNG.standard_normal((100, 3)))
    assert bound == pytest.approx(0.5 * np.linalg.slogdet(2 * np.pi * covariance)[1], abs=1e-9)
    assert error < 1e-9
    np.testing.assert_allclose(
        q.log_q(np.zeros((1, 3))), -0.5 * np.linalg.slogdet(2 * np.pi * covariance)[1], rtol=1e-12
    )


@pytest.mark.parametrize(("shift", "ratio"), [(0.0, 1.0), (1.5, 1.0), (0.0, 0.4), (-0.7, 1.8)])
def test_unused_gain_is_the_divergence_between_gaussians(shift, ratio):
    rng = np.random.default_rng(1)
    mean, sd = np.array([4.0, -20.0]), np.array([1.0, 3.0])
    points = mean + sd * (shift + ratio * rng.normal(size=(4000, 2)))
    gradients = -(points - mean) / sd**2
    # what a shift and a rescaling of q = N(m + shift s, ratio^2 s^2) to p = N(m, s^2) gain, in a quadratic log p
    expected = 2 * (0.5 * shift**2 * ratio**2 + (-np.log(ratio) + 0.5 * ratio**2 - 0.5))
    assert unused_gain(points, gradients) == pytest.approx(expected, abs=0.06 + 0.06 * expected)


def test_many_dimensions_get_a_mean_field_and_say_so():
    y = RNG.normal(size=MAX_FULL_RANK + 50)

    def model(y):
        with pyro.plate("data", len(y)):
            x = pyro.sample("x", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(x, 2.0), obs=y)

    result = fit(model, {"y": y}, AutoVI(num_starts=2), seed=1)
    assert result.state["rung"] == "mean_field"
    assert "mean field" in result.notes[0]
    np.testing.assert_allclose(result.state["loc"], y / 5, atol=1e-3)
    assert_moments(result.draws["x"], y / 5, np.full(len(y), np.sqrt(0.8)))


def test_draws_double_until_the_bound_holds_on_fresh_draws():
    result = fit(schools, SCHOOLS, AutoVI(), seed=1)
    assert result.status.kind == "converged"
    # the bound on other seeds' draws is the same
    other = fit(schools, SCHOOLS, AutoVI(), seed=2)
    error = np.hypot(result.state["elbo_se"], other.state["elbo_se"])
    assert abs(result.state["elbo"] - other.state["elbo"]) < 4.5 * error + 0.05
    np.testing.assert_allclose(result.state["loc"], other.state["loc"], atol=0.15)
    assert -result.history["loss"][-1] == pytest.approx(result.state["elbo"], abs=0.2)


def two_modes(y):
    mu = pyro.sample("mu", dist.Normal(2.0, 0.7))
    pyro.sample("y", dist.Normal(mu**2, 0.1), obs=y)


def test_a_mode_that_the_prior_all_but_excludes_is_left_out():
    result = fit(two_modes, {"y": torch.tensor(2.0)}, AutoVI(), seed=0)
    assert result.draws["mu"].min() > 0
    assert result.state["mode_search"]["num_elsewhere"] == 0


def test_climb_reaches_the_mode():
    def model(y):
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(x, 1.0), obs=y)

    with isolated(0):
        density = Density(read_sites(model, {"y": torch.tensor(3.0)}))
        assert climb_to_mode(density, np.array([-1.7]))[0] == pytest.approx(1.5, abs=1e-4)


@pytest.mark.parametrize("name", ["num_samples", "num_chains", "num_starts"])
def test_wrong_counts_are_refused(name):
    for value in (0, 2.5, True, None):
        with pytest.raises(InputError, match=name):
            AutoVI(**{name: value})
