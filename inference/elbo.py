"""The objectives by name."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pyro import poutine
from pyro.infer import (
    ELBO,
    RenyiELBO,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
    TraceTailAdaptive_ELBO,
    TraceTMC_ELBO,
)

from inference.errors import InputError
from inference.guides import samples_discrete
from inference.likelihood_free import make_energy, make_mmd
from inference.objectives import (
    ImportanceWeighted,
    PlainImportanceWeighted,
    ReweightedWakeSleep,
    StickingTheLanding,
    TailAdaptive,
    TensorMonteCarlo,
    WeightedObjective,
    is_delta,
)
from inference.sites import Sites

# These have the ELBO as their value.
_PLAIN = (Trace_ELBO, TraceMeanField_ELBO, TraceEnum_ELBO, TraceGraph_ELBO, StickingTheLanding)
_OTHER_BOUNDS = (WeightedObjective, RenyiELBO, TraceTMC_ELBO)
# At the optimum of the ELBO shifting and rescaling the draws gains nothing: KL 0.5 is the distance of a mean that is
# off by one standard deviation. The other bounds prefer wider guides, a few nats below it.
_UNUSED_GAIN, _UNUSED_GAIN_OF_OTHERS = 0.5, 10.0


@dataclass(frozen=True)
class Objective:
    """What a name stands for.

    Attributes
    ----------
    make
        ``(sites, num_particles, enumerate_discrete) -> ELBO``.
    min_particles
        Fewest draws per step with which it differs from the plain ELBO, or is defined at all.
    sums_out
        Whether it can sum out discrete sites.
    pathwise
        Whether every draw of the guide must be reparameterised.
    """

    make: Callable[[Sites, int, bool], ELBO]
    min_particles: int = 1
    sums_out: bool = False
    pathwise: bool = False


Make = Callable[[Sites, int, bool], ELBO]


def from_pyro(kind: Callable[..., ELBO], **options: Any) -> Make:
    """Give the maker of an estimator of Pyro's, with options of its own."""
    return lambda sites, num, _: kind(num_particles=num, max_plate_nesting=sites.max_plate_nesting, **options)


def _weighted(kind: type[WeightedObjective]) -> Make:
    return lambda sites, num, enumerate_discrete: kind(
        num_particles=num, max_plate_nesting=sites.max_plate_nesting, enumerate_discrete=enumerate_discrete
    )


ELBOS: dict[str, Objective] = {
    "trace": Objective(from_pyro(Trace_ELBO)),
    "trace_mean_field": Objective(from_pyro(TraceMeanField_ELBO)),
    # Asked for by name it may also sum out nothing.
    "trace_enum": Objective(from_pyro(TraceEnum_ELBO, strict_enumeration_warning=False), sums_out=True),
    "trace_graph": Objective(from_pyro(TraceGraph_ELBO)),
    "stl": Objective(_weighted(StickingTheLanding), sums_out=True, pathwise=True),
    "iw": Objective(_weighted(ImportanceWeighted), min_particles=2, sums_out=True, pathwise=True),
    "iwae": Objective(_weighted(PlainImportanceWeighted), min_particles=2, sums_out=True, pathwise=True),
    "renyi": Objective(from_pyro(RenyiELBO), min_particles=2),
    "tail_adaptive": Objective(_weighted(TailAdaptive), min_particles=2, sums_out=True, pathwise=True),
    "tmc": Objective(
        lambda sites, num, _: TensorMonteCarlo(num_samples=num, max_plate_nesting=sites.max_plate_nesting),
        min_particles=2,
        sums_out=True,
    ),
    "rws": Objective(_weighted(ReweightedWakeSleep), min_particles=2, sums_out=True),
    "energy": Objective(lambda sites, num, _: make_energy(sites, num), min_particles=2, pathwise=True),
    "mmd": Objective(lambda sites, num, _: make_mmd(sites, num), min_particles=2, pathwise=True),
}


def make_elbo(elbo: str | ELBO | None, sites: Sites, trace: poutine.Trace, *, num_particles: int) -> ELBO:
    """Give the objective for a model; by default ``trace``, or ``trace_enum`` where discrete sites are summed out.

    Parameters
    ----------
    elbo
        A name from `ELBOS`, an object of ``pyro.infer``, or None.
    sites
        The model.
    trace
        A run of the guide, from `inference.guides.check_guide`.
    num_particles
        Draws per step, for an objective by name.

    Raises
    ------
    InputError
        Unknown name, or an objective that does not suit model or guide.
    """
    to_enumerate = bool(sites.discrete) and not samples_discrete(trace, sites)
    if elbo is None:
        elbo = "trace_enum" if to_enumerate else "trace"
    if isinstance(elbo, str):
        if elbo not in ELBOS:
            raise InputError(f"elbo: expected one of {', '.join(ELBOS)} or a pyro.infer.ELBO object, got '{elbo}'.")
        kind = ELBOS[elbo]
        _check_particles(elbo, kind, num_particles)
        if kind.pathwise:
            _require_pathwise(elbo, trace, sites)
        made, sums_out = kind.make(sites, num_particles, to_enumerate), kind.sums_out
        if getattr(made, "nonlinear", isinstance(made, RenyiELBO | TraceTMC_ELBO)):
            _refuse_subsamples(elbo, trace, sites)
    elif isinstance(elbo, TraceTailAdaptive_ELBO):
        raise InputError("elbo: TraceTailAdaptive_ELBO gives no loss to stop by; use elbo='tail_adaptive'.")
    elif isinstance(elbo, ELBO):
        made, sums_out = elbo, isinstance(elbo, TraceEnum_ELBO | TraceTMC_ELBO)
    else:
        raise InputError(f"elbo: expected a name or a pyro.infer.ELBO object, got {type(elbo).__name__}.")
    if to_enumerate and not sums_out:
        raise InputError(
            f"elbo: {type(made).__name__} cannot sum out the discrete site '{next(iter(sites.discrete))}'; use "
            "elbo='trace_enum' (the default here), or a guide that samples it."
        )
    return made


def max_unused_gain(elbo: ELBO) -> float:
    """Nats of ELBO that shifting and rescaling the draws may gain at an optimum; infinity for what is no bound."""
    if isinstance(elbo, _PLAIN):
        return _UNUSED_GAIN
    return _UNUSED_GAIN_OF_OTHERS if isinstance(elbo, _OTHER_BOUNDS) else math.inf


def _check_particles(name: str, kind: Objective, num_particles: int) -> None:
    if num_particles < kind.min_particles:
        why = "it compares draws" if name in ("energy", "mmd") else "one particle gives the plain ELBO"
        raise InputError(f"elbo='{name}': needs num_particles of at least {kind.min_particles}; {why}.")


def _require_pathwise(name: str, trace: poutine.Trace, sites: Sites) -> None:
    for site, node in trace.nodes.items():
        if node["type"] != "sample" or node["is_observed"] or site in sites.plate_sizes or is_delta(node["fn"]):
            continue
        if not getattr(node["fn"], "has_rsample", False):
            raise InputError(
                f"elbo='{name}': site '{site}' of the guide, {type(node['fn']).__name__}, is not reparameterised; use "
                "elbo='trace' or 'rws', or a guide that samples it by a transform of fixed noise."
            )


def _refuse_subsamples(name: str, trace: poutine.Trace, sites: Sites) -> None:
    """Refuse a subsampled plate that does not hold every site: noise inside a logarithm makes no bound."""
    own = {name: set(site.plates) for name, site in (sites.latent | sites.observed | sites.discrete).items()}
    own |= {
        f"guide:{site}": {frame.name for frame in node["cond_indep_stack"]}
        for site, node in trace.nodes.items()
        if node["type"] == "sample" and site not in sites.plate_sizes
    }
    for plate in sites.subsampled:
        outside = next((site for site, plates in own.items() if plate not in plates), None)
        if outside or name in ("renyi", "tmc") or sites.discrete:
            raise InputError(
                f"elbo='{name}': plate '{plate}' is subsampled, and this objective is no bound for a subsample"
                f"{f' where sites are outside of it (such as {outside})' if outside else ''}; use 'trace' or 'stl'."
            )
