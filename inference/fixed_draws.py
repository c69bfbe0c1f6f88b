"""L-BFGS for any guide whose step can be recorded, on base noise that is drawn once (sample-average approximation).

The recorded step takes its noise as an input. With the noise fixed the loss is a smooth function without noise, to be
minimised to the end; the draws double until the bound on fresh ones has caught up (Burroni, Domke & Sheldon 2024).
Where the noise is standard normal, its rows are orthogonal and antithetic, which makes the loss exact for Gaussian
posteriors.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from pyro.infer import ELBO
from scipy.optimize import minimize

from inference.errors import InputError, one_line
from inference.fit import Status
from inference.gaussian import GRADIENT_TOLERANCE, MAX_FULL_RANK, REFUSED, base_draws
from inference.graph import MAX_BATCH_NUMBERS, widest
from inference.progress import bar
from inference.svi_graph import StepGraph, UntraceableError, record_step

# The objective over-fits its N draws by the gap to the bound on fresh ones. N doubles until the gap is under the larger
# of GAP nats and two standard errors.
GAP, MIN_DRAWS, MAX_DRAWS, FRESH_DRAWS = 0.02, 32, 4096, 2048
# Iterations of L-BFGS for one set of draws; 20 to 60 suffice for most.
MAX_LBFGS_STEPS = 500
# Runs of the step in all, which bounds the wait for guides with thousands of parameters: Gaussian guides in ten
# dimensions need 10 000.
MAX_GRADIENTS = 300_000


@dataclass(eq=False)
class FixedDraws:
    """The optimisation; `optimise` moves the parameters of the recorded step.

    Parameters
    ----------
    recorded
        The step.
    num_steps
        The most iterations of L-BFGS in all; None for no limit but the one of each round.
    seed
        Of the structured draws.
    """

    recorded: StepGraph
    num_steps: int | None
    seed: int
    losses: list[float] = field(default_factory=list)
    gradient_norms: list[float] = field(default_factory=list)
    num_gradients: int = 0

    def __post_init__(self) -> None:
        params, noise = self.recorded.params, self.recorded.noise
        chunk = max(1, MAX_BATCH_NUMBERS // widest(self.recorded.graph))
        dims = (*(None for _ in params), *(0 for _ in noise))
        self._run = torch.vmap(self.recorded.graph, in_dims=dims, chunk_size=chunk)
        self._sizes = [p.numel() for p in params]
        self._rng = np.random.default_rng(self.seed)

    def optimise(self) -> Status:
        """Double the draws until the bound on fresh ones has caught up with the optimised one."""
        dim = sum(noise.shape.numel() for noise in self.recorded.noise)
        num = max(MIN_DRAWS, 2 * dim)
        fresh = [noise.draw(min(FRESH_DRAWS, max(64, MAX_BATCH_NUMBERS // dim))) for noise in self.recorded.noise]
        left = self.num_steps
        with bar(desc="SVI: doubling draws") as shown:
            while True:
                result = self._minimise(self._draws(num), MAX_LBFGS_STEPS if left is None else left)
                shown.update()
                outside, error = self._estimate(fresh)
                gap = outside - result.fun
                left = None if left is None else left - result.nit
                enough = gap < max(GAP, 2 * error)
                spent = (left is not None and left <= 0) or self.num_gradients >= MAX_GRADIENTS
                if enough or spent or 2 * num > MAX_DRAWS:
                    return self._status(result, gap, num, enough=enough, spent=spent)
                num *= 2

    def _draws(self, num: int) -> list[torch.Tensor]:
        noise = self.recorded.noise
        if not all(part.normal for part in noise):
            return [part.draw(num) for part in noise]
        sizes = [part.shape.numel() for part in noise]
        full_rank = sum(sizes) <= MAX_FULL_RANK
        z = base_draws(num, sum(sizes), full_rank=full_rank, random_radius=True, rng=self._rng)
        parts = torch.as_tensor(z).split(sizes, dim=1)
        return [z.reshape(-1, *part.shape).to(part.dtype) for z, part in zip(parts, noise, strict=True)]

    def _minimise(self, draws: list[torch.Tensor], most: int) -> Any:
        params = self.recorded.params
        start = torch.cat([p.detach().reshape(-1) for p in params]).double().numpy()

        def loss_and_gradient(vector: np.ndarray) -> tuple[float, np.ndarray]:
            self._set(vector)
            with torch.no_grad():
                loss, *gradients = self._run(*params, *draws)
            self.num_gradients += len(loss)
            gradient = torch.cat([g.mean(0).reshape(-1) for g in gradients]).double().numpy()
            value = float(loss.mean())
            if not (np.isfinite(value) and np.isfinite(gradient).all()):
                return REFUSED, np.zeros_like(vector)
            self.losses.append(value)
            self.gradient_norms.append(float(np.linalg.norm(gradient)))
            return value, gradient

        afford = (MAX_GRADIENTS - self.num_gradients) // len(draws[0])
        options = {"maxiter": max(1, most), "maxfun": max(1, afford), "maxcor": 20, "ftol": 1e-13, "gtol": 1e-8}
        result = minimize(loss_and_gradient, start, jac=True, method="L-BFGS-B", options=options)
        self._set(result.x)
        return result

    def _set(self, vector: np.ndarray) -> None:
        for p, part in zip(self.recorded.params, torch.as_tensor(vector).split(self._sizes), strict=True):
            p.data.copy_(part.view_as(p))

    def _estimate(self, draws: list[torch.Tensor]) -> tuple[float, float]:
        with torch.no_grad():
            losses = self._run(*self.recorded.params, *draws)[0].double().numpy()
        if not np.isfinite(losses).all():
            return np.inf, np.inf
        return float(losses.mean()), float(losses.std(ddof=1) / np.sqrt(len(losses)))

    def _status(self, result: Any, gap: float, num: int, *, enough: bool, spent: bool) -> Status:
        loss, slope = float(result.fun), float(np.abs(result.jac).max())
        if loss >= REFUSED:
            return Status("diverged", "L-BFGS found no parameters with a finite loss on its fixed draws; use Adam.")
        settled = slope < 100 * GRADIENT_TOLERANCE * (1 + abs(loss))
        if settled and enough:
            said = f"{len(self.losses)} evaluations of {num} fixed draws, which are not over-fitted"
            return Status("converged", f"Converged: L-BFGS is stationary after {said} (bound {-loss:.2f} nats).")
        if spent:
            return Status(
                "budget_spent",
                f"Budget spent: {len(self.losses)} evaluations of L-BFGS on up to {num} draws; raise num_steps if it "
                "is set, or use Adam.",
            )
        if not settled:
            return Status(
                "budget_spent",
                "L-BFGS did not reach a stationary point on its fixed draws; the guide may have no optimum. Use Adam.",
            )
        return Status(
            "budget_spent",
            f"The bound still over-fits its {num} fixed draws by {gap:.2g} nats; use Adam, or a guide with fewer "
            "parameters.",
        )


def record_fixed(loss: ELBO, model: Callable, guide: Callable, data: Mapping[str, Any]) -> StepGraph:
    """Record a step whose base noise can be held fixed.

    Raises
    ------
    InputError
        It cannot be recorded, or has no base noise.
    """
    try:
        recorded = record_step(loss, model, guide, data)
    except Exception as error:  # recording can fail in as many ways as models can be written
        said = one_line(error) if isinstance(error, UntraceableError) else f"{type(error).__name__}: {one_line(error)}"
        raise InputError(f"optimizer='lbfgs': the step cannot be recorded ({said}); use optimizer='adam'.") from error
    if not recorded.noise:
        raise InputError(
            "optimizer='lbfgs': the guide draws no base noise that could be held fixed; use optimizer='adam', and for "
            "a mode MAP() or Laplace()."
        )
    return recorded
