"""What a command asks for: a model and its data, found and checked before the first fit starts."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, is_dataclass, replace
from pathlib import Path
from typing import Any

from inference.data_files import FileData, parse_setting, read_data
from inference.errors import InputError
from inference.fit import Engine, Fit, fit
from inference.model_source import ModelSource, find_model


@dataclass(frozen=True)
class Request:
    """A model, its data, and the labels of their codes. Made by `read_request`.

    Attributes
    ----------
    source
        The model and where it is written.
    data
        Keyword arguments for it.
    labels
        Dim -> labels from a data file: the texts of coded columns, the names of the columns of a table.
    remarks
        What the user should know about how the data were read.
    bundled
        Whether the data are those that stand beside the model.
    """

    source: ModelSource
    data: dict[str, Any]
    labels: dict[str, list[str]] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()
    bundled: bool = False

    def fit(self, engine: Engine, *, seed: int, progress: bool | None) -> Fit:
        """Fit the model with one engine; what goes wrong inside the model is told in one line."""
        model = self.source.model
        if self.labels:
            model = self._labelled(model)
        with self.source.blamed():
            return fit(model, self.data, engine, seed=seed, progress=progress)

    def _labelled(self, model: Any) -> Any:
        """Give a model labels from a file, beside its own."""
        if not hasattr(model, "coords"):
            return _Labelled(model, self.labels)
        if not is_dataclass(model):
            return model
        own = model.coords
        return replace(model, coords=lambda data: {**(own(data) if own else {}), **self.labels})


@dataclass(frozen=True)
class _Labelled:
    """A function with labels for its dims: the texts of a column label the plate that is named after it."""

    model: Callable[..., Any]
    labels: Mapping[str, list[str]]

    @property
    def name(self) -> str:
        return getattr(self.model, "__name__", type(self.model).__name__)

    def coords(self, data: Mapping[str, Any]) -> dict[str, list[str]]:
        return dict(self.labels)


def read_request(model: str, data: Path | None, settings: Sequence[str], *, known: Mapping[str, Any]) -> Request:
    """Find the model and read its data: from a file, else those that stand beside it; ``settings`` override.

    Raises
    ------
    InputError
        The model or the file cannot be found or read, or there are no data.
    """
    source = find_model(model, known=known)
    given = dict(parse_setting(text, words=source.words(), several=source.several()) for text in settings)
    takes = source.takes()
    if data is not None:
        content = read_data(data, takes=takes, given=given, table=getattr(source.model, "table", None))
    elif source.default_data is not None:
        with source.blamed():
            values = source.default_data()
        if not isinstance(values, Mapping):
            raise InputError(f"model '{model}': its data() must return one mapping, got {type(values).__name__}")
        content = FileData(dict(values))
    else:
        missing = [name for name, needed in takes.items() if needed and name not in given]
        if missing:
            raise InputError(f"--data is needed: the model takes {', '.join(takes)}; {', '.join(missing)} is missing")
        content = FileData({})
    bundled = data is None and source.default_data is not None
    return Request(source, content.values | given, content.labels, content.remarks, bundled)
