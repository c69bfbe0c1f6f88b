"""NUTS from a variational fit: its covariance as mass matrix, its draws as starts; the posterior stays the same."""

import copy
import ctypes
from dataclasses import replace

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

from inference import MAP, NUTS, SVI, AutoVI, InputError, Laplace, fit, from_draws, isolated, load_fit
from inference.density import Density
from inference.gaussian import Gaussian
from inference.native.compiler import find_compiler
from inference.sites import read_sites
from inference.warm_start import _correlation_factor, sample_from
from inference.whitened import Whitened
from tests.accuracy import assert_moments
from tests.zoo import CASES, SCHOOLS, logistic, mixture_by_hand, schools

needs_compiler = pytest.mark.skipif(find_compiler() is None, reason="there is no C++ compiler here")
SHORT = NUTS(num_warmup=100, num_samples=50, num_chains=2)


def regression(x, y):
    """Its posterior is Gaussian: precision x'x + I/100."""
    coef = pyro.sample("coef", dist.Normal(torch.zeros(x.shape[1]), 10.0).to_event(1))
    pyro.sample("y", dist.Normal(x @ coef, 1.0).to_event(1), obs=y)


def collinear(num_rows=200, dim=6, spread=0.02):
    """Columns that differ by a fiftieth of what they share; the correlations have a condition number of 15000."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    x = normal(num_rows, 1) + spread * normal(num_rows, dim)
    return {"x": x, "y": x.sum(1) + normal(num_rows)}


COLLINEAR = collinear()


@pytest.fixture(scope="module")
def truth():
    x, y = (COLLINEAR[name].numpy() for name in ("x", "y"))
    covariance = np.linalg.inv(x.T @ x + np.eye(6) / 100)
    sd = np.sqrt(np.diag(covariance))
    assert np.linalg.cond(covariance / np.outer(sd, sd)) > 1e4
    return covariance @ x.T @ y, sd


@pytest.fixture(scope="module")
def gaussian():
    return fit(regression, COLLINEAR, AutoVI(num_samples=500), seed=1)


@pytest.fixture(scope="module")
def schools_fit():
    return fit(schools, SCHOOLS, AutoVI(num_samples=500), seed=1)


def moved(result, *, shift, shrink):
    """The fit with a Gaussian that is off by ``shift`` sds and narrower by a factor ``shrink``."""
    loc, scale, points = (result.state[name] for name in ("loc", "scale", "unconstrained"))
    far = loc + shift * np.linalg.norm(scale, axis=1)
    state = {"loc": far, "scale": scale / shrink, "unconstrained": far + (points - loc) / shrink}
    return replace(result, state={**result.state, **state})


def test_correlations_cost_nothing_with_the_covariance_as_mass_matrix(gaussian, truth):
    plain = fit(regression, COLLINEAR, NUTS(num_samples=500), seed=2)
    warm = fit(regression, COLLINEAR, NUTS(num_samples=500, num_warmup=150, init=gaussian), seed=2)
    assert_moments(warm.draws["coef"], *truth)
    assert warm.num_gradients < plain.num_gradients / 20
    assert plain.stats["n_steps"].mean() > 10 * warm.stats["n_steps"].mean()
    # in x: the variances of the coordinates
    np.testing.assert_allclose(warm.state["adapted"]["inverse_mass"] / truth[1] ** 2, 1.0, rtol=0.3)
    assert not warm.stats["diverging"].any()


def test_scales_alone_do_not_help_against_correlations(gaussian):
    """Negative control: it is the covariance that does it, not the starts."""
    steps = {}
    with gaussian.restored() as sites:
        density = Density(sites)
        density.compile()
        loc, factor = gaussian.state["loc"], gaussian.state["scale"]
        starts = gaussian.state["unconstrained"].reshape(-1, density.dim)
        for scale in (factor, np.linalg.norm(factor, axis=1)):
            points, stats = sample_from(
                density, loc, scale, starts, num_warmup=150, num_samples=100, num_chains=2, seed=1
            )
            assert points.shape == (2, 100, 6)
            np.testing.assert_allclose(stats["lp"].ravel(), density.log_density(points.reshape(-1, 6)), rtol=1e-10)
            steps[scale.ndim] = stats["n_steps"].mean()
    assert steps[1] > 10 * steps[2]


@pytest.mark.parametrize("backend", ["auto", "python"])
def test_a_bad_start_still_gives_the_posterior(gaussian, truth, backend):
    bad = moved(gaussian, shift=3.0, shrink=5.0)
    engine = NUTS(init=bad, num_warmup=300, num_samples=500, num_chains=4 if backend == "auto" else 2, backend=backend)
    assert_moments(fit(regression, COLLINEAR, engine, seed=3).draws["coef"], *truth)
    with pytest.raises(AssertionError):  # what it started from is wrong by far
        assert_moments(bad.state["unconstrained"], *truth)


def test_one_posterior_with_and_without(schools_fit):
    plain = fit(schools, SCHOOLS, NUTS(num_samples=2000), seed=1)
    warm = fit(schools, SCHOOLS, NUTS(num_samples=2000, num_warmup=300, init=schools_fit), seed=2)
    assert warm.num_gradients < plain.num_gradients
    for site in ("mu", "theta"):
        assert_moments(warm.draws[site], plain.draws[site].mean((0, 1)), plain.draws[site].std((0, 1)), bias=0.08)
    log_tau = np.log(warm.draws["tau"])  # the neck, which no Gaussian reaches
    other = np.log(plain.draws["tau"])
    assert_moments(log_tau, other.mean(), other.std(), bias=0.08)
    for result in (plain, warm):
        assert result.status.ok
        assert result.notes == ()


def test_lp_is_the_log_density_of_x(schools_fit):
    result = fit(schools, SCHOOLS, replace(SHORT, init=schools_fit, backend="python"), seed=1)
    with result.restored() as sites:
        density = Density(sites)
        points = result.state["unconstrained"].reshape(-1, density.dim)
        np.testing.assert_allclose(result.stats["lp"].ravel(), density.log_density(points), rtol=1e-10)


def test_equal_seeds_give_equal_numbers(schools_fit):
    one, same, other = (fit(schools, SCHOOLS, replace(SHORT, init=schools_fit), seed=s) for s in (1, 1, 2))
    for name, value in one.draws.items():
        np.testing.assert_array_equal(value, same.draws[name])
    assert not np.array_equal(one.draws["mu"], other.draws["mu"])


@needs_compiler
def test_routes_take_the_same_first_steps(schools_fit):
    engine = NUTS(num_warmup=5, num_samples=4, num_chains=1, init=schools_fit)
    native, python = (fit(schools, SCHOOLS, replace(engine, backend=b), seed=1) for b in ("native", "python"))
    assert native.state["backend"] == "nutpie, whitened native density"
    assert python.state["backend"] == "nutpie, whitened graph density"
    for name in ("n_steps", "step_size", "lp"):
        np.testing.assert_allclose(native.stats[name], python.stats[name], rtol=1e-6)


def test_pyros_kernel_takes_it_too(gaussian, truth):
    engine = NUTS(init=gaussian, num_warmup=50, num_samples=100, num_chains=2, backend="pyro")
    result = fit(regression, COLLINEAR, engine, seed=1)
    assert_moments(result.draws["coef"], *truth, bias=0.1)
    assert result.num_gradients < 20 * 300


# --- The coordinates --------------------------------------------------------------------------------------------------


def density_of(model, data):
    return Density(read_sites(model, data))


@needs_compiler
def test_native_and_python_whiten_alike_in_any_dimension():
    """Dimensions go up and down, so that memory of a thread is used for longer and shorter vectors."""
    rng = np.random.default_rng(0)
    with isolated(1):
        for dim in (1, 3, 40, 2):
            x = torch.randn(50, dim)
            density = density_of(logistic, {"x": x, "y": (x[:, 0] > 0).double()})
            density.compile()
            for scale in (np.tril(rng.standard_normal((dim, dim))), rng.uniform(0.5, 2.0, dim)):
                target = Whitened(density, Gaussian(rng.standard_normal(dim), scale))
                signature = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_uint64, *[ctypes.c_void_p] * 4)
                call = signature(target.native.log_density_address)
                z, gradient, value = rng.standard_normal(dim), np.empty(dim), np.empty(1)
                addresses = (a.ctypes.data for a in (z, gradient, value))
                assert call(dim, *addresses, target.native.constants_address) == 0
                expected, slope = target.value_and_grad(z)
                np.testing.assert_allclose(value[0], expected, rtol=1e-12)
                np.testing.assert_allclose(gradient, slope, rtol=1e-9, atol=1e-12)
                assert value[0] == pytest.approx(density.log_density(target.within.transform(z[None]))[0])
                step = 1e-6 * np.eye(dim)
                ends = [[target.value_and_grad(z + sign * s)[0] for s in step] for sign in (1, -1)]
                np.testing.assert_allclose(gradient, np.subtract(*ends) / 2e-6, rtol=1e-4, atol=1e-5)


def test_a_factor_that_is_not_triangular_is_refused():
    with isolated(1):
        density = density_of(logistic, CASES["logistic"].data)
        with pytest.raises(InputError, match="scale: expected a lower triangular factor"):
            sample_from(
                density,
                np.zeros(3),
                np.ones((3, 3)),
                np.zeros((5, 3)),
                num_warmup=5,
                num_samples=5,
                num_chains=1,
                seed=1,
            )


@pytest.mark.parametrize("full_rank", [True, False])
def test_whitening_is_undone_by_the_transform(full_rank):
    rng = np.random.default_rng(0)
    q = Gaussian(rng.standard_normal(4), np.tril(rng.uniform(1, 2, (4, 4))) if full_rank else rng.uniform(1, 2, 4))
    z = rng.standard_normal((5, 4))
    np.testing.assert_allclose(q.whiten(q.transform(z)), z, atol=1e-12)


def test_a_correlation_matrix_from_many_draws_and_from_few():
    rng = np.random.default_rng(0)
    factor = np.linalg.cholesky(0.001 * np.eye(8) + 0.999)
    z = rng.standard_normal((4000, 8)) @ factor.T
    whitened = np.linalg.solve(factor, _correlation_factor(z))
    assert np.linalg.cond(whitened) < 1.3
    for num in (3, 8, 40):  # fewer than the matrix has rows, too
        made = _correlation_factor(z[:num])
        assert np.isfinite(made).all()
        assert np.linalg.cond(made) < np.inf
    same = _correlation_factor(np.repeat(z[:, :1], 3, axis=1))  # one coordinate three times, yet a factor
    assert np.linalg.eigvalsh(same @ same.T)[0] > 0


# --- What can be given ------------------------------------------------------------------------------------------------

FITS = {
    "laplace": Laplace(num_samples=100),
    "svi": SVI(guide="multivariate_normal", num_steps=200, num_samples=100),
    "nuts": NUTS(num_warmup=200, num_samples=200, num_chains=2),
}


@pytest.mark.parametrize("name", FITS)
@pytest.mark.parametrize("adaptation", ["diag", "low_rank"])
def test_fits_of_every_kind(name, adaptation):
    data = CASES["logistic"].data
    init = fit(logistic, data, FITS[name], seed=1)
    result = fit(logistic, data, replace(SHORT, num_samples=300, init=init, adaptation=adaptation), seed=1)
    plain = fit(logistic, data, NUTS(num_samples=500), seed=1).draws["coef"]
    assert_moments(result.draws["coef"], plain.mean((0, 1)), plain.std((0, 1)), bias=0.15)


def by_branches(y):
    """Python control flow on a latent value, which cannot be recorded, though the density is smooth."""
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    mean = x if x > 0 else 1.0 * x
    pyro.sample("y", dist.Normal(mean, 1.0), obs=torch.tensor(y))


def test_eager_pyro_takes_it_too():
    init = fit(by_branches, {"y": 1.0}, Laplace(num_samples=100), seed=1)
    result = fit(by_branches, {"y": 1.0}, NUTS(init=init, num_warmup=50, num_samples=200, num_chains=2), seed=1)
    assert result.state["backend"] == "nutpie, whitened eager density"
    assert "could not be recorded" in result.notes[0]
    assert_moments(result.draws["x"], 0.5, np.sqrt(0.5))


def test_chains_start_in_all_modes_of_the_fit():
    """Two exchangeable components; the draws of the fit are in both orders."""
    data = CASES["mixture_by_hand"].data
    one = fit(mixture_by_hand, data, AutoVI(num_samples=100, num_starts=1), seed=1)
    points = one.state["unconstrained"]
    swapped = points * [-1, 1, 1]
    swapped[..., 1:] = points[..., :0:-1]
    state = {k: v for k, v in one.state.items() if k not in ("loc", "scale")}
    both = replace(one, state={**state, "unconstrained": np.concatenate([points, swapped])})
    result = fit(mixture_by_hand, data, NUTS(init=both, num_warmup=200, num_samples=100, num_chains=8), seed=1)
    orders = {bool(order) for order in np.diff(result.draws["loc"].mean(1))[:, 0] > 0}
    assert orders == {True, False}


def wide(y):
    with pyro.plate("row", len(y)):
        x = pyro.sample("x", dist.Normal(0.0, 100.0))
        pyro.sample("y", dist.Normal(x, 1.0), obs=y)


def test_scales_only_in_very_many_dimensions():
    data = {"y": torch.arange(300.0)}
    auto = fit(wide, data, AutoVI(num_starts=1, num_samples=100), seed=1)
    draws = replace(auto, state={k: v for k, v in auto.state.items() if k not in ("loc", "scale")})
    for init in (auto, draws):
        result = fit(wide, data, NUTS(init=init, num_warmup=100, num_samples=200, num_chains=2), seed=1)
        variance = 1 / (1 + 1e-4)
        some = slice(0, 300, 10)  # of 600 comparisons one would be past 4.5 errors, estimated from 400 draws
        assert_moments(result.draws["x"][..., some], variance * np.arange(300.0)[some], np.full(30, np.sqrt(variance)))


def test_a_fit_from_a_file_without_its_model(schools_fit, tmp_path):
    loaded = load_fit(schools_fit.save(tmp_path / "fit.pt"))
    one, other = (fit(schools, SCHOOLS, replace(SHORT, init=f), seed=1) for f in (schools_fit, loaded))
    np.testing.assert_array_equal(one.draws["mu"], other.draws["mu"])


def test_the_engine_is_told_in_short_and_saved(schools_fit, tmp_path):
    engine = replace(SHORT, init=schools_fit)
    assert copy.deepcopy(engine) is engine  # a fit copies engines, and should not copy fits
    text = "NUTS(num_warmup=100, num_samples=50, num_chains=2, init=<fit by AutoVI(num_samples=500), seed 1>)"
    assert repr(engine) == text
    result = fit(schools, SCHOOLS, engine, seed=1)
    loaded = load_fit(result.save(tmp_path / "fit.pt"), model=schools)
    assert repr(loaded.engine) == text
    assert loaded.engine.method == "mcmc"


def no_density_nearby(y):
    """Zero beyond 3, so that draws of a fit to other data are impossible."""
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.factor("edge", torch.where(x < y, 0.0, -torch.inf))


REFUSED = {
    "no fit": (lambda: NUTS(init="auto"), "init: expected a Fit.*got 'auto'"),
    "no unconstrained draws": (
        lambda: NUTS(init=from_draws({"mu": np.zeros((2, 5))})),
        "init: the fit by Given.* has no draws on the unconstrained space",
    ),
    "another model": (
        lambda: fit(schools, SCHOOLS, NUTS(init=fit(logistic, CASES["logistic"].data, Laplace()))),
        r"init: the fit is of another model.*3 coordinates \(coef\[0\].*10 coordinates \(mu",
    ),
    "data of another size": (
        lambda: fit(schools, {k: v[:5] for k, v in SCHOOLS.items()}, NUTS(init=fit(schools, SCHOOLS, AutoVI()))),
        "or of data of another size.*10 coordinates.*7 coordinates",
    ),
    "a point": (
        lambda: fit(logistic, CASES["logistic"].data, NUTS(init=fit(logistic, CASES["logistic"].data, MAP()))),
        r"init: the draws of MAP\(\) have no spread in coef\[0\]",
    ),
    "other data": (
        lambda: fit(
            no_density_nearby,
            {"y": -1.5},
            NUTS(init=moved(fit(regression_of_one, {"y": 3.0}, Laplace()), shift=9, shrink=1)),
        ),
        "init: the density is not finite at any of the fit's draws",
    ),
}


def regression_of_one(y):
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(x, 1.0), obs=torch.tensor(y))


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_started_from_is_refused(case):
    call, message = REFUSED[case]
    with pytest.raises(InputError, match=message):
        call()
