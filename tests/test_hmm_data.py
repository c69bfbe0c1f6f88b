"""Hidden Markov models through `fit`: missing values, one state, point estimates at an edge."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

from inference import MAP, AutoVI, InputError, fit, isolated, predict, step_log_densities
from inference.density import Density
from inference.native.compiler import find_compiler
from inference.sites import read_sites
from inference.validate import prepare_data
from ppl_models import MODELS, sequences
from ppl_models.hidden_markov import HiddenMarkov

QUAKES = sequences.earthquakes().numpy()


def coin(*, x, rate):
    """A chain of two states with known parameters but one, on which nothing of the states depends."""
    pyro.sample("nothing", dist.Normal(0.0, 1.0))
    transition = torch.tensor([[0.9, 0.1], [0.3, 0.7]]).log()
    emission = dist.Poisson(rate.unsqueeze(-2))
    pyro.sample("x", HiddenMarkov(torch.tensor([0.5, 0.5]).log(), transition, emission, len(x)), obs=x)


def test_missing_values_go_through_fit_where_the_model_says_so():
    with pytest.raises(InputError, match=r"data\['x'\]: 1 of 3 values are NaN"):
        fit(coin, {"x": [1.0, np.nan, 9.0], "rate": [1.0, 9.0]}, AutoVI(), seed=1)

    def knowing(*, x, rate):
        coin(x=x, rate=rate)

    knowing.may_miss = "x"
    data = {"x": [1.0, np.nan, 9.0], "rate": [1.0, 9.0]}
    result = fit(knowing, data, AutoVI(num_samples=100), seed=1)
    states = predict(result)["x_states"].probabilities
    # All paths by hand; the second year is seen by its neighbours only.
    start, move = np.array([0.5, 0.5]), np.array([[0.9, 0.1], [0.3, 0.7]])
    seen = np.exp(dist.Poisson(torch.tensor([1.0, 9.0])).log_prob(torch.tensor([[1.0], [9.0]])).numpy())
    paths = start[:, None, None] * seen[0][:, None, None] * move[:, :, None] * move[None] * seen[1]
    by_hand = paths.sum((0, 2)) / paths.sum()
    np.testing.assert_allclose(states[1], by_hand, atol=1e-5)
    again = predict(result, {"x": [1.0, 1.0, np.nan], "rate": [1.0, 9.0]})["x_states"].probabilities
    assert again[1, 0] > states[1, 0] + 0.1  # control: a value there would have been seen
    with pytest.raises(InputError, match=r"data\['rate'\]"):  # control: only the argument that is named
        fit(knowing, {"x": [1.0, 2.0], "rate": [1.0, np.nan]}, AutoVI(), seed=1)


@pytest.mark.parametrize("name", ["gaussian_hmm", "gaussian_hmm_full", "bernoulli_hmm", "local_level"])
def test_missing_values_in_models_of_the_package(name):
    model = MODELS[name]
    data = {key: value[:12].clone() if key == "x" else value for key, value in model.data().items()}
    data["x"][3:5] = torch.nan
    data["x"].reshape(-1)[0] = torch.nan
    result = fit(model, data, AutoVI(num_samples=50, num_chains=2), seed=1)
    assert all(np.isfinite(values).all() for values in result.draws.values())
    if name != "local_level":
        steps = step_log_densities(result)["x"].to_numpy()
        np.testing.assert_allclose(steps[..., 3:5], 0.0, atol=1e-9)
        assert (steps[..., 1:3] != 0).all()


def test_every_model_that_takes_nan_says_so():
    """A model that names an argument has a finite density where some of it is NaN; the others refuse NaN."""
    for name in (
        "poisson_hmm",
        "categorical_hmm",
        "sticky_hmm",
        "left_to_right_hmm",
        "regression_hmm",
        "factorial_hmm",
    ):
        model = MODELS[name]
        data = {key: v.clone() if isinstance(v, torch.Tensor) else v for key, v in model.data().items()}
        data["x"][2] = torch.nan
        with isolated(seed=1, dtype=torch.float64):
            prepared = prepare_data(model.model, data, may_miss=model.may_miss)
            density = Density(read_sites(model.model, prepared))
            value, gradient = density.value_and_grad(density.starts(1, generator=np.random.default_rng(1))[0])
        assert np.isfinite(value), name
        assert np.isfinite(gradient).all(), name
    for name in ("autoregressive_hmm", "stochastic_volatility"):
        data = MODELS[name].data()
        x = data["x"].clone()
        x[2] = torch.nan
        with pytest.raises(InputError, match=r"data\['x'\]: 1 of"):
            fit(MODELS[name], {**data, "x": x}, AutoVI(), seed=1)


@pytest.mark.skipif(find_compiler() is None, reason="there is no C++ compiler here")
def test_one_state_runs_in_native_code():
    result = fit(MODELS["poisson_hmm"], {"x": QUAKES[:20], "K": 1}, AutoVI(num_samples=50), seed=1)
    assert result.notes == ()
    assert "native" in result.state["backend"]


def test_starts_that_arrive_at_an_edge_are_one_maximum():
    """The likelihood of one series is highest with all of `initial` on one state: far out when unconstrained."""
    result = fit(MODELS["poisson_hmm"], {"x": QUAKES, "K": 2}, MAP(num_samples=4, num_chains=1, num_starts=4), seed=1)
    assert result.status.ok, result.status.message
    assert result.draws["initial"][0, 0].max() > 0.999

    def two_places(*, x):
        pyro.sample("x", dist.Normal(pyro.sample("a", dist.Normal(0.0, 3.0)).abs(), 1.0), obs=x)

    control = fit(two_places, {"x": torch.tensor(4.0)}, MAP(num_samples=4, num_chains=1), seed=1)
    assert not control.status.ok
    assert "another maximum of the same height" in control.status.message
