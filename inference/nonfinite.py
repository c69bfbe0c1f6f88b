"""Naming what is not finite in a step of training: a parameter, the layer of a network, a site, or a gradient."""

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer import ELBO
from torch.overrides import TorchFunctionMode

from inference.svi_loop import first_nonfinite


class _FirstLayer(TorchFunctionMode):
    """Remembers the parameter of the first operation with finite arguments whose result is not finite."""

    def __init__(self) -> None:
        super().__init__()
        self.names: dict[int, str] = {}
        self.found = ""

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if self.found or not (isinstance(result, torch.Tensor) and result.is_floating_point()):
            return result
        used = [self.names[id(a)] for a in (*args, *(kwargs or {}).values()) if id(a) in self.names]
        if used and not torch.isfinite(result).all():
            self.found = used[0]
        return result


def culprit(loss: ELBO, model: Callable, guide: Callable, data: Mapping[str, Any]) -> str:
    """Say in words what is not finite first when a step is run again on the data where it failed."""
    named = list(pyro.get_param_store().named_parameters())
    for name, p in named:
        if not torch.isfinite(p).all():
            return f"parameter '{_readable(name)}' has values that are not finite"
    watch = _FirstLayer()
    for name, p in named:
        watch.names |= {id(p): name, id(pyro.param(name)): name}
    with torch.no_grad(), pyro.validation_enabled(False), watch, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the very values that are looked for
        trace = poutine.trace(guide).get_trace(**data)
        poutine.replay(model, trace=trace)(**data)
    if watch.found:
        return f"the output of the layer with parameter '{_readable(watch.found)}' is not finite"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        name, value = first_nonfinite(loss, model, guide, data)
    kind = "parameter" if name in dict(named) else "site"
    return f"{kind} '{_readable(name)}', value {value}"


def _readable(name: str) -> str:
    """Write the name of a parameter of a network as torch does."""
    return name.replace("$$$", ".")
