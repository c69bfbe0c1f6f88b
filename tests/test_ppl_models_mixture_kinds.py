"""Mixtures of counts and of regressions, and those that find the number of clusters: against scipy, by hand."""

import numpy as np
import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import TraceEnum_ELBO
from scipy import stats

from inference import MAP, NUTS, fit
from inference.data_files import read_data
from inference.errors import InputError
from ppl_models import MODELS
from ppl_models.mixture_counts import Shares
from ppl_models.simulation import own_stream

pytestmark = pytest.mark.usefixtures("direct_pyro")


def joint_parts(name, data, values):
    """Log likelihood, assignments summed out by Pyro, and log prior by site."""
    values = {n: torch.as_tensor(np.asarray(v), dtype=torch.float64) for n, v in values.items()}
    model = poutine.condition(MODELS[name].model, data=values)
    loss = TraceEnum_ELBO(max_plate_nesting=1).loss(model, lambda **_: None, **data)
    trace = poutine.trace(model).get_trace(**data)
    trace.compute_log_prob()
    prior = {n: trace.nodes[n]["log_prob_sum"].item() for n in values}
    return -loss - sum(prior.values()), prior


def summed(weights, terms):
    """Log likelihood from log densities (rows, K) under each component."""
    return np.logaddexp.reduce(np.log(weights) + terms, axis=1).sum()


RNG = np.random.default_rng(0)
WEIGHTS = np.array([0.2, 0.5, 0.3])
COUNTS = RNG.poisson(4.0, (9, 4)).astype(float)
PROBABILITY = RNG.uniform(0.1, 0.9, (3, 4))
RATE = RNG.uniform(1.0, 8.0, (3, 4))
SHARE = RNG.dirichlet(np.ones(4), 3)
BITS = (RNG.uniform(size=(9, 4)) < 0.5).astype(float)
LAWS = {
    "bernoulli_mixture": (
        BITS,
        {"probability": PROBABILITY},
        lambda k, row: stats.bernoulli(PROBABILITY[k]).logpmf(row).sum(),
    ),
    "poisson_mixture": (COUNTS, {"rate": RATE}, lambda k, row: stats.poisson(RATE[k]).logpmf(row).sum()),
    "multinomial_mixture": (
        COUNTS,
        {"share": SHARE},
        lambda k, row: stats.multinomial(row.sum(), SHARE[k]).logpmf(row),
    ),
}


@pytest.mark.parametrize("name", LAWS)
def test_counts_have_scipys_likelihood(name):
    x, parameter, law = LAWS[name]
    expected = summed(WEIGHTS, np.array([[law(k, row) for k in range(3)] for row in x]))
    likelihood, _ = joint_parts(name, {"x": torch.from_numpy(x), "K": 3}, {"weights": WEIGHTS, **parameter})
    assert likelihood == pytest.approx(expected, rel=1e-10)
    swapped = {n: v[::-1].copy() for n, v in parameter.items()}  # control: weights stay where they are
    assert joint_parts(name, {"x": torch.from_numpy(x), "K": 3}, {"weights": WEIGHTS, **swapped})[0] != pytest.approx(
        expected, rel=1e-4
    )


@pytest.mark.parametrize("name", ["bernoulli_mixture", "poisson_mixture"])
def test_missing_counts_are_summed_out(name):
    """A missing entry contributes the sum over all its values, which is one."""
    x, parameter, _ = LAWS[name]
    values = {"weights": WEIGHTS, **parameter}
    gap = x.copy()
    gap[2, 1] = np.nan
    others = []
    for entry in range(2 if name == "bernoulli_mixture" else 60):
        filled = gap.copy()
        filled[2, 1] = entry
        others.append(joint_parts(name, {"x": torch.from_numpy(filled), "K": 3}, values)[0])
    likelihood, _ = joint_parts(name, {"x": torch.from_numpy(gap), "K": 3}, values)
    assert likelihood == pytest.approx(np.logaddexp.reduce(others), rel=1e-9)
    assert likelihood > max(others) + 0.1


def test_multinomial_rows_are_drawn_with_their_totals_and_shares():
    total, share = torch.tensor([3.0, 50.0, 0.0]), torch.tensor([0.2, 0.0, 0.5, 0.3])
    with own_stream(2):
        draws = Shares(total, share).sample((3000,))
    assert torch.equal(draws.sum(-1), total.expand(3000, 3))
    error = np.sqrt(0.25 * 50 / 3000)
    np.testing.assert_allclose(draws[:, 1].mean(0), 50 * share, atol=4.5 * error)
    assert (draws[..., 1] == 0).all()
    # one entry of a row is binomial
    counts = draws[:, 1, 2].numpy().astype(int)
    expected = 3000 * stats.binom(50, 0.5).pmf(np.arange(51))
    kept = expected > 5
    statistic = ((np.bincount(counts, minlength=51) - expected)[kept] ** 2 / expected[kept]).sum()
    assert stats.chi2(kept.sum() - 1).sf(statistic) > 1e-3


@pytest.mark.parametrize("name", LAWS)
def test_a_climb_from_a_clustering_ends_at_a_fixed_point_of_em(name):
    """Responsibilities at the maximum of the likelihood give its weights and means back."""
    binary = name == "bernoulli_mixture"
    few, many = [2.0, 2.0, 6.0, 6.0], [9.0, 9.0, 9.0, 3.0]
    x = np.concatenate([BITS, 1 - BITS[:6]]) if binary else RNG.poisson([few] * 20 + [many] * 20).astype(float)
    prior = {} if binary else {"flat": True}  # of so few bits the likelihood is highest where a weight is zero
    found = fit(MODELS[name], {"x": x, "K": 2, **prior}, MAP(num_samples=4, num_chains=1), seed=1)
    site = next(iter(LAWS[name][1]))
    weights, values = found.draws["weights"][0, 0], found.draws[site][0, 0]
    laws = {
        "bernoulli_mixture": lambda v: stats.bernoulli(v).logpmf(x).sum(1),
        "poisson_mixture": lambda v: stats.poisson(v).logpmf(x).sum(1),
        "multinomial_mixture": lambda v: stats.multinomial(x.sum(1).astype(int), v).logpmf(x),
    }
    joint = np.log(weights) + np.stack([laws[name](v) for v in values], 1)
    share = np.exp(joint - np.logaddexp.reduce(joint, 1)[:, None])
    extra = 1.0 if binary else 0.0  # Dirichlet(2)
    np.testing.assert_allclose(weights, (share.sum(0) + extra) / (len(x) + 2 * extra), rtol=1e-4)
    totals = share.T @ x
    by = share.sum(0)[:, None] if name != "multinomial_mixture" else totals.sum(1, keepdims=True)
    np.testing.assert_allclose(values, totals / by, rtol=1e-4, atol=1e-9)  # some are at the edge


def test_regressions_have_the_likelihood_by_hand():
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(8, 2)), rng.normal(size=8)
    values = {
        "weights": WEIGHTS,
        "intercept": rng.normal(size=3),
        "coef": rng.normal(size=(3, 2)),
        "sigma": [0.5, 1.0, 2.0],
    }
    terms = stats.norm(values["intercept"] + x @ values["coef"].T, values["sigma"]).logpdf(y[:, None])
    data = {"x": torch.from_numpy(x), "y": torch.from_numpy(y), "K": 3}
    likelihood, prior = joint_parts("regression_mixture", data, values)
    assert likelihood == pytest.approx(summed(WEIGHTS, terms), rel=1e-10)
    expected = stats.norm(y.mean(), 2 * y.std()).logpdf(values["intercept"]).sum()
    assert prior["intercept"] == pytest.approx(expected, rel=1e-9)


# The number of clusters ---------------------------------------------------------------------------------------------


def test_broken_sticks_have_the_generalised_dirichlet_weights():
    """The last weight is the product of what the parts leave; expectations are alpha^k / (1 + alpha)^(k + 1)."""
    alpha = 1.5
    model = poutine.condition(MODELS["dirichlet_process_mixture"].model, data={"alpha": torch.tensor(alpha)})

    def many():
        with pyro.plate("many", 2000, dim=-2):
            model(x=torch.arange(5.0), K=4)

    with own_stream(1):
        trace = poutine.trace(many).get_trace()
    part = trace.nodes["part"]["value"].reshape(-1, 3)
    weights = trace.nodes["weights"]["value"].reshape(-1, 4)
    torch.testing.assert_close(weights[:, -1], (1 - part).prod(-1))
    weights = weights.numpy()
    np.testing.assert_allclose(weights.sum(1), 1, atol=1e-12)
    expected = [alpha**k / (1 + alpha) ** (k + 1) for k in range(3)]
    expected.append(1 - sum(expected))
    z = (weights.mean(0) - expected) / (weights.std(0) / np.sqrt(len(weights)))
    assert np.abs(z).max() < 4
    other = [1 / 4] * 4  # control
    assert np.abs((weights.mean(0) - other) / (weights.std(0) / np.sqrt(len(weights)))).max() > 5


@pytest.mark.parametrize("name", ["sparse_mixture", "dirichlet_process_mixture"])
def test_superfluous_components_empty(name):
    """Two clusters far apart, four components: nearly all rows are in two of them. A flat Dirichlet uses more."""
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(-4, 1, 40), rng.normal(4, 1, 40)])
    settings = {"K": 4, "covariance": "tied"}
    engine = NUTS(num_warmup=300, num_samples=300, num_chains=2)

    def expected_clusters(model, data):
        draws = fit(model, data, engine, seed=1).draws["assignment"].reshape(-1, len(x))
        return np.mean([len(np.unique(draw)) for draw in draws])

    found = expected_clusters(MODELS[name], {"x": x, **settings})
    ordinary = expected_clusters(MODELS["gaussian_mixture_exchangeable"], {"x": x, **settings})
    # a Dirichlet process keeps a few rows in small clusters of their own (Miller & Harrison 2014)
    assert 2 <= found < ordinary - (0.5 if name == "sparse_mixture" else 0.2)


# Order, bad input, files --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["student_mixture", "regression_mixture", "gaussian_mixture_exchangeable", "poisson_mixture"]
)
def test_identify_does_not_depend_on_the_labels_in_more_columns(name):
    model = MODELS[name]
    sizes = {"num_covariates": 3} if name == "regression_mixture" else {"num_columns": 3}
    sites = [model.simulate(seed, num_rows=6, K=3, **sizes).truth for seed in range(5)]
    draws = {n: np.stack([site[n].numpy() for site in sites])[None] for n in sites[0]}
    new = np.array([2, 0, 1])
    renamed = {n: np.take(v, np.argsort(new), axis=2) for n, v in draws.items() if n != "assignment"}
    renamed["assignment"] = new[draws["assignment"]]
    one, other = model.identify(draws), model.identify(renamed)
    assert set(one) == set(draws)
    for quantity in draws:
        np.testing.assert_array_equal(one[quantity], other[quantity])
        assert (renamed[quantity] != draws[quantity]).any()


ROWS = torch.ones(6, 2)
NEGATIVE = torch.tensor([[1.0, 2.0], [-1.0, 0.0]])
NO_PRIOR = {"x": torch.arange(6.0), "concentration": 0.0}
BAD = {
    "negative": (
        "poisson_mixture",
        {"x": torch.tensor([[1.0, 2.0], [-1.0, 0.0]])},
        r"whole numbers from 0, got -1 at index \(1, 0\)",
    ),
    "half a count": ("multinomial_mixture", {"x": ROWS / 2}, "whole numbers from 0, got 0.5"),
    "not binary": ("bernoulli_mixture", {"x": 2 * ROWS}, r"expected 0 or 1, got 2 at index \(0, 0\); 12 such entries"),
    "missing total": ("multinomial_mixture", {"x": torch.tensor([[1.0, np.nan], [1.0, 2.0]])}, "a count is missing"),
    "too many": ("bernoulli_mixture", {"x": ROWS, "K": 7, "flat": True}, "K: 7 components cannot be told from 6 rows"),
    "on the line": ("poisson_mixture", {"x": torch.ones(6)}, r"expected shape \(rows, columns\)"),
    "outcome": ("regression_mixture", {"x": ROWS, "y": torch.ones(5)}, r"y: expected shape \(6,\).*got \(5,\)"),
    "constant outcome": ("regression_mixture", {"x": ROWS, "y": torch.ones(6)}, "constant"),
    "one part": ("dirichlet_process_mixture", {"x": torch.arange(6.0), "K": 1}, "K: a stick is broken into two parts"),
    "concentration": (
        "sparse_mixture",
        {"x": torch.arange(6.0), "concentration": 0.0},
        "concentration: expected a positive",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_by_name(case):
    name, data, message = BAD[case]
    with pytest.raises(InputError, match=message):
        fit(MODELS[name], data, NUTS(num_warmup=10, num_samples=10), seed=1)


def test_a_csv_file_of_columns_is_a_table(tmp_path):
    file = tmp_path / "penguins.csv"
    file.write_text("kind,bill,mass,sex\na,39.1,3750,m\nb,,3800,\na,40.3,3250,f\n", encoding="utf-8")
    takes = {"x": True, "K": False}
    read = read_data(file, takes=takes, table="x")
    np.testing.assert_array_equal(read.values["x"], [[39.1, 3750], [np.nan, 3800], [40.3, 3250]])
    assert "columns of x are bill, mass; 1 of its values are missing" in read.remarks[0]
    assert "left out kind, sex" in read.remarks[1]
    with pytest.raises(InputError, match="the model needs 'x'"):  # a model that takes no table
        read_data(file, takes=takes)
    file.write_text("x,y\n1,2\n3,4\n", encoding="utf-8")  # a column of that name is the argument itself
    np.testing.assert_array_equal(read_data(file, takes=takes, table="x").values["x"], [1, 3])


def test_a_word_may_be_set_where_the_model_takes_one(capsys):
    from inference.cli import main

    assert main(["fit", "gaussian_mixture", "--set", "covariance=diag", "--engine", "laplace", "--no-progress"]) == 2
    assert "covariance: expected one of full, tied, diagonal, spherical, got 'diag'" in capsys.readouterr().err
    assert main(["fit", "gaussian_mixture", "--set", "K=three", "--engine", "laplace", "--no-progress"]) == 2
    assert "expected a number, true or false" in capsys.readouterr().err
    arguments = ["fit", "gaussian_mixture", "--set", "covariance=tied", "--engine", "laplace", "--no-progress"]
    assert main([*arguments, "--num-samples", "50"]) in (0, 1)
    printed = capsys.readouterr().out
    assert "scale " in printed
    assert "scale[0]" not in printed


def test_gaps_survive_a_file(tmp_path):
    """A fit to data with missing entries is saved, and read again."""
    from inference import Laplace, load_fit

    x = torch.arange(12.0).reshape(6, 2) + torch.randn(6, 2, generator=torch.Generator().manual_seed(0))
    x[1, 0] = np.nan
    model = MODELS["gaussian_mixture"]
    done = fit(model, {"x": x, "K": 2, "covariance": "diagonal"}, Laplace(num_samples=20, num_chains=2), seed=1)
    again = load_fit(done.save(tmp_path / "fit.nc"), model.model)
    np.testing.assert_array_equal(again.draws["loc"], done.draws["loc"])
    assert pyro.get_param_store().keys() == {}.keys()
