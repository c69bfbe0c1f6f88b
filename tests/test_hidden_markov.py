"""Chains against all their paths, against hmmlearn, and through every wrapper under which they are recognised."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

from inference.chain_sites import chain_logits, find_chain
from inference.hidden_markov import Chains
from tests.chains import NormalChain, by_enumeration, series


def random_chain(num_states=3, num_steps=5, seed=0):
    generator = np.random.default_rng(seed)
    initial = generator.dirichlet(np.ones(num_states))
    transition = generator.dirichlet(np.ones(num_states), size=num_states)
    return initial, transition, np.linspace(-2.0, 2.0, num_states), series(num_steps, seed)


def logits(initial, transition, loc, y):
    with np.errstate(divide="ignore"):
        return np.log(initial), np.log(transition)[None], -0.5 * ((y[:, None] - loc) ** 2 + np.log(2 * np.pi))


LEFT_TO_RIGHT = (np.array([1.0, 0.0, 0.0]), np.array([[0.6, 0.4, 0.0], [0.0, 0.5, 0.5], [0.0, 0.0, 1.0]]))


@pytest.mark.parametrize("kind", ["free", "left_to_right"])
def test_every_answer_is_the_sum_over_all_paths(kind):
    initial, transition, loc, y = random_chain()
    if kind == "left_to_right":
        initial, transition = LEFT_TO_RIGHT
    chain = Chains.of(*logits(initial, transition, loc, y))
    paths, weights, total = by_enumeration(initial, transition, loc, y)
    shares = np.stack([[weights[paths[:, t] == k].sum() for k in range(3)] for t in range(5)])
    np.testing.assert_allclose(chain.log_likelihood, total, rtol=1e-13)
    np.testing.assert_allclose(chain.smoothed, shares, atol=1e-13)
    np.testing.assert_array_equal(chain.most_probable, paths[weights.argmax()])
    shorter = [by_enumeration(initial, transition, loc, y[:t])[2] for t in range(1, 6)]
    np.testing.assert_allclose(chain.step_log_densities, np.diff(shorter, prepend=0.0), atol=1e-12)
    for t in range(1, 6):
        own, probability, _ = by_enumeration(initial, transition, loc, y[:t])
        expected = [probability[own[:, -1] == k].sum() for k in range(3)]
        np.testing.assert_allclose(chain.filtered[t - 1], expected, atol=1e-13)
    assert np.abs(chain.filtered - shares).max() > 1e-3  # control: a filter is no smoother


def test_sampled_paths_have_their_exact_probabilities():
    parameters = random_chain(num_steps=3)
    num = 40_000
    one = Chains.of(*logits(*parameters))
    many = Chains.of(*[np.broadcast_to(x, (num, *x.shape)) for x in logits(*parameters)])
    drawn = many.sample(np.random.default_rng(1))
    paths, weights, _ = by_enumeration(*parameters)
    shares = np.array([(drawn == path).all(1).mean() for path in paths])
    errors = np.sqrt(weights * (1 - weights) / num)
    assert np.all(np.abs(shares - weights) < 4.5 * errors + 2 / num)
    # control: steps drawn one by one from the smoothed probabilities are another distribution
    separate = one.smoothed[np.arange(3), paths].prod(1)
    assert np.any(np.abs(separate - weights) > 10 * errors)


def test_hmmlearn_gives_the_same_numbers():
    hmm = pytest.importorskip("hmmlearn.hmm")
    initial, transition, loc, y = random_chain(num_steps=500, seed=3)
    theirs = hmm.GaussianHMM(3, covariance_type="spherical", init_params="")
    theirs.startprob_, theirs.transmat_, theirs.means_, theirs.covars_ = initial, transition, loc[:, None], np.ones(3)
    chain = Chains.of(*logits(initial, transition, loc, y))
    total, smoothed = theirs.score_samples(y[:, None])
    np.testing.assert_allclose(chain.log_likelihood, total, rtol=1e-10)
    np.testing.assert_allclose(chain.smoothed, smoothed, atol=1e-8)
    np.testing.assert_array_equal(chain.most_probable, theirs.predict(y[:, None]))
    other = Chains.of(*logits(initial, transition.T / transition.sum(0)[:, None], loc, y))  # control: rows, not columns
    assert abs(other.log_likelihood / total - 1) > 1e-4


def test_batches_time_varying_transitions_and_single_steps():
    generator = np.random.default_rng(0)
    initial, observation = generator.normal(size=(4, 2, 3)), generator.normal(size=(4, 2, 6, 3))
    transition = generator.normal(size=(4, 1, 5, 3, 3))
    together = Chains.of(initial, transition, observation)
    alone = Chains.of(initial[2, 1], transition[2, 0], observation[2, 1])
    for name in ("log_likelihood", "smoothed", "filtered", "most_probable", "step_log_densities"):
        np.testing.assert_allclose(getattr(together, name)[2, 1], getattr(alone, name), atol=1e-12)
    short = Chains.of(initial, transition[..., :0, :, :], observation[..., :1, :])
    expected = np.logaddexp.reduce(initial + observation[..., 0, :], axis=-1)
    np.testing.assert_allclose(short.log_likelihood, expected)
    assert short.smoothed.shape == (4, 2, 1, 3)


def test_impossible_and_hopeless_sequences():
    initial, transition = LEFT_TO_RIGHT
    observation = np.zeros((4, 3))
    observation[2, 1:] = -np.inf  # only the first state can give the third value, only the last one the fourth
    observation[3, :2] = -np.inf
    chain = Chains.of(*logits(initial, transition, np.zeros(3), np.zeros(4))[:2], observation)
    assert chain.log_likelihood == -np.inf
    assert np.isnan(chain.smoothed).all()
    assert chain.step_log_densities[-1] == -np.inf
    # A state a thousand nats behind takes over when the leader becomes impossible, which scaled probabilities lose.
    observation = np.array([[0.0, -1000.0], [-np.inf, 0.0]])
    stay = np.array([[[0.0, -np.inf], [-np.inf, 0.0]]])
    np.testing.assert_allclose(Chains.of(np.log([0.5, 0.5]), stay, observation).log_likelihood, np.log(0.5) - 1000)


def test_long_series_stay_exact():
    num_steps = 100_000
    initial, transition = np.array([0.5, 0.5]), np.array([[0.5, 0.5], [0.5, 0.5]])
    observation = np.random.default_rng(0).normal(size=(num_steps, 2)) * 30
    chain = Chains.of(np.log(initial), np.log(transition)[None], observation)
    independent = np.logaddexp.reduce(observation, axis=1) - np.log(2)  # what equal rows make of a chain
    np.testing.assert_allclose(chain.log_likelihood, independent.sum(), rtol=1e-12)
    np.testing.assert_allclose(chain.step_log_densities, independent, atol=1e-9)


def _node(distribution, value, mask=None):
    with poutine.trace() as trace, poutine.mask(mask=True if mask is None else mask):
        pyro.sample("y", distribution, obs=value)
    return trace.trace.nodes["y"]


def _wrapped():
    initial, transition, loc = torch.tensor([0.3, 0.7]), torch.tensor([[0.9, 0.1], [0.4, 0.6]]), torch.tensor([-1.0, 1])
    value = torch.tensor([[0.5, -1.0, 2.0], [1.5, 0.2, -0.7]])
    plain = NormalChain(initial.expand(2, 2), transition, loc, 3)
    # Pyro moves once before the first value: from the state that the first row leads to the initial probabilities.
    pyros = dist.DiscreteHMM(initial.log(), transition.log(), dist.Normal(loc, 1.0), duration=3)
    mask = torch.tensor([True, False])
    return value, {
        "plain": (plain, None),
        "expanded": (NormalChain(initial, transition, loc, 3).expand([2]), None),
        "torch_expanded": (dist.ExpandedDistribution(NormalChain(initial, transition, loc, 3), torch.Size([2])), None),
        "to_event": (plain.to_event(1), None),
        "masked": (plain.mask(mask), None),
        "poutine_mask": (plain, mask),
        "masked_event": (plain.to_event(1).mask(torch.tensor(False)), None),
        "pyro": (pyros.expand([2]), None),
        "pyro_masked": (pyros.expand([2]).mask(mask), None),
    }


@pytest.mark.parametrize("kind", list(_wrapped()[1]))
def test_chains_are_found_under_wrappers(kind):
    value, kinds = _wrapped()
    distribution, mask = kinds[kind]
    node = _node(distribution, value, mask)
    assert find_chain(node["fn"]) is not None
    found = Chains.of(*[x.numpy() for x in chain_logits(node).values()])
    trace = poutine.Trace()
    trace.add_node("y", **node)
    trace.compute_log_prob()
    expected = trace.nodes["y"]["log_prob"].numpy()
    assert found.batch == (2,)
    total = found.log_likelihood.sum() if kind in ("to_event", "masked_event") else found.log_likelihood
    np.testing.assert_allclose(total, expected, rtol=1e-6, atol=1e-6)
    assert found.smoothed.shape == (2, 3, 2)


def test_other_distributions_are_no_chains():
    gaussian = dist.GaussianHMM(
        dist.MultivariateNormal(torch.zeros(1), torch.eye(1)),
        torch.eye(1),
        dist.MultivariateNormal(torch.zeros(1), torch.eye(1)),
        torch.eye(1),
        dist.MultivariateNormal(torch.zeros(1), torch.eye(1)),
        duration=3,
    )
    for distribution in (dist.Normal(0.0, 1.0), dist.Normal(torch.zeros(3), 1.0).to_event(1), gaussian):
        assert find_chain(distribution) is None
