"""SVI by native code, by a recorded graph and by eager Pyro: one algorithm, to be compared number by number."""

import copy
import ctypes
import signal
import subprocess
import time
from functools import partial
from threading import Timer
from types import SimpleNamespace

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from pyro.infer import Trace_ELBO
from torch.utils._python_dispatch import TorchDispatchMode

from inference import SVI, InputError, fit, svi_backends, svi_graph, svi_native
from inference.elbo import make_elbo
from inference.graph import random_nodes
from inference.guides import check_guide, make_guide, samples_discrete
from inference.isolation import isolated
from inference.native.compiler import find_compiler
from inference.optimise import AdamRates, make_stepper
from inference.random_operations import BATCHABLE_DRAWS
from inference.sites import read_sites
from inference.stopping import BLOCK_STEPS, Stages
from inference.svi_backends import choose_steps
from inference.svi_graph import Noise, NoiseStream, StepGraph, UntraceableError, record_step
from inference.svi_loop import EagerSteps, GraphSteps, Loop
from inference.validate import prepare_data
from ppl_models import MODELS
from tests.test_svi import LINE, ModuleGuide, hand_guide, line
from tests.zoo import CASES, SCHOOLS, mixture_tutorial, schools

SMALL = {"num_samples": 50, "num_chains": 2}
needs_compiler = pytest.mark.skipif(find_compiler() is None, reason="no C++ compiler")


def network_guide():
    """Means and scales from a network, as in a variational autoencoder."""
    network = torch.nn.Sequential(torch.nn.Linear(8, 5), torch.nn.Tanh(), torch.nn.Linear(5, 10)).double()

    def guide(y, sigma):
        pyro.module("network", network)
        loc = network(y / 10)
        pyro.sample("mu", dist.Normal(loc[0], 1.0))
        pyro.sample("tau", dist.LogNormal(loc[1], 0.3))
        with pyro.plate("school", len(y)):
            pyro.sample("z", dist.Normal(loc[2:], 1.0))

    return guide


def uniform_noise_guide(x, y):
    """Base noise other than normal, and draws that torch makes by an algorithm of its own."""
    loc = pyro.param("loc", torch.tensor([39.0, -31.0]))
    scale = pyro.param("scale", torch.tensor(0.5), constraint=constraints.positive)
    pyro.sample("intercept", dist.Laplace(loc[0], scale))
    pyro.sample("slope", dist.Gumbel(loc[1], scale))


def model_with_param(y):
    scale = pyro.param("scale", torch.tensor(1.0), constraint=constraints.positive)
    mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu, scale), obs=y)


def reading(group, y):
    """Reads values of its data, for a size and for names."""
    num = int(group.max().item()) + 1
    with pyro.plate("group", num):
        mean = pyro.sample("mean", dist.Normal(0.0, 5.0))
    for label in group.unique():
        pyro.sample(f"extra_{label.item()}", dist.Normal(mean[label], 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mean[group], 1.0), obs=y)


def cauchy_guide(y):
    loc = pyro.param("loc", torch.tensor(0.3))
    pyro.sample("mu", dist.Cauchy(loc, pyro.param("width", torch.tensor(0.1), constraint=constraints.positive)))


Y = {"y": torch.linspace(-1.0, 3.0, 9)}
PROBLEMS = {
    "normal": (schools, SCHOOLS, "normal", {}),
    "multivariate normal": (schools, SCHOOLS, "multivariate_normal", {}),
    "low rank": (schools, SCHOOLS, "low_rank", {}),
    "delta": (schools, SCHOOLS, "delta", {}),
    "laplace": (schools, SCHOOLS, "laplace", {}),
    "flow": (schools, SCHOOLS, "iaf", {}),
    "structured": (schools, SCHOOLS, "structured", {}),
    "by hand": (line, LINE, hand_guide, {}),
    "module": (line, LINE, ModuleGuide(), {}),
    "network": (schools, SCHOOLS, network_guide(), {}),
    "uniform noise": (line, LINE, uniform_noise_guide, {}),
    "cauchy noise": (model_with_param, Y, cauchy_guide, {}),
    "param of the model": (model_with_param, Y, "normal", {}),
    "values of the data": (
        reading,
        {"group": torch.tensor([0, 1, 1, 2]), "y": torch.tensor([0.3, -1.0, 2.0, 0.5])},
        "normal",
        {},
    ),
    "enumerated": (mixture_tutorial, CASES["mixture_tutorial"].data, "normal", {"elbo": "trace_enum"}),
    "analytic": (schools, SCHOOLS, "normal", {"elbo": "trace_mean_field"}),
    "by graph": (schools, SCHOOLS, "normal", {"elbo": "trace_graph"}),
    "renyi": (schools, SCHOOLS, "normal", {"elbo": "renyi", "num_particles": 2}),
    "sticking the landing": (schools, SCHOOLS, "multivariate_normal", {"elbo": "stl", "num_particles": 2}),
    "importance weighted": (schools, SCHOOLS, "normal", {"elbo": "iw", "num_particles": 3}),
    "tail adaptive": (schools, SCHOOLS, "normal", {"elbo": "tail_adaptive", "num_particles": 3}),
    "wake-sleep": (schools, SCHOOLS, "normal", {"elbo": "rws", "num_particles": 3}),
    "particles": (schools, SCHOOLS, "normal", {"num_particles": 3}),
    "vectorised particles": (
        schools,
        SCHOOLS,
        "normal",
        {"elbo": Trace_ELBO(num_particles=3, vectorize_particles=True, max_plate_nesting=1)},
    ),
    "markov": (CASES["hmm"].model, CASES["hmm"].data, "normal", {}),
    "correlation matrix": (CASES["correlated"].model, CASES["correlated"].data, "normal", {}),
    "moving support": (CASES["moving_support"].model, CASES["moving_support"].data, "normal", {}),
}


def make_problem(model, data, guide, *, elbo=None, num_particles=1):
    """What `SVI.run` makes of its arguments; to be called inside `isolated`."""
    prepared = prepare_data(model, data)
    sites = read_sites(model, prepared)
    guide = make_guide(copy.deepcopy(guide), sites, density=None, seed=0)
    trace = check_guide(guide, sites)
    loss = make_elbo(elbo, sites, trace, num_particles=num_particles)
    enumerate_ = sites.discrete and not samples_discrete(trace, sites)
    return loss, sites.enumerated if enumerate_ else sites.function, guide, sites.data


def adam(**options):
    return make_stepper(torch.optim.Adam, **{"lr": 0.02, "schedule": None, "clip_norm": None, **options})


class Fed(TorchDispatchMode):
    """Gives prepared numbers to whatever draws base noise."""

    DRAWS = {*BATCHABLE_DRAWS, *(getattr(torch.ops.aten, n) for n in ("randn", "rand", "randn_like", "rand_like"))}

    def __init__(self, numbers):
        super().__init__()
        self.numbers = numbers

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket not in self.DRAWS:
            return func(*args, **(kwargs or {}))
        value = self.numbers.pop(0)
        return args[0].copy_(value) if func._schema.is_mutable else value.clone()


def walk(kind, problem, num_steps, *, dtype=torch.float64, **options):
    """Losses, gradient norms and final parameters of some steps on the noise of seed 7."""
    with isolated(1, dtype=dtype):
        loss, model, guide, data = make_problem(*problem[:3], **problem[3])
        recorded = record_step(loss, model, guide, data)
        torch.manual_seed(7)
        if kind == "native":
            choice = choose_steps("native", loss, model, guide, data, adam(**options), num_steps=num_steps)
            assert choice.reason == ""
            steps = choice.steps
        elif kind == "python":
            steps = GraphSteps(recorded, num_steps, adam(**options))
        else:
            _, noise = NoiseStream(recorded, num_steps).take(num_steps)
            rows = [part[i] for i in range(num_steps * recorded.particles) for part in noise]
            steps = EagerSteps(loss, model, guide, data, adam(**options))
            with Fed(rows):
                return collect(steps, num_steps, recorded)
        return collect(steps, num_steps, recorded)


def collect(steps, num_steps, recorded):
    losses, norms = [], []
    while len(losses) < num_steps:
        taken = steps.take(num_steps - len(losses), record=False)
        assert not taken.failed
        losses, norms = [*losses, *taken.losses], [*norms, *taken.gradient_norms]
    return np.array(losses), np.array(norms), torch.cat([p.detach().reshape(-1) for p in recorded.params]).numpy()


def assert_equal_walks(one, other, *, tolerance=1e-9):
    for a, b in zip(one, other, strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)
def test_a_recorded_graph_takes_the_steps_of_eager_pyro(problem):
    assert_equal_walks(walk("python", problem, 50), walk("pyro", problem, 50))


@needs_compiler
@pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)
def test_native_code_takes_the_same_steps(problem):
    assert_equal_walks(walk("native", problem, 50), walk("python", problem, 50))


def test_other_noise_gives_other_steps():
    """Control: the comparisons above can fail."""
    problem = PROBLEMS["normal"]
    with pytest.raises(AssertionError):
        assert_equal_walks(walk("python", problem, 5), walk("python", problem, 5, lr=0.021))


@needs_compiler
def test_single_precision():
    for name in ("normal", "multivariate normal", "enumerated"):
        steps = [walk(kind, PROBLEMS[name], 30, dtype=torch.float32) for kind in ("native", "python", "pyro")]
        assert_equal_walks(steps[0], steps[1], tolerance=2e-3)
        assert_equal_walks(steps[1], steps[2], tolerance=2e-3)


def test_the_gradient_is_that_of_pyro_for_equal_seeds():
    for name in ("normal", "analytic", "renyi", "enumerated"):
        with isolated(3):
            loss, model, guide, data = make_problem(*PROBLEMS[name][:3], **PROBLEMS[name][3])
            recorded = record_step(loss, model, guide, data)
            for seed in range(3):
                torch.manual_seed(seed)
                expected = loss.loss_and_grads(model, guide, **data)
                gradients = [p.grad for p in recorded.params]
                for p in recorded.params:
                    p.grad = None
                torch.manual_seed(seed)
                got, mine = recorded.evaluate([tuple(noise.draw(1)[0] for noise in recorded.noise)])
                assert got.item() == pytest.approx(expected, rel=1e-12)
                for a, b in zip(gradients, mine, strict=True):
                    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_recording_leaves_no_trace():
    """The random streams, the parameters and their gradients are as if nothing had been recorded."""
    with isolated(1):
        loss, model, guide, data = make_problem(schools, SCHOOLS, "normal")
        loss.loss_and_grads(model, guide, **data)
        leaves = dict(pyro.get_param_store().named_parameters())
        for p in leaves.values():
            p.grad = None
        before = {name: p.detach().clone() for name, p in leaves.items()}
        state = torch.get_rng_state()
        record_step(loss, model, guide, data)
        assert torch.equal(torch.get_rng_state(), state)
        for name, p in pyro.get_param_store().named_parameters():
            assert p is leaves[name]
            assert torch.equal(p, before[name])
            assert p.grad is None


# --- A recorded step is believed only where it gives Pyro's numbers ---------------------------------------------------


def test_a_wrong_graph_is_refused(monkeypatch):
    record = svi_graph.record

    def wrong(function, *example):
        graph = record(function, *example)
        for name, constant in list(graph.named_buffers()):
            if constant.shape == (8,):  # the data among them
                setattr(graph, name, constant * 1.001)
        return graph

    right = fit(schools, SCHOOLS, SVI(num_steps=200, backend="python", **SMALL), seed=1)
    assert right.state["backend"] == "Trace_ELBO, recorded graph"
    assert right.notes == ()
    monkeypatch.setattr(svi_graph, "record", wrong)
    result = fit(schools, SCHOOLS, SVI(num_steps=200, backend="python", **SMALL), seed=1)
    assert result.state["backend"].startswith("Trace_ELBO, eager Pyro")
    assert "differ from those of eager Pyro" in result.notes[0]


@needs_compiler
def test_wrong_native_code_is_refused(monkeypatch):
    compile_graph = svi_backends.compile_graph

    def wrong(*arguments, **options):
        function = compile_graph(*arguments, **options)
        return lambda *inputs: tuple(a * 1.001 for a in function(*inputs))

    monkeypatch.setattr(svi_backends, "compile_graph", wrong)
    result = fit(schools, SCHOOLS, SVI(num_steps=200, backend="native", **SMALL), seed=1)
    assert result.state["backend"].startswith("Trace_ELBO, recorded graph (no native code")
    assert "differ from those of eager Pyro" in result.notes[0]


def changing(y, sigma):
    """A model that is another one at every run, which no graph can follow."""
    changing.runs += 1
    with pyro.poutine.scale(scale=1.0 / (1 + changing.runs)):
        schools(y, sigma)


changing.runs = 0


def test_a_model_that_changes_by_itself_is_run_by_pyro():
    result = fit(changing, SCHOOLS, SVI(num_steps=200, guide="delta", backend="python", **SMALL), seed=1)
    assert "eager Pyro" in result.state["backend"]


# --- What is run by Pyro as before ------------------------------------------------------------------------------------


def subsampled(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
    with pyro.plate("data", len(y), subsample_size=3) as index:
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y[index])


def counts(y):
    rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
    hidden = pyro.sample("hidden", dist.Poisson(rate))
    pyro.sample("y", dist.Normal(hidden, 1.0), obs=y)


def counts_guide(y):
    pyro.sample("rate", dist.LogNormal(pyro.param("a", torch.tensor(0.0)), 0.3))
    pyro.sample("hidden", dist.Poisson(pyro.param("b", torch.tensor(2.0), constraint=constraints.positive)))


def dropout_guide(y):
    shift = torch.nn.functional.dropout(torch.ones(4), 0.5).mean()
    pyro.sample("mu", dist.Normal(pyro.param("loc", torch.tensor(0.0)) + shift, 1.0))


UNTRACEABLE = {
    "mini-batches": (subsampled, Y, "normal", "plate 'data' is subsampled"),
    "score function": (counts, {"y": torch.tensor(2.0)}, counts_guide, "site 'hidden' of the guide is not reparam"),
    "dropout": (model_with_param, Y, dropout_guide, "no base noise"),
    "control flow": (CASES["branching"].model, CASES["branching"].data, "normal", "control flow"),
}


@pytest.mark.parametrize(("model", "data", "guide", "why"), UNTRACEABLE.values(), ids=UNTRACEABLE)
def test_what_cannot_be_traced_is_run_by_pyro_as_if_nothing_had_been_tried(model, data, guide, why):
    runs = {b: fit(model, data, SVI(guide=guide, num_steps=150, backend=b, **SMALL), seed=1) for b in ("pyro", "auto")}
    np.testing.assert_array_equal(runs["pyro"].history["loss"], runs["auto"].history["loss"])
    assert why in runs["auto"].state["backend"]
    assert not any("eager Pyro runs the steps" in note for note in runs["auto"].notes)
    asked = fit(model, data, SVI(guide=guide, num_steps=20, backend="native", **SMALL), seed=1)
    assert any("eager Pyro runs the steps" in note and why in note for note in asked.notes)


def test_draws_that_depend_on_parameters_stay_in_the_graph():
    model = MODELS["gaussian_mixture"]
    data = model.data()
    engine = SVI(guide=model.guide, num_steps=150, backend="native", **SMALL)
    result = fit(model, data, engine, seed=1)
    assert result.state["backend"].startswith("TraceEnum_ELBO, recorded graph (no native code")
    assert "random numbers depend on parameters" in result.notes[-1]


OTHER_OPTIMISERS = {
    "other rule": {"optimizer": partial(torch.optim.RMSprop, alpha=0.9)},
    "weight decay": {"optimizer": partial(torch.optim.Adam, weight_decay=0.01)},
    "pyro": {"optimizer": pyro.optim.ClippedAdam({"lr": 0.02})},
}


@pytest.mark.parametrize("options", OTHER_OPTIMISERS.values(), ids=OTHER_OPTIMISERS)
def test_other_optimisers_take_their_gradients_from_the_graph(options):
    result = fit(schools, SCHOOLS, SVI(num_steps=150, backend="native", **options, **SMALL), seed=1)
    assert result.state["backend"].startswith("Trace_ELBO, recorded graph")
    assert "not a plain torch.optim.Adam" in result.notes[0]


def test_few_steps_are_not_worth_the_trouble():
    ways = {100: "eager Pyro", 200: "recorded graph", 5000: "native" if find_compiler() else "recorded graph"}
    for num_steps, way in ways.items():
        for _ in range(2):  # whatever the cache of compiled code holds: equal seeds take equal ways
            result = fit(schools, SCHOOLS, SVI(num_steps=num_steps, **SMALL), seed=1)
            assert result.state["backend"].startswith(f"Trace_ELBO, {way}")


def test_without_a_compiler_one_line_of_advice(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    result = fit(schools, SCHOOLS, SVI(num_steps=200, backend="native", **SMALL), seed=1)
    assert result.state["backend"].startswith("Trace_ELBO, recorded graph (no C++ compiler")
    assert len(result.notes) == 1
    assert "install one" in result.notes[0]


def test_an_unknown_backend_is_refused():
    with pytest.raises(InputError, match="backend: expected one of auto, native, python, pyro"):
        SVI(backend="jax")


# --- The loop ---------------------------------------------------------------------------------------------------------

QUADRATIC = """
#include <cmath>
#include <cstdint>
// Loss (a - noise)^2 + 3 (b_0^2 + b_1^2) of a scalar a and a pair b, and its gradient; NaN where a > the constant.
extern "C" int64_t evaluate(const void* const* inputs, void* const* outputs, const void* const* constants) {
    const REAL a = *(const REAL*)inputs[0], *b = (const REAL*)inputs[1], noise = *(const REAL*)inputs[2];
    const REAL limit = *(const REAL*)constants[0];
    *(REAL*)outputs[0] = (a - noise) * (a - noise) + 3 * (b[0] * b[0] + b[1] * b[1]) + (a > limit ? NAN : 0);
    *(REAL*)outputs[1] = 2 * (a - noise);
    for (int i = 0; i < 2; ++i) ((REAL*)outputs[2])[i] = 6 * b[i];
    return 0;
}
"""


@pytest.fixture(scope="module")
def quadratic(tmp_path_factory):
    """The quadratic as a recorded step with its native function, by dtype."""
    folder = tmp_path_factory.mktemp("quadratic")

    def make(dtype=torch.float64, *, particles=1, limit=1e9):
        real = {torch.float64: "double", torch.float32: "float"}[dtype]
        library = folder / f"{real}.so"
        if not library.exists():
            command = [*find_compiler().command, "-shared", "-fPIC", f"-DREAL={real}", "-x", "c++", "-", "-o", library]
            subprocess.run(command, input=QUADRATIC.encode(), check=True)
        constant = np.array([limit], np.float64 if dtype == torch.float64 else np.float32)
        table = (ctypes.c_void_p * 1)(constant.ctypes.data)
        function = SimpleNamespace(
            evaluate_address=ctypes.cast(ctypes.CDLL(str(library)).evaluate, ctypes.c_void_p).value,
            constants_address=ctypes.addressof(table),
            keep=(constant, table),
        )

        def graph(a, b, noise):
            loss = (a - noise) ** 2 + 3 * (b * b).sum()
            return torch.where(a > limit, torch.nan, loss), 2 * (a - noise), 6 * b

        params = tuple(torch.tensor(v, dtype=dtype).requires_grad_() for v in (1.0, [2.0, -0.5]))
        noise = Noise(torch.Size(), dtype, lambda num: torch.randn(num, dtype=dtype))
        return StepGraph(graph, params, (noise,), particles), function

    return make


SETTINGS = {
    "plain": {},
    "options": {"factory": partial(torch.optim.Adam, betas=(0.7, 0.95), eps=1e-4)},
    "large beta": {"factory": partial(torch.optim.Adam, betas=(0.3, 0.9))},
    "clipped": {"clip_norm": 0.5},
    "never clipped": {"clip_norm": 1e6},
    "schedule": {"schedule": partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.99)},
    "schedule of rates and betas": {
        "schedule": partial(torch.optim.lr_scheduler.OneCycleLR, max_lr=0.1, total_steps=400)
    },
    "pyro": {"factory": pyro.optim.Adam({"lr": 0.03, "betas": (0.8, 0.99)})},
}


def quadratic_walk(kind, made, settings, *, num_steps=300, record=False):
    recorded, function = made
    stepper = make_stepper(
        copy.deepcopy(settings.get("factory", torch.optim.Adam)),
        lr=0.05,
        schedule=settings.get("schedule"),
        clip_norm=settings.get("clip_norm"),
    )
    with isolated(5, dtype=recorded.params[0].dtype):
        store = pyro.get_param_store()
        for name, p in zip("ab", recorded.params, strict=True):
            store._params[name], store._param_to_name[p] = p, name
        if kind == "native":
            steps = svi_native.NativeSteps(recorded, function, stepper.adam(), num_steps)
        else:
            steps = GraphSteps(recorded, num_steps, stepper)
        parts = []
        while sum(len(t.losses) for t in parts) < num_steps and not (parts and parts[-1].failed):
            done = sum(len(t.losses) for t in parts)
            parts.append(steps.take(min(num_steps - done, 200 - done % 200), record=record and done >= 200))
            if done < 200 <= done + len(parts[-1].losses):
                steps.shrink(0.25)
        means = np.concatenate([t.means for t in parts if len(t.means)]) if record else []
        assert len(means) == record * (num_steps - 200) // BLOCK_STEPS
        if record:
            steps.move(means.mean(axis=0))
    return (
        np.concatenate([t.losses for t in parts]),
        np.concatenate([t.gradient_norms for t in parts]),
        torch.cat([p.detach().reshape(-1) for p in recorded.params]).numpy(),
    )


@needs_compiler
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize(("particles", "record"), [(1, False), (4, True)])
def test_the_native_loop_is_torchs_adam(quadratic, settings, particles, record):
    for dtype, tolerance in ((torch.float64, 1e-11), (torch.float32, 1e-3)):
        walks = [
            quadratic_walk(kind, quadratic(dtype, particles=particles), settings, record=record)
            for kind in ("native", "python")
        ]
        assert_equal_walks(*walks, tolerance=tolerance)


@needs_compiler
def test_settings_matter_to_that_comparison(quadratic):
    """Control."""
    walks = [quadratic_walk("native", quadratic(), SETTINGS[name]) for name in ("plain", "options", "clipped")]
    for other in walks[1:]:
        with pytest.raises(AssertionError):
            assert_equal_walks(walks[0], other)


@needs_compiler
def test_the_loop_stops_before_a_step_that_is_not_finite(quadratic):
    """The parameters are those of the last finite step, by either route."""
    rising = {"factory": partial(torch.optim.Adam, eps=1e-8)}
    walks = []
    for kind in ("native", "python"):
        recorded, function = quadratic(limit=0.05)
        recorded.params[0].data.fill_(-1.0)
        walks.append(quadratic_walk(kind, (recorded, function), rising))
    assert_equal_walks(*walks)
    assert 0 < len(walks[0][0]) < 300


@needs_compiler
def test_a_failing_function_is_an_error(quadratic):
    recorded, _ = quadratic()
    failing = ctypes.CFUNCTYPE(ctypes.c_int64, *[ctypes.c_void_p] * 3)(lambda *_: 1)
    function = SimpleNamespace(evaluate_address=ctypes.cast(failing, ctypes.c_void_p).value, constants_address=0)
    steps = svi_native.NativeSteps(recorded, function, adam().adam(), 10)
    with pytest.raises(RuntimeError, match="the compiled step failed"):
        steps.take(10, record=False)


def test_only_a_plain_adam_is_followed():
    assert isinstance(adam().adam(), AdamRates)
    for factory in (
        torch.optim.SGD,
        partial(torch.optim.Adam, amsgrad=True),
        lambda params, lr: torch.optim.Adam(params, lr=lr),
        pyro.optim.Adam({"lr": 0.1}, {"clip_norm": 1.0}),
        pyro.optim.Adam(lambda name: {"lr": 0.1}),
    ):
        assert make_stepper(factory, lr=0.1, schedule=None, clip_norm=None).adam() is None


def test_noise_does_not_depend_on_how_many_steps_are_taken_at_once(quadratic, monkeypatch):
    recorded = StepGraph(None, (), (Noise(torch.Size([3]), torch.float64, lambda num: torch.randn(num, 3)),), 2)
    monkeypatch.setattr(svi_graph, "MAX_NOISE_NUMBERS", 60)  # 10 steps
    streams = []
    for most in (1, 7, 1000):
        with isolated(2):
            stream, parts = NoiseStream(recorded, 37), []
            while sum(len(part) for part in parts) < 37 * 2:
                num, (part,) = stream.take(most)
                assert 1 <= num <= min(most, 10)
                assert len(part) == 2 * num
                parts.append(part)
        streams.append(torch.cat(parts))
    assert torch.equal(streams[0], streams[1])
    assert torch.equal(streams[0], streams[2])


class Recited:
    """Steps with losses from a list, taken in strides."""

    name = "recited"

    def __init__(self, losses, stride):
        self.losses, self.stride, self.shrunk, self.moved = list(losses), stride, [], []
        self.done, self.recorded = 0, []

    def take(self, most, *, record):
        from inference.svi_loop import Taken

        num = min(most, self.stride)
        part = np.array(self.losses[self.done : self.done + num])
        self.recorded += range(self.done, self.done + num) if record else ()
        self.done += num
        whole = len(self.recorded) // BLOCK_STEPS * BLOCK_STEPS
        means = np.array(self.recorded[:whole], dtype=float).reshape(-1, BLOCK_STEPS).mean(axis=1)[:, None]
        self.recorded = self.recorded[whole:]
        return Taken(part, part, means, False)

    def shrink(self, factor):
        self.shrunk.append((self.done, factor))

    def move(self, row):
        self.moved.append(row.tolist())


def test_the_stopping_rule_does_not_see_strides():
    losses = np.exp(-np.arange(50_000) / 300) * 100 + np.random.default_rng(0).normal(size=50_000)
    seen = []
    for stride in (1, 16, 1000):
        steps = Recited(losses, stride)
        status = Loop(steps, lambda: ("", 0), rule=Stages()).optimise()
        seen.append((status, steps.done, steps.shrunk, steps.moved))
    assert seen[0] == seen[1] == seen[2]
    # and it is the rule applied loss by loss
    stages = Stages()
    count = next(i + 1 for i, x in enumerate(losses) if stages.step([x], np.empty((0, 1))) and stages.finished)
    assert seen[0][1] == count
    # and the average is that of the last stage
    since = seen[0][2][-2][0]
    assert seen[0][3] == [[pytest.approx((since + count - 1) / 2)]]


@needs_compiler
def test_fits_that_stop_by_themselves_agree():
    """One posterior and one number of steps, by native code and by the recorded graph."""
    runs = [fit(line, LINE, SVI(backend=b, **SMALL), seed=4) for b in ("native", "python")]
    assert [r.state["backend"] for r in runs] == ["Trace_ELBO, native", "Trace_ELBO, recorded graph"]
    assert runs[0].status == runs[1].status
    np.testing.assert_allclose(runs[0].history["loss"], runs[1].history["loss"], rtol=1e-7)
    for name in ("intercept", "slope"):
        np.testing.assert_allclose(runs[0].draws[name], runs[1].draws[name], rtol=1e-7)


@needs_compiler
def test_equal_seeds_give_equal_numbers():
    runs = [fit(schools, SCHOOLS, SVI(num_steps=2000, backend="native", **SMALL), seed=s) for s in (3, 3, 4)]
    np.testing.assert_array_equal(runs[0].history["loss"], runs[1].history["loss"])
    np.testing.assert_array_equal(runs[0].draws["mu"], runs[1].draws["mu"])
    assert (runs[0].history["loss"] != runs[2].history["loss"]).all()  # control


@needs_compiler
def test_random_nodes_are_gone_from_a_recorded_step():
    with isolated(1):
        recorded = record_step(*make_problem(schools, SCHOOLS, "normal"))
        assert not random_nodes(recorded.graph)
        assert [tuple(noise.shape) for noise in recorded.noise] == [(), (), (8,)]


def test_a_point_guide_that_samples_nothing_is_recorded():
    with isolated(1):
        recorded = record_step(*make_problem(schools, SCHOOLS, "delta"))
        assert recorded.noise == ()


def test_a_guide_without_parameters_is_not_recorded():
    def fixed(x, y):
        pyro.sample("intercept", dist.Normal(40.0, 1.0))
        pyro.sample("slope", dist.Normal(-30.0, 1.0))

    with isolated(1), pytest.raises(UntraceableError, match="no parameter"):
        record_step(*make_problem(line, LINE, fixed))


@needs_compiler
def test_ctrl_c_is_heard_in_the_middle_of_native_steps(monkeypatch, heard_interrupts):
    sent = []
    take = svi_native.NativeSteps.take

    def watched(self, most, *, record):
        if not sent:
            sent.append(0.0)
            Timer(0.3, lambda: (sent.append(time.perf_counter()), signal.raise_signal(signal.SIGINT))).start()
        return take(self, most, record=record)

    monkeypatch.setattr(svi_native.NativeSteps, "take", watched)
    with pytest.raises(KeyboardInterrupt):
        fit(schools, SCHOOLS, SVI(num_steps=100_000_000, backend="native", **SMALL), seed=1)
    assert time.perf_counter() - sent[-1] < 2  # a call lasts a tenth of a second
    assert len(pyro.get_param_store()) == 0
