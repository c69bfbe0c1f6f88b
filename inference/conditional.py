"""What follows from draws of the continuous latents: other sites, pointwise log likelihoods, predictive draws.

Discrete latents are summed out wherever a density is asked for, and drawn from their exact conditional distribution
wherever a value is asked for. Pyro's own tools replay them at values from the prior instead, which gives a LOO of -715
where -84 is right on a small mixture. All functions here are to be called inside `inference.isolation.isolated`.
"""

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyro
import torch
from pyro import poutine
from pyro.infer import infer_discrete
from pyro.ops.contract import contract_tensor_tree
from pyro.poutine.messenger import Messenger

from inference.errors import InputError
from inference.graph import map_draws
from inference.sites import Site, Sites, is_deterministic, is_observation

Draws = dict[str, np.ndarray]


class RedrawMessenger(Messenger):
    """Draws observed sites anew. Pyro's ``uncondition`` also redraws deterministic sites, with doubled plate dims."""

    def _pyro_sample(self, msg: dict) -> None:
        if msg["is_observed"] and not is_deterministic(msg):
            msg["is_observed"], msg["value"], msg["done"] = False, None, False


def complete(sites: Sites, draws: Mapping[str, np.ndarray]) -> Draws:
    """Add deterministic sites, and summed-out discrete sites drawn from p(discrete | latents, data).

    Parameters
    ----------
    sites
        The model.
    draws
        ``name -> (n, *shape)`` for every continuous latent, and for discrete ones that a guide has drawn.

    Returns
    -------
    dict
        ``name -> (n, *shape)``: latents in the order of the model, then deterministic, then discrete sites; sites in
        subsampled plates are left out.
    """
    whole = {
        n: s for n, s in {**sites.deterministic, **sites.discrete}.items() if not set(s.plates) & set(sites.subsampled)
    }
    drawn_here = [name for name in sites.discrete if name in whole and name not in draws]
    names = [*[name for name in sites.deterministic if name in whole], *drawn_here]
    result = {name: np.asarray(draws[name]) for name in [*sites.latent, *sites.discrete] if name in draws}
    result |= {name: np.asarray(value) for name, value in draws.items() if name in sites.unenumerable}
    if names:
        extra = map_draws(
            lambda values: _run(sites, values, names, discrete=bool(drawn_here)),
            _tensors(draws),
            random=bool(drawn_here),
        )
        result |= {name: extra[name] for name in names}
    return result


def _run(sites: Sites, values: Mapping[str, torch.Tensor], names: list[str], *, discrete: bool) -> dict:
    model = poutine.condition(sites.enumerated if discrete else sites.function, data=dict(values))
    if discrete:
        model = infer_discrete(model, first_available_dim=-1 - sites.max_plate_nesting)
    trace = poutine.trace(model).get_trace(**sites.data)
    return {name: torch.as_tensor(trace.nodes[name]["value"]) for name in names}


def log_likelihood(
    sites: Sites, draws: Mapping[str, np.ndarray]
) -> tuple[Draws, dict[str, tuple[str, ...]], list[str]]:
    """Pointwise log likelihood of each observed site, discrete latents summed out.

    An observation's term is log p(y_i | continuous latents): the enumerated factors that hold it, contracted over
    their discrete sites while the plates are kept. Masks count (a masked entry has log likelihood 0).

    Returns
    -------
    values : dict
        ``name -> (n, *plates)``; observed sites that share a discrete latent have one joint term, named ``a+b``.
    dims : dict
        Plate names of every axis after the first.
    remarks : list of str
        Why an observed site has no pointwise term (its observations are coupled through a discrete latent that no
        plate separates).
    """
    with torch.no_grad():
        probe = _pointwise(sites, {name: value[0] for name, value in _tensors(draws).items()})
    dims = {name: names for name, (_, names) in probe.items() if names is not None}
    remarks = [
        f"no pointwise log likelihood for {name}: its observations are coupled through a discrete latent"
        for name, (_, names) in probe.items()
        if names is None
    ]
    if not dims:
        return {}, {}, remarks

    def one(values: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: value for name, (value, _) in _pointwise(sites, values).items() if name in dims}

    return map_draws(one, _tensors(draws)), dims, remarks


def _pointwise(
    sites: Sites, values: Mapping[str, torch.Tensor]
) -> dict[str, tuple[torch.Tensor, tuple[str, ...] | None]]:
    """Log likelihood terms by (joint) name, each with the names of its axes; None: not pointwise."""
    model = poutine.condition(sites.enumerated, data=dict(values))
    model = poutine.enum(model, first_available_dim=-1 - sites.max_plate_nesting)
    with pyro.validation_enabled(False):
        trace = poutine.trace(model).get_trace(**sites.data)
        trace.compute_log_prob()
        trace.pack_tensors()
    factors = {
        name: node
        for name, node in trace.nodes.items()
        if node["type"] == "sample" and (is_observation(node) or name in sites.discrete)
    }
    result = {}
    for group in _connected(factors, plates=set(trace.plate_to_symbol.values())):
        observed = [name for name in group if name in sites.observed]
        if len(group) == 1 and observed:
            result[group[0]] = _own_term(factors[group[0]]["log_prob"], sites.observed[group[0]])
        elif observed:  # discrete sites without observations integrate to one and drop out
            dims = sites.observed[observed[0]].dims
            result["+".join(observed)] = _contract([factors[name] for name in group], trace.plate_to_symbol, dims)
    return result


def _connected(factors: Mapping[str, Any], *, plates: set[str]) -> list[list[str]]:
    """Group sites whose factors share a summed-out symbol."""
    groups: list[tuple[set[str], list[str]]] = []
    for name, node in factors.items():
        symbols = set(node["packed"]["log_prob"]._pyro_dims) - plates
        touching = [g for g in groups if g[0] & symbols]
        groups = [g for g in groups if not g[0] & symbols]
        groups.append((symbols.union(*[g[0] for g in touching]), [n for g in touching for n in g[1]] + [name]))
    return [names for _, names in groups]


def _own_term(log_prob: torch.Tensor, site: Site) -> tuple[torch.Tensor, tuple[str, ...]]:
    """Term of an observed site that no discrete latent touches: its log probability as it is."""
    dims = site.dims[: log_prob.dim()]
    return log_prob, dims + tuple(f"{site.name}_dim_{i}" for i in range(len(dims), log_prob.dim()))


def _contract(
    nodes: list[Any], plate_to_symbol: Mapping[str, str], dims: tuple[str, ...]
) -> tuple[torch.Tensor, tuple[str, ...] | None]:
    """Sum the discrete latents out of connected factors; axes are the plates left, in the order of ``dims``."""
    tree: OrderedDict[frozenset, list] = OrderedDict()
    for node in nodes:
        ordinal = frozenset(plate_to_symbol[f.name] for f in node["cond_indep_stack"] if f.vectorized)
        tree.setdefault(ordinal, []).append(node["packed"]["log_prob"])
    plates = {symbol: name for name, symbol in plate_to_symbol.items()}
    summed = {s for terms in tree.values() for t in terms for s in t._pyro_dims} - set(plates)
    (((term,)),) = contract_tensor_tree(tree, summed).values()
    symbols = term._pyro_dims
    if not symbols:
        return term, None
    order = sorted(range(len(symbols)), key=lambda i: dims.index(plates[symbols[i]]))
    return term.permute(order), tuple(plates[symbols[i]] for i in order)


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

    return map_draws(one, _tensors(kept), random=True)


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


def _tensors(draws: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """Give draws as tensors, floating ones in the default dtype."""
    tensors = {name: torch.as_tensor(np.asarray(value)) for name, value in draws.items()}
    return {n: t.to(torch.get_default_dtype()) if t.is_floating_point() else t for n, t in tensors.items()}
