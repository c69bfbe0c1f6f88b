"""A fit in one file, readable without executing anything that the file contains."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import torch

from inference.autovi import AutoVI
from inference.errors import InputError
from inference.fit import Engine, Fit, Problem, Run, Status
from inference.nuts import NUTS
from inference.svi import SVI

FORMAT = 1
ENGINES: dict[str, type] = {"NUTS": NUTS, "SVI": SVI, "AutoVI": AutoVI}
_PLAIN = (str, int, float, bool, type(None))


@dataclass(frozen=True)
class SavedEngine:
    """Stands for an engine with settings that a file cannot hold (a guide function, an optimiser object)."""

    text: str
    method: str

    def __repr__(self) -> str:
        return self.text

    def floating_dtype(self, model: Any) -> torch.dtype:
        """Refuse: a saved engine cannot fit."""
        raise InputError(f"engine: {self.text} was loaded from a file and cannot fit again; make it anew.")

    def run(self, problem: Problem) -> Run:
        """Refuse: a saved engine cannot fit."""
        raise InputError(f"engine: {self.text} was loaded from a file and cannot fit again; make it anew.")


def save_fit(fit: Fit, path: str | Path) -> Path:
    """Write a fit to one file: draws, statistics, history, data, fitted parameters, and how it was made.

    The model and a guide are code and are not saved; give the model to `load_fit` for what needs it.

    Returns
    -------
    Path
        The file written.
    """
    path = Path(path)
    constrained = {}
    if fit.model is not None:
        with fit.restored():
            constrained = {name: value.detach().clone() for name, value in pyro.get_param_store().items()}
    torch.save(
        {
            "format": FORMAT,
            "draws": _tensors(fit.draws),
            "stats": _tensors(fit.stats),
            "history": _tensors(fit.history),
            "status": asdict(fit.status),
            "engine": _describe_engine(fit.engine),
            "seed": fit.seed,
            "seconds": {part: float(value) for part, value in fit.seconds.items()},
            "data": _savable(fit.data),
            "notes": list(fit.notes),
            "state": _savable(
                {k: v for k, v in fit.state.items() if k not in ("params", "guide", "function", "dtype")}
            ),
            "dtype": str(fit.state["dtype"]).removeprefix("torch."),
            "params": constrained,
        },
        path,
    )
    return path


def load_fit(path: str | Path, model: Any = None) -> Fit:
    """Read a fit that ``Fit.save`` wrote.

    Parameters
    ----------
    path
        The file.
    model
        The model it was fitted with; needed for log likelihoods, predictive draws, `check` and the like.

    Raises
    ------
    InputError
        No such file, or not a fit.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"path: no file {path}.")
    try:
        saved = torch.load(path, weights_only=True)
        version = saved["format"]
    except Exception as error:
        raise InputError(f"path: {path} is not a fit written by Fit.save ({type(error).__name__}).") from error
    if version != FORMAT:
        raise InputError(f"path: {path} has format {version}, this version reads {FORMAT}; save it again.")
    params = {
        "params": saved["params"],
        "constraints": dict.fromkeys(saved["params"], torch.distributions.constraints.real),
    }
    state = {**_arrays(saved["state"]), "dtype": getattr(torch, saved["dtype"]), "params": params}
    return Fit(
        draws=_arrays(saved["draws"]),
        stats=_arrays(saved["stats"]),
        history=_arrays(saved["history"]),
        status=Status(**saved["status"]),
        engine=_make_engine(saved["engine"]),
        seed=saved["seed"],
        seconds=saved["seconds"],
        model=model,
        data=saved["data"],
        notes=tuple(saved["notes"]),
        state=state,
    )


def _describe_engine(engine: Engine) -> dict[str, Any]:
    settings = {f.name: getattr(engine, f.name) for f in fields(engine)}
    plain = all(isinstance(value, _PLAIN) for value in settings.values())
    known = ENGINES.get(type(engine).__name__) is type(engine)
    return {
        "name": type(engine).__name__ if plain and known else "",
        "settings": settings if plain else {},
        "text": repr(engine),
        "method": engine.method,
    }


def _make_engine(saved: Mapping[str, Any]) -> Any:
    if saved["name"]:
        return ENGINES[saved["name"]](**saved["settings"])
    return SavedEngine(saved["text"], saved["method"])


def _tensors(arrays: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {name: torch.as_tensor(np.ascontiguousarray(value)) for name, value in arrays.items()}


def _savable(value: Any) -> Any:
    """Keep numbers, strings, tensors and nests of them; anything else is code and is left out."""
    if isinstance(value, Mapping):
        return {k: _savable(v) for k, v in value.items() if _savable(v) is not _OMIT}
    if isinstance(value, list | tuple):
        return type(value)(_savable(v) for v in value)
    if isinstance(value, np.ndarray):
        return torch.as_tensor(np.ascontiguousarray(value))
    if isinstance(value, np.generic):
        return value.item()
    return value if isinstance(value, (*_PLAIN, torch.Tensor)) else _OMIT


_OMIT = object()


def _arrays(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _arrays(v) for k, v in value.items()}
    return value.numpy() if isinstance(value, torch.Tensor) else value
