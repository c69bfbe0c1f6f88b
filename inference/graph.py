"""Recording a function of tensors as an ATen graph, and running it for many inputs at once.

A Pyro model spends most of its time in effect handlers. Recorded once, its arithmetic runs without them, and `vmap`
runs it for a whole batch of parameter values, whatever indexing style the model is written in.
"""

import logging
import operator
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pyro
import pyro.ops.einsum.torch_log
import torch
from torch.fx import Graph, GraphModule, Node
from torch.fx.graph import _PyTreeCodeGen, _PyTreeInfo
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map, tree_structure, tree_unflatten

from inference.markov import markov_operators
from inference.progress import bar
from inference.random_operations import BATCHABLE_DRAWS, batchable
from inference.recorder import Trace, trace

logger = logging.getLogger(__name__)

# A batched run keeps its widest intermediate under this many numbers (float64: 8 MB): memory stays bounded, and what
# stays in the cache is also faster.
MAX_BATCH_NUMBERS = 2**20


def record(function: Callable[..., Any], *example: Any) -> GraphModule:
    """Record ``function`` at ``example`` and fold what does not depend on its arguments.

    Random operations are kept, never folded. Control flow on a tensor's value makes recording fail (any exception of
    torch), as does a function of too many operations (`TooLongError`): the caller falls back to the function
    itself.
    """
    return Recording(function, example).bind()


class Recording:
    """A recorded function of arguments and data, which `bind` makes a graph of the arguments alone.

    Parameters
    ----------
    function
        Called as ``function(*arguments, *data)``.
    arguments, data
        Where to record it. The recording holds for other data of the same shapes and dtypes.
    gradient
        Record the gradient with respect to the first argument, and the value, of a function of one number.

    Attributes
    ----------
    read
        Positions of the data tensors whose values were read while recording (`int(group.max())`): the recording
        holds for these values only.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        arguments: Sequence[Any],
        data: Sequence[torch.Tensor] = (),
        *,
        gradient: bool = False,
    ) -> None:
        with pyro.validation_enabled(False), _functional_log(), markov_operators(), _TensorIndexing():
            traces = [trace(_gradient_of(function) if gradient else function, arguments, data)]
            out_spec, constants = traces[0].out_spec, []
            if traces[0].stale or _mutates(batchable(traces[0].module)):
                *traces, constants = _functionalized(function, arguments, data)
                if gradient:
                    value = traces[-1].module
                    traces.append(trace(_gradient_of(lambda *a: value(*a)[0]), arguments, [*data, *constants]))
        last = traces[-1]
        if last.stale or _mutates(batchable(last.module)):  # a folded constant would change at every run
            raise NotImplementedError("an in-place operation on a constant cannot be recorded")
        self.read = frozenset(i for t in traces for i in t.read if i < len(data))
        _poison_failures(last.module)
        self._split(last.module, constants)
        if all(isinstance(a, torch.Tensor) for a in arguments):
            (output,) = (node for node in self._body.nodes if node.op == "output")
            output.args = (tree_unflatten(output.args[0], out_spec),)
        else:
            names = [f"argument_{i}" for i in range(len(arguments))]
            self._body.set_codegen(_PyTreeCodeGen(_PyTreeInfo(names, tree_structure(tuple(arguments)), out_spec)))

    def _split(self, module: GraphModule, constants: list[torch.Tensor]) -> None:
        """Part the nodes that depend on data and constants only from the others, the body."""
        graph = module.graph
        graph.eliminate_dead_code(is_impure_node=_is_impure)
        known: dict[Node, None] = {}
        for node in graph.nodes:
            data = node.op == "placeholder" and node.meta["bound"]
            computed = node.op == "call_function" and all(n in known for n in node.all_input_nodes)
            if node.op == "get_attr" or data or (computed and not _is_impure(node)):
                known[node] = None
        bound = [node for node in known if node.op == "placeholder"]
        self._data = bound[: len(bound) - len(constants)]
        fixed = dict(zip(bound[len(self._data) :], constants, strict=True))
        fixed |= {node: getattr(module, node.target) for node in known if node.op == "get_attr"}
        self._prelude = _run([node for node in known if node.op == "call_function"], fixed)
        self._constants = {f"_folded_{n.name}": n for n in known if any(user not in known for user in n.users)}
        self._ready = {name: _shrunk(fixed[node]) for name, node in self._constants.items() if node in fixed}
        wanted = {n for node in self._prelude for n in node.all_input_nodes}
        self._own = {node: value for node, value in fixed.items() if node in wanted}
        self._body = Graph()
        copies = {n: self._body.node_copy(n) for n in graph.nodes if n.op == "placeholder" and n not in known}
        copies |= {node: self._body.get_attr(name) for name, node in self._constants.items()}
        for node in graph.nodes:
            if node not in known and node not in copies:
                copies[node] = self._body.node_copy(node, copies.__getitem__)

    @property
    def num_constants(self) -> int:
        """Count the numbers that the recording holds of its own."""
        held = [t for t in (*self._own.values(), *self._ready.values()) if isinstance(t, torch.Tensor)]
        return sum(t.untyped_storage().nbytes() // t.element_size() for t in held)

    def bind(self, *data: torch.Tensor) -> GraphModule:
        """Give the graph of the arguments alone, its constants computed from these data (and sharing their storage).

        Its nodes, their names and order are the same for all data.
        """
        known = dict(zip(self._data, data, strict=True)) | self._own
        _run(self._prelude, known)
        constants = {name: known[node] for name, node in self._constants.items() if name not in self._ready}
        return GraphModule(self._ready | constants, _copied(self._body))


def _run(nodes: Sequence[Node], known: dict[Node, Any]) -> list[Node]:
    """Add the values of nodes to those that are known, and give the nodes that have others to wait for."""
    waiting = []
    with torch.no_grad():
        for node in nodes:
            if all(n in known for n in node.all_input_nodes):
                args, kwargs = torch.fx.map_arg((node.args, node.kwargs), known.__getitem__)
                known[node] = node.target(*args, **kwargs)
            else:
                waiting.append(node)
    return waiting


def _shrunk(constant: torch.Tensor) -> torch.Tensor:
    """Give a constant of equal numbers as a view of one number: a scale of one, repeated for each row of the data."""
    if constant.numel() < 2 or not constant.is_floating_point():
        return constant
    first = constant.flatten()[0]
    if not torch.equal(constant, first.expand(constant.shape)) or (constant.signbit() != first.signbit()).any():
        return constant
    return first.clone().expand(constant.shape)


def _copied(graph: Graph) -> Graph:
    """Copy a graph, so that a change to it does not reach the recording."""
    other = Graph()
    other.output(other.graph_copy(graph, {}))
    other.set_codegen(graph._codegen)
    return other


def _gradient_of(function: Callable[..., torch.Tensor]) -> Callable[..., tuple[torch.Tensor, torch.Tensor]]:
    def gradient_and_value(point: torch.Tensor, *others: Any) -> tuple[torch.Tensor, torch.Tensor]:
        leaf = point.detach().requires_grad_()
        with torch.enable_grad():
            value = function(leaf, *others)
            (gradient,) = torch.autograd.grad(value, leaf)
        return gradient, value.detach()

    return gradient_and_value


def _functionalized(
    function: Callable[..., Any], arguments: Sequence[Any], data: Sequence[torch.Tensor]
) -> tuple[Trace, Trace, list[torch.Tensor]]:
    """Trace a function that changes parts of tensors in place: as it is, and with torch sorting out the parts.

    Torch is given the operations rather than the function, since that may read its parameters from elsewhere (see
    `svi_graph`), and the constants as further data, since it could not follow changes to them otherwise.
    """
    first = trace(function, arguments, data, keep_in_place=True)
    constants = []
    *_, place = (node for node in first.module.graph.nodes if node.op == "placeholder")
    for node in [n for n in first.module.graph.nodes if n.op == "get_attr"]:
        constants.append(getattr(first.module, node.target))
        with first.module.graph.inserting_after(place):
            place = first.module.graph.placeholder(node.target)
        node.replace_all_uses_with(place)
        first.module.graph.erase_node(node)
    first.module.recompile()
    last = trace(torch.func.functionalize(first.module), tree_leaves(tuple(arguments)), [*data, *constants])
    return first, last, constants


def _poison_failures(graph: GraphModule) -> None:
    """Turn the check of a matrix factorisation, which would raise for a whole batch, into NaN in its result."""
    for check in list(graph.graph.nodes):
        if check.target is not torch.ops.aten._linalg_check_errors.default:
            continue
        info = check.args[0]
        results = [n for n in info.args[0].users if n.target is operator.getitem and n.args[1] == 0]
        for result in results:
            # At once: a recorded backward pass keeps the result before it is checked.
            with graph.graph.inserting_after(max(result, info)):
                poisoned = graph.graph.call_function(nan_where_failed, (result, info))
            result.replace_all_uses_with(poisoned, delete_user_cb=lambda user, new=poisoned: user is not new)
        graph.graph.erase_node(check)


def nan_where_failed(result: torch.Tensor, info: torch.Tensor) -> torch.Tensor:
    """Give the result of a factorisation, NaN where it failed."""
    failed = (info != 0).reshape(info.shape + (1,) * (result.dim() - info.dim()))
    return torch.where(failed, torch.nan, result)


def _is_mutable(node: Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def _mutates(graph: GraphModule) -> bool:
    return any(_is_mutable(node) for node in graph.graph.nodes)


def fold(graph: GraphModule) -> None:
    """Evaluate every node that depends on no argument once, and keep its value as a constant (in place)."""
    known: dict[Node, Any] = {}
    for node in list(graph.graph.nodes):
        if node.op == "get_attr":
            known[node] = getattr(graph, node.target)
        if node.op != "call_function" or not all(n in known for n in node.all_input_nodes) or _is_impure(node):
            continue
        args, kwargs = (torch.fx.map_arg(a, lambda n: known[n]) for a in (node.args, node.kwargs))
        known[node] = node.target(*args, **kwargs)
        if isinstance(known[node], torch.Tensor):
            name = f"_folded_{node.name}"
            graph.register_buffer(name, known[node])
            with graph.graph.inserting_before(node):
                constant = graph.graph.get_attr(name)
            known[constant] = known[node]
            node.replace_all_uses_with(constant)
    graph.graph.eliminate_dead_code(is_impure_node=_is_impure)
    graph.delete_all_unused_submodules()
    graph.recompile()


def random_nodes(graph: GraphModule) -> list[Node]:
    """List the nodes that draw random numbers, in the order in which they draw."""
    return [node for node in graph.graph.nodes if node.op == "call_function" and _is_impure(node)]


def _is_impure(node: Node) -> bool:
    """Whether a node must stay although it depends on no argument: inputs, outputs, and random numbers."""
    if node.op in ("placeholder", "output"):
        return True
    if not isinstance(node.target, torch._ops.OpOverload):
        return node.target in BATCHABLE_DRAWS.values()
    return torch.Tag.nondeterministic_seeded in node.target.tags


class _TensorIndexing(TorchFunctionMode):
    """Keeps ``table[state]`` with a 0-d integer tensor a tensor operation; torch would read the state's value."""

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func is torch.Tensor.__getitem__:
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            if any(_is_scalar_index(i) for i in index) and all(_is_scalar_index(i) or _is_full_slice(i) for i in index):
                return torch.ops.aten.index.Tensor(args[0], [i if torch.is_tensor(i) else None for i in index])
        return func(*args, **(kwargs or {}))


def _is_full_slice(index: Any) -> bool:
    return isinstance(index, slice) and index == slice(None)


def _is_scalar_index(index: Any) -> bool:
    return torch.is_tensor(index) and index.dim() == 0 and index.dtype in (torch.int64, torch.int32)


@contextmanager
def _functional_log() -> Iterator[None]:
    """Let Pyro's enumeration use a logarithm that recording can differentiate.

    Pyro's own is an old-style ``autograd.Function``, whose backward a forward recording loses. This one has the same
    value, and the same finite gradient (zero) where a probability underflows.
    """
    module = pyro.ops.einsum.torch_log
    original, module.safe_log = module.safe_log, _safe_log
    try:
        yield
    finally:
        module.safe_log = original


def _safe_log(x: torch.Tensor) -> torch.Tensor:
    positive = x > 0
    return torch.where(positive, torch.where(positive, x, 1.0).log(), -torch.inf)


def second(graph: GraphModule) -> GraphModule:
    """Give the graph of the second of two results."""
    nodes = _copied(graph.graph)
    (output,) = (node for node in nodes.nodes if node.op == "output")
    output.args = (output.args[0][1],)
    nodes.eliminate_dead_code(is_impure_node=_is_impure)
    return GraphModule(graph, nodes)


def widest(graph: GraphModule) -> int:
    """Count the numbers in the largest tensor that depends on the arguments of a recorded graph."""
    return max((node.meta.get("numbers", 1) for node in graph.graph.nodes), default=1)


# What torch takes for an operation, and for a number in it, on one core.
_OPERATION_SECONDS, _NUMBER_SECONDS = 2.5e-6, 1e-9


def python_seconds(graph: GraphModule) -> float:
    """Estimate how long one run of a graph takes. Counted rather than timed, so that every run decides alike."""
    sizes = [node.meta.get("numbers", 1) for node in graph.graph.nodes if node.op == "call_function"]
    return len(sizes) * _OPERATION_SECONDS + sum(sizes) * _NUMBER_SECONDS


# The same for compiled code: 1 microsecond at the least.
_NATIVE_SECONDS, _NATIVE_NUMBER_SECONDS = 1e-6, 2e-10


def native_seconds(graph: GraphModule) -> float:
    """Estimate how long one run of a graph takes that is compiled; counted as well."""
    sizes = [node.meta.get("numbers", 1) for node in graph.graph.nodes if node.op == "call_function"]
    return _NATIVE_SECONDS + sum(sizes) * _NATIVE_NUMBER_SECONDS


def batched(function: Callable[..., Any], *, numbers: int) -> Callable[..., Any]:
    """Map ``function`` over the leading axis of its argument by ``vmap``, in chunks of bounded memory.

    ``numbers`` is the size of the largest intermediate of a single run (see `widest`).
    """
    chunk = max(1, MAX_BATCH_NUMBERS // numbers)
    return torch.func.vmap(function, chunk_size=chunk, randomness="different")


def loop(function: Callable[[Any], Any], values: Any) -> Any:
    """Apply ``function`` to one draw after another and stack the results."""
    draws = bar(range(len(tree_leaves(values)[0])), desc="one draw at a time")
    results = [function(tree_map(lambda t, i=i: t[i], values)) for i in draws]
    return tree_map(lambda *parts: torch.stack(parts), *results)
