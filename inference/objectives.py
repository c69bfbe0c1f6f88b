"""Objectives for SVI that weigh particles, or leave the score of the guide out of the gradient.

They need two things of a particle beside its log weight log p(x, z) - log q(z): the guide's log density at the *fixed*
draw, whose gradient is the score, and where the model has parameters its log density there. Both come from running
guide and model again at the detached draw. Adding the score to the log weight leaves the pathwise gradient, with no
need to know the distributions or the parameters: any reparameterised guide will do, hand-written or not.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from pyro import poutine
from pyro.distributions import Delta, Unit
from pyro.infer import ELBO, TraceEnum_ELBO, TraceTMC_ELBO
from pyro.infer.enum import get_importance_trace
from pyro.infer.util import get_dependent_plate_dims, torch_item, torch_sum
from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import _Subsample
from pyro.poutine.util import prune_subsample_sites


@dataclass(frozen=True, eq=False)
class Particle:
    """One draw from the guide. Tensors have the dims of the plates that hold every site, for which weights are apart.

    Attributes
    ----------
    log_weight
        log p(x, z) - log q(z), differentiable through the draw.
    score
        log q at the fixed draw: its gradient is the guide's score. Zero where that is not taken apart.
    log_joint
        log p at the fixed draw, for the gradient of the model's own parameters; None where it has none, or where its
        gradient is not taken apart.
    scale
        How often each element counts, where those plates are subsampled.
    """

    log_weight: torch.Tensor
    score: torch.Tensor
    log_joint: torch.Tensor | None
    scale: float


class WeightedObjective(ELBO):
    """Base of the objectives below: weights for the parts of each particle's gradient.

    Parameters
    ----------
    num_particles
        Draws K per step.
    max_plate_nesting
        As in ``pyro.infer.ELBO``.
    enumerate_discrete
        Sum out the discrete sites of the model that are marked for it.
    vectorize_particles
        Run model and guide once, in a plate of K draws; see `vectorized`.
    """

    # Whether the particles' weights stand inside a logarithm, so that a subsampled log weight is no estimate.
    nonlinear = True
    # Whether the three parts of a particle's gradient have coefficients of their own; else one run gives them together.
    separates = True

    def __init__(
        self,
        *,
        num_particles: int,
        max_plate_nesting: int,
        enumerate_discrete: bool = False,
        vectorize_particles: bool = False,
    ) -> None:
        super().__init__(
            num_particles=num_particles, max_plate_nesting=max_plate_nesting, vectorize_particles=vectorize_particles
        )
        self.enumerate_discrete = enumerate_discrete

    def shares(self, log_weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Give the coefficients (K, ...) of pathwise gradients, scores and gradients of the model's parameters."""
        raise NotImplementedError

    def value(self, log_weights: torch.Tensor) -> torch.Tensor:
        """Bound per element of the plates, from log weights (K, ...): the importance-weighted one."""
        return log_weights.logsumexp(0) - math.log(len(log_weights))

    def differentiable_loss(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Give a tensor with the value of the loss and the gradient of this estimator."""
        particles = self._particles(model, guide, args, kwargs)
        scale = particles.scale
        total, score = particles.log_weight / scale, particles.score / scale
        fixed = total.detach()
        path, of_score, of_model = self.shares(fixed)
        surrogate = path * (total + score) + of_score * score
        if particles.log_joint is not None:
            surrogate = surrogate + (of_model - path) * particles.log_joint / scale
        surrogate = scale * surrogate.sum()
        return -scale * self.value(fixed).sum() - (surrogate - surrogate.detach())

    def loss(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> float:
        """Estimate the loss, the negative bound."""
        with torch.no_grad():
            return torch_item(self.differentiable_loss(model, guide, *args, **kwargs))

    def loss_and_grads(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> float:
        """Estimate the loss, and leave its gradient in the parameters."""
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        if loss.requires_grad:
            loss.backward()
        return torch_item(loss)

    def _get_trace(self, model: Callable, guide: Callable, args: tuple, kwargs: dict) -> Any:
        return get_importance_trace("flat", self.max_plate_nesting, model, guide, args, kwargs)

    def _particles(self, model: Callable, guide: Callable, args: tuple, kwargs: dict) -> Particle:
        """Give all draws as one, with a leading dim of K."""
        model = SameObservations()(model)
        if self.vectorize_particles:
            model, guide = self._vectorized_num_particles(model), self._vectorized_num_particles(guide)
            return self._particle(model, guide, args, kwargs)
        each = [self._particle(model, guide, args, kwargs) for _ in range(self.num_particles)]
        joints = None if each[0].log_joint is None else torch.stack([p.log_joint for p in each])
        return Particle(
            torch.stack([p.log_weight for p in each]), torch.stack([p.score for p in each]), joints, each[0].scale
        )

    def _particle(self, model: Callable, guide: Callable, args: tuple, kwargs: dict) -> Particle:
        seen_guide, seen_model = poutine.trace(guide), poutine.trace(model)
        if self.enumerate_discrete:
            return self._enumerated_particle(model, seen_guide, guide, args, kwargs)
        model_trace, guide_trace = self._get_trace(seen_model, seen_guide, args, kwargs)
        nodes = [n for n in chain(model_trace.nodes.values(), guide_trace.nodes.values()) if n["type"] == "sample"]
        dims = get_dependent_plate_dims(nodes)
        frames = frozenset.intersection(*(frozenset(node["cond_indep_stack"]) for node in nodes))
        log_weight, score, log_joint = _summed(model_trace, dims) - _summed(guide_trace, dims), None, None
        if self.separates:
            score = _log_prob(poutine.replay(guide, trace=fixed_values(seen_guide.trace)), args, kwargs, dims)
        if self._wants_model(model_trace):
            log_joint = _log_prob(poutine.replay(model, trace=fixed_values(seen_model.trace)), args, kwargs, dims)
        return Particle(
            log_weight=log_weight,
            score=torch.zeros_like(log_weight) if score is None else score,
            log_joint=log_joint,
            scale=math.prod(frame.full_size / frame.size for frame in frames if frame.vectorized and frame.full_size),
        )

    def _enumerated_particle(
        self, model: Callable, seen: Callable, guide: Callable, args: tuple, kwargs: dict
    ) -> Particle:
        """Give a particle of the marginal density, as one number: enumeration mixes the elements of plates."""
        inner = TraceEnum_ELBO(max_plate_nesting=self.max_plate_nesting, strict_enumeration_warning=False)
        with poutine.trace(param_only=True) as capture:
            log_weight = -inner.differentiable_loss(model, seen, *args, **kwargs)
        if not self.separates:
            return Particle(log_weight, torch.zeros_like(log_weight), None, 1.0)
        again = poutine.replay(guide, trace=fixed_values(seen.trace))
        score = _log_prob(again, args, kwargs, None)
        log_joint = None
        if self._wants_model(capture.trace):
            log_joint = -inner.differentiable_loss(model, again, *args, **kwargs) + score
        return Particle(log_weight, score, log_joint, 1.0)

    def _wants_model(self, trace: poutine.Trace) -> bool:
        return self.nonlinear and self.separates and any(node["type"] == "param" for node in trace.nodes.values())


class SameObservations(Messenger):
    """Lets every run of a model see the observations of the first, where it draws them (dynamic binarisation)."""

    def __init__(self) -> None:
        super().__init__()
        self.values: dict[str, torch.Tensor] = {}

    def _pyro_sample(self, msg: dict) -> None:
        value = msg["value"]
        if not msg["is_observed"] or msg["infer"].get("_deterministic") or isinstance(msg["fn"], Unit):
            return
        if isinstance(value, torch.Tensor) and not value.requires_grad:
            msg["value"] = self.values.setdefault(msg["name"], value)


class StickingTheLanding(WeightedObjective):
    """The ELBO by its pathwise gradient alone (Roeder, Wu & Duvenaud 2017, equation 6).

    The score of the guide has expectation zero and is left out, so that the gradient of every single draw vanishes when
    the guide is the posterior. The loss is the same as that of ``trace``.
    """

    nonlinear = False

    def shares(self, log_weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """See `WeightedObjective.shares`."""
        equal = torch.full_like(log_weights, 1 / len(log_weights))
        return equal, torch.zeros_like(equal), equal

    def value(self, log_weights: torch.Tensor) -> torch.Tensor:
        """Give the ELBO."""
        return log_weights.mean(0)


class ImportanceWeighted(WeightedObjective):
    """The importance-weighted bound (Burda, Grosse & Salakhutdinov 2016) with doubly reparameterised gradients.

    The guide's gradient is the pathwise one with squared normalised weights (DReG: Tucker et al. 2019, equation 8),
    whose signal does not fade as draws are added. Draws inside plates that hold every site are weighted element by
    element, which gives a tighter bound.
    """

    def shares(self, log_weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """See `WeightedObjective.shares`."""
        v = log_weights.softmax(0)
        return v**2, torch.zeros_like(v), v


class PlainImportanceWeighted(WeightedObjective):
    """The importance-weighted bound by its plain gradient (Burda, Grosse & Salakhutdinov 2016, equation 14).

    Every draw's log weight counts with its normalised weight, the guide's score included. Its signal fades as draws
    are added (Rainforth et al. 2018), but it needs the model once a draw where `ImportanceWeighted` needs it twice.
    """

    separates = False

    def shares(self, log_weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """See `WeightedObjective.shares`."""
        v = log_weights.softmax(0)
        return v, torch.zeros_like(v), v


class TailAdaptive(WeightedObjective):
    """The tail-adaptive f-divergence (Wang, Liu & Liu 2018, algorithm 1, beta = -1), which covers mass.

    Draw i gets the share 1 / (number of draws of at least its weight), normalised: the draw of largest weight counts
    most, however heavy the tail of the weights. The divergence has no value; the loss shown is the negative
    importance-weighted bound of the same draws. ``pyro.infer.TraceTailAdaptive_ELBO`` is not used: it has no loss, and
    it gives the shares to the wrong draws (it takes the sorting order of the weights for their ranks).
    """

    def shares(self, log_weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """See `WeightedObjective.shares`."""
        at_least = (log_weights[None] >= log_weights[:, None]).to(log_weights.dtype).sum(1)
        share = 1 / at_least
        return share / share.sum(0), torch.zeros_like(share), log_weights.softmax(0)


class ReweightedWakeSleep(WeightedObjective):
    """Reweighted wake-sleep, with the wake phase for the guide (Bornschein & Bengio 2015; Le et al. 2020).

    The guide's score is weighted by normalised importance weights, which lowers KL(p, q); draws need not be
    reparameterised. The model's parameters follow the importance-weighted bound, which is the loss shown.
    ``pyro.infer.ReweightedWakeSleep`` is not used: it scores a site given upstream draws that still carry gradients,
    which biases the gradient of guides with more than one layer, automatic guides of constrained sites among them.
    """

    def shares(self, log_weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """See `WeightedObjective.shares`."""
        v = log_weights.softmax(0)
        return torch.zeros_like(v), v, v


def vectorized(
    objective: WeightedObjective, model: Callable, guide: Callable, data: dict[str, Any]
) -> WeightedObjective | None:
    """Give the objective that draws all K particles in one run; None where model or guide do not broadcast over them.

    Whether they do is checked at the first and the last draw, by the log weights of runs of their own.
    """
    if objective.enumerate_discrete:
        return None
    num, nesting = objective.num_particles, objective.max_plate_nesting
    model = SameObservations()(model)
    once = type(objective)(num_particles=num, max_plate_nesting=nesting, vectorize_particles=True)
    try:
        with torch.no_grad():
            wide_guide = poutine.trace(once._vectorized_num_particles(guide))
            found = once._particle(once._vectorized_num_particles(model), wide_guide, (), data).log_weight
            for i in (0, num - 1):
                fixed = _one_of(fixed_values(wide_guide.trace), i, -once.max_plate_nesting)
                one = objective._particle(model, poutine.replay(guide, trace=fixed), (), data).log_weight
                if found.shape != (num, *one.shape) or not torch.allclose(found[i], one, rtol=1e-4, atol=1e-3):
                    return None
    except Exception:  # a model that does not broadcast can fail in any way
        return None
    return once


def _one_of(trace: poutine.Trace, i: int, dim: int) -> poutine.Trace:
    """Take one draw of each site whose value has the plate of draws at the batch dim ``dim``."""
    for name, node in trace.nodes.items():
        if isinstance(node["fn"], _Subsample):
            continue
        axis = node["value"].dim() - node["fn"].event_dim + dim
        if axis >= 0:
            trace.nodes[name]["value"] = node["value"].select(axis, i)
    return trace


class TensorMonteCarlo(TraceTMC_ELBO):
    """Tensor Monte Carlo (Aitchison 2019): K draws of every site of the guide, in all combinations.

    With n independent sites the bound averages K^n weights for the price of a sum over tensors. The guide's sites are
    marked here; the model has to broadcast over draws on the left, as it has for enumeration.
    """

    def __init__(self, *, num_samples: int, max_plate_nesting: int) -> None:
        super().__init__(max_plate_nesting=max_plate_nesting, strict_enumeration_warning=False)
        self.num_samples = num_samples

    def differentiable_loss(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Give a differentiable loss; see ``pyro.infer.TraceTMC_ELBO``."""
        guide = poutine.infer_config(guide, config_fn=self._mark)
        return super().differentiable_loss(model, guide, *args, **kwargs)

    def _mark(self, site: dict) -> dict:
        if site["is_observed"] or isinstance(site["fn"], _Subsample) or is_delta(site["fn"]):
            return {}
        return {"enumerate": "parallel", "num_samples": self.num_samples, "expand": True, "tmc": "diagonal"}


def is_delta(distribution: Any) -> bool:
    """Whether a distribution is a point mass, which follows from the draws before it."""
    while hasattr(distribution, "base_dist"):
        distribution = distribution.base_dist
    return isinstance(distribution, Delta)


def fixed_values(trace: poutine.Trace) -> poutine.Trace:
    """Give the draws of a trace, detached, to be replayed; subsamples too, but no point masses, which follow anew."""
    fixed = poutine.Trace()
    for name, node in trace.nodes.items():
        if node["type"] == "sample" and not node["is_observed"] and not is_delta(node["fn"]):
            fixed.add_node(name, **{**node, "value": node["value"].detach()})
    return fixed


def _log_prob(function: Callable, args: tuple, kwargs: dict, dims: list[int] | None) -> torch.Tensor:
    trace = prune_subsample_sites(poutine.trace(function).get_trace(*args, **kwargs))
    trace.compute_log_prob()
    return _summed(trace, dims)


def _summed(trace: poutine.Trace, dims: list[int] | None) -> torch.Tensor:
    """Add the log densities of a trace, over given dims, or over all."""
    terms = [torch.as_tensor(node["log_prob"]) for node in trace.nodes.values() if node["type"] == "sample"]
    return torch.as_tensor(sum(term.sum() if dims is None else torch_sum(term, dims) for term in terms))
