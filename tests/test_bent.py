"""The bent Gaussian: a proper distribution, fitted by an exact gradient, that straightens what a Gaussian cannot."""

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import norm

from inference.bent import Bent, fit_bent
from inference.gaussian import Gaussian, base_draws, elbo, fit_gaussian

RNG = np.random.default_rng(0)
DIM = 4


def some_bent(strength=1.0):
    """Bend in every way that there is."""
    rng = np.random.default_rng(7)
    root = np.tril(rng.normal(size=(DIM, DIM))) + 2 * np.eye(DIM)
    parents = np.array([0, 2])
    child = np.arange(DIM)[:, None] > parents
    curving, moving = 0.4 * rng.normal(size=(DIM, 2)) * child, 0.3 * rng.normal(size=(DIM, 4)) * np.tile(child, 2)
    bends = [strength * 0.3 * rng.normal(size=DIM) for _ in range(4)]
    linear = strength * np.tril(rng.normal(size=(DIM, DIM)), -1)
    return Bent(Gaussian(rng.normal(size=DIM), root), *bends, linear, parents, strength * curving, strength * moving)


def test_without_bends_it_is_its_gaussian():
    q, z = some_bent(0.0), RNG.standard_normal((50, DIM))
    np.testing.assert_allclose(q.transform(z), q.base.transform(z), atol=1e-12)
    np.testing.assert_allclose(q.log_q(z), q.base.log_q(z), atol=1e-12)


def test_what_is_mapped_is_mapped_back():
    q, z = some_bent(), RNG.standard_normal((200, DIM))
    np.testing.assert_allclose(q.whiten(q.transform(z)), z, atol=1e-9)


def test_log_q_is_that_of_the_change_of_variables():
    q, z = some_bent(), RNG.standard_normal((5, DIM))
    step = 1e-5
    for point, log_q in zip(z, q.log_q(z), strict=True):
        ends = [q.transform(point + sign * step * np.eye(DIM)) for sign in (1, -1)]
        _, log_det = np.linalg.slogdet((ends[0] - ends[1]) / (2 * step))
        assert log_q == pytest.approx(norm.logpdf(point).sum() - log_det, abs=1e-6)


def test_a_marginal_density_integrates_to_one():
    q = Bent(
        Gaussian(np.zeros(1), np.eye(1)),
        np.zeros(1),
        np.zeros(1),
        np.full(1, 0.8),
        np.full(1, 0.3),
        np.zeros((1, 1)),
        np.zeros(0, int),
        np.zeros((1, 0)),
        np.zeros((1, 0)),
    )
    total, _ = quad(lambda x: np.exp(q.log_q(q.whiten(np.array([[x]])))[0]), -60, 60, limit=500, points=[0.0])
    assert total == pytest.approx(1, abs=1e-6)


def test_the_gradient_equals_finite_differences():
    from inference.bent import _Problem

    def log_density(x):
        return -np.cosh(x).sum(1) + 0.3 * x[:, 0] * x[:, 1], -np.sinh(x) + 0.3 * x[:, [1, 0, 2]] * [1, 1, 0]

    problem = _Problem(log_density, Gaussian(np.zeros(3), 0.7 * np.eye(3)), RNG.standard_normal((40, 3)))
    at = 0.2 * RNG.normal(size=problem.initial.shape)
    _, gradient = problem.evaluate(at)
    for i in range(len(at)):
        step = np.zeros_like(at)
        step[i] = 1e-6
        up, down = problem.evaluate(at + step)[0], problem.evaluate(at - step)[0]
        assert gradient[i] == pytest.approx((up - down) / 2e-6, abs=2e-6)


def funnel(points):
    """Neal's funnel in 4 dimensions: x0 ~ N(0, 1.5^2), the others N(0, exp(x0)^2)."""
    x, rest = points[:, 0], points[:, 1:]
    precision = np.exp(-2 * x)[:, None]
    values = norm.logpdf(x, 0, 1.5) + (norm.logpdf(rest, 0, np.exp(x)[:, None])).sum(1)
    by_x = -x / 1.5**2 - rest.shape[1] + (rest**2 * precision).sum(1)
    return values, np.concatenate([by_x[:, None], -rest * precision], axis=1)


def banana(points):
    """x ~ N(0, 1), y ~ N(x^2, .5^2): a shape that this family does not hold."""
    x, y = points.T
    off = (y - x**2) / 0.25
    return norm.logpdf(x) + norm.logpdf(y, x**2, 0.5), np.stack([-x + 2 * x * off, -off], axis=1)


def skewed(points):
    """Log of a Gamma(2, 1) variable, in two coordinates."""
    return (2 * points - np.exp(points)).sum(1), 2 - np.exp(points)


def best(log_density, dim, num=2048):
    z = base_draws(num, dim, full_rank=True, random_radius=True, rng=np.random.default_rng(1))
    gaussian = fit_gaussian(log_density, Gaussian(np.zeros(dim), np.eye(dim)), z).q
    bent = fit_bent(log_density, gaussian, z).q
    fresh = np.random.default_rng(2).standard_normal((20_000, dim))
    return [elbo(lambda x: log_density(x)[0], q, fresh) for q in (gaussian, bent)]


def test_a_funnel_is_bent_straight():
    (gaussian, _), (bent, error) = best(funnel, 4)
    assert gaussian < -1  # the evidence is 0
    assert bent == pytest.approx(0, abs=0.02 + 4.5 * error)


def test_skewness_is_caught():
    (gaussian, _), (bent, error) = best(skewed, 2)
    assert gaussian < -0.03  # Gamma(2) = 1, so that the evidence is 0
    assert bent == pytest.approx(0, abs=0.005 + 4.5 * error)


def test_a_banana_is_not():
    (_, _), (bent, _) = best(banana, 2)
    assert bent < -0.1


def test_a_gaussian_posterior_is_left_as_it_is():
    precision = np.array([[2.0, 0.8], [0.8, 1.0]])

    def log_density(x):
        return -0.5 * np.einsum("ni,ij,nj->n", x, precision, x), -x @ precision

    z = base_draws(256, 2, full_rank=True, random_radius=True, rng=RNG)
    exact = Gaussian(np.zeros(2), np.linalg.cholesky(np.linalg.inv(precision)))
    bent = fit_bent(log_density, exact, z)
    fresh = RNG.standard_normal((2000, 2))
    evidence = np.log(2 * np.pi) - 0.5 * np.linalg.slogdet(precision)[1]
    assert elbo(lambda x: log_density(x)[0], bent.q, fresh)[0] == pytest.approx(evidence, abs=0.03)


def test_a_fit_goes_on_from_an_earlier_one():
    z = base_draws(512, 4, full_rank=True, random_radius=True, rng=RNG)
    start = fit_gaussian(funnel, Gaussian(np.zeros(4), np.eye(4)), z).q
    first = fit_bent(funnel, start, z)
    again = fit_bent(funnel, first.q, z)
    assert again.elbo >= first.elbo - 1e-6
    assert len(again.losses) < len(first.losses) / 2
