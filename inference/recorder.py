"""Watching a function of tensors run, and writing down the ATen operations as a graph.

This does what ``make_fx`` of torch does, for real tensors only, without importing torch's compiler (0.6 s), and it
knows which arguments a value follows from. It sits below autograd, so a gradient taken inside the function is written
down, too.
"""

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import TreeSpec, tree_flatten, tree_map, tree_unflatten

aten = torch.ops.aten

# The result is its argument under another name, so nothing is written down.
_SAME_TENSOR = (aten.detach.default, aten.alias.default)
# Their result has the shape of an argument, but values of its own.
_FILLED = {
    getattr(aten, name) for name in ("zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "new_full")
}
# Operations on slices, and the position of their dim, start, end and step.
_SLICES = {aten.slice.Tensor: 1, aten.slice_scatter.default: 2}
_MASKS = (torch.bool, torch.uint8)


# Recording stops at this many operations, value and gradient together. To record and check one takes 0.2 ms, so this is
# 4 s, for a graph that then runs twice as fast as Pyro itself; four times as many would be a wait.
MAX_OPERATIONS = 20_000


class TooLongError(RuntimeError):
    """A function that is too long to be recorded."""


@dataclass(frozen=True)
class Trace:
    """What a function did.

    Attributes
    ----------
    module
        The operations, one placeholder per tensor in the arguments, then one per data tensor; constants are buffers.
        The result is a list of the tensors in the function's result.
    out_spec
        The structure of the function's result.
    read
        Positions among the data tensors of those whose values Python has seen: the trace holds for these values only.
    stale
        Whether a tensor was used after a change in place to another one with the same memory. In-place operations are
        written down as new tensors, so the trace is then wrong, unless it was asked to keep them.
    """

    module: GraphModule
    out_spec: TreeSpec
    read: frozenset[int]
    stale: bool


def trace(
    function: Callable[..., Any],
    arguments: Sequence[Any],
    data: Sequence[torch.Tensor] = (),
    *,
    keep_in_place: bool = False,
) -> Trace:
    """Run ``function(*arguments, *data)`` and write down its operations.

    Values that follow from the data and from constants may be read (``if (y > 0).any()``). Reading a value that
    depends on an argument or on a random number raises NotImplementedError, because control flow may depend on it.

    Parameters
    ----------
    function
        Takes tensors (or dicts and tuples of them) and returns tensors (or dicts and tuples of them).
    arguments, data
        Where to run it.
    keep_in_place
        Write down operations that change a tensor as such.
    """
    recorder = Recorder(keep_in_place=keep_in_place)
    leaves, spec = tree_flatten(tuple(arguments))
    # New tensors, since the same one may be given twice. One that takes gradients stays itself: the function may know
    # it from elsewhere, as Pyro's steps know the parameters in the store.
    fresh_leaves = [leaf if leaf.requires_grad else leaf.detach() for leaf in leaves]
    fresh_data = [tensor.detach() for tensor in data]
    for i, leaf in enumerate(fresh_leaves):
        recorder.placeholder(f"argument_{i}", leaf, bound=False)
    inputs = [recorder.placeholder(f"data_{i}", tensor, bound=True) for i, tensor in enumerate(fresh_data)]
    with recorder, _ReadsOutside(recorder):
        result = function(*tree_unflatten(fresh_leaves, spec), *fresh_data)
    outputs, out_spec = tree_flatten(result)
    recorder.graph.output([recorder.node_of(o) if isinstance(o, torch.Tensor) else o for o in outputs])
    module = GraphModule(recorder.constants, recorder.graph)
    read = frozenset(i for i, node in enumerate(inputs) if node in recorder.read)
    return Trace(module, out_spec, read, recorder.stale)


class Recorder(TorchDispatchMode):
    """Writes every operation that runs under it into a graph."""

    def __init__(self, *, keep_in_place: bool = False) -> None:
        super().__init__()
        self.graph = Graph()
        self.constants: dict[str, torch.Tensor] = {}
        self.read: set[Node] = set()
        self.stale = False
        self._keep_in_place = keep_in_place
        # Tensors are known by their addresses, and kept so that no address is used twice.
        self._known: dict[int, tuple[torch.Tensor, Node]] = {}
        self._same_memory: dict[int, set[int]] = {}
        self._changed: set[int] = set()
        self._count = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # skipping it would import torch's compiler

    def placeholder(self, name: str, tensor: torch.Tensor, *, bound: bool) -> Node:
        """Take a tensor for an argument (to be kept open) or for data (to be bound later)."""
        node = self.graph.placeholder(name)
        node.meta |= {"bound": bound, "sources": frozenset([node])}
        self._know(tensor, node)
        return node

    def node_of(self, tensor: torch.Tensor) -> Node:
        """Give the node that made a tensor; an unknown one becomes a constant."""
        if id(tensor) not in self._known:
            name = f"_constant{len(self.constants)}"
            self.constants[name] = tensor.detach()
            node = self.graph.create_node("get_attr", name)
            node.meta["sources"] = frozenset()
            self._know(tensor, node)
        self.stale |= id(tensor) in self._changed
        return self._known[id(tensor)][1]

    def note_read(self, tensor: torch.Tensor) -> None:
        """Note that Python sees a value, and refuse it where the value is not the same at every run."""
        if id(tensor) not in self._known:
            return
        sources = self._known[id(tensor)][1].meta["sources"]
        if not all(node.meta.get("bound", False) for node in sources):
            raise NotImplementedError("control flow or a shape depends on the value of a latent or a random number")
        self.read |= sources

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func is aten.lift_fresh.default:  # torch.tensor(...): new at every run, which may change it in place
            func = aten.clone.default
        kwargs = kwargs or {}
        if func in _SLICES:
            args = _from_the_front(*args, first=_SLICES[func])
        self._count += 1
        if self._count > MAX_OPERATIONS:
            raise TooLongError(
                f"the model unrolls to more than {MAX_OPERATIONS} operations, e.g. by a Python loop over time: write "
                "it with pyro.distributions.DiscreteHMM, a vectorised plate, or torch.cumsum"
            )
        for tensor in _read_by(func, args, kwargs):
            self.note_read(tensor)
        taken = tree_map(lambda a: self.node_of(a) if isinstance(a, torch.Tensor) else a, (args, kwargs))
        result = func(*args, **kwargs)
        if func in _SAME_TENSOR:
            self._know(result, taken[0][0])
        elif not _is_plain(result):
            written = _written(func) and not self._keep_in_place
            node = self._node(_functional(func) if written else func, *taken, result)
            sources = frozenset().union(*(n.meta["sources"] for n in node.all_input_nodes))
            if func.overloadpacket in _FILLED:
                sources = frozenset()
            node.meta["sources"] = sources | {node} if torch.Tag.nondeterministic_seeded in func.tags else sources
            if written:
                self._rename(args[0], node)
            self._name(result, node)
        return result

    def _node(self, func: Any, args: tuple, kwargs: dict, result: Any) -> Node:
        """Write an operation down; two that come of changes in place, which torch cannot differentiate, as others."""
        if func is aten.zero.default:
            func = aten.zeros_like.default
        if func is aten.copy.default:
            source = self.graph.call_function(aten._to_copy.default, (args[1],), {"dtype": result.dtype})
            source.meta["sources"] = args[1].meta["sources"]
            func, args, kwargs = aten.expand.default, (source, list(result.shape)), {}
        return self.graph.call_function(func, args, kwargs)

    def _know(self, tensor: torch.Tensor, node: Node) -> None:
        self._known[id(tensor)] = tensor, node
        self._same_memory.setdefault(tensor.untyped_storage()._cdata, set()).add(id(tensor))

    def _rename(self, tensor: torch.Tensor, node: Node) -> None:
        """Let a tensor that was changed in place stand for a new node, and others with its memory for nothing."""
        before = self._known[id(tensor)][1]
        for address in self._same_memory[tensor.untyped_storage()._cdata]:
            other, known_as = self._known[address]
            if known_as is before:
                self._known[address] = other, node
            else:
                self._changed.add(address)

    def _name(self, result: Any, node: Node) -> None:
        """Tie a result, or the parts of one, to nodes."""
        if isinstance(result, torch.Tensor):
            node.meta["numbers"] = result.numel()
            self._know(result, node)
        elif isinstance(result, tuple | list):
            for i, part in enumerate(result):
                if isinstance(part, torch.Tensor):
                    item = self.graph.call_function(operator.getitem, (node, i))
                    item.meta["sources"] = node.meta["sources"]
                    self._name(part, item)


def _from_the_front(*args: Any, first: int) -> tuple:
    """Write the ends of a slice as places from 0 to the size: torch cannot batch others (``x[1:-1]`` written into)."""
    dim, start, end, step = (*args[first:], *(0, None, None, 1)[len(args) - first :])
    start, end, _ = slice(start, end).indices(args[0].shape[dim])
    return (*args[:first], dim, start, max(start, end), step)


def _written(func: Any) -> bool:
    """Whether an operation changes its first argument."""
    first = func._schema.arguments[0].alias_info if func._schema.is_mutable else None
    return first is not None and first.is_write


def _functional(func: Any) -> Any:
    """Give the operation that makes a new tensor where this one changes its first argument; itself if there is none."""
    packet = getattr(aten, func.overloadpacket.__name__.removesuffix("_"), None)
    return getattr(packet, func._overloadname, func)


def _is_plain(result: Any) -> bool:
    return isinstance(result, bool | int | float | complex | torch.dtype | torch.device)


def _read_by(func: Any, args: tuple, kwargs: dict) -> list[torch.Tensor]:
    """List the tensors whose values decide the result's shape, or leave for Python."""
    if func is aten.index.Tensor:  # only a mask among the indices decides the shape
        return [t for t in args[1] if t is not None and t.dtype in _MASKS]
    if func is aten.masked_select.default:
        return [args[1]]
    if torch.Tag.data_dependent_output in func.tags or torch.Tag.dynamic_output_shape in func.tags:
        return [t for t in tree_flatten((args, kwargs))[0] if isinstance(t, torch.Tensor)]
    return []


class _ReadsOutside(TorchFunctionMode):
    """Notes reads that go past torch's dispatcher: into numpy and into lists."""

    READS = (torch.Tensor.tolist, torch.Tensor.numpy, torch.Tensor.__array__, torch.Tensor.data_ptr)

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self.recorder = recorder

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func in self.READS:
            self.recorder.note_read(args[0])
        return func(*args, **(kwargs or {}))
