"""Fits put together by hand, so that the errors in them are known exactly."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np

from inference.fit import Fit, Status


@dataclass(frozen=True)
class Chains:
    method: ClassVar[str] = "mcmc"
    num_chains: int = 4


@dataclass(frozen=True)
class Approximation:
    method: ClassVar[str] = "vi"
    guide: str = "normal"


def sites(x: np.ndarray) -> dict[str, np.ndarray]:
    """Give the columns of (chain, draw, Q >= 3) to a scalar site and a vector."""
    return {"mu": x[..., 0], "theta": x[..., 1:]}


def chain_fit(draws: Mapping[str, np.ndarray], *, seed: int = 0, **changes: Any) -> Fit:
    shape = next(iter(draws.values())).shape[:2]
    stats = {
        "diverging": np.zeros(shape, dtype=bool),
        "reached_max_treedepth": np.zeros(shape, dtype=bool),
        "energy": np.random.default_rng(seed + 1000).normal(size=shape),
    }
    fit = Fit(
        draws=dict(draws),
        stats=stats,
        history={},
        status=Status("finished", "All chains ran."),
        engine=Chains(shape[0]),
        seed=seed,
        seconds={"setup": 0.5, "warmup": 1.0, "sampling": 2.0},
        model=None,
        data={},
        state={"num_gradients": 20_000, "backend": "by hand"},
    )
    return replace(fit, **changes)


def vi_fit(draws: Mapping[str, np.ndarray], *, log_weight: np.ndarray | None = None, **changes: Any) -> Fit:
    fit = Fit(
        draws=dict(draws),
        stats={} if log_weight is None else {"log_weight": log_weight},
        history={"loss": 100.0 + 50.0 * np.exp(-np.arange(200) / 20.0)},
        status=Status("converged", "The loss has stopped improving."),
        engine=Approximation(),
        seed=0,
        seconds={"setup": 0.1, "optimisation": 0.2, "sampling": 0.05},
        model=None,
        data={},
        state={"num_gradients": 200, "backend": "by hand"},
    )
    return replace(fit, **changes)


def normal(seed: int, *, num_quantities: int = 6, shape: tuple[int, int] = (4, 1000)) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(*shape, num_quantities))


def gaussian_vi(
    seed: int, *, shift: Any = 0.0, sd: Any = 1.0, num_quantities: int = 6, shape: tuple[int, int] = (4, 1000)
) -> Fit:
    """Draws of N(shift, sd^2) per coordinate with the log weights of the target N(0, 1)."""
    z = normal(seed, num_quantities=num_quantities, shape=shape)
    sd = np.broadcast_to(np.asarray(sd, dtype=float), (num_quantities,))
    x = z * sd + shift
    log_weight = (0.5 * z**2 + np.log(sd) - 0.5 * x**2).sum(axis=-1)
    return vi_fit(sites(x), log_weight=log_weight)


def modes(*, num_elsewhere: int = 0, num_settled: int = 8) -> Any:
    """Stand in for `inference.modes.search_modes`."""
    message = f"{num_elsewhere} of 8 starts ended elsewhere."
    return lambda fit: SimpleNamespace(num_settled=num_settled, num_elsewhere=num_elsewhere, message=message)
