"""Translation of operations that work element by element, fill, or reduce."""

import math
from collections.abc import Sequence
from typing import Any

import torch

from inference.native.translator import Translator
from inference.native.values import (
    BOOL,
    INT,
    REAL,
    Literal,
    Tensor,
    Unsupported,
    Value,
    contiguous,
    literal,
    shaped,
    squeezed,
)

FILLS = {"zeros_like": 0, "new_zeros": 0, "zeros": 0, "ones_like": 1, "new_ones": 1, "ones": 1, "empty_like": 0}
ROUNDINGS = {"floor", "ceil", "trunc", "round"}
# Functions with a branch, which the runtime takes out of the loop where there are enough elements.
_WHOLE, MIN_WHOLE = {"lgamma", "digamma"}, 8
REDUCTIONS = {"sum": "sum", "amax": "max", "amin": "min", "prod": "prod", "any": "any", "all": "all"}


class Elementwise(Translator):
    """Arithmetic, comparisons, elementary functions, sums."""

    def unary(self, name: str, x: Tensor) -> Tensor:
        name = "sign" if name == "sgn" else name
        if name in _WHOLE and math.prod(x.shape) >= MIN_WHOLE:
            return self.whole_unary(f"{name}_all", x)
        if name == "square":
            return self.aten_mul(x, x)
        if x.dtype == INT and name in ROUNDINGS:
            return x
        if x.dtype == INT and name == "abs":
            return self.aten_maximum(x, self.unary("neg", x))
        if x.dtype == INT and name in ("neg", "sign"):
            return self.point(name, x, dtype=INT)
        x = self.cast(x, REAL)
        if name == "neg" and isinstance(x.source, Value) and (x.source.kind, x.source.op) == ("pointwise", "neg"):
            return self.undo(x)
        return self.point(name, x, dtype=REAL)

    def whole_unary(self, function: str, x: Tensor) -> Tensor:
        """Apply a function of the runtime to a whole buffer, without what x repeats."""
        shape = tuple(1 if s == 0 else n for n, s in zip(x.shape, x.strides, strict=True))
        once = Tensor(x.source, shape, x.strides, x.offset)
        made = self.program.call(function, [once], shape, sizes=(math.prod(shape),))
        return shaped(made, shape).expand(x.shape)

    def undo(self, x: Tensor) -> Tensor:
        """Take a sign back that was just put on: the operand of a negation."""
        inner = x.source.args[0]
        if isinstance(inner, Literal) or inner.strides != contiguous(x.source.space) or inner.offset:
            return self.point("neg", x, dtype=REAL)
        return Tensor(inner.value, x.shape, x.strides, x.offset)

    def logic(self, name: str, x: Any, y: Any) -> Any:
        if name.startswith("bitwise") and any(self.tensor(t).dtype != BOOL for t in (x, y)):
            return NotImplemented
        op = {"and": "and", "or": "or", "xor": "ne"}[name.split("_")[1]]
        return self.point(op, self.cast(x, BOOL), self.cast(y, BOOL), dtype=BOOL)

    def fill(self, name: str, like: Any, *rest: Any, dtype: torch.dtype | None = None, **_: Any) -> Tensor:
        shape = like if isinstance(like, list | tuple) else rest[0] if name.startswith("new") else like.shape
        own = like.dtype if isinstance(like, Tensor) else REAL
        return self.cast(literal(FILLS[name], shape), own if dtype is None else self.dtype(dtype))

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
        return self.program.reduce(REDUCTIONS[name], x, dims, keepdim=keepdim)

    def extreme(self, op: str, x: Tensor, dim: Any, *, keepdim: bool) -> Any:
        if dim is None:
            return self.program.reduce(op, x, range(len(x.shape)), keepdim=False)
        if isinstance(dim, Tensor):
            return (self.aten_maximum if op == "max" else self.aten_minimum)(x, dim)
        return self.program.reduce(op, x, [dim], keepdim=keepdim), self.place_of_extreme(op, x, dim, keepdim=keepdim)

    def place_of_extreme(self, op: str, x: Tensor, dim: int, *, keepdim: bool) -> Tensor:
        if 0 in x.shape:
            raise Unsupported(f"the {op} of an empty tensor")
        dim %= max(len(x.shape), 1)
        sizes = (math.prod(x.shape[:dim]), math.prod(x.shape[dim : dim + 1]), math.prod(x.shape[dim + 1 :]))
        shape = tuple(1 if d == dim else n for d, n in enumerate(x.shape))
        place = shaped(self.program.call(f"arg{op}", [x], shape, sizes=sizes, dtype=INT), shape)
        return place if keepdim or not x.shape else squeezed(place, dim)

    def aten_argmax(self, x: Tensor, dim: int | None = None, keepdim: bool = False) -> Any:
        return NotImplemented if dim is None else self.place_of_extreme("max", x, dim, keepdim=keepdim)

    def aten_argmin(self, x: Tensor, dim: int | None = None, keepdim: bool = False) -> Any:
        return NotImplemented if dim is None else self.place_of_extreme("min", x, dim, keepdim=keepdim)

    def filled(self, number: Any, shape: Sequence[int], like: str, dtype: torch.dtype | None) -> Tensor:
        return self.cast(literal(number, shape), like if dtype is None else self.dtype(dtype))

    def aten_full(self, shape: Sequence[int], number: Any, dtype: torch.dtype | None = None, **_: Any) -> Tensor:
        own = REAL if isinstance(number, float) else INT
        return self.filled(number, shape, BOOL if isinstance(number, bool) else own, dtype)

    def aten_full_like(self, like: Tensor, number: Any, dtype: torch.dtype | None = None, **_: Any) -> Tensor:
        return self.filled(number, like.shape, like.dtype, dtype)

    def aten_new_full(
        self, like: Tensor, shape: Sequence[int], number: Any, dtype: torch.dtype | None = None, **_: Any
    ) -> Tensor:
        return self.filled(number, shape, like.dtype, dtype)

    def aten_fill(self, like: Tensor, number: Any) -> Tensor:
        return self.cast(self.tensor(number), like.dtype).expand(like.shape)

    def aten_scalar_tensor(self, number: Any, dtype: torch.dtype | None = None, **_: Any) -> Tensor:
        return self.filled(number, (), REAL, dtype)

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
            (x, y), dtype = self.common(x, y)
            return self.point(f"div_{rounding_mode}", x, y, dtype=dtype)
        x, y = self.cast(x, REAL), self.cast(y, REAL)
        if isinstance(y.source, Literal) or isinstance(x.source, Literal):
            return self.point("div", x, y, dtype=REAL)
        # A division takes as long as eight products, so what divides many numbers, or is known, is inverted once.
        known = next((c for c in self.constants if c[0] is y.source), None)
        if known is not None and _invertible(known[2]):
            _, name, value = known
            inverse = self.constant(f"{name}@inverse", value.reciprocal())
            if inverse.source.detail == value.stride():  # so that the view holds for both
                return self.point("mul", x, Tensor(inverse.source, y.shape, y.strides, y.offset), dtype=REAL)
        shape = torch.broadcast_shapes(x.shape, y.shape)
        if math.prod(n for n, s in zip(y.shape, y.strides, strict=True) if s) < math.prod(shape):
            return self.point("mul", x, self.point("reciprocal", y, dtype=REAL), dtype=REAL)
        return self.point("div", x, y, dtype=REAL)

    def aten_pow(self, x: Any, y: Any) -> Any:
        (x, y), dtype = self.common(x, y)
        number = y.source.number if isinstance(y.source, Literal) else None
        shape = torch.broadcast_shapes(x.shape, y.shape)
        if dtype != REAL:
            return self.integer_power(x.expand(shape), number) if dtype == INT else NotImplemented
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

    def integer_power(self, x: Tensor, number: int | None) -> Any:
        if number not in range(9):
            return NotImplemented
        made = literal(1, x.shape)
        for _ in range(number):
            made = self.aten_mul(made, x)
        return made

    def aten_fmod(self, x: Any, y: Any) -> Tensor:
        (x, y), dtype = self.common(x, y)
        return self.point("fmod", x, y, dtype=dtype)

    def aten_remainder(self, x: Any, y: Any) -> Tensor:
        (x, y), dtype = self.common(x, y)
        return self.point("remainder", x, y, dtype=dtype)

    def aten_floor_divide(self, x: Any, y: Any) -> Tensor:
        return self.aten_div(x, y, rounding_mode="floor")

    def aten_polygamma(self, order: int, x: Tensor) -> Any:
        return self.point("trigamma", self.cast(x, REAL), dtype=REAL) if order == 1 else NotImplemented

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
        return self.aten_maximum(x, 0)

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


def _invertible(divisor: torch.Tensor) -> bool:
    """Whether a product with the inverse is as good as a division: no inverse overflows or loses digits."""
    size = divisor.abs()
    return bool(((size > 1e-30) & (size < 1e30)).all())
