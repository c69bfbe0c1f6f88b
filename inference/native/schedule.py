"""Which values are computed in one loop, and in what order the loops run."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from inference.native.values import Access, Tensor, Value, contiguous

LEAVES = ("input", "constant")


@dataclass(eq=False)
class Group:
    """Values computed by one loop nest over ``space``, in order; a call or an assembly stands alone."""

    phase: int
    space: tuple[int, ...]
    members: list[Value] = field(default_factory=list)

    @property
    def alone(self) -> bool:
        """Whether this is not a loop nest of element-by-element members."""
        return self.members[0].kind in ("call", "assemble", "scatter")


@dataclass(eq=False)
class Schedule:
    """Groups in the order in which they run, and the values that need memory."""

    groups: list[Group]
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


def schedule(outputs: list[Tensor]) -> Schedule:
    """Put every value into the earliest loop of its shape in which all that it reads is known.

    Values of the same loop are passed on in registers. A phase ends where something is needed that a whole loop makes:
    a sum, a gathered element, an element elsewhere.
    """
    groups: dict[tuple, Group] = {}
    phase: dict[Value, int] = {}
    stored = {t.source for t in outputs if isinstance(t.source, Value)}
    for value in live(outputs):
        if value.kind in LEAVES:
            continue
        alone = value.kind in ("call", "assemble", "scatter")
        own = 0
        for position, a in enumerate(value.args):
            if not isinstance(a, Access) or a.value.kind in LEAVES:
                continue
            looked_up = value.op == "gather" and position == 0
            together = not alone and not looked_up and is_same_place(a, value.space)
            scalar = a.value.kind == "pointwise" and is_scalar(a.value)
            own = max(own, phase[a.value] + (0 if together or scalar else 1))
            if not together and not is_scalar(a.value):
                stored.add(a.value)
        phase[value] = own
        key = (own, value.space, value.name if alone else "")
        groups.setdefault(key, Group(own, value.space)).members.append(value)
    # a value may be read in its own shape by a later phase
    for group in groups.values():
        for value in group.members:
            for a in value.args:
                if isinstance(a, Access) and a.value not in group.members and a.value.kind not in LEAVES:
                    stored.add(a.value)
    stored -= {v for v in stored if v.kind in LEAVES}
    for value in phase:
        if value.kind in ("call", "assemble", "scatter") or (value.kind == "reduce" and not is_scalar(value)):
            stored.add(value)
    ordered = sorted(groups.values(), key=lambda g: (g.phase, math.prod(g.space) > 1 or g.alone))
    return Schedule(ordered, {v for v in stored if not is_scalar(v)})
