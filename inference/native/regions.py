"""Loops over many rows as functions of their own: a block of rows at a time, the blocks shared out among threads."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from inference.native.expressions import COMBINES, start
from inference.native.schedule import BLOCK_ROWS, BY_ROW, LEAVES, Group, is_scalar
from inference.native.values import Access, Value, contiguous

# Rows are parted into so many, whatever the number of threads, so that sums have one order. More than there are cores,
# as a rule, so that a core that does other things, too, does not hold up the rest.
PARTS = 16
# Operations on numbers that are worth threads: these take half a millisecond, and a thread takes 0.03 to start.
MIN_OPERATIONS = 1_000_000
# What is added up over rows is held once for each part: no larger than this share of the rows.
ROWS_FOR_A_SUM = 64


@dataclass(eq=False)
class RowRegion:
    """Groups over the same rows that run together, block by block.

    Attributes
    ----------
    parts
        In how many the rows are parted, each with sums of its own.
    """

    name: str
    groups: list[Group]
    rows: int = field(init=False)
    parts: int = field(init=False)

    def __post_init__(self) -> None:
        self.rows = self.groups[0].space[self.groups[0].row]
        self.parts = PARTS if self._is_worth_threads() else 1

    def _is_worth_threads(self) -> bool:
        operations = sum(math.prod(v.space) for v in self.members)
        small = all(v.numel * ROWS_FOR_A_SUM <= self.rows for v in self.sums)
        written = any(v.kind == "scatter" and not v.detail[2] for v in self.members)  # the last one to write counts
        return operations >= MIN_OPERATIONS and small and not written

    @property
    def step(self) -> int:
        """Rows of a part: whole blocks."""
        return -(-self.rows // (self.parts * BLOCK_ROWS)) * BLOCK_ROWS

    @property
    def members(self) -> list[Value]:
        """All values, in order."""
        return [v for group in self.groups for v in group.members]

    @property
    def sums(self) -> list[Value]:
        """Values that rows are added to, or combined in."""
        return [v for group in self.groups for v in group.members if step_of_row(v, group) is None]

    def by_row(self) -> dict[Value, int]:
        """Values with numbers for each row, and from one row to the next in memory."""
        steps = {v: step_of_row(v, group) for group in self.groups for v in group.members}
        return {v: step for v, step in steps.items() if step is not None}


def step_of_row(v: Value, group: Group) -> int | None:
    """Give the stride of a stored value from one row to the next; None for a value that all rows share."""
    if v.kind == "rows":
        return 1 if v.op in BY_ROW else None
    if v.kind == "pointwise":
        return contiguous(v.space)[group.row]
    if v.kind == "reduce" and not v.detail[group.row]:
        kept = [d for d, reduced in enumerate(v.detail) if not reduced]
        return contiguous(v.shape)[kept.index(group.row)]
    return None


def kept_in_blocks(
    regions: Iterable[RowRegion], region_of: Mapping[Value, object], outputs: Iterable[Value]
) -> dict[Value, tuple[int, int]]:
    """Values that only the loops over one block of rows read, with their rows and steps: a block of memory does."""
    readers: dict[Value, set[object]] = {v: {None} for v in outputs}
    for value, region in region_of.items():
        for source in value.sources:
            readers.setdefault(source, set()).add(region)
    return {
        v: (region.rows, step)
        for region in regions
        for v, step in region.by_row().items()
        if readers.get(v) == {region}
    }


def strides_in_block(strides: Sequence[int], rows: int, step: int) -> tuple[int, ...]:
    """Give the strides of a value of which only `BLOCK_ROWS` rows are kept."""
    return tuple(s // rows * BLOCK_ROWS if s >= rows * step else s for s in strides)


class Regions:
    """Writes the functions of regions, and their calls; part of the emitter."""

    def row_region(self, region: RowRegion) -> None:
        """Write the function, then what calls it and puts the sums of its parts together."""
        values = self._shared(region)
        sums = region.sums
        for v in sums:
            self.start(v)
            if is_scalar(v):
                self.line(f"{v.dtype} {v.name}_parts[{region.parts}];")
                values[f"{v.name}_parts"] = f"{v.dtype}*"
            elif region.parts > 1:
                values[f"{v.name}_parts"] = f"{v.dtype}*"
            else:
                values[v.name] = f"{v.dtype}*"
        self._function(region, values)
        given = ", ".join(values) or "0"
        self.line(f"const {region.name}_values {region.name}_given = {{{given}}};")
        if region.parts > 1:
            sizes = f"{region.rows}, {region.step}, blocks, {self.block_bytes}"
            self.line(f"run_parts({region.name}, &{region.name}_given, {sizes});")
        else:
            self.line(f"{region.name}(&{region.name}_given, 0, {region.rows}, 0, blocks);")
        for v in sums:
            self._put_together(v, region)

    def _put_together(self, v: Value, region: RowRegion) -> None:
        op = "sum" if v.kind != "reduce" else v.op
        parts = f"for (int64_t part = 0; part < {-(-region.rows // region.step)}; part++)"
        if is_scalar(v):
            self.line(f"{parts} {v.name} = {COMBINES[op].format(v.name, f'{v.name}_parts[part]')};")
        elif region.parts > 1:
            place = f"{v.name}_parts[part * {v.numel} + i]"
            self.line(f"{parts} for (int64_t i = 0; i < {v.numel}; i++) {v.name}[i] = "
                      f"{COMBINES[op].format(f'{v.name}[i]', place)};")  # fmt: skip

    def _shared(self, region: RowRegion) -> dict[str, str]:
        """Names that a function needs from outside, with their types."""
        own, found = set(region.members), {}
        for v in region.members:
            for i, a in enumerate(v.args):
                start_of_sum = v.kind == "scatter" and i > 1
                if not isinstance(a, Access) or a.value in self.by_block or a.value in own or start_of_sum:
                    continue
                if is_scalar(a.value):
                    found[a.value.name] = a.dtype
                elif self.is_fixed(a) and v.kind in ("pointwise", "reduce") and not (v.op == "gather" and i == 0):
                    found[self.fixed_name(a)] = a.dtype
                else:
                    found[a.value.name] = f"const {a.dtype}*"
        for v in region.by_row():
            if v in self.schedule.stored and v not in self.by_block:
                found[v.name] = f"{v.dtype}*"
        return found

    def _function(self, region: RowRegion, values: Mapping[str, str]) -> None:
        before, self.lines, depth, self.depth = self.lines, [], self.depth, 0
        self.line(f"struct {region.name}_values {{")
        for name, kind in values.items():
            self.line(f"    {kind} {name};")
        self.line("};")
        self.line(
            f"static void {region.name}(const void* values, int64_t begin, int64_t end, int64_t part, char* memory) {{"
        )
        self.depth += 1
        self.line(f"const {region.name}_values& given = *(const {region.name}_values*)values;")
        for name, kind in values.items():
            if not name.endswith("_parts"):
                self.line(
                    f"{kind.replace('*', '* __restrict')} {'' if '*' in kind else 'const '}{name} = given.{name};"
                )
        self._own_memory(region)
        self._blocks(region)
        for v in region.sums:
            if is_scalar(v):
                self.line(f"given.{v.name}_parts[part] = {v.name};")
        self._close(1)
        self.functions += self.lines
        self.lines, self.depth = before, depth

    def _own_memory(self, region: RowRegion) -> None:
        """Declare sums of this part, and memory for one block of rows."""
        for v in region.sums:
            if is_scalar(v):
                self.line(f"{v.dtype} {v.name} = {start(v)};")
            elif region.parts > 1:
                self.line(f"{v.dtype}* __restrict {v.name} = given.{v.name}_parts + part * {v.numel};")
                self.line(f"for (int64_t i = 0; i < {v.numel}; i++) {v.name}[i] = {start(v)};")
        at = 0
        for v in self.block_values(region):
            self.line(f"{v.dtype}* {v.name}_block = ({v.dtype}*)(memory + {at});")
            at += self.block_size(v)

    def _blocks(self, region: RowRegion) -> None:
        self.line(f"for (int64_t from = begin; from < end; from += {BLOCK_ROWS}) {{")
        self.depth += 1
        self.line(f"const int64_t to = from + {BLOCK_ROWS} < end ? from + {BLOCK_ROWS} : end;")
        for v in self.block_values(region):
            self.line(f"{v.dtype}* __restrict {v.name} = {v.name}_block - from * {self.by_block[v][1]};")
        for v, step in region.by_row().items():
            if v.kind == "reduce":
                rows = BLOCK_ROWS if v in self.by_block else region.rows
                self.line(f"for (int64_t o = 0; o < {v.numel // (region.rows * step)}; o++)")
                self.line(f"    for (int64_t i = from * {step}; i < to * {step}; i++)")
                self.line(f"        {v.name}[o * {rows * step} + i] = {start(v)};")
        for group in region.groups:
            self.line("{")
            self.depth += 1
            self._write(group, row=group.row)
            self._close(1)
        self._close(1)

    def block_values(self, region: RowRegion) -> list[Value]:
        """Values of a region of which one block of rows is stored."""
        return [v for v in region.by_row() if v in self.by_block and v in self.schedule.stored]

    def block_size(self, v: Value) -> int:
        """Bytes of a block of rows."""
        return (v.numel // self.by_block[v][0] * BLOCK_ROWS * 8 + 63) // 64 * 64

    def is_fixed(self, a: Access) -> bool:
        """Whether an input or a constant is read at one place only."""
        return a.value.kind in LEAVES and not any(a.strides)

    def fixed_name(self, a: Access) -> str:
        """Name of the variable that holds it."""
        return f"{a.value.name}_at_{a.offset}"
