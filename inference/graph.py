"""Recording a function of tensors as an ATen graph, and running it for many inputs at once.

A Pyro model spends most of its time in effect handlers. Recorded once, its arithmetic runs without them, and `vmap`
runs it for a whole batch of parameter values, whatever indexing style the model is written in.
"""

import logging
import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyro
import pyro.ops.einsum.torch_log
import torch
from torch._guards import TracingContext, tracing
from torch._subclasses import FakeTensorMode
from torch.fx import GraphModule, Interpreter, Node
from torch.fx.experimental.proxy_tensor import disable_proxy_modes_tracing, get_proxy_mode, get_proxy_slot, make_fx
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from inference.progress import bar

logger = logging.getLogger(__name__)

# A batched run keeps its widest intermediate under this many numbers (float64: 128 MB), so memory stays bounded.
MAX_BATCH_NUMBERS = 2**24
# Recording stops at this many operations. Each costs about 0.4 ms to record (0.5 ms in the value, 0.36 ms in the
# gradient), so this is 8 s; a loop that unrolls to more then runs hardly faster than Pyro itself (1.4 times at 15 000).
MAX_OPERATIONS = 20_000


class TooLongError(RuntimeError):
    """A function that is too long to be recorded."""

    def __init__(self) -> None:
        super().__init__(
            f"the model unrolls to more than {MAX_OPERATIONS} operations, e.g. by a Python loop over time: write it "
            "with pyro.distributions.DiscreteHMM, a vectorised plate, or torch.cumsum"
        )


def record(function: Callable[..., Any], *example: Any) -> GraphModule:
    """Record ``function`` at ``example`` and fold what does not depend on its arguments.

    Random operations are kept, never folded. Control flow on a tensor's value makes recording fail (any exception of
    torch), as does a function of too many operations (`TooLongError`): the caller falls back to the function
    itself.
    """

    def plain(*arguments: Any) -> Any:
        with _Bounded():
            return function(*arguments)

    # One fake mode for all nodes; torch otherwise makes one, with a stack trace, for each (2/3 of the time).
    one_fake_mode = tracing(TracingContext(FakeTensorMode()))
    with pyro.validation_enabled(False), _functional_log(), one_fake_mode, _TensorIndexing(), _ConstantReads():
        graph = _batchable(make_fx(plain)(*example))
        if _mutates(graph):
            graph = _batchable(make_fx(torch.func.functionalize(plain))(*example))
    if _mutates(graph):  # a folded constant would change at every run
        raise NotImplementedError("an in-place operation on a constant cannot be recorded")
    _poison_failures(graph)
    fold(graph)
    return graph


class _Bounded(TorchDispatchMode):
    """Counts operations, those of a backward pass as well, and stops a recording that grows too long."""

    count = 0

    def __torch_dispatch__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        self.count += 1
        if self.count > MAX_OPERATIONS:
            raise TooLongError
        return func(*args, **(kwargs or {}))


# These random operations cannot be batched by vmap; the ones they are replaced by can, and have the same distribution.
_BATCHABLE_DRAWS: dict[Any, Callable[..., torch.Tensor]] = {
    operation: draw
    for operations, draw in (
        (("normal_", "normal_functional"), lambda x, mean=0.0, std=1.0: mean + std * torch.randn_like(x)),
        (("uniform_", "uniform"), lambda x, low=0.0, high=1.0: low + (high - low) * torch.rand_like(x)),
        (("exponential_", "exponential"), lambda x, rate=1.0: -torch.log1p(-torch.rand_like(x)) / rate),
        (
            ("cauchy_", "cauchy"),
            lambda x, loc=0.0, scale=1.0: loc + scale * torch.tan(torch.pi * (torch.rand_like(x) - 0.5)),
        ),
    )
    for operation in (getattr(torch.ops.aten, name) for name in operations)
}


def _batchable(graph: GraphModule) -> GraphModule:
    for node in graph.graph.nodes:
        draw = _BATCHABLE_DRAWS.get(getattr(node.target, "overloadpacket", None))
        if draw is not None:
            node.target, node.kwargs = draw, {}
        elif _is_mutable(node) and _is_unshared(node.args[0]):
            name = node.target.overloadpacket.__name__.removesuffix("_")
            node.target = getattr(getattr(torch.ops.aten, name), node.target._overloadname)
    return graph


def _poison_failures(graph: GraphModule) -> None:
    """Turn the check of a matrix factorisation, which would raise for a whole batch, into NaN in its result."""
    for check in list(graph.graph.nodes):
        if check.target is not torch.ops.aten._linalg_check_errors.default:
            continue
        info = check.args[0]
        results = [n for n in info.args[0].users if n.target is operator.getitem and n.args[1] == 0]
        for result in results:
            with graph.graph.inserting_before(check):
                poisoned = graph.graph.call_function(_nan_where_failed, (result, info))
            result.replace_all_uses_with(poisoned, delete_user_cb=lambda user, new=poisoned: user is not new)
        graph.graph.erase_node(check)


def _nan_where_failed(result: torch.Tensor, info: torch.Tensor) -> torch.Tensor:
    failed = (info != 0).reshape(info.shape + (1,) * (result.dim() - info.dim()))
    return torch.where(failed, torch.nan, result)


def _is_mutable(node: Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def _is_unshared(node: Node) -> bool:
    """Whether a tensor is new and used once, so that changing it in place cannot be seen elsewhere."""
    fresh = isinstance(node.target, torch._ops.OpOverload) and not any(
        r.alias_info is not None for r in node.target._schema.returns
    )
    return fresh and len(node.users) == 1


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
        return node.target in _BATCHABLE_DRAWS.values()
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


class _ConstantReads(TorchFunctionMode):
    """Lets ``int(group.max()) + 1`` and ``if (y > 0).any()`` read values that follow from the data alone.

    Recording refuses every read of a value, because control flow may depend on it. Where no argument and no random
    number enters, the value is the same at every run, and reading it is harmless.
    """

    READS = (
        torch.Tensor.item,
        torch.Tensor.tolist,
        torch.Tensor.__int__,
        torch.Tensor.__float__,
        torch.Tensor.__bool__,
        torch.Tensor.__index__,
    )

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        mode = get_proxy_mode() if func in self.READS else None
        if mode is not None and _is_constant(args[0], mode.tracer):
            with disable_proxy_modes_tracing():
                return func(*args)
        return func(*args, **(kwargs or {}))


def _is_constant(tensor: torch.Tensor, tracer: Any) -> bool:
    """Whether nothing that was recorded so far makes the tensor depend on an argument or on a random number."""
    slot = get_proxy_slot(tensor, tracer, None, lambda slot: slot)
    waiting, seen = ([] if slot is None else [slot.proxy.node]), set()
    while waiting:
        node = waiting.pop()
        if _is_impure(node):
            return False
        seen.add(node)
        if getattr(node.target, "overloadpacket", None) not in _FILLED:
            waiting += [n for n in node.all_input_nodes if n not in seen]
    return True


# Their result has the shape of an argument, but values of its own.
_FILLED = {getattr(torch.ops.aten, name) for name in ("zeros_like", "ones_like", "full_like", "new_zeros", "new_ones")}


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


def widest(graph: GraphModule, *example: Any) -> int:
    """Count the numbers in the largest tensor that depends on the arguments of one run of ``graph``."""
    counter = _Widest(graph)
    with torch.no_grad():
        counter.run(*example)
    return counter.numbers


class _Widest(Interpreter):
    numbers = 1

    def run_node(self, n: Node) -> Any:
        result = super().run_node(n)
        if n.op == "call_function" and isinstance(result, torch.Tensor):
            self.numbers = max(self.numbers, result.numel())
        return result


def batched(function: Callable[..., Any], *, numbers: int) -> Callable[..., Any]:
    """Map ``function`` over the leading axis of its argument by ``vmap``, in chunks of bounded memory.

    ``numbers`` is the size of the largest intermediate of a single run (see `widest`).
    """
    chunk = max(1, MAX_BATCH_NUMBERS // numbers)
    return torch.func.vmap(function, chunk_size=chunk, randomness="different")


def map_draws(function: Callable[[Any], Any], values: Any, *, random: bool = False) -> dict[str, np.ndarray]:
    """Apply a function of one draw to all draws: recorded and batched where that works, else one by one.

    Parameters
    ----------
    function
        Takes one draw (a tensor or a dict of tensors), returns a dict of tensors.
    values
        The draws: a tensor or a dict of tensors with a leading axis over draws.
    random
        Whether ``function`` draws random numbers. If not, the batched result is checked against ``function`` itself.

    Returns
    -------
    dict
        The results as arrays with a leading axis over draws.
    """
    first, last = (tree_map(lambda t, i=i: t[i], values) for i in (0, -1))
    with torch.no_grad(), pyro.validation_enabled(False):
        try:
            graph = record(function, first)
            result = batched(graph, numbers=widest(graph, first))(values)
            if not random and not _same(function(last), {name: value[-1] for name, value in result.items()}):
                raise ArithmeticError("the recorded function differs from the function itself")
        except Exception as error:  # torch raises many types here; one by one is slow and right
            logger.info("one draw at a time: %s", error)
            result = loop(function, values)
    return {name: value.detach().numpy() for name, value in result.items()}


def _same(expected: dict[str, torch.Tensor], got: dict[str, torch.Tensor]) -> bool:
    return all(
        torch.allclose(got[name].double(), value.double(), rtol=1e-6, atol=1e-9, equal_nan=True)
        for name, value in expected.items()
    )


def loop(function: Callable[[Any], Any], values: Any) -> Any:
    """Apply ``function`` to one draw after another and stack the results."""
    draws = bar(range(len(tree_leaves(values)[0])), desc="one draw at a time")
    results = [function(tree_map(lambda t, i=i: t[i], values)) for i in draws]
    return tree_map(lambda *parts: torch.stack(parts), *results)
