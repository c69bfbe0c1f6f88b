"""Finding the model that a command names: one of `ppl_models`, or a function in a user's file."""

import difflib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from inference.errors import InputError
from inference.validate import model_function, tuple_settings

# Pyro appends a table of every site's shapes to its messages; the first part says what is wrong.
PYRO_SHAPE_TABLE = "Trace Shapes:"


@dataclass(frozen=True)
class ModelSource:
    """A model, where it is written, and the data that stand beside it.

    Attributes
    ----------
    label
        As the user named it.
    model
        What `inference.fit` takes: a Pyro function or a `ppl_models.Model`.
    default_data
        Gives data for a run without ``--data``, if the author wrote any.
    """

    label: str
    model: Any
    default_data: Callable[[], Mapping[str, Any]] | None = None

    def takes(self) -> dict[str, bool]:
        """Give the model's arguments: name -> whether it must be given. ``**kwargs`` appears as ``**``."""
        function = model_function(self.model)
        parameters = inspect.signature(getattr(function, "forward", function)).parameters.values()
        named = {
            p.name: p.default is p.empty for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
        }
        open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters)
        return named | ({"**": False} if open_ended else {})

    def words(self) -> set[str]:
        """Give the arguments that take a word: those whose default is one."""
        function = model_function(self.model)
        parameters = inspect.signature(getattr(function, "forward", function)).parameters.values()
        return {p.name for p in parameters if isinstance(p.default, str)}

    def several(self) -> set[str]:
        """Give the arguments that take several values: those whose default is a tuple."""
        return tuple_settings(model_function(self.model))

    def place(self, error: BaseException | None) -> str | None:
        """Say where in the model's own file an exception arose, as ``file.py, line 12``, if it did."""
        function = model_function(self.model)
        code = getattr(inspect.unwrap(getattr(function, "forward", function)), "__code__", None)
        while error is not None and code is not None:
            frames = traceback.extract_tb(error.__traceback__)
            lines = [frame.lineno for frame in frames if frame.filename == code.co_filename]
            if lines:
                return f"{Path(code.co_filename).name}, line {lines[-1]}"
            error = error.__cause__ or error.__context__
        return None

    @contextmanager
    def blamed(self) -> Iterator[None]:
        """Turn an exception that comes out of the model into one line that names file and line."""
        try:
            yield
        except InputError as error:
            place = self.place(error.__cause__)
            if place is None:
                raise
            raise InputError(f"{error}{_hint(error.__cause__)} ({place})") from error
        except Exception as error:
            place = self.place(error)
            if place is None:
                raise
            raise InputError(f"{place}: {type(error).__name__}: {_message(error)}") from error


def find_model(spec: str, *, known: Mapping[str, Any]) -> ModelSource:
    """Find a model by its name in ``known`` (name -> `ppl_models.Model`), or as ``path/to/file.py:function``.

    Raises
    ------
    InputError
        No such name, file or function, or the file cannot be run; the message lists what there is.
    """
    path, colon, name = spec.rpartition(":")
    if not colon or spec.endswith(".py"):
        path, name = spec, ""
    if path.endswith(".py"):
        return _from_file(spec, Path(path), name)
    if spec not in known:
        near = _near(spec, known)
        raise InputError(
            f"model '{spec}': not known.{near} Known are {', '.join(known)}, or give path/to/file.py:function"
        )
    model = known[spec]
    return ModelSource(spec, model, default_data=model.data)


def _from_file(spec: str, path: Path, name: str) -> ModelSource:
    module = _run_file(path)
    functions = [
        key
        for key, value in vars(module).items()
        if inspect.isfunction(value) and value.__module__ == module.__name__ and not key.startswith("_")
    ]
    listing = f"it has {', '.join(functions)}" if functions else "it has no functions"
    if not name:
        raise InputError(f"model '{spec}': say which function, as {path}:function; {listing}")
    value = getattr(module, name, None)
    if value is None:
        raise InputError(f"model '{spec}': {path} has no '{name}'; {listing}.{_near(name, functions)}")
    if isinstance(value, type) or not (callable(value) or callable(getattr(value, "model", None))):
        raise InputError(f"model '{spec}': expected a Pyro function, got {name} = {value!r}")
    beside = (getattr(value, "data", None), getattr(module, f"{name}_data", None), getattr(module, "data", None))
    return ModelSource(spec, value, default_data=next((data for data in beside if callable(data)), None))


def _run_file(path: Path) -> ModuleType:
    """Run a user's file as a module of its own, with its folder importable, as ``python file.py`` would."""
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    name = f"ppl_user_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look their module up by name
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise InputError(f"{error.filename}, line {error.lineno}: syntax error: {error.msg}") from error
    except Exception as error:
        lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
        where = f"{path}, line {lines[-1]}" if lines else str(path)
        raise InputError(f"{where}: {type(error).__name__}: {_message(error)}") from error
    return module


def _near(name: str, known: Mapping[str, Any] | list[str]) -> str:
    match = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean '{match[0]}'?" if match else ""


def _message(error: Exception) -> str:
    return " ".join(str(error).split(PYRO_SHAPE_TABLE)[0].split()) + _hint(error)


def _hint(error: BaseException | None) -> str:
    if isinstance(error, IndexError) and "must be long" in str(error):
        return " Numbers from a CSV file are float64: index with group.long()."
    return ""
