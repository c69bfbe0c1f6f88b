from itertools import pairwise

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
from scipy.special import logsumexp
from scipy.stats import norm

from inference.conditional import complete, log_likelihood, predictive, prior
from inference.isolation import isolated
from inference.sites import read_sites
from inference.validate import prepare_data
from tests.zoo import CASES, SCHOOLS, TWO_CLUSTERS, hmm, schools

NUM = 4000


@pytest.fixture(autouse=True)
def own_state():
    with isolated(seed=3):
        yield


def read(model, data):
    return read_sites(model, prepare_data(model, data))


def repeated(values, num=NUM):
    return {name: np.repeat(np.asarray(value, dtype=float)[None], num, axis=0) for name, value in values.items()}


MIXTURE = {"weights": [0.3, 0.7], "loc": [-1.0, 1.5]}
MIXTURES = ["mixture_tutorial", "mixture_vectorised"]


def mixture_terms(y):
    return np.log(MIXTURE["weights"]) + norm.logpdf(np.asarray(y)[:, None], MIXTURE["loc"], 1.0)


@pytest.mark.parametrize("name", MIXTURES)
def test_assignments_have_the_exact_responsibilities(name):
    drawn = complete(read(CASES[name].model, TWO_CLUSTERS), repeated(MIXTURE))["assignment"]
    terms = mixture_terms(TWO_CLUSTERS["y"])
    share = np.exp(terms[:, 1] - logsumexp(terms, axis=1))
    error = np.sqrt(share * (1 - share) / NUM)
    assert drawn.shape == (NUM, 40)
    assert drawn.dtype == np.int64
    assert np.all(np.abs(drawn.mean(0) - share) < 4.5 * error + 2 / NUM)
    # control: draws from the prior, as Pyro's replay gives them, would be far off
    assert np.any(np.abs(MIXTURE["weights"][1] - share) > 20 * error + 2 / NUM)


@pytest.mark.parametrize("name", MIXTURES)
def test_mixture_likelihood_is_marginal(name):
    values, dims = log_likelihood(read(CASES[name].model, TWO_CLUSTERS), repeated(MIXTURE, 3))
    expected = logsumexp(mixture_terms(TWO_CLUSTERS["y"]), axis=1)
    np.testing.assert_allclose(values["y"], np.broadcast_to(expected, (3, 40)), rtol=1e-10)
    assert dims == {"y": ("data",)}


def test_state_paths_have_the_exact_joint_distribution():
    y = np.array([0.2, -0.9, 1.3])
    values = {"transition": [[0.7, 0.3], [0.2, 0.8]], "loc": [-1.0, 1.0]}
    drawn = complete(read(hmm, {"y": y}), repeated(values))
    paths = np.stack([drawn[f"state_{t}"] for t in range(3)], axis=-1)
    joint = {}
    for path in np.ndindex(2, 2, 2):
        steps = np.prod([values["transition"][a][b] for a, b in pairwise((0, *path))])
        joint[path] = steps * np.prod(norm.pdf(y, np.array(values["loc"])[list(path)]))
    total = sum(joint.values())
    for path, weight in joint.items():
        share = weight / total
        assert abs((paths == path).all(-1).mean() - share) < 4.5 * np.sqrt(share * (1 - share) / NUM)


def test_chain_of_states_has_one_joint_term():
    y = np.array([0.2, -0.9, 1.3, 0.1, 0.7])
    transition, loc = np.array([[0.7, 0.3], [0.2, 0.8]]), np.array([-1.0, 1.0])
    values, dims = log_likelihood(read(hmm, {"y": y}), repeated({"transition": transition, "loc": loc}, 2))
    paths = np.array(list(np.ndindex(*[2] * 5)))
    before = np.column_stack([np.zeros(len(paths), dtype=int), paths[:, :-1]])
    total = (transition[before, paths] * norm.pdf(y, loc[paths])).prod(1).sum()
    np.testing.assert_allclose(values["y"], np.log(total), rtol=1e-12)
    assert dims == {"y": ()}  # hundreds of sites y_0, y_1, ... are one observation, named as they are


def test_likelihood_without_discrete_sites_keeps_masks_and_plates():
    def model(x, y, seen):
        slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
        with pyro.plate("row", 2, dim=-2), pyro.plate("col", 3, dim=-1):
            pyro.sample("y", dist.Normal(slope * x, 1.0).mask(seen), obs=y)

    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 3)), rng.normal(size=(2, 3))
    seen = np.array([[True, True, False], [True, True, True]])
    sites = read(model, {"x": x, "y": y, "seen": seen})
    slopes = np.array([0.5, -1.0])
    values, dims = log_likelihood(sites, {"slope": slopes})
    expected = norm.logpdf(y, slopes[:, None, None] * x) * seen
    np.testing.assert_allclose(values["y"], expected, rtol=1e-10)
    assert dims == {"y": ("row", "col")}


def test_observations_that_share_a_discrete_latent_have_a_joint_term():
    def model(y, w):
        p = pyro.sample("p", dist.Beta(1.0, 1.0))
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Bernoulli(p))
            pyro.sample("y", dist.Normal(z, 1.0), obs=y)
            pyro.sample("w", dist.Normal(-z, 1.0), obs=w)

    y, w = np.array([0.1, 1.2]), np.array([0.0, -2.0])
    values, dims = log_likelihood(read(model, {"y": y, "w": w}), {"p": np.array([0.3])})
    expected = np.log(0.7 * norm.pdf(y) * norm.pdf(w) + 0.3 * norm.pdf(y, 1) * norm.pdf(w, -1))
    np.testing.assert_allclose(values["y+w"][0], expected, rtol=1e-10)
    assert dims == {"y+w": ("data",)}


def test_groups_that_share_a_discrete_latent_have_a_term_per_group():
    def model(y):
        p = pyro.sample("p", dist.Beta(1.0, 1.0))
        with pyro.plate("group", 2, dim=-2):
            z = pyro.sample("z", dist.Bernoulli(p))
            with pyro.plate("member", 3, dim=-1):
                pyro.sample("y", dist.Normal(z, 1.0), obs=y)

    y = np.random.default_rng(0).normal(size=(2, 3))
    values, dims = log_likelihood(read(model, {"y": y}), {"p": np.array([0.3])})
    expected = np.log(0.7 * norm.pdf(y).prod(1) + 0.3 * norm.pdf(y, 1).prod(1))
    np.testing.assert_allclose(values["y"][0], expected, rtol=1e-10)
    assert dims == {"y": ("group",)}


def test_deterministic_sites_are_computed_and_not_squeezed():
    draws = {"mu": np.array([1.0, 2.0]), "tau": np.array([0.5, 3.0]), "z": np.arange(16.0).reshape(2, 8)}
    theta = complete(read(schools, SCHOOLS), draws)["theta"]
    np.testing.assert_allclose(theta, draws["mu"][:, None] + draws["tau"][:, None] * draws["z"])
    one = complete(read(schools, {"y": [1.0], "sigma": [2.0]}), {**draws, "z": draws["z"][:, :1]})["theta"]
    assert one.shape == (2, 1)


def test_predictive_draws_redraw_the_assignments():
    sites = read(CASES["mixture_tutorial"].model, TWO_CLUSTERS)
    draws = {**repeated(MIXTURE), "assignment": np.zeros((NUM, 40), dtype=np.int64)}
    new = predictive(sites, draws)["y"]
    weights, loc = np.array(MIXTURE["weights"]), np.array(MIXTURE["loc"])
    mean = weights @ loc
    variance = 1 + weights @ (loc - mean) ** 2
    assert new.shape == (NUM, 40)
    assert abs(new.mean() - mean) < 4.5 * np.sqrt(variance / new.size)
    assert abs(new.var() / variance - 1) < 4.5 * np.sqrt(2.0 / new.size)
    assert abs(new.mean() - loc[0]) > 1  # control: the assignments given (all 0) are not kept


def test_prior_draws_have_the_prior_moments():
    latents, observed = prior(read(schools, SCHOOLS), NUM)
    assert observed["y"].shape == (NUM, 8)
    assert latents["theta"].shape == (NUM, 8)
    assert abs(latents["mu"].mean()) < 4.5 * 5 / np.sqrt(NUM)
    assert abs(np.mean(latents["tau"] < 5.0) - 0.5) < 4.5 * 0.5 / np.sqrt(NUM)
    residual = (observed["y"] - latents["theta"]) / np.asarray(SCHOOLS["sigma"])
    assert abs(residual.std() - 1) < 4.5 / np.sqrt(2 * residual.size)
