"""The loop program that a recorded graph becomes: values with strided views, simplified as they are made.

A `Value` is computed once, by a loop over its ``space``. A `Tensor` is a strided view of a value, as in torch: views
cost nothing, and a broadcast dim has stride 0, so that what is constant along a dim is computed once and not per row.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

REAL, INT, BOOL = "real", "int64_t", "bool"


class Unsupported(Exception):  # noqa: N818 - a limit of this package rather than an error
    """The graph holds something for which there is no native code; the message names it."""


@dataclass(eq=False)
class Value:
    """Something computed by one loop, or handed in.

    Attributes
    ----------
    kind
        ``input``, ``constant``, ``pointwise``, ``reduce``, ``scatter`` (add into a buffer at computed places),
        ``rows`` (a matrix times a vector, row by row), ``assemble`` (copy pieces into a buffer), ``call`` (a function
        of the runtime on whole buffers).
    op
        Name of the operation of that kind.
    args
        Operands: `Access` (over the dims of ``space``) or `Literal`.
    space
        Sizes of the loop.
    shape
        Sizes of the stored result, contiguous; equals ``space`` for pointwise values.
    """

    kind: str
    op: str
    args: tuple[Any, ...]
    space: tuple[int, ...]
    shape: tuple[int, ...]
    dtype: str
    detail: Any = None
    name: str = ""

    @property
    def numel(self) -> int:
        """Count of stored numbers."""
        return math.prod(self.shape)

    @property
    def sources(self) -> list["Value"]:
        """Values that this one is computed from."""
        return [a.value for a in self.args if isinstance(a, Access)]


@dataclass(frozen=True)
class Literal:
    """A number known when the code is written."""

    number: float | int | bool

    @property
    def dtype(self) -> str:
        """Type in the program."""
        return BOOL if isinstance(self.number, bool) else INT if isinstance(self.number, int) else REAL

    @property
    def key(self) -> tuple:
        """What makes two of them the same: 1, 1.0 and True differ, and so do 0.0 and -0.0."""
        return ("~", self.dtype, repr(self.number))


@dataclass(frozen=True, eq=False)
class Access:
    """An element of a value for each point of a loop: ``offset + sum(index * stride)``."""

    value: Value
    strides: tuple[int, ...]
    offset: int

    @property
    def dtype(self) -> str:
        """Type in the program."""
        return self.value.dtype

    @property
    def key(self) -> tuple:
        """What makes two of them the same."""
        return (self.value.name, self.strides, self.offset)


@dataclass(frozen=True, eq=False)
class Tensor:
    """A strided view of a value, or a literal of some shape."""

    source: Value | Literal
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int = 0

    @property
    def dtype(self) -> str:
        """Type in the program."""
        return self.source.dtype

    @property
    def is_contiguous(self) -> bool:
        """Whether it is its value's whole storage in row-major order."""
        return (
            isinstance(self.source, Value)
            and self.offset == 0
            and math.prod(self.shape) == self.source.numel
            and all(s == c or n == 1 for n, s, c in zip(self.shape, self.strides, contiguous(self.shape), strict=True))
        )

    def expand(self, shape: Sequence[int]) -> "Tensor":
        """Broadcast to a shape."""
        lead = len(shape) - len(self.shape)
        strides = [0] * lead + [
            0 if n == 1 and m != 1 else s for n, m, s in zip(self.shape, shape[lead:], self.strides, strict=True)
        ]
        return Tensor(self.source, tuple(shape), tuple(strides), self.offset)


def contiguous(shape: Sequence[int]) -> tuple[int, ...]:
    """Give row-major strides; 0 for dims of size 1."""
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(0 if size == 1 else step)
        step *= size
    return tuple(reversed(strides))


def broadcast(shapes: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """Give the common shape of operands."""
    dims = max((len(s) for s in shapes), default=0)
    padded = [(1,) * (dims - len(s)) + tuple(s) for s in shapes]
    return tuple(next((n for n in sizes if n != 1), 1) for sizes in zip(*padded, strict=True))


# Operations on numbers known in advance; whatever is not here is left to the program.
_FOLDS: dict[str, Callable[..., Any]] = {
    "neg": lambda a: -a,
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "real": float,
    "int": int,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: a != b,
    "and": lambda a, b: bool(a and b),
    "or": lambda a, b: bool(a or b),
    "not": lambda a: not a,
}


def _neutral(op: str, args: Sequence[Any]) -> int | None:
    """Which operand alone is the result; operands equal to ``x + 0`` or ``1 * x`` need no operation."""
    numbers = [a.source.number if isinstance(a.source, Literal) else None for a in args]
    if op == "add" and 0 in numbers:
        return 1 - numbers.index(0)
    if op == "mul" and 1 in numbers:
        return 1 - numbers.index(1)
    if op == "sub" and numbers[1] == 0:
        return 0
    if op == "div" and numbers[1] == 1:
        return 0
    if op == "where" and numbers[0] is not None:
        return 1 if numbers[0] else 2
    if op in ("real", "int") and args[0].dtype == (REAL if op == "real" else INT):
        return 0
    return None


@dataclass
class Program:
    """All values, equal ones made once."""

    values: list[Value] = field(default_factory=list)
    _known: dict[Any, Value] = field(default_factory=dict)

    def value(self, kind: str, op: str, args: Sequence[Any], space: Sequence[int], **more: Any) -> Value:
        """Make a value, or find the same one made before."""
        args, space = tuple(args), tuple(space)
        shape, dtype, detail = tuple(more.get("shape", space)), more["dtype"], more.get("detail")
        key = (kind, op, tuple(a.key for a in args), space, shape, dtype, repr(detail))
        if key not in self._known:
            made = Value(kind, op, args, space, shape, dtype, detail, f"v{len(self.values)}")
            self.values.append(made)
            self._known[key] = made
        return self._known[key]

    def pointwise(self, op: str, *operands: Tensor, dtype: str) -> Tensor:
        """Apply an operation element by element, over the dims along which some operand varies."""
        shape = broadcast([t.shape for t in operands])
        if 0 in shape:
            return empty(shape, dtype)
        if all(isinstance(t.source, Literal) for t in operands) and op in _FOLDS:
            return literal(_typed(_FOLDS[op](*(t.source.number for t in operands)), dtype), shape)
        neutral = _neutral(op, operands)
        if neutral is not None and operands[neutral].dtype == dtype:
            return operands[neutral].expand(shape)
        operands = tuple(t.expand(shape) for t in operands)
        order, sizes = loop_dims(operands, shape)
        args = [access(t, order) for t in operands]
        if op in ("add", "mul"):  # a + b is b + a
            args.sort(key=lambda a: a.key)
        made = self.value("pointwise", op, args, sizes, dtype=dtype)
        return stored(made, shape, order)

    def reduce(self, op: str, tensor: Tensor, dims: Sequence[int], *, keepdim: bool) -> Tensor:
        """Sum, multiply, or take extremes over dims."""
        rank = len(tensor.shape)
        dims = [d % rank for d in dims] if rank else []
        if 0 in tensor.shape:
            return self._reduce_nothing(op, tensor, dims, keepdim=keepdim)
        repeated = [d for d in dims if tensor.strides[d] == 0 or isinstance(tensor.source, Literal)]
        looped = [d for d in dims if d not in repeated and tensor.shape[d] > 1]
        shape = [1 if d in dims else n for d, n in enumerate(tensor.shape)]
        result = Tensor(tensor.source, tuple(shape), tuple(0 if d in dims else s for d, s in enumerate(tensor.strides)),
                        tensor.offset)  # fmt: skip
        if looped:
            order, sizes = loop_dims((tensor,), tensor.shape)
            kept = [d for d in order if d not in looped]
            made = self.value(
                "reduce", op, [access(tensor, order)], sizes,
                shape=[tensor.shape[d] for d in kept], dtype=tensor.dtype, detail=tuple(d in looped for d in order),
            )  # fmt: skip
            result = stored(made, shape, kept)
        count = math.prod(tensor.shape[d] for d in repeated)
        if count != 1 and op == "sum":
            number = _typed(count, tensor.dtype)
            result = self.pointwise("mul", result, literal(number, ()), dtype=tensor.dtype)
        elif count != 1 and op == "prod" and tensor.dtype == INT:
            raise Unsupported("the product of an integer repeated along a dim")
        elif count != 1 and op == "prod":
            result = self.pointwise("pow", result, literal(float(count), ()), dtype=tensor.dtype)
        if keepdim:
            return result
        left = [d for d in range(rank) if d not in dims]
        return Tensor(result.source, tuple(result.shape[d] for d in left), tuple(result.strides[d] for d in left),
                      result.offset)  # fmt: skip

    def _reduce_nothing(self, op: str, tensor: Tensor, dims: Sequence[int], *, keepdim: bool) -> Tensor:
        if any(tensor.shape[d] == 0 for d in dims) and op not in EMPTY:
            raise Unsupported(f"the {op} of an empty tensor")
        shape = [1 if d in dims else n for d, n in enumerate(tensor.shape) if keepdim or d not in dims]
        return literal(_typed(EMPTY.get(op, 0), tensor.dtype), shape)

    def whole(self, tensor: Tensor) -> Value:
        """Give a value whose storage is this tensor in row-major order."""
        if tensor.is_contiguous:
            return tensor.source
        dims = [d for d, n in enumerate(tensor.shape) if n != 1]
        return self.value(
            "pointwise", "copy", [access(tensor, dims)], [tensor.shape[d] for d in dims], dtype=tensor.dtype
        )

    def call(self, function: str, inputs: Sequence[Tensor], shape: Sequence[int], **more: Any) -> Tensor:
        """Run a function of the runtime on whole buffers, giving one buffer."""
        if any(0 in t.shape for t in inputs):
            raise Unsupported(f"{function} of an empty tensor")
        values = [self.whole(t) for t in inputs]
        args = [Access(v, contiguous(v.shape), 0) for v in values]
        made = self.value("call", function, args, (), shape=shape, dtype=more.pop("dtype", REAL), detail=more)
        return whole_tensor(made)

    def rows(self, matrix: Tensor, vector: Tensor) -> Tensor | None:
        """Multiply a matrix by a vector where the matrix lies, if it lies row by row or column by column."""
        (m, n), (down, right) = matrix.shape, matrix.strides
        if isinstance(matrix.source, Literal):
            return None
        if right != 1 and down != 1:
            matrix = Tensor(self.whole(matrix), (m, n), (n, 1))
            down, right = n, 1
        by_row = right == 1
        x = self.whole(vector)
        made = self.value(
            "rows", "dot_rows" if by_row else "add_rows",
            [Access(matrix.source, (down if by_row else right, 1), matrix.offset), Access(x, contiguous(x.shape), 0)],
            (m, n) if by_row else (n, m), shape=(m,), dtype=REAL,
        )  # fmt: skip
        return whole_tensor(made)

    def assemble(
        self, shape: Sequence[int], pieces: Sequence[tuple[Tensor, tuple[int, ...], int]], dtype: str
    ) -> Tensor:
        """Copy pieces into a new buffer, one after another; each with the strides and offset of its place."""
        if 0 in shape:
            return empty(shape, dtype)
        args, places = [], []
        for tensor, strides, offset in pieces:
            source = tensor.source
            args.append(source if isinstance(source, Literal) else Access(source, tensor.strides, tensor.offset))
            places.append((tuple(tensor.shape), tuple(strides), offset))
        return whole_tensor(self.value("assemble", "copy", args, (), shape=shape, dtype=dtype, detail=tuple(places)))


# What a reduction of nothing gives.
EMPTY = {"sum": 0, "prod": 1, "any": 0, "all": 1}


def _typed(number: Any, dtype: str) -> Any:
    return {REAL: float, INT: int, BOOL: bool}[dtype](number)


def literal(number: float, shape: Sequence[int]) -> Tensor:
    """Make a tensor that holds one known number everywhere."""
    return Tensor(Literal(number), tuple(shape), (0,) * len(shape))


def empty(shape: Sequence[int], dtype: str) -> Tensor:
    """Make a tensor without elements, of which nothing needs to be computed."""
    return literal(_typed(0, dtype), shape)


def whole_tensor(value: Value) -> Tensor:
    """View a value as it is stored."""
    return Tensor(value, value.shape, contiguous(value.shape))


def loop_dims(operands: Sequence[Tensor], shape: Sequence[int]) -> tuple[list[int], list[int]]:
    """Dims along which an operand varies, outermost first as the widest operand lies in memory; and their sizes."""
    varying = [
        d
        for d, n in enumerate(shape)
        if n != 1 and any(t.strides[d] != 0 and not isinstance(t.source, Literal) for t in operands)
    ]
    widest = max(operands, key=lambda t: sum(t.strides[d] != 0 for d in varying))
    known = sorted((d for d in varying if widest.strides[d]), key=lambda d: -abs(widest.strides[d]))
    waiting = iter(known)
    order = [next(waiting) if widest.strides[d] else d for d in varying]
    return order, [shape[d] for d in order]


def access(tensor: Tensor, order: Sequence[int]) -> Access | Literal:
    """Read a tensor in a loop over some of its dims."""
    if isinstance(tensor.source, Literal):
        return tensor.source
    return Access(tensor.source, tuple(tensor.strides[d] for d in order), tensor.offset)


def stored(value: Value, shape: Sequence[int], order: Sequence[int]) -> Tensor:
    """View a stored value, whose dims are ``order``, as a tensor of a shape that repeats it along the other dims."""
    strides = [0] * len(shape)
    for d, s in zip(order, contiguous(value.shape), strict=True):
        strides[d] = s
    return Tensor(value, tuple(shape), tuple(strides))


def storage_strides(shape: Sequence[int]) -> tuple[int, ...]:
    """Give row-major strides, also for dims of size 1."""
    return tuple(math.prod(shape[d + 1 :]) for d in range(len(shape)))


def unsqueezed(x: Tensor, dim: int) -> Tensor:
    """Insert a dim of size 1."""
    shape, strides = list(x.shape), list(x.strides)
    shape.insert(dim, 1)
    strides.insert(dim, 0)
    return Tensor(x.source, tuple(shape), tuple(strides), x.offset)


def transposed(x: Tensor) -> Tensor:
    """Swap the last two dims."""
    return Tensor(x.source, (*x.shape[:-2], x.shape[-1], x.shape[-2]), (*x.strides[:-2], x.strides[-1], x.strides[-2]),
                  x.offset)  # fmt: skip


def shaped(x: Tensor, shape: Sequence[int]) -> Tensor:
    """View contiguous storage in a shape."""
    return Tensor(x.source, tuple(shape), contiguous(shape), x.offset)


def squeezed(x: Tensor, dim: int) -> Tensor:
    """Take out a dim of size 1."""
    keep = [d for d in range(len(x.shape)) if d != dim % len(x.shape)]
    return Tensor(x.source, tuple(x.shape[d] for d in keep), tuple(x.strides[d] for d in keep), x.offset)
