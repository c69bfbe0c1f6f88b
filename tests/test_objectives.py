"""Objectives: their values against closed forms and quadrature, their gradients against each other."""

from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions import constraints
from pyro.infer import RenyiELBO, TraceTailAdaptive_ELBO
from pyro.infer import ReweightedWakeSleep as PyroWakeSleep
from scipy import stats

from inference import SVI, InputError, fit
from inference.elbo import make_elbo
from inference.guides import check_guide
from inference.isolation import isolated
from inference.objectives import TailAdaptive
from inference.sites import read_sites
from inference.svi_graph import UntraceableError, record_step
from inference.validate import prepare_data
from tests.test_svi import LINE, hand_guide, line
from tests.zoo import CASES, mixture_tutorial

Z = 4.5  # limit of |difference| / standard error
Y = 1.3
ONE = {"y": torch.tensor(Y, dtype=torch.float64)}
COUNT = {"y": torch.tensor(3.0)}


def conjugate(y):
    """x | y is N(y/2, 1/2), and y is N(0, 2)."""
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(x, 1.0), obs=y)


def normal_guide(y, *, loc, scale):
    loc = pyro.param("loc", torch.tensor(loc))
    pyro.sample("x", dist.Normal(loc, pyro.param("scale", torch.tensor(scale), constraint=constraints.positive)))


EXACT = {"loc": Y / 2, "scale": 0.5**0.5}
WRONG = {"loc": -0.3, "scale": 0.5}
LOG_EVIDENCE = stats.norm(0, 2**0.5).logpdf(Y)


def chain_model(y):
    """Two latents in a row; jointly Gaussian."""
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    b = pyro.sample("b", dist.Normal(a, 1.0))
    pyro.sample("y", dist.Normal(b, 1.0), obs=y)


def chain_guide(y):
    """Exact: b | y is N(2y/3, 2/3), a | b is N(b/2, 1/2), so that one site's density depends on another's draw."""
    loc, scale = pyro.param("loc", torch.tensor(2 * Y / 3)), pyro.param("scale", torch.tensor((2 / 3) ** 0.5))
    slope, rest = pyro.param("slope", torch.tensor(0.5)), pyro.param("rest", torch.tensor(0.5**0.5))
    b = pyro.sample("b", dist.Normal(loc, scale))
    pyro.sample("a", dist.Normal(slope * b, rest))


def rate_model(y):
    """The rate given y = 3 is Gamma(5, 2)."""
    rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
    pyro.sample("y", dist.Poisson(rate), obs=y)


def rate_guide(y):
    shape, rate = pyro.param("shape", torch.tensor(5.0)), pyro.param("speed", torch.tensor(2.0))
    pyro.sample("rate", dist.Gamma(shape, rate))


def steps(elbo, model, data, guide, num, *, num_particles=1, seed=0):
    """Losses (num,) and gradients (num, P) of an objective, by name or as an object, at the start of a guide."""
    with isolated(seed):
        sites = read_sites(model, prepare_data(model, data))
        loss = make_elbo(elbo, sites, check_guide(guide, sites), num_particles=num_particles)
        try:
            recorded = record_step(loss, sites.function, guide, sites.data)
        except (UntraceableError, TypeError):  # Pyro's wake-sleep gives two losses
            recorded = None
        if recorded is None or not recorded.noise:  # it draws as it runs
            return _eager_steps(loss, sites, guide, num)
        noise = [part.draw(num * recorded.particles) for part in recorded.noise]
        run = torch.vmap(recorded.graph, in_dims=(*(None for _ in recorded.params), *(0 for _ in noise)))
        losses, *gradients = (
            r.detach().numpy().reshape(num, recorded.particles, -1) for r in run(*recorded.params, *noise)
        )
        return losses.mean((1, 2)), np.concatenate([g.mean(1) for g in gradients], 1)


def _eager_steps(loss, sites, guide, num):
    losses, gradients = [], []
    for _ in range(num):
        with poutine.trace(param_only=True) as seen, pyro.validation_enabled(False):
            losses.append(np.sum(loss.loss_and_grads(sites.function, guide, **sites.data)))
        params = [node["value"].unconstrained() for node in seen.trace.nodes.values()]
        gradients.append(np.concatenate([p.grad.numpy().ravel() for p in {id(p): p for p in params}.values()]))
        for p in params:
            p.grad = None
    return np.array(losses), np.array(gradients)


def z_scores(a, b):
    """Differences of two means in standard errors; b may be exact."""
    error = a.var(0, ddof=1) / len(a) + (np.var(b, 0, ddof=1) / len(b) if np.ndim(b) == a.ndim else 0.0)
    return (a.mean(0) - (np.mean(b, 0) if np.ndim(b) == a.ndim else b)) / np.sqrt(error)


def log_weight(x, loc, scale):
    return stats.norm(0, 1).logpdf(x) + stats.norm(x, 1).logpdf(Y) - stats.norm(loc, scale).logpdf(x)


def exact_bound(loc, scale, num):
    """E log mean of ``num`` (1 or 2) weights, by Gauss-Hermite quadrature."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    weights = weights / weights.sum()
    at = log_weight(loc + scale * nodes, loc, scale)
    if num == 1:
        return weights @ at
    return weights @ (np.logaddexp(at[:, None], at) - np.log(2)) @ weights


AT_POSTERIOR = {
    "normal": (conjugate, ONE, partial(normal_guide, **EXACT)),
    "two layers": (chain_model, ONE, chain_guide),
    "gamma": (rate_model, COUNT, rate_guide),
}


@pytest.mark.parametrize("case", AT_POSTERIOR)
def test_pathwise_gradients_vanish_at_the_posterior(case):
    model, data, guide = AT_POSTERIOR[case]
    for elbo in ("stl", "iw", "tail_adaptive"):
        _, gradients = steps(elbo, model, data, guide, 5, num_particles=2)
        assert np.abs(gradients).max() < 1e-10, elbo
    for elbo in ("trace", "renyi", "rws"):  # control
        assert np.abs(steps(elbo, model, data, guide, 5, num_particles=2)[1]).max(1).min() > 1e-3, elbo


def test_every_bound_is_tight_at_the_posterior():
    for elbo in ("trace", "stl", "iw", "iwae", "tail_adaptive", "tmc", "rws"):
        losses, _ = steps(elbo, conjugate, ONE, partial(normal_guide, **EXACT), 3, num_particles=3)
        np.testing.assert_allclose(-losses, LOG_EVIDENCE, rtol=1e-10)


@pytest.mark.parametrize("scale", [0.5, 1.2])
def test_bounds_agree_with_quadrature_and_are_ordered(scale):
    guide = partial(normal_guide, loc=-0.3, scale=scale)
    exact = {1: exact_bound(-0.3, scale, 1), 2: exact_bound(-0.3, scale, 2)}
    for elbo, num in (("stl", 1), ("iw", 2), ("iwae", 2), ("rws", 2), ("tail_adaptive", 2), ("tmc", 2)):
        losses, _ = steps(elbo, conjugate, ONE, guide, 3000, num_particles=num)
        assert abs(z_scores(-losses, exact[num])) < Z, elbo
        assert abs(z_scores(-losses, exact[3 - num])) > Z, elbo  # control
    eight, _ = steps("iw", conjugate, ONE, guide, 1000, num_particles=8)
    error = eight.std() / len(eight) ** 0.5
    assert exact[1] < exact[2] < -eight.mean() - Z * error
    assert -eight.mean() + Z * error < LOG_EVIDENCE


def scaled_model(y):
    """With a parameter of its own."""
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(x, pyro.param("noise", torch.tensor(0.8))), obs=y)


@pytest.mark.parametrize("model", [conjugate, scaled_model])
def test_gradients_have_the_mean_of_the_plain_ones(model):
    problem = (model, ONE, partial(normal_guide, **WRONG), 4000)
    plain, stl = steps("trace", *problem)[1], steps("stl", *problem, seed=1)[1]
    assert np.abs(z_scores(plain, stl)).max() < Z
    total = steps(RenyiELBO(alpha=0, num_particles=3), *problem)[1]
    dreg = steps("iw", *problem, num_particles=3, seed=1)[1]
    assert np.abs(z_scores(total, dreg)).max() < Z
    assert np.abs(z_scores(steps("iwae", *problem, num_particles=3, seed=2)[1], dreg)).max() < Z
    assert np.abs(z_scores(stl, dreg)).max() > Z  # control: another objective
    assert np.abs(z_scores(dreg, steps("tail_adaptive", *problem, num_particles=3)[1])).max() > Z


def test_doubly_reparameterised_gradients_keep_their_signal():
    """Near the optimum the ratio of mean to sd falls with the plain gradient (Rainforth et al. 2018)."""
    guide = partial(normal_guide, loc=Y / 2 + 0.1, scale=0.8)
    ratio = {}
    for num in (2, 32):
        for name, elbo in (("plain", RenyiELBO(alpha=0, num_particles=num)), ("dreg", "iw")):
            gradients = steps(elbo, conjugate, ONE, guide, 800, num_particles=num)[1][:, 0]
            ratio[name, num] = gradients.mean() / gradients.std()
    assert ratio["dreg", 32] > 1.5 * ratio["dreg", 2]
    assert ratio["dreg", 32] > 3 * ratio["plain", 32]


def local(y, size=None):
    with pyro.plate("data", len(y), subsample_size=size) as rows:
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(x, 1.0), obs=y[rows])


def local_guide(y, size=None):
    loc = pyro.param("loc", torch.tensor(-0.3))
    with pyro.plate("data", len(y), subsample_size=size):
        pyro.sample("x", dist.Normal(loc, 0.5))


def test_elements_of_a_plate_are_weighted_apart():
    data = {"y": torch.full((4,), Y, dtype=torch.float64)}
    separate = 4 * exact_bound(-0.3, 0.5, 2)
    losses, _ = steps("iw", local, data, local_guide, 3000, num_particles=2)
    assert abs(z_scores(-losses, separate)) < Z
    subsampled, _ = steps("iw", local, data | {"size": 2}, local_guide, 1000, num_particles=2)
    assert abs(z_scores(-subsampled, separate)) < Z
    wrong, _ = steps(RenyiELBO(num_particles=2), local, data | {"size": 2}, local_guide, 1000)  # control: Pyro's
    assert abs(z_scores(-wrong, separate)) > Z

    def joint(y):
        """Its draw lies outside of the plate, as those of automatic guides do."""
        x = pyro.sample("all", dist.Normal(-0.3, 0.5).expand([4]).to_event(1), infer={"is_auxiliary": True})
        pyro.param("unused", torch.tensor(0.0))
        with pyro.plate("data", len(y)):
            pyro.sample("x", dist.Delta(x + 0 * pyro.param("unused")))

    together, _ = steps("iw", local, data, joint, 20_000, num_particles=2)
    assert z_scores(-together, separate) < -Z


def test_noise_inside_a_logarithm_is_refused():
    def model(y, size):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(y), subsample_size=size) as rows:
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y[rows])

    data = {"y": torch.zeros(6), "size": 2}
    for elbo in ("iw", "tmc", "rws", "renyi"):
        with pytest.raises(InputError, match=f"elbo='{elbo}': plate 'data' is subsampled"):
            fit(model, data, SVI(elbo=elbo, num_particles=2, num_steps=5), seed=1)
    assert np.isfinite(fit(model, data, SVI(elbo="stl", num_steps=5), seed=1).history["loss"]).all()


def test_shares_of_the_tail():
    log_weights = torch.tensor([0.3, 5.0, -2.0, 0.3])
    path, score, model = TailAdaptive(num_particles=4, max_plate_nesting=0).shares(log_weights)
    expected = np.array([1 / 3, 1, 1 / 4, 1 / 3])
    np.testing.assert_allclose(path, expected / expected.sum(), rtol=1e-6)
    assert not score.any()
    np.testing.assert_allclose(model, torch.softmax(log_weights, 0))


def skewed(y):
    x = pyro.sample("x", dist.Gamma(1.5, 1.0))
    pyro.sample("y", dist.Normal(0.0, 1.0), obs=y)
    assert x.dim() == 0


def test_tail_adaptive_covers_more_than_the_elbo():
    """The posterior of log x has a long left tail."""
    sds = {}
    for elbo in ("stl", "tail_adaptive"):
        run = fit(skewed, {"y": torch.tensor(0.0)}, SVI(elbo=elbo, num_particles=32, num_steps=3000), seed=1)
        sds[elbo] = np.log(run.draws["x"]).std()
    assert sds["tail_adaptive"] > 1.05 * sds["stl"]


def test_wake_sleep_lowers_the_inclusive_divergence():
    """Its gradient is that of KL(p, q), here in closed form, when draws are many; Pyro's is not for two layers."""
    problem = (conjugate, ONE, partial(normal_guide, loc=0.3, scale=1.0))
    gradients = steps("rws", *problem, 3000, num_particles=48)[1]
    slope = 0.3 - Y / 2
    exact = np.array([slope, 1 - 0.5 - slope**2])  # with respect to location and log scale, at scale 1
    assert np.abs(gradients.mean(0) - exact).max() < 0.01
    problem = (rate_model, COUNT, wide_rate_guide)
    ours = steps("rws", *problem, 2000, num_particles=48)[1].mean(0)
    pyros = steps(PyroWakeSleep(num_particles=16, vectorize_particles=False), *problem, 100)[1].mean(0)
    # E_p of log x for Gamma(5, 2), at which the location's gradient is minus its distance
    exact = 0.5 - (stats.gamma(5, scale=0.5).expect(np.log))
    assert abs(ours[0] - exact) < 0.01
    assert abs(pyros[0] - exact) > 0.1  # control


def wide_rate_guide(y):
    loc = pyro.param("loc", torch.tensor(0.5))
    u = pyro.sample("u", dist.Normal(loc, 1.0), infer={"is_auxiliary": True})
    pyro.sample("rate", dist.Delta(u.exp(), log_density=-u))


def test_wake_sleep_takes_discrete_draws():
    def model(y):
        k = pyro.sample("k", dist.Poisson(2.0))
        pyro.sample("y", dist.Normal(k, 0.5), obs=y)

    def guide(y):
        pyro.sample("k", dist.Poisson(pyro.param("rate", torch.tensor(1.0), constraint=constraints.positive)))

    run = fit(
        model, {"y": torch.tensor(4.2)}, SVI(guide=guide, elbo="rws", num_particles=8, num_steps=500, lr=0.05), seed=1
    )
    k = np.arange(15)
    mass = stats.poisson(2).pmf(k) * stats.norm(k, 0.5).pdf(4.2)
    assert run.draws["k"].mean() == pytest.approx(mass @ k / mass.sum(), abs=0.15)
    with pytest.raises(InputError, match="elbo='stl': site 'k' of the guide, Poisson, is not reparameterised"):
        fit(model, {"y": torch.tensor(4.2)}, SVI(guide=guide, elbo="stl", num_steps=5), seed=1)


def test_tensor_monte_carlo_combines_draws_of_independent_sites():
    def model(y):
        for name in ("a", "b", "c"):
            x = pyro.sample(name, dist.Normal(0.0, 1.0))
            pyro.sample(f"y_{name}", dist.Normal(x, 1.0), obs=y)

    def guide(y):
        loc = pyro.param("loc", torch.tensor(-0.3))
        for name in ("a", "b", "c"):
            pyro.sample(name, dist.Normal(loc, 0.5))

    combined, _ = steps("tmc", model, ONE, guide, 20_000, num_particles=2)
    together, _ = steps("iw", model, ONE, guide, 20_000, num_particles=2)
    # with independent sites the average over combinations is the product of the sites' averages
    assert abs(z_scores(-combined, 3 * exact_bound(-0.3, 0.5, 2))) < Z
    assert z_scores(-combined, -together) > Z


def test_enumeration_goes_with_weights():
    data = CASES["mixture_tutorial"].data
    runs = {
        name: fit(mixture_tutorial, data, SVI(elbo=name, num_particles=4, lr=1e-12, num_steps=300), seed=1)
        for name in ("trace_enum", "stl", "iw", "rws")
    }
    losses = {name: run.history["loss"] for name, run in runs.items()}
    assert abs(z_scores(losses["trace_enum"], losses["stl"])) < Z
    assert abs(z_scores(losses["iw"], losses["rws"])) < Z
    assert z_scores(losses["stl"], losses["iw"]) > Z


def place(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
    pyro.deterministic("twice", 2 * mu)
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def test_energy_distance_needs_no_density():
    """E|X - x| - E|X - X'|/2 of predictive draws X = mu + noise, against numpy; and its minimum predicts the data."""
    y = 3.0 + np.random.default_rng(0).normal(size=30)

    def guide(y):
        pyro.sample("mu", dist.Normal(pyro.param("loc", torch.tensor(2.0)), 0.5))

    losses, _ = steps("energy", place, {"y": y}, guide, 1500, num_particles=4)
    rng = np.random.default_rng(1)
    x = rng.normal(2, 0.5, size=(2, 20_000, 1)) + rng.normal(size=(2, 20_000, 30))
    direct = np.linalg.norm(x[0] - y, axis=1) - 0.5 * np.linalg.norm(x[0] - x[1], axis=1)
    assert abs(z_scores(losses, direct)) < Z
    run = fit(place, {"y": y}, SVI(guide=guide, elbo="energy", num_particles=8, num_steps=2000), seed=1)
    assert run.draws["mu"].mean() == pytest.approx(y.mean(), abs=0.15)


def test_mean_discrepancy_from_the_prior():
    """At the prior the discrepancy is that of two samples from one distribution, 2(1 - E k)/K, and elsewhere larger."""
    y = np.zeros(1)

    def guide(y, *, loc):
        pyro.sample("mu", dist.Normal(pyro.param("loc", torch.tensor(loc)), 10.0))

    def flat(y):
        pyro.sample("mu", dist.Normal(0.0, 10.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(0.0, 1.0), obs=y)

    log_likelihood = stats.norm(0, 1).logpdf(0)
    at_prior, _ = steps("mmd", flat, {"y": y}, partial(guide, loc=0.0), 500, num_particles=20)
    away, _ = steps("mmd", flat, {"y": y}, partial(guide, loc=30.0), 50, num_particles=20)
    # for a normal prior the median distance of two draws is 0.954 sd; k = exp(-d^2 / (2 width^2)), d^2 ~ 2 sd^2 chi^2
    width = 0.954 * 10
    mean_kernel = (1 + 2 * 100 / width**2) ** -0.5
    assert at_prior.mean() + log_likelihood == pytest.approx(2 * (1 - mean_kernel) / 20, rel=0.1)
    assert away.mean() + log_likelihood > 0.3


REFUSED = {
    "iw of one": (conjugate, {"elbo": "iw"}, "elbo='iw': needs num_particles of at least 2"),
    "energy of counts": (rate_model, {"elbo": "energy", "num_particles": 2}, "site 'y' is Poisson"),
    "energy of clusters": (mixture_tutorial, {"elbo": "energy", "num_particles": 2}, "'assignment' is discrete"),
    "mmd of clusters": (mixture_tutorial, {"elbo": "mmd", "num_particles": 2}, "'assignment' is discrete"),
    "pyro's tail": (conjugate, {"elbo": TraceTailAdaptive_ELBO(num_particles=2)}, "use elbo='tail_adaptive'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_done_is_refused(name):
    model, settings, says = REFUSED[name]
    data = CASES["mixture_tutorial"].data if model is mixture_tutorial else COUNT
    with pytest.raises(InputError, match=says):
        fit(model, data, SVI(num_steps=5, **settings), seed=1)


def test_models_without_data_or_with_factors_are_refused():
    def unobserved():
        pyro.sample("x", dist.Normal(0.0, 1.0))

    def factor(y):
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(x, 1.0), obs=y)
        pyro.factor("more", -(x**2))

    def angle(y):
        x = pyro.sample("x", dist.VonMises(0.0, 1.0))
        pyro.sample("y", dist.Normal(x, 1.0), obs=y)

    for model, data, elbo, says in (
        (unobserved, {}, "energy", "no observed site"),
        (factor, ONE, "energy", "'more' is a pyro.factor"),
        (angle, ONE, "mmd", "prior of site 'x', VonMises"),
    ):
        with pytest.raises(InputError, match=says):
            fit(model, data, SVI(elbo=elbo, num_particles=2, num_steps=5), seed=1)


def test_a_collapsed_weighting_is_not_called_converged():
    """Far from the posterior one draw has all the weight, and wake-sleep stops moving."""
    run = fit(line, LINE, SVI(guide=hand_guide, elbo="rws", num_particles=4, num_steps=2000, lr=0.1), seed=1)
    assert run.state["elbo"] < -100
    assert not run.status.ok
    near = fit(line, LINE, SVI(elbo="rws", num_particles=4, num_steps=2000), seed=1)
    assert near.status.ok
