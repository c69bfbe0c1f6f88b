"""Pyro's NUTS kernel, one chain, with the per-draw statistics that it does not keep."""

from typing import Any

import numpy as np
import pyro
import torch
from pyro.infer import mcmc

from inference.nutpie_chains import Target
from inference.progress import bar


class RecordingNUTS(mcmc.NUTS):
    """Pyro's kernel; `last` holds the statistics of the latest draw."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.last: dict[str, float] = {}

    def sample(self, params: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Draw once."""
        self._acceptances: list[float] = []
        result = super().sample(params)
        _, potential, _ = self._fetch_from_cache()
        num_steps = len(self._acceptances)
        self.last = {
            "diverging": self._diverging,  # a diverging leaf ends its trajectory, so the last leaf tells
            "energy": float(self._energy_at_start),
            "lp": -float(potential),
            "tree_depth": int(np.ceil(np.log2(num_steps + 1))),
            "reached_max_treedepth": num_steps >= 2**self._max_tree_depth - 1,
            "n_steps": num_steps,
            "step_size": float(self.step_size),
            "acceptance_rate": float(np.mean(self._acceptances)),
        }
        return result

    def _build_basetree(self, *arguments: Any) -> Any:
        *_, self._energy_at_start = arguments  # the Hamiltonian after the momentum was drawn, as E-BFMI wants it
        leaf = super()._build_basetree(*arguments)
        self._acceptances.append(float(leaf.sum_accept_probs))
        self._diverging = bool(leaf.diverging)
        return leaf


def run_chain(
    density: Target,
    start: np.ndarray,
    *,
    num_warmup: int,
    num_samples: int,
    target_accept: float,
    max_tree_depth: int,
    seed: int,
    label: str,
) -> tuple[np.ndarray, dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Run one chain of Pyro's kernel on eager Pyro's log density.

    Returns
    -------
    points : ndarray
        Warm-up and kept draws, (num_warmup + num_samples, D).
    stats : dict
        Statistics of each of them.
    adapted : dict
        Final ``step_size`` () and ``inverse_mass`` (D,).
    """
    pyro.set_rng_seed(seed)

    def potential(params: dict[str, torch.Tensor]) -> torch.Tensor:
        density.num_gradients += 1
        return -density.eager(params["point"])

    kernel = RecordingNUTS(potential_fn=potential, target_accept_prob=target_accept, max_tree_depth=max_tree_depth)
    state = {"point": torch.as_tensor(start)}
    kernel.initial_params = state
    points, rows = [], []
    kernel.setup(num_warmup)
    for _ in bar(range(num_warmup + num_samples), desc=label):
        state = kernel.sample(state)
        points.append(state["point"].detach().numpy().copy())
        rows.append(kernel.last)
    (mass,) = kernel.inverse_mass_matrix.values()
    kernel.cleanup()
    stats = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    return np.array(points), stats, {"step_size": np.array(rows[-1]["step_size"]), "inverse_mass": mass.numpy()}
