"""Loops over many rows: products with tall matrices, parts for threads, and values that are kept a block at a time."""

import numpy as np
import pytest
import torch

from inference import isolated
from inference.graph import Recording
from inference.native import compile_graph, function, regions
from inference.native.compiler import find_compiler
from inference.native.schedule import BLOCK_ROWS
from tests import native_shapes
from tests.native_programs import Programs

pytestmark = pytest.mark.skipif(find_compiler() is None, reason="there is no C++ compiler here")

ROWS = native_shapes.ROWS


@pytest.fixture(autouse=True)
def own_state():
    with isolated(seed=1):
        yield


def product(*, turned):
    """Multiply a tall matrix by a small one, bend the result, and let autograd add up rows for both gradients."""

    def run(a, b):
        tall = a.T if turned else a
        return ((tall @ b).tanh().T if turned else (tall @ b).tanh()) * 0.5

    return run


WIDTHS = ((17, 8), (45, 3), (3, 30), (50, 9), (100, 2), (12, 12))
PRODUCTS = {
    f"{k}_{n}_{turned}": (product(turned=turned), f"{k}x{ROWS}" if turned else f"{ROWS}x{k}", f"{k}x{n}")
    for k, n in WIDTHS
    for turned in (False, True)
} | {
    "two_layers": (lambda a, b, c: ((a @ b).tanh() @ c).exp().sum(1), f"{ROWS}x6", "6x20", "20x11"),
    "both_known": (lambda a, g: (g.T @ a.sin(), a.T @ g.cos()), f"{ROWS}x10", f"{ROWS}x9"),
    "repeated": (lambda a, g: (g[:1].expand(ROWS, 9).T @ a, a), f"{ROWS}x10", f"{ROWS}x9"),
    "flat": (lambda a, b: a @ b.view(10, 8), f"{ROWS}x10", "80"),
    "part": (lambda a, b: (a[:, 3:] @ b, a[7:, 1:-2] @ b), f"{ROWS}x12", "9x9"),
}


@pytest.mark.parametrize("parts", [False, True])
def test_products_with_tall_matrices_equal_torchs(monkeypatch, parts):
    if parts:
        monkeypatch.setattr(regions, "MIN_OPERATIONS", 0)
        monkeypatch.setattr(regions, "ROWS_FOR_A_SUM", 1)
    programs = Programs(PRODUCTS)
    arguments = programs.draw()
    assert programs.differences(arguments, lambda _: 1e-12) == {}


def test_rows_in_parts_equal_torchs(monkeypatch):
    """The groups of blocks, all of their loops in parts; and what happens if a part is lost."""
    monkeypatch.setattr(regions, "MIN_OPERATIONS", 0)
    monkeypatch.setattr(regions, "ROWS_FOR_A_SUM", 1)
    programs = Programs(native_shapes.BLOCKS)
    assert programs.differences(programs.draw(), lambda _: 1e-12) == {}
    monkeypatch.setattr(regions.RowRegion, "step", property(lambda region: BLOCK_ROWS // 2))
    wrong = Programs(native_shapes.BLOCKS)
    assert wrong.differences(wrong.draw(), lambda _: 1e-12)


def likelihood(x):
    """Mix eight normals of nine columns, one row after the other independent."""
    known = torch.linspace(-1, 1, 30_000 * 9, dtype=torch.float64).reshape(-1, 9).cos()

    def log_density(vector):
        means = vector.reshape(9, 8)
        return (known @ means - 0.5 * (means**2).sum(0)).logsumexp(1).sum()

    return log_density(x)


def test_numbers_do_not_depend_on_how_many_threads_there_are(monkeypatch):
    point = torch.linspace(-1, 1, 72, dtype=torch.float64)
    native = compile_graph(Recording(likelihood, [point], gradient=True).bind(), point)
    leaf = point.clone().requires_grad_()
    value = likelihood(leaf)
    value.backward()
    first = None
    for num in (1, 2, 5, 100):
        monkeypatch.setattr(function, "num_cores", lambda num=num: num)
        found = native(point.numpy())
        np.testing.assert_allclose(found[0], leaf.grad, rtol=1e-11)
        np.testing.assert_allclose(found[1], value.detach(), rtol=1e-13)
        gradients, values = native.batch(np.tile(point, (12, 1)))
        first = first or found
        for got in (found, *zip(gradients, values, strict=True)):
            np.testing.assert_array_equal(got[0], first[0])
            assert got[1] == first[1]


def test_small_loops_start_no_threads():
    point = torch.linspace(-1, 1, 3000, dtype=torch.float64)
    small = compile_graph(Recording(lambda x: x.exp().sum(), [point], gradient=True).bind(), point)
    assert not hasattr(small._library, "ppl_use_threads")
    point = torch.linspace(-1, 1, 72, dtype=torch.float64)
    large = compile_graph(Recording(likelihood, [point], gradient=True).bind(), point)
    assert hasattr(large._library, "ppl_use_threads")
