"""From a loop `Program` to C++ text."""

import math
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

from inference.native.expressions import CALLED, COMBINES, EXPRESSIONS, RARE, RARE_CALLS, start
from inference.native.loops import address, kept_dims, loop_order, merged, simd_clause
from inference.native.lower import Lowered
from inference.native.regions import Regions, RowRegion, kept_in_blocks, strides_in_block
from inference.native.schedule import BLOCK_ROWS, LEAVES, Group, Schedule, is_same_place, is_scalar, schedule
from inference.native.values import Access, Literal, Tensor, Unsupported, Value, contiguous

# Buffers up to this many bytes in all live on the stack, which threads of a sampler have 2 MB of; more go to the heap.
STACK_BYTES = 2**18
# The compiler's time grows with the text, half a second per thousand values; recording stops at as many operations.
MAX_VALUES = 20_000
# Loops shorter than a vector call functions instead of holding copies of them, which compiles in half the time.
FEW = 8


@cache
def _header(name: str) -> str:
    return (Path(__file__).parent / name).read_text()


def emit(lowered: Lowered, *, single: bool) -> str:
    """Write a self-contained C++ source.

    Parameters
    ----------
    lowered
        The program.
    single
        Compute in single precision.

    Raises
    ------
    Unsupported
        The program is too large to compile in reasonable time.
    """
    return _Emitter(lowered, single=single).source()


class _Emitter(Regions):
    def __init__(self, lowered: Lowered, *, single: bool) -> None:
        self.lowered, self.single = lowered, single
        self.lines: list[str] = []
        self.depth = 1
        self.outputs = [t if isinstance(t.source, Literal) else self._whole(t) for t in lowered.outputs]
        self.schedule: Schedule = schedule(self.outputs)
        size = sum(len(g.members) for region in self.schedule.regions for g in region)
        if size > MAX_VALUES:
            raise Unsupported(f"{size} operations are more than {MAX_VALUES}, the most that are compiled")
        self.pointers: dict[Value, str] = {}
        self._current: set[Value] = set()
        self.functions: list[str] = []
        self._plan()

    def _plan(self) -> None:
        """Find the loops over many rows, and what of them is stored in blocks."""
        regions = dict(enumerate(self.schedule.regions))
        self.row_regions = {i: RowRegion(f"rows_{i}", r) for i, r in regions.items() if r[0].row is not None}
        region_of = {v: self.row_regions.get(i, i) for i, r in regions.items() for group in r for v in group.members}
        outputs = [t.source for t in self.outputs if isinstance(t.source, Value)]
        self.by_block = kept_in_blocks(self.row_regions.values(), region_of, outputs)
        sizes = [sum(map(self.block_size, self.block_values(region))) for region in self.row_regions.values()]
        self.block_bytes = max(sizes, default=0)
        self.threaded = any(region.parts > 1 for region in self.row_regions.values())

    def _whole(self, tensor: Tensor) -> Tensor:
        value = self.lowered.program.whole(tensor)
        if value.kind in LEAVES:  # an output of its own, not the caller's memory
            space = [n for n in value.shape if n != 1]
            args = [Access(value, contiguous(space), 0)]
            value = self.lowered.program.value("pointwise", "copy", args, space, dtype=value.dtype)
        return Tensor(value, tensor.shape, contiguous(tensor.shape))

    def source(self) -> str:
        self._memory()
        for number, region in enumerate(self.schedule.regions):
            self._region(number, region)
        self._write_outputs()
        body = "\n".join(self.lines)
        real = "float" if self.single else "double"
        values = self.lowered.program.values
        needed = {
            "rows.h": any(v.kind == "rows" for v in values),
            "threads.h": self.threaded,
            "rare.h": any(v.op in (*RARE, *RARE_CALLS) for v in values),
        }
        parts = [
            f"typedef {real} real;\n",
            *(_header(name) for name in ("runtime.h", "markov.h", *needed) if needed.get(name, True)),
            "\n".join([*self.functions, ""]),
            'extern "C" __attribute__((visibility("default")))\n'
            "int64_t ppl_evaluate(const void* const* inputs, void* const* outputs, const void* const* constants) {\n"
            f"{body}\n    return 0;\n}}\n",
        ]
        if self._is_density():
            parts.append(f"#define DIM {self.outputs[0].shape[0]}\n{_header('density.h')}")
        return "".join(parts)

    def _is_density(self) -> bool:
        shapes = [t.shape for t in self.outputs]
        point = self.lowered.inputs[0].shape
        return len(self.lowered.inputs) == 1 and len(point) == 1 and shapes == [point, ()]

    def line(self, text: str) -> None:
        self.lines.append("    " * self.depth + text)

    def _memory(self) -> None:
        """Declare pointers to inputs, constants and buffers."""
        for i, value in enumerate(self.lowered.inputs):
            self.line(f"const {value.dtype}* __restrict {value.name} = (const {value.dtype}*)inputs[{i}];")
        for i, (value, _, _) in enumerate(self.lowered.constants):
            self.line(f"const {value.dtype}* __restrict {value.name} = (const {value.dtype}*)constants[{i}];")
        for a in self._fixed_reads():
            self.line(f"const {a.dtype} {self.fixed_name(a)} = {a.value.name}[{a.offset}];")
        for i, tensor in enumerate(self.outputs):
            if tensor.source in self.schedule.stored and tensor.source not in self.pointers:
                self.pointers[tensor.source] = f"(({tensor.dtype}*)outputs[{i}])"
        buffers = sorted((v for v in self.schedule.stored if v not in self.pointers), key=lambda v: int(v.name[1:]))
        sizes = [(v.name, v.dtype, v.numel) for v in buffers if v not in self.by_block]
        for region in self.row_regions.values():
            parted = [v for v in region.sums if region.parts > 1 and not is_scalar(v)]
            sizes += [(f"{v.name}_parts", v.dtype, v.numel * region.parts) for v in parted]
        self._buffers(sizes)
        for value, pointer in self.pointers.items():
            self.line(f"{value.dtype}* __restrict {value.name} = {pointer};")

    def _buffers(self, sizes: Sequence[tuple[str, str, int]]) -> None:
        """Declare buffers, given by name, type and count, and the memory for blocks of rows."""
        spaces = [(number * 8 + 63) // 64 * 64 for _, _, number in sizes]
        fixed, blocks = sum(spaces), self.block_bytes
        heap = self.threaded or fixed + blocks > STACK_BYTES
        if heap:
            self.line("static thread_local Scratch scratch;")
            blocks = f"ppl_threads * {blocks}" if self.threaded else blocks
            self.line(f"char* memory = scratch.get({fixed} + {blocks});")
            self.line("if (!memory) return -1;")
            self.line(f"char* blocks = memory + {fixed};")
        else:
            self.line(f"alignas(64) char blocks[{max(blocks, 1)}];")
        at = 0
        for (name, dtype, number), space in zip(sizes, spaces, strict=True):
            if heap:
                self.line(f"{dtype}* {name} = ({dtype}*)(memory + {at});")
            else:
                self.line(f"alignas(64) {dtype} {name}[{number}];")
            at += space

    def _fixed_reads(self) -> list[Access]:
        """Elements of inputs and constants that do not move with a loop: read once, into variables."""
        found = {}
        for region in self.schedule.regions:
            for value in (v for group in region for v in group.members if v.kind in ("pointwise", "reduce")):
                for a in value.args[1:] if value.op == "gather" else value.args:
                    if isinstance(a, Access) and self.is_fixed(a):
                        found[a.value.name, a.offset] = a
        return list(found.values())

    def _write_outputs(self) -> None:
        for i, tensor in enumerate(self.outputs):
            target = f"(({tensor.dtype}*)outputs[{i}])"
            if isinstance(tensor.source, Literal):
                number = _number(tensor.source)
                self.line(f"for (int64_t i = 0; i < {math.prod(tensor.shape)}; i++) {target}[i] = {number};")
            elif is_scalar(tensor.source):
                self.line(f"{target}[0] = {tensor.source.name};")
            elif self.pointers[tensor.source] != target:
                self.line(
                    f"std::memcpy({target}, {tensor.source.name}, sizeof({tensor.dtype}) * {tensor.source.numel});"
                )

    def _region(self, number: int, region: list[Group]) -> None:
        """Write loops, one after another, or together over blocks of their rows."""
        if number in self.row_regions:
            self.row_region(self.row_regions[number])
            return
        for value in region[0].members:
            self.start(value)
        self._write(region[0], row=None)

    def _write(self, group: Group, *, row: int | None) -> None:
        value = group.members[0]
        if value.kind == "call":
            self._call(value)
        elif value.kind == "assemble":
            self._assemble(value)
        elif value.kind == "scatter":
            self._scatter(value, row=row)
        elif value.kind == "rows":
            self._rows(value, row=row)
        elif group.space:
            self._loop(group, row=row)
        else:
            for value in group.members:
                self._member(value, (), target=None)

    def start(self, v: Value) -> None:
        """Set what a loop adds to."""
        if v.kind == "reduce" and is_scalar(v):
            self.line(f"{v.dtype} {v.name} = {start(v)};")
        elif v.kind == "reduce" or v.op in ("add_rows", "add_product_rows"):
            self.line(f"for (int64_t i = 0; i < {v.numel}; i++) {v.name}[i] = {start(v)};")
        elif v.kind == "scatter" and len(v.args) > 2:
            before = v.args[2].value
            source = f"&{before.name}" if is_scalar(before) else before.name
            self.line(f"std::memcpy({v.name}, {source}, sizeof({v.dtype}) * {v.numel});")
        elif v.kind == "scatter":
            self.line(f"for (int64_t i = 0; i < {v.numel}; i++) {v.name}[i] = {_number(v.detail[1])};")

    def _rows(self, value: Value, *, row: int | None) -> None:
        matrix, x = value.args
        tall, other = f"{matrix.value.name} + {matrix.offset}", f"{x.value.name} + {x.offset}"
        down = self._strides(matrix)[0]
        span = "from, to" if row is not None else f"0, {value.space[0]}"
        if value.op in ("dot_rows", "add_rows"):
            self.line(f"{value.op}<{value.space[1]}>({tall}, {down}, {other}, {value.name}, {span});")
        elif value.op == "product_rows":
            (_, n, k), (_, rows) = value.space, value.shape
            apart = BLOCK_ROWS if value in self.by_block else rows
            self.line(f"product_rows<{k}, {n}>({tall}, {down}, {other}, {value.name}, {apart}, {span});")
        else:
            (_, m, k), (by_row, apart, _) = value.space, self._strides(x)
            self.line(f"add_product_rows<{k}, {m}>({tall}, {down}, {other}, {by_row}, {apart}, {value.name}, {span});")

    def _call(self, value: Value) -> None:
        if value.op == "part":
            return
        detail = value.detail
        sizes = ", ".join(str(n) for n in detail["sizes"])
        arguments = ", ".join([f"({a.value.dtype}*)&{a.value.name}" if is_scalar(a.value) else a.value.name
                               for a in value.args] + [value.name])  # fmt: skip
        self.line(f"{value.op}<{sizes}>({arguments});")

    def _assemble(self, value: Value) -> None:
        for source, (shape, strides, offset) in zip(value.args, value.detail, strict=True):
            read = source.strides if isinstance(source, Access) else (0,) * len(shape)
            sizes, (to, read) = merged(shape, (strides, read))
            order = loop_order(sizes)
            opened = self._open([sizes[d] for d in order], order, simd="")
            if isinstance(source, Access):
                source = Access(source.value, read, source.offset)
            self.line(f"{value.name}[{address(offset, to, range(len(sizes)))}] = {self._read(source)};")
            self._close(opened)

    def _scatter(self, value: Value, *, row: int | None) -> None:
        strides, _, add = value.detail
        values, where = value.args[:2]
        dims = range(len(value.space))
        opened = self._open(value.space, dims, simd=None, row=row)
        rest = address(0, strides, dims)
        self.line(f"{value.name}[{self._read(where)} + {rest}] {'+=' if add else '='} {self._read(values)};")
        self._close(opened)

    def _loop(self, group: Group, *, row: int | None) -> None:
        """Write the loop nest of a group."""
        space = group.space
        self._current = set(group.members)
        order = loop_order(space)
        # Sums over the innermost loop are kept in a register, and added to their place after it.
        summed = [v for v in group.members if v.kind == "reduce" and v.detail[order[-1]]]
        partial = [v for v in summed if len(order) > 1]
        outer = self._open([space[d] for d in order[:-1]], order[:-1], simd=None, row=row)
        for v in partial:
            self.line(f"{v.dtype} {v.name}_ = {start(v)};")
        simd = simd_clause(summed, [v.name + "_" if v in partial else v.name for v in summed])
        inner = self._open([space[d] for d in order[-1:]], order[-1:], simd=simd, row=row)
        for v in group.members:
            self._member(v, space, target=v.name + "_" if v in partial else None)
        self._close(inner)
        for v in partial:
            target = self._target(v)
            self.line(f"{target} = {COMBINES[v.op].format(target, v.name + '_')};")
        self._close(outer)

    def _member(self, v: Value, space: tuple[int, ...], *, target: str | None) -> None:
        if v.kind == "reduce":
            target = target or self._target(v)
            self.line(f"{target} = {COMBINES[v.op].format(target, self._read(v.args[0], space))};")
            return
        if v.op == "gather":
            base, where = v.args
            place = address(base.offset, base.strides, range(len(space)))  # of a value that is known as a whole
            expression = f"{base.value.name}[{self._read(where, space)} + {place}]"
        else:
            operands = [self._read(a, space) for a in v.args]
            if v.op == "where":  # a read that depends on the condition would keep the loop from the vector unit
                for k, text in enumerate(operands[1:], 1):
                    if "[" in text:
                        self.line(f"const {v.dtype} {v.name}_{k} = {text};")
                        operands[k] = f"{v.name}_{k}"
            pattern = EXPRESSIONS[v.op]
            if math.prod(space) < FEW:
                pattern = CALLED.get(v.op, pattern)
            expression = pattern.format(*operands)
        name = v.name if is_scalar(v) else f"{v.name}_"
        self.line(f"const {v.dtype} {name} = {expression};")
        if v in self.schedule.stored:
            self.line(f"{v.name}[{self._place(v, range(len(space)))}] = {name};")

    def _read(self, a: Access | Literal, space: tuple[int, ...] | None = None) -> str:
        if isinstance(a, Literal):
            return _number(a)
        if is_scalar(a.value):
            return a.value.name
        if space is not None and self.is_fixed(a):
            return self.fixed_name(a)
        if space is not None and self._is_open(a, space):
            return f"{a.value.name}_"
        return f"{a.value.name}[{address(a.offset, self._strides(a), range(len(a.strides)))}]"

    def _strides(self, a: Access) -> tuple[int, ...]:
        """Strides of a read, of what is stored of a value."""
        return self._stored(a.value, a.strides)

    def _stored(self, value: Value, strides: Sequence[int]) -> tuple[int, ...]:
        return strides_in_block(strides, *self.by_block[value]) if value in self.by_block else tuple(strides)

    def _place(self, v: Value, dims: Iterable[int]) -> str:
        """Write where an element is stored, along the dims of the loop that are those of the value."""
        return address(0, self._stored(v, contiguous(v.shape)), dims)

    def _target(self, v: Value) -> str:
        """Write where a sum goes: its place along the dims that are not summed over."""
        return v.name if is_scalar(v) else f"{v.name}[{self._place(v, kept_dims(v))}]"

    def _is_open(self, a: Access, space: tuple[int, ...]) -> bool:
        return is_same_place(a, space) and a.value in self._current

    def _open(self, sizes: Sequence[int], dims: Iterable[int], *, simd: str | None, row: int | None = None) -> int:
        """Open loops; ``simd``: clauses for the innermost, None for a plain loop; ``row``: the dim done in blocks."""
        for k, (size, d) in enumerate(zip(sizes, dims, strict=True)):
            if simd is not None and k == len(sizes) - 1 and size >= FEW:
                self.line(f"#pragma omp simd {simd}".rstrip())
            begin, end = ("from", "to") if d == row else (0, size)
            self.line(f"for (int64_t i{d} = {begin}; i{d} < {end}; i{d}++) {{")
            self.depth += 1
        return len(sizes)

    def _close(self, count: int) -> None:
        for _ in range(count):
            self.depth -= 1
            self.line("}")


def _number(a: Literal) -> str:
    number = a.number
    if isinstance(number, bool):
        return "true" if number else "false"
    if isinstance(number, int):
        return f"int64_t({number})"
    if math.isnan(number):
        return 'real(__builtin_nan(""))'
    if math.isinf(number):
        return f"real({'-' if number < 0 else ''}HUGE_VAL)"
    return f"real({number!r})"
