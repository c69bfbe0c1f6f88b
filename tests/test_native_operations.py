"""Native code against torch, operation by operation: values and gradients, single precision, extreme numbers."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from inference import isolated
from inference.density import Density
from inference.graph import Recording, record
from inference.native import Unsupported, compile_graph
from inference.native.compiler import find_compiler
from inference.native.elementwise import Elementwise
from inference.sites import read_sites
from inference.validate import prepare_data
from tests import native_shapes
from tests.native_cases import POINTWISE, REDUCTIONS, WHOLE_NUMBERS
from tests.native_programs import Programs, difference
from tests.zoo import SCHOOLS, schools

pytestmark = pytest.mark.skipif(find_compiler() is None, reason="there is no C++ compiler here")

GROUPS = {
    "pointwise": POINTWISE,
    "whole_numbers": WHOLE_NUMBERS,
    "reductions": REDUCTIONS,
    "placed": native_shapes.PLACED,
    "products": native_shapes.PRODUCTS,
    "factors": native_shapes.FACTORS,
    "blocks": native_shapes.BLOCKS,
}
# torch's derivative of digamma has nine digits; the determinants and inverses of random matrices lose a few.
EASED = {"digamma": 1e-8} | dict.fromkeys(native_shapes.FACTORS, 1e-11)
NUM_POINTS = 5


@pytest.fixture(autouse=True)
def own_state():
    with isolated(seed=1):
        yield


@pytest.mark.parametrize("group", GROUPS)
def test_values_and_gradients_equal_torchs(group):
    programs = Programs(GROUPS[group])
    for _ in range(NUM_POINTS):
        assert programs.differences(programs.draw(), lambda name: EASED.get(name, 1e-12)) == {}


@pytest.mark.parametrize("group", ["pointwise", "reductions", "blocks"])
def test_values_in_single_precision(group):
    functions = {name: case for name, case in GROUPS[group].items() if name not in ("modulo", "division")}
    with isolated(seed=1, dtype=torch.float32):
        programs = Programs(functions, dtype=torch.float32, gradients=False)
        for _ in range(2):
            assert programs.differences(programs.draw(), lambda name: 1e-2 if name == "joined" else 2e-4) == {}


SIZES = [
    0.0, 1.0, 5e-324, 1e-310, 2.2250738585072014e-308, 1e-200, 1e-154, 1e-17, 1e-8, 0.1, 0.5, 0.9999999999999999,
    1.0000000000000002, 1.5, 2.5, 3.0, 20.0, 20.0001, 26.0, 40.0, 99.5, 170.5, 708.5, 709.78, 744.0, 745.2, 750.0,
    1e5, 1e16, 1e154, 1e300, 1.7976931348623157e308, torch.inf,
]  # fmt: skip
EXTREMES = torch.tensor([*SIZES, *(-x for x in SIZES), torch.nan], dtype=torch.float64)
# Where 0 or infinity is the answer but for the sign of a zero, or torch's own answer is not the best one.
NOT_AT_EXTREMES = {
    "modulo", "numbers", "acosh", "digamma", "mvlgamma", "erfcx", "hardtanh", "elu", "selu", "power_of_number",
    "lgamma", "lgamma_below_0", "logit", "logit_eps",
}  # fmt: skip
AT_EXTREMES = {
    **{n: f for n, (f, *specs) in POINTWISE.items() if len(specs) == 1 and n not in NOT_AT_EXTREMES},
    "power_of_two": lambda x: 2.0**x,
    "masked": lambda x: (x * (x > 1), x * 0.0 + 1, (x < 3) * x.log(), x - x, x / x),
    "safe_log": lambda x: (torch.where(x > 0, x, 1.0).log(), torch.where(x > 0, x.log(), -x)),
    "softmax": lambda x: (torch.softmax(torch.stack([x, 0 * x, -x]), 0), torch.log_softmax(torch.stack([x, 0 * x]), 0)),
    "logsumexp": lambda x: torch.logsumexp(torch.stack([x, 0 * x + 1, x]), 0),
    "extreme": lambda x: (
        torch.stack([x, 2 * x]).amax(0),
        *torch.stack([x, 2 * x]).max(0),
        torch.stack([x, -x]).amin(0),
    ),
    "bernoulli": lambda x: [
        F.binary_cross_entropy_with_logits(x, torch.full_like(x, y), reduction="none") for y in (0.0, 0.3, 1.0)
    ],
    "tests": lambda x: (x > 0, x >= 1, x < 2, x == 0, x != x, x.bool(), x.logical_not(), x.isfinite()),
    "sums": lambda x: (x[:9].sum(), x[30:36].sum(), x.sum(), x.amax(), x[3:5].prod(), x.flip(0).cumsum(0)),
}
PAIRS = [
    "add", "sub", "mul", "div", "maximum", "minimum", "atan2", "hypot", "logaddexp", "fmax", "fmin", "xlogy", "pow",
    "gt", "le", "eq", "clamp_min",
]  # fmt: skip


def test_extreme_numbers():
    # each at a length of its own, for loops of their own: one loop of them all would take the compiler minutes
    lengths = {name: len(EXTREMES) + i for i, name in enumerate(AT_EXTREMES)}
    programs = Programs({name: (f, str(lengths[name])) for name, f in AT_EXTREMES.items()})
    arguments = [EXTREMES.repeat(3)[:length] for length in lengths.values()]
    assert programs.differences(arguments, lambda _: 1e-13, ease=0.0) == {}


def test_pairs_of_extreme_numbers():
    x, y = (t.reshape(-1) for t in torch.meshgrid(EXTREMES, EXTREMES, indexing="ij"))
    size = str(len(x))
    programs = Programs({name: (getattr(torch, name), size, size) for name in PAIRS})
    assert programs.differences([x, y] * len(PAIRS), lambda _: 1e-13, ease=0.0) == {}


def test_a_model_that_fills_a_tensor_in_place():
    def kernel(x):
        covariance = torch.empty(4, 4, dtype=x.dtype)
        for i in range(4):
            for j in range(4):
                covariance[i, j] = torch.exp(-((x[i] - x[j]) ** 2))
        covariance.diagonal().add_(1.0)
        covariance[1:, 0] *= 0.5
        return torch.linalg.cholesky(covariance).sum()

    point = torch.randn(4, dtype=torch.float64)
    graph = Recording(kernel, [point], gradient=True).bind()
    gradient, value = compile_graph(graph, point)(point)
    leaf = point.clone().requires_grad_()
    expected = kernel(leaf)
    expected.backward()
    np.testing.assert_allclose(value, expected.detach(), rtol=1e-13)
    np.testing.assert_allclose(gradient, leaf.grad, rtol=1e-12)


def test_a_matrix_that_cannot_be_factorised_gives_nan():
    def factors(x):
        return torch.linalg.cholesky(x), torch.linalg.inv(x), 2 * x

    example = torch.eye(3, dtype=torch.float64).repeat(3, 1, 1)
    native = compile_graph(record(factors, example), example)
    matrices = torch.stack([example[0], -example[0], 0 * example[0]])
    root, inverse, double = native(matrices.numpy())
    np.testing.assert_array_equal(root[0], np.eye(3))
    assert np.isnan(root[1:]).all()
    np.testing.assert_array_equal(inverse[:2], matrices[:2])
    assert np.isnan(inverse[2]).all()
    np.testing.assert_array_equal(double, 2 * matrices)


def test_a_vector_longer_than_the_stack_of_a_thread():
    point = torch.linspace(-1, 1, 500_000, dtype=torch.float64)
    native = compile_graph(Recording(lambda x: -0.5 * (x * x).sum(), [point], gradient=True).bind(), point)
    results = []
    thread = threading.Thread(target=lambda: results.extend(native.batch(point[None].numpy())))
    thread.start()
    thread.join()
    np.testing.assert_array_equal(results[0][0], -point.numpy())


def test_threads_do_not_disturb_each_other():
    """Intermediate results are too large for the stack here, so that each thread has memory of its own for them."""
    example = torch.zeros(60_000, dtype=torch.float64)
    native = compile_graph(record(lambda x: x.exp().cumsum(0).flip(0).log(), example), example)
    inputs = [torch.randn(60_000, dtype=torch.float64) for _ in range(4)]
    expected = [native(x)[0] for x in inputs]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(20):
            for got, right in zip(pool.map(lambda x: native(x)[0], inputs), expected, strict=True):
                np.testing.assert_array_equal(got, right)


UNSUPPORTED = {
    "sort": lambda x: x.sort(0)[0],
    "median": lambda x: x.median(),
    "searchsorted": lambda x: torch.searchsorted(x.detach()[0], x.detach()) + x,
    "logcumsumexp": lambda x: torch.logcumsumexp(x, 0),
    "i0": lambda x: torch.i0(x),
    "ndtri": lambda x: torch.special.ndtri(x),
    "igamma": lambda x: torch.special.gammainc(x.detach().abs(), x.abs()),
    "polygamma": lambda x: torch.polygamma(2, x),
    "linalg_eigh": lambda x: torch.linalg.eigvalsh(x),
    "linalg_svd": lambda x: torch.linalg.svdvals(x),
    "linalg_solve_ex": lambda x: torch.linalg.solve(x, x[0]),
    "linalg_slogdet": lambda x: torch.logdet(x),
    "matrix_exp": lambda x: torch.matrix_exp(x),
    "fft": lambda x: torch.fft.rfft(x).abs(),
    "convolution": lambda x: F.conv1d(x[None], x[None]),
    "as_strided": lambda x: x.T.exp().as_strided((2, 2), (1, 2)),
    "rand_like": lambda x: x * torch.rand_like(x),
    "float32": lambda x: x * x.float(),
    "int32": lambda x: x * x.int(),
    "round": lambda x: torch.round(x, decimals=2),
    "a mask that depends": lambda x: native_shapes.assigned(x, x > 0, x.detach()[x.detach() > 0]),
}


@pytest.mark.parametrize("operation", UNSUPPORTED)
def test_an_unsupported_operation_is_named(operation):
    x = torch.randn(3, 3, dtype=torch.float64)
    with pytest.raises((Unsupported, NotImplementedError), match=f"{operation}|control flow"):
        compile_graph(record(UNSUPPORTED[operation], x), x)


def test_wrong_code_is_found_out(monkeypatch):
    right = Elementwise.unary
    monkeypatch.setattr(Elementwise, "unary", lambda self, name, x: right(self, "expm1" if name == "exp" else name, x))
    density = Density(read_sites(schools, prepare_data(schools, SCHOOLS)))
    density.compile()
    assert (density.backend, density.native) == ("graph", None)
    assert "differs from eager Pyro's" in density.reason
    monkeypatch.undo()
    density.compile()
    assert density.backend == "native"


def test_wrong_numbers_are_told():
    right = np.array([1.0, np.inf, np.nan, 1e-20])
    assert difference(right, right, 1e-12) == ""
    for place, wrong in enumerate((1 + 1e-11, -np.inf, 0.0, 1e-13)):
        got = right.copy()
        got[place] = wrong
        assert "1 of 4" in difference(got, right, 1e-12)
    assert "float32" in difference(right.astype(np.float32), right, 1e-12)
    assert "1 of 4" in difference(right * [1, 1, 1, 2], right, 1e-12, ease=0.0)
