"""Which values are computed in one loop, and in what order the loops run."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from inference.native.values import Access, Tensor, Value, contiguous

LEAVES = ("input", "constant")
ALONE = ("call", "assemble", "scatter", "rows")
# Products with a tall matrix that give a number, or several, for each row; others add up the rows.
BY_ROW = ("dot_rows", "product_rows")
# Loops over at least this many rows are run together, a block of rows at a time, so that what one writes the next
# finds in the cache, and a large matrix is read once for the value and the gradient.
MIN_ROWS = 2048
BLOCK_ROWS = 256


@dataclass(eq=False)
class Group:
    """Values computed by one loop nest over ``space``, in order; a call or an assembly stands alone."""

    phase: int
    space: tuple[int, ...]
    members: list[Value] = field(default_factory=list)

    @property
    def alone(self) -> bool:
        """Whether this is not a loop nest of element-by-element members."""
        return self.members[0].kind in ALONE

    @property
    def row(self) -> int | None:
        """The dim over which this loop may run in blocks."""
        if self.members[0].kind in ("call", "assemble") or not self.space:
            return None
        row = 0 if self.members[0].kind == "rows" else max(range(len(self.space)), key=lambda d: self.space[d])
        return row if self.space[row] >= MIN_ROWS else None


@dataclass(eq=False)
class Schedule:
    """Groups in the order in which they run, those of one list block by block; and the values that need memory."""

    regions: list[list[Group]]
    stored: set[Value]


def live(outputs: Iterable[Tensor]) -> list[Value]:
    """List what the outputs need, sources first."""
    order: list[Value] = []
    seen: set[Value] = set()
    waiting = [(t.source, False) for t in outputs if isinstance(t.source, Value)][::-1]
    while waiting:
        value, ready = waiting.pop()
        if ready:
            order.append(value)
        elif value not in seen:
            seen.add(value)
            waiting.append((value, True))
            waiting.extend((s, False) for s in reversed(value.sources) if s not in seen)
    return order


def is_scalar(value: Value) -> bool:
    """Whether a value is a variable of its own rather than memory."""
    return value.numel == 1 and value.kind in ("pointwise", "reduce")


def is_same_place(access: Access, space: tuple[int, ...]) -> bool:
    """Whether a loop over ``space`` reads just the element that it has computed in the same turn."""
    value = access.value
    return (
        value.kind == "pointwise"
        and value.space == space
        and access.offset == 0
        and access.strides == contiguous(space)
    )


def schedule(outputs: Sequence[Tensor]) -> Schedule:
    """Put every value into the earliest loop of its shape in which all that it reads is known.

    Values of the same loop are passed on in registers. A phase ends where something is needed that a whole loop makes:
    a sum, a gathered element, an element elsewhere.
    """
    groups: dict[tuple, Group] = {}
    phase: dict[Value, int] = {}
    for value in live(outputs):
        if value.kind in LEAVES:
            continue
        phase[value] = max((_phase_after(a, i, value, phase) for i, a in enumerate(value.args)), default=0)
        key = (phase[value], value.space, value.name if value.kind in ALONE else "")
        groups.setdefault(key, Group(phase[value], value.space)).members.append(value)
    stored = {t.source for t in outputs if isinstance(t.source, Value)}
    stored |= {v for v in phase if v.kind in ALONE or v.kind == "reduce"}
    group_of = {v: g for g in groups.values() for v in g.members}
    for value, group in group_of.items():
        for i, a in enumerate(value.args):
            if isinstance(a, Access) and not (group_of.get(a.value) is group and _in_register(a, i, value)):
                stored.add(a.value)
    regions = _regions(sorted(groups.values(), key=lambda g: g.phase), group_of)
    return Schedule(regions, {v for v in stored if v.kind not in LEAVES and not is_scalar(v)})


def _in_register(access: Access, position: int, value: Value) -> bool:
    looked_up = value.op == "gather" and position == 0
    return value.kind not in ALONE and not looked_up and is_same_place(access, value.space)


def _phase_after(access: object, position: int, value: Value, phase: dict[Value, int]) -> int:
    if not isinstance(access, Access) or access.value.kind in LEAVES:
        return 0
    scalar = access.value.kind == "pointwise" and is_scalar(access.value)
    return phase[access.value] + (0 if scalar or _in_register(access, position, value) else 1)


def _regions(groups: list[Group], group_of: dict[Value, Group]) -> list[list[Group]]:
    """Order the groups; those over the same rows go together where each needs only its own row of the others."""
    waiting, done, regions = list(groups), set(), []

    def needs(group: Group) -> set[Group]:
        found = {group_of[s] for v in group.members for s in v.sources if s in group_of}
        return {g for g in found if g is not group and g not in done}

    while waiting:
        ready = [g for g in waiting if not needs(g)]
        # what needs no rows goes first: it may let more loops over rows run together
        first = next((g for g in ready if g.row is None), ready[0])
        region = [first]
        if first.row is not None:
            for g in waiting:
                if g is not first and _joins(g, region, needs(g), group_of):
                    region.append(g)
        done.update(region)
        waiting = [g for g in waiting if g not in done]
        regions.append(region)
    return regions


def _joins(group: Group, region: list[Group], needs: set[Group], group_of: dict[Value, Group]) -> bool:
    """Whether a group may run block by block with others over the same rows."""
    rows = region[0].space[region[0].row]
    if group.row is None or group.space[group.row] != rows or not needs <= set(region):
        return False
    for value in group.members:
        for i, a in enumerate(value.args):
            if isinstance(a, Access) and group_of.get(a.value) in needs and not _own_row(a, i, value, group, rows):
                return False
    return True


def _own_row(access: Access, position: int, reader: Value, group: Group, rows: int) -> bool:
    """Whether a read of a value that is made row by row stays in the row that is being computed."""
    value = access.value
    if value.kind == "rows":  # one number a row, or a sum over rows
        return value.op in BY_ROW and _reads_rows_of(access, 1, position, reader, group, rows)
    if value.kind not in ("pointwise", "reduce"):
        return False
    row = max(range(len(value.space)), key=lambda d: value.space[d])
    kept = [d for d in range(len(value.space)) if value.kind == "pointwise" or not value.detail[d]]
    if value.space[row] != rows or row not in kept:
        return False
    return _reads_rows_of(access, contiguous(value.shape)[kept.index(row)], position, reader, group, rows)


def _reads_rows_of(access: Access, step: int, position: int, reader: Value, group: Group, rows: int) -> bool:
    if reader.op in ("dot_rows", "add_rows"):
        return reader.op == "add_rows" and position == 1 and access.value.numel == rows
    if reader.kind == "scatter" and position > 1 or reader.op == "gather" and position == 0 or access.offset:
        return False
    others = [(s, n) for d, (s, n) in enumerate(zip(access.strides, group.space, strict=True)) if d != group.row and s]
    inside = sum(s * (n - 1) for s, n in others if s % (rows * step))
    return access.strides[group.row] == step and all(s > 0 for s, _ in others) and inside < step
