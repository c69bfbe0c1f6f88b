"""From a recorded ATen graph to a loop `Program`."""

import inspect
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import GraphModule, Node

from inference.graph import fold, nan_where_failed
from inference.native.dense import Dense
from inference.native.elementwise import FILLS, REDUCTIONS
from inference.native.indexing import Indexing
from inference.native.values import (
    BOOL,
    INT,
    REAL,
    Literal,
    Program,
    Tensor,
    Unsupported,
    Value,
    empty,
    literal,
    shaped,
    whole_tensor,
)

aten = torch.ops.aten

# Views move no numbers: torch itself works out their shape and strides, on a tensor without storage.
_VIEWS = {
    "view", "_unsafe_view", "reshape", "permute", "transpose", "t", "expand", "slice", "select", "unsqueeze", "squeeze",
    "diagonal", "split", "split_with_sizes", "unbind", "chunk", "narrow", "alias", "detach", "clone",
    "view_as", "expand_as", "movedim", "swapaxes", "lift_fresh_copy", "lift_fresh", "contiguous", "unfold",
}  # fmt: skip
_SAME = {"alias", "detach", "clone", "lift_fresh_copy", "lift_fresh", "contiguous"}

_UNARY = {
    "neg", "exp", "log", "log1p", "expm1", "sqrt", "rsqrt", "reciprocal", "sigmoid", "tanh", "sin", "cos", "tan",
    "atan", "asin", "acos", "sinh", "cosh", "asinh", "acosh", "atanh", "abs", "sign", "sgn", "lgamma", "digamma", "erf",
    "erfc", "erfinv", "special_erfcx", "floor", "ceil", "round", "trunc", "log2", "log10", "exp2", "square",
}  # fmt: skip
_TESTS = {"isnan", "isinf", "isfinite"}
_COMPARISONS = {"gt", "ge", "lt", "le", "eq", "ne"}
_LOGIC = {f"{kind}_{op}" for kind in ("logical", "bitwise") for op in ("and", "or", "xor")}
_BINARY = {"atan2", "hypot", "fmax", "fmin", "copysign"}
_EXTREMES = {"max": "max", "min": "min"}


def lower(graph: GraphModule, example: Sequence[torch.Tensor]) -> "Lowered":
    """Translate a graph whose constants are folded.

    Raises
    ------
    Unsupported
        An operation, dtype or shape for which there is no native code.
    """
    return _Lowering(graph, example).run()


@dataclass(frozen=True, eq=False)
class Lowered:
    """A program with its inputs, its outputs, and its constants (value, name in the graph, tensor) in order."""

    program: Program
    inputs: list[Value]
    outputs: list[Tensor]
    constants: list[tuple[Value, str, torch.Tensor]]


class _Lowering(Dense, Indexing):
    def __init__(self, graph: GraphModule, example: Sequence[torch.Tensor]) -> None:
        super().__init__(next((t.dtype for t in example if t.dtype.is_floating_point), torch.float64))
        self.graph, self.example = graph, list(example)

    def run(self) -> Lowered:
        inputs = [
            self.program.value("input", str(i), (), (), shape=tuple(t.shape), dtype=self.dtype(t.dtype))
            for i, t in enumerate(self.example)
        ]
        result = self.walk(self.graph, [whole_tensor(v) for v in inputs])
        outputs = [r if isinstance(r, Tensor) else literal(r, ()) for r in result]
        return Lowered(self.program, inputs, outputs, self.constants)

    def walk(self, graph: GraphModule, arguments: Sequence[Tensor], prefix: str = "") -> list[Any]:
        """Translate node by node; give the outputs."""
        env: dict[Node, Any] = {}
        arguments = iter(arguments)
        for node in graph.graph.nodes:
            if node.op == "placeholder":
                env[node] = next(arguments)
            elif node.op == "get_attr":
                env[node] = self.constant(prefix + node.target, getattr(graph, node.target))
            elif node.op == "output":
                return list(torch.fx.map_arg(torch.utils._pytree.tree_leaves(node.args[0]), lambda n: env[n]))
            elif node.users:  # a random number that nothing uses is kept in the graph
                args, kwargs = (torch.fx.map_arg(a, lambda n: env[n]) for a in (node.args, node.kwargs))
                env[node] = self.operation(node, args, kwargs)
        raise AssertionError("a graph has an output")

    def operation(self, node: Node, args: tuple, kwargs: dict) -> Any:
        """Translate one node."""
        target = node.target
        if target is operator.getitem:
            return args[0][args[1]]
        if target is nan_where_failed:  # the factorisations of the runtime give NaN by themselves
            return args[0]
        if not isinstance(target, torch._ops.OpOverload):
            raise Unsupported(f"the operation {getattr(target, '__name__', target)}")
        namespace, name = target.namespace, target.overloadpacket.__name__.split(".")[-1]
        if namespace == "ppl":
            handler = getattr(self, f"ppl_{name}", None)
        elif name in _VIEWS:
            return self.view(target, name, args, kwargs)
        else:
            handler = self.handler(name)
        made = handler(*args, **kwargs) if handler is not None and _takes(handler, args, kwargs) else NotImplemented
        return self.decomposed(target, args, kwargs) if made is NotImplemented else made

    def handler(self, name: str) -> Callable[..., Any] | None:
        """Find what translates an ATen operation."""
        if name in FILLS:
            return lambda like, *a, **k: self.fill(name, like, *a, **k)
        if name in _UNARY:
            return lambda x: self.unary(name, x)
        if name in _BINARY:
            return lambda x, y: self.point(name, self.cast(x, REAL), self.cast(y, REAL), dtype=REAL)
        if name in _TESTS:
            return lambda x: self.point(name, x, dtype=BOOL)
        if name in _COMPARISONS:
            return lambda x, y: self.point(name, *self.common(x, y)[0], dtype=BOOL)
        if name in _LOGIC:
            return lambda x, y: self.logic(name, x, y)
        if name in REDUCTIONS:
            return lambda x, dims=None, keepdim=False, **k: self.reduction(name, x, dims, keepdim=keepdim, **k)
        if name in _EXTREMES:
            return lambda x, dim=None, keepdim=False: self.extreme(_EXTREMES[name], x, dim, keepdim=keepdim)
        return getattr(self, f"aten_{name}", None)

    def decomposed(self, target: Any, args: tuple, kwargs: dict) -> Any:
        """Translate an operation through torch's own decomposition of it into simpler ones."""
        from torch._decomp import core_aten_decompositions
        from torch.fx.experimental.proxy_tensor import make_fx  # takes most of a second to import, and is rarely needed

        flat, spec = torch.utils._pytree.tree_flatten((args, kwargs), is_leaf=lambda a: isinstance(a, Tensor))
        places = [i for i, a in enumerate(flat) if isinstance(a, Tensor)]
        tensors = [flat[i] for i in places]
        torch_dtype = {REAL: self.real, INT: torch.int64, BOOL: torch.bool}

        def run(*values: torch.Tensor) -> Any:
            filled = list(flat)
            for i, value in zip(places, values, strict=True):
                filled[i] = value
            a, k = torch.utils._pytree.tree_unflatten(filled, spec)
            return target(*a, **k)

        examples = [torch.ones(t.shape, dtype=torch_dtype[t.dtype]) for t in tensors]
        graph = make_fx(run, decomposition_table=core_aten_decompositions())(*examples)
        fold(graph)
        if any(node.target is target for node in graph.graph.nodes):
            raise Unsupported(f"the operation {target}")
        single = not isinstance(next(n for n in graph.graph.nodes if n.op == "output").args[0], list | tuple)
        result = self.walk(graph, tensors, prefix=f"{len(self.constants)}_{target}_")
        return result[0] if single else result

    def view(self, target: Any, name: str, args: tuple, kwargs: dict) -> Any:
        """Ask torch for the shape and strides of a view."""
        x, *rest = args
        if name in _SAME:
            return x
        if any(s < 0 for s in x.strides):  # a flipped tensor, which torch cannot express
            x = shaped(whole_tensor(self.program.whole(x)), x.shape)
        if name == "expand":
            sizes = rest[0]
            lead = len(sizes) - len(x.shape)
            return x.expand([x.shape[i - lead] if n == -1 else n for i, n in enumerate(sizes)])
        if name in ("view", "_unsafe_view", "reshape"):
            target = aten.reshape.default
        try:
            seen = target(_meta(x), *rest, **kwargs)
        except (RuntimeError, TypeError) as error:
            raise Unsupported(f"the view {name}: {error}") from error
        base = x.source
        if name in ("view", "_unsafe_view", "reshape") and not isinstance(base, Literal):
            if not seen._is_view():
                x = shaped(whole_tensor(self.program.whole(x)), x.shape)
                seen = target(_meta(x), *rest, **kwargs)
            base = x.source
        made = [_as_tensor(base, s) for s in (seen if isinstance(seen, tuple | list) else [seen])]
        return made if isinstance(seen, tuple | list) else made[0]


def _takes(handler: Callable[..., Any], args: tuple, kwargs: dict) -> bool:
    """Whether a translation knows all of these arguments."""
    try:
        inspect.signature(handler).bind(*args, **kwargs)
    except TypeError:
        return False
    return True


def _meta(x: Tensor) -> torch.Tensor:
    if isinstance(x.source, Literal):
        return torch.empty(x.shape, device="meta")
    return torch.empty(0, device="meta").as_strided(x.shape, x.strides, x.offset)


def _as_tensor(base: Value | Literal, seen: torch.Tensor) -> Tensor:
    if isinstance(base, Literal):
        return literal(base.number, tuple(seen.shape))
    if 0 in seen.shape:
        return empty(tuple(seen.shape), base.dtype)
    strides = tuple(0 if n == 1 else s for n, s in zip(seen.shape, seen.stride(), strict=True))
    return Tensor(base, tuple(seen.shape), strides, seen.storage_offset())
