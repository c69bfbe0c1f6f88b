"""Reading the data of a command: JSON, NPZ or CSV files and ``--set key=value``."""

import csv
import difflib
import json
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from inference.errors import InputError, one_line

NUM_LABELS_SHOWN = 6  # as many as fit on a line


@dataclass(frozen=True)
class FileData:
    """What a data file holds.

    Attributes
    ----------
    values
        Keyword arguments for the model: numbers and arrays; text is replaced by codes 0, 1, ... (int64).
    labels
        Variable -> the text of its codes, in order.
    remarks
        What the user should know: columns left out, the meaning of codes.
    """

    values: dict[str, Any]
    labels: dict[str, list[str]] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()


def read_data(
    path: Path, *, takes: Mapping[str, bool], given: Iterable[str] = (), table: str | None = None
) -> FileData:
    """Read a data file by its suffix.

    JSON: one object of numbers and lists. NPZ: its arrays. CSV with a header: numeric columns become float64 arrays,
    text columns integer codes in alphabetical order; columns that the model does not take are left out.

    Parameters
    ----------
    path
        The file.
    takes
        The model's arguments, as `ModelSource.takes` gives them.
    given
        Arguments that come from elsewhere (``--set``).
    table
        The argument that is a table (`ppl_models.Model.table`): where a CSV file has no column of this name, the
        numeric columns that are no other argument become its columns, and their empty cells NaN.

    Raises
    ------
    InputError
        No such file, another suffix, not the format that the suffix says, or cells of a used column missing.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    readers = {".json": _read_json, ".npz": _read_npz, ".csv": _read_csv}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise InputError(f"{path}: data files are {', '.join(readers)}; got '{path.suffix or 'no suffix'}'")
    columns = reader(path)
    if reader is not _read_csv:
        return _code_text(columns)
    columns, free, shape_remarks = _with_table(columns, table, takes)
    used = {name: column for name, column in columns.items() if name in takes or "**" in takes}
    _require_columns(path, columns, {name for name, needed in takes.items() if needed} - set(given))
    left_out = [name for name in columns if name not in used]
    remarks = (f"{path}: left out {', '.join(left_out)}; the model does not take them",) if left_out else ()
    coded = _code_text(
        {n: column if isinstance(column, np.ndarray) else _column(path, n, column) for n, column in used.items()}
    )
    columns_of = {f"{table}_dim_1": free} if free else {}
    return FileData(
        coded.values, coded.labels | columns_of, (*(f"{path}: {r}" for r in shape_remarks), *remarks, *coded.remarks)
    )


Setting = int | float | bool | str


def parse_setting(
    text: str, *, words: Iterable[str] = (), several: Iterable[str] = ()
) -> tuple[str, Setting | tuple[Setting, ...]]:
    """Read ``key=value`` with a whole number, a number, ``true``, ``false``.

    For the keys in ``words`` the value may be a word; for those in ``several`` it is a tuple, ``hidden=200,100``.
    """
    key, equals, value = (part.strip() for part in text.partition("="))
    if not equals or not key.isidentifier():
        raise InputError(f"--set '{text}': expected key=value, for example K=3")
    if key in several:
        return key, tuple(parse_setting(f"{key}={part}")[1] for part in value.split(",") if part.strip())
    if value.lower() in ("true", "false"):
        return key, value.lower() == "true"
    for kind in (int, float):
        try:
            return key, kind(value)
        except ValueError:
            continue
    if key in words:
        return key, value
    raise InputError(f"--set '{text}': expected a number, true or false after '=', got '{value}'")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(content, dict):
        raise InputError(f'{path}: expected one JSON object {{"name": values, ...}}, got a {type(content).__name__}')
    return content


def _read_npz(path: Path) -> dict[str, Any]:
    if not zipfile.is_zipfile(path):
        raise InputError(f"{path}: not an NPZ file, as numpy.savez writes it")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: array if array.ndim else array.item() for name, array in arrays.items()}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:  # Python objects inside, or a broken file
        raise InputError(f"{path}: expected plain arrays in the NPZ file ({error})") from error


def _read_csv(path: Path) -> dict[str, pd.Series]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)  # surplus fields, which it would drop
            frame = pd.read_csv(path, low_memory=False, skipinitialspace=True, index_col=False)
    except pd.errors.ParserWarning as error:
        raise InputError(f"{path}: the rows have more fields than the header has names") from error
    except (pd.errors.EmptyDataError, pd.errors.ParserError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a CSV file with a header ({one_line(error)})") from error
    if len(frame.columns) == 1 and set(";\t") & set(frame.columns[0]):
        raise InputError(f"{path}: fields must be separated by commas; the header is '{frame.columns[0]}'")
    if frame.empty:
        raise InputError(f"{path}: a header but no rows")
    return {str(name).strip(): frame[name] for name in frame.columns}


def _with_table(
    columns: Mapping[str, pd.Series], table: str | None, takes: Mapping[str, bool]
) -> tuple[dict[str, Any], list[str], list[str]]:
    """Join the numeric columns that are no argument to the one that is a table; give their names, and remarks."""
    free = [name for name, column in columns.items() if name not in takes and pd.api.types.is_numeric_dtype(column)]
    if table is None or table in columns or not free:
        return dict(columns), [], []
    joined = np.column_stack([columns[name].to_numpy(dtype=np.float64) for name in free])
    missing = int(np.isnan(joined).sum())
    remark = f"the columns of {table} are {', '.join(free)}" + (
        f"; {missing} of its values are missing" if missing else ""
    )
    return {**{n: c for n, c in columns.items() if n not in free}, table: joined}, free, [remark]


def _require_columns(path: Path, columns: Mapping[str, Any], needed: set[str]) -> None:
    for name in sorted(needed - set(columns)):
        near = difflib.get_close_matches(name, list(columns), n=1)
        hint = f"; rename '{near[0]}'?" if near else f"; or give a number with --set {name}=..."
        raise InputError(f"{path}: the model needs '{name}', the file has {', '.join(columns)}{hint}")


def _column(path: Path, name: str, column: pd.Series) -> np.ndarray:
    """Make a column an array: float64, or text; refuse missing cells, infinities, and numbers mixed with text."""
    numeric = pd.api.types.is_numeric_dtype(column)
    values = column.to_numpy(dtype=np.float64 if numeric else object)
    missing = ~np.isfinite(values) if numeric else column.isna().to_numpy()
    if missing.any():
        what = "missing or infinite" if numeric else "missing"
        raise InputError(
            f"{path}: column '{name}' has {missing.sum()} of {len(values)} values {what}, "
            f"the first in line {_line(path, int(missing.argmax()))}; remove these rows or fill them in"
        )
    if numeric:
        return values
    # A slip of the pen ("1.2.3") turns a column of numbers into text; coded, it would be fitted as nonsense.
    stray = pd.to_numeric(column, errors="coerce").isna().to_numpy()
    if not stray.all():
        row = int(stray.argmax())
        raise InputError(
            f"{path}: column '{name}' mixes numbers and text, the first text in line {_line(path, row)} "
            f"('{values[row]}'); correct it, or begin every label with a letter"
        )
    return values.astype(str)


def _line(path: Path, row: int) -> int:
    """Give the line of the file on which a data row ends; the header and blank lines are no rows."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.reader(file)
        lines = (reader.line_num for fields in reader if fields)
        return next(islice(lines, row + 1, None))


def _code_text(values: Mapping[str, Any]) -> FileData:
    """Replace text by the integers 0, 1, ... in alphabetical order."""
    coded, labels, remarks = dict(values), {}, []
    for name, value in values.items():
        if isinstance(value, list) and value and all(isinstance(v, str) for v in value):
            value = np.array(value)
        if not (isinstance(value, np.ndarray) and value.dtype.kind == "U"):
            continue
        names, codes = np.unique(value, return_inverse=True)
        coded[name], labels[name] = codes.reshape(value.shape).astype(np.int64), names.tolist()
        shown = ", ".join(f"{label} = {code}" for code, label in enumerate(labels[name][:NUM_LABELS_SHOWN]))
        more = f", ... ({len(names)} in all)" if len(names) > NUM_LABELS_SHOWN else ""
        remarks.append(f"'{name}' is text; its codes are {shown}{more}")
    return FileData(coded, labels, tuple(remarks))
