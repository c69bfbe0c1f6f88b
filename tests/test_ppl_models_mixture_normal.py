"""Mixtures of normal and t components against scipy and scikit-learn: densities, missing entries, EM's optimum."""

import itertools
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import TraceEnum_ELBO
from scipy import integrate, stats
from sklearn.datasets import load_iris, load_wine
from sklearn.mixture import GaussianMixture
from torch.distributions import biject_to

from inference import MAP, cluster_starts, fit
from inference.errors import InputError
from ppl_models import MODELS
from ppl_models.mixture_normal import COVARIANCES
from ppl_models.rows import NormalRows
from ppl_models.simulation import own_stream
from ppl_models.units import InUnits, InverseWishart

SKLEARN = {"full": "full", "tied": "tied", "diagonal": "diag", "spherical": "spherical"}
SHARED = Path(__file__).resolve().parents[1] / ".." / "shared" / "data"


pytestmark = pytest.mark.usefixtures("direct_pyro")


def log_likelihood(name, data, values):
    """Log likelihood of the parameters, assignments summed out by Pyro's enumeration; priors taken off."""
    values = {n: torch.as_tensor(np.asarray(v), dtype=torch.float64) for n, v in values.items()}
    model = poutine.condition(MODELS[name].model, data=values)
    loss = TraceEnum_ELBO(max_plate_nesting=1).loss(model, lambda **_: None, **data)
    trace = poutine.trace(model).get_trace(**data)
    trace.compute_log_prob()
    return -loss - sum(trace.nodes[n]["log_prob_sum"].item() for n in values)


def parameters(K, D, covariance, seed=0):
    """Sites of `gaussian_mixture` at random values, correlations and all."""
    rng = np.random.default_rng(seed)
    shape = {"full": (K,), "tied": ()}
    values = {"weights": rng.dirichlet(np.ones(K)), "loc": rng.normal(size=(K, D))}
    if covariance in shape:
        root = rng.normal(size=(*shape[covariance], D, D)) + 2 * np.eye(D)
        return values | {"covariance": root @ np.swapaxes(root, -1, -2)}
    return values | {"scale": rng.uniform(0.5, 2, (K, D) if covariance == "diagonal" else (K,))}


def covariances_of(values, K, D):
    """Covariance (D, D) of each component, whatever the sites are."""
    if "covariance" in values:
        return np.broadcast_to(values["covariance"], (K, D, D))
    return np.stack([np.diag(np.broadcast_to(scale, D) ** 2) for scale in np.asarray(values["scale"])])


# Densities ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("covariance", COVARIANCES)
@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_the_likelihood_is_that_of_scikit_learn(covariance, offset):
    """Both ways: its fitted parameters in ours, and ours in it."""
    x = load_iris().data + offset
    data = {"x": torch.from_numpy(x), "K": 3, "covariance": covariance}
    em = GaussianMixture(3, covariance_type=SKLEARN[covariance], random_state=0).fit(x)
    spread = em.covariances_ if covariance in ("full", "tied") else np.sqrt(em.covariances_)
    values = {
        "weights": em.weights_,
        "loc": em.means_,
        "covariance" if covariance in ("full", "tied") else "scale": spread,
    }
    expected = em.score_samples(x).sum()
    assert log_likelihood("gaussian_mixture", data, values) == pytest.approx(expected, rel=1e-8)
    other = values | {"loc": em.means_ + [[0.01, 0, 0, 0]]}
    assert log_likelihood("gaussian_mixture", data, other) != pytest.approx(expected, rel=1e-5)
    ours = parameters(3, 4, covariance) | {"loc": em.means_}
    em.weights_ = ours["weights"]
    each = covariances_of(ours, 3, 4)
    roots = np.linalg.cholesky(np.linalg.inv(each))
    em.precisions_cholesky_ = {
        "full": roots,
        "tied": roots[0],
        "diagonal": np.diagonal(roots, axis1=1, axis2=2),
        "spherical": roots[:, 0, 0],
    }[covariance]
    assert log_likelihood("gaussian_mixture", data, ours) == pytest.approx(em.score_samples(x).sum(), rel=1e-8)


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_all_assignments_by_hand(covariance):
    """Three rows, two components: the eight assignments, one after the other."""
    x = np.random.default_rng(1).normal(size=(3, 2))
    values = parameters(2, 2, covariance)
    each = covariances_of(values, 2, 2)
    total = -np.inf
    for assignment in itertools.product(range(2), repeat=3):
        terms = [
            np.log(values["weights"][k]) + stats.multivariate_normal(values["loc"][k], each[k]).logpdf(row)
            for row, k in zip(x, assignment, strict=True)
        ]
        total = np.logaddexp(total, sum(terms))
    data = {"x": torch.from_numpy(x), "K": 2, "covariance": covariance}
    known = {"data_mean": torch.zeros(2), "data_cov": torch.eye(2)}
    assert log_likelihood("gaussian_mixture", data | known, values) == pytest.approx(total, rel=1e-10)


@pytest.mark.parametrize("num_columns", [1, 3, 20])
def test_t_rows_are_scipys(num_columns):
    rng = np.random.default_rng(2)
    x, loc = rng.normal(size=(5, num_columns)), rng.normal(size=num_columns)
    root = np.tril(rng.normal(size=(num_columns, num_columns))) + 3 * np.eye(num_columns)
    rows = NormalRows(torch.from_numpy(loc), scale_tril=torch.from_numpy(root), df=torch.tensor(4.5))
    expected = stats.multivariate_t(loc, root @ root.T, df=4.5).logpdf(x)
    np.testing.assert_allclose(rows.log_prob(torch.from_numpy(x)), expected, rtol=1e-10)
    normal = NormalRows(torch.from_numpy(loc), scale_tril=torch.from_numpy(root))
    np.testing.assert_allclose(
        normal.log_prob(torch.from_numpy(x)), stats.multivariate_normal(loc, root @ root.T).logpdf(x), rtol=1e-10
    )
    with own_stream(3):
        draws = rows.sample((20_000,)).numpy()
    distance = ((np.linalg.solve(root, (draws - loc).T)) ** 2).sum(0) / num_columns  # F(D, df)
    assert stats.kstest(distance, stats.f(num_columns, 4.5).cdf).pvalue > 1e-3
    assert stats.kstest(distance, stats.f(num_columns, 6.5).cdf).pvalue < 1e-6


def test_single_and_double_precision_agree():
    """In single precision distances are not made of products, in which digits cancel."""
    x, values = load_iris().data, parameters(3, 4, "full")
    one = NormalRows(
        torch.from_numpy(values["loc"][0]), scale_tril=torch.linalg.cholesky(torch.from_numpy(values["covariance"][0]))
    )
    other = NormalRows(one.loc.float(), scale_tril=one.scale_tril.float())
    np.testing.assert_allclose(
        other.log_prob(torch.from_numpy(x).float()), one.log_prob(torch.from_numpy(x)), rtol=1e-5
    )


# Missing entries ----------------------------------------------------------------------------------------------------


def with_gaps(seed=3):
    """Rows of three columns: some whole, some with gaps of several patterns, one all missing."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(12, 3))
    x[1, 0] = x[4, 0] = x[5, 2] = x[7, 1] = x[7, 2] = np.nan
    x[9] = np.nan
    return x


@pytest.mark.parametrize("covariance", COVARIANCES)
@pytest.mark.parametrize("name", ["gaussian_mixture", "student_mixture"])
def test_missing_entries_are_integrated_out(name, covariance):
    x = with_gaps()
    values = parameters(2, 3, covariance)
    each = covariances_of(values, 2, 3)
    df = np.array([3.0, 7.5])
    total = 0.0
    for row in x:
        seen = ~np.isnan(row)
        if not seen.any():  # the weights sum to one
            continue
        terms = []
        for k in range(2):
            loc, cov = values["loc"][k][seen], each[k][np.ix_(seen, seen)]
            normal = stats.multivariate_normal(loc, cov)
            law = normal if name == "gaussian_mixture" else stats.multivariate_t(loc, cov, df[k])
            terms.append(np.log(values["weights"][k]) + law.logpdf(row[seen]))
        total += np.logaddexp.reduce(terms)
    data = {"x": torch.from_numpy(x), "K": 2, "covariance": covariance}
    values |= {"df": df} if name == "student_mixture" else {}
    assert log_likelihood(name, data, values) == pytest.approx(total, rel=1e-10)
    filled = np.where(np.isnan(x), np.nanmean(x, axis=0), x)  # control: filling in is something else
    assert log_likelihood(name, data | {"x": torch.from_numpy(filled)}, values) != pytest.approx(total, rel=1e-2)


def test_a_gap_integrates_to_what_it_leaves():
    """By quadrature over the missing entry, whatever the formula."""
    values = parameters(2, 2, "full")
    x = torch.tensor([[0.3, 0.0], [1.0, -1.0]])
    known = {"K": 2, "data_mean": torch.zeros(2), "data_cov": torch.eye(2)}

    def density(entry):
        return math.exp(
            log_likelihood("gaussian_mixture", {"x": x + torch.tensor([[0.0, entry], [0.0, 0.0]]), **known}, values)
        )

    mass, _ = integrate.quad(density, -25, 25, epsabs=1e-9)
    x[0, 1] = math.nan
    assert math.log(mass) == pytest.approx(log_likelihood("gaussian_mixture", {"x": x, **known}, values), abs=1e-6)


def test_rows_without_entries_and_gaps_on_the_line_change_nothing():
    x = torch.tensor([1.0, 2.0, 4.0, 4.5])
    gap = torch.tensor([1.0, math.nan, 2.0, 4.0, 4.5, math.nan])
    values = {"weights": [0.4, 0.6], "loc": [1.0, 4.0], "scale": [1.0, 2.0]}
    one, other = (log_likelihood("gaussian_mixture", {"x": each, "K": 2}, values) for each in (x, gap))
    assert one == pytest.approx(other, rel=1e-12)


# Priors and their units ---------------------------------------------------------------------------------------------


def test_the_inverse_wishart_prior_is_scipys():
    psi = np.array([[2.0, 0.5, 0.1], [0.5, 1.0, -0.3], [0.1, -0.3, 0.7]])
    prior = InverseWishart(5.0, torch.linalg.cholesky(torch.from_numpy(psi)))
    with own_stream(1):
        draws = prior.sample((4000,)).numpy()
    law = stats.invwishart(5.0, psi)
    expected = [law.logpdf(draw) for draw in draws[:50]]
    np.testing.assert_allclose(prior.log_prob(torch.from_numpy(draws[:50])), expected, rtol=1e-9)
    # the first entry is inverse gamma ((df - D + 1) / 2, psi_00 / 2)
    assert stats.kstest(draws[:, 0, 0], stats.invgamma(1.5, scale=1.0).cdf).pvalue > 1e-3
    assert stats.kstest(draws[:, 0, 0], stats.invgamma(2.5, scale=1.0).cdf).pvalue < 1e-6
    with pytest.raises(ValueError, match="df must exceed D - 1 = 2"):
        InverseWishart(2.0, torch.eye(3))


def test_the_covariance_transform_has_the_jacobian_that_it_says():
    prior = InverseWishart(
        5.0, torch.linalg.cholesky(torch.tensor([[2.0, 0.5, 0.1], [0.5, 1.0, -0.3], [0.1, -0.3, 0.7]]))
    )
    transform = biject_to(prior.support)
    free = torch.tensor([0.3, -0.2, 0.5, 1.0, 0.4, -0.7])
    lower = torch.tril_indices(3, 3)
    jacobian = torch.autograd.functional.jacobian(lambda u: transform(u)[lower[0], lower[1]], free)
    covariance = transform(free)
    claimed = transform.log_abs_det_jacobian(free, covariance)
    torch.testing.assert_close(claimed, torch.linalg.slogdet(jacobian).logabsdet)
    torch.testing.assert_close(transform.inv(covariance), free)
    torch.testing.assert_close(transform(torch.zeros(6)), prior.factor @ prior.factor.mT)
    assert prior.support.check(covariance)
    assert not prior.support.check(-covariance)


def test_units_are_taken_out_of_the_unconstrained_space():
    weight = InUnits(pyro.distributions.Normal(4000.0, 1600.0), torch.tensor(4000.0), torch.tensor(400.0))
    transform = biject_to(weight.support)
    assert transform(torch.tensor(0.5)) == 4200.0
    scale = InUnits(pyro.distributions.LogNormal(2.0, 0.75), torch.tensor(2.0), torch.tensor(0.75))
    torch.testing.assert_close(biject_to(scale.support)(torch.tensor(1.0)), torch.tensor(2.75).exp())
    assert not scale.support.check(torch.tensor(-1.0))


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_units_do_not_matter(covariance):
    """The log density at corresponding points differs by the Jacobian of the change of units alone."""
    x = torch.from_numpy(load_iris().data[:, :2])
    shift, factor = torch.tensor([10.0, -1000.0]), torch.tensor([1e3, 1e3])

    def joint(rows, values):
        values = {n: torch.as_tensor(v) for n, v in values.items()}
        model = poutine.condition(MODELS["gaussian_mixture"].model, data=values)
        data = {"x": rows, "K": 2, "covariance": covariance}
        return -TraceEnum_ELBO(max_plate_nesting=1).loss(model, lambda **_: None, **data)

    values = parameters(2, 2, covariance)
    power = {"weights": 0, "loc": 1, "scale": 1, "covariance": 2}
    moved = {n: torch.as_tensor(v) * 1e3 ** power[n] for n, v in values.items()}
    moved["loc"] = moved["loc"] + shift
    number = {"full": 6, "tied": 3, "diagonal": 4, "spherical": 2}[covariance] * (
        2 if covariance in ("full", "tied") else 1
    )
    change = (x.numel() + 4 + number) * math.log(1e3)
    assert joint(x * factor + shift, moved) == pytest.approx(joint(x, values) - change, abs=1e-6)
    assert joint(x * factor, moved) != pytest.approx(joint(x, values) - change, abs=1.0)


# The optimum of EM --------------------------------------------------------------------------------------------------


def table(name):
    path = SHARED / name
    if not path.is_file():
        pytest.skip(f"{path} is absent: these data do not ship with the package")
    return pd.read_csv(path).select_dtypes("number").dropna().to_numpy(float)


def wine():
    x = load_wine().data
    return (x - x.mean(0)) / x.std(0)


OPTIMA = {
    "iris": (lambda: load_iris().data, 3, "full", -180.185),
    "wine": (wine, 3, "diagonal", -2564.410),
    "geyser": (lambda: table("geyser.csv"), 2, "full", -1130.264),
    "penguins": (lambda: table("penguins.csv"), 3, "tied", -5190.146),
}


@pytest.mark.parametrize("name", OPTIMA)
def test_with_flat_priors_the_optimum_of_em_is_reached(name):
    read, K, covariance, expected = OPTIMA[name]
    x = read()
    data = {"x": x, "K": K, "covariance": covariance, "flat": True}
    ours = fit(MODELS["gaussian_mixture"], data, MAP(num_samples=4, num_chains=1), seed=1)
    assert ours.stats["lp"][0, 0] == pytest.approx(expected, abs=1e-3)
    em = GaussianMixture(K, covariance_type=SKLEARN[covariance], n_init=20, tol=1e-9, max_iter=2000, reg_covar=0.0)
    em.set_params(random_state=0).fit(x)
    assert ours.stats["lp"][0, 0] == pytest.approx(em.score(x) * len(x), abs=1e-3)


def test_a_function_that_proposes_no_starts_reaches_the_optimum_by_clusterings(monkeypatch):
    """Control: from dispersed starts most climbs end at a collapsed component, the others in poor maxima."""
    data = {"x": load_iris().data, "K": 3, "flat": True}
    function = MODELS["gaussian_mixture"].model
    ours = fit(function, data, MAP(num_samples=4, num_chains=1), seed=1)
    assert ours.stats["lp"][0, 0] == pytest.approx(OPTIMA["iris"][3], abs=1e-3)
    monkeypatch.setattr(cluster_starts, "labels_of", lambda density: None)
    without = fit(function, data, MAP(num_samples=4, num_chains=1), seed=1)
    assert without.stats["lp"][0, 0] < OPTIMA["iris"][3] - 1


# Bad input ----------------------------------------------------------------------------------------------------------

ROWS = torch.from_numpy(load_iris().data[:20])
REPEATED = torch.cat([ROWS, 2 * ROWS[:, :1] + 1], 1)
GAP = torch.where(torch.tensor([True, False, False, False]), math.nan, ROWS)
BAD = {
    "K too large": ({"x": ROWS[:3], "K": 4, "flat": True}, "K: 4 components cannot be told from 3 rows"),
    "K of zero": ({"x": ROWS, "K": 0}, "K: expected a number of components from 1, got 0"),
    "K of a half": ({"x": ROWS, "K": 1.5}, "K: expected a number of components from 1, got 1.5"),
    "constant": ({"x": torch.ones(20, 2)}, "x: column 0 is constant"),
    "constant on the line": ({"x": torch.full((20,), 0.1)}, "constant"),
    "a column of gaps": ({"x": GAP}, "x: column 0 has no number in it"),
    "singular": ({"x": REPEATED}, "x: its covariance is singular"),
    "few rows": ({"x": ROWS[5:8], "K": 2}, "x: its covariance is singular"),
    "three dims": ({"x": ROWS[None]}, r"x: expected shape \(rows,\) or \(rows, columns\).*got \(1, 20, 4\)"),
    "no rows": ({"x": ROWS[:0]}, "at least one row"),
    "covariance": ({"x": ROWS, "covariance": "diag"}, "covariance: expected one of full, tied.*got 'diag'"),
    "infinite": ({"x": torch.where(ROWS > 5, math.inf, ROWS)}, "infinite"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_by_name(case):
    data, message = BAD[case]
    with pytest.raises(InputError, match=message):
        fit(MODELS["gaussian_mixture"], data, MAP(num_samples=4, num_chains=1), seed=1)


def test_singular_columns_are_no_obstacle_to_independent_ones():
    data = {"x": REPEATED, "K": 2, "covariance": "diagonal"}
    assert np.isfinite(
        fit(MODELS["gaussian_mixture"], data, MAP(num_samples=4, num_chains=1), seed=1).stats["lp"]
    ).all()


def test_gaps_are_refused_where_no_model_takes_account_of_them():
    data = MODELS["linear_regression"].data()
    data["x"][3, 1] = math.nan
    with pytest.raises(InputError, match=r"data\['x'\]: 1 of .* NaN"):
        fit(MODELS["linear_regression"], data, MAP(num_samples=4), seed=1)
