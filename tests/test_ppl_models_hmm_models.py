"""The hidden Markov models: their chains by hand, EM's optimum, long series in native code, labels, bad input."""

import itertools
import json
import logging
import sys

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

from inference import isolated
from inference.density import Density
from inference.native.compiler import find_compiler
from inference.sites import read_sites
from inference.validate import prepare_data
from ppl_models import MODELS, sequences
from ppl_models.hidden_markov import HiddenMarkov
from ppl_models.simulation import own_stream

pytestmark = pytest.mark.usefixtures("direct_pyro")


def chain_of(name, truth, data):
    trace = poutine.trace(poutine.condition(MODELS[name].model, data=truth)).get_trace(**data)
    return trace.nodes["x"]["fn"]


def over_all_paths(first, transition, log_density, steps):
    """Sum over paths of a chain given by functions of plain states."""
    states = range(len(first))
    total = []
    for path in itertools.product(states, repeat=steps):
        term = first[path[0]] + sum(log_density(t, k) for t, k in enumerate(path))
        total.append(term + sum(transition(t + 1, i, j) for t, (i, j) in enumerate(itertools.pairwise(path))))
    return torch.logsumexp(torch.stack(total), 0)


def normal(x, mean, sd):
    return dist.Normal(mean, sd).log_prob(x)


def left_to_right(truth, data):
    stay = torch.cat([truth["stay"], torch.ones(1)])
    return (
        torch.tensor([0.0, -torch.inf, -torch.inf]),
        lambda t, i, j: stay[i].log() if i == j else (1 - stay[i]).log() if j == i + 1 else torch.tensor(-torch.inf),
        lambda t, k: normal(data["x"][t], truth["loc"][k], truth["scale"][k]),
    )


def moved_by_covariates(truth, data):
    def log_transition(t, i, j):
        others = [k for k in range(3) if k != i]
        odds = {k: truth["move"][i, n] + truth["move_coef"][i, n] @ data["z"][t] for n, k in enumerate(others)}
        odds[i] = torch.tensor(0.0)
        return odds[j] - torch.logsumexp(torch.stack(list(odds.values())), 0)

    return (
        truth["initial"].log(),
        log_transition,
        lambda t, k: normal(data["x"][t], truth["loc"][k], truth["scale"][k]),
    )


def regression(truth, data):
    return (
        truth["initial"].log(),
        lambda t, i, j: truth["transition"][i, j].log(),
        lambda t, k: normal(data["x"][t], truth["intercept"][k] + truth["coef"][k] @ data["z"][t], truth["scale"][k]),
    )


BY_HAND = {
    "left_to_right_hmm": (left_to_right, {}),
    "transition_covariate_hmm": (moved_by_covariates, {"num_covariates": 2}),
    "regression_hmm": (regression, {"num_covariates": 2}),
}


@pytest.mark.parametrize("name", BY_HAND)
@pytest.mark.parametrize("steps", [1, 5])
def test_structured_chains_equal_the_sum_over_all_paths(name, steps):
    story, sizes = BY_HAND[name]
    truth, data = MODELS[name].simulate(2, num_steps=steps, K=3, **sizes)
    expected = over_all_paths(*story(truth, data), steps)
    chain = chain_of(name, truth, data)
    assert chain.log_prob(data["x"]).item() == pytest.approx(expected.item(), rel=1e-10)
    if steps > 1:  # control
        other = truth | ({"stay": 1 - truth["stay"]} if "stay" in truth else {})
        turned = over_all_paths(*story(other, data | {"x": data["x"].flip(0)}), steps)
        assert abs(turned - expected) > 1e-3


def test_a_factorial_chain_is_a_sum_over_the_paths_of_each_chain():
    truth, data = MODELS["factorial_hmm"].simulate(3, num_steps=3, M=2, K=2)
    level = torch.cat([torch.zeros(2, 1), truth["step"].cumsum(-1)], -1)
    terms = []
    for paths in itertools.product(itertools.product(range(2), repeat=3), repeat=2):
        term = torch.tensor(0.0)
        for m, path in enumerate(paths):
            term = term + truth["initial"][m, path[0]].log()
            term = term + sum(truth["transition"][m, i, j].log() for i, j in itertools.pairwise(path))
        for t in range(3):
            mean = truth["base"] + sum(level[m, path[t]] for m, path in enumerate(paths))
            term = term + normal(data["x"][t], mean, truth["scale"])
        terms.append(term)
    expected = torch.logsumexp(torch.stack(terms), 0)
    chain = chain_of("factorial_hmm", truth, data)
    assert chain.num_states == 4
    assert chain.log_prob(data["x"]).item() == pytest.approx(expected.item(), rel=1e-12)
    swapped = truth | {"transition": truth["transition"].flip(0)}  # control: one chain's moves with the other's levels
    assert abs(chain_of("factorial_hmm", swapped, data).log_prob(data["x"]) - expected) > 1e-6


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("gaussian_hmm_diagonal", {}),
        ("gaussian_hmm_full", {}),
        ("categorical_hmm", {"C": 4}),
        ("bernoulli_hmm", {}),
        ("factorial_hmm", {"M": 3}),
    ],
)
def test_identify_does_not_depend_on_the_labels(name, sizes):
    """Renaming states (chains, for the factorial model) changes neither the density nor what `identify` gives."""
    model = MODELS[name]
    truth, data = model.simulate(4, num_steps=6, K=3, **sizes)
    order = torch.tensor([2, 0, 1])
    free = {n: v for n, v in truth.items() if n not in ("base", "scale") or name != "factorial_hmm"}
    renamed = truth | {n: v[order] for n, v in free.items()}
    if name != "factorial_hmm":
        renamed["transition"] = truth["transition"][order][:, order]
    densities = [chain_of(name, values, data).log_prob(data["x"]) for values in (truth, renamed)]
    torch.testing.assert_close(*densities)
    first, second = (model.identify({n: v.numpy()[None, None] for n, v in d.items()}) for d in (truth, renamed))
    assert set(first) == set(truth)
    for site in first:
        np.testing.assert_array_equal(first[site], second[site])
    assert any(not torch.equal(truth[n], renamed[n]) for n in free)  # control


# EM and native code ------------------------------------------------------------------------------------------------


def flat_poisson(x, K):
    """The Poisson chain with flat priors on probabilities and rates."""
    import pyro

    initial = pyro.sample("initial", dist.Dirichlet(torch.ones(K)))
    with pyro.plate("state", K):
        transition = pyro.sample("transition", dist.Dirichlet(torch.ones(K)))
        rate = pyro.sample("rate", dist.ImproperUniform(dist.constraints.positive, (), ()))
    pyro.sample("x", HiddenMarkov(initial.log(), transition.log(), dist.Poisson(rate.unsqueeze(0)), len(x)), obs=x)


def test_the_point_of_highest_likelihood_is_where_em_ends():
    from hmmlearn.hmm import PoissonHMM
    from scipy.optimize import minimize

    x = sequences.earthquakes()
    logging.getLogger("hmmlearn").setLevel(logging.ERROR)
    peers = [PoissonHMM(2, n_iter=500, tol=1e-9, random_state=i, init_params="st") for i in range(2)]
    best = -np.inf
    for peer in peers:
        peer.lambdas_ = np.array([[15.0], [26.0]])
        best = max(best, peer.fit(x.numpy().astype(int)[:, None]).score(x.numpy().astype(int)[:, None]))
    with isolated(seed=1):
        torch.set_default_dtype(torch.float64)
        density = Density(read_sites(flat_poisson, prepare_data(flat_poisson, {"x": x, "K": 2})), jacobian=False)

        def loss(point):
            value, gradient = density.value_and_grad(point)
            return -value, -np.asarray(gradient)

        start = density.unconstrain(
            {
                "initial": np.full((1, 2), 0.5),
                "transition": np.array([[[0.9, 0.1], [0.1, 0.9]]]),
                "rate": np.array([[10.0, 30.0]]),
            }
        )[0][0]
        point = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 500, "ftol": 1e-13}).x
        found = {n: torch.as_tensor(v[0]) for n, v in density.constrain(point[None]).items()}
        reached = HiddenMarkov(
            found["initial"].log(), found["transition"].log(), dist.Poisson(found["rate"].unsqueeze(0)), len(x)
        ).log_prob(x)
    assert reached.item() == pytest.approx(best, abs=1e-3)
    np.testing.assert_allclose(np.sort(found["rate"]), np.sort(peers[0].lambdas_.ravel()), rtol=1e-3)
    one = dist.Poisson(x.mean()).log_prob(x).sum()  # control: a single rate (Zucchini & MacDonald: -391.9189)
    assert one.item() == pytest.approx(-391.9189, abs=1e-4)
    assert reached > one + 40


@pytest.mark.parametrize("name", ["gaussian_hmm", "left_to_right_hmm", "transition_covariate_hmm", "local_level"])
def test_recorded_densities_equal_pyro_and_do_not_grow_with_the_series(name):
    """`Density` compares a recording with Pyro itself and falls back, with a reason, where they differ."""
    model, sizes = MODELS[name].model, []
    for steps in (40, 400):
        data = MODELS[name].simulate(1, num_steps=steps).data
        with isolated(seed=1):
            torch.set_default_dtype(torch.float64)
            density = Density(read_sites(model, prepare_data(model, data)))
            assert density.backend == "graph", density.reason
            sizes.append(len(density.graph.graph.nodes))
    assert sizes[1] - sizes[0] < (10 if name != "local_level" else 2000)  # Kalman: as the logarithm of the steps


@pytest.mark.skipif(find_compiler() is None, reason="there is no C++ compiler here")
def test_a_long_series_in_native_code_and_without():
    """100 000 steps: the same number from native code, the fallback, and Pyro; all in bounded memory."""
    data = MODELS["gaussian_hmm"].simulate(1, num_steps=100_000, K=2).data
    model = MODELS["gaussian_hmm"].model
    with isolated(seed=1):
        torch.set_default_dtype(torch.float64)
        density = Density(read_sites(model, prepare_data(model, data)))
        point = np.linspace(-0.5, 0.5, density.dim)
        value, gradient = density.value_and_grad(point)
        density.compile()
        assert density.backend == "native", density.reason
        native_value, native_gradient = density.value_and_grad(point)
    assert native_value == pytest.approx(value, rel=1e-11)
    np.testing.assert_allclose(native_gradient, gradient, rtol=1e-7, atol=1e-5)


# Priors and data ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gaussian_hmm", "gaussian_hmm_full", "autoregressive_hmm", "local_level"])
def test_priors_follow_the_units_of_the_data(name):
    """In other units and from another zero the likelihood of a location moved along is the same, but for the units."""
    model = MODELS[name].model
    data = MODELS[name].simulate(1, num_steps=12).data
    data = {n: v for n, v in data.items() if n not in ("centre", "spread")}

    def latents(data):
        with own_stream(9):
            trace = poutine.trace(model).get_trace(**data)
        return trace.nodes["scale" if "scale" in trace.nodes else "level_sd"]["value"], trace

    scale, trace = latents(data)
    other, moved = latents(data | {"x": 10 * data["x"] + 100})
    torch.testing.assert_close(other, 10 * scale)
    size = data["x"].numel()
    difference = moved.nodes["x"]["fn"].log_prob(10 * data["x"] + 100) - trace.nodes["x"]["fn"].log_prob(data["x"])
    torch.testing.assert_close(difference, torch.tensor(-size * np.log(10.0)), rtol=1e-8, atol=1e-8)


def test_padding_and_missing_values_do_not_touch_the_priors():
    model = MODELS["gaussian_hmm"].model
    x = torch.randn(2, 9, generator=torch.Generator().manual_seed(1)) + 3
    lengths = torch.tensor([9, 4])
    padded = x.clone()
    padded[1, 4:] = 1e6
    gone = x.clone()
    gone[1, 4:] = torch.nan
    values = []
    for given in ({"x": padded, "lengths": lengths}, {"x": gone, "lengths": lengths}, {"x": gone}):
        with own_stream(2):
            values.append(poutine.trace(model).get_trace(**given, K=2).log_prob_sum())
    torch.testing.assert_close(values[0], values[1])
    torch.testing.assert_close(values[0], values[2])  # a chain that nobody sees adds nothing
    with own_stream(2):
        assert abs(poutine.trace(model).get_trace(x=padded, K=2).log_prob_sum() - values[0]) > 1  # control


X = torch.randn(6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
SEVERAL = X.reshape(2, 3)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        (
            "gaussian_hmm",
            {"x": X[:0]},
            r"x: expected shape \(steps\) or \(sequences, steps\), none of them 0, got \(0,\)",
        ),
        ("gaussian_hmm_full", {"x": X}, r"x: expected shape \(steps, features\) or \(sequences, steps, features\)"),
        ("gaussian_hmm", {"x": X, "K": 0}, "K: expected a whole number of at least 1, got 0"),
        ("left_to_right_hmm", {"x": X, "K": 1}, "K: expected a whole number of at least 2, got 1"),
        ("gaussian_hmm", {"x": X, "lengths": torch.tensor([6])}, "lengths: expected with several sequences"),
        ("gaussian_hmm", {"x": SEVERAL, "lengths": torch.tensor([3])}, "lengths: expected one for each of 2 sequences"),
        (
            "gaussian_hmm",
            {"x": SEVERAL, "lengths": torch.tensor([3, 4])},
            "whole numbers from 1 to .* 3, got 4 for seq",
        ),
        ("gaussian_hmm", {"x": SEVERAL, "lengths": torch.tensor([0, 3])}, "got 0 for sequence 0; drop empty sequences"),
        ("gaussian_hmm", {"x": SEVERAL, "lengths": torch.tensor([2.5, 3])}, "lengths: expected whole numbers"),
        ("categorical_hmm", {"x": X.abs().round(), "C": 0}, "C: expected a whole number of at least 1, got 0"),
        ("categorical_hmm", {"x": X * 0 + 7, "C": 4}, "x: expected whole numbers from 0 to 3, got 7 at index 0"),
        ("poisson_hmm", {"x": -(X**2).ceil()}, "x: expected whole numbers from 0, got -"),
        ("bernoulli_hmm", {"x": SEVERAL}, "x: expected whole numbers from 0 to 1, got"),
        ("autoregressive_hmm", {"x": X, "order": 0}, "order: expected a whole number of at least 1, got 0"),
        ("autoregressive_hmm", {"x": X.masked_fill(X > 1, torch.nan)}, "entries are NaN, but each value depends"),
        ("sticky_hmm", {"x": X, "stickiness": -1.0}, "stickiness: expected a number of at least 0, got -1.0"),
        ("regression_hmm", {"x": X, "z": X}, r"z: expected shape \(steps, covariates\)"),
        ("transition_covariate_hmm", {"x": X, "z": SEVERAL}, "z: expected shape"),
        ("factorial_hmm", {"x": X, "M": 11}, "M: 11 chains of 2 states have 2048 joint states; expected at most 1024"),
        ("local_level", {"x": SEVERAL}, "x: expected one series"),
        ("local_linear_trend", {"x": X[:1]}, "x: expected two steps at least"),
    ],
)
def test_bad_input_is_named(name, data, message):
    with own_stream(1), pytest.raises(ValueError, match=message):
        poutine.trace(MODELS[name].model).get_trace(**data).compute_log_prob()


@pytest.mark.parametrize("name", ["gaussian_hmm", "sticky_hmm", "autoregressive_hmm", "local_level"])
def test_constant_data_and_more_states_than_steps_have_an_answer(name):
    sizes = {} if name == "local_level" else {"K": 5}
    with own_stream(1):
        for x in (torch.full((3,), 2.0), X[:1]):
            assert poutine.trace(MODELS[name].model).get_trace(x=x, **sizes).log_prob_sum().isfinite()


def test_chorales_are_read(tmp_path):
    path = tmp_path / "chorales.json"
    path.write_text(json.dumps({"train": [[[21, 108], []], [[60]]], "test": [[[20]]]}))
    x, lengths = sequences.jsb_chorales(path, "train")
    assert x.shape == (2, 2, 88)
    assert lengths.tolist() == [2, 1]
    assert torch.nonzero(x).tolist() == [[0, 0, 0], [0, 0, 87], [1, 0, 39]]
    with pytest.raises(ValueError, match="part: expected one of train, test, got 'valid'"):
        sequences.jsb_chorales(path, "valid")
    with pytest.raises(ValueError, match=r"sequence 0, step 0 has a pitch outside 21 to 108: \[20\]"):
        sequences.jsb_chorales(path, "test")


def test_letters_are_those_of_the_address():
    x, categories = sequences.gettysburg_letters()
    text = "".join(categories[int(c)] for c in x)
    assert text.startswith("four score and seven years ago our fathers brought forth")
    assert text.endswith("shall not perish from the earth")


def test_a_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "statsmodels", None)
    with pytest.raises(ModuleNotFoundError, match=r"'nile' come with statsmodels.*ppl-verdict\[examples\]"):
        MODELS["local_level"].data()
