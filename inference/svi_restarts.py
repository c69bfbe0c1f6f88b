"""SVI from several starts: the best fit, and whether the others agree with it."""

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pyro
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger

from inference.diagnostics import chain_mixing
from inference.fit import Problem, Run, Status, copied_params
from inference.isolation import MAX_SEED, isolated
from inference.ladder import AGREEMENT

# Restarts that end at equal bounds may still be different distributions. Locations that differ by 0.15 sd, the noise
# that an optimiser leaves, give an R-hat of 1.01; this is 0.3 sd.
MAX_RHAT = 1.05
# Restart r of a fit of seed s has the seed s + r * this prime, so that fits of neighbouring seeds share none.
_SEED_STEP = 15_485_863
# Losses at the end whose mean stands for the bound where there is none.
_LAST = 100


def best_of(num: int, engine: Any, problem: Problem) -> Run:
    """Run ``engine.run_once`` so often, each time by itself, and keep the run of the highest bound.

    Without a bound (no flat density) the last losses decide. Restarts agree when another one reaches the best bound,
    and R-hat does not tell apart the draws of those that do.
    """
    runs, params = [], []
    for restart in range(num):
        own = copy.deepcopy(engine)
        seed = (problem.seed + restart * _SEED_STEP) % MAX_SEED
        with isolated(seed, dtype=torch.get_default_dtype()):
            runs.append(own.run_once(replace(problem, seed=seed)))
            params.append(copied_params())
    elbos = np.array([_bound(run) for run in runs])
    best = int(np.nanargmax(np.where(np.isfinite(elbos), elbos, -np.inf)))
    _put_back(params[best], problem, runs[best].state["guide"])
    run = runs[best]
    near = np.flatnonzero(elbos >= elbos[best] - AGREEMENT - 2 * run.state.get("elbo_se", 0.0))
    rhat = _rhat([runs[i] for i in near]) if len(near) > 1 else np.nan
    agree = len(near) > 1 and not rhat > MAX_RHAT
    starts = {"elbo": elbos, "agree": agree, "rhat": _rhat(runs)}
    return replace(
        run,
        status=_status(run.status, elbos, len(near), rhat, agree=agree),
        seconds={part: sum(r.seconds[part] for r in runs) for part in run.seconds},
        state={**run.state, "starts": starts, "num_gradients": sum(r.state["num_gradients"] for r in runs)},
    )


def _bound(run: Run) -> float:
    bound = run.state.get("elbo")
    if bound is None:
        bound = -float(run.history["loss"][-_LAST:].mean()) if run.status.kind != "diverged" else -np.inf
    return bound if np.isfinite(bound) else -np.inf


def _rhat(runs: list[Run]) -> float:
    """Give the largest rank-normalised R-hat, the draws of a run taken as one chain; NaN for point guides."""
    pooled = []
    for run in runs:
        parts = [run.state["unconstrained"]] if "unconstrained" in run.state else run.draws.values()
        num = np.prod(next(iter(run.draws.values())).shape[:2])
        pooled.append(np.concatenate([np.asarray(part, dtype=float).reshape(num, -1) for part in parts], axis=1))
    draws = np.stack(pooled)
    draws = draws[:, :, np.ptp(draws, axis=1).min(axis=0) > 0]
    if not draws.shape[2] or not np.isfinite(draws).all():
        return np.nan
    return float(np.nanmax(chain_mixing(draws).rhat))


def _status(status: Status, elbos: np.ndarray, num_near: int, rhat: float, *, agree: bool) -> Status:
    said = f"{num_near} of {len(elbos)} restarts reach the best bound"
    said += f", with an R-hat of {rhat:.2f}" if np.isfinite(rhat) else ""
    bounds = f"bounds from {elbos.min():.2f} to {elbos.max():.2f} nats"
    if agree:
        return Status(status.kind, f"{status.message} {said[0].upper()}{said[1:]} ({bounds}).")
    return Status(
        "budget_spent" if status.ok else status.kind,
        f"Restarts disagree: {said} ({bounds}), so there may be several optima, or too few steps; look for modes, or "
        f"raise num_restarts. Of the best: {status.message}",
    )


class _Filled(Messenger):
    """Gives the networks that a model or guide holds, by ``pyro.module``, their fitted values."""

    def __init__(self, values: Mapping[str, torch.Tensor]) -> None:
        super().__init__()
        self.values = values

    def _pyro_param(self, msg: dict) -> None:
        owned = next((a for a in msg["args"] if isinstance(a, torch.nn.Parameter)), None)
        value = self.values.get(msg["name"])
        if owned is not None and value is not None and value.shape == owned.shape:
            owned.data.copy_(value)


def _put_back(params: dict[str, Any], problem: Problem, guide: Any) -> None:
    """Make the parameter store, the guide and the model's networks what they were at the end of a run."""
    pyro.get_param_store().set_state(params)
    with torch.no_grad(), pyro.validation_enabled(False), _Filled(params["params"]):
        trace = poutine.trace(guide).get_trace(**problem.sites.data)
        poutine.replay(problem.sites.function, trace=trace)(**problem.sites.data)
