"""NUTS in the base coordinates of a trained flow: the posterior itself, found where its shape is hard for NUTS."""

from dataclasses import replace

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

from inference import NUTS, SVI, AutoVI, InputError, fit, isolated, load_fit
from inference.density import Density
from inference.neutra import Transported
from inference.sites import read_sites
from tests.accuracy import assert_moments, standard_errors
from tests.zoo import CASES, SCHOOLS, correlated, logistic, mixture_by_hand, schools

FLOW = SVI(guide="iaf", num_steps=20_000, num_particles=16, lr=0.003, num_samples=500)
SHORT = NUTS(num_warmup=100, num_samples=50, num_chains=2)


def banana():
    """A ridge along a parabola: a has mean 0 and sd 10; b mean 0 and variance 19 (Haario et al. 1999)."""
    a = pyro.sample("a", dist.Normal(0.0, 10.0))
    pyro.sample("b", dist.Normal(0.03 * (a**2 - 100.0), 1.0))


def funnel():
    """Neal's funnel: v has mean 0 and sd 3."""
    v = pyro.sample("v", dist.Normal(0.0, 3.0))
    with pyro.plate("row", 5):
        pyro.sample("x", dist.Normal(0.0, torch.exp(v / 2)))


TRUTH = {banana: {"a": (0.0, 10.0), "b": (0.0, 19.0**0.5)}, funnel: {"v": (0.0, 3.0)}}


@pytest.mark.parametrize("model", TRUTH)
def test_shapes_that_are_hard_for_nuts(model):
    flow = fit(model, {}, FLOW, seed=1)
    result = fit(model, {}, NUTS(init=flow, neutra=True, num_samples=2000), seed=1)
    plain = fit(model, {}, NUTS(num_samples=2000), seed=1)
    for site, (mean, sd) in TRUTH[model].items():
        assert_moments(result.draws[site], mean, sd)
    for site in TRUTH[model]:  # else the flow would be good for nothing
        assert standard_errors(plain.draws[site])[0] > 3 * standard_errors(result.draws[site])[0]
    assert set(result.draws) == set(plain.draws)  # no trace of the base coordinates
    assert {name: d.shape for name, d in result.draws.items()} == {name: d.shape for name, d in plain.draws.items()}
    assert result.state["labels"] == plain.state["labels"]


@pytest.fixture(scope="module")
def schools_flow():
    return fit(schools, SCHOOLS, SVI(guide="iaf", num_steps=2000, num_samples=500), seed=1)


def test_one_posterior_with_and_without_a_flow(schools_flow):
    plain = fit(schools, SCHOOLS, NUTS(num_samples=2000), seed=1)
    result = fit(schools, SCHOOLS, NUTS(init=schools_flow, neutra=True, num_samples=2000), seed=2)
    for site in ("mu", "theta"):
        assert_moments(result.draws[site], plain.draws[site].mean((0, 1)), plain.draws[site].std((0, 1)), bias=0.08)
    assert_moments(
        np.log(result.draws["tau"]), np.log(plain.draws["tau"]).mean(), np.log(plain.draws["tau"]).std(), bias=0.08
    )


def test_a_flow_that_is_hardly_trained_gives_the_posterior_too():
    """Such a flow is the Gaussian that it starts from, whose tail towards small tau is short."""
    flow = fit(schools, SCHOOLS, SVI(guide="iaf", num_steps=3, num_samples=500), seed=1)
    result = fit(schools, SCHOOLS, NUTS(init=flow, neutra=True), seed=1)
    plain = np.log(fit(schools, SCHOOLS, NUTS(num_samples=2000), seed=1).draws["tau"])
    assert_moments(np.log(result.draws["tau"]), plain.mean(), plain.std(), bias=0.1)
    assert np.log(flow.draws["tau"]).std() < 0.85 * plain.std()  # far from trained


@pytest.mark.parametrize("backend", ["auto", "python", "pyro"])
def test_lp_is_the_log_density_of_x(schools_flow, backend):
    engine = NUTS(init=schools_flow, neutra=True, num_warmup=30, num_samples=20, num_chains=2, backend=backend)
    result = fit(schools, SCHOOLS, engine, seed=1)
    with result.restored() as sites:
        density = Density(sites)
        points = result.state["unconstrained"].reshape(-1, density.dim)
        np.testing.assert_allclose(result.stats["lp"].ravel(), density.log_density(points), rtol=1e-8)
        again = density.constrain(points)
    np.testing.assert_allclose(again["tau"], result.draws["tau"].ravel(), rtol=1e-10)


@pytest.mark.parametrize(
    ("model", "guide"),
    [
        (schools, "iaf"),
        (mixture_by_hand, "multivariate_normal"),
        (correlated, "multivariate_normal"),
        pytest.param(mixture_by_hand, "realnvp", marks=pytest.mark.slow),
        pytest.param(correlated, "iaf", marks=pytest.mark.slow),
    ],
)
def test_the_density_is_that_of_the_change_of_variables(model, guide):
    """With plates, simplices and a correlation matrix; the determinant by brute force."""
    data = CASES[model.__name__].data
    init = fit(model, data, SVI(guide=guide, num_steps=20, num_samples=20), seed=1)
    with init.restored() as sites:
        target, density = Transported(sites, init.state["guide"]), Density(sites)
        z = 0.5 * torch.randn(target.dim)
        jacobian = torch.autograd.functional.jacobian(lambda z: target._forward(z)[0], z)
        x = target._forward(z)[0].detach().numpy()
        expected = density.log_density(x[None])[0] + np.linalg.slogdet(jacobian.numpy())[1]
        assert target.log_density(z.numpy()[None])[0] == pytest.approx(expected, rel=1e-9)
        value, gradient = target.value_and_grad(z.numpy())
        step = 1e-6 * np.eye(target.dim)
        numeric = (target.log_density(z.numpy() + step) - target.log_density(z.numpy() - step)) / 2e-6
        np.testing.assert_allclose(gradient, numeric, rtol=1e-4, atol=1e-4)
        assert target.graph is not None


def test_equal_seeds_give_equal_numbers(schools_flow):
    engine = NUTS(init=schools_flow, neutra=True, num_warmup=50, num_samples=20, num_chains=2)
    one, same, other = (fit(schools, SCHOOLS, engine, seed=s) for s in (1, 1, 2))
    np.testing.assert_array_equal(one.draws["mu"], same.draws["mu"])
    assert not np.array_equal(one.draws["mu"], other.draws["mu"])


def test_a_flow_in_single_precision_does():
    data = CASES["logistic"].data
    flow = fit(logistic, data, SVI(guide="iaf", num_steps=500, num_samples=50, dtype="float32"), seed=1)
    result = fit(logistic, data, NUTS(init=flow, neutra=True, num_samples=500), seed=1).draws["coef"]
    plain = fit(logistic, data, NUTS(), seed=1).draws["coef"]
    assert result.dtype == np.float64
    assert_moments(result, plain.mean((0, 1)), plain.std((0, 1)), bias=0.1)


def test_the_guide_of_a_fit_is_the_trained_one(schools_flow):
    """A fit puts the caller's networks back as they were; a guide that it made itself is nobody else's."""
    with isolated(1):
        sites = read_sites(schools, schools_flow.data)
        target = Transported(sites, schools_flow.state["guide"])
        x = np.stack([target._forward(z)[0].detach().numpy() for z in torch.randn(2000, target.dim)])
    drawn = schools_flow.state["unconstrained"].reshape(-1, target.dim)
    np.testing.assert_allclose(x.mean(0), drawn.mean(0), atol=0.15)
    np.testing.assert_allclose(x.std(0), drawn.std(0), rtol=0.15)
    assert np.abs(drawn[:, 0].mean()) > 3  # mu: an untrained flow has it near zero


def neutra(init):
    return NUTS(init=init, neutra=True)


def short_svi(guide, model=logistic, data=CASES["logistic"].data):
    return fit(model, data, SVI(guide=guide, num_steps=5, num_samples=20), seed=1)


REFUSED = {
    "no fit": (lambda _: neutra(None), "neutra: init must be a fit whose guide is a flow.*got None"),
    "no guide": (lambda _: neutra(fit(schools, SCHOOLS, AutoVI(num_samples=20))), "got the fit by AutoVI"),
    "no flow": (lambda _: neutra(short_svi("normal")), "got the fit by SVI"),
    "no transform": (lambda _: neutra(short_svi("low_rank")), "has no transform from a standard normal"),
    "from a file": (
        lambda path: neutra(load_fit(short_svi("iaf").save(path / "fit.pt"), model=logistic)),
        "not loaded from a file",
    ),
    "another model": (
        lambda _: fit(schools, SCHOOLS, neutra(short_svi("iaf"))),
        "init: the flow is of another model: it has the sites coef; this model has mu, tau, z",
    ),
    "data of another size": (
        lambda _: fit(schools, {k: v[:5] for k, v in SCHOOLS.items()}, neutra(short_svi("iaf", schools, SCHOOLS))),
        "init: the flow is of data of another size: 10 coordinates, where this model has 7",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_flow_is_refused(case, tmp_path):
    call, message = REFUSED[case]
    with pytest.raises(InputError, match=message):
        call(tmp_path)


def test_the_engine_is_told_in_short(schools_flow):
    engine = replace(SHORT, init=schools_flow, neutra=True)
    assert "init=<fit by SVI(guide='iaf', num_steps=2000, num_samples=500), seed 1>, neutra=True)" in repr(engine)
