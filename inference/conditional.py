"""What follows from draws of the continuous latents: other sites, pointwise log likelihoods, predictive draws.

Discrete latents are summed out wherever a density is asked for, and drawn from their exact conditional distribution
wherever a value is asked for. Pyro's own tools replay them at values from the prior instead, which gives a LOO of -715
where -84 is right on a small mixture. All functions here are to be called inside `inference.isolation.isolated`.
"""

from collections.abc import Iterator, Mapping
from functools import partial
from math import prod

import numpy as np
import pyro
import torch
from pyro import poutine
from pyro.distributions import DiscreteHMM
from pyro.infer import infer_discrete
from pyro.poutine.messenger import Messenger

from inference.chain_sites import chain_logits, find_chain
from inference.enumerated import factors, is_separate, pointwise_terms, posterior_logits
from inference.errors import InputError
from inference.hidden_markov import Chains
from inference.mapped import map_draws, stream_draws
from inference.random_operations import draw_states
from inference.sites import Sites, is_deterministic

# Draws of a discrete site are kept up to this many numbers: 256 MB of integers, drawn in 2 s for K = 2.
MAX_DRAWN = 2**25
# Logits of hidden Markov chains are taken for so many numbers at a time: 64 MB, of which the smoother holds eight.
# Fewer draws at a time would leave the loop over a long series to the interpreter.
CHAIN_NUMBERS = 2**23

Draws = dict[str, np.ndarray]


class RedrawMessenger(Messenger):
    """Draws observed sites anew. Pyro's ``uncondition`` also redraws deterministic sites, with doubled plate dims."""

    def _pyro_sample(self, msg: dict) -> None:
        if msg["is_observed"] and not is_deterministic(msg):
            chain = find_chain(msg["fn"])
            if isinstance(chain, DiscreteHMM) and chain.duration is None:  # it takes any length, and draws none
                steps = msg["value"].shape[msg["value"].dim() - chain.event_dim]
                chain._duration, chain._event_shape = steps, torch.Size((steps, *chain.event_shape[1:]))
            msg["is_observed"], msg["value"], msg["done"] = False, None, False


def left_out(sites: Sites, num: int) -> list[str]:
    """Name the discrete sites of which ``num`` draws are more than `MAX_DRAWN`."""
    paths = {path.name: path for path in sites.chains.values()}
    return [name for name, site in (sites.discrete | paths).items() if num * prod(site.shape) > MAX_DRAWN]


def complete(sites: Sites, draws: Mapping[str, np.ndarray], *, paths: bool = True) -> Draws:
    """Add deterministic sites, summed-out discrete sites drawn from p(discrete | latents, data), and state paths.

    Parameters
    ----------
    sites
        The model.
    draws
        ``name -> (n, *shape)`` for every continuous latent, and for discrete ones that a guide has drawn.
    paths
        Whether to draw state paths of hidden Markov chains, too.

    Returns
    -------
    dict
        ``name -> (n, *shape)``: latents in the order of the model, then deterministic and discrete sites, then state
        paths of hidden Markov chains. Sites in subsampled plates and those of `left_out` are left out, with what is
        computed from them.
    """
    num = len(next(iter(draws.values())))
    absent = set(left_out(sites, num)) - set(draws)
    everything = {**sites.deterministic, **sites.discrete, **{path.name: path for path in sites.chains.values()}}
    whole = {n for n, s in everything.items() if not set(s.plates) & set(sites.subsampled)} - absent
    values = as_tensors(draws)
    drawn = draw_discrete(sites, values, [n for n in sites.discrete if n in whole and n not in draws])
    given = values | as_tensors(drawn)
    hidden = [name for name in sites.discrete if name not in given]
    computed = [name for name in sites.deterministic if name in whole]
    if computed and hidden:
        varying = _computed_from_discrete(sites, {name: value[0] for name, value in given.items()})
        computed = [name for name in computed if name not in varying]
    names = [*sites.latent, *sites.unenumerable, *sites.discrete]
    result = {name: np.asarray(draws[name]) for name in names if name in draws}
    if computed:
        result |= map_draws(lambda one: _run(sites, one, computed), given)
    result |= drawn
    for observed, path in sites.chains.items():
        if paths and path.name in whole and not hidden:
            result[path.name] = _draw_paths(sites, given, observed)
    return result


def _run(sites: Sites, values: Mapping[str, torch.Tensor], names: list[str]) -> dict[str, torch.Tensor]:
    trace = poutine.trace(poutine.condition(sites.function, data=dict(values))).get_trace(**sites.data)
    return {name: torch.as_tensor(trace.nodes[name]["value"]) for name in names}


def _computed_from_discrete(sites: Sites, values: Mapping[str, torch.Tensor]) -> list[str]:
    """Deterministic sites that have another shape when discrete sites are enumerated."""
    model = poutine.condition(sites.enumerated, data=dict(values))
    with torch.no_grad(), pyro.validation_enabled(False):
        trace = poutine.trace(poutine.enum(model, first_available_dim=-1 - sites.max_plate_nesting)).get_trace(
            **sites.data
        )
    shapes = {name: torch.as_tensor(trace.nodes[name]["value"]).shape for name in sites.deterministic}
    return [name for name, shape in shapes.items() if tuple(shape) != sites.deterministic[name].shape]


def draw_discrete(sites: Sites, values: Mapping[str, torch.Tensor], names: list[str]) -> Draws:
    """Draw summed-out sites: in closed form where they do not hang together, else by Pyro's backward sampling."""
    if not names:
        return {}
    with torch.no_grad():
        probe = factors(sites, {name: value[0] for name, value in values.items()})
    separate = all(is_separate(probe, group) for group in probe.groups if set(group) & set(names))
    supports = {name: probe.support(name) for name in names}

    if separate and all(bool((value == value[:1]).all()) for value in values.values()):  # a point: one run for all
        with torch.no_grad():
            logits = posterior_logits(probe, names)
            num = len(next(iter(values.values())))
            states = {name: torch.stack([draw_states(logits[name]) for _ in range(num)]) for name in names}
            return {name: supports[name][states[name]].numpy() for name in names}

    def closed(one: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        found = posterior_logits(factors(sites, one), names)
        return {name: supports[name][draw_states(found[name])] for name in names}

    def backward(one: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        model = poutine.condition(sites.enumerated, data=dict(one))
        model = infer_discrete(model, first_available_dim=-1 - sites.max_plate_nesting)
        trace = poutine.trace(model).get_trace(**sites.data)
        return {name: torch.as_tensor(trace.nodes[name]["value"]) for name in names}

    return map_draws(closed if separate else backward, values, random=True)


def _draw_paths(sites: Sites, values: Mapping[str, torch.Tensor], observed: str) -> np.ndarray:
    """Draw a state path for each draw, (n, *batch, T)."""
    generator = np.random.default_rng(int(torch.randint(2**31, ())))
    path = sites.chains[observed]
    paths = np.empty((len(next(iter(values.values()))), *path.shape), dtype=np.int64)
    begin = 0
    for chains in stream_chains(sites, values, observed):
        paths[begin : begin + chains.batch[0]] = chains.sample(generator)
        begin += chains.batch[0]
    return paths


def stream_chains(sites: Sites, values: Mapping[str, torch.Tensor], observed: str) -> Iterator[Chains]:
    """Give the chains of an observed site, of batch shape (draws, *batch), for some draws at a time."""

    def logits(one: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        trace = poutine.trace(poutine.condition(sites.function, data=dict(one))).get_trace(**sites.data)
        return chain_logits(trace.nodes[observed])

    for part in stream_draws(logits, dict(values), numbers=CHAIN_NUMBERS):
        yield Chains.of(part["initial"], part["transition"], part["observation"])


def log_likelihood(sites: Sites, draws: Mapping[str, np.ndarray]) -> tuple[Draws, dict[str, tuple[str, ...]]]:
    """Pointwise log likelihood of each observed site, discrete latents summed out.

    An observation's term is log p(y_i | continuous latents): the enumerated factors that hold it, contracted over
    their discrete sites while the plates are kept. Masks count (a masked entry has log likelihood 0). A hidden Markov
    chain, and observations that a discrete latent couples outside of any plate, are one observation.

    Returns
    -------
    values : dict
        ``name -> (n, *plates)``; observed sites that share a discrete latent have one joint term, named ``a+b``.
    dims : dict
        Plate names of every axis after the first.
    """
    dims, _ = term_layout(sites, draws)
    return (map_draws(partial(_terms, sites), as_tensors(draws)) if dims else {}), dims


def stream_log_likelihood(sites: Sites, draws: Mapping[str, np.ndarray]) -> Iterator[Draws]:
    """Do as `log_likelihood` does, for some draws at a time, so that all of them are never held."""
    return stream_draws(partial(_terms, sites), as_tensors(draws))


def term_layout(
    sites: Sites, draws: Mapping[str, np.ndarray]
) -> tuple[dict[str, tuple[str, ...]], dict[str, tuple[int, ...]]]:
    """Names of the axes of every log likelihood term, and their lengths, draws apart."""
    with torch.no_grad():
        terms = pointwise_terms(sites, {name: value[0] for name, value in as_tensors(draws).items()})
    return {name: dims for name, (_, dims) in terms.items()}, {name: tuple(v.shape) for name, (v, _) in terms.items()}


def _terms(sites: Sites, values: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value for name, (value, _) in pointwise_terms(sites, values).items()}


def predictive(sites: Sites, draws: Mapping[str, np.ndarray]) -> Draws:
    """Draw new observations of every observed site, one for each posterior draw, ``name -> (n, *shape)``.

    Continuous latents keep their posterior draws; discrete latents that the density sums out are drawn anew from the
    model, because a new observation has a new assignment.
    """
    kept = {name: draws[name] for name in [*sites.latent, *sites.unenumerable] if name in draws}

    def one(values: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        model = poutine.condition(RedrawMessenger()(sites.function), data=dict(values))
        trace = poutine.trace(model).get_trace(**sites.data)
        return {name: trace.nodes[name]["value"] for name in sites.observed}

    return map_draws(one, as_tensors(kept), random=True)


def prior(sites: Sites, num: int) -> tuple[Draws, Draws]:
    """Draw ``num`` values of all latent and deterministic sites, and of the observed sites, from the prior."""
    names = [*sites.latent, *sites.deterministic, *sites.discrete, *sites.unenumerable]

    def one(_: torch.Tensor) -> dict[str, torch.Tensor]:
        trace = poutine.trace(RedrawMessenger()(sites.function)).get_trace(**sites.data)
        return {name: torch.as_tensor(trace.nodes[name]["value"]) for name in [*names, *sites.observed]}

    try:
        draws = map_draws(one, torch.zeros(num), random=True)
    except NotImplementedError as error:
        raise InputError(f"model: a prior cannot be sampled ({error}); improper priors have no prior draws.") from error
    return {n: draws[n] for n in names}, {n: draws[n] for n in sites.observed}


def as_tensors(draws: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """Give draws as tensors, floating ones in the default dtype."""
    tensors = {name: torch.as_tensor(np.asarray(value)) for name, value in draws.items()}
    return {n: t.to(torch.get_default_dtype()) if t.is_floating_point() else t for n, t in tensors.items()}
