"""Guides: by name, by hand, or as modules; checked against the model, and drawn from."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from pyro import poutine
from pyro.infer.autoguide import (
    AutoDelta,
    AutoDiagonalNormal,
    AutoGuide,
    AutoLaplaceApproximation,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
    AutoStructured,
    init_to_median,
    init_to_value,
)

from inference.cluster_starts import proposed_starts
from inference.density import Density
from inference.errors import InputError, one_line
from inference.flow_guides import FLOWS
from inference.gaussian import MAX_FULL_RANK, Gaussian, base_draws, elbo, fit_gaussian
from inference.mapped import map_draws
from inference.sites import Sites, is_discrete
from inference.starts import DEAR_DRAWS, best_gaussian, is_dear

# Guides by name start at the centre of the best of this many Gaussians, by their bounds on so many draws: stochastic
# steps of a fixed size do not find a posterior that is hundreds of units away, nor one whose components they have once
# made equal: from random parameters those of a mixture all approach the same values, and stay there.
_STARTS, _START_DRAWS = 3, 64
# Fixed draws on which the Gaussian under a flow is fitted: four per dimension, as AutoVI's first round takes.
_DRAWS_PER_DIM = 4

GUIDES: dict[str, Callable[..., AutoGuide]] = {
    "delta": AutoDelta,
    "normal": AutoNormal,
    "diagonal_normal": AutoDiagonalNormal,
    "multivariate_normal": AutoMultivariateNormal,
    "low_rank": AutoLowRankMultivariateNormal,
    "laplace": AutoLaplaceApproximation,
    "structured": AutoStructured,
    **FLOWS,
}


def make_guide(guide: str | Callable[..., Any], sites: Sites, *, density: Density | None, seed: int) -> Callable:
    """Give a guide for a model: a name from `GUIDES`, or a callable as it is.

    A guide by name covers the continuous latents; discrete ones are summed out. It starts at the centre of the best of
    a few Gaussians, above points that the model or a clustering of its data proposes (`inference.cluster_starts`) or
    dispersed ones, where the model has a flat density, else at prior medians.

    Raises
    ------
    InputError
        Unknown name, or a guide that does not suit the model.
    """
    if callable(guide):
        return guide
    if not isinstance(guide, str) or guide not in GUIDES:
        raise InputError(f"guide: expected one of {', '.join(GUIDES)} or a callable, got {guide!r}.")
    if sites.unenumerable:
        raise InputError(
            f"guide='{guide}': the integer site '{next(iter(sites.unenumerable))}' has no automatic guide and cannot "
            "be enumerated; write a guide that samples it, or sum it out by hand."
        )
    if not sites.latent:
        raise InputError("model: no continuous latent site to infer; give at least one pyro.sample without obs.")
    model = poutine.block(sites.function, hide=list(sites.discrete)) if sites.discrete else sites.function
    if density is None:
        return GUIDES[guide](model, init_loc_fn=init_to_median)
    start = _start(density, seed, flow=guide in FLOWS)
    values = {name: torch.as_tensor(v[0]) for name, v in density.constrain(start.loc[None]).items()}
    options = {"whitening": start} if guide in FLOWS else {}
    return GUIDES[guide](model, init_loc_fn=init_to_value(values=values), **options)


def _start(density: Density, seed: int, *, flow: bool) -> Gaussian:
    """Give the best of a few Gaussians, for a flow fitted further on fixed draws."""
    rng = np.random.default_rng(seed)
    z = rng.standard_normal((_START_DRAWS, density.dim))
    full_rank = density.dim <= MAX_FULL_RANK
    proposed = proposed_starts(density, _STARTS, generator=rng)
    points = proposed if len(proposed) else density.starts(_STARTS, generator=rng)
    starts = [best_gaussian(density, point, z, full_rank=full_rank) for point in points]
    few = z[: DEAR_DRAWS if is_dear(density) else None]
    best = max(starts, key=lambda q: elbo(density.log_density, q, few)[0])
    if not flow:
        return best
    fixed = base_draws(_DRAWS_PER_DIM * density.dim, density.dim, full_rank=full_rank, random_radius=False, rng=rng)
    fitted = fit_gaussian(density.grad, best, fixed).q
    return max(best, fitted, key=lambda q: elbo(density.log_density, q, z)[0])


def check_guide(guide: Callable, sites: Sites) -> poutine.Trace:
    """Run a guide once and refuse one that does not cover the latents of the model.

    Raises
    ------
    InputError
        The guide fails, misses a latent, samples a site that the model does not have, gives it another shape, or has
        two params in one tensor.
    """
    target = guide.forward if isinstance(guide, torch.nn.Module) else guide
    accepted = inspect.signature(target).parameters.values()
    if not any(p.kind is p.VAR_KEYWORD for p in accepted):
        unknown = set(sites.data) - {p.name for p in accepted}
        if unknown:
            raise InputError(
                f"guide: must take the same arguments as the model; it does not take {', '.join(sorted(unknown))}."
            )
    try:
        with torch.no_grad():
            trace = poutine.trace(guide).get_trace(**sites.data)
    except Exception as error:
        raise InputError(f"guide: fails on the data ({type(error).__name__}: {one_line(error)}).") from error
    sampled = {name: node for name, node in trace.nodes.items() if node["type"] == "sample"}
    known = {**sites.latent, **sites.discrete, **sites.unenumerable}
    missing = [name for name in [*sites.latent, *sites.unenumerable] if name not in sampled]
    if missing:
        raise InputError(
            f"guide: does not sample the latent site '{missing[0]}' of the model; it samples "
            f"{', '.join(sampled) or 'nothing'}."
        )
    for name, node in sampled.items():
        if node["infer"].get("is_auxiliary") or node["is_observed"] or name in sites.plate_sizes:
            continue
        if name not in known:
            raise InputError(
                f"guide: samples '{name}', which is no latent site of the model ({', '.join(known)}); mark helper "
                "sites with infer={'is_auxiliary': True}."
            )
        expected, got = known[name].shape, tuple(node["value"].shape)
        if expected != got and not set(known[name].plates) & set(sites.subsampled):
            raise InputError(f"guide: site '{name}' has shape {got}; the model's has {expected}.")
    _refuse_tied(trace)
    return trace


def _refuse_tied(trace: poutine.Trace) -> None:
    """Refuse parameters that were started from one tensor, which makes them one parameter."""
    owner: dict[int, str] = {}
    for name, node in trace.nodes.items():
        if node["type"] == "param":
            unconstrained = node["value"].unconstrained() if hasattr(node["value"], "unconstrained") else node["value"]
            if isinstance(unconstrained, torch.nn.Parameter) or not unconstrained.numel():  # a module may tie weights
                continue
            first = owner.setdefault(unconstrained.data_ptr(), name)
            if first != name:
                raise InputError(
                    f"guide: params '{first}' and '{name}' share one tensor, so they would be trained as one; start "
                    "each from a tensor of its own."
                )


def samples_discrete(trace: poutine.Trace, sites: Sites) -> bool:
    """Whether a guide, by its trace, samples discrete sites of the model itself."""
    return any(name in trace.nodes for name in sites.discrete)


def draw_guide(guide: Callable, sites: Sites, num: int) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
    """Draw from a guide.

    Returns
    -------
    draws : dict
        ``name -> (num, *shape)`` for the model's latents outside subsampled plates.
    log_q : ndarray or None
        Log densities (num,) of the continuous latents, on the constrained space; None where they depend on a discrete
        site that the guide samples before them, so that their marginal density is unknown.
    """
    trace = check_guide(guide, sites)
    known = {**sites.latent, **sites.discrete, **sites.unenumerable}
    names = [name for name in trace.nodes if name in known and not set(known[name].plates) & set(sites.subsampled)]
    order = [node for node in trace.nodes.values() if node["type"] == "sample" and not node["is_observed"]]
    discrete_first = [is_discrete(node["fn"]) for node in order if node["name"] not in sites.plate_sizes]
    has_density = discrete_first == sorted(discrete_first)

    def one(_: torch.Tensor) -> dict[str, torch.Tensor]:
        run = poutine.trace(guide).get_trace(**sites.data)
        run.compute_log_prob()
        terms = [
            node["log_prob_sum"]
            for name, node in run.nodes.items()
            if node["type"] == "sample" and name not in sites.plate_sizes and not is_discrete(node["fn"])
        ]
        return {"log_q": torch.as_tensor(sum(terms)), **{f"site:{n}": run.nodes[n]["value"] for n in names}}

    result = map_draws(one, torch.zeros(num), random=True)
    log_q = result.pop("log_q")
    return {name.removeprefix("site:"): value for name, value in result.items()}, log_q if has_density else None


def unconstrained_draws(
    density: Density, draws: Mapping[str, np.ndarray], log_q: np.ndarray | None
) -> tuple[np.ndarray, dict[str, np.ndarray], str]:
    """Express draws and their log densities on the unconstrained space.

    Returns
    -------
    points : ndarray
        (n, D).
    stats : dict
        ``lp``, and ``log_q``, ``log_weight`` where q has a density, each (n,).
    remark : str
        Why there are no log weights; empty otherwise.
    """
    points, log_jacobian = density.unconstrain(draws)
    stats = {"lp": density.log_density(points)}
    if log_q is None:
        return points, stats, "no log weights: the guide samples a discrete site before continuous ones"
    fixed = [label for label, spread in zip(density.labels, np.ptp(points, axis=0), strict=True) if spread == 0]
    if fixed:
        return points, stats, f"no log weights: a point guide has no density (no spread in {', '.join(fixed[:3])})"
    stats["log_q"] = log_q + log_jacobian
    stats["log_weight"] = stats["lp"] - stats["log_q"]
    return points, stats, ""
