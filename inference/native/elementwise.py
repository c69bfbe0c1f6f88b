"""Translation of operations that work element by element, fill, or reduce."""

import math
from collections.abc import Sequence
from typing import Any

import torch

from inference.native.translator import Translator
from inference.native.values import BOOL, INT, REAL, Literal, Tensor, Value, contiguous, literal, shaped, squeezed

FILLS = {"zeros_like": 0, "new_zeros": 0, "zeros": 0, "ones_like": 1, "new_ones": 1, "ones": 1}
# Unary functions that leave integers integers.
_KEEPS_INT = {"neg", "abs", "sign", "sgn", "square"}
REDUCTIONS = {"sum": "sum", "amax": "max", "amin": "min", "prod": "prod", "any": "any", "all": "all"}


class Elementwise(Translator):
    """Arithmetic, comparisons, elementary functions, sums."""

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
            return self.point(op, x, dim, dtype=x.dtype)
        dim %= max(len(x.shape), 1)
        sizes = (math.prod(x.shape[:dim]), math.prod(x.shape[dim : dim + 1]), math.prod(x.shape[dim + 1 :]))
        shape = tuple(1 if d == dim else n for d, n in enumerate(x.shape))
        place = shaped(self.program.call(f"arg{op}", [x], shape, sizes=sizes, dtype=INT), shape)
        if not keepdim and x.shape:
            place = squeezed(place, dim)
        return self.program.reduce(op, x, [dim], keepdim=keepdim), place

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
        x, y = self.cast(x, REAL), self.cast(y, REAL)
        if isinstance(y.source, Literal) or isinstance(x.source, Literal):
            return self.point("div", x, y, dtype=REAL)
        # A division takes as long as eight products, so what divides many numbers, or is known, is inverted once.
        known = next((c for c in self.constants if c[0] is y.source), None)
        if known is not None:
            _, name, value = known
            inverse = self.constant(f"{name}_inverse", value.reciprocal())
            if inverse.source.detail == value.stride():  # so that the view holds for both
                return self.point("mul", x, Tensor(inverse.source, y.shape, y.strides, y.offset), dtype=REAL)
        shape = torch.broadcast_shapes(x.shape, y.shape)
        if math.prod(n for n, s in zip(y.shape, y.strides, strict=True) if s) < math.prod(shape):
            return self.point("mul", x, self.point("reciprocal", y, dtype=REAL), dtype=REAL)
        return self.point("div", x, y, dtype=REAL)

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
