"""Probabilities and most probable values of discrete sites, at the data of a fit and at new data."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from pyro.ops.indexing import Vindex
from scipy.special import logsumexp
from scipy.stats import norm

from inference import MAP, SVI, InputError, Laplace, fit, forecast, from_draws, load_fit, log_predictive, predict
from ppl_models import MODELS
from tests.chains import NormalChain, by_enumeration, chain_model, loop_model, sequences_model, series
from tests.zoo import CASES, TWO_CLUSTERS, mixture_by_hand, mixture_tutorial, schools

SMALL = Laplace(num_samples=60, num_chains=2)


@pytest.fixture(scope="module")
def mixture():
    return fit(mixture_tutorial, TWO_CLUSTERS, SMALL, seed=1)


@pytest.fixture(scope="module")
def chain():
    return fit(chain_model, {"y": series(8)}, SMALL, seed=1)


def responsibilities(result, y):
    """Probabilities (S, N, 2) by Bayes' rule."""
    weights, loc = (result.draws[n].reshape(-1, 1, 2) for n in ("weights", "loc"))
    logs = np.log(weights) + norm.logpdf(np.asarray(y)[:, None], loc)
    return np.exp(logs - logsumexp(logs, axis=-1, keepdims=True))


def parameters(result):
    transition, loc = (result.draws[n].reshape(-1, *result.draws[n].shape[2:]) for n in ("transition", "loc"))
    return [(np.array([0.5, 0.5]), a, m) for a, m in zip(transition, loc, strict=True)]


def test_responsibilities_are_bayes_rule_averaged_over_draws(mixture):
    found = predict(mixture)["assignment"]
    each = responsibilities(mixture, TWO_CLUSTERS["y"])
    np.testing.assert_allclose(found.probabilities, each.mean(0), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(found.error, each.std(0, ddof=1) / np.sqrt(120), rtol=1e-5, atol=1e-9)
    np.testing.assert_array_equal(found.joint, np.log(each).mean(0).argmax(-1))
    at_the_mean = responsibilities(
        from_draws({n: v.mean((0, 1), keepdims=True) for n, v in mixture.draws.items() if n != "assignment"}),
        TWO_CLUSTERS["y"],
    )
    assert np.abs(at_the_mean[0] - found.probabilities).max() > 1e-6  # control: not those of the mean parameters


def test_the_table_has_a_row_for_each_element(mixture):
    table = mixture.predict().to_dataframe()
    found = predict(mixture)["assignment"]
    assert list(table.columns) == ["assignment", "probability", "error", "joint", "p[0]", "p[1]"]
    assert table.index.name == "data"
    np.testing.assert_allclose(table["p[0]"] + table["p[1]"], 1.0)
    np.testing.assert_array_equal(table["assignment"], np.repeat([0, 1], 20))
    np.testing.assert_allclose(table["probability"], found.probabilities.max(1))


def test_errors_are_those_of_repeated_fits(mixture):
    means = np.stack([predict(fit(mixture_tutorial, TWO_CLUSTERS, SMALL, seed=s))["assignment"].probabilities
                      for s in range(2, 12)])  # fmt: skip
    ratio = means.std(0, ddof=1).mean() / predict(mixture)["assignment"].error.mean()
    assert 0.5 < ratio < 2.0  # 10 repeats tell an sd to 23 %, and the elements share their draws


def test_unseen_rows_of_another_number(mixture):
    new = np.array([-3.0, 0.1, 0.0])
    found = predict(mixture, {"y": new})["assignment"]
    np.testing.assert_allclose(found.probabilities, responsibilities(mixture, new).mean(0), rtol=1e-9)
    one = predict(mixture, {"y": new[1:2]})["assignment"]
    np.testing.assert_allclose(one.probabilities, found.probabilities[1:2], rtol=1e-12)
    fewer = predict(mixture, {"y": new}, num_draws=30)
    assert fewer.num_draws == 60
    np.testing.assert_allclose(fewer["assignment"].probabilities, found.probabilities, atol=0.2)


@pytest.mark.parametrize("model", [chain_model, loop_model])
def test_states_are_the_sum_over_all_paths_averaged_over_draws(model):
    y = series(6)
    result = fit(model, {"y": y}, SMALL, seed=1)
    paths, _, _ = by_enumeration(*parameters(result)[0], y)
    each = np.stack([by_enumeration(*values, y)[1] for values in parameters(result)])
    shares = np.array([[each.mean(0)[paths[:, t] == k].sum() for k in range(2)] for t in range(6)])
    best = paths[np.log(each).mean(0).argmax()]
    found = predict(result)
    if model is chain_model:
        np.testing.assert_allclose(found["y_states"].probabilities, shares, rtol=1e-8)
        np.testing.assert_array_equal(found["y_states"].joint, best)
        assert found["y_states"].dims == ("time",)
    else:
        np.testing.assert_allclose([found[f"state_{t}"].probabilities for t in range(6)], shares, rtol=1e-8)
        np.testing.assert_array_equal([found[f"state_{t}"].joint for t in range(6)], best)
    assert list(found.to_dataframe().columns)[1:] == ["probability", "error", "joint", "p[0]", "p[1]"]
    assert len(found.to_dataframe()) == 6
    assert np.abs(shares - shares[0]).max() > 0.1  # control: the steps differ


def test_filtered_and_forecast_states(chain):
    y = np.asarray(chain.data["y"])
    last, ahead = [], []
    for values in parameters(chain):
        paths, weights, _ = by_enumeration(*values, y)
        last.append([weights[paths[:, -1] == k].sum() for k in range(2)])
        ahead.append(np.array(last[-1]) @ values[1] @ values[1])
    np.testing.assert_allclose(predict(chain)["y_states"].filtered[-1], np.mean(last, 0), rtol=1e-9)
    found = forecast(chain, 2)["y_states"]
    np.testing.assert_allclose(found.probabilities[1], np.mean(ahead, 0), rtol=1e-9)
    assert found.to_dataframe().index.tolist() == [8, 9]
    assert "joint" not in found.to_dataframe()


def test_sequences_of_different_lengths_and_new_ones():
    y = np.stack([series(7, 1), series(7, 2), series(7, 3)])
    seen = np.arange(7) < np.array([[7], [4], [5]])
    result = fit(sequences_model, {"y": y, "seen": seen}, SMALL, seed=1)
    assert result.draws["y_states"].shape == (2, 60, 3, 7)
    found = predict(result)["y_states"]
    paths, _, _ = by_enumeration(*parameters(result)[0], y[1, :4])
    each = np.mean([by_enumeration(*values, y[1, :4])[1] for values in parameters(result)], 0)
    shares = np.array([[each[paths[:, t] == k].sum() for k in range(2)] for t in range(4)])
    np.testing.assert_allclose(found.probabilities[1, :4], shares, rtol=1e-8)
    assert found.to_dataframe().index.names == ["sequence", "time"]
    drawn = result.draws["y_states"].reshape(120, 3, 7).mean(0)
    error = np.sqrt(found.probabilities[..., 1] * found.probabilities[..., 0] / 120)
    assert np.all(np.abs(drawn - found.probabilities[..., 1]) < 4.5 * error + 2 / 120)
    tree = result.to_datatree(log_likelihood=True, posterior_predictive=True, prior=True)
    assert tree.posterior["y_states"].dims == ("chain", "draw", "sequence", "time")
    assert tree.log_likelihood["y"].dims == ("chain", "draw", "sequence")
    assert tree.posterior_predictive["y"].dims == ("chain", "draw", "sequence", "time")
    new = predict(result, {"y": y[:2, :5], "seen": seen[:2, :5]})["y_states"]
    assert new.probabilities.shape == (2, 5, 2)
    np.testing.assert_allclose(new.probabilities[1, :4], found.probabilities[1, :4], rtol=1e-8)  # the tail is masked
    assert np.abs(new.probabilities[0] - found.probabilities[0, :5]).max() > 1e-4  # control: its future was cut off


def test_coupled_and_nested_discrete_sites():
    def change(y):
        before, after = (pyro.sample(name, dist.Normal(0.0, 2.0)) for name in ("before", "after"))
        at = pyro.sample("at", dist.Categorical(torch.ones(len(y)) / len(y)))
        mean = torch.where(torch.arange(len(y)) < at.unsqueeze(-1), before.unsqueeze(-1), after.unsqueeze(-1))
        pyro.sample("y", dist.Normal(mean, 1.0).to_event(1), obs=y)

    y = np.array([0.3, -0.4, 0.1, 2.9, 3.3])
    result = fit(change, {"y": y}, SMALL, seed=1)
    before, after = (result.draws[n].reshape(-1, 1, 1) for n in ("before", "after"))
    mean = np.where(np.arange(5) < np.arange(5)[:, None], before, after)
    logs = norm.logpdf(y, mean).sum(-1)
    expected = np.exp(logs - logsumexp(logs, axis=1, keepdims=True))
    found = predict(result)["at"]
    np.testing.assert_allclose(found.probabilities, expected.mean(0), rtol=1e-8, atol=1e-12)
    assert found.most_probable == 3
    assert found.to_dataframe().shape[0] == 1


def test_coupled_pairs_in_a_plate():
    def pairs(y):
        p = pyro.sample("p", dist.Beta(2.0, 2.0))
        with pyro.plate("data", len(y)):
            a = pyro.sample("a", dist.Bernoulli(p))
            b = pyro.sample("b", dist.Bernoulli(0.2 + 0.6 * a))
            pyro.sample("y", dist.Normal(a + b, 1.0), obs=y)

    for y in (np.array([0.2, 1.1, 2.5]), np.array([0.9])):
        result = fit(pairs, {"y": y}, SMALL, seed=1)
        p = result.draws["p"].reshape(-1, 1, 1, 1)
        a, b = np.array([0, 1])[:, None], np.array([0, 1])
        logs = np.log(np.where(a == 1, p, 1 - p) * np.where(b == 1, 0.2 + 0.6 * a, 0.8 - 0.6 * a))
        logs = logs + norm.logpdf(y[:, None, None], a + b)
        joint = np.exp(logs - logsumexp(logs, axis=(-1, -2), keepdims=True))
        found = predict(result)
        np.testing.assert_allclose(found["a"].probabilities, joint.sum(-1).mean(0), rtol=1e-8)
        np.testing.assert_allclose(found["b"].probabilities, joint.sum(-2).mean(0), rtol=1e-8)
        best = np.log(joint).mean(0).reshape(len(y), 4).argmax(1)
        np.testing.assert_array_equal(found["a"].joint * 2 + found["b"].joint, best)


def test_every_kind_of_fit_predicts(tmp_path, mixture):
    def guide(y):
        concentration = pyro.param("concentration", torch.tensor([20.0, 20.0]), constraint=constraints.positive)
        pyro.sample("weights", dist.Dirichlet(concentration))
        centre = pyro.param("centre", torch.tensor([-3.0, 3.0]))
        with pyro.plate("component", 2):
            pyro.sample("loc", dist.Normal(centre, 0.2))

    by_hand = fit(mixture_tutorial, TWO_CLUSTERS, SVI(guide=guide, num_steps=20, num_samples=30, num_chains=2), seed=1)
    point = fit(mixture_tutorial, TWO_CLUSTERS, MAP(num_samples=4, num_chains=1), seed=1)
    loaded = load_fit(mixture.save(tmp_path / "mixture.fit"), mixture_tutorial)
    reference = predict(mixture)["assignment"].probabilities
    for result in (by_hand, point, loaded):
        found = predict(result, TWO_CLUSTERS)["assignment"]
        assert np.abs(found.probabilities - reference).max() < 0.1
    np.testing.assert_allclose(predict(loaded)["assignment"].probabilities, reference, rtol=1e-12)


def columns_model(x, group, K=2, num_groups=3):
    with pyro.plate("component", K):
        loc = pyro.sample("loc", dist.Normal(torch.zeros(x.shape[1]), 3.0).to_event(1))
    effect = pyro.sample("effect", dist.Normal(torch.zeros(num_groups), 1.0).to_event(1))
    with pyro.plate("data", len(x)):
        z = pyro.sample("assignment", dist.Categorical(torch.ones(K) / K))
        mean = Vindex(loc)[z] + effect[group].unsqueeze(-1)
        pyro.sample("x", dist.Normal(mean, 1.0).to_event(1), obs=x)


X, GROUP = np.random.default_rng(0).normal(size=(6, 2)), np.array([0, 1, 2, 0, 1, 2])
BAD = {
    "columns": ({"x": X[:, :1], "group": GROUP}, "site 'loc': has shape .*as many columns"),
    "unseen": ({"x": X[:1], "group": [3]}, "out of (range|bounds)"),
    "negative": ({"x": X[:1], "group": [-1]}, "new_data\\['group'\\]: 1 values are negative"),
    "nan": ({"x": X * np.nan, "group": GROUP}, "data\\['x'\\]: 12 of 12 values are NaN"),
    "infinite": ({"x": X + np.inf, "group": GROUP}, "NaN or infinite"),
    "empty": ({"x": X[:0], "group": GROUP[:0]}, "new_data\\['x'\\]: is empty"),
    "missing": ({"x": X}, "needs group; give every array"),
    "unknown": ({"x": X, "group": GROUP, "y": X}, "takes no argument 'y'"),
    "axes": ({"x": X[0], "group": GROUP}, "expected 2 axes"),
    "floats": ({"x": X, "group": GROUP + 0.5}, "expected integers"),
    "components": ({"x": X, "group": GROUP, "K": 3}, "site 'loc': cannot be predicted.*plate 'component'"),
    "lengths": ({"x": X, "group": GROUP[:4]}, "model: the function fails on the data"),
    "no mapping": ([X], "expected a mapping"),
}


@pytest.fixture(scope="module")
def columns():
    return fit(columns_model, {"x": X, "group": GROUP}, SMALL, seed=1)


@pytest.mark.parametrize("kind", BAD)
def test_bad_new_data_are_refused(columns, kind):
    new_data, message = BAD[kind]
    with pytest.raises(InputError, match=message):
        predict(columns, new_data)


def test_good_new_data_are_not_refused(columns):
    found = predict(columns, {"x": X[:1].astype(int), "group": [2]})["assignment"]
    assert found.probabilities.shape == (1, 2)


def test_what_cannot_be_predicted_says_which_site_and_why(mixture, chain):
    local = fit(schools, CASES["schools"].data, SMALL, seed=1)
    with pytest.raises(InputError, match="has no discrete site"):
        predict(local)
    with pytest.raises(InputError, match="no hidden Markov chain"):
        forecast(mixture, 2)
    with pytest.raises(InputError, match="num_steps: expected an integer of at least 1"):
        forecast(chain, 0)
    with pytest.raises(InputError, match="num_draws: expected 1 to 60"):
        predict(mixture, num_draws=61)
    by_hand = fit(mixture_by_hand, TWO_CLUSTERS, SMALL, seed=1)
    with pytest.raises(InputError, match="has no discrete site"):
        predict(by_hand)

    def rows(y):
        with pyro.plate("data", len(y)):
            own = pyro.sample("own", dist.Normal(0.0, 1.0))
            z = pyro.sample("z", dist.Bernoulli(0.5))
            pyro.sample("y", dist.Normal(own + z, 1.0), obs=y)

    result = fit(rows, {"y": np.array([0.1, 1.0])}, SMALL, seed=1)
    with pytest.raises(InputError, match="'own': cannot be predicted, since it has a value for each element of plate"):
        predict(result, {"y": np.array([0.1, 1.0, 2.0])})
    with pytest.raises(InputError, match="'own': cannot be predicted, since it has a value of its own for each"):
        predict(result, {"y": np.array([0.3, 1.0])})
    assert len(predict(result, {"y": np.array([0.1, 1.0])}).to_dataframe()) == 2

    def bounded(y):
        p = pyro.sample("p", dist.Beta(2.0, 2.0))
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Bernoulli(p))
            pyro.sample("y", dist.Uniform(z - 1.0, z + 0.0, validate_args=False), obs=y)

    result = fit(bounded, {"y": np.array([-0.5, 0.5])}, SMALL, seed=1)
    with pytest.raises(InputError, match="probability zero|outside the support"):
        predict(result, {"y": np.array([0.5, 3.0])})


def test_labels_of_the_model_name_the_rows():
    class Named:
        @staticmethod
        def model(y):
            return mixture_tutorial(y)

        @staticmethod
        def coords(data):
            return {"data": [f"row {i}" for i in range(len(data["y"]))]}

    result = fit(Named(), TWO_CLUSTERS, SMALL, seed=1)
    assert predict(result, {"y": np.array([0.0, 1.0])}).to_dataframe().index.tolist() == ["row 0", "row 1"]


class PathsByKind(NormalChain):
    """Chains whose transitions differ between sequences."""

    def expand(self, batch_shape, _instance=None):
        initial = self.initial.expand(*batch_shape, 2)
        return PathsByKind(initial, self.transition, self.loc, self.event_shape[0], validate_args=False)


def test_chains_that_depend_on_an_assignment():
    kinds = torch.tensor([[[0.9, 0.1], [0.1, 0.9]], [[0.2, 0.8], [0.8, 0.2]]])

    def model(y):
        weights = pyro.sample("weights", dist.Dirichlet(torch.ones(2)))
        loc = pyro.sample("loc", dist.Normal(torch.tensor([-1.0, 1.0]), 0.5).to_event(1))
        with pyro.plate("sequence", len(y)):
            kind = pyro.sample("kind", dist.Categorical(weights))
            initial = torch.tensor([0.5, 0.5]).expand(*kind.shape, 2)
            pyro.sample("y", PathsByKind(initial, kinds[kind], loc, y.shape[1]), obs=y)

    y = np.stack([series(5, 1), np.array([-1.0, 1.2, -0.9, 1.1, -1.3])])
    result = fit(model, {"y": y}, Laplace(num_samples=500, num_chains=2), seed=1)
    weights, locs = (result.draws[n].reshape(-1, 2) for n in ("weights", "loc"))
    shares, kind = np.zeros((2, 5)), np.zeros((2, 2))
    for w, loc in zip(weights, locs, strict=True):
        for row in range(2):
            both = [by_enumeration(np.array([0.5, 0.5]), kinds[k].numpy(), loc, y[row]) for k in range(2)]
            posterior = w * np.exp([total for *_, total in both])
            posterior /= posterior.sum()
            kind[row] += posterior / 1000
            for probability, (paths, path_weights, _) in zip(posterior, both, strict=True):
                shares[row] += probability * (path_weights @ paths) / 1000
    found = predict(result)
    np.testing.assert_allclose(found["kind"].probabilities, kind, rtol=1e-7)
    assert found["kind"].most_probable.tolist() == [0, 1]
    # States given draws of the kind: 1000 of them, each exact.
    np.testing.assert_allclose(found["y_states"].probabilities[..., 1], shares, atol=4.5 * 0.5 / np.sqrt(1000))
    assert result.draws["y_states"].shape == (2, 500, 2, 5)
    np.testing.assert_allclose(result.draws["y_states"].mean((0, 1)), shares, atol=4.5 * 0.5 / np.sqrt(1000))


@pytest.mark.parametrize("rows", [1, 4])
def test_one_component_is_a_mixture_too(rows):
    def model(y):
        with pyro.plate("component", 1):
            loc = pyro.sample("loc", dist.Normal(torch.zeros(1), 1.0))
        with pyro.plate("data", len(y)):
            z = pyro.sample("assignment", dist.Categorical(torch.ones(1)))
            pyro.sample("y", dist.Normal(loc[z], 1.0), obs=y)

    y = np.linspace(-1.0, 1.0, rows)
    result = fit(model, {"y": y}, SMALL, seed=1)
    assert result.draws["assignment"].shape == (2, 60, rows)
    np.testing.assert_array_equal(predict(result)["assignment"].probabilities, np.ones((rows, 1)))
    found = result.to_datatree(log_likelihood=True).log_likelihood["y"]
    assert found.dims == ("chain", "draw", "data")
    np.testing.assert_allclose(found, norm.logpdf(y, result.draws["loc"]), rtol=1e-9)


@pytest.mark.parametrize(("name", "columns"), [("gaussian_mixture", 1), ("gaussian_mixture", 2), ("sparse_mixture", 2)])
def test_one_row_is_predicted_as_among_others(name, columns):
    """Priors whose scale is read off the data keep it: a row by itself, or missing altogether, has none."""
    x = np.random.default_rng(0).normal(size=(40, columns)) + 4 * (np.arange(40) % 2)[:, None]
    x = x if columns > 1 else x[:, 0]
    fitted = fit(MODELS[name], {"x": x, "K": 2}, SVI(guide="normal", num_steps=300, num_samples=50), seed=1)
    among = predict(fitted)["assignment"].probabilities[3:4]
    np.testing.assert_allclose(predict(fitted, {"x": x[3:4]})["assignment"].probabilities, among, rtol=1e-6)
    np.testing.assert_allclose(
        log_predictive(fitted, {"x": x[3:4]})["x"].pointwise, log_predictive(fitted)["x"].pointwise[3:4], rtol=1e-6
    )
    unseen = predict(fitted, {"x": np.full_like(x[:1], np.nan)})["assignment"].probabilities[0]
    np.testing.assert_allclose(unseen, fitted.draws["weights"].mean((0, 1)), rtol=1e-6)


# --- Models that come along -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clusters():
    rng = np.random.default_rng(3)
    x = np.concatenate([rng.normal(0.0, 1.0, (30, 2)), rng.normal(8.0, 1.0, (20, 2))])
    return fit(MODELS["gaussian_mixture"], {"x": x, "K": 2}, Laplace(num_samples=100), seed=0)


def test_one_new_row_is_enough_and_may_have_gaps(clusters):
    """The priors' scales were read off the old rows: one row has none."""
    near, far = (predict(clusters, {"x": np.array([row])})["assignment"] for row in ([0.0, 0.0], [8.0, 8.0]))
    assert near.most_probable[0] != far.most_probable[0]
    gap = predict(clusters, {"x": np.array([[np.nan, 8.0], [0.0, np.nan]])})["assignment"]
    assert list(gap.most_probable) == [far.most_probable[0], near.most_probable[0]]
    nothing = predict(clusters, {"x": np.array([[np.nan, np.nan]])})["assignment"]
    assert nothing.probabilities[0] == pytest.approx(clusters.draws["weights"].mean(axis=(0, 1)), abs=1e-6)


def test_new_rows_of_other_columns_are_refused(clusters):
    with pytest.raises(InputError, match="x: expected 2 columns, as in the data that its priors are made of, got 3"):
        predict(clusters, {"x": np.zeros((4, 3))})


def test_scores_of_new_rows_do_not_depend_on_their_company(clusters):
    rows = np.array([[0.5, 1.0], [7.0, 9.0], [3.0, 3.0]])
    together = log_predictive(clusters, {"x": rows}).terms["x"].total
    alone = sum(log_predictive(clusters, {"x": rows[[i]]}).terms["x"].total for i in range(3))
    assert together == pytest.approx(alone, rel=1e-9)


def test_a_step_without_value_and_an_unseen_category():
    model = MODELS["categorical_hmm"]
    data = {"x": torch.tensor([0.0, 1, 1, float("nan"), 0, 0, 2, 1, 0, 1]), "C": 3, "K": 2}
    result = fit(model, data, Laplace(num_samples=50), seed=0)
    assert result.draws["x_states"].shape == (4, 50, 10)
    with pytest.raises(InputError, match="x: expected whole numbers from 0 to 2, got 3 at index 1"):
        predict(result, {"x": torch.tensor([0.0, 3.0])})
    assert predict(result, {"x": torch.tensor([1.0])})["x_states"].probabilities.shape == (1, 2)
