"""AutoVI: variational inference that needs no tuning, and climbs until its own check is passed."""

import time
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch

from inference import limits
from inference.density import Density
from inference.devices import check_device
from inference.diagnostics import khat_limit
from inference.exchangeable import exchangeable
from inference.fit import Problem, Run, Status, short_repr
from inference.gaussian import MAX_FULL_RANK, Fitted, Gaussian, mean_and_error
from inference.importance import Proposals
from inference.label_copies import nearest_modes
from inference.ladder import DRAWS, MAX_DRAWS, TARGETS, Ladder
from inference.mode_chains import sample_modes
from inference.modes import seen_from
from inference.nuts import DTYPES, NUTS, check_choice, check_count, check_number

BACKENDS = ("auto", "native", "python")
# Evaluations of a fit, to estimate whether compiling pays, now or when the library is next found in the cache: some
# 15 000, which in batches cost less than single ones.
TYPICAL_GRADIENTS = 7500
# Proposals from one labelling of exchangeable components have more than this part of their weight in it; those that
# cover all K! of them have one part in K!.
HALF = 0.5


@dataclass(frozen=True, kw_only=True, repr=False)
class AutoVI:
    """Variational inference that climbs a ladder until its importance weights say that it has arrived.

    1. Climbs from dispersed starts find the modes; of K! modes that are one another relabelled, one. Where Laplace's
       Gaussians there look good enough, they are the first rung.
    2. At each mode that counts, a Gaussian with full covariance (up to 250 dimensions) by L-BFGS on fixed
       orthogonal-antithetic draws, whose number doubles until the bound on fresh draws has caught up (DADVI: Giordano,
       Ingram & Broderick 2024; doubling: Burroni, Domke & Sheldon 2024). A second fit from elsewhere has to agree.
    3. A bent Gaussian: skewness, tails, and scales that move with parent coordinates, which is a decentring by as much
       as the data ask for (`inference.bent`).
    4. From each of these, importance sampling with heavier tails (`inference.importance`). The climb ends where k-hat
       and the effective sample size reach ``target``, and the draws are resampled proposals.
    5. Where no rung gets there, NUTS starts from the proposals of the best one, whitened by their covariance, in every
       mode; bridge sampling between its draws and the proposals tells the modes' masses (`inference.mode_chains`).
       ``fit.method`` is then ``"mcmc"``.

    There is no learning rate and no stopping rule to tune. A rung is begun only if the evaluations of the density stay
    within ``budget`` times what NUTS by itself is predicted to need.

    Parameters
    ----------
    num_samples, num_chains
        Draws are returned in this shape, that of an MCMC run beside it.
    target
        What the draws are for: ``"means"``, ``"sds"`` or ``"intervals"`` ask for an effective sample size of 400, 1000
        or 2000, and a k-hat that suits.
    budget
        In units of the evaluations that `NUTS` with its defaults is predicted to need; below 1 it does not take over.
    num_starts
        Dispersed starts, uniform on (-2, 2) of the unconstrained space.
    backend
        ``"native"``: the density compiled to native code. ``"python"``: the recorded density, in batches, by torch.
        ``"auto"``: native, unless compiling would take longer than it saves.
    dtype
        Precision of the density, ``"float64"`` or ``"float32"``; rounding limits how far L-BFGS can descend.
    device
        Where batches of the recorded density are evaluated: ``"cpu"``, or ``"cuda"`` for large data on a GPU (native
        code is for the CPU).

    Notes
    -----
    ``fit.state``: ``"ladder"``, one dict for each rung (`inference.ladder.Rung`); ``"rung"``, the one whose draws these
    are; ``"loc"`` (D,), ``"scale"`` (D, D) or (D,) of the Gaussian; ``"elbo"``, ``"elbo_se"``, the bound that belongs
    to the draws: for resampled ones the importance-weighted bound (Domke & Sheldon 2018), an estimate of the log
    evidence, with log K! added where components are exchangeable and one labelling was fitted; ``"starts"``:
    ``"elbo"`` of the two fits and whether they ``"agree"``; ``"mode_search"``; and ``"importance"`` for draws that are
    resampled: ``"khat"``, ``"khat_limit"``, ``"ess"``, ``"num_proposals"``. Draws that are not (above 250 dimensions,
    or where weights cannot be made) come with ``log_q`` and ``log_weight`` in ``fit.stats``.
    """

    method: ClassVar[str] = "vi"

    num_samples: int = 1000
    num_chains: int = 4
    target: str = "intervals"
    budget: float = 1.0
    num_starts: int = 8
    backend: str = "auto"
    dtype: str = "float64"
    device: str = "cpu"

    def __post_init__(self) -> None:
        for name, least in (("num_samples", 4), ("num_chains", 1), ("num_starts", 1)):
            check_count(name, getattr(self, name), least=least)
        check_choice("target", self.target, TARGETS)
        check_number("budget", self.budget, above=0.0)
        check_choice("backend", self.backend, BACKENDS)
        check_choice("dtype", self.dtype, DTYPES)
        check_device(self.device)

    __repr__ = short_repr

    def floating_dtype(self, model: Any) -> torch.dtype:
        """Give ``dtype``, whatever the model."""
        return DTYPES[self.dtype]

    def run(self, problem: Problem) -> Run:
        """Climb the ladder; called by `inference.fit.fit`."""
        begin = time.perf_counter()
        density = problem.density
        density.require_no_noise()
        setup = time.perf_counter() - begin
        begin = time.perf_counter()
        density.move(torch.device(self.device))
        if self.backend != "python" and density.device.type == "cpu":
            density.compile(TYPICAL_GRADIENTS if self.backend == "auto" else np.inf)
        compilation = time.perf_counter() - begin
        begin = time.perf_counter()
        rng = np.random.default_rng(problem.seed)
        ladder = Ladder(density, rng, TARGETS[self.target], self.num_chains * self.num_samples, np.inf)
        answer = self._climb(ladder, problem)
        optimisation = time.perf_counter() - begin
        begin = time.perf_counter()
        shape = (self.num_chains, self.num_samples)
        latents = density.constrain(answer.points)
        seen = seen_from(density, answer.points, ladder.climbed) if ladder.full_rank else None
        sampling = time.perf_counter() - begin
        first = answer.gaussian
        return Run(
            draws={name: value.reshape(*shape, *value.shape[1:]) for name, value in latents.items()},
            stats={name: value.reshape(shape) for name, value in answer.stats.items()},
            history={"loss": np.array(ladder.losses), "gradient_norm": np.array(ladder.gradient_norms)},
            status=_status(ladder, answer),
            seconds={"setup": setup, "compile": compilation, "optimisation": optimisation, "sampling": sampling},
            notes=_notes(density, full_rank=ladder.full_rank),
            state={
                "unconstrained": answer.points.reshape(*shape, density.dim),
                "labels": density.labels,
                "num_gradients": ladder.num_evaluations,
                "backend": f"L-BFGS, {density.backend} density",
                "ladder": [asdict(rung) for rung in ladder.rungs],
                "rung": answer.rung,
                "loc": first.loc,
                "scale": first.scale,
                "elbo": answer.elbo,
                "elbo_se": answer.elbo_se,
                "starts": {"elbo": ladder.bounds, "agree": ladder.agree},
                **answer.state,
                # Looked for in the search for modes; spares `check` a recording of the density.
                **({"num_exchangeable": len(exchangeable(density))} if ladder.climbed.modes else {}),
                **({"mode_search": asdict(seen)} if seen else {}),
            },
        )

    def _climb(self, ladder: Ladder, problem: Problem) -> "_Answer":
        """Go up until a rung is good enough, then draw from it."""
        ladder.search(self.num_starts)
        tried = ladder.nearly_gaussian()
        if tried:
            fitted = ladder.missed(ladder.laplace())
            ladder.max_evaluations = self.budget * predicted_gradients(fitted[0].q)
            found, _ = ladder.climb("laplace", lambda _: fitted, DRAWS, most=DRAWS, num_proposals=limits.MIN_DRAWS)
            found = ladder.enough(found, fitted) if ladder.good(found) else found
            if ladder.good(found):
                return _resampled(ladder, "laplace", found, fitted, fitted[0].q)
        gaussians = ladder.gaussian(ladder.starts())
        gaussians = gaussians if tried else ladder.missed(gaussians)
        ladder.max_evaluations = self.budget * predicted_gradients(gaussians[0].q)
        if not ladder.full_rank:
            wide = ladder.linear_response(gaussians[0])
            return _raw(ladder, "linear_response", wide) if wide else _raw(ladder, "mean_field", gaussians[0])
        rungs = {  # how each is fitted on so many draws, at first and at most: bending gains more than more draws do
            "gaussian": (lambda num: gaussians, DRAWS, DRAWS),
            "bent": (lambda num: ladder.bent(gaussians, num), 4 * DRAWS, MAX_DRAWS),
        }
        best: tuple[str, Proposals, list[Fitted]] | None = None
        for name, (fit, num, most) in rungs.items():
            if best is not None and not ladder.may_spend(ladder.cost(num, bent=True) * len(gaussians)):
                break
            found, fitted = ladder.climb(name, fit, num, most=most)
            if ladder.good(found):
                found = ladder.enough(found, fitted)
                if ladder.good(found):
                    return _resampled(ladder, name, found, fitted, gaussians[0].q)
            if best is None or found.ess > best[1].ess:
                best = name, found, fitted
        name, found, fitted = best
        found = ladder.enough(found, fitted)
        enough = found.khat < khat_limit(len(found.points)) and found.ess >= limits.IS_ESS
        if not enough and self.budget >= 1:
            return self._hand_over(ladder, problem, found, fitted, gaussians[0].q)
        if np.isfinite(found.khat):
            return _resampled(ladder, name, found, fitted, gaussians[0].q)
        return _raw(ladder, name, fitted[0])

    def _hand_over(
        self, ladder: Ladder, problem: Problem, found: Proposals, fitted: list[Fitted], first: Gaussian
    ) -> "_Answer":
        """Sample by NUTS in every mode, whitened by the covariance of the proposals, which is wider than the fit's."""
        before = ladder.density.num_gradients
        chains = sample_modes(
            ladder.density,
            [one.q for one in fitted],
            found,
            num_samples=self.num_samples,
            num_chains=self.num_chains,
            seed=problem.seed,
            progress=problem.progress,
        )
        ladder.num_evaluations += ladder.density.num_gradients - before
        points = chains.points.reshape(-1, ladder.density.dim)
        bound = (
            (chains.log_evidence, chains.log_evidence_se)
            if np.isfinite(chains.log_evidence)
            else (found.elbo, found.elbo_se)
        )
        modes = {"mass": chains.masses, "se": chains.mass_se}
        return _Answer("nuts", points, first, chains.stats, *bound, {"method": "mcmc", "modes": modes})


@dataclass(frozen=True, eq=False)
class _Answer:
    """Draws (S, D) of one rung, with what else the result keeps of it."""

    rung: str
    points: np.ndarray
    gaussian: Gaussian
    stats: dict[str, np.ndarray]
    elbo: float
    elbo_se: float
    state: dict[str, Any]
    settled: bool = True


def _resampled(ladder: Ladder, rung: str, found: Proposals, fitted: list[Fitted], first: Gaussian) -> _Answer:
    chosen = found.resample(ladder.num_draws, ladder.rng)
    importance = {
        "khat": found.khat,
        "khat_limit": khat_limit(len(found.points)),
        "ess": found.ess,
        "num_proposals": len(found.points),
    }
    stats = {"lp": found.log_density[chosen]}
    bound = found.log_evidence, found.log_evidence_se
    _, moved, log_copies = nearest_modes(ladder.density, [one.q for one in fitted], found.points)
    if found.weights[moved].sum() < HALF:  # else the proposals cover all labellings, not one of K!
        in_one = replace(found, log_weight=np.where(moved, -np.inf, found.log_weight))
        bound = in_one.log_evidence + log_copies, found.log_evidence_se
    return _Answer(rung, found.points[chosen], first, stats, *bound, {"importance": importance})


def _raw(ladder: Ladder, rung: str, fitted: Fitted) -> _Answer:
    """Draw from the fitted distribution itself."""
    q = fitted.q
    z = ladder.rng.standard_normal((ladder.num_draws, ladder.density.dim))
    points = q.transform(z)
    log_p, log_q = ladder.log_density(points), q.log_q(z)
    bound, error = mean_and_error(log_p - log_q)
    stats = {"lp": log_p, "log_q": log_q, "log_weight": log_p - log_q}
    return _Answer(rung, points, q if isinstance(q, Gaussian) else q.base, stats, bound, error, {}, fitted.settled)


def predicted_gradients(q: Gaussian) -> float:
    """Predict how many gradients `NUTS` with its defaults takes on a posterior that looks like a Gaussian.

    Leapfrog steps grow with the ratio of the largest to the smallest sd, over directions and in units in which every
    coordinate has sd one, since the mass matrix is diagonal, and with D^(1/4) (Neal 2011, section 4). The power is
    measured: on 25 reference posteriors the prediction is within a factor of two for 20.
    """
    scale = q.scale if q.full_rank else np.diag(q.scale)
    sds = np.linalg.svd(scale / np.linalg.norm(scale, axis=1, keepdims=True), compute_uv=False)
    steps = np.clip(3.0 * (sds[0] / sds[-1] * len(sds) ** 0.25) ** 0.68, 3.0, 2.0**NUTS.max_tree_depth)
    return float(NUTS.num_chains * (NUTS.num_warmup + NUTS.num_samples) * steps)


def _status(ladder: Ladder, answer: _Answer) -> Status:
    """Say how the climb ended."""
    way = f"{len(ladder.rungs)} rung{'s' * (len(ladder.rungs) != 1)}, bound {answer.elbo:.2f} nats"
    if answer.rung == "nuts":
        num = len(answer.state["modes"]["mass"])
        where = f" in each of {num} modes, which bridge sampling weighed" if num > 1 else ""
        said = f"No variational rung was good enough ({way}): NUTS went on from the best of them{where}."
        return Status("finished", said)
    if not ladder.agree:
        first, second = np.sort(ladder.bounds)[::-1][:2]
        return Status(
            "budget_spent",
            f"Two fits of a Gaussian from different starts disagree: their bounds are {first:.2f} and {second:.2f} "
            "nats, so there may be several optima; look for several modes.",
        )
    if "importance" in answer.state:
        numbers = answer.state["importance"]
        return Status(
            "converged",
            f"The {answer.rung} rung arrived ({way}): k-hat {numbers['khat']:.2f}, and {numbers['num_proposals']} "
            f"proposals are worth {numbers['ess']:.0f} draws.",
        )
    if not answer.settled:
        return Status(
            "budget_spent", "L-BFGS did not reach a stationary point; the posterior may have no Gaussian fit."
        )
    return Status("converged", f"Stationary, and the draws are not over-fitted ({way}).")


def _notes(density: Density, *, full_rank: bool) -> tuple[str, ...]:
    notes = [density.reason] if density.reason else []
    if not full_rank:
        notes.append(
            f"{density.dim} dimensions: above {MAX_FULL_RANK} a mean field is fitted; its covariance is that of linear "
            "response where that raises the bound"
        )
    return tuple(notes)
