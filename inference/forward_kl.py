"""A guide trained on draws of a posterior p: maximum likelihood, which minimises KL(p || q).

SVI minimises KL(q || p), for which a q that misses a tail or a mode costs nothing; here it costs most. Such a q covers
the posterior, so it serves as a proposal for importance sampling or a bridge estimate of the evidence (compare Jerfel
et al. 2021).
"""

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import pyro
import torch
from scipy.optimize import minimize

from inference.density import Density
from inference.errors import InputError
from inference.fit import Fit, Problem, Run, Status, fit, short_repr
from inference.gaussian import mean_and_error
from inference.guide_density import LogQ, log_density_of, match_moments
from inference.guides import check_guide, draw_guide, make_guide, unconstrained_draws
from inference.isolation import keep_as_trained
from inference.nuts import check_count
from inference.svi import SVI
from inference.warm_start import points_of

# With more parameters than this share of the draws, a guide can learn the draws by heart: then a fifth of each chain is
# held out, and the parameters that make those most likely are kept.
FLEXIBLE, HELD_OUT = 0.1, 0.2
# Steps without a better likelihood of the draws held out, after which training ends.
PATIENCE = 30
# Loss given to the line search where the density of the guide is not finite.
REFUSED = 1e30


def train_guide(
    source: Fit,
    guide: str | Callable[..., Any] = "multivariate_normal",
    *,
    num_steps: int = 500,
    num_samples: int = 1000,
    num_chains: int = 4,
    seed: int = 0,
) -> Fit:
    """Train a guide on the draws of a fit, of NUTS above all, by maximum likelihood.

    The likelihood of the draws is maximised by L-BFGS, which ends by itself. Gaussian guides of Pyro's start at their
    optimum, the draws' mean and covariance on the unconstrained space.

    Parameters
    ----------
    source
        A fit with draws on the unconstrained space.
    guide
        A name or a guide, as for `SVI`: any ``AutoContinuous`` guide, ``AutoNormal``, or a function or module that
        samples the model's continuous sites. Modules are copied; the trained copy is ``fit.state["guide"]``.
    num_steps
        The most L-BFGS steps.
    num_samples, num_chains
        Independent draws from the trained guide are returned in this shape.
    seed
        Of these draws, and of the guide's start.

    Returns
    -------
    Fit
        As by `SVI`, with ``log_weight``. ``history["loss"]`` is the mean of -log q over the draws trained on.
        ``fit.state``: ``"elbo"``, ``"elbo_se"``, and ``"eubo"``, the mean of log p - log q over the source's draws. The
        log evidence lies between bound and upper bound; their difference is KL(p || q) + KL(q || p). A guide with many
        parameters is trained on four fifths of each chain, until the likelihood of the rest, which then gives
        ``"eubo"``, no longer rises.

    Raises
    ------
    InputError
        The source has no such draws or no model, or the guide's density at given draws is not known.

    Examples
    --------
    >>> nuts = fit(model, data, NUTS(), seed=1)
    >>> q = train_guide(nuts, "multivariate_normal")
    >>> q.stats["log_weight"].shape
    (4, 1000)
    """
    if not isinstance(source, Fit):
        raise InputError(f"source: expected a Fit, by NUTS() for instance, got {source!r}.")
    if "unconstrained" not in source.state or source.model is None:
        raise InputError(
            f"source: the fit by {source.engine!r} has no draws on the unconstrained space, or was loaded without its "
            "model; give one by NUTS, or load_fit(path, model=...)."
        )
    engine = ForwardKL(source=source, guide=guide, num_steps=num_steps, num_samples=num_samples, num_chains=num_chains)
    return fit(source.model, source.data, engine, seed=seed)


@dataclass(frozen=True, kw_only=True, repr=False)
class ForwardKL:
    """The engine of `train_guide`, with the same settings."""

    method: ClassVar[str] = "vi"

    source: Fit
    guide: str | Callable[..., Any] = "multivariate_normal"
    num_steps: int = 500
    num_samples: int = 1000
    num_chains: int = 4

    def __post_init__(self) -> None:
        for name, least in (("num_steps", 1), ("num_samples", 4), ("num_chains", 1)):
            check_count(name, getattr(self, name), least=least)

    __repr__ = short_repr

    def __deepcopy__(self, memo: dict) -> "ForwardKL":
        """Copy the guide, which is trained, and not the fit."""
        made = copy.copy(self)
        object.__setattr__(made, "guide", copy.deepcopy(self.guide, memo))
        return made

    def floating_dtype(self, model: Any) -> torch.dtype:
        """Give that of `SVI` with this guide."""
        return SVI(guide=self.guide).floating_dtype(model)

    def run(self, problem: Problem) -> Run:
        """Train and draw; called by `inference.fit.fit`."""
        begin = time.perf_counter()
        sites, density = problem.sites, problem.density
        guide = make_guide(self.guide, sites, density=None, seed=problem.seed)
        trace = check_guide(guide, sites)
        if isinstance(self.guide, str):
            keep_as_trained(guide)
        points = torch.as_tensor(points_of(self.source, density, argument="source"), dtype=density.dtype)
        log_q = log_density_of(guide, density, trace, points)
        match_moments(guide, density, points)
        setup = time.perf_counter() - begin
        begin = time.perf_counter()
        training = _Training(log_q, _parameters(guide), torch.arange(len(points)).reshape(self.source.num_chains, -1))
        ended = training.climb(self.num_steps)
        optimisation = time.perf_counter() - begin
        begin = time.perf_counter()
        judged = training.held_out if len(training.held_out) else training.rows
        with torch.no_grad():
            upper = float((density.log_density(points[judged].numpy()) - log_q(judged).numpy()).mean())
        run = self._draw(guide, density)
        bound = run.state["elbo"]
        return replace(
            run,
            history={"loss": np.array(training.losses), "gradient_norm": np.array(training.norms)},
            status=_status(ended, bound, upper),
            seconds={"setup": setup, "optimisation": optimisation, "sampling": time.perf_counter() - begin},
            state={**run.state, "eubo": upper},
        )

    def _draw(self, guide: Callable[..., Any], density: Density) -> Run:
        """Draw from the trained guide."""
        shape = (self.num_chains, self.num_samples)
        draws, log_q = draw_guide(guide, density.sites, shape[0] * shape[1])
        points, stats, remark = unconstrained_draws(density, draws, log_q)
        bound, error = mean_and_error(stats["log_weight"])
        return Run(
            draws={name: value.reshape(*shape, *value.shape[1:]) for name, value in draws.items()},
            stats={name: value.reshape(shape) for name, value in stats.items()},
            status=Status("finished", "Drawn."),
            seconds={},
            notes=tuple(note for note in (density.reason, remark) if note),
            state={
                "unconstrained": points.reshape(*shape, -1),
                "labels": density.labels,
                "num_gradients": 0,  # of the model's density, which training does not ask for
                "backend": "maximum likelihood of draws, L-BFGS",
                "guide": guide,
                "elbo": bound,
                "elbo_se": error,
            },
        )


def _parameters(guide: Callable[..., Any]) -> list[torch.Tensor]:
    """Give the unconstrained parameters of a guide that has run."""
    owner = getattr(guide, "__self__", guide)
    if isinstance(owner, torch.nn.Module):
        return list(owner.parameters())
    return [value for _, value in pyro.get_param_store().named_parameters()]


class _Training:
    """Maximum likelihood of a guide at draws, by their numbers (chain, draw); stopped early where it is flexible."""

    def __init__(self, log_q: LogQ, parameters: list[torch.Tensor], rows: torch.Tensor) -> None:
        self.log_q, self.parameters = log_q, parameters
        self.losses: list[float] = []
        self.norms: list[float] = []
        flexible = sum(p.numel() for p in parameters) > FLEXIBLE * rows.numel()
        cut = rows.shape[1] - int(HELD_OUT * rows.shape[1]) if flexible else rows.shape[1]
        self.rows, self.held_out = rows[:, :cut].reshape(-1), rows[:, cut:].reshape(-1)
        self._best, self._kept, self._since = np.inf, self._vector(), 0

    def climb(self, num_steps: int) -> str:
        """Take at most ``num_steps`` steps of L-BFGS and keep the best parameters; say how it ended, or nothing."""
        if not self.parameters:
            raise InputError("guide: has no parameters to train.")
        start = self._vector()
        self._step(start)
        try:
            found = minimize(
                self._loss, start, jac=True, method="L-BFGS-B", callback=self._step, options={"maxiter": num_steps}
            )
        except StopIteration:
            self._write(self._kept)
            return "settled"
        self._write(self._kept if len(self.held_out) else found.x)
        return "settled" if found.nit < num_steps else ""

    def _step(self, vector: np.ndarray) -> None:
        """Hold the parameters of a step against the draws held out."""
        if not len(self.held_out):
            return
        self._write(vector)
        with torch.no_grad():
            loss = -float(self.log_q(self.held_out).mean())
        self._since += 1
        if loss < self._best:
            self._best, self._kept, self._since = loss, vector.copy(), 0
        if self._since >= PATIENCE:
            raise StopIteration

    def _loss(self, vector: np.ndarray) -> tuple[float, np.ndarray]:
        self._write(vector)
        with torch.enable_grad():
            loss = -self.log_q(self.rows).mean()
            parts = torch.autograd.grad(loss, self.parameters, allow_unused=True, materialize_grads=True)
        gradient = torch.cat([part.reshape(-1) for part in parts]).double().numpy()
        if not (torch.isfinite(loss) and np.isfinite(gradient).all()):
            return REFUSED, np.zeros_like(vector)
        self.losses.append(loss.item())
        self.norms.append(float(np.linalg.norm(gradient)))
        return loss.item(), gradient

    def _vector(self) -> np.ndarray:
        if not self.parameters:
            return np.zeros(0)
        return torch.cat([p.detach().reshape(-1) for p in self.parameters]).double().numpy()

    def _write(self, vector: np.ndarray) -> None:
        parts = torch.as_tensor(vector).split([p.numel() for p in self.parameters])
        for p, part in zip(self.parameters, parts, strict=True):
            p.data.copy_(part.view_as(p))


def _status(ended: str, bound: float, upper: float) -> Status:
    gap = f"KL(p || q) + KL(q || p) is about {upper - bound:.2f} nats"
    if ended:
        return Status("converged", f"The likelihood of the draws has stopped improving; {gap}.")
    return Status("budget_spent", f"The likelihood of the draws was still improving: raise num_steps; {gap}.")
