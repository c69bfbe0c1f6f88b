"""Compiled densities against eager Pyro, value and gradient, for every kind of model."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

from inference import isolated
from inference.density import Density
from inference.native.compiler import find_compiler
from inference.sites import read_sites
from inference.validate import model_function, prepare_data
from ppl_models import MODELS
from tests.zoo import CASES, MORE_CASES, branching, hmm, logistic

pytestmark = pytest.mark.skipif(find_compiler() is None, reason="there is no C++ compiler here")

Y = torch.linspace(-2.0, 2.0, 40, dtype=torch.float64).sin()
ROOT = Path(__file__).resolve().parents[1]
# Their networks are params, without a prior: there is no density before they are trained.
NETWORKS = ("vae", "conditional_vae", "semi_supervised_vae", "two_layer_vae")
TABLE = {
    **{f"ppl_models {name}": (model, model.data()) for name, model in MODELS.items() if name not in NETWORKS},
    **{name: (case.model, case.data) for name, case in (CASES | MORE_CASES).items() if case.recorded},
    "hmm of 40 steps": (hmm, {"y": Y}),
}


@pytest.fixture(autouse=True)
def own_state():
    with isolated(seed=1):
        yield


def density(model, data):
    function = model_function(model)
    return Density(read_sites(function, prepare_data(function, data)), hold_params=True)  # networks as they begin


def points(dim, num, radius):
    return np.random.default_rng(dim).uniform(-radius, radius, size=(num, dim))


# Large terms that nearly cancel: a hundred Kalman steps lose more digits, in whatever order they are added.
TOLERANCE = {"ppl_models local_linear_trend": 1e-6}


@pytest.mark.parametrize("name", TABLE)
def test_equals_eager_pyro(name):
    tolerance = TOLERANCE.get(name, 1e-10)
    made = density(*TABLE[name])
    made.compile()
    assert (made.backend, made.reason) == ("native", "")
    at = np.concatenate([points(made.dim, 8, 2.0), points(made.dim, 4, 5.0)])
    values, gradients = made.grad(at)
    for point, value, gradient in zip(at, values, gradients, strict=True):
        expected, right = made._eager_grad(torch.as_tensor(point))[::-1]
        np.testing.assert_allclose(value, expected, rtol=1e-10)
        np.testing.assert_allclose(gradient, right, rtol=tolerance, atol=tolerance * right.abs().max())
        one_value, one_gradient = made.value_and_grad(point)
        assert one_value == value
        np.testing.assert_array_equal(one_gradient, gradient)


@pytest.mark.parametrize("name", ["schools", "logistic", "correlated"])
def test_single_precision(name):
    case = CASES[name]
    with isolated(seed=1, dtype=torch.float32):
        made = density(case.model, case.data)
        made.compile()
        assert made.backend == "native"
        at = points(made.dim, 5, 2.0)
        values, gradients = made.grad(at)
        for point, value, gradient in zip(at, values, gradients, strict=True):
            right, expected = made._eager_grad(torch.as_tensor(point, dtype=torch.float32))
            np.testing.assert_allclose(value, expected, rtol=1e-5)
            np.testing.assert_allclose(gradient, right, rtol=1e-4, atol=1e-4 * right.abs().max())


def test_constants_of_other_precision():
    """As a module has them that makes tensors while torch's default is single precision."""
    scale, place = torch.tensor([0.1, 2.0, 0.3], dtype=torch.float32), torch.tensor([0, 1, 2, 2], dtype=torch.int32)

    def model(y):
        loc = pyro.sample("loc", dist.Normal(torch.zeros(3), scale).to_event(1))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(loc[place] * scale[place.long()], 1.0), obs=y)

    made = density(model, {"y": torch.ones(4)})
    made.compile()
    assert (made.backend, made.reason) == ("native", "")
    at = points(made.dim, 5, 2.0)
    expected = [made.eager(torch.as_tensor(point)).item() for point in at]
    np.testing.assert_allclose(made.log_density(at), expected, rtol=1e-14)


def test_control_flow_on_a_latent_stays_with_pyro():
    made = density(branching, {"y": Y})
    made.compile()
    assert made.backend == "eager"
    assert "control flow or a shape depends on the value of a latent" in made.reason


def test_an_operation_without_native_code_stays_with_the_graph():
    def model(y):
        mu = pyro.sample("mu", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        pyro.sample("y", dist.Normal(mu.sort()[0][1], 1.0), obs=y)

    made = density(model, {"y": torch.tensor(1.0)})
    made.compile()
    assert made.backend == "graph"
    assert "the operation aten.sort" in made.reason


def test_large_data_are_not_copied():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1_000_000, 5, dtype=torch.float64, generator=generator)
    data = prepare_data(logistic, {"x": x, "y": (x[:, 0] > 0).double()})
    made = Density(read_sites(logistic, data))
    made.compile()
    held = {c.data_ptr() for c in made.native._constants if c.numel() > 100}
    assert held == {data["x"].data_ptr(), data["y"].data_ptr()}


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of memory is read from /proc")
def test_memory_of_a_fit_to_large_data_is_bounded():
    """Beside the data (48 MB) and Fit's copy of them: what four chains need at once, and what recording needed."""
    code = """
import torch
from pathlib import Path
from inference import NUTS, fit
from tests.zoo import logistic
def peak():
    (line,) = (l for l in Path("/proc/self/status").read_text().splitlines() if l.startswith("VmHWM"))
    return int(line.split()[1]) / 1024
def data(n):
    x = torch.randn(n, 5, dtype=torch.float64)
    return {"x": x, "y": (x[:, 0] > 0).double()}
engine = NUTS(num_warmup=4, num_samples=4, num_chains=4, backend="native")
fit(logistic, data(10), engine)
large = data(1_000_000)
before = peak()
assert "native" in fit(logistic, large, engine).state["backend"]
print(peak() - before)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert float(result.stdout) < 600
