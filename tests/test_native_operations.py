"""Native code against torch, operation by operation: values and gradients, single precision, extreme numbers."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from inference import isolated
from inference.density import Density
from inference.graph import Recording, record
from inference.native import Unsupported, compile_graph, lower
from inference.native.compiler import find_compiler
from inference.native.translator import Translator
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
