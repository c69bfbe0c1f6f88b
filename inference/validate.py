"""Data as the model will receive them: names checked, arrays made tensors, non-finite values refused."""

import difflib
import inspect
from collections.abc import Callable, Mapping
from numbers import Number
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from inference.errors import InputError, one_line


def model_function(model: Any) -> Callable[..., Any]:
    """Give the Pyro function of ``model``: the function itself, or the ``model`` attribute of a ``Model`` value."""
    inner = model if isinstance(model, torch.nn.Module) else getattr(model, "model", model)
    if not callable(inner):
        raise InputError(f"model: expected a Pyro function or a Model value, got {type(model).__name__}.")
    return inner


def missing_argument(model: Any) -> str | None:
    """Name the argument in which NaN stands for a missing value, by the model's ``may_miss`` or ``table``, if any."""
    return getattr(model, "may_miss", None) or getattr(model, "table", None)


def prepare_data(
    function: Callable[..., Any], data: Mapping[str, Any], *, may_miss: str | None = None, label: str = "data"
) -> dict[str, Any]:
    """Check ``data`` against the signature of ``function`` and convert arrays to tensors.

    Parameters
    ----------
    function
        The Pyro model; its arguments are named by the keys of ``data``.
    data
        Tensors, arrays, nested lists, pandas columns, numbers, strings, ``None`` or anything else the model takes.
        Floating values are converted to torch's default dtype; integers and booleans keep theirs. A list or tuple for
        an argument whose default is a tuple is a setting, such as the widths of layers, and becomes a tuple.
    may_miss
        The argument in which NaN stands for a missing value, if the model knows any (`missing_argument`).
    label
        What messages call the data.

    Raises
    ------
    InputError
        ``data`` is no mapping, an argument is missing or unknown, or a value is no number, NaN, infinite or masked.
    """
    if not isinstance(data, Mapping):
        raise InputError(f"data: expected one mapping from argument names to values, got {type(data).__name__}.")
    check_names(function, data)
    settings = tuple_settings(function)
    for name in settings:
        if isinstance(data.get(name), Number):
            raise InputError(f"{label}['{name}']: expected a tuple, such as ({data[name]},), got {data[name]!r}.")
    prepared = {
        name: tuple(value)
        if name in settings and isinstance(value, list | tuple)
        else _as_tensor(f"{label}['{name}']", value)
        for name, value in data.items()
    }
    for name, value in prepared.items():
        table = name == may_miss and isinstance(value, torch.Tensor)
        _check_finite(f"{label}['{name}']", value[~torch.isnan(value)] if table else value)
    return prepared


def check_names(function: Callable[..., Any], data: Mapping[str, Any]) -> None:
    """Raise `InputError` where the names of ``data`` are not those of the arguments of ``function``."""
    target = function.forward if isinstance(function, torch.nn.Module) else function
    try:
        parameters = inspect.signature(target).parameters.values()
    except (TypeError, ValueError) as error:  # built-in functions and types
        raise InputError(f"model: expected a Pyro function with named arguments, got {function!r} ({error}).") from None
    for p in parameters:
        if p.kind is p.POSITIONAL_ONLY:
            raise InputError(f"model: argument '{p.name}' is positional-only; data arrive by keyword, so drop the '/'.")
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    takes = [p.name for p in named]
    listing = ", ".join(takes) or "no arguments"
    if not any(p.kind is p.VAR_KEYWORD for p in parameters):
        for name in data:
            if name not in takes:
                near = difflib.get_close_matches(str(name), takes, n=1)
                hint = f" Did you mean '{near[0]}'?" if near else ""
                raise InputError(f"data: the model takes no argument '{name}'; it takes {listing}.{hint}")
    missing = [p.name for p in named if p.default is p.empty and p.name not in data]
    if missing:
        given = ", ".join(map(str, data)) or "nothing"
        raise InputError(f"data: the model needs {', '.join(missing)}; it takes {listing}, and was given {given}.")


def tuple_settings(function: Callable[..., Any]) -> set[str]:
    """Name the arguments whose default is a tuple."""
    target = function.forward if isinstance(function, torch.nn.Module) else function
    return {p.name for p in inspect.signature(target).parameters.values() if isinstance(p.default, tuple)}


# A list with one of these in it is meant as an array; one of text or other objects is the model's own business.
_NUMERIC = (Number, np.ndarray, np.generic, list, tuple)


def _as_tensor(label: str, value: Any) -> Any:
    """Convert arrays, columns and lists to tensors; leave scalars, strings and other objects as they are.

    Tensors are copied, so that a fit does not change with the caller's data.
    """
    if isinstance(value, DataLoader):
        raise InputError(
            f"{label}: expected arrays or a Dataset, got a DataLoader; give the arrays of its data, and cut batches "
            "with SVI(batch_size=...), which shuffles them by the seed of the fit."
        )
    if isinstance(value, Dataset):
        value = _from_dataset(label, value)
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, range):
        value = list(value)
    if hasattr(value, "to_numpy"):  # pandas and polars columns and frames
        value = value.to_numpy()
    if isinstance(value, list | tuple) and any(isinstance(v, torch.Tensor) for v in value):
        return [_as_tensor(f"{label}[{i}]", v) for i, v in enumerate(value)]  # ragged sequences, say
    if isinstance(value, list | tuple) and any(isinstance(v, _NUMERIC) for v in value):
        value = _stack(label, value)
    if isinstance(value, np.ndarray):
        value = _from_array(label, value)
    if isinstance(value, torch.Tensor):
        if value.is_complex():
            raise InputError(f"{label}: expected real numbers, got {value.dtype}; give real and imaginary parts.")
        dtype = torch.get_default_dtype() if value.is_floating_point() else value.dtype
        return value.detach().to(dtype, copy=True)
    return value


def _from_dataset(label: str, value: Dataset) -> torch.Tensor:
    """Stack the items of a dataset of single arrays, or numbers; they are held in memory."""
    items = [value[i] for i in range(len(value))] if hasattr(value, "__len__") else []
    if items and isinstance(items[0], tuple | list) and len(items[0]) == 1:  # TensorDataset(x)
        items = [item[0] for item in items]
    if not items or not isinstance(items[0], torch.Tensor | np.ndarray | Number):
        got = f"items of {type(items[0]).__name__}" if items else "no items"
        raise InputError(
            f"{label}: expected a Dataset whose items are single arrays, got {got}; give each array to an argument of "
            "its own, data={'x': images, 'y': labels} for instance."
        )
    try:
        return torch.stack([torch.as_tensor(item) for item in items])
    except RuntimeError as error:
        raise InputError(f"{label}: expected items of equal shapes ({one_line(error)}).") from None


def _stack(label: str, value: list | tuple) -> np.ndarray:
    try:
        return np.asarray(value)
    except ValueError as error:
        raise InputError(f"{label}: expected nested lists of equal lengths ({error}).") from None


def _from_array(label: str, value: np.ndarray) -> torch.Tensor:
    if value.dtype.kind not in "biuf":
        raise InputError(
            f"{label}: expected numbers, got an array of {value.dtype}; code categories as 0, 1, ..., "
            "pandas.factorize(column, sort=True) for instance."
        )
    if np.ma.is_masked(value):
        raise InputError(
            f"{label}: expected no gaps, got a masked array with {np.ma.count_masked(value)} of {value.size} values "
            "masked; remove or impute them before the fit."
        )
    # torch knows neither longdouble nor foreign byte orders, and takes uint8 for a mask
    # or indices; small integers (pandas codes are int8) cannot index
    dtype = {"f": np.float64, "u": np.int64, "i": np.int64, "b": np.bool_}[value.dtype.kind]
    return torch.from_numpy(np.array(value, dtype=dtype, subok=False))


def _check_finite(label: str, value: Any) -> None:
    if isinstance(value, list | tuple):
        for i, v in enumerate(value):
            _check_finite(f"{label}[{i}]", v)
    if isinstance(value, float):
        value = torch.tensor(value)
    if not (isinstance(value, torch.Tensor) and value.is_floating_point()):
        return
    bad = ~torch.isfinite(value)
    if bad.any():
        first = tuple(torch.nonzero(bad)[0].tolist())
        kind = "NaN" if torch.isnan(value[first] if first else value) else "infinite"
        where = f", the first ({kind}) at index {first[0] if len(first) == 1 else first}" if first else ""
        raise InputError(
            f"{label}: {int(bad.sum())} of {value.numel()} values are NaN or infinite{where}; "
            "remove or impute them before the fit."
        )
