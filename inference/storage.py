"""A fit in one file, readable without executing anything that the file contains."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import torch

from inference.autovi import AutoVI
from inference.errors import InputError, one_line
from inference.fit import Engine, Fit, Problem, Run, Status
from inference.laplace import MAP, Laplace
from inference.nuts import NUTS
from inference.svi import SVI
from inference.validate import check_names, model_function

FORMAT = 1
ENGINES: dict[str, type] = {"NUTS": NUTS, "SVI": SVI, "AutoVI": AutoVI, "Laplace": Laplace, "MAP": MAP}
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

    The model and a guide are code and are not saved; give the model to `load_fit` for what needs it. Of the data,
    numbers, strings, tensors and nests of them are saved.

    Returns
    -------
    Path
        The file written.

    Raises
    ------
    InputError
        The folder does not exist.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise InputError(f"path: no folder {path.parent}; make it first.")
    params, module = _fitted(fit)
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
            "data": _savable_items(fit.data),
            "notes": list(fit.notes),
            "state": _savable_items(
                {name: value for name, value in fit.state.items() if name not in _NOT_IN_STATE}
                | ({"own_guide": True} if _by_own_guide(fit) else {})
            ),
            "dtype": str(fit.state["dtype"]).removeprefix("torch."),
            "params": params,
            "module": module,
        },
        path,
    )
    return path


_PARTS = (
    *("draws", "stats", "history", "status", "engine", "seed", "seconds", "data", "notes", "state", "dtype"),
    *("params", "module"),
)
# Saved on their own, or code.
_NOT_IN_STATE = ("params", "module", "guide", "function", "dtype")


def _fitted(fit: Fit) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Constrained values of the parameter store, and the state of a model that is a module."""
    if fit.model is None:  # loaded without its model, and saved again
        return dict(fit.state["params"]["params"]), dict(fit.state["module"])
    with fit.restored() as sites:
        params = {name: value.detach().clone() for name, value in pyro.get_param_store().items()}
        module = sites.function.state_dict() if isinstance(sites.function, torch.nn.Module) else {}
    return params, dict(module)


def _by_own_guide(fit: Fit) -> bool:
    """Whether the guide is the one that the model brings along (``ppl_models.Model.guide``)."""
    own = getattr(fit.model, "guide", None)
    return own is not None and getattr(fit.engine, "guide", None) is own


def load_fit(path: str | Path, model: Any = None, *, guide: Callable[..., Any] | None = None) -> Fit:
    """Read a fit that ``Fit.save`` wrote.

    Parameters
    ----------
    path
        The file.
    model
        The model it was fitted with; needed for log likelihoods, predictive draws, `check` and the like. A module is
        copied, and the copy given the fitted parameters.
    guide
        The guide it was fitted with, where that is a function with parameters in Pyro's store, such as an encoder. By
        default the model's own, if it was that.

    Raises
    ------
    InputError
        No such file, not a fit, or a model that does not take the data of the fit.
    """
    saved = _read(path)
    function, params = _restore_model(model, saved)
    if guide is None and saved["state"].get("own_guide"):
        guide = getattr(model, "guide", None)
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
        state={
            **_arrays(saved["state"]),
            "dtype": getattr(torch, saved["dtype"]),
            "params": {
                "params": params,
                "constraints": dict.fromkeys(params, torch.distributions.constraints.real),
            },
            **({"module": saved["module"]} if function is None else {"function": function}),
            **({} if guide is None else {"guide": guide}),
        },
    )


def _read(path: str | Path) -> dict[str, Any]:
    if not Path(path).is_file():
        raise InputError(f"path: no file {path}.")
    try:
        saved = torch.load(path, weights_only=True)
        version = saved["format"]
    except Exception as error:
        raise InputError(f"path: {path} is not a fit written by Fit.save ({type(error).__name__}).") from error
    if version != FORMAT:
        raise InputError(f"path: {path} has format {version}, this version reads {FORMAT}; save it again.")
    missing = [part for part in _PARTS if part not in saved]
    if missing:
        raise InputError(f"path: {path} is not a fit written by Fit.save (it lacks {', '.join(missing)}).")
    return saved


def _restore_model(model: Any, saved: Mapping[str, Any]) -> tuple[Callable | None, dict[str, torch.Tensor]]:
    """Give the model's function, a module with its fitted parameters, and the parameters that it does not own."""
    params = dict(saved["params"])
    if model is None:
        return None, params
    function = model_function(model)
    try:
        check_names(function, saved["data"])
    except InputError as error:
        raise InputError(
            f"model: does not take the data of this fit ({error}); give the model that was fitted, and bind arguments "
            "that a file cannot hold with functools.partial."
        ) from error
    if isinstance(function, torch.nn.Module):
        function = copy.deepcopy(function)
        try:
            function.load_state_dict(saved["module"])
        except RuntimeError as error:
            raise InputError(f"model: not the module that was fitted ({one_line(error)}).") from error
        # Pyro reads these from the module, unconstrained, and puts them into the store by itself.
        own = {name.removesuffix("_unconstrained") for name, _ in function.named_parameters()}
        params = {name: value for name, value in params.items() if name not in own}
    return function, params


def _describe_engine(engine: Engine) -> dict[str, Any]:
    settings = {f.name: _setting(getattr(engine, f.name)) for f in fields(engine)}
    known = ENGINES.get(type(engine).__name__) is type(engine) and _OMIT not in settings.values()
    return {
        "name": type(engine).__name__ if known else "",
        "settings": settings if known else {},
        "text": repr(engine),
        "method": engine.method,
    }


def _setting(value: Any) -> Any:
    """Keep plain settings; name torch's optimiser classes."""
    if isinstance(value, type) and getattr(torch.optim, value.__name__, None) is value:
        return {"torch.optim": value.__name__}
    return value if isinstance(value, _PLAIN) else _OMIT


def _make_engine(saved: Mapping[str, Any]) -> Any:
    if not saved["name"]:
        return SavedEngine(saved["text"], saved["method"])
    settings = {
        name: getattr(torch.optim, value["torch.optim"]) if isinstance(value, dict) else value
        for name, value in saved["settings"].items()
    }
    return ENGINES[saved["name"]](**settings)


def _tensors(arrays: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(np.array(value)) for name, value in arrays.items()}


_OMIT = object()


def _savable_items(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: kept for name, kept in ((n, _savable(v)) for n, v in values.items()) if kept is not _OMIT}


def _savable(value: Any) -> Any:
    """Keep numbers, strings, tensors and nests of them; anything else is code and is left out, with what holds it."""
    if isinstance(value, Mapping):
        kept = _savable_items(value)
        return kept if len(kept) == len(value) else _OMIT
    if isinstance(value, list | tuple):
        kept = [_savable(v) for v in value]
        return _OMIT if any(v is _OMIT for v in kept) else (kept if isinstance(value, list) else tuple(kept))
    if isinstance(value, np.ndarray):
        return torch.from_numpy(np.array(value))
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    return value if isinstance(value, _PLAIN) else _OMIT


def _arrays(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _arrays(v) for k, v in value.items()}
    return value.numpy() if isinstance(value, torch.Tensor) else value
