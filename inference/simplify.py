"""Leaving out of a recorded step what does nothing: an operation of small networks costs as much as its call."""

from typing import Any

import torch
from torch.fx import GraphModule, Interpreter, Node

from inference.graph import fold

_aten = torch.ops.aten
# Their values follow from the shape of their argument alone; backward passes start with one.
_FILLS = (_aten.ones_like.default, _aten.zeros_like.default)
_RESHAPES = (_aten.expand.default, _aten.view.default)


def simplify(graph: GraphModule, *inputs: torch.Tensor) -> None:
    """Fold constants that only look like results, and drop transposed transposes and the like (in place).

    Every step leaves the numbers exactly as they are.

    Parameters
    ----------
    graph
        A recorded function of tensors.
    inputs
        Some, of the shapes that it is for.
    """
    seen = _Shapes(graph)
    with torch.no_grad(), torch.random.fork_rng():
        seen.run(*inputs)
    for i, node in enumerate(list(graph.graph.nodes)):
        if node.target in _FILLS and node in seen.fills:
            graph.register_buffer(f"_fill{i}", seen.fills[node])
            with graph.graph.inserting_before(node):
                node.replace_all_uses_with(graph.graph.get_attr(f"_fill{i}"))
        elif (same := _same(node, seen.shapes)) is not None:
            node.replace_all_uses_with(same)
    fold(graph)


class _Shapes(Interpreter):
    """Keeps the shapes of all results, and the values of fills."""

    def __init__(self, graph: GraphModule) -> None:
        super().__init__(graph)
        self.shapes: dict[Node, torch.Size] = {}
        self.fills: dict[Node, torch.Tensor] = {}

    def run_node(self, n: Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, torch.Tensor):
            self.shapes[n] = result.shape
            if n.target in _FILLS:
                self.fills[n] = result
        return result


def _same(node: Node, shapes: dict[Node, torch.Size]) -> Node | None:
    """Give the node whose result this one repeats."""
    if node.op != "call_function" or not node.args or not isinstance(node.args[0], Node):
        return None
    before = node.args[0]
    if node.target in _RESHAPES and node in shapes and shapes[node] == shapes.get(before):
        return before
    if node.target is _aten.t.default and before.target is _aten.t.default:
        return before.args[0]
    if node.target is _aten.pow.Tensor_Scalar and node.args[1] == 1:
        return before
    return None
