"""Random programs in native code against torch: what a table of single operations cannot think of."""

import pytest
import torch

from inference import isolated
from inference.native.compiler import find_compiler
from inference.native.indexing import Indexing
from inference.native.values import Program
from tests.native_programs import Programs
from tests.random_programs import random_program

pytestmark = pytest.mark.skipif(find_compiler() is None, reason="there is no C++ compiler here")

# So many at once are compiled with little optimisation, in half the time; so few with all.
MANY, FEW = 50, 25


def programs(first, num):
    made = {}
    for seed in range(first, first + num):
        shapes, function = random_program(seed)
        made[f"seed {seed}"] = (function, *("x".join(str(n) for n in shape) for shape in shapes))
    return Programs(made)


def differences(compiled, num_points=2):
    told = {}
    for _ in range(num_points):
        told |= compiled.differences(compiled.draw(), lambda _: 1e-9)
    return told


@pytest.fixture(autouse=True)
def own_state():
    with isolated(seed=1):
        yield


@pytest.mark.parametrize(("first", "num"), [*((first, MANY) for first in range(0, 150, MANY)), (150, FEW), (175, FEW)])
def test_random_programs_equal_torchs(first, num):
    assert differences(programs(first, num)) == {}


@pytest.mark.slow
@pytest.mark.parametrize("first", range(1000, 2000, FEW))
def test_more_random_programs_equal_torchs(first):
    assert differences(programs(first, FEW)) == {}


def forget_repeats(monkeypatch):
    """Take the sum of what is constant along a dim for what it is once."""
    right = Program.reduce

    def wrong(self, op, tensor, dims, *, keepdim):
        repeated = any(tensor.strides[d] == 0 and tensor.shape[d] > 1 for d in dims)
        return right(self, "max" if repeated and op == "sum" else op, tensor, dims, keepdim=keepdim)

    monkeypatch.setattr(Program, "reduce", wrong)


def forget_order(monkeypatch):
    """Leave flipped tensors as they were."""
    monkeypatch.setattr(Indexing, "aten_flip", lambda self, x, dims: x)


@pytest.mark.parametrize("fault", [forget_repeats, forget_order])
def test_random_programs_find_a_fault(fault, monkeypatch):
    fault(monkeypatch)
    assert differences(programs(0, 13), num_points=1)


def test_programs_are_of_many_kinds():
    operations = set()
    for seed in range(50):
        shapes, function = random_program(seed)
        arguments = [torch.randn(shape, requires_grad=True) for shape in shapes]
        with torch.autograd.profiler.profile() as profile:
            function(*arguments)
        operations |= {event.name for event in profile.function_events}
    assert {"aten::flip", "aten::gather", "aten::cumsum", "aten::cat", "aten::bmm", "aten::index"} <= operations
