"""Many functions of tensors, with their gradients, as one native program, to be compared with torch."""

from itertools import pairwise

import numpy as np
import torch

from inference.graph import record
from inference.native import compile_graph


def argument(spec, generator, dtype):
    """Draw an argument as `native_cases` writes it."""
    kind = spec[0] if spec and spec[0] in "+uib" else ""
    shape, _, top = spec.removeprefix(kind).partition(":")
    shape = [int(n) for n in shape.split("x")] if shape else []
    if kind == "i":
        return torch.randint(int(top), shape, generator=generator)
    if not kind:
        return torch.randn(shape, generator=generator, dtype=dtype)
    uniform = torch.rand(shape, generator=generator, dtype=dtype)
    return {"+": 3 * uniform + 0.1, "u": 0.98 * uniform + 0.01, "b": uniform < 0.5}[kind]


def leaves(result):
    return list(result) if isinstance(result, tuple | list) else [result]


def weights(x):
    return torch.linspace(0.5, 1.5, x.numel(), dtype=x.dtype).view(x.shape)


def with_gradients(function, arguments):
    """Results of a function, and the gradients of a sum of them with respect to its real arguments."""
    real = [a.detach().requires_grad_() if a.is_floating_point() else a for a in arguments]
    with torch.enable_grad():
        results = leaves(function(*real))
        # every other one weighted: the gradient of a plain sum is one number, repeated
        sums = [r.sum() if i % 2 else (r * weights(r)).sum() for i, r in enumerate(results) if r.requires_grad]
        wanted = [a for a in real if a.requires_grad]
        gradients = torch.autograd.grad(sum(sums), wanted, materialize_grads=True) if sums else ()
    return [r.detach() for r in results] + list(gradients)


class Programs:
    """Functions that are recorded and compiled together; the compiler starts once, and finds more to merge.

    Parameters
    ----------
    functions
        name -> (function, how each of its arguments is written).
    """

    def __init__(self, functions, *, dtype=torch.float64, gradients=True, seed=0):
        self.functions, self.dtype, self.gradients = functions, dtype, gradients
        self.generator = torch.Generator().manual_seed(seed)
        example = self.draw()
        self.native = compile_graph(record(lambda *a: tuple(r for _, r in self.eager(a)), *example), *example)

    def draw(self):
        return [argument(s, self.generator, self.dtype) for _, *specs in self.functions.values() for s in specs]

    def eager(self, arguments):
        """Names and results, one after another, by torch."""
        ends = np.cumsum([0] + [len(specs) for _, *specs in self.functions.values()])
        named = []
        for (begin, end), (name, (function, *_)) in zip(pairwise(ends), self.functions.items(), strict=True):
            own = arguments[begin:end]
            results = with_gradients(function, own) if self.gradients else leaves(function(*own))
            named += [(name, r) for r in results]
        return named

    def differences(self, arguments, tolerance, **options):
        """Name the functions whose results differ by more than ``tolerance(name)``, and say how."""
        got = self.native(*(a.numpy(force=True) for a in arguments))
        pairs = zip(self.eager(arguments), got, strict=True)
        told = {name: difference(g, e.numpy(force=True), tolerance(name), **options) for (name, e), g in pairs}
        return {name: said for name, said in told.items() if said}


def difference(got, expected, tolerance, *, ease=1e-2):
    """Say how two arrays differ: by more than a relative tolerance; empty if they agree.

    Numbers below ``ease`` times the largest are held to what that part of it is: they may be what is left of a sum.
    """
    if (got.shape, got.dtype) != (expected.shape, expected.dtype):
        return f"{got.dtype} {got.shape} for {expected.dtype} {expected.shape}"
    if expected.dtype.kind != "f":
        bad = got != expected
    else:
        finite = np.isfinite(expected)
        scale = np.abs(expected[finite]).max(initial=0.0)
        with np.errstate(all="ignore"):
            bad = np.abs(got - expected) > tolerance * np.maximum(np.abs(expected), ease * scale)
            bad &= np.abs(got - expected) > np.finfo(expected.dtype).tiny
            bad = np.where(finite & np.isfinite(got), bad, ~((got == expected) | (np.isnan(got) & np.isnan(expected))))
    if not bad.any():
        return ""
    place = tuple(np.argwhere(bad)[0])
    return f"{bad.sum()} of {bad.size}, such as {got[place]!r} for {expected[place]!r} at {place}"
