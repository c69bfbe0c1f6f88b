"""The hidden Markov distribution: against every path by hand, hmmlearn, and the laws of masks and missing values."""

import itertools
import math
import warnings

import numpy as np
import pyro.distributions as dist
import pytest
import torch

from ppl_models.hidden_markov import HiddenMarkov
from ppl_models.hmm_emissions import Autoregression

K, D, C = 3, 2, 4


pytestmark = pytest.mark.usefixtures("direct_pyro")


def rows(*shape):
    return torch.rand(*shape, K).add(0.1).log().log_softmax(-1)


def correlated():
    root = torch.randn(K, D, D).tril() + 2 * torch.eye(D)
    return dist.MultivariateNormal(torch.randn(1, K, D), scale_tril=root.tril().unsqueeze(0))


# An emission, the shape of one value, and its log density by hand: (emission, past values, value, state) -> float.
EMISSIONS = {
    "normal": lambda: dist.Normal(torch.randn(1, K), 0.5 + torch.rand(1, K)),
    "normal, moving": lambda: dist.Normal(torch.randn(5, K), 0.5 + torch.rand(1, K)),
    "diagonal": lambda: dist.Normal(torch.randn(1, K, D), 0.5 + torch.rand(1, K, D)).to_event(1),
    "full": correlated,
    "poisson": lambda: dist.Poisson(3 * torch.rand(1, K) + 0.5),
    "categorical": lambda: dist.Categorical(logits=torch.randn(1, K, C)),
    "switches": lambda: dist.Bernoulli(logits=torch.randn(1, K, D)).to_event(1),
    "switches, moving": lambda: dist.Bernoulli(logits=torch.randn(5, K, D)).to_event(1),
    "skewed": lambda: dist.LogNormal(torch.randn(1, K), 0.5),
    "autoregressive": lambda: Autoregression(torch.randn(K), 0.5 + torch.rand(K), 0.5 * torch.randn(K, 2)),
}


def of_state(emission, value, t, k):
    """Log density of step t in state k, the slow way."""
    if isinstance(emission, Autoregression):
        past = [value[t - p] if t >= p else emission.loc[k] for p in (1, 2)]
        mean = emission.loc[k] + sum(c * (v - emission.loc[k]) for c, v in zip(emission.coef[k], past, strict=True))
        return dist.Normal(mean, emission.scale[k]).log_prob(value[t])
    steps = emission.batch_shape[0]
    alone = emission.expand((steps, K))
    step = alone.log_prob(value[t].expand(steps, K, *emission.event_shape))
    return step[t if steps > 1 else 0, k]


def over_all_paths(initial, transition, observation):
    """Log of the sum over every path, from plain numbers."""
    steps = len(observation)
    terms = []
    for path in itertools.product(range(initial.shape[-1]), repeat=steps):
        term = initial[path[0]] + sum(observation[t, k] for t, k in enumerate(path))
        for t, (i, j) in enumerate(itertools.pairwise(path)):
            term = term + transition[t if len(transition) > 1 else 0, i, j]
        terms.append(term)
    return torch.logsumexp(torch.stack(terms), 0)


def made(emission, steps=5, *, moving=False):
    maps = rows(steps - 1, K) if moving else rows(K)
    return HiddenMarkov(rows(), maps, emission, steps)


@pytest.mark.parametrize("name", EMISSIONS)
@pytest.mark.parametrize("moving", [False, True], ids=["alike", "time-varying"])
def test_equals_the_sum_over_all_paths(name, moving):
    emission = EMISSIONS[name]()
    chain = made(emission, moving=moving)
    value = chain.sample()
    assert value.shape == chain.event_shape
    by_hand = torch.tensor([[of_state(emission, value, t, k) for k in range(K)] for t in range(5)])
    expected = over_all_paths(chain.initial_logits, chain.transition_logits, by_hand)
    assert chain.log_prob(value).item() == pytest.approx(expected.item(), rel=1e-12)
    # Controls: the chain the other way round, and a step before the first value, as in Pyro's DiscreteHMM.
    turned = over_all_paths(chain.initial_logits, chain.transition_logits.mT, by_hand)
    moved = torch.logsumexp(chain.initial_logits.unsqueeze(-1) + chain.transition_logits[0], 0)
    later = over_all_paths(moved, chain.transition_logits, by_hand)
    assert min(abs(turned - expected), abs(later - expected)) > 1e-6
    torch.testing.assert_close(chain.chain_logits(value)[2], by_hand)


@pytest.mark.parametrize("name", [name for name in EMISSIONS if "moving" not in name])
def test_one_step_is_a_mixture(name):
    emission = EMISSIONS[name]()
    chain = made(emission, 1)
    value = chain.sample()
    step = torch.stack([of_state(emission, value, 0, k) for k in range(K)])
    expected = torch.logsumexp(chain.initial_logits + step, 0)
    torch.testing.assert_close(chain.log_prob(value), expected)
    initial, transition, observation = chain.chain_logits(value)
    assert initial.shape == (K,)
    assert transition.shape == (1, K, K)
    assert observation.shape == (1, K)


WITHOUT_MEMORY = [name for name in EMISSIONS if name != "autoregressive"]


@pytest.mark.parametrize("name", WITHOUT_MEMORY)
def test_a_missing_step_says_nothing(name):
    """NaN, or a masked step, is what summing the step's emission out leaves: the chain moves on, no more."""
    chain = made(EMISSIONS[name](), moving=True)
    value = chain.sample()
    seen = torch.tensor([True, True, False, True, False])
    gone = value.clone()
    gone[~seen] = torch.nan
    observation = chain.chain_logits(value)[2].clone()
    observation[~seen] = 0.0
    expected = over_all_paths(chain.initial_logits, chain.transition_logits, observation)
    torch.testing.assert_close(chain.log_prob(gone), expected)
    masked = HiddenMarkov(chain.initial_logits, chain.transition_logits, chain.emission, 5, mask=seen)
    torch.testing.assert_close(masked.log_prob(value), expected)
    value[~seen] = -1e6  # whatever stands there
    torch.testing.assert_close(masked.log_prob(value), expected)
    assert (masked.chain_logits(value)[2][~seen] == 0).all()
    everything = torch.full_like(value, torch.nan)
    assert chain.log_prob(everything).item() == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("name", ["diagonal", "full", "switches"])
def test_a_missing_entry_is_marginalised(name):
    """Against the joint density integrated (a sum, for switches) over the entry."""
    emission = EMISSIONS[name]()
    chain = made(emission)
    value = chain.sample()
    gone = value.clone()
    gone[1, 0] = gone[3, 1] = torch.nan
    if name == "switches":
        grid, weight = torch.tensor([0.0, 1.0]), torch.ones(2)
    else:
        grid = torch.linspace(-25.0, 25.0, 1001)
        weight = torch.full((1001,), 0.05)
    first, second = value.repeat(len(grid), 1, 1), value.repeat(len(grid), 1, 1)
    first[:, 1, 0], second[:, 3, 1] = grid, grid
    observation = chain.chain_logits(value)[2].clone()
    for t, several in ((1, first), (3, second)):
        observation[t] = torch.logsumexp(chain.chain_logits(several)[2][:, t] + weight.log().unsqueeze(-1), 0)
    expected = over_all_paths(chain.initial_logits, chain.transition_logits, observation)
    assert chain.log_prob(gone).item() == pytest.approx(expected.item(), rel=1e-9)
    assert abs(chain.log_prob(value) - expected) > 0.1  # control


def test_missing_values_and_masks_leave_finite_gradients():
    loc, scale = torch.randn(1, K).requires_grad_(), torch.ones(1, K).requires_grad_()
    for family in (dist.Normal, dist.LogNormal):
        value = family(torch.zeros(5), 1.0).sample()
        value[1] = torch.nan
        seen = torch.tensor([True, True, True, True, False])
        value[-1] = torch.nan
        chain = HiddenMarkov(rows(), rows(K), family(loc, scale), 5, mask=seen)
        gradients = torch.autograd.grad(chain.log_prob(value), (loc, scale))
        assert all(g.isfinite().all() and (g != 0).all() for g in gradients)


def test_sequences_of_different_lengths_are_sequences_cut_short():
    emission = dist.Normal(torch.randn(1, K), 1.0)
    initial, maps = rows(), rows(K)
    lengths = (5, 1, 3)
    seen = torch.arange(5) < torch.tensor(lengths).unsqueeze(-1)
    padded = HiddenMarkov(initial, maps, emission, 5, mask=seen)
    assert padded.batch_shape == (3,)
    value = padded.sample()
    assert (value[~seen] == 0).all()
    alone = [HiddenMarkov(initial, maps, emission, n).log_prob(v[:n]) for n, v in zip(lengths, value, strict=True)]
    torch.testing.assert_close(padded.log_prob(value), torch.stack(alone))


def test_batches_broadcast_and_expand():
    emission = dist.Normal(torch.randn(4, 1, 1, K), 1.0)
    chain = HiddenMarkov(rows(6), rows(1, K), emission, 5)
    assert chain.batch_shape == (4, 6)
    value = chain.sample((2,))
    assert value.shape == (2, 4, 6, 5)
    together = chain.log_prob(value)
    for i, j in ((0, 0), (3, 5)):
        one = HiddenMarkov(chain.initial_logits[j], chain.transition_logits, dist.Normal(emission.loc[i, 0], 1.0), 5)
        torch.testing.assert_close(together[:, i, j], one.log_prob(value[:, i, j]))
    wide = HiddenMarkov(rows(), rows(K), dist.Normal(torch.randn(1, K), 1.0), 5).expand([7])
    assert wide.shape() == (7, 5)
    assert len(wide.sample().unique()) == 35
    assert wide.log_prob(wide.sample()).shape == (7,)
    assert [part.shape for part in wide.chain_logits(wide.sample())] == [(7, K), (7, 1, K, K), (7, 5, K)]


def test_draws_have_the_frequencies_of_the_chain():
    """Joint frequencies of all sequences of a tiny chain, against the density: chi-square with a control."""
    emission = dist.Categorical(logits=3 * torch.randn(1, K, 2))
    chain = HiddenMarkov(rows(), rows(2, K), emission, 3)
    draws = chain.sample((4000,))
    every = torch.tensor(list(itertools.product([0.0, 1.0], repeat=3)))
    expected = chain.log_prob(every).exp()
    assert expected.sum().item() == pytest.approx(1.0)
    counts = torch.stack([(draws == value).all(-1).sum() for value in every]).double()

    def statistic(probability):
        return ((counts - 4000 * probability) ** 2 / (4000 * probability)).sum().item()

    assert statistic(expected) < 24.3  # .999 of chi-square with 7 degrees
    other = HiddenMarkov(rows(), rows(2, K), emission, 3)
    assert statistic(other.log_prob(every).exp()) > 40


def test_autoregressive_draws_have_the_memory_of_the_model():
    chain = HiddenMarkov(
        torch.zeros(1), torch.zeros(1, 1), Autoregression(torch.ones(1), torch.ones(1), torch.tensor([[0.8]])), 4000
    )
    value, states = chain.sample_with_states()
    assert (states == 0).all()
    centred = value - 1
    slope = (centred[1:] * centred[:-1]).sum() / centred[:-1].square().sum()
    assert slope.item() == pytest.approx(0.8, abs=5 * 0.6 / math.sqrt(4000))


# hmmlearn ----------------------------------------------------------------------------------------------------------


def peer(name, chain):
    """The same parameters in hmmlearn."""
    from hmmlearn import hmm

    emission = chain.emission
    if name in ("diagonal", "full"):
        model = hmm.GaussianHMM(K, covariance_type="diag" if name == "diagonal" else "full")
        model.means_ = (emission.base_dist.loc if name == "diagonal" else emission.loc)[0].numpy()
        variance = emission.base_dist.scale[0] ** 2 if name == "diagonal" else emission.covariance_matrix[0]
        model.covars_ = variance.numpy()
    elif name == "poisson":
        model = hmm.PoissonHMM(K)
        model.lambdas_ = emission.rate[0].unsqueeze(-1).numpy()
    else:
        model = hmm.CategoricalHMM(K, n_features=C)
        model.emissionprob_ = emission.probs[0].numpy()
    model.startprob_, model.transmat_ = chain.initial_logits.exp().numpy(), chain.transition_logits[0].exp().numpy()
    return model


@pytest.mark.parametrize("name", ["diagonal", "full", "poisson", "categorical"])
@pytest.mark.parametrize("steps", [1, 200])
def test_equals_hmmlearn(name, steps):
    chain = made(EMISSIONS[name](), steps)
    lengths = [steps, max(1, steps // 3)]
    values = chain.sample((2,))
    series = [v[:n].reshape(n, -1).numpy() for v, n in zip(values, lengths, strict=True)]
    series = np.concatenate(series)
    if name in ("poisson", "categorical"):
        series = series.astype(int)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # hmmlearn warns of its own deprecations
        expected = peer(name, chain).score(series, lengths)
    seen = torch.arange(steps) < torch.tensor(lengths).unsqueeze(-1)
    ours = HiddenMarkov(chain.initial_logits, chain.transition_logits, chain.emission, steps, mask=seen)
    assert ours.log_prob(values).sum().item() == pytest.approx(expected, rel=1e-10)


# Bad input ---------------------------------------------------------------------------------------------------------

NORMAL = EMISSIONS["normal"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (lambda: (rows(), rows(K), NORMAL(), 0), "num_steps: expected a sequence of at least one step, got 0"),
        (lambda: (torch.zeros(0), torch.zeros(0, 0), NORMAL(), 5), "initial_logits: expected at least one state"),
        (lambda: (rows(), rows(K)[:2], NORMAL(), 5), r"transition_logits: expected shape \(..., 1 or 4, 3, 3\)"),
        (lambda: (rows(), rows(5, K), NORMAL(), 5), r"transition_logits: .* got \(5, 3, 3\)"),
        (lambda: (rows(), rows(K), dist.Normal(torch.zeros(K), 1.0), 5), r"emission: expected batch shape .* \(3,\)"),
        (lambda: (rows(), rows(K), dist.Normal(torch.zeros(4, K), 1.0), 5), r"emission: .*got \(4, 3\)"),
        (lambda: (rows() + 0.1, rows(K), NORMAL(), 5), "initial_logits: expected the logarithms of prob.* 1.10517"),
        (lambda: (rows(), rows(K).mT, NORMAL(), 5), "transition_logits: expected the logarithms of probabilities"),
        (lambda: (rows() * torch.nan, rows(K), NORMAL(), 5), "initial_logits: expected the logarithms of prob"),
    ],
)
def test_sizes_and_rows_that_do_not_fit_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        HiddenMarkov(*arguments())


def test_a_mask_that_does_not_fit_is_refused():
    for mask in (torch.ones(4, dtype=torch.bool), torch.ones(5)):
        with pytest.raises(ValueError, match=r"mask: expected booleans of shape \(..., 5\)"):
            HiddenMarkov(rows(), rows(K), NORMAL(), 5, mask=mask)


@pytest.mark.parametrize(
    ("name", "wrong", "message"),
    [
        ("categorical", 4.0, r"expected categories coded 0 to 3, got 4.0 at index \(2,\)"),
        ("categorical", -1.0, "expected categories coded 0 to 3, got -1.0"),
        ("categorical", 0.5, "expected categories coded 0 to 3, got 0.5"),
        ("poisson", -2.0, r"expected counts \(whole numbers from 0\), got -2.0"),
        ("poisson", 1.5, "expected counts"),
        ("switches", 2.0, r"expected zeros and ones, got \[2.0, 2.0\] at index \(2,\)"),
        ("normal", torch.inf, "expected finite numbers, got inf"),
        ("autoregressive", torch.nan, "1 entries are NaN, but each value depends on those before"),
    ],
)
def test_values_that_cannot_be_are_named(name, wrong, message):
    chain = made(EMISSIONS[name]())
    value = chain.sample()
    value[2] = wrong
    with pytest.raises(ValueError, match=message):
        chain.log_prob(value)
    seen = torch.arange(5) < 2  # after the end anything may stand
    if name != "autoregressive":
        masked = HiddenMarkov(chain.initial_logits, chain.transition_logits, chain.emission, 5, mask=seen)
        assert masked.log_prob(value).isfinite()
    with pytest.raises(ValueError, match="value: expected sequences of shape"):
        chain.log_prob(value[:4])


def test_impossible_sequences_have_no_density():
    maps = torch.tensor([[0.0, -torch.inf], [-torch.inf, 0.0]])
    emission = dist.Categorical(logits=torch.tensor([[[0.0, -torch.inf], [-torch.inf, 0.0]]]), validate_args=False)
    chain = HiddenMarkov(torch.tensor([0.0, -torch.inf]), maps, emission, 3)
    assert chain.log_prob(torch.zeros(3)).item() == 0.0
    assert chain.log_prob(torch.tensor([0.0, 1.0, 0.0])).isneginf()
    assert chain.log_prob(torch.ones(3)).isneginf()


def test_a_chain_that_cannot_go_back_does_not_underflow():
    """Two levels a hundred sds apart, once left for good; the series goes back all the same, which costs 5000 nats."""
    stay = torch.tensor(0.9).requires_grad_()
    maps = torch.stack([torch.stack([stay, 1 - stay]), torch.tensor([0.0, 1.0])]).log()
    emission = dist.Normal(torch.tensor([[0.0, 100.0]]), 1.0)
    chain = HiddenMarkov(torch.tensor([0.0, -torch.inf]), maps, emission, 6)
    value = torch.tensor([0.0, 0.0, 100.0, 0.0, 100.0, 100.0])
    # Two paths cost one step each: staying while the series is up, or having moved while it is down.
    expected = -5000 - 6 * 0.5 * math.log(2 * math.pi) + math.log(0.9**3 * 0.1 + 0.9 * 0.1)
    assert chain.log_prob(value).item() == pytest.approx(expected, abs=1e-9)
    (gradient,) = torch.autograd.grad(chain.log_prob(value), stay)
    slope = (3 * 0.9**2 * 0.1 - 0.9**3 + 0.1 - 0.9) / (0.9**3 * 0.1 + 0.9 * 0.1)
    assert gradient.item() == pytest.approx(slope, rel=1e-9)
    # Control: Pyro's own product of matrices loses both.
    pyros = dist.DiscreteHMM(
        chain.initial_logits, chain.transition_logits, dist.Normal(torch.tensor([0.0, 100.0]), 1.0)
    )
    assert pyros.log_prob(value[1:]).isneginf()
