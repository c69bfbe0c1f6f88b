"""What a function of the user will compute, told from its code and from the values that it reaches.

Two functions with equal fingerprints run the same operations on the same constants, so that a recording of one serves
the other. What cannot be told raises `Unknown`, and nothing is shared.
"""

import dataclasses
import dis
import functools
import hashlib
import sys
import types
import weakref
from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from pyro.poutine.messenger import Messenger

# Code that does not change while a process runs; its functions, classes and modules are told by identity.
_LIBRARIES = {"inference", "numpy", "pyro", "scipy", "torch"} | set(sys.stdlib_module_names) - {"__main__"}
_NUMBERS = (bool, int, float, complex, str, bytes, type(None), type(...), torch.dtype, torch.device, torch.Size, slice)


class Unknown(Exception):  # noqa: N818 - a question without an answer, not an error of anyone
    """A value that has no fingerprint."""


def fingerprint(value: Any) -> Hashable:
    """Give a hashable value that is equal for equal values and for functions that compute the same.

    Raises
    ------
    Unknown
        For objects that can change unseen: instances of unknown classes, bound methods, modules of networks.
    """
    return _fingerprint(value, {})


def digest(tensor: torch.Tensor) -> Hashable:
    """Give shape, dtype and a hash of the values."""
    data = np.ascontiguousarray(tensor.detach().cpu().numpy())
    return tuple(tensor.shape), str(tensor.dtype), hashlib.sha256(data).hexdigest()


def _fingerprint(value: Any, seen: dict[int, tuple[int, Any]]) -> Hashable:
    if isinstance(value, _NUMBERS):
        return type(value).__name__, repr(value)  # tells 1 from 1.0 and 0.0 from -0.0
    if isinstance(value, torch.Tensor) and type(value) in (torch.Tensor, torch.nn.Parameter):
        return digest(value)
    if isinstance(value, np.ndarray | np.generic) and value.dtype != object:
        return value.shape, str(value.dtype), hashlib.sha256(np.ascontiguousarray(value)).hexdigest()
    if id(value) in seen:  # a function that calls itself, say
        return "again", seen[id(value)][0]
    seen[id(value)] = len(seen), value  # held, so that no other value gets its address
    if type(value) in (tuple, list, dict):
        items = value.items() if isinstance(value, Mapping) else value
        return type(value).__name__, tuple(_fingerprint(v, seen) for v in items)
    if isinstance(value, functools.partial):
        _, _, (function, args, keywords, _) = value.__reduce__()  # Pyro's subclass hides the function that is called
        return "partial", *(_fingerprint(v, seen) for v in (function, args, keywords))
    if isinstance(value, types.FunctionType) and not _is_library(value.__module__):
        return _function(value, seen)
    if isinstance(value, Messenger):  # of config_enumerate, poutine.block, ...
        return weakref.ref(type(value)), _fingerprint(vars(value), seen)
    if isinstance(
        value, types.FunctionType | types.BuiltinFunctionType | types.ModuleType | type | torch._ops.OpOverload
    ):
        return weakref.ref(value)
    if dataclasses.is_dataclass(value):
        return weakref.ref(type(value)), _fingerprint(
            {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}, seen
        )
    raise Unknown(f"{type(value).__name__}")


def _is_library(module: str | None) -> bool:
    return (module or "").partition(".")[0] in _LIBRARIES


def _function(function: types.FunctionType, seen: dict[int, tuple[int, Any]]) -> Hashable:
    cells = [_cell(cell, seen) for cell in function.__closure__ or ()]
    defaults = _fingerprint([function.__defaults__, function.__kwdefaults__], seen)
    reached = tuple(_reached(path, function.__globals__, seen) for path in _paths(function.__code__))
    return function.__code__, defaults, tuple(cells), reached


def _cell(cell: Any, seen: dict[int, tuple[int, Any]]) -> Hashable:
    try:
        return _fingerprint(cell.cell_contents, seen)
    except ValueError:
        return "empty"


def _reached(path: tuple[str, ...], names: Mapping[str, Any], seen: dict[int, tuple[int, Any]]) -> Hashable:
    """Tell what a dotted name leads to, following modules of the user only."""
    if path[0] not in names:  # a builtin, or not defined
        return path
    value = names[path[0]]
    for name in path[1:]:
        if not isinstance(value, types.ModuleType) or _is_library(value.__name__) or not hasattr(value, name):
            break
        value = getattr(value, name)
    return path, _fingerprint(value, seen)


@functools.lru_cache(maxsize=256)  # models and their helpers; a code object is small
def _paths(code: types.CodeType) -> tuple[tuple[str, ...], ...]:
    """List the dotted global names that some code, and the functions defined in it, load."""
    paths: dict[tuple[str, ...], None] = {}
    path: tuple[str, ...] = ()
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("LOAD_ATTR", "LOAD_METHOD") and path:
            path += (instruction.argval,)
            continue
        if path:
            paths[path] = None
        path = (instruction.argval,) if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME") else ()
    inner = [c for c in code.co_consts if isinstance(c, types.CodeType)]
    return (*paths, *(p for c in inner for p in _paths(c)))
