"""The operator behind DiscreteHMM: against every path by hand, a plain loop, Pyro itself, and native code."""

import itertools

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import DiscreteHMM
from torch.func import grad, grad_and_value, vmap

from inference import isolated
from inference.density import Density
from inference.graph import record
from inference.markov import log_sum, markov_operators
from inference.native import compile_graph
from inference.native.compiler import find_compiler
from inference.sites import read_sites
from inference.validate import prepare_data

needs_compiler = pytest.mark.skipif(find_compiler() is None, reason="there is no C++ compiler here")
GENERATOR = torch.Generator().manual_seed(1)


@pytest.fixture(autouse=True)
def own_state():
    with isolated(seed=1):
        yield


def normal(*shape):
    return torch.randn(*shape, generator=GENERATOR, dtype=torch.float64)


def chain(steps, states, *, maps=1, batch=(), spread=1.0):
    """Logits of a random chain: initial, transition, observation."""
    shapes = (states,), (maps, states, states), (steps, states)
    return tuple(spread * normal(*batch, *shape) for shape in shapes)


def left_to_right(steps, states):
    """A chain that starts in its first state, and never goes back."""
    initial, transition, observation = chain(steps, states)
    initial[1:] = -torch.inf
    transition[..., torch.ones(states, states).tril(-1).bool()] = -torch.inf
    return initial, transition, observation


def by_loop(initial, transition, observation):
    """The sum by the forward recursion in logarithms."""
    weight = initial
    for t in range(observation.shape[-2]):
        step = transition[..., t if transition.shape[-3] > 1 else 0, :, :]
        weight = torch.logsumexp(weight.unsqueeze(-1) + step, -2) + observation[..., t, :]
    return torch.logsumexp(weight, -1)


def value_and_gradients(function, arguments):
    leaves = [a.detach().requires_grad_() for a in arguments]
    value = function(*leaves)
    return value.detach(), torch.autograd.grad(value.sum(), leaves)


def assert_same(got, expected, *, tolerance=1e-12):
    torch.testing.assert_close(got[0], expected[0], rtol=tolerance, atol=tolerance)
    for g, e in zip(got[1], expected[1], strict=True):
        torch.testing.assert_close(g, e, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("steps", "states"), [(1, 2), (6, 2), (1, 3), (4, 3), (5, 1)])
@pytest.mark.parametrize("homogeneous", [True, False])
def test_sums_over_every_path(steps, states, homogeneous):
    initial, transition, observation = chain(steps, states, maps=1 if homogeneous else steps)
    step = transition.expand(steps, states, states)
    logits = []
    for first, *path in itertools.product(range(states), repeat=steps + 1):
        logits.append(initial[first])
        for t, (before, after) in enumerate(itertools.pairwise((first, *path))):
            logits[-1] = logits[-1] + step[t, before, after] + observation[t, after]
    expected = torch.logsumexp(torch.stack(logits), 0)
    torch.testing.assert_close(log_sum(initial, transition, observation), expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize(
    "arguments",
    [
        chain(1, 3),
        chain(37, 4),
        chain(64, 2, maps=64),
        chain(12, 3, batch=(2, 4)),
        left_to_right(50, 4),
        chain(5000, 3),
        chain(300, 3, maps=300, spread=1e4),
        (torch.zeros(2), torch.tensor([[[-1e4, 0.0], [0.0, -2e4]]]).double(), -1e4 * normal(6, 2).abs()),
    ],
    ids=["one step", "homogeneous", "heterogeneous", "batch", "left to right", "long", "large", "underflow"],
)
def test_value_and_gradient_equal_a_loops(arguments):
    magnitude = max(a[a.isfinite()].abs().max().item() * a.shape[-2] for a in arguments[1:])
    tolerance = 1e-13 + 1e-15 * magnitude  # of rounding sums of numbers as large as that
    assert_same(value_and_gradients(log_sum, arguments), value_and_gradients(by_loop, arguments), tolerance=tolerance)


@pytest.mark.parametrize("name", ["homogeneous", "heterogeneous", "batch", "left to right", "impossible"])
def test_blocks_of_steps_change_nothing(monkeypatch, name):
    """Long chains are taken in blocks, so that memory stays bounded: here in blocks of two, and of a few."""
    arguments = {
        "homogeneous": chain(37, 4),
        "heterogeneous": chain(30, 3, maps=30),
        "batch": chain(12, 3, batch=(2, 4)),
        "left to right": left_to_right(50, 4),
        "impossible": (*chain(9, 2)[:2], torch.full((9, 2), -torch.inf, dtype=torch.float64)),
    }[name]
    whole = value_and_gradients(log_sum, arguments)
    for numbers in (1, 4 * 16):
        monkeypatch.setattr("inference.markov._BLOCK_NUMBERS", numbers)
        assert_same(value_and_gradients(log_sum, arguments), whole)


def test_gradients_are_probabilities():
    for arguments in (chain(40, 3, maps=40, spread=30.0), left_to_right(41, 5)):
        _, (initial, transition, observation) = value_and_gradients(log_sum, arguments)
        torch.testing.assert_close(initial.sum(), torch.tensor(1.0, dtype=torch.float64))
        torch.testing.assert_close(observation.sum(-1), torch.ones(len(observation), dtype=torch.float64))
        assert transition.sum().item() == pytest.approx(len(observation))
        assert (transition[torch.isneginf(arguments[1])] == 0).all()


def test_a_wrong_chain_is_noticed():
    initial, transition, observation = chain(20, 3)
    right = by_loop(initial, transition, observation)
    for wrong in ((initial, transition.mT, observation), (initial, transition, observation.flip(0))):
        assert (log_sum(*wrong) - right).abs() > 1e-3


def test_gradcheck():
    assert torch.autograd.gradcheck(log_sum, [a.requires_grad_() for a in chain(7, 3, maps=7, batch=(2,))])


def test_impossible_chains():
    initial, transition, observation = chain(9, 3, batch=(3,))
    observation[0, 4] = -torch.inf
    transition[1] = -torch.inf
    value, gradients = value_and_gradients(log_sum, (initial, transition, observation))
    assert value.isneginf().tolist() == [True, True, False]
    for gradient in gradients:
        assert (gradient[:2] == 0).all()
        assert (gradient[2] > 0).all()


@pytest.mark.parametrize("position", range(3))
def test_nan_is_passed_on(position):
    arguments = chain(6, 3)
    arguments[position][..., 1] = torch.nan
    assert log_sum(*arguments).isnan()


def test_operators_are_well_formed():
    arguments = chain(5, 3, batch=(2,))
    for operator in (torch.ops.ppl.markov_log_sum.default, torch.ops.ppl.markov_marginals.default):
        torch.library.opcheck(operator, arguments, test_utils=("test_schema", "test_faketensor"))


def test_batches_equal_loops():
    arguments = chain(11, 3, batch=(5,))
    shared = arguments[0], arguments[1][0], arguments[2]
    expected = [value_and_gradients(log_sum, (a, shared[1], c)) for a, c in zip(shared[0], shared[2], strict=True)]
    gradients, values = vmap(grad_and_value(log_sum, argnums=(0, 1, 2)), in_dims=(0, None, 0))(*shared)
    for i, one in enumerate(expected):
        assert_same((values[i], [g[i] for g in gradients]), one)


def test_second_derivatives_are_refused():
    initial, transition, observation = chain(4, 2)
    leaf = initial.requires_grad_()
    (first,) = torch.autograd.grad(log_sum(leaf, transition, observation), leaf, create_graph=True)
    with pytest.raises(NotImplementedError, match="second derivatives"):
        first[0].backward()

    def inner(x):
        return grad(log_sum)(x, transition, observation)[0]

    with pytest.raises(NotImplementedError, match="second derivatives"):
        grad(inner)(initial.detach())


def _hmms():
    """Every way of giving a DiscreteHMM its shapes, with data."""
    loc, matrix = normal(3), normal(3, 3)
    yield "homogeneous", DiscreteHMM(normal(3), matrix, dist.Normal(loc, 1.0)), normal(7)
    yield "duration", DiscreteHMM(normal(3), matrix, dist.Normal(loc, 1.0), duration=7), normal(7)
    yield "one step", DiscreteHMM(normal(3), matrix, dist.Normal(loc, 1.0)), normal(1)
    yield "time in transitions", DiscreteHMM(normal(3), normal(7, 3, 3), dist.Normal(loc, 1.0)), normal(7)
    yield "time in observations", DiscreteHMM(normal(3), matrix, dist.Normal(normal(7, 3), 1.0)), normal(7)
    yield "time in both", DiscreteHMM(normal(3), normal(7, 3, 3), dist.Normal(normal(7, 3), 1.0)), normal(7)
    yield "batch of data", DiscreteHMM(normal(3), matrix, dist.Normal(loc, 1.0)), normal(4, 7)
    yield "batch of starts", DiscreteHMM(normal(4, 3), matrix, dist.Normal(loc, 1.0)), normal(7)
    yield "batch of maps", DiscreteHMM(normal(3), normal(4, 1, 3, 3), dist.Normal(loc, 1.0)), normal(4, 7)
    yield "two batches", DiscreteHMM(normal(5, 1, 3), normal(4, 7, 3, 3), dist.Normal(normal(4, 1, 3), 1.0)), normal(7)
    yield "expanded", DiscreteHMM(normal(3), matrix, dist.Normal(loc, 1.0)).expand([4]), normal(4, 7)
    event = dist.MultivariateNormal(normal(3, 2), torch.eye(2).double())
    yield "vectors", DiscreteHMM(normal(3), matrix, event), normal(7, 2)
    event = dist.Bernoulli(logits=normal(3, 2, 2)).to_event(2)
    yield "binary matrices", DiscreteHMM(normal(3), matrix, event), (normal(4, 7, 2, 2) > 0).double()


HMMS = {name: (hmm, data) for name, hmm, data in _hmms()}


@pytest.mark.parametrize("name", HMMS)
def test_equals_pyros_log_prob(name):
    hmm, data = HMMS[name]
    parameters = [hmm.initial_logits, hmm.transition_logits]
    for tensor in parameters:
        tensor.requires_grad_()

    def result():
        value = hmm.log_prob(data)
        return value.detach(), torch.autograd.grad(value.sum(), parameters)

    expected = result()
    with markov_operators():
        got = result()
        assert any(
            node.target is torch.ops.ppl.markov_log_sum.default for node in record(hmm.log_prob, data).graph.nodes
        )
    assert_same(got, expected)


def regimes(y, num_states=3):
    """Regimes of a mean, with unknown transitions."""
    transition = pyro.sample("transition", dist.Dirichlet(torch.ones(num_states, num_states)).to_event(1))
    loc = pyro.sample("loc", dist.Normal(torch.arange(num_states) * 2.0, 1.0).to_event(1))
    hmm = DiscreteHMM(torch.zeros(num_states), transition.log(), dist.Normal(loc, 1.0), duration=len(y))
    pyro.sample("y", hmm, obs=y)


def change_point(y):
    """A mean that changes once: a chain that cannot go back, and starts in its first state."""
    stay = pyro.sample("stay", dist.Beta(9.0, 1.0))
    loc = pyro.sample("loc", dist.Normal(torch.zeros(2), 2.0).to_event(1))
    rows = torch.stack([torch.stack([stay.log(), (1 - stay).log()]), torch.tensor([-torch.inf, 0.0])])
    pyro.sample("y", DiscreteHMM(torch.tensor([0.0, -torch.inf]), rows, dist.Normal(loc, 1.0)), obs=y)


def density_of(model, steps):
    return Density(read_sites(model, prepare_data(model, {"y": normal(steps)})))


@pytest.mark.parametrize("model", [regimes, change_point])
def test_a_recorded_model_is_small_and_equals_pyro(model):
    sizes = []
    for steps in (50, 2000):
        density = density_of(model, steps)
        assert density.backend == "graph", density.reason
        sizes.append(len(density.graph.graph.nodes))
        point = torch.linspace(-1.0, 1.0, density.dim, dtype=torch.float64)
        gradient, value = density._eager_grad(point)
        got_value, got_gradient = density.value_and_grad(point.numpy())
        assert got_value == pytest.approx(value.item(), rel=1e-12)
        np.testing.assert_allclose(got_gradient, gradient.numpy(), rtol=1e-9, atol=1e-9)
    assert sizes[0] == sizes[1] < 200


def test_a_recording_that_unrolls_stops_early():
    def random_walk(y):
        scale = pyro.sample("scale", dist.HalfNormal(1.0))
        total = torch.tensor(0.0)
        for step in y:
            total = total + (step * scale).tanh()
        pyro.factor("walk", -(total**2))

    short, long = density_of(random_walk, 100), density_of(random_walk, 12_000)
    assert short.backend == "graph", short.reason
    assert long.backend == "eager"
    assert "unrolls to more than" in long.reason
    assert "DiscreteHMM" in long.reason


NATIVE = {
    "scaled": chain(200, 3),
    "scaled, heterogeneous": chain(50, 4, maps=50, batch=(2,)),
    "many states": chain(30, 19),
    "one state": chain(5, 1, maps=5),
    "one step": chain(1, 3),
    "large": chain(300, 3, spread=50.0),
    "logarithms": chain(300, 3, spread=1e4),
    "heap": chain(2000, 2, maps=2000, spread=1e3),
    "left to right": left_to_right(60, 5),
    "impossible": (torch.zeros(2).double(), torch.full((1, 2, 2), -torch.inf).double(), torch.zeros(3, 2).double()),
    "impossible observation": (*chain(3, 2)[:2], torch.full((3, 2), -torch.inf).double()),
}


def _flat_gradients(*arguments):
    value, gradients = value_and_gradients(log_sum, arguments)
    return value, *gradients


@needs_compiler
@pytest.mark.parametrize("name", NATIVE)
def test_native_code_equals_the_operator(name):
    arguments = NATIVE[name]
    expected = _flat_gradients(*arguments)
    native = compile_graph(record(_flat_gradients, *arguments), *arguments)
    for got, e in zip(native(*(a.numpy() for a in arguments)), expected, strict=True):
        np.testing.assert_allclose(got, e, rtol=1e-9, atol=1e-10)


@needs_compiler
def test_native_code_in_single_precision_and_with_nan():
    double = chain(100, 3)
    single = [a.float() for a in double]
    native = compile_graph(record(_flat_gradients, *single), *single)
    for got, e in zip(native(*(a.numpy() for a in single)), _flat_gradients(*double), strict=True):
        np.testing.assert_allclose(got, e, rtol=1e-4, atol=1e-5)
    for position in range(3):
        spoiled = [a.numpy().copy() for a in single]
        spoiled[position][..., 1] = np.nan
        assert np.isnan(native(*spoiled)[0])
