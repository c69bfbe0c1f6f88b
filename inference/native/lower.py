"""From a recorded ATen graph to a loop `Program`."""

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.fx import GraphModule, Node

from inference.graph import fold, nan_where_failed
from inference.native.values import (
    BOOL,
    INT,
    REAL,
    Access,
    Literal,
    Program,
    Tensor,
    Unsupported,
    Value,
    contiguous,
    literal,
    whole_tensor,
)

aten = torch.ops.aten

# Views move no numbers: torch itself works out their shape and strides, on a tensor without storage.
_VIEWS = {
    "view", "_unsafe_view", "reshape", "permute", "transpose", "t", "expand", "slice", "select", "unsqueeze", "squeeze",
    "diagonal", "split", "split_with_sizes", "unbind", "chunk", "narrow", "as_strided", "alias", "detach", "clone",
    "view_as", "expand_as", "movedim", "swapaxes", "lift_fresh_copy", "lift_fresh", "contiguous", "unfold",
}  # fmt: skip
_SAME = {"alias", "detach", "clone", "lift_fresh_copy", "lift_fresh", "contiguous"}
_FILLS = {"zeros_like": 0, "new_zeros": 0, "zeros": 0, "ones_like": 1, "new_ones": 1, "ones": 1}

_UNARY = {
    "neg", "exp", "log", "log1p", "expm1", "sqrt", "rsqrt", "reciprocal", "sigmoid", "tanh", "sin", "cos", "tan",
    "atan", "asin", "acos", "sinh", "cosh", "abs", "sign", "sgn", "lgamma", "digamma", "erf", "erfc", "floor", "ceil",
    "round", "trunc", "log2", "log10", "exp2", "square",
}  # fmt: skip
# Unary functions that leave integers integers.
_KEEPS_INT = {"neg", "abs", "sign", "sgn", "square"}
_TESTS = {"isnan", "isinf", "isfinite"}
_COMPARISONS = {"gt", "ge", "lt", "le", "eq", "ne"}
_LOGIC = {"logical_and": "and", "logical_or": "or", "bitwise_and": "and", "bitwise_or": "or", "logical_xor": "ne"}
_REDUCTIONS = {"sum": "sum", "amax": "max", "amin": "min", "prod": "prod", "any": "any", "all": "all"}
# A matrix of at least this many elements is multiplied by a function of the runtime, a smaller one by an unrolled loop.
MIN_MATRIX = 64
_EXTREMES = {"max": "max", "min": "min"}


def lower(graph: GraphModule, example: Sequence[torch.Tensor]) -> "Lowered":
    """Translate a graph whose constants are folded.

    Raises
    ------
    Unsupported
        An operation, dtype or shape for which there is no native code.
    """
    return _Lowering(graph, example).run()


class Lowered:
    """A program with its inputs, its constants in order, and its outputs."""

    def __init__(self, program: Program, inputs: list[Value], outputs: list[Tensor]) -> None:
        self.program, self.inputs, self.outputs = program, inputs, outputs
        self.constants: list[tuple[Value, str, torch.Tensor]] = []


class _Lowering:
    def __init__(self, graph: GraphModule, example: Sequence[torch.Tensor]) -> None:
        self.graph, self.example = graph, list(example)
        self.program = Program()
        self.real = next((t.dtype for t in example if t.dtype.is_floating_point), torch.float64)
        self.lowered = Lowered(self.program, [], [])

    def run(self) -> Lowered:
        arguments = []
        for i, t in enumerate(self.example):
            made = self.program.value("input", str(i), (), (), shape=tuple(t.shape), dtype=self.dtype(t.dtype))
            self.lowered.inputs.append(made)
            arguments.append(whole_tensor(made))
        result = self.walk(self.graph, arguments)
        self.lowered.outputs = [r if isinstance(r, Tensor) else literal(r, ()) for r in result]
        return self.lowered

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
            else:
                args, kwargs = (torch.fx.map_arg(a, lambda n: env[n]) for a in (node.args, node.kwargs))
                env[node] = self.operation(node, args, kwargs)
        raise AssertionError("a graph has an output")

    def dtype(self, dtype: torch.dtype) -> str:
        """Name a dtype in the program."""
        if dtype == torch.bool:
            return BOOL
        if dtype == self.real:
            return REAL
        if dtype == torch.int64:
            return INT
        raise Unsupported(f"{dtype} beside {self.real}")

    def constant(self, name: str, value: torch.Tensor) -> Tensor:
        """Hand in a constant where it lies in memory, with its own strides."""
        if value.numel() == 0:
            raise Unsupported("an empty tensor")
        value = value.detach()
        made = self.program.value(
            "constant", name, (), (), shape=tuple(value.shape), dtype=self.dtype(value.dtype), detail=value.stride()
        )
        if all(made is not known for known, _, _ in self.lowered.constants):
            self.lowered.constants.append((made, name, value))
        strides = tuple(0 if n == 1 else s for n, s in zip(value.shape, value.stride(), strict=True))
        return Tensor(made, tuple(value.shape), strides)

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
        made = NotImplemented if handler is None else handler(*args, **kwargs)
        return self.decomposed(target, args, kwargs) if made is NotImplemented else made

    def handler(self, name: str) -> Callable[..., Any] | None:
        """Find what translates an ATen operation."""
        if name in _FILLS:
            return lambda like, *a, **k: self.fill(name, like, *a, **k)
        if name in _UNARY:
            return lambda x, **_: self.unary(name, x)
        if name in _TESTS:
            return lambda x: self.point(name, x, dtype=BOOL)
        if name in _COMPARISONS:
            return lambda x, y: self.point(name, *self.common(x, y)[0], dtype=BOOL)
        if name in _LOGIC:
            return lambda x, y: self.logic(_LOGIC[name], x, y)
        if name in _REDUCTIONS:
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
        result = self.walk(graph, tensors, prefix=f"{len(self.lowered.constants)}_{target}_")
        return result[0] if single else result

    def view(self, target: Any, name: str, args: tuple, kwargs: dict) -> Any:
        """Ask torch for the shape and strides of a view."""
        x, *rest = args
        if name in _SAME:
            return x
        if any(s < 0 for s in x.strides):  # a flipped tensor, which torch cannot express
            x = _shaped(whole_tensor(self.program.whole(x)), x.shape)
        if name == "expand":
            sizes = rest[0]
            lead = len(sizes) - len(x.shape)
            return x.expand([x.shape[i - lead] if n == -1 else n for i, n in enumerate(sizes)])
        if name in ("view", "_unsafe_view", "reshape"):
            target = aten.reshape.default
        try:
            seen = target(_meta(x), *rest, **kwargs)
        except RuntimeError as error:
            raise Unsupported(f"the view {name}: {error}") from error
        base = x.source
        if name in ("view", "_unsafe_view", "reshape") and not isinstance(base, Literal):
            if not seen._is_view():
                x = _shaped(whole_tensor(self.program.whole(x)), x.shape)
                seen = target(_meta(x), *rest, **kwargs)
            base = x.source
        made = [_as_tensor(base, s) for s in (seen if isinstance(seen, tuple | list) else [seen])]
        return made if isinstance(seen, tuple | list) else made[0]

    def tensor(self, x: Any) -> Tensor:
        """Take a number for a tensor of no dims."""
        return x if isinstance(x, Tensor) else literal(x, ())

    def point(self, op: str, *operands: Any, dtype: str) -> Tensor:
        """Apply an operation element by element."""
        return self.program.pointwise(op, *(self.tensor(x) for x in operands), dtype=dtype)

    def cast(self, x: Any, dtype: str) -> Tensor:
        """Convert to a dtype of the program."""
        x = self.tensor(x)
        if x.dtype == dtype:
            return x
        if isinstance(x.source, Literal):
            return literal({REAL: float, INT: int, BOOL: bool}[dtype](x.source.number), x.shape)
        return self.point({REAL: "real", INT: "int", BOOL: "bool"}[dtype], x, dtype=dtype)

    def common(self, *operands: Any) -> tuple[list[Tensor], str]:
        """Convert operands to their common type."""
        tensors = [self.tensor(x) for x in operands]
        dtype = next((d for d in (REAL, INT) if any(t.dtype == d for t in tensors)), BOOL)
        return [self.cast(t, dtype) for t in tensors], dtype

    def unary(self, name: str, x: Tensor) -> Tensor:
        if x.dtype == INT and name in _KEEPS_INT:
            return self.point(name, x, dtype=INT)
        x = self.cast(x, REAL)
        if name == "sgn":
            name = "sign"
        if name == "square":
            return self.point("mul", x, x, dtype=REAL)
        if name == "neg" and isinstance(x.source, Value) and x.source.op == "neg":
            return self.undo(x)
        return self.point(name, x, dtype=REAL)

    def undo(self, x: Tensor) -> Tensor:
        """Take a sign back that was just put on: the operand of a negation."""
        inner = x.source.args[0]
        if isinstance(inner, Literal) or inner.strides != contiguous(x.source.space) or inner.offset:
            return self.point("neg", x, dtype=REAL)
        return Tensor(inner.value, x.shape, x.strides, x.offset)

    def logic(self, op: str, x: Any, y: Any) -> Any:
        if any(self.tensor(t).dtype != BOOL for t in (x, y)):
            return NotImplemented
        return self.point(op, x, y, dtype=BOOL)

    def fill(self, name: str, like: Any, *rest: Any, dtype: torch.dtype | None = None, **_: Any) -> Tensor:
        shape = like if isinstance(like, list | tuple) else rest[0] if name.startswith("new") else like.shape
        own = like.dtype if isinstance(like, Tensor) else REAL
        return self.cast(literal(_FILLS[name], shape), own if dtype is None else self.dtype(dtype))

    def reduction(self, name: str, x: Tensor, dims: Any, *, keepdim: bool, dtype: Any = None) -> Tensor:
        if dims is None or dims == []:
            dims = range(len(x.shape))
        dims = [dims] if isinstance(dims, int) else list(dims)
        if name in ("sum", "prod") and x.dtype == BOOL:
            x = self.cast(x, INT)
        if dtype is not None:
            x = self.cast(x, self.dtype(dtype))
        if name in ("any", "all"):
            x = self.cast(x, BOOL)
        return self.program.reduce(_REDUCTIONS[name], x, dims, keepdim=keepdim)

    def extreme(self, op: str, x: Tensor, dim: Any, *, keepdim: bool) -> Any:
        if dim is None:
            return self.program.reduce(op, x, range(len(x.shape)), keepdim=False)
        if isinstance(dim, Tensor):
            return self.point(op, x, dim, dtype=x.dtype)
        return self.program.reduce(op, x, [dim], keepdim=keepdim), None  # the place itself is not computed

    # ---- one method an operation, named as ATen names it ----

    def aten_full(self, shape: Sequence[int], number: Any, **_: Any) -> Tensor:
        return literal(float(number) if isinstance(number, float) else number, shape)

    def aten_full_like(self, like: Tensor, number: Any, **_: Any) -> Tensor:
        return self.cast(literal(number, like.shape), like.dtype)

    def aten_new_full(self, like: Tensor, shape: Sequence[int], number: Any, **_: Any) -> Tensor:
        return self.cast(literal(number, shape), like.dtype)

    def aten_fill(self, like: Tensor, number: Any) -> Tensor:
        return self.cast(self.tensor(number), like.dtype).expand(like.shape)

    def aten_scalar_tensor(self, number: Any, dtype: torch.dtype | None = None, **_: Any) -> Tensor:
        made = literal(number, ())
        return made if dtype is None else self.cast(made, self.dtype(dtype))

    def aten__to_copy(self, x: Tensor, dtype: torch.dtype | None = None, **_: Any) -> Tensor:
        return x if dtype is None else self.cast(x, self.dtype(dtype))

    def aten_add(self, x: Any, y: Any, alpha: Any = 1) -> Tensor:
        (x, y), dtype = self.common(x, y)
        if alpha != 1:
            y = self.aten_mul(y, alpha)
        return self.point("add", x, y, dtype=dtype)

    def aten_sub(self, x: Any, y: Any, alpha: Any = 1) -> Tensor:
        (x, y), dtype = self.common(x, y)
        if alpha != 1:
            y = self.aten_mul(y, alpha)
        return self.point("sub", x, y, dtype=dtype)

    def aten_rsub(self, x: Any, y: Any, alpha: Any = 1) -> Tensor:
        return self.aten_sub(y, x, alpha)

    def aten_mul(self, x: Any, y: Any) -> Tensor:
        (x, y), dtype = self.common(x, y)
        for one, other in ((x, y), (y, x)):
            if isinstance(one.source, Literal) and one.source.number == -1:
                return self.unary("neg", other).expand(torch.broadcast_shapes(x.shape, y.shape))
        return self.point("mul", x, y, dtype=dtype)

    def aten_div(self, x: Any, y: Any, rounding_mode: str | None = None) -> Tensor:
        if rounding_mode is not None:
            return NotImplemented
        return self.point("div", self.cast(x, REAL), self.cast(y, REAL), dtype=REAL)

    def aten_pow(self, x: Any, y: Any) -> Tensor:
        x, y = self.cast(x, REAL), self.cast(y, REAL)
        number = y.source.number if isinstance(y.source, Literal) else None
        shape = torch.broadcast_shapes(x.shape, y.shape)
        if number == 1:
            return x.expand(shape)
        if number == 0:
            return literal(1.0, shape)
        if number in (2, 3, 4):
            square = self.point("mul", x, x, dtype=REAL).expand(shape)
            return square if number == 2 else self.point("mul", square, x if number == 3 else square, dtype=REAL)
        if number in (0.5, -0.5, -1):
            return self.point({0.5: "sqrt", -0.5: "rsqrt", -1: "reciprocal"}[number], x, dtype=REAL).expand(shape)
        return self.point("pow", x, y, dtype=REAL)

    def aten_maximum(self, x: Any, y: Any) -> Tensor:
        (x, y), dtype = self.common(x, y)
        return self.point("max", x, y, dtype=dtype)

    def aten_minimum(self, x: Any, y: Any) -> Tensor:
        (x, y), dtype = self.common(x, y)
        return self.point("min", x, y, dtype=dtype)

    def aten_clamp(self, x: Tensor, low: Any = None, high: Any = None, **named: Any) -> Tensor:
        low, high = named.get("min", low), named.get("max", high)
        x = self.aten_maximum(x, low) if low is not None else x
        return self.aten_minimum(x, high) if high is not None else x

    def aten_clamp_min(self, x: Tensor, low: Any) -> Tensor:
        return self.aten_maximum(x, low)

    def aten_clamp_max(self, x: Tensor, high: Any) -> Tensor:
        return self.aten_minimum(x, high)

    def aten_relu(self, x: Tensor) -> Tensor:
        return self.aten_maximum(x, 0.0)

    def aten_logical_not(self, x: Tensor) -> Tensor:
        return self.point("not", self.cast(x, BOOL), dtype=BOOL)

    def aten_bitwise_not(self, x: Tensor) -> Any:
        return self.aten_logical_not(x) if x.dtype == BOOL else NotImplemented

    def aten_where(self, condition: Tensor, x: Any, y: Any) -> Tensor:
        (x, y), dtype = self.common(x, y)
        return self.point("where", condition, x, y, dtype=dtype)

    def aten_masked_fill(self, x: Tensor, mask: Tensor, number: Any) -> Tensor:
        return self.point("where", mask, self.cast(number, x.dtype), x, dtype=x.dtype)

    def aten_xlogy(self, x: Any, y: Any) -> Tensor:
        return self.point("xlogy", self.cast(x, REAL), self.cast(y, REAL), dtype=REAL)

    def aten_sigmoid_backward(self, grad: Tensor, y: Tensor) -> Tensor:
        return self.aten_mul(grad, self.aten_mul(y, self.aten_rsub(y, 1.0)))

    def aten_mm(self, a: Tensor, b: Tensor) -> Tensor:
        return self.contract(a, b)

    def aten_bmm(self, a: Tensor, b: Tensor) -> Tensor:
        return self.contract(a, b)

    def aten_mv(self, a: Tensor, x: Tensor) -> Tensor:
        return self.squeezed(self.contract(a, _unsqueezed(x, 1)), -1)

    def aten_dot(self, x: Tensor, y: Tensor) -> Tensor:
        return self.program.reduce("sum", self.aten_mul(x, y), [0], keepdim=False)

    def aten_addmm(self, c: Tensor, a: Tensor, b: Tensor, beta: Any = 1, alpha: Any = 1) -> Tensor:
        product = self.contract(a, b)
        product = product if alpha == 1 else self.aten_mul(product, alpha)
        return self.aten_add(product, c if beta == 1 else self.aten_mul(c, beta))

    def aten_addmv(self, c: Tensor, a: Tensor, x: Tensor) -> Tensor:
        return self.aten_add(self.aten_mv(a, x), c)

    def squeezed(self, x: Tensor, dim: int) -> Tensor:
        dim %= len(x.shape)
        keep = [d for d in range(len(x.shape)) if d != dim]
        return Tensor(x.source, tuple(x.shape[d] for d in keep), tuple(x.strides[d] for d in keep), x.offset)

    def contract(self, a: Tensor, b: Tensor) -> Tensor:
        """Multiply matrices (..., m, k) and (..., k, n)."""
        m, k, n = a.shape[-2], a.shape[-1], b.shape[-1]
        batch = math.prod(a.shape[:-2])
        small = k * n <= 64 or k * m <= 64 or batch > 1  # loops that the compiler unrolls
        if batch == 1 and m * k >= MIN_MATRIX and n == 1 and m > 1 and k > 1:
            made = self.program.rows(_flat(a), self.squeezed(_flat(b), 1))
            if made is not None:
                return _shaped(made, (*a.shape[:-1], 1))
        if batch == 1 and k * n >= MIN_MATRIX and m == 1 and n > 1 and k > 1:
            return _transposed(self.contract(_transposed(b), _transposed(a)))
        if m == 1 or n == 1 or small:
            left, right = _unsqueezed(a, len(a.shape) - 1), _unsqueezed(_transposed(b), len(b.shape) - 2)
            product = self.aten_mul(left, right)  # (..., m, n, k)
            return self.program.reduce("sum", product, [len(product.shape) - 1], keepdim=False)
        return self.program.call("matmul", [_flat(a), _flat(b)], (m, n), sizes=(m, k, n))

    def aten_cumsum(self, x: Tensor, dim: int, **_: Any) -> Tensor:
        return self.scan("cumsum", x, dim)

    def aten_cumprod(self, x: Tensor, dim: int, **_: Any) -> Tensor:
        return self.scan("cumprod", x, dim)

    def scan(self, op: str, x: Tensor, dim: int) -> Tensor:
        if not x.shape or x.shape[dim] == 1:
            return x
        dim %= len(x.shape)
        sizes = (math.prod(x.shape[:dim]), x.shape[dim], math.prod(x.shape[dim + 1 :]))
        return _shaped(self.program.call(op, [x], x.shape, sizes=sizes, dtype=x.dtype), x.shape)

    def aten_flip(self, x: Tensor, dims: Sequence[int]) -> Tensor:
        strides, offset = list(x.strides), x.offset
        for d in dims:
            offset += strides[d] * (x.shape[d] - 1)
            strides[d] = -strides[d]
        return Tensor(x.source, x.shape, tuple(strides), offset)

    def aten_cat(self, tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
        tensors = [t for t in tensors if t.shape != (0,)]
        dtype = self.common(*tensors)[1]
        dim %= len(tensors[0].shape)
        shape = list(tensors[0].shape)
        shape[dim] = sum(t.shape[dim] for t in tensors)
        strides, pieces, begin = contiguous(shape), [], 0
        for t in tensors:
            if math.prod(t.shape):
                pieces.append((self.cast(t, dtype), strides, begin * (strides[dim] or 1)))
            begin += t.shape[dim]
        return self.program.assemble(shape, pieces, dtype)

    def aten_stack(self, tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
        dim %= len(tensors[0].shape) + 1
        return self.aten_cat([_unsqueezed(t, dim) for t in tensors], dim)

    def aten_constant_pad_nd(self, x: Tensor, pad: Sequence[int], number: Any = 0) -> Tensor:
        shape, strides, start = list(x.shape), list(x.strides), x.offset
        for i in range(len(pad) // 2):  # negative padding cuts off
            d, (low, high) = len(shape) - 1 - i, (min(p, 0) for p in pad[2 * i : 2 * i + 2])
            shape[d] += low + high
            start -= low * strides[d]
        inner = Tensor(x.source, tuple(shape), tuple(strides), start)
        if all(p <= 0 for p in pad):
            return inner
        for i in range(len(pad) // 2):
            shape[len(shape) - 1 - i] += sum(max(p, 0) for p in pad[2 * i : 2 * i + 2])
        place, offset = _storage_strides(shape), 0
        for i in range(len(pad) // 2):
            offset += max(pad[2 * i], 0) * place[len(shape) - 1 - i]
        pieces = [(self.cast(literal(number, shape), x.dtype), place, 0)]
        if math.prod(inner.shape):
            pieces.append((inner, place, offset))
        return self.program.assemble(shape, pieces, x.dtype)

    def placed(self, base: Tensor, source: Tensor, view: Callable[[torch.Tensor], torch.Tensor]) -> Tensor:
        """Copy ``base`` with ``source`` written over a view of it."""
        seen = view(torch.empty(base.shape, device="meta"))
        source = self.cast(source, base.dtype).expand(seen.shape)
        pieces = [(base, _storage_strides(base.shape), 0), (source, seen.stride(), seen.storage_offset())]
        return self.program.assemble(base.shape, pieces, base.dtype)

    def aten_slice_scatter(self, base: Tensor, source: Tensor, dim: int = 0, *rest: Any, **named: Any) -> Tensor:
        return self.placed(base, source, lambda m: aten.slice.Tensor(m, dim, *rest, **named))

    def aten_select_scatter(self, base: Tensor, source: Tensor, dim: int, index: int) -> Tensor:
        return self.placed(base, source, lambda m: m.select(dim, index))

    def aten_diagonal_scatter(self, base: Tensor, source: Tensor, *rest: int) -> Tensor:
        return self.placed(base, source, lambda m: aten.diagonal.default(m, *rest))

    def aten_slice_backward(self, grad: Tensor, shape: Sequence[int], *rest: int) -> Tensor:
        return self.placed(self.cast(literal(0, shape), grad.dtype), grad, lambda m: aten.slice.Tensor(m, *rest))

    def aten_select_backward(self, grad: Tensor, shape: Sequence[int], dim: int, index: int) -> Tensor:
        return self.placed(self.cast(literal(0, shape), grad.dtype), grad, lambda m: m.select(dim, index))

    def aten_diagonal_backward(self, grad: Tensor, shape: Sequence[int], *rest: int) -> Tensor:
        return self.placed(
            self.cast(literal(0, shape), grad.dtype), grad, lambda m: aten.diagonal.default(m, *rest)
        )

    def places(self, indices: Sequence[Tensor | None]) -> list[Tensor | None]:
        """Turn constant masks among the indices into the places where they hold."""
        made: list[Tensor | None] = []
        for index in indices:
            if index is None or index.dtype == INT:
                made.append(index)
                continue
            known = next((c for c in self.lowered.constants if c[0] is index.source and index.dtype == BOOL), None)
            if known is None or tuple(known[2].shape) != index.shape or index.offset:
                raise Unsupported("a mask that depends on the parameters as an index")
            _, name, mask = known
            made += [self.constant(f"{name}_{d}", w) for d, w in enumerate(mask.nonzero(as_tuple=True))]
        return made

    def aten_index(self, x: Tensor, indices: Sequence[Tensor | None]) -> Any:
        indices = self.places(indices)
        where, operand = self.addresses(x.shape, x.strides, indices)
        if isinstance(x.source, Literal):
            return Tensor(x.source, where.shape, (0,) * len(where.shape))
        return self.gathered(x, operand, where)

    def gathered(self, x: Tensor, rest: Tensor, where: Tensor) -> Tensor:
        """Read ``x`` at computed places; ``rest`` holds its strides along the dims that are not looked up."""
        base = Tensor(x.source, where.shape, rest.strides, x.offset)
        shape = where.shape
        operands = (base, where)
        varying = [d for d, n in enumerate(shape) if n != 1 and any(t.strides[d] for t in operands)]
        args = [Access(t.source, tuple(t.strides[d] for d in varying), t.offset) if isinstance(t.source, Value)
                else t.source for t in operands]  # fmt: skip
        made = self.program.value("pointwise", "gather", args, [shape[d] for d in varying], dtype=x.dtype)
        strides = [0] * len(shape)
        for d, s in zip(varying, contiguous(made.shape), strict=True):
            strides[d] = s
        return Tensor(made, tuple(shape), tuple(strides))

    def addresses(
        self, shape: Sequence[int], strides: Sequence[int], indices: Sequence[Tensor | None]
    ) -> tuple[Tensor, Tensor]:
        """Give the addresses that index tensors look up, and the strides along the other dims, over the result."""
        indices = [*indices, *[None] * (len(shape) - len(indices))]
        looked = [d for d, i in enumerate(indices) if i is not None]
        common = torch.broadcast_shapes(*(indices[d].shape for d in looked))
        left = [d for d in range(len(shape)) if d not in looked]
        adjacent = looked == list(range(looked[0], looked[-1] + 1))
        lead = looked[0] if adjacent else 0
        out_shape = [*(shape[d] for d in left[:lead]), *common, *(shape[d] for d in left[lead:])]
        rest = [*(strides[d] for d in left[:lead]), *[0] * len(common), *(strides[d] for d in left[lead:])]
        total = literal(0, ())
        for d in looked:
            wrapped = self.program.pointwise("wrap", indices[d], literal(shape[d], ()), dtype=INT)
            total = self.aten_add(total, self.aten_mul(wrapped, strides[d]))
        total = total.expand(common)
        tail = (0,) * (len(out_shape) - lead - len(common))
        where = Tensor(total.source, tuple(out_shape), (*[0] * lead, *total.strides, *tail), total.offset)
        return where, Tensor(total.source, tuple(out_shape), tuple(0 if n == 1 else s for n, s in zip(
            out_shape, rest, strict=True)))  # fmt: skip

    def aten_index_select(self, x: Tensor, dim: int, index: Tensor) -> Any:
        dim %= len(x.shape)
        return self.aten_index(x, [None] * dim + [index])

    def aten_embedding(self, table: Tensor, index: Tensor, *_: Any) -> Any:
        return self.aten_index(table, [index])

    def along(self, shape: Sequence[int], strides: Sequence[int], dim: int, index: Tensor) -> tuple[Tensor, Tensor]:
        """Give addresses for `gather` and `scatter`, which look up one dim and keep the others."""
        wrapped = self.program.pointwise("wrap", index, literal(shape[dim], ()), dtype=INT)
        where = self.aten_mul(wrapped, strides[dim]).expand(index.shape)
        rest = tuple(0 if d == dim or index.shape[d] == 1 else s for d, s in enumerate(strides))
        return where, Tensor(where.source, tuple(index.shape), rest)

    def aten_gather(self, x: Tensor, dim: int, index: Tensor, **_: Any) -> Any:
        if not x.shape:
            return x
        where, rest = self.along(x.shape, x.strides, dim % len(x.shape), index)
        if isinstance(x.source, Literal):
            return Tensor(x.source, where.shape, (0,) * len(where.shape))
        return self.gathered(x, rest, where)

    def scattered(self, base: Tensor, rest: Tensor, where: Tensor, values: Any, *, add: bool) -> Tensor:
        """Add or write values into a copy of ``base`` at computed places."""
        shape = where.shape
        values = self.cast(values, base.dtype).expand(shape)
        dims = [d for d, n in enumerate(shape) if n != 1]
        args = [_access(values, dims), _access(where, dims), *([] if isinstance(base.source, Literal)
                else [Access(self.program.whole(base), contiguous(self.program.whole(base).shape), 0)])]  # fmt: skip
        start = base.source if isinstance(base.source, Literal) else None
        detail = (tuple(rest.strides[d] for d in dims), start, add)
        made = self.program.value(
            "scatter", "add" if add else "put", args, [shape[d] for d in dims], shape=base.shape, dtype=base.dtype,
            detail=detail,
        )  # fmt: skip
        return whole_tensor(made)

    def aten_index_put(self, base: Tensor, indices: Sequence[Any], values: Any, accumulate: bool = False) -> Any:  # noqa: FBT001, FBT002
        indices = self.places(indices)
        where, rest = self.addresses(base.shape, _storage_strides(base.shape), indices)
        return self.scattered(base, rest, where, values, add=accumulate)

    def aten__unsafe_index(self, x: Tensor, indices: Sequence[Tensor | None]) -> Any:
        return self.aten_index(x, indices)

    def aten_scatter_add(self, base: Tensor, dim: int, index: Tensor, values: Tensor) -> Any:
        if not base.shape:
            return self.aten_add(base, values)
        where, rest = self.along(base.shape, _storage_strides(base.shape), dim % len(base.shape), index)
        values = Tensor(values.source, index.shape, values.strides, values.offset)
        return self.scattered(base, rest, where, values, add=True)

    def aten_linalg_cholesky_ex(self, a: Tensor, upper: bool = False, **_: Any) -> Any:  # noqa: FBT001, FBT002
        n = a.shape[-1]
        root = self.program.call("cholesky", [a], a.shape, sizes=(math.prod(a.shape[:-2]), n))
        root = _shaped(root, a.shape)
        return (_transposed(root) if upper else root), None

    def aten_linalg_solve_triangular(
        self, a: Tensor, b: Tensor, *, upper: bool, left: bool = True, unitriangular: bool = False
    ) -> Any:
        if not left:  # X A = B is A' X' = B'
            return _transposed(
                self.aten_linalg_solve_triangular(
                    _transposed(a), _transposed(b), upper=not upper, unitriangular=unitriangular
                )
            )
        batch = torch.broadcast_shapes(a.shape[:-2], b.shape[:-2])
        n, m = b.shape[-2], b.shape[-1]
        a, b = a.expand((*batch, n, n)), b.expand((*batch, n, m))
        sizes = (math.prod(batch), n, m, int(upper), int(unitriangular))
        return _shaped(self.program.call("solve_triangular", [a, b], b.shape, sizes=sizes), b.shape)

    def aten_triangular_solve(
        self, b: Tensor, a: Tensor, upper: bool = True, transpose: bool = False, unitriangular: bool = False  # noqa: FBT001, FBT002
    ) -> Any:
        if transpose:
            a, upper = _transposed(a), not upper
        return self.aten_linalg_solve_triangular(a, b, upper=upper, unitriangular=unitriangular), None


def _meta(x: Tensor) -> torch.Tensor:
    if isinstance(x.source, Literal):
        return torch.empty(x.shape, device="meta")
    return torch.empty(0, device="meta").as_strided(x.shape, x.strides, x.offset)


def _as_tensor(base: Value | Literal, seen: torch.Tensor) -> Tensor:
    if isinstance(base, Literal):
        return literal(base.number, tuple(seen.shape))
    strides = tuple(0 if n == 1 else s for n, s in zip(seen.shape, seen.stride(), strict=True))
    return Tensor(base, tuple(seen.shape), strides, seen.storage_offset())


def _storage_strides(shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(math.prod(shape[d + 1 :]) for d in range(len(shape)))


def _unsqueezed(x: Tensor, dim: int) -> Tensor:
    shape, strides = list(x.shape), list(x.strides)
    shape.insert(dim, 1)
    strides.insert(dim, 0)
    return Tensor(x.source, tuple(shape), tuple(strides), x.offset)


def _transposed(x: Tensor) -> Tensor:
    return Tensor(x.source, (*x.shape[:-2], x.shape[-1], x.shape[-2]), (*x.strides[:-2], x.strides[-1], x.strides[-2]),
                  x.offset)  # fmt: skip


def _flat(x: Tensor) -> Tensor:
    """Drop leading dims of size 1."""
    return Tensor(x.source, x.shape[-2:], x.strides[-2:], x.offset)


def _shaped(x: Tensor, shape: Sequence[int]) -> Tensor:
    return Tensor(x.source, tuple(shape), contiguous(shape), x.offset)


def _access(x: Tensor, dims: Sequence[int]) -> Any:
    return x.source if isinstance(x.source, Literal) else Access(x.source, tuple(x.strides[d] for d in dims), x.offset)
