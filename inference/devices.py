"""Running recorded graphs on a GPU."""

import torch
from torch.fx import GraphModule

from inference.errors import InputError


def check_device(name: str) -> torch.device:
    """Give a device by its name.

    Raises
    ------
    InputError
        No such device, or not on this machine.
    """
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError) as error:
        raise InputError(f"device: expected 'cpu', 'cuda' or 'cuda:N', got {name!r}.") from error
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"device: expected 'cpu', 'cuda' or 'cuda:N', got {name!r}.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(
            f"device: {name!r} is not there; this torch sees {torch.cuda.device_count()} GPUs. Use device='cpu', or "
            "install a torch built for your GPU."
        )
    return device


def moved(graph: GraphModule, device: torch.device) -> GraphModule:
    """Copy a recorded graph to a device: its constants, and the tensors that it makes itself."""
    constants = {
        node.target: getattr(graph, node.target).to(device) for node in graph.graph.nodes if node.op == "get_attr"
    }
    nodes = torch.fx.Graph()
    nodes.output(nodes.graph_copy(graph.graph, {}))
    nodes.set_codegen(graph.graph._codegen)
    for node in nodes.nodes:
        if "device" in node.kwargs:
            node.kwargs = {**node.kwargs, "device": device}
    return GraphModule(constants, nodes)
