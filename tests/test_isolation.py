"""A fit leaves nothing behind: the caller's streams, parameters, settings and effect handlers stay as they were."""

import random
import threading
from contextlib import contextmanager, nullcontext

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions import constraints
from pyro.poutine.runtime import _DIM_ALLOCATOR, _ENUM_ALLOCATOR, _PYRO_STACK
from threadpoolctl import threadpool_info, threadpool_limits

from inference import NUTS, SVI, AutoVI, InputError, fit, isolated
from inference.isolation import _BorrowedModules

ENGINES = {
    "nuts": NUTS(num_warmup=30, num_samples=20, num_chains=2),
    "nuts_pyro": NUTS(num_warmup=10, num_samples=10, num_chains=1, backend="pyro"),
    "svi": SVI(num_steps=20, num_samples=10, num_chains=2),
    "auto": AutoVI(num_samples=10, num_chains=2, num_starts=2),
}
DATA = {"y": torch.tensor([1.0, 2.0, 4.0])}


def model(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    scale = pyro.sample("scale", dist.LogNormal(0.0, 0.5))
    with pyro.plate("row", len(y)):
        pyro.sample("y", dist.Normal(mu, scale), obs=y)


def other_model(y):
    """Latents and parameters of the same names, other values."""
    mu = pyro.sample("mu", dist.Normal(-50.0, 5.0))
    scale = pyro.sample("scale", dist.LogNormal(1.0, 1.0))
    with pyro.plate("row", len(y)):
        pyro.sample("y", dist.Normal(mu, 20 + scale), obs=y)


def guide(y):
    loc = pyro.param("loc", torch.zeros(2))
    width = pyro.param("width", torch.ones(2), constraint=constraints.positive)
    pyro.sample("mu", dist.Normal(loc[0], width[0]))
    pyro.sample("scale", dist.LogNormal(loc[1], width[1]))


def linear_algebra_threads():
    return [library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"]


def snapshot():
    """Everything global that a fit might disturb; tensors and constraints by identity and by value."""
    store = pyro.get_param_store()
    params = dict(store._params)
    return {
        "torch stream": torch.get_rng_state().numpy().tobytes(),
        "numpy stream": repr(np.random.get_state()),
        "python stream": random.getstate(),
        "parameter tensors": {name: id(p) for name, p in params.items()},
        "parameter values": {name: p.detach().numpy().tobytes() for name, p in params.items()},
        "parameter names": {name: store.param_name(p) for name, p in params.items()},
        "constraints": {name: id(c) for name, c in store._constraints.items()},
        "default dtype": torch.get_default_dtype(),
        "grad mode": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "threads": torch.get_num_threads(),
        "threads of linear algebra": linear_algebra_threads(),
        "validation": (
            dist.is_validation_enabled(),
            torch.distributions.Distribution._validate_args,
            poutine.is_validation_enabled(),
            pyro.infer.is_validation_enabled(),
        ),
        "handlers": [id(handler) for handler in _PYRO_STACK],
        "plates": list(_DIM_ALLOCATOR._stack),
        "enumeration": repr(vars(_ENUM_ALLOCATOR)),
        "numpy errors": np.geterr(),
        "settings of Pyro": pyro.settings.get(),
    }


def changed(before):
    after = snapshot()
    return [name for name in before if before[name] != after[name]]


@contextmanager
def unchanged():
    before = snapshot()
    try:
        yield
    finally:
        assert changed(before) == []


@pytest.fixture(autouse=True)
def put_back():
    """Give each test a caller's state of its own, and undo whatever it does, without `isolated`."""
    streams = torch.get_rng_state(), np.random.get_state(), random.getstate()
    dtype, threads, validation = torch.get_default_dtype(), torch.get_num_threads(), dist.is_validation_enabled()
    linear_algebra = threadpool_limits()
    pyro.clear_param_store()
    pyro.param("loc", torch.tensor([7.0, 7.0]))
    pyro.param("width", torch.tensor(3.0), constraint=constraints.positive)
    yield
    pyro.clear_param_store()
    del _PYRO_STACK[:], _DIM_ALLOCATOR._stack[:]
    torch.set_rng_state(streams[0])
    np.random.set_state(streams[1])
    random.setstate(streams[2])
    torch.set_default_dtype(dtype)
    torch.set_num_threads(threads)
    linear_algebra.restore_original_limits()
    torch.set_grad_enabled(True)
    pyro.enable_validation(validation)


def _replace_parameter():
    pyro.get_param_store()["loc"] = pyro.param("loc").detach()


def _change_parameter():
    pyro.get_param_store()._params["loc"].data.add_(1.0)


def _forget_a_name():
    pyro.get_param_store()._param_to_name.clear()


def _constrain():
    pyro.get_param_store()._constraints["loc"] = constraints.positive


MISDEEDS = {
    "torch stream": lambda: torch.rand(1),
    "numpy stream": lambda: np.random.random(),
    "python stream": lambda: random.random(),
    "parameter tensors": _replace_parameter,
    "parameter values": _change_parameter,
    "parameter names": _forget_a_name,
    "constraints": _constrain,
    "default dtype": lambda: torch.set_default_dtype(torch.float64),
    "grad mode": lambda: torch.set_grad_enabled(False),
    "threads": lambda: torch.set_num_threads(2),
    "threads of linear algebra": lambda: threadpool_limits(3, user_api="blas"),
    "validation": lambda: pyro.enable_validation(False),
    "handlers": lambda: poutine.trace().__enter__(),
    "plates": lambda: pyro.plate("row", 3).__enter__(),
    "enumeration": lambda: _ENUM_ALLOCATOR.set_first_available_dim(-7),
}


@pytest.mark.parametrize("what", MISDEEDS)
def test_the_check_sees_a_leak(what):
    before = snapshot()
    MISDEEDS[what]()
    assert what in changed(before)


@pytest.mark.parametrize("what", [name for name, misdeed in MISDEEDS.items() if misdeed.__name__ == "<lambda>"])
@pytest.mark.parametrize("fails", [False, True], ids=["returns", "raises"])
def test_isolated_contains_the_same_leak(what, fails):
    with unchanged(), pytest.raises(ZeroDivisionError) if fails else nullcontext(), isolated(seed=1):
        MISDEEDS[what]()
        if fails:
            raise ZeroDivisionError


@pytest.mark.parametrize("fails", [False, True], ids=["returns", "raises"])
def test_isolated_has_a_parameter_store_of_its_own(fails):
    with unchanged(), pytest.raises(ZeroDivisionError) if fails else nullcontext(), isolated(seed=1):
        assert len(pyro.get_param_store()) == 0
        pyro.param("loc", torch.tensor(-1.0))
        pyro.param("new", torch.tensor(-1.0))
        if fails:
            raise ZeroDivisionError


def test_inside_is_as_promised():
    with torch.inference_mode(), poutine.trace(), pyro.plate("row", 3), isolated(seed=1):
        assert torch.get_default_dtype() == torch.float64
        assert torch.is_grad_enabled()
        assert not torch.is_inference_mode_enabled()
        assert torch.get_num_threads() == 1
        assert set(linear_algebra_threads()) == {1}
        assert dist.is_validation_enabled()
        assert [type(handler) for handler in _PYRO_STACK] == [_BorrowedModules]
        assert _DIM_ALLOCATOR._stack == []


def draw_from_every_stream():
    return torch.rand(1).item(), np.random.random(), random.random()


def test_seed_sets_every_stream():
    numbers = []
    for seed in (1, 1, 2):
        torch.manual_seed(99)  # whatever the caller's streams were
        np.random.seed(len(numbers))
        with isolated(seed=seed):
            numbers.append(draw_from_every_stream())
    assert numbers[0] == numbers[1]
    assert all(a != b for a, b in zip(numbers[0], numbers[2], strict=True))


def test_isolated_nests():
    with isolated(seed=1):
        expected = draw_from_every_stream()
    with isolated(seed=1):
        with isolated(seed=2, dtype=torch.float32):
            assert torch.get_default_dtype() == torch.float32
            draw_from_every_stream()
        assert torch.get_default_dtype() == torch.float64
        assert draw_from_every_stream() == expected


@pytest.mark.parametrize("seed", [-1, 2**32, True, 1.0, None])
def test_seeds_out_of_range_are_refused(seed):
    with (
        unchanged(),
        pytest.raises(InputError, match=r"seed: expected .* from 0 to 4294967295, got"),
        isolated(seed=seed),
    ):
        pass


def callers_world(name):
    return {
        "plain": nullcontext,
        "trace": poutine.trace,
        "plate": lambda: pyro.plate("row", 5),  # named like the model's own, and at the same dim
        "substitute": lambda: poutine.condition(data={"mu": torch.tensor(99.0)}),
        "no_grad": torch.no_grad,
        "inference_mode": torch.inference_mode,
        "no_validation": lambda: pyro.validation_enabled(False),
        "float64": double_precision,
    }[name]()


@contextmanager
def double_precision():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="module")
def reference_fits():
    """Each engine's draws, made in a world without parameters and handlers."""
    pyro.clear_param_store()
    return {name: fit(model, DATA, engine, seed=3) for name, engine in ENGINES.items()}


WORLDS = {  # every engine enters the same isolated block, so the quickest goes through all of them
    "svi": ["plain", "trace", "plate", "substitute", "no_grad", "inference_mode", "no_validation", "float64"],
    "nuts": ["trace", "inference_mode", "float64"],
    "nuts_pyro": ["trace"],
    "auto": ["trace", "float64"],
}


@pytest.mark.parametrize(("name", "world"), [(name, world) for name, worlds in WORLDS.items() for world in worlds])
def test_fit_and_its_caller_do_not_disturb_each_other(name, world, reference_fits):
    with callers_world(world) as handler, unchanged():
        result = fit(model, DATA, ENGINES[name], seed=3)
    assert_same(result, reference_fits[name])
    if world == "trace":
        assert list(handler.trace.nodes) == []


def assert_same(one, other):
    assert set(one.draws) == set(other.draws)
    for part in ("draws", "stats", "history"):
        for site, value in getattr(one, part).items():
            np.testing.assert_array_equal(value, getattr(other, part)[site], err_msg=f"{part} {site}")


@pytest.mark.parametrize("name", ENGINES)
def test_other_seed_other_numbers(name, reference_fits):
    other = fit(model, DATA, ENGINES[name], seed=4)
    assert not np.array_equal(other.draws["mu"], reference_fits[name].draws["mu"])
    with pytest.raises(AssertionError):  # negative control of the comparison
        assert_same(other, reference_fits[name])


@pytest.mark.parametrize("name", ENGINES)
def test_a_model_that_raises_leaves_no_trace(name):
    calls = []

    def fragile(y):
        calls.append(1)
        model(y)
        if len(calls) > 3:  # after the model has been read: amid recording or optimisation
            raise MemoryError("no room")

    with unchanged(), pytest.raises((InputError, MemoryError)), poutine.trace():
        fit(fragile, DATA, ENGINES[name])
    assert len(calls) > 3


@pytest.mark.parametrize("name", ENGINES)
def test_an_interruption_leaves_no_trace(name):
    calls = []

    def interrupted(y):
        calls.append(1)
        if len(calls) > 2:
            raise KeyboardInterrupt
        model(y)

    with unchanged(), pytest.raises(KeyboardInterrupt):
        fit(interrupted, DATA, ENGINES[name])


@pytest.mark.parametrize("name", ENGINES)
def test_a_fit_in_between_changes_nothing(name, reference_fits):
    between = fit(other_model, DATA, ENGINES[name], seed=3)
    assert between.draws["mu"].mean() < reference_fits[name].draws["mu"].mean() - 1
    assert_same(fit(model, DATA, ENGINES[name], seed=3), reference_fits[name])


def test_threads_take_turns(reference_fits):
    results = []

    def work():
        results.append(fit(model, DATA, ENGINES["svi"], seed=3))

    threads = [threading.Thread(target=work) for _ in range(3)]
    with unchanged():
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
    assert len(results) == 3
    for result in results:
        assert_same(result, reference_fits["svi"])


def test_guides_with_clashing_parameters():
    engine = SVI(guide=guide, num_steps=30, num_samples=10, num_chains=1)
    with unchanged():
        first = fit(model, DATA, engine, seed=1)
        other = fit(other_model, DATA, engine, seed=1)
        again = fit(model, DATA, engine, seed=1)
    assert_same(first, again)
    with first.restored():
        first_loc = pyro.param("loc").detach().clone()
    with other.restored():
        assert not torch.equal(pyro.param("loc"), first_loc)
    with first.restored():
        assert torch.equal(pyro.param("loc"), first_loc)
    # the caller's "loc" is 7: had it been the start, 30 steps of .02 would still be near it
    assert (first_loc.abs() < 1).all()


def test_reading_a_fit_does_not_change_it():
    result = fit(model, DATA, SVI(guide=guide, num_steps=5, num_samples=4, num_chains=1))
    before = {name: p.detach().clone() for name, p in result.state["params"]["params"].items()}
    with unchanged(), result.restored():
        for p in pyro.get_param_store()._params:
            pyro.get_param_store()[p] = torch.full_like(pyro.get_param_store()[p], 0.5)
    for name, p in result.state["params"]["params"].items():
        assert torch.equal(p, before[name])


class Shifted(pyro.nn.PyroModule):
    """Maximum likelihood: shift 3 in float64, whatever mu, whose prior is narrow, does."""

    def __init__(self):
        super().__init__()
        self.shift = torch.nn.Parameter(torch.zeros((), dtype=torch.float64))
        self.width = pyro.nn.PyroParam(torch.ones((), dtype=torch.float64), constraint=constraints.positive)

    def forward(self, y):
        mu = pyro.sample("mu", dist.Normal(0.0, 0.01))
        with pyro.plate("row", len(y)):
            pyro.sample("y", dist.Normal(mu + self.shift, self.width), obs=y)


def test_modules_of_the_caller_are_copied_and_the_copy_is_trained():
    module = Shifted()
    result = fit(module, {"y": [2.0, 3.0, 4.0]}, SVI(num_steps=300, lr=0.05, num_samples=4, num_chains=1))
    assert (module.shift.item(), module.width.item()) == (0.0, 1.0)
    with result.restored():
        store = pyro.get_param_store()
        assert store["shift"].item() == pytest.approx(3.0, abs=0.1)
        assert store["width"].item() == pytest.approx((2 / 3) ** 0.5, rel=0.1)


def test_a_network_in_the_closure_of_a_model_is_left_as_it_was():
    network = torch.nn.Linear(1, 1).double()
    before = network.weight.item()

    def regression(x, y):
        mean = pyro.module("network", network)(x)[:, 0]
        scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        with pyro.plate("row", len(y)):
            pyro.sample("y", dist.Normal(mean, scale), obs=y)

    fit(regression, {"x": [[1.0], [2.0]], "y": [5.0, 6.0]}, SVI(num_steps=5, num_samples=4, num_chains=1))
    assert network.weight.item() == before


def test_data_changed_later_do_not_change_the_fit():
    y = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)
    result = fit(model, {"y": y}, SVI(num_steps=2, num_samples=4, num_chains=1))
    y += 100.0
    np.testing.assert_array_equal(result.to_datatree().observed_data["y"], [1.0, 2.0, 4.0])
