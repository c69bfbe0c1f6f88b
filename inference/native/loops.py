"""How loops run and where their elements lie, as text."""

from collections.abc import Iterable, Sequence

from inference.native.values import Value


def loop_order(space: tuple[int, ...]) -> list[int]:
    """Outermost first; the innermost is long enough for the vector unit where there is such a dim."""
    order = list(range(len(space)))
    if len(order) > 1 and space[-1] < 8:
        longest = max(order, key=lambda d: space[d])
        if space[longest] >= 16:
            order.remove(longest)
            order.append(longest)
    return order


def merged(shape: Sequence[int], strides: Sequence[Sequence[int]]) -> tuple[tuple[int, ...], list[tuple[int, ...]]]:
    """Make one dim of those that lie one after the other in all of several tensors; leave out dims of size 1."""
    dims = [d for d, n in enumerate(shape) if n != 1]
    sizes, steps = [], [[] for _ in strides]
    for d in dims:
        if sizes and all(s[-1] == t[d] * shape[d] for s, t in zip(steps, strides, strict=True)):
            sizes[-1] *= shape[d]
            for s, t in zip(steps, strides, strict=True):
                s[-1] = t[d]
        else:
            sizes.append(shape[d])
            for s, t in zip(steps, strides, strict=True):
                s.append(t[d])
    return tuple(sizes), [tuple(s) for s in steps]


def simd_clause(summed: list[Value], names: list[str]) -> str | None:
    """Clauses of the vector pragma; None where the compiler cannot reorder what the loop combines."""
    if any(v.op != "sum" for v in summed):
        return None
    return f"reduction(+ : {', '.join(names)})" if names else ""


def kept_dims(v: Value) -> list[int]:
    """List the dims that a reduction keeps."""
    return [d for d, reduced in enumerate(v.detail) if not reduced]


def address(offset: int, strides: Sequence[int], dims: Iterable[int]) -> str:
    """Write an index from loop variables."""
    terms = [f"{s} * i{d}" if s != 1 else f"i{d}" for s, d in zip(strides, dims, strict=True) if s]
    return " + ".join(([str(offset)] if offset or not terms else []) + terms)
