"""Choosing between models: the numbers are ArviZ's and the formulas', and only comparable models are compared."""

from dataclasses import replace

import arviz_stats
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
from scipy import stats

from inference import NUTS, AutoVI, InputError, compare_models, fit, log_evidence
from inference.compare_models import waic_terms
from ppl_models import MODELS

MIXTURE = MODELS["gaussian_mixture_exchangeable"].model
RNG = np.random.default_rng(0)
X = np.concatenate([RNG.normal(m, 0.3, 20) for m in (1.0, 5.0, 6.7)])
ENGINE = AutoVI(num_samples=500)


@pytest.fixture(scope="module")
def fits():
    return {f"K={K}": fit(MIXTURE, {"x": X, "K": K}, ENGINE, seed=1) for K in (2, 3)}


def normal(y, sd=1.0):
    mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
    with pyro.plate("row", len(y)):
        pyro.sample("y", dist.Normal(mu, sd), obs=y)


@pytest.mark.filterwarnings("ignore:Estimated shape parameter:UserWarning")  # ArviZ's own, of the call below
def test_the_numbers_are_arviz_and_the_evidence(fits):
    found = compare_models(fits, evidence=True)
    assert found.best == "K=3"
    assert found.clear
    for name, one in fits.items():
        own = arviz_stats.loo(one.to_datatree(log_likelihood=True), pointwise=True)
        row = found.table.loc[name]
        assert np.isclose(row["elpd"], own.elpd)
        assert np.isclose(row["max_khat"], np.max(own.pareto_k))
        assert abs(row["elpd_waic"] - row["elpd"]) < 1.0
        assert row["log_evidence"] == log_evidence(one).value
    assert np.isclose(found.table["weight"].sum(), 1.0)
    assert "'K=3' predicts better than the others" in str(found)


def test_elpd_is_the_closed_form_of_a_conjugate_model():
    """Leave one out of normal data with known variance: every predictive density is known."""
    y = np.array([0.3, -0.5, 1.2, 0.8, -1.1, 0.1, 2.0, -0.2])
    expected = 0.0
    for i, value in enumerate(y):
        rest = np.delete(y, i)
        variance = 1.0 / (1.0 / 100.0 + len(rest))
        expected += stats.norm.logpdf(value, variance * rest.sum(), np.sqrt(1.0 + variance))
    found = compare_models({"only": fit(normal, {"y": y}, ENGINE, seed=1)})
    assert abs(found.table.loc["only", "elpd"] - expected) < 0.1
    assert abs(found.table.loc["only", "elpd_waic"] - expected) < 0.15
    assert found.clear  # of one


def test_waic_by_hand():
    log_likelihood = np.log(np.array([[0.2, 0.5], [0.4, 0.5]]))
    values, variance = waic_terms(log_likelihood)
    np.testing.assert_allclose(variance, [np.log(2.0) ** 2 / 2, 0.0], atol=1e-12)
    np.testing.assert_allclose(values, [np.log(0.3) - np.log(2.0) ** 2 / 2, np.log(0.5)])


def test_chains_that_disagree_are_told_of():
    y = np.array([0.3, -0.5, 1.2, 0.8, -1.1, 0.1, 2.0, -0.2])
    healthy = fit(normal, {"y": y}, NUTS(num_samples=500), seed=1)
    assert not any("chains" in text for text in compare_models({"one": healthy}).warnings)
    shifted = healthy.draws["mu"] + np.array([0.0, 0.0, 0.0, 2.0])[:, None]
    (text,) = [t for t in compare_models({"one": replace(healthy, draws={"mu": shifted})}).warnings if "chains" in t]
    assert "R-hat" in text


def test_equal_models_are_not_told_apart():
    y = RNG.normal(size=40)
    pair = {"one": fit(normal, {"y": y}, ENGINE, seed=1), "same": fit(normal, {"y": y}, ENGINE, seed=2)}
    found = compare_models(pair)
    assert not found.clear
    assert "not clearly" in str(found)
    worse = compare_models({**pair, "wide": fit(normal, {"y": y, "sd": 5.0}, ENGINE, seed=1)})
    assert worse.table.index[-1] == "wide"


def test_observations_that_a_model_does_not_expect_are_told_of():
    y = np.append(RNG.normal(size=10), 30.0)
    found = compare_models({"normal": fit(normal, {"y": y}, ENGINE, seed=1)})
    assert found.table.loc["normal", "num_bad"] >= 1
    assert any("k-hat is above" in text for text in found.warnings)


def test_one_chain_is_one_observation():
    data = {"x": np.array([3.0, 4.0, 12.0, 11.0, 2.0, 3.0, 14.0, 12.0]), "K": 2}
    chain = fit(MODELS["poisson_hmm"], data, ENGINE, seed=1)
    with pytest.raises(InputError, match=r"'x' is one observation .* compare log_evidence"):
        compare_models({"K=2": chain})


def test_refuses_what_cannot_be_compared(fits):
    other = replace(fits["K=2"], data={**fits["K=2"].data, "x": fits["K=2"].data["x"] + 1.0})
    with pytest.raises(InputError, match="observations differ"):
        compare_models({**fits, "other": other})
    with pytest.raises(InputError, match="at least one fit"):
        compare_models({})
    with pytest.raises(InputError, match="site: expected one of x"):
        compare_models(fits, site="y")
