"""Translation of operations that look up, write, pad and join elements."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from inference.native.translator import Translator
from inference.native.values import (
    BOOL,
    INT,
    Access,
    Literal,
    Tensor,
    Unsupported,
    Value,
    access,
    contiguous,
    empty,
    literal,
    shaped,
    storage_strides,
    unsqueezed,
    whole_tensor,
)

aten = torch.ops.aten


class Indexing(Translator):
    """Index tensors, scatters, slices written into, concatenation."""

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
        return self.aten_cat([unsqueezed(t, dim) for t in tensors], dim)

    def aten_repeat(self, x: Tensor, repeats: Sequence[int]) -> Tensor:
        lead = len(repeats) - len(x.shape)
        sizes, strides = (1,) * lead + x.shape, (0,) * lead + x.strides
        pairs = [m for n in zip(repeats, sizes, strict=True) for m in n]
        steps = tuple(s for step in strides for s in (0, step))
        repeated = Tensor(x.source, tuple(pairs), steps, x.offset)
        shape = tuple(n * m for n, m in zip(repeats, sizes, strict=True))
        if isinstance(x.source, Literal) or 0 in shape:
            return empty(shape, x.dtype) if 0 in shape else literal(x.source.number, shape)
        return shaped(whole_tensor(self.program.whole(repeated)), shape)

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
        place, offset = storage_strides(shape), 0
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
        pieces = [(base, storage_strides(base.shape), 0), (source, seen.stride(), seen.storage_offset())]
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
        return self.placed(self.cast(literal(0, shape), grad.dtype), grad, lambda m: aten.diagonal.default(m, *rest))

    def places(self, indices: Sequence[Tensor | None]) -> list[Tensor | None]:
        """Turn constant masks among the indices into the places where they hold."""
        made: list[Tensor | None] = []
        for index in indices:
            if index is None or index.dtype == INT:
                made.append(index)
                continue
            known = next((c for c in self.constants if c[0] is index.source and index.dtype == BOOL), None)
            if known is None or tuple(known[2].shape) != index.shape or index.offset:
                raise Unsupported("a mask that depends on the parameters as an index")
            if index.strides != tuple(0 if n == 1 else s for n, s in zip(index.shape, known[2].stride(), strict=True)):
                raise Unsupported("a view of a mask as an index")
            _, name, mask = known
            made += [self.constant(f"{name}@{d}", w) for d, w in enumerate(mask.nonzero(as_tuple=True))]
        return made

    def aten_index(self, x: Tensor, indices: Sequence[Tensor | None]) -> Any:
        indices = self.places(indices)
        where, rest = self.addresses(x.shape, x.strides, indices)
        return self.gathered(x, rest, where)

    def gathered(self, x: Tensor, rest: Tensor, where: Tensor) -> Tensor:
        """Read ``x`` at computed places; ``rest`` holds its strides along the dims that are not looked up."""
        if 0 in where.shape:
            return empty(where.shape, x.dtype)
        if isinstance(x.source, Literal) or x.source.numel == 1:  # there is one place only
            return Tensor(x.source, where.shape, (0,) * len(where.shape))
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
        return self.gathered(x, rest, where)

    def scattered(self, base: Tensor, rest: Tensor, where: Tensor, values: Any, *, add: bool) -> Tensor:
        """Add or write values into a copy of ``base`` at computed places."""
        shape = where.shape
        if 0 in shape:
            return base
        values = self.cast(values, base.dtype).expand(shape)
        dims = [d for d, n in enumerate(shape) if n != 1]
        args = [access(values, dims), access(where, dims)]
        if not isinstance(base.source, Literal):
            before = self.program.whole(base)
            args.append(Access(before, contiguous(before.shape), 0))
        start = base.source if isinstance(base.source, Literal) else None
        detail = (tuple(rest.strides[d] for d in dims), start, add)
        made = self.program.value(
            "scatter", "add" if add else "put", args, [shape[d] for d in dims], shape=base.shape, dtype=base.dtype,
            detail=detail,
        )  # fmt: skip
        return whole_tensor(made)

    def aten_index_put(self, base: Tensor, indices: Sequence[Any], values: Any, accumulate: bool = False) -> Any:
        if len(indices) == 1 and indices[0].dtype == BOOL and not accumulate and math.prod(values.shape) == 1:
            (mask,) = indices  # may depend on anything: no shape follows from it
            for _ in base.shape[len(mask.shape) :]:
                mask = unsqueezed(mask, len(mask.shape))
            number = Tensor(values.source, (), (), values.offset)
            return self.point("where", mask, self.cast(number, base.dtype), base, dtype=base.dtype)
        indices = self.places(indices)
        where, rest = self.addresses(base.shape, storage_strides(base.shape), indices)
        return self.scattered(base, rest, where, values, add=accumulate)

    def aten_index_add(self, base: Tensor, dim: int, index: Tensor, values: Tensor, alpha: Any = 1) -> Any:
        if not base.shape or not index.shape:
            return NotImplemented
        values = values if alpha == 1 else self.aten_mul(values, alpha)
        return self.aten_index_put(base, [None] * (dim % len(base.shape)) + [index], values, True)

    def aten__unsafe_index(self, x: Tensor, indices: Sequence[Tensor | None]) -> Any:
        return self.aten_index(x, indices)

    def aten_scatter_add(self, base: Tensor, dim: int, index: Tensor, values: Tensor) -> Any:
        if not base.shape:
            return self.aten_add(base, values)
        where, rest = self.along(base.shape, storage_strides(base.shape), dim % len(base.shape), index)
        values = Tensor(values.source, index.shape, values.strides, values.offset)
        return self.scattered(base, rest, where, values, add=True)

    def aten_scatter(self, base: Tensor, dim: int, index: Tensor, values: Any, **named: Any) -> Any:
        if named or not base.shape:
            return NotImplemented
        where, rest = self.along(base.shape, storage_strides(base.shape), dim % len(base.shape), index)
        if isinstance(values, Tensor) and values.shape:
            values = Tensor(values.source, index.shape, values.strides, values.offset)
        return self.scattered(base, rest, where, values, add=False)

    def aten_value_selecting_reduction_backward(
        self, grad: Tensor, dim: int, index: Tensor, sizes: Sequence[int], keepdim: bool
    ) -> Any:
        if not sizes:
            return grad
        if not keepdim:
            grad, index = unsqueezed(grad, dim % len(sizes)), unsqueezed(index, dim % len(sizes))
        base = self.cast(literal(0, sizes), grad.dtype)
        where, rest = self.along(sizes, storage_strides(sizes), dim % len(sizes), index)
        return self.scattered(base, rest, where, grad, add=False)
