"""Stan programs as shared libraries with the C interface of BridgeStan, built from what httpstan brings along.

nutpie opens such a library as it opens one of BridgeStan's; here it serves to compare log densities, too.
"""

import ctypes
import hashlib
import json
import os
import subprocess
import time
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

BRIDGE = Path(__file__).with_name("stan_bridge.cpp")
# As httpstan compiles its own models (its libraries are built with the old ABI of C++ strings).
FLAGS = (
    *("-std=c++17", "-O3", "-fPIC", "-shared", "-w", "-DBOOST_DISABLE_ASSERTS"),
    *("-DBOOST_PHOENIX_NO_VARIADIC_EXPRESSION", "-DSTAN_THREADS", "-D_REENTRANT", "-D_GLIBCXX_USE_CXX11_ABI=0"),
)


def cache_folder() -> Path:
    """Give the folder of built programs, next to that of httpstan."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "ppl-benchmarks-stan"


def timed_build(name: str, build: Callable[[], Any]) -> tuple[Any, float]:
    """Build, and give the seconds that the cache saved: those of the first time, if this was not the first."""
    begin = time.perf_counter()
    result = build()
    elapsed = time.perf_counter() - begin
    note = cache_folder() / f"{hashlib.sha256(name.encode()).hexdigest()[:16]}.seconds"
    if note.exists():
        return result, float(note.read_text()) - elapsed
    note.parent.mkdir(parents=True, exist_ok=True)
    note.write_text(str(elapsed))
    return result, 0.0


def library(code: str) -> Path:
    """Build a Stan program, or find it in the cache."""
    package = Path(find_spec("httpstan").submodule_search_locations[0])
    digest = hashlib.sha256((code + BRIDGE.read_text() + " ".join(FLAGS)).encode()).hexdigest()[:16]
    folder = cache_folder()
    path = folder / f"{digest}.so"
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    program, source = folder / f"{digest}.stan", folder / f"{digest}.cpp"
    program.write_text(code)
    stanc = [str(package / "stanc"), "--name", "benchmark_model", "--print-cpp", str(program)]
    translated = subprocess.run(stanc, capture_output=True, text=True, check=True).stdout
    source.write_text(f'{translated}\n#include "{BRIDGE}"\n')
    partial = path.with_suffix(f".{os.getpid()}")
    command = ["g++", *FLAGS, f"-I{package / 'include'}", str(source), "-o", str(partial), f"-L{package / 'lib'}"]
    subprocess.run([*command, "-ltbb", f"-Wl,-rpath,{package / 'lib'}"], check=True)
    partial.rename(path)
    return path


def as_json(data: Mapping[str, Any]) -> str:
    """Write data or parameter values as JSON."""
    return json.dumps({name: np.asarray(value).tolist() for name, value in data.items()})


class Program:
    """A program with its data, through ctypes."""

    def __init__(self, path: Path, data: Mapping[str, Any]) -> None:
        self._lib = ctypes.CDLL(str(path))
        self._lib.bs_model_construct.restype = ctypes.c_void_p
        error = ctypes.c_char_p()
        model = self._lib.bs_model_construct(as_json(data).encode(), 1, ctypes.byref(error))
        if not model:
            raise ValueError(error.value.decode())
        self._model = ctypes.c_void_p(model)
        self.dim = self._lib.bs_param_unc_num(self._model)

    def unconstrain(self, values: Mapping[str, Any]) -> np.ndarray:
        """Give the point (D,) of constrained values."""
        point = np.empty(self.dim)
        self._call("bs_param_unconstrain_json", as_json(values).encode(), _pointer(point))
        return point

    def log_density(self, point: np.ndarray, *, jacobian: bool) -> float:
        """Log density at a point (D,)."""
        value = ctypes.c_double()
        self._call("bs_log_density", False, jacobian, _pointer(point), ctypes.byref(value))
        return value.value

    def _call(self, name: str, *arguments: Any) -> None:
        error = ctypes.c_char_p()
        if getattr(self._lib, name)(self._model, *arguments, ctypes.byref(error)):
            raise ValueError(error.value.decode())


def _pointer(array: np.ndarray) -> Any:
    return array.ctypes.data_as(ctypes.POINTER(ctypes.c_double))
