"""Annealed importance sampling between a guide and the posterior, many rows and chains at once (Neal 2001)."""

import logging
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import logsumexp
from torch.fx.experimental.proxy_tensor import make_fx

from inference.errors import InputError
from inference.latent_rows import SAME, LatentRows, Part

logger = logging.getLogger(__name__)

# Draws of the guide that give a row's Gaussian, and what is added to its correlation matrix against rounding.
MOMENT_DRAWS, JITTER = 1000, 1e-6
LEAPFROG_STEPS = 5
# Acceptance that HMC is the most efficient at, and by how much a step changes after each transition of the trial run
# (Wu et al. 2017, appendix: the same rule).
TARGET_ACCEPT, STEP_CHANGE = 0.65, 1.05
FIRST_STEP = 0.5  # in sds of the guide
SMOOTH = 10  # temperatures whose steps are averaged
# Temperatures follow a logistic curve between these, so that most lie near both ends (Grosse et al. 2015).
STEEPNESS = 4.0


@dataclass(frozen=True, eq=False)
class RowGaussians:
    """One Gaussian for each row, over unconstrained latents.

    Attributes
    ----------
    loc
        (n, d).
    factor
        Lower triangular factors of the covariances, (n, d, d).
    """

    loc: torch.Tensor
    factor: torch.Tensor

    @classmethod
    def of(cls, points: torch.Tensor) -> "RowGaussians":
        """Take the moments of draws (S, n, d)."""
        loc, sd = points.mean(0), points.std(0).clamp_min(torch.finfo(points.dtype).tiny)
        z = (points - loc) / sd
        correlation = torch.einsum("sni,snj->nij", z, z) / len(z)
        eye = torch.eye(points.shape[-1], dtype=points.dtype)
        return cls(loc, sd[:, :, None] * torch.linalg.cholesky((1 - JITTER) * correlation + JITTER * eye))

    def points(self, white: torch.Tensor) -> torch.Tensor:
        """Map standard normal draws (C, n, d) to draws (C, n, d)."""
        return self.loc + torch.einsum("nij,cnj->cni", self.factor, white)

    def white(self, points: torch.Tensor) -> torch.Tensor:
        """Map points (C, n, d) to the standard normal draws that `points` maps to them."""
        centred = (points - self.loc).permute(1, 2, 0)
        return torch.linalg.solve_triangular(self.factor, centred, upper=False).permute(2, 0, 1)

    @property
    def log_det(self) -> torch.Tensor:
        """Log determinants of the factors, (n,)."""
        return self.factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)


@dataclass(frozen=True, eq=False)
class _State:
    """Points (C, n, d), the log ratio of posterior to q there (C, n), and its gradient (C, n, d)."""

    white: torch.Tensor
    ratio: torch.Tensor
    gradient: torch.Tensor

    def value_at(self, temperature: float) -> torch.Tensor:
        """Log density on the path, up to a constant."""
        return temperature * self.ratio - 0.5 * (self.white**2).sum(-1)

    def gradient_at(self, temperature: float) -> torch.Tensor:
        """Gradient of the log density on the path."""
        return temperature * self.gradient - self.white

    def where(self, chosen: torch.Tensor, other: "_State") -> "_State":
        """Take this state where chosen (C, n), else the other."""
        each = chosen[..., None]
        return _State(
            torch.where(each, self.white, other.white),
            torch.where(chosen, self.ratio, other.ratio),
            torch.where(each, self.gradient, other.gradient),
        )


class Annealing:
    """A path of densities q^(1 - b) p^b for some rows, in the coordinates in which q is standard normal.

    q is a Gaussian with the moments of the guide's draws: of a Gaussian guide, the guide itself.

    Parameters
    ----------
    rows, part
        The model, and which of its rows.
    num_temperatures
        Steps from q to the posterior.
    num_chains
        Chains C for each row.
    seed
        Of everything random.
    """

    def __init__(
        self,
        rows: LatentRows,
        part: Part,
        *,
        num_temperatures: int,
        num_chains: int,
        seed: int,
    ) -> None:
        self.rows, self.data, self.num_chains = rows, part.data, num_chains
        self.generator = torch.Generator().manual_seed(seed)
        self.q = RowGaussians.of(rows.points(part, MOMENT_DRAWS))
        grid = torch.sigmoid(torch.linspace(-STEEPNESS, STEEPNESS, num_temperatures + 1, dtype=torch.float64))
        self.temperatures = ((grid - grid[0]) / (grid[-1] - grid[0])).tolist()
        self._evaluate = self._recorded()
        self.step = self._steps_by_trial()

    @property
    def _shape(self) -> tuple[int, int, int]:
        return self.num_chains, *self.q.loc.shape

    def _normal(self) -> torch.Tensor:
        return torch.randn(self._shape, generator=self.generator)

    def _state(self, white: torch.Tensor) -> "_State":
        """Evaluate the log of posterior (not normalised) over q, and its gradient, at points (C, n, d)."""
        ratio, gradient = self._evaluate(white)
        return _State(white, torch.nan_to_num(ratio, nan=-torch.inf), torch.nan_to_num(gradient))

    def _eager(self, white: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        leaf = white.detach().requires_grad_()
        with torch.enable_grad():
            log_p = self.rows.log_joint(self.q.points(leaf), self.data) + self.q.log_det
            ratio = log_p + 0.5 * (leaf**2).sum(-1) + 0.5 * leaf.shape[-1] * np.log(2 * np.pi)
            (gradient,) = torch.autograd.grad(ratio.sum(), leaf)
        return ratio.detach(), gradient

    def _recorded(self) -> Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
        """Record the operations of an evaluation, verified at another point; Pyro's own work is half of its time."""
        try:
            graph = make_fx(self._eager)(self._normal())
            white = self._normal()
            tolerance = SAME[torch.get_default_dtype()]
            for got, expected in zip(graph(white), self._eager(white), strict=True):
                if not torch.allclose(got, expected, rtol=tolerance, atol=tolerance * expected.abs().max().item()):
                    raise ArithmeticError("the recording differs from the model")
        except Exception as error:  # models can be written in many ways
            logger.info("annealing runs the model itself: %s", error)
            return self._eager
        return graph

    def _transition(self, at: "_State", temperature: float, step: torch.Tensor) -> tuple["_State", torch.Tensor]:
        """Hamiltonian Monte Carlo at one temperature: the next state, and mean acceptance of each row."""
        step = step[:, None]
        momentum = self._normal()
        end, ahead = at, momentum + 0.5 * step * at.gradient_at(temperature)
        for i in range(LEAPFROG_STEPS):
            end = self._state(end.white + step * ahead)
            ahead = ahead + (step if i < LEAPFROG_STEPS - 1 else 0.5 * step) * end.gradient_at(temperature)
        energies = [0.5 * (p**2).sum(-1) - state.value_at(temperature) for state, p in ((at, momentum), (end, ahead))]
        log_accept = torch.nan_to_num(energies[0] - energies[1], nan=-torch.inf).clamp_max(0.0)
        accepted = torch.rand(log_accept.shape, generator=self.generator).log() < log_accept
        return end.where(accepted, at), log_accept.exp().mean(0)

    def _steps_by_trial(self) -> list[torch.Tensor]:
        """Find step sizes (n,) for every temperature in a run of their own, so that later runs do not adapt."""
        step, steps = torch.full((len(self.q.loc),), FIRST_STEP), []
        state = self._state(self._normal())
        for temperature in self.temperatures[1:]:
            state, accept = self._transition(state, temperature, step)
            step = torch.where(accept > TARGET_ACCEPT, step * STEP_CHANGE, step / STEP_CHANGE)
            steps.append(step)
        table = torch.stack(steps).log()
        return [table[max(0, i - SMOOTH) : i + SMOOTH + 1].mean(0).exp() for i in range(len(table))]

    def lower(self) -> tuple[np.ndarray, np.ndarray]:
        """Anneal from q to the posterior: a stochastic lower bound of log p(x), and its standard error, (n,)."""
        state = self._state(self._normal())
        log_weight = torch.zeros_like(state.ratio)
        path = zip(self.temperatures[:-1], self.temperatures[1:], self.step, strict=True)
        for before, after, step in path:
            log_weight = log_weight + (after - before) * state.ratio
            if after < 1.0:
                state, _ = self._transition(state, after, step)
        return _log_mean(log_weight)

    def upper(self, points: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Anneal from the posterior to q: a stochastic upper bound of log p(x), and its standard error, (n,).

        Parameters
        ----------
        points
            Draws of the posterior, unconstrained, (C, n, d). The bound holds as far as they are draws of it.
        """
        if tuple(points.shape) != self._shape:
            raise InputError(f"points: expected draws of shape {self._shape}, got {tuple(points.shape)}.")
        state = self._state(self.q.white(points))
        log_weight = torch.zeros_like(state.ratio)
        path = list(zip(self.temperatures[:-1], self.temperatures[1:], self.step, strict=True))
        for before, after, step in reversed(path):
            state, _ = self._transition(state, after, step)
            log_weight = log_weight + (before - after) * state.ratio
        value, se = _log_mean(log_weight)
        return -value, se


def _log_mean(log_weight: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Log mean of weights (C, n) over chains, and its standard error by the jackknife."""
    logs = log_weight.numpy()
    num = len(logs)
    value = logsumexp(logs, axis=0) - np.log(num)
    without = np.stack([logsumexp(np.delete(logs, i, axis=0), axis=0) - np.log(num - 1) for i in range(num)])
    return value, np.sqrt((num - 1) * without.var(axis=0))
