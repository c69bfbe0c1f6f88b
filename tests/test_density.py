from functools import cache

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.mcmc.util import initialize_model
from scipy.integrate import quad
from scipy.stats import beta, norm

from inference import NUTS, fit
from inference.density import Density
from inference.errors import InputError
from inference.graph import Recording, fold, record
from inference.isolation import isolated
from inference.mapped import map_draws
from inference.sites import read_sites
from inference.validate import prepare_data
from tests.zoo import CASES, MORE_CASES, branching, flat_priors, hmm, moving_support

ALL = CASES | MORE_CASES


def build(model, data, **options):
    return Density(read_sites(model, prepare_data(model, data)), **options)


@pytest.fixture(autouse=True)
def own_state():
    with isolated(seed=1):
        yield


@cache
def density_of(name):
    return build(ALL[name].model, ALL[name].data)


@pytest.fixture(params=ALL)
def name(request):
    return request.param


def points(density, num=4):
    return np.random.default_rng(0).uniform(-1.5, 1.5, size=(num, density.dim))


def test_equals_pyros_potential(name):
    case = ALL[name]
    if case.model is moving_support:
        pytest.skip("Pyro itself is wrong: it freezes the transform of a moving support at the first trace")
    if case.model is flat_priors:
        pytest.skip("Pyro starts from a draw of the prior, which this one does not have")
    density = density_of(name)
    _, potential, _, _ = initialize_model(case.model, (), prepare_data(case.model, case.data))
    at = points(density)
    expected = [-potential(density.unflatten(torch.as_tensor(p))).item() for p in at]
    np.testing.assert_allclose(density.log_density(at), expected, rtol=1e-9)


def test_backend_is_as_expected(name):
    density = density_of(name)
    assert (density.backend == "graph") == ALL[name].recorded
    assert bool(density.reason) != ALL[name].recorded


def test_gradient_equals_finite_differences(name):
    density = density_of(name)
    at = points(density, 2)
    _, gradients = density.grad(at)
    step = 1e-6
    for p, g in zip(at, gradients, strict=True):
        moved = np.concatenate([p + step * np.eye(density.dim), p - step * np.eye(density.dim)])
        values = density.log_density(moved)
        numeric = (values[: density.dim] - values[density.dim :]) / (2 * step)
        np.testing.assert_allclose(g, numeric, rtol=1e-4, atol=1e-4 * (1 + np.abs(g).max()))


def test_single_and_batched_agree(name):
    density = density_of(name)
    at = points(density, 5)
    values, gradients = density.grad(at)
    for p, value, gradient in zip(at, values, gradients, strict=True):
        single_value, single_gradient = density.value_and_grad(p)
        np.testing.assert_allclose(single_value, value, rtol=1e-9)
        np.testing.assert_allclose(single_gradient, gradient, rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(density.log_density(at), values, rtol=1e-9)


def test_constrain_and_back(name):
    density = density_of(name)
    at = points(density)
    latents = density.constrain(at)
    again, log_jacobian = density.unconstrain(latents)
    np.testing.assert_allclose(again, at, rtol=1e-6, atol=1e-8)
    assert np.isfinite(log_jacobian).all()
    assert set(latents) == set(density.sites.latent)
    for site in density.sites.latent.values():
        assert latents[site.name].shape == (len(at), *site.shape)


def test_three_spellings_of_one_mixture_agree():
    at = points(density_of("mixture_tutorial"))
    values = [
        density_of(name).log_density(at) for name in ("mixture_tutorial", "mixture_vectorised", "mixture_by_hand")
    ]
    np.testing.assert_allclose(values[0], values[1], rtol=1e-12)
    np.testing.assert_allclose(values[0], values[2], rtol=1e-12)


def test_hmm_sums_out_its_states():
    y = np.array([0.3, -1.2, 0.8, 1.1])
    density = build(hmm, {"y": y})
    at = points(density, 1)
    latents = {name: value[0] for name, value in density.constrain(at).items()}
    p, loc = latents["transition"], latents["loc"]
    total = 0.0
    for states in np.ndindex(2, 2, 2, 2):  # by hand: every path
        path = np.prod([p[a, b] for a, b in zip((0, *states[:-1]), states, strict=True)])
        total += path * np.prod(norm.pdf(y, loc[list(states)]))
    prior = norm.logpdf(loc, [-1, 1]).sum()  # the uniform Dirichlets have density one
    _, log_jacobian = density.unconstrain(density.constrain(at))
    np.testing.assert_allclose(density.log_density(at)[0], np.log(total) + prior + log_jacobian[0], rtol=1e-10)


def test_moving_support_integrates_to_the_evidence():
    def model(y):
        scale = pyro.sample("scale", dist.Beta(2.0, 2.0))
        theta = pyro.sample("theta", dist.Uniform(-scale, scale))
        pyro.sample("y", dist.Normal(theta, 0.5), obs=y)

    density = build(model, {"y": torch.tensor(0.4)})
    grid = np.linspace(-12, 12, 401)
    at = np.stack(np.meshgrid(grid, grid, indexing="ij"), -1).reshape(-1, 2)
    evidence = np.exp(density.log_density(at)).sum() * (grid[1] - grid[0]) ** 2

    def given(scale):
        inside = norm.cdf(scale, 0.4, 0.5) - norm.cdf(-scale, 0.4, 0.5)
        return beta.pdf(scale, 2, 2) * inside / (2 * scale)

    assert evidence == pytest.approx(quad(given, 0, 1)[0], rel=1e-4)


def test_a_recording_that_differs_is_not_used(monkeypatch):
    bind = Recording.bind

    def slightly_off(recording, *data):
        graph = bind(recording, *data)

        def moved(point):
            gradient, value = graph(point)
            return gradient + 1e-3, value

        return moved

    monkeypatch.setattr(Recording, "bind", slightly_off)
    density = build(CASES["schools"].model, CASES["schools"].data)
    assert density.backend == "eager"
    assert "differs from eager Pyro" in density.reason


def test_control_flow_runs_both_branches():
    density = build(branching, {"y": torch.tensor([0.5])})
    above, below = density.log_density(np.array([[0.3], [-0.3]]))
    assert above == pytest.approx(norm.logpdf(0.3) + norm.logpdf(0.5, 0.3, 1.0))
    assert below == pytest.approx(norm.logpdf(-0.3) + norm.logpdf(0.5, -0.3, 2.0))


def test_starts_are_finite_and_reproducible():
    density = build(CASES["schools"].model, CASES["schools"].data)
    first, again, other = (density.starts(3, generator=np.random.default_rng(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    assert np.isfinite(density.log_density(first)).all()


def test_no_finite_start_names_the_site():
    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Uniform(10 + mu.abs(), 20.0), obs=y)

    with pytest.raises(InputError, match=r"site 'y'.*no finite starting point"):
        build(model, {"y": torch.tensor(1.0)}).starts(1, generator=np.random.default_rng(0))


@pytest.mark.parametrize("in_place", [True, False])
def test_in_place_operations_are_not_replayed_on_constants(in_place):
    constant = torch.eye(3).reshape(1, 9)

    def function(x):
        matrix = constant.clone()
        if in_place:
            matrix.view(-1, 9)[:, ::4] += 1.0
        else:
            matrix = matrix + torch.eye(3).reshape(1, 9)
        return {"value": matrix.sum() * x}

    values = torch.arange(1.0, 5.0)
    for _ in range(2):
        np.testing.assert_allclose(map_draws(function, values)["value"], 6.0 * values)
        np.testing.assert_allclose(map_draws(function, values, random=True)["value"], 6.0 * values)


def test_folding_keeps_random_numbers():
    graph = record(lambda x: x + torch.randn(2), torch.zeros(2))
    fold(graph)
    assert not torch.equal(graph(torch.zeros(2)), graph(torch.zeros(2)))


@pytest.mark.parametrize(
    ("distribution", "mean", "sd"),
    [
        (dist.Normal(2.0, 3.0), 2, 3),
        (dist.Uniform(1.0, 3.0), 2, 3**-0.5),
        (dist.Exponential(0.5), 2, 2),
        (dist.Gamma(4.0, 2.0), 2, 1),
        (dist.Dirichlet(torch.tensor([1.0, 3.0])), (0.25, 0.75), (0.0375**0.5,) * 2),
        (dist.Categorical(torch.tensor([0.3, 0.7])), 0.7, 0.21**0.5),
    ],
    ids=lambda d: type(d).__name__ if hasattr(d, "sample") else "",
)
def test_batched_random_draws_have_the_distribution(distribution, mean, sd):
    num = 20_000
    draws = map_draws(lambda _: {"x": distribution.sample()}, torch.zeros(num), random=True)["x"].astype(float)
    assert np.unique(draws[..., 0] if draws.ndim > 1 else draws).size > 1
    error = np.asarray(sd) / np.sqrt(num)
    assert np.all(np.abs(draws.mean(0) - mean) < 4.5 * error)
    # sd of a sample variance: at most sqrt(8/n) sd^2 for these (kurtosis up to 9)
    assert np.all(np.abs(draws.var(0) / np.square(sd) - 1) < 4.5 * np.sqrt(8 / num))


def test_cauchy_draws_have_the_quartiles():
    num = 20_000
    draws = map_draws(lambda _: {"x": dist.HalfCauchy(2.0).sample()}, torch.zeros(num), random=True)["x"]
    below = (draws < 2.0).mean()  # the median of a half-Cauchy is its scale
    assert abs(below - 0.5) < 4.5 * 0.5 / np.sqrt(num)


def factorised(y):
    """Its matrix can be factorised for positive ``a`` only."""
    a = pyro.sample("a", dist.Normal(0.5, 1.0))
    root = torch.linalg.cholesky(a.reshape(1, 1))
    pyro.sample("y", dist.Normal(root[0, 0], 0.1), obs=y)


def test_a_matrix_that_cannot_be_factorised_has_no_density():
    density = build(factorised, {"y": torch.tensor(1.0)})
    assert density.backend == "graph"
    at = np.array([[1.2], [-0.5]])
    expected = norm.logpdf(1.2, 0.5, 1.0) + norm.logpdf(1.0, 1.2**0.5, 0.1)
    for values in (density.log_density(at), density.grad(at)[0], [density.value_and_grad(p)[0] for p in at]):
        assert values[0] == pytest.approx(expected)
        assert not np.isfinite(values[1])


def test_sampling_goes_on_past_such_points():
    result = fit(factorised, {"y": torch.tensor(1.0)}, NUTS(num_warmup=200, num_samples=300, num_chains=2), seed=1)
    assert result.draws["a"].min() > 0
    assert abs(result.draws["a"].mean() - 1.0) < 0.1
