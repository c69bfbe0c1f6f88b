"""Reference posteriors on disk: this project's bundle, or a checkout of posteriordb.

`open_database(path)` tells them apart. Both give a `Posterior` by name: data as they stand in the file, and reference
draws (chain, draw, *shape) by site, or published moments where there are no draws.
"""

import json
import re
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from inference.errors import InputError

# A published mean without a standard error is taken to be known to this many sds: the two means of the one such entry
# that must be equal by symmetry differ by that much.
UNSTATED_PRECISION = 0.05


@dataclass(frozen=True)
class Published:
    """Mean and sd of a site, and the standard error of the mean, arrays of the site's shape."""

    mean: np.ndarray
    sd: np.ndarray
    mean_se: np.ndarray


@dataclass(frozen=True, eq=False)
class Posterior:
    """A posterior that is known: its data, and either draws or moments by site."""

    name: str
    data: dict[str, Any]
    draws: dict[str, np.ndarray]
    moments: dict[str, Published]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each site."""
        if self.draws:
            return {site: value.shape[2:] for site, value in self.draws.items()}
        return {site: value.mean.shape for site, value in self.moments.items()}

    @property
    def dimension(self) -> int:
        """Number of scalars."""
        return sum(int(np.prod(shape)) for shape in self.shapes.values())


@dataclass(frozen=True)
class Database:
    """Where the posteriors are, by name, and how to read one."""

    folders: Mapping[str, Path]
    read: Callable[[str, Path], Posterior]

    def posterior(self, name: str) -> Posterior:
        """Read one.

        Raises
        ------
        InputError
            There is none of this name.
        """
        if name not in self.folders:
            raise InputError(f"posterior '{name}': not among the {len(self.folders)} of this database.")
        return self.read(name, self.folders[name])


def open_database(path: str | Path) -> Database:
    """Open a bundle (``index.json``) or a checkout of posteriordb (``posterior_database/posteriors``).

    Raises
    ------
    InputError
        Neither stands at ``path``.
    """
    path = Path(path)
    if (path / "index.json").is_file():
        entries = json.loads((path / "index.json").read_text())
        return Database({entry["name"]: path / entry["folder"] for entry in entries}, _read_bundled)
    for root in (path / "posterior_database", path):
        if (root / "posteriors").is_dir():
            found = {file.stem: file for file in sorted((root / "posteriors").glob("*.json"))}
            return Database(found, _read_original)
    raise InputError(
        f"path: no reference posteriors at {path}; expected a folder with index.json, or a checkout of posteriordb."
    )


def _read_bundled(name: str, folder: Path) -> Posterior:
    info = json.loads((folder / "info.json").read_text())
    data = json.loads((folder / "data.json").read_text())
    file = folder / "reference_draws.npz"
    if file.exists():
        with np.load(file) as stored:
            return Posterior(name, data, {site: stored[site].astype(np.float64) for site in info["dims"]}, {})
    moments = {site: _published(site, tuple(shape), info["reference"]) for site, shape in info["dims"].items()}
    return Posterior(name, data, {}, moments)


def _published(site: str, shape: tuple[int, ...], reference: Mapping[str, Mapping[str, float]]) -> Published:
    names = [f"{site}[{','.join(str(i + 1) for i in index)}]" if index else site for index in np.ndindex(shape)]
    rows = [reference[name] for name in names]

    def array(values: list[float]) -> np.ndarray:
        return np.asarray(values, dtype=np.float64).reshape(shape)

    return Published(
        mean=array([row["mean"] for row in rows]),
        sd=array([row["sd"] for row in rows]),
        mean_se=array([row.get("mcse_mean", UNSTATED_PRECISION * row["sd"]) for row in rows]),
    )


def _read_original(name: str, file: Path) -> Posterior:
    """Read posteriordb's own layout: zipped JSON, one object of flat names for each chain."""
    entry, root = json.loads(file.read_text()), file.parent.parent
    data = _unzipped(root / "data" / "data" / f"{entry['data_name']}.json.zip")
    reference = entry.get("reference_posterior_name")
    draws = root / "reference_posteriors" / "draws" / "draws" / f"{reference}.json.zip"
    if not reference or not draws.exists():
        raise InputError(f"posterior '{name}': {root} has no reference draws for it.")
    return Posterior(name, data, joined(_unzipped(draws)), {})


def _unzipped(path: Path) -> Any:
    with zipfile.ZipFile(path) as archive:
        return json.loads(archive.read(archive.namelist()[0]))


def joined(chains: list[Mapping[str, list[float]]]) -> dict[str, np.ndarray]:
    """Join scalars by their flat names, ``theta[2,1]``, to arrays (chain, draw, *shape)."""
    indices: dict[str, dict[tuple[int, ...], str]] = {}
    for flat in chains[0]:
        site, index = re.fullmatch(r"([^\[]+)(?:\[([\d,]+)\])?", flat).groups()
        indices.setdefault(site, {})[tuple(int(i) - 1 for i in index.split(",")) if index else ()] = flat
    result = {}
    for site, places in indices.items():
        shape = tuple(np.max(list(places), axis=0) + 1) if () not in places else ()
        array = np.full((len(chains), len(next(iter(chains[0].values()))), *map(int, shape)), np.nan)
        for index, flat in places.items():
            array[(slice(None), slice(None), *index)] = [chain[flat] for chain in chains]
        result[site] = array
    return result
