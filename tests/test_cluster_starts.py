"""Starts from clusterings: densities given labels against sums over all of them, and climbs against known optima."""

from itertools import product

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy.special import logsumexp

from inference import MAP, SVI, AutoVI, check, fit, isolated
from inference.cluster_starts import labels_of, proposed_starts
from inference.density import Density
from inference.modes import ModeSearch
from inference.sites import read_sites
from inference.starts import climb_to_mode
from inference.validate import prepare_data
from inference.verdict_kinds import VerdictKind
from ppl_models import MODELS


def components(x, K):
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(K)))
    with pyro.plate("component", K):
        loc = pyro.sample("loc", dist.Normal(torch.zeros(x.shape[1]), 10.0).to_event(1))
        scale = pyro.sample("scale", dist.LogNormal(torch.zeros(x.shape[1]), 1.0).to_event(1))
    return weights, loc, scale


def enumerated(x, K):
    weights, loc, scale = components(x, K)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights), infer={"enumerate": "parallel"})
        pyro.sample("x", dist.Normal(loc[z], scale[z]).to_event(1), obs=x)


def summed(x, K):
    weights, loc, scale = components(x, K)
    emission = dist.Normal(loc, scale).to_event(1)
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.MixtureSameFamily(dist.Categorical(weights), emission), obs=x)


def chain(x, K):
    initial, loc, scale = components(x, K)
    with pyro.plate("state", K):
        transition = pyro.sample("transition", dist.Dirichlet(torch.ones(K)))
    pyro.sample("x", dist.DiscreteHMM(initial.log(), transition.log(), dist.Normal(loc, scale).to_event(1)), obs=x)


def clusters(K, D, num, apart, seed):
    """Rows of K clusters (num, D), far apart in units of their sds, and where they came from."""
    rng = np.random.default_rng(seed)
    loc, scale = apart * rng.standard_normal((K, D)), np.exp(0.3 * rng.standard_normal((K, D)))
    weights = rng.dirichlet(4 * np.ones(K))
    z = rng.choice(K, num, p=weights)
    truth = {"weights": weights, "loc": loc, "scale": scale}
    return torch.tensor(loc[z] + scale[z] * rng.standard_normal((num, D))), truth


def density_of(model, data):
    torch.set_default_dtype(torch.float64)
    return Density(read_sites(model, prepare_data(model, data)))


def sequences_of_switches():
    x = torch.tensor(np.random.default_rng(0).integers(0, 2, (2, 3, 2)), dtype=torch.float64)
    return {"x": x, "lengths": torch.tensor([3, 2]), "K": 2}


TINY = {
    "assignments": (enumerated, {"x": clusters(2, 2, 4, 1.0, 0)[0], "K": 2}),
    "a mixture distribution": (summed, {"x": clusters(3, 2, 3, 1.0, 0)[0], "K": 3}),
    "Pyro's chain": (chain, {"x": clusters(2, 2, 4, 1.0, 0)[0], "K": 2}),
    "chains of different lengths": (MODELS["bernoulli_hmm"].model, sequences_of_switches()),
}


@pytest.mark.parametrize("case", TINY)
def test_the_density_is_the_sum_over_all_labels(case):
    with isolated(seed=0):
        density = density_of(*TINY[case])
        labels = labels_of(density)
        point = np.random.default_rng(1).uniform(-1, 1, density.dim)
        free = np.flatnonzero(labels.seen)
        each = []
        for values in product(range(labels.size), repeat=len(free)):
            given = np.zeros(len(labels.seen), dtype=np.int64)
            given[free] = values
            given = torch.as_tensor(given.reshape(labels.shape))
            each.append(labels.joint(density, torch.as_tensor(point), given).item())
        assert logsumexp(each) == pytest.approx(density.log_density(point[None])[0], abs=1e-9)
        assert np.ptp(each) > 1e-3  # the labels do count
        assert labels.seen.sum() == (5 if "lengths" in case else len(labels.seen))


@pytest.mark.parametrize("model", [enumerated, summed])
def test_climbs_from_clusterings_reach_what_random_ones_do_not(model):
    x, truth = clusters(5, 3, 300, 8.0, 531)
    with isolated(seed=0):
        density = density_of(model, {"x": x, "K": 5})
        density.compile()
        home = density.unconstrain({name: value[None] for name, value in truth.items()})[0][0]
        best = density.value_and_grad(climb_to_mode(density, home))[0]
        rng = np.random.default_rng(0)
        heights = [
            [density.value_and_grad(climb_to_mode(density, point))[0] - best for point in starts]
            for starts in (proposed_starts(density, 4, generator=rng), density.starts(4, generator=rng))
        ]
    assert sum(height > -0.1 for height in heights[0]) >= 2
    assert max(heights[1]) < -30


def test_what_has_no_labels_gets_no_clusterings():
    with isolated(seed=0):
        density = density_of(MODELS["eight_schools"].model, MODELS["eight_schools"].data())
        assert labels_of(density) is None
        assert proposed_starts(density, 4, generator=np.random.default_rng(0)).shape == (0, density.dim)


def test_a_point_estimate_finds_the_clusters():
    x, truth = clusters(4, 8, 200, 3.0, 7)
    result = fit(enumerated, {"x": x, "K": 4}, MAP(num_samples=4, num_chains=1), seed=0)
    assert result.status.ok
    loc = result.draws["loc"][0, 0]
    nearest = np.linalg.norm(loc[:, None] - truth["loc"], axis=-1).min(axis=0)
    assert nearest.max() < 1.5


def switches(K=3, D=12, num=300):
    rng = np.random.default_rng(3)
    probability = np.where(rng.random((K, D)) < 0.5, 0.1, 0.8)
    transition = np.full((K, K), 0.05) + (1 - 0.05 * K) * np.eye(K)
    state, x = 0, np.empty((num, D))
    for t in range(num):
        x[t] = rng.random(D) < probability[state]
        state = rng.choice(K, p=transition[state])
    return {"x": torch.tensor(x), "K": K}, probability


def test_a_mean_field_does_not_stay_where_all_states_are_equal():
    data, probability = switches()
    result = fit(MODELS["bernoulli_hmm"].model, data, SVI(guide="normal", num_steps=300, num_samples=50), seed=0)
    found = result.draws["probability"].mean(axis=(0, 1))
    nearest = np.abs(found[:, None] - probability).max(axis=-1).min(axis=0)
    assert nearest.max() < 0.2  # equal states would be 0.3 off at best


@pytest.mark.parametrize(("reached_once", "kind"), [(False, VerdictKind.TRUST), (True, VerdictKind.CANNOT_TELL)])
def test_a_highest_mode_that_only_one_climb_has_reached_is_not_trusted(reached_once, kind):
    x, _ = clusters(2, 1, 200, 4.0, 2)
    result = fit(enumerated, {"x": x, "K": 2}, AutoVI(num_samples=500), seed=0)
    seen = ModeSearch(8, 8, 0, "8 of 8 dispersed starts settled.", reached_once)
    assert check(result, search=lambda _: seen).kind is kind
