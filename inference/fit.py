"""`fit`: one driver for every engine, and `Fit`: one result type for every engine."""

import copy
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

import numpy as np
import pyro
import torch
import xarray as xr
from pyro.infer.autoguide import AutoGuide

from inference.conditional import MAX_DRAWN, complete, left_out
from inference.density import Density
from inference.errors import InputError
from inference.isolation import isolated
from inference.progress import showing
from inference.sites import Sites, read_sites
from inference.validate import missing_argument, model_function, prepare_data

if TYPE_CHECKING:
    from inference.prediction import Prediction

STATUS_KINDS = ("finished", "converged", "budget_spent", "diverged", "interrupted")


@dataclass(frozen=True)
class Status:
    """How a fit ended.

    Attributes
    ----------
    kind
        ``"finished"`` (a sampler ran through), ``"converged"``, ``"budget_spent"`` (the steps were used up),
        ``"diverged"`` (a loss or parameter became non-finite), or ``"interrupted"``.
    message
        One sentence, with the remedy where there is one.
    """

    kind: str
    message: str

    def __post_init__(self) -> None:
        if self.kind not in STATUS_KINDS:
            raise ValueError(f"kind: expected one of {', '.join(STATUS_KINDS)}, got '{self.kind}'.")

    @property
    def ok(self) -> bool:
        """Whether the engine ended as it should."""
        return self.kind in ("finished", "converged")


@dataclass(frozen=True, eq=False)
class Problem:
    """What an engine is given: the model as read, a seed, and whether to show a progress bar."""

    sites: Sites
    seed: int
    progress: bool
    model: Any

    @cached_property
    def density(self) -> Density:
        """The flat log density, recorded and verified on first use."""
        return Density(self.sites, propose=getattr(self.model, "start", None))


@dataclass(frozen=True, eq=False)
class Run:
    """What an engine hands back; `fit` adds the sites that follow from the draws.

    Attributes
    ----------
    draws
        ``name -> (chain, draw, *shape)``, constrained values of the latents.
    stats, history, status, seconds, notes, state
        As in `Fit`.
    """

    draws: dict[str, np.ndarray]
    stats: dict[str, np.ndarray]
    status: Status
    seconds: dict[str, float]
    history: dict[str, np.ndarray] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    state: dict[str, Any] = field(default_factory=dict)


@runtime_checkable
class Engine(Protocol):
    """An inference method: a frozen dataclass of its settings.

    ``method`` is ``"mcmc"`` or ``"vi"``. ``run`` is called inside `inference.isolation.isolated`, with Pyro's state its
    own and ``floating_dtype`` as the default dtype.
    """

    method: ClassVar[str]

    def floating_dtype(self, model: Any) -> torch.dtype:
        """Give the dtype in which this engine runs this model."""
        ...

    def run(self, problem: Problem) -> Run:
        """Fit."""
        ...


def short_repr(engine: Any) -> str:
    """Write an engine with the settings that are not defaults; functions, classes and fits in short."""
    changed = [(f.name, getattr(engine, f.name)) for f in fields(engine) if getattr(engine, f.name) != f.default]
    return f"{type(engine).__name__}({', '.join(f'{name}={_short(value)}' for name, value in changed)})"


def _short(value: Any) -> str:
    if isinstance(value, Fit):
        return f"<fit by {value.engine!r}, seed {value.seed}>"
    if isinstance(value, Mapping):
        return f"<{', '.join(map(str, value))}>"
    return getattr(value, "__name__", None) or repr(value)


@dataclass(frozen=True, eq=False)
class Fit:
    """A posterior, from whichever engine.

    Attributes
    ----------
    draws
        ``name -> (chain, draw, *site shape)``: latents, deterministic sites, and discrete sites, the last drawn from
        their exact conditional distribution where the density sums them out; ``<site>_states``, state paths of hidden
        Markov chains. Sites of too many numbers are left out, and ``notes`` says so.
    stats
        Per draw, ``(chain, draw)``. NUTS: ``diverging energy lp tree_depth reached_max_treedepth n_steps step_size
        acceptance_rate``. VI: ``lp``, ``log_q`` and ``log_weight = lp - log_q``, log densities on the unconstrained
        space; the last two are absent where the guide has no density, and ``notes`` says so.
    history
        Per step: VI ``loss`` (minimised; the negative ELBO up to its estimator) and ``gradient_norm``. Of training by
        mini-batches also per evaluation: ``validation_elbo``, nats per held-out row, and ``validation_step``.
    status
        How it ended.
    engine, seed, model, data
        What was asked for.
    seconds
        Wall time by part.
    notes
        Remarks of the engine, such as why it ran on eager Pyro.
    state
        Private to the engine; always ``num_gradients``, ``backend`` and ``dims``, and ``unconstrained``
        (chain, draw, D) where the model has a flat density;
        from `fit` also ``discrete``, the names of the discrete sites; ``method`` where it is not the engine's.
    """

    draws: dict[str, np.ndarray] = field(repr=False)
    stats: dict[str, np.ndarray] = field(repr=False)
    history: dict[str, np.ndarray] = field(repr=False)
    status: Status
    engine: Any
    seed: int
    seconds: dict[str, float]
    model: Any = field(repr=False)
    data: dict[str, Any] = field(repr=False)
    notes: tuple[str, ...] = ()
    state: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def num_chains(self) -> int:
        """Number of chains."""
        return next(iter(self.draws.values())).shape[0]

    @property
    def num_draws(self) -> int:
        """Draws per chain."""
        return next(iter(self.draws.values())).shape[1]

    @property
    def method(self) -> str:
        """``"vi"``, ``"mcmc"`` or ``"given"``: the engine's, or that of the one it handed over to."""
        return self.state.get("method", self.engine.method)

    @property
    def independent(self) -> bool:
        """Whether the draws are independent, unlike those of a Markov chain."""
        return self.method == "vi" or getattr(self.engine, "independent", False)

    @property
    def num_gradients(self) -> int:
        """Gradient evaluations of the log density, warm-up included."""
        return int(self.state["num_gradients"])

    @property
    def model_name(self) -> str:
        """Name of the model or of its function; empty for a fit loaded without its model."""
        if self.model is None:
            return ""
        return getattr(self.model, "name", None) or getattr(self.model, "__name__", None) or type(self.model).__name__

    @property
    def coords(self) -> dict[str, list]:
        """Labels of the model's dims (school names, covariates) as the model gives them; a plain function has none."""
        own = getattr(self.model, "coords", None)
        return {dim: list(labels) for dim, labels in own(self.data).items()} if callable(own) else {}

    @contextmanager
    def restored(self) -> Iterator[Sites]:
        """Isolate, put the fitted parameters back, and give the model as read at the data of this fit.

        Raises
        ------
        InputError
            The fit was loaded from a file without its model.
        """
        if self.model is None:
            raise InputError("fit: loaded without its model, which this needs; use load_fit(path, model=...).")
        function = self.state.get("function") or model_function(self.model)
        params = self.state["params"]
        with isolated(self.seed, dtype=self.state["dtype"], module_values=params["params"], own=[function]):
            pyro.get_param_store().set_state(_copied(params))
            yield read_sites(function, self.data)

    def to_datatree(self, **options: Any) -> xr.DataTree:
        """Hand the fit to ArviZ; see `inference.datatree.to_datatree` for the options."""
        from inference.datatree import to_datatree

        return to_datatree(self, **options)

    def predict(self, new_data: Mapping[str, Any] | None = None, **options: Any) -> "Prediction":
        """Give probabilities and most probable values of discrete sites; see `inference.predict.predict`."""
        from inference.predict import predict

        return predict(self, new_data, **options)

    def save(self, path: str | Path) -> Path:
        """Write the fit to one file, which `inference.load_fit` reads; see `inference.storage.save_fit`."""
        from inference.storage import save_fit

        return save_fit(self, path)


def fit(model: Any, data: Mapping[str, Any], engine: Engine, *, seed: int = 0, progress: bool | None = None) -> Fit:
    """Fit a model to data.

    Parameters
    ----------
    model
        A Pyro function, or a value with a callable attribute ``model`` such as those of ``ppl_models``.
    data
        The model's keyword arguments in one mapping: tensors, arrays, nested lists, numbers.
    engine
        `NUTS`, `SVI`, `AutoVI`, or any value with their two methods.
    seed
        Equal seeds give equal numbers. The caller's random streams are not touched.
    progress
        Show a bar; by default where standard error is a terminal.

    Returns
    -------
    Fit
        Draws, statistics, status and how they were made.

    Raises
    ------
    InputError
        The model or the data cannot be fitted; the message says which part and what to do.

    Examples
    --------
    >>> nuts = fit(model, {"x": x}, NUTS(), seed=1)
    >>> nuts.draws["mu"].shape
    (4, 1000)
    """
    if isinstance(engine, type) or not isinstance(engine, Engine):
        raise InputError(f"engine: expected NUTS(...), SVI(...) or AutoVI(...), got {engine!r}.")
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise InputError(f"seed: expected a non-negative integer, got {seed!r}.")
    function, own_engine = _own(model_function(model), engine)
    dtype = engine.floating_dtype(function)
    with (
        showing(progress) as shown,
        isolated(seed, dtype=dtype, own=[function, *vars(own_engine).values()]),
    ):
        begin = time.perf_counter()
        prepared = prepare_data(function, data, may_miss=missing_argument(model))
        sites = read_sites(function, prepared)
        setup = time.perf_counter() - begin
        run = own_engine.run(Problem(sites, seed, shown, model))
        begin = time.perf_counter()
        draws, remarks = _complete(sites, run.draws)
        completion = time.perf_counter() - begin
        params = copied_params()
    seconds = {**run.seconds, "setup": setup + run.seconds.get("setup", 0.0), "other_sites": completion}
    dims = {name: site.dims for group in sites.groups() for name, site in group.items()}
    state = {**run.state, "function": function, "dtype": dtype, "params": params, "dims": dims}
    state["discrete"] = [*sites.discrete, *sites.unenumerable, *(path.name for path in sites.chains.values())]
    notes = (*run.notes, *remarks)
    return Fit(draws, run.stats, run.history, run.status, engine, seed, seconds, model, prepared, notes, state)


def _own(function: Callable[..., Any], engine: Engine) -> tuple[Callable[..., Any], Engine]:
    """Copy a model and an engine, so that the caller's modules and optimiser stay untrained.

    They are copied together, since model and guide may share a network. When Pyro's guides are copied, they and their
    copies forget their models (``AutoGuide.__getstate__``), which one that has not run yet needs.
    """
    guides = _auto_guides(engine)
    models = [guide._model for guide in guides]
    own_function, own_engine, own_models = copy.deepcopy((function, engine, models))
    for guide, model in zip(guides + _auto_guides(own_engine), models + own_models, strict=True):
        guide._model = model
    return own_function, own_engine


def _auto_guides(engine: Engine) -> list[AutoGuide]:
    modules = [value for value in vars(engine).values() if isinstance(value, AutoGuide)]
    return [part for module in modules for part in module.modules() if isinstance(part, AutoGuide)]


def copied_params() -> dict[str, Any]:
    """Copy the state of the parameter store."""
    return _copied(pyro.get_param_store().get_state())


def _copied(params: Mapping[str, Any]) -> dict[str, Any]:
    """Copy a state of the parameter store, so that training or restoring one does not change another."""
    values = {name: value.detach().clone().requires_grad_() for name, value in params["params"].items()}
    return {"params": values, "constraints": dict(params["constraints"])}


def _complete(sites: Sites, draws: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], list[str]]:
    """Add deterministic and discrete sites to draws of shape (chain, draw, ...); say what is left out."""
    chains, num = next(iter(draws.values())).shape[:2]
    flat = {name: value.reshape(chains * num, *value.shape[2:]) for name, value in draws.items()}
    full = complete(sites, flat)
    remarks = [
        f"no draws of '{name}', which would be more than {MAX_DRAWN} numbers; predict(fit) gives its probabilities"
        for name in left_out(sites, chains * num)
        if name not in full
    ]
    return {name: value.reshape(chains, num, *value.shape[1:]) for name, value in full.items()}, remarks
