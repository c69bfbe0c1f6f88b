from dataclasses import FrozenInstanceError, replace

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

from inference import NUTS, AutoVI, InputError, fit
from inference.density import Density
from ppl_models import MODELS
from tests.accuracy import assert_moments
from tests.zoo import CASES, ENGINES, SCHOOLS, mixture_by_hand, schools

CONTRACT_MODELS = ["schools", "mixture_tutorial", "correlated"]
# A correlation matrix whose Cholesky factor may collapse, and the values that it explains with it.
WITHOUT_MAXIMUM = {("correlated", "laplace")}
NUTS_STATS = {
    "diverging": np.bool_,
    "energy": np.float64,
    "lp": np.float64,
    "tree_depth": np.int64,
    "reached_max_treedepth": np.bool_,
    "n_steps": np.int64,
    "step_size": np.float64,
    "acceptance_rate": np.float64,
}
VI_STATS = dict.fromkeys(("lp", "log_q", "log_weight"), np.float64)
RESAMPLED_STATS = {"lp": np.float64}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("model", CONTRACT_MODELS)
def test_every_engine_keeps_the_contract(model, engine):
    case = CASES[model]
    if (model, engine) in WITHOUT_MAXIMUM:
        with pytest.raises(InputError, match="no maximum"):
            fit(case.model, case.data, ENGINES[engine], seed=1)
        return
    result = fit(case.model, case.data, ENGINES[engine], seed=1)
    with result.restored() as sites:
        shapes = {site.name: site.shape for group in sites.groups()[:-1] for site in group.values()}
    assert {name: value.shape for name, value in result.draws.items()} == {n: (2, 60, *s) for n, s in shapes.items()}
    assert all(np.isfinite(value).all() for value in result.draws.values())
    plain = RESAMPLED_STATS if "importance" in result.state else VI_STATS
    expected = NUTS_STATS if result.method == "mcmc" else plain
    assert {name: value.dtype.type for name, value in result.stats.items()} == expected
    assert all(value.shape == (2, 60) for value in result.stats.values())
    assert all(np.isfinite(value).all() for value in result.stats.values())
    assert result.state["unconstrained"].shape[:2] == (2, 60)
    assert result.num_gradients > 0
    assert {"setup", "sampling"} <= set(result.seconds)
    assert bool(result.history) == (result.engine.method == "vi")
    assert result.status.message.endswith(".")


@pytest.mark.parametrize("engine", ENGINES)
def test_lp_is_the_log_density_at_the_draws(engine):
    result = fit(schools, SCHOOLS, ENGINES[engine], seed=1)
    with result.restored() as sites:
        density = Density(sites)
        expected = density.log_density(result.state["unconstrained"].reshape(-1, density.dim))
    np.testing.assert_allclose(result.stats["lp"].ravel(), expected, rtol=1e-8)


@pytest.mark.parametrize("engine", ENGINES)
def test_same_seed_same_numbers(engine):
    first, again, other = (fit(schools, SCHOOLS, ENGINES[engine], seed=s) for s in (4, 4, 5))
    for name in first.draws:
        np.testing.assert_array_equal(first.draws[name], again.draws[name])
    assert not np.array_equal(first.draws["mu"], other.draws["mu"])
    assert not np.array_equal(first.draws["mu"][0], first.draws["mu"][1])  # chains differ


EXACT = {
    "nuts": NUTS(num_warmup=300, num_samples=600, num_chains=2),
    "nuts_low_rank": NUTS(num_warmup=200, num_samples=300, num_chains=2, adaptation="low_rank"),
    "auto": AutoVI(num_samples=4000, num_chains=2),
}
# The Gaussian family misses these shapes (a beta on the logit scale, a log variance) by a known small amount.
GAUSSIAN_BIAS = {"normal_mean": 0.0, "beta_binomial": 0.02, "bayesian_linear_regression": 0.02}
GAUSSIAN_BIAS |= {"probabilistic_pca": 0.0, "factor_analysis": 0.0}


@pytest.mark.parametrize("engine", EXACT)
@pytest.mark.parametrize("name", [name for name, model in MODELS.items() if model.exact])
def test_conjugate_answers(name, engine):
    model = MODELS[name]
    data = model.data()
    exact = model.exact(data)
    result = fit(model, data, EXACT[engine], seed=2)
    bias = GAUSSIAN_BIAS[name] if engine == "auto" else 0.0
    assert set(exact.mean) <= set(result.draws)
    for site in exact.mean:
        assert_moments(result.draws[site], exact.mean[site], exact.sd[site], bias=bias)
    if engine == "auto":
        bound, error = result.state["elbo"], result.state["elbo_se"]
        assert bound < exact.log_evidence + 4.5 * error + 1e-9
        assert bound > exact.log_evidence - 0.05


def test_the_check_of_moments_can_fail():
    draws = np.random.default_rng(0).normal(size=(2, 2000))
    assert_moments(draws, 0.0, 1.0)
    for mean, sd in ((0.15, 1.0), (0.0, 1.12), (0.0, 0.9)):
        with pytest.raises(AssertionError):
            assert_moments(draws, mean, sd)
    with pytest.raises(AssertionError, match="too few effective draws"):
        assert_moments(np.cumsum(draws, axis=1), 0.0, 1.0)


def test_pyros_kernel_agrees_with_nutpie():
    ours = fit(schools, SCHOOLS, NUTS(num_warmup=200, num_samples=800, num_chains=2), seed=1)
    pyros = fit(schools, SCHOOLS, NUTS(num_warmup=100, num_samples=150, num_chains=2, backend="pyro"), seed=1)
    for name in ("mu", "tau"):
        truth = ours.draws[name]
        assert_moments(pyros.draws[name], truth.mean(), truth.std(), bias=0.05)
    for name in ("energy", "lp"):
        assert abs(ours.stats[name].mean() - pyros.stats[name].mean()) < 1.0
    assert 0.6 < pyros.stats["acceptance_rate"].mean() < 0.99
    assert np.all(2.0 ** pyros.stats["tree_depth"] > pyros.stats["n_steps"])


def test_enumerated_and_hand_marginalised_mixture_have_one_posterior():
    engine = NUTS(num_warmup=100, num_samples=100, num_chains=1)
    summed = fit(CASES["mixture_tutorial"].model, CASES["mixture_tutorial"].data, engine, seed=1)
    by_hand = fit(mixture_by_hand, CASES["mixture_tutorial"].data, engine, seed=1)
    np.testing.assert_allclose(summed.draws["loc"], by_hand.draws["loc"], rtol=1e-6)
    assert "assignment" in summed.draws
    assert "assignment" not in by_hand.draws


def test_an_untraceable_model_runs_and_says_why():
    case = CASES["branching"]
    result = fit(case.model, case.data, NUTS(num_warmup=50, num_samples=20, num_chains=1), seed=1)
    assert "could not be recorded" in result.notes[0]
    assert "eager" in result.state["backend"]


def test_warmup_is_kept_on_request():
    engine = NUTS(num_warmup=50, num_samples=20, num_chains=2, save_warmup=True)
    result = fit(schools, SCHOOLS, engine, seed=1)
    warmup = result.state["warmup"]
    assert warmup["unconstrained"].shape == (2, 50, 10)
    assert warmup["stats"]["n_steps"].shape == (2, 50)
    without = fit(schools, SCHOOLS, replace(engine, save_warmup=False), seed=1)
    assert "warmup" not in without.state
    np.testing.assert_array_equal(result.draws["mu"], without.draws["mu"])


@pytest.mark.parametrize("backend", ["native", "python", "pyro"])
def test_adapted_step_size_and_mass_matrix_are_reported(backend):
    def model(scale):
        pyro.sample("x", dist.Normal(torch.zeros(3), scale).to_event(1))

    scale = np.array([0.1, 1.0, 10.0])
    num_warmup = 200 if backend == "pyro" else 500
    engine = NUTS(num_warmup=num_warmup, num_samples=50, num_chains=2, backend=backend)
    adapted = fit(model, {"scale": scale}, engine, seed=1).state["adapted"]
    assert adapted["step_size"].shape == (2,)
    assert adapted["inverse_mass"].shape == (2, 3)
    assert np.all((adapted["step_size"] > 0.3) & (adapted["step_size"] < 2.0))  # in units of the scales
    # nutpie's estimate is exact for Gaussians; Pyro's is a variance of a hundred draws
    ratio = adapted["inverse_mass"] / scale**2
    np.testing.assert_allclose(np.log(ratio), 0.0, atol=1.0 if backend == "pyro" else 0.1)


def test_engines_are_frozen_and_keyword_only():
    for engine in ENGINES.values():
        with pytest.raises(FrozenInstanceError):
            engine.num_samples = 3
        with pytest.raises(TypeError):
            type(engine)(100)


def test_integer_data_are_left_integers():
    def model(group, y):
        loc = pyro.sample("loc", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(loc[group], 1.0), obs=y)

    result = fit(model, {"group": [0, 1, 1], "y": [0.1, 2.0, 3.0]}, ENGINES["auto"], seed=1)
    assert result.draws["loc"].shape == (2, 60, 2)


def test_something_else_than_an_engine_is_refused():
    with pytest.raises(InputError, match="engine: expected NUTS"):
        fit(schools, SCHOOLS, "nuts")
