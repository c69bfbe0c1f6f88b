"""Elementary functions of native code, in units of the last place, over their whole range."""

import numpy as np
import pytest
import torch
from scipy import special

from inference.graph import record
from inference.native import compile_graph
from inference.native.compiler import find_compiler

pytestmark = pytest.mark.skipif(find_compiler() is None, reason="there is no C++ compiler here")
extended = pytest.mark.skipif(
    np.finfo(np.longdouble).nmant < 63, reason="long double is no longer than double on this machine"
)

SIZE = 100_000
RNG = np.random.default_rng(0)


def anywhere(low=-1074.0, high=1023.9):
    """Positive numbers of any size, denormal ones among them."""
    return 2.0 ** RNG.uniform(low, high, SIZE)


def either_sign(x):
    return x * RNG.choice([-1.0, 1.0], len(x))


def below_one():
    return 1.0 - 2.0 ** RNG.uniform(-52, 0, SIZE)


SMALL = either_sign(anywhere(-300, 0))
# function of torch, of numpy (which works in the precision of its argument), where, and how good it is
FUNCTIONS = {
    "exp": (torch.exp, np.exp, RNG.uniform(-745.0, 709.7, SIZE), 1.0),
    "exp_small": (torch.exp, np.exp, SMALL, 1.0),
    "expm1": (torch.expm1, np.expm1, RNG.uniform(-40.0, 709.7, SIZE), 2.0),
    "expm1_small": (torch.expm1, np.expm1, SMALL, 2.0),
    "log": (torch.log, np.log, anywhere(), 1.5),
    "log_near_one": (torch.log, np.log, RNG.uniform(0.5, 2.0, SIZE), 1.5),
    "log1p": (torch.log1p, np.log1p, anywhere(), 2.0),
    "log1p_small": (torch.log1p, np.log1p, SMALL * 0.999, 2.0),
    "log1p_near_minus_one": (torch.log1p, np.log1p, -below_one(), 2.0),
    "tanh": (torch.tanh, np.tanh, RNG.uniform(-25.0, 25.0, SIZE), 3.0),
    "tanh_small": (torch.tanh, np.tanh, SMALL, 3.0),
    "sigmoid": (torch.sigmoid, lambda x: 1 / (1 + np.exp(-x)), RNG.uniform(-708.0, 40.0, SIZE), 2.0),
}


def native(function, x):
    """Evaluate a function twice: in a loop that uses the vector unit, and in one too short for it."""
    x = torch.from_numpy(x)
    many, few = compile_graph(record(lambda x, y: (function(x), function(y)), x, x[:3]), x, x[:3])(x, x[:3])
    np.testing.assert_array_max_ulp(many[:3], few, 1)
    return many


def ulps(got, expected):
    return np.abs(got - expected) / np.spacing(np.abs(expected).astype(np.float64))


@extended
@pytest.mark.parametrize("name", FUNCTIONS)
def test_errors_in_units_of_the_last_place(name):
    function, reference, x, bound = FUNCTIONS[name]
    error = ulps(native(function, x), reference(x.astype(np.longdouble)))
    assert error.max() < bound


def test_the_unit_of_the_last_place_can_tell():
    x = RNG.uniform(1.0, 2.0, SIZE)
    exact = np.exp(x.astype(np.longdouble))
    assert ulps(np.exp(x), exact).max() < 1.0
    assert ulps(np.exp(x) * (1 + 1e-15), exact).max() > 3.0


BELOW_ZERO = RNG.uniform(-150.0, 0.0, SIZE)
# These are compared with scipy in double precision: to a relative error, below 1 to an absolute one.
SPECIAL = {
    "lgamma": (torch.lgamma, special.gammaln, anywhere(-100, 1000), 1e-14),
    "lgamma_ordinary": (torch.lgamma, special.gammaln, RNG.uniform(0.0, 50.0, SIZE), 1e-14),
    "lgamma_below_zero": (torch.lgamma, special.gammaln, BELOW_ZERO, 1e-14),
    "digamma": (torch.digamma, special.psi, anywhere(-100, 1000), 1e-14),
    "digamma_ordinary": (torch.digamma, special.psi, RNG.uniform(0.0, 50.0, SIZE), 1e-14),
    "digamma_below_zero": (torch.digamma, special.psi, BELOW_ZERO, 1e-9),
    "trigamma": (lambda x: torch.polygamma(1, x), lambda x: special.polygamma(1, x), anywhere(-300, 300), 1e-14),
    "erfcx": (torch.special.erfcx, special.erfcx, RNG.uniform(-3.0, 100.0, SIZE), 1e-14),
    "log_ndtr": (torch.special.log_ndtr, special.log_ndtr, RNG.uniform(-100.0, 10.0, SIZE), 1e-14),
    "erfinv": (torch.erfinv, special.erfinv, RNG.uniform(-1.0, 1.0, SIZE), 1e-14),
    "erfinv_near_one": (torch.erfinv, special.erfinv, below_one(), 1e-14),
}


@pytest.mark.parametrize("name", SPECIAL)
def test_special_functions(name):
    function, reference, x, tolerance = SPECIAL[name]
    expected = reference(x)
    error = np.abs(native(function, x) - expected) / np.maximum(np.abs(expected), 1.0)
    assert error.max() < tolerance
