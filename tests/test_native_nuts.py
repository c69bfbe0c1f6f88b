"""NUTS on compiled densities: what is compiled when, which route is taken and why, threads, interruptions."""

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from nutpie import _lib

import inference.nutpie_chains
from inference import NUTS, SVI, AutoVI, fit
from inference.density import Density
from inference.native.compiler import ADVICE, find_compiler, num_compilations
from inference.nutpie_chains import MIN_DRAWS, _usable, num_cores
from tests.accuracy import assert_moments
from tests.zoo import SCHOOLS, logistic, schools

needs_compiler = pytest.mark.skipif(find_compiler() is None, reason="there is no C++ compiler here")
ROOT = Path(__file__).resolve().parents[1]
NATIVE = NUTS(num_warmup=100, num_samples=50, num_chains=2, backend="native")
TASKS = Path("/proc/self/task")
MANY = 1_000_000  # more draws than a test waits for
OTHER = {"y": SCHOOLS["y"] + 1.0, "sigma": 2 * SCHOOLS["sigma"]}


def numbers(num_rows, num_columns, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(num_rows, num_columns, dtype=torch.float64, generator=generator)
    return {"x": x, "y": (x[:, 0] > 0).double()}


@needs_compiler
def test_other_data_of_the_same_shapes_compile_nothing():
    first = fit(schools, SCHOOLS, NATIVE, seed=1)
    before = num_compilations()
    refit = fit(schools, OTHER, NATIVE, seed=1)
    assert num_compilations() == before
    assert first.state["backend"] == refit.state["backend"] == "nutpie, native density"
    assert not np.array_equal(first.draws["mu"], refit.draws["mu"])
    assert refit.notes == ()


@needs_compiler
def test_what_is_chosen_does_not_depend_on_what_is_in_the_cache():
    """Otherwise equal seeds would give other numbers the second time."""
    fit(schools, SCHOOLS, NATIVE, seed=1)
    short = fit(schools, SCHOOLS, NUTS(num_warmup=5, num_samples=5, num_chains=1), seed=1)
    assert short.state["backend"] == "nutpie, graph density"
    assert short.notes == ()  # not for lack of anything
    long = fit(schools, SCHOOLS, NUTS(num_warmup=500, num_samples=500), seed=1)
    assert long.state["backend"] == "nutpie, native density"
    assert {"setup", "compile", "warmup", "sampling"} <= set(long.seconds)


@needs_compiler
def test_a_second_process_compiles_nothing(tmp_path):
    code = """
from inference import fit
from inference.native.compiler import num_compilations
from tests.test_native_nuts import NATIVE, SCHOOLS, schools
print(fit(schools, SCHOOLS, NATIVE, seed=1).state["backend"], num_compilations())
"""
    environment = {**os.environ, "PPL_CACHE_DIR": str(tmp_path)}
    said = [
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT, env=environment
        )
        for _ in range(2)
    ]
    assert [s.stdout for s in said] == [f"nutpie, native density {n}\n" for n in (1, 0)]


@pytest.mark.parametrize("engine", [NUTS(num_warmup=50, num_samples=20), AutoVI(num_samples=20), SVI(num_steps=50)])
def test_without_a_compiler_everything_runs_and_says_so_once(engine, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    result = fit(schools, SCHOOLS, engine, seed=1)
    assert result.notes == (ADVICE,)
    assert "native" not in result.state["backend"]
    assert result.status.kind != "interrupted"
    assert "\n" not in ADVICE


@needs_compiler
def test_both_routes_have_one_posterior():
    routes = {
        name: fit(schools, SCHOOLS, NUTS(num_warmup=400, num_samples=1000, num_chains=2, backend=name), seed=1)
        for name in ("native", "python")
    }
    assert {name: result.state["backend"] for name, result in routes.items()} == {
        "native": "nutpie, native density",
        "python": "nutpie, graph density",
    }
    native, python = routes.values()
    for site in ("mu", "theta"):
        truth = python.draws[site]
        assert_moments(native.draws[site], truth.mean((0, 1)), truth.std((0, 1)), bias=0.15)
    with native.restored() as sites:
        density = Density(sites)
        points = native.state["unconstrained"].reshape(-1, density.dim)
        np.testing.assert_allclose(density.log_density(points), native.stats["lp"].ravel(), rtol=1e-10)
    # the very first steps are the same numbers, until rounding has grown
    for name in ("n_steps", "step_size"):
        warm = [
            fit(schools, SCHOOLS, NUTS(num_warmup=5, num_samples=4, num_chains=1, backend=b), seed=1) for b in routes
        ]
        np.testing.assert_allclose(*(w.stats[name] for w in warm), rtol=1e-6)


@needs_compiler
@pytest.mark.parametrize("options", [{"dtype": "float32"}, {"adaptation": "low_rank"}, {"save_warmup": True}])
def test_settings_that_reach_native_code(options):
    result = fit(schools, SCHOOLS, replace(NATIVE, num_warmup=300, num_samples=300, **options), seed=1)
    assert result.state["backend"] == "nutpie, native density"
    assert result.state["adapted"]["inverse_mass"].shape == (2, 10)
    assert result.draws["mu"].dtype == (np.float32 if "dtype" in options else np.float64)
    assert abs(result.draws["mu"].mean() - 4.4) < 1.0
    assert result.num_gradients > 2 * 600


def absent(monkeypatch):
    monkeypatch.delattr(_lib, "LogpFunc")


def of_other_arguments(monkeypatch):
    def model(*_):
        raise TypeError("PyMcModel takes 3 positional arguments")

    monkeypatch.setattr(_lib, "PyMcModel", model)


def without_a_door(monkeypatch):
    monkeypatch.setattr(_lib, "PySampler", type("PySampler", (), {"from_pyfunc": _lib.PySampler.from_pyfunc}))


@needs_compiler
@pytest.mark.parametrize("change", [absent, of_other_arguments, without_a_door])
def test_another_nutpie_is_gone_round(change, monkeypatch):
    change(monkeypatch)
    result = fit(schools, SCHOOLS, NATIVE, seed=1)
    assert result.state["backend"] == "nutpie, graph density"
    (note,) = result.notes
    assert "takes no native code, so that it runs through Python" in note
    assert result.status.kind == "finished"


def workers():
    """Seconds of CPU time of nutpie's threads, by number."""
    ticks = os.sysconf("SC_CLK_TCK")
    found = {}
    for task in TASKS.iterdir():
        try:
            name, fields = (task / "comm").read_text(), (task / "stat").read_text().rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        if name.startswith("nutpie-worker"):
            found[task.name] = (int(fields[11]) + int(fields[12])) / ticks
    return found


@needs_compiler
@pytest.mark.skipif(not TASKS.exists() or num_cores() < 2, reason="two cores and /proc are needed")
def test_chains_run_side_by_side():
    """By the CPU time that each thread has taken, whatever else runs on the machine."""
    most, done = {}, threading.Event()

    def watch():
        while not done.wait(0.02):
            most.update(workers())

    watcher = threading.Thread(target=watch)
    watcher.start()
    before = torch.get_num_threads()
    engine = NUTS(num_warmup=100, num_samples=100, num_chains=4, backend="native")
    try:
        result = fit(logistic, numbers(10_000, 20), engine, seed=1)
    finally:
        done.set()
        watcher.join()
    assert result.state["backend"] == "nutpie, native density"
    busy = [seconds for seconds in most.values() if seconds > 0.25 * max(most.values())]
    assert len(busy) >= 2
    assert torch.get_num_threads() == before


@pytest.fixture
def interrupt(monkeypatch, heard_interrupts):
    """Send Ctrl-C a while after nutpie has begun."""
    sample = inference.nutpie_chains.nutpie_sample

    def after(seconds):
        def interrupted(*args, **options):
            timer = threading.Timer(seconds, lambda: signal.raise_signal(signal.SIGINT))
            timer.start()
            try:
                return sample(*args, **options)
            finally:
                timer.join()

        monkeypatch.setattr(inference.nutpie_chains, "nutpie_sample", interrupted)

    return after


def assert_no_worker_runs():
    if TASKS.exists():
        first = workers()
        time.sleep(0.2)
        assert {name: s for name, s in workers().items() if s > first.get(name, 0.0)} == {}


@needs_compiler
@pytest.mark.parametrize("save_warmup", [False, True])
def test_an_interruption_keeps_the_draws_of_unfinished_chains(interrupt, save_warmup):
    interrupt(0.5)
    engine = NUTS(num_warmup=50, num_samples=MANY, num_chains=2, backend="native", save_warmup=save_warmup)
    result = fit(schools, SCHOOLS, engine, seed=1)
    assert_no_worker_runs()
    assert result.status.kind == "interrupted"
    assert result.status.message.startswith(
        f"Interrupted: {result.num_chains} of 2 chains with {result.num_draws} draws"
    )
    assert result.num_chains >= 1
    assert MIN_DRAWS <= result.num_draws < MANY
    for values in (*result.draws.values(), *result.stats.values(), *result.state["adapted"].values()):
        assert values.shape[0] == result.num_chains
        assert np.isfinite(values).all()
    if save_warmup:
        assert result.state["warmup"]["unconstrained"].shape[:2] == (result.num_chains, 50)
    with result.restored() as sites:
        density = Density(sites)
        points = result.state["unconstrained"][:, -3:].reshape(-1, density.dim)
        np.testing.assert_allclose(density.log_density(points), result.stats["lp"][:, -3:].ravel(), rtol=1e-10)
    assert result.to_datatree()["posterior"]["mu"].shape == (result.num_chains, result.num_draws)


@needs_compiler
def test_an_interruption_during_warm_up_leaves_nothing(interrupt):
    interrupt(0.3)
    with pytest.raises(KeyboardInterrupt, match="before a chain had 4 draws after its warm-up"):
        fit(schools, SCHOOLS, NUTS(num_warmup=MANY, num_samples=4, num_chains=2, backend="native"), seed=1)
    assert_no_worker_runs()


def test_an_interruption_of_the_route_through_python(interrupt):
    interrupt(1.5)
    result = fit(schools, SCHOOLS, NUTS(num_warmup=10, num_samples=MANY, num_chains=2, backend="python"), seed=1)
    assert result.status.kind == "interrupted"
    assert result.num_chains == 1  # one after another
    assert np.isfinite(result.draws["mu"]).all()


@pytest.mark.parametrize(
    ("lengths", "chains", "length"),
    [
        ([100, 100, 100, 100], [0, 1, 2, 3], 100),
        ([100, 97, 40, -20], [0, 1], 97),
        ([30, 100, 29, 28], [0, 1, 2, 3], 28),
        ([3, -50, 100, 1], [2], 100),
        ([5, 4, 4, 4], [0, 1, 2, 3], 4),
    ],
)
def test_what_is_kept_of_chains_of_different_lengths(lengths, chains, length):
    kept, end = _usable(np.array(lengths))
    assert (kept.tolist(), end) == (chains, length)


@pytest.mark.parametrize("lengths", [[3, 3, 3, 3], [-1, -50], [0], []])
def test_too_few_draws_to_keep(lengths):
    with pytest.raises(KeyboardInterrupt, match="before a chain had 4 draws"):
        _usable(np.array(lengths, int))


def test_a_model_that_raises_in_the_middle_ends_the_run(monkeypatch):
    right, calls = Density.value_and_grad, []

    def breaks(self, point):
        calls.append(1)
        if len(calls) > 200:
            raise ValueError("a model with a fault")
        return right(self, point)

    monkeypatch.setattr(Density, "value_and_grad", breaks)
    with pytest.raises(ValueError, match="^a model with a fault$"):
        fit(schools, SCHOOLS, NUTS(num_warmup=50, num_samples=200, num_chains=2, backend="python"), seed=1)
    assert len(calls) == 201
    assert_no_worker_runs()


@needs_compiler
def test_a_point_without_a_density_ends_a_trajectory_only():
    """A Cholesky factor that fails gives NaN, of which the sampler is told."""

    def model(y):
        rho = pyro.sample("rho", dist.Normal(0.0, 1.0))
        covariance = torch.eye(2) + rho * torch.tensor([[0.0, 1.0], [1.0, 0.0]])
        pyro.sample("y", dist.MultivariateNormal(torch.zeros(2), covariance), obs=y)

    result = fit(model, {"y": torch.tensor([1.0, 0.5])}, NATIVE, seed=1)
    assert result.state["backend"] == "nutpie, native density"
    assert np.abs(result.draws["rho"]).max() < 1.0
    assert result.stats["diverging"].any()
