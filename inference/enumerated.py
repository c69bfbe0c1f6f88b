"""Summing discrete sites out of a model: the factors of its enumerated density, and exact answers from them.

A discrete site that shares no factor with another one (an assignment per row, say) has its distribution in closed form:
the product of the factors that it is in. Sites that hang together (states of a `pyro.markov` loop, a changepoint and
what follows it) go through Pyro's contraction; the gradient of the log of a sum of products with respect to the log of
a factor is the probability of that factor's states (Darwiche 2003).
"""

import re
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyro
import torch
from pyro import poutine
from pyro.ops import packed
from pyro.ops.contract import contract_tensor_tree
from pyro.ops.einsum.adjoint import require_backward
from pyro.ops.rings import MapRing
from torch import Tensor

from inference.sites import Sites, is_observation

# A joint term of more observed sites than this is named by what their names have in common.
_MAX_NAMES = 4


@dataclass(frozen=True, eq=False)
class Factors:
    """Factors of the enumerated density at one draw of the continuous latents. Made by `factors`.

    Attributes
    ----------
    nodes
        The traced observed and discrete sites.
    plates
        Name of the plate by symbol (a one-letter name of an axis, as `einsum` has it).
    groups
        Sites that hang together through discrete ones.
    """

    sites: Sites
    nodes: dict[str, Any]
    plates: dict[str, str]
    groups: list[list[str]]

    def observed(self, group: Iterable[str]) -> list[str]:
        """Give the observed sites of a group."""
        return [name for name in group if name in self.sites.observed]

    def discrete(self, group: Iterable[str]) -> list[str]:
        """Give the discrete sites of a group that are summed out, rather than given."""
        return [name for name in group if self.nodes[name]["infer"].get("_enumerate_dim") is not None]

    def symbol(self, name: str) -> str:
        """Give the symbol of the values of a discrete site."""
        infer = self.nodes[name]["infer"]
        return infer["_dim_to_symbol"][infer["_enumerate_dim"]]

    def support(self, name: str) -> Tensor:
        """Give the values of a discrete site, (K, *event)."""
        fn = self.nodes[name]["fn"]
        return fn.enumerate_support(expand=False).reshape(-1, *fn.event_shape)

    def unscaled(self, name: str) -> Tensor:
        """Give the factor of a site with its mask and without its scale, which counts rows and says nothing of one."""
        node = self.nodes[name]["packed"]
        return packed.scale_and_mask(node["unscaled_log_prob"], mask=node["mask"])

    def tree(
        self, terms: Mapping[str, Tensor], *, single: bool = True
    ) -> tuple[OrderedDict[frozenset, list[Tensor]], set[str]]:
        """Arrange factors for Pyro's contraction: by plates (but ``single`` ones), with the symbols to be summed."""
        symbols = {plate: symbol for symbol, plate in self.plates.items()}
        tree: OrderedDict[frozenset, list[Tensor]] = OrderedDict()
        for name, term in terms.items():
            frames = [f for f in self.nodes[name]["cond_indep_stack"] if f.vectorized and (single or f.size > 1)]
            tree.setdefault(frozenset(symbols[f.name] for f in frames), []).append(term)
        return tree, {s for term in terms.values() for s in term._pyro_dims} - set(self.plates)

    def arranged(self, term: Tensor, plates: Iterable[str], last: str = "") -> Tensor:
        """Order the axes of a packed term: ``plates`` (those it lacks are repeated), then the symbol ``last``."""
        own, names = list(term._pyro_dims), list(plates)
        present = [name for name in names if name in [self.plates.get(s) for s in own]]
        symbols = {plate: symbol for symbol, plate in self.plates.items()}
        result = term.permute([own.index(symbols[name]) for name in present] + [own.index(s) for s in last if s in own])
        if last and last not in own:  # a site of one value: packed terms have no axes of length one
            result = result.unsqueeze(-1)
        for axis, name in enumerate(names):
            if name not in present:
                result = result.unsqueeze(axis)
        sizes = [self.sites.plate_sizes[name] for name in names]
        return result.expand((*sizes, *result.shape[len(names) :]))


def factors(sites: Sites, values: Mapping[str, Tensor]) -> Factors:
    """Run the enumerated model at one draw of the continuous latents."""
    model = poutine.condition(sites.enumerated, data=dict(values))
    model = poutine.enum(model, first_available_dim=-1 - sites.max_plate_nesting)
    with pyro.validation_enabled(False):
        trace = poutine.trace(model).get_trace(**sites.data)
        trace.compute_log_prob()
        trace.pack_tensors()
    nodes = {
        name: node
        for name, node in trace.nodes.items()
        if node["type"] == "sample" and (is_observation(node) or name in sites.discrete)
    }
    plates = {symbol: name for name, symbol in trace.plate_to_symbol.items()}
    return Factors(sites, nodes, plates, _connected(nodes, plates=set(plates)))


def _connected(nodes: Mapping[str, Any], *, plates: set[str]) -> list[list[str]]:
    """Group sites whose factors share a summed-out symbol."""
    groups: list[tuple[set[str], list[str]]] = []
    for name, node in nodes.items():
        symbols = set(node["packed"]["log_prob"]._pyro_dims) - plates
        touching = [g for g in groups if g[0] & symbols]
        groups = [g for g in groups if not g[0] & symbols]
        groups.append((symbols.union(*[g[0] for g in touching]), [n for g in touching for n in g[1]] + [name]))
    return [names for _, names in groups]


def pointwise_terms(sites: Sites, values: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, tuple[str, ...]]]:
    """Log likelihood terms at one draw by (joint) name, each with the names of its axes.

    Sites in one plate have a term per element. Observations that hang together (a `pyro.markov` loop, a changepoint)
    have one term: they are one observation of the model.
    """
    found = factors(sites, values)
    result = {}
    for group in found.groups:
        observed = found.observed(group)
        if len(group) == 1 and observed:
            result[group[0]] = _own_term(found, group[0])
        elif observed:  # discrete sites without observations integrate to one and drop out
            tree, summed = found.tree({name: found.nodes[name]["packed"]["log_prob"] for name in group})
            (((plates, (term,)),)) = contract_tensor_tree(tree, summed).items()
            kept = {found.plates[symbol] for symbol in plates}
            order = tuple(d for d in sites.observed[observed[0]].dims if d in kept)
            result[joint_name(observed, taken=sites.observed)] = found.arranged(term, order), order
    return result


def _own_term(found: Factors, name: str) -> tuple[Tensor, tuple[str, ...]]:
    """Term of an observed site that no discrete latent touches: its log probability as it is."""
    log_prob, site = found.nodes[name]["log_prob"], found.sites.observed[name]
    if found.sites.discrete:  # of one value, perhaps, the axis of which is left of the plates
        while log_prob.dim() > found.sites.max_plate_nesting and log_prob.shape[0] == 1:
            log_prob = log_prob[0]
    dims = site.dims[: log_prob.dim()]
    return log_prob, dims + tuple(f"{site.name}_dim_{i}" for i in range(len(dims), log_prob.dim()))


def joint_name(names: list[str], *, taken: Iterable[str] = ()) -> str:
    """Name a joint term: ``a+b``; of many sites ``y`` for ``y_0``, ``y_1``, ..., else the first and their number."""
    if len(names) <= _MAX_NAMES:
        return "+".join(names)
    stems = {re.sub(r"[_\[\].-]*\d+\]?$", "", name) for name in names}
    joint = "+".join(sorted(stems))
    if len(stems) <= _MAX_NAMES and all(stems) and joint not in taken:
        return joint
    return f"{names[0]}+{len(names) - 1}_more"


def posterior_logits(found: Factors, names: Iterable[str]) -> dict[str, Tensor]:
    """Log weights (*plates, K) of the values of discrete sites that are the only ones of their groups, at one draw."""
    groups = {name: group for group in found.groups for name in found.discrete(group)}
    return {name: _separate(found, groups[name], name) for name in names}


def posterior_log_probabilities(found: Factors, names: Iterable[str]) -> dict[str, Tensor]:
    """Exact log probabilities of the values of discrete sites at one draw, ``name -> (*plates, K)``."""
    result = {}
    for group in found.groups:
        wanted = [name for name in found.discrete(group) if name in names]
        if is_separate(found, group):
            result |= {name: _separate(found, group, name).log_softmax(-1) for name in wanted}
        elif wanted:
            result |= _by_gradient(found, group, wanted)
    return result


def is_separate(found: Factors, group: list[str]) -> bool:
    """Whether a group has only one discrete site, and every factor lies within the plates of that site."""
    names = found.discrete(group)
    if len(names) != 1:
        return False
    own = set(_plates(found, names[0]))
    # A factor outside of the site's plates would join what the plates hold apart.
    return all(own <= set(_plates(found, name)) for name in group)


def _plates(found: Factors, name: str) -> list[str]:
    return [f.name for f in found.nodes[name]["cond_indep_stack"] if f.vectorized]


def _separate(found: Factors, group: list[str], name: str) -> Tensor:
    """Log weights (*plates, K) of the values of the only discrete site of a group: its factors, multiplied."""
    site, symbol = found.sites.discrete[name], found.symbol(name)
    plates = [d for d in site.dims if d in site.plates]
    total: Tensor | float = 0.0
    for member in group:
        term = found.unscaled(member)
        own = term._pyro_dims
        inner = [i for i, s in enumerate(own) if s in found.plates and found.plates[s] not in plates]
        summed = term.sum(inner) if inner else term
        summed._pyro_dims = "".join(s for i, s in enumerate(own) if i not in inner)
        total = total + found.arranged(summed, plates, symbol)
    return total


def _by_gradient(found: Factors, group: list[str], wanted: list[str]) -> dict[str, Tensor]:
    with torch.enable_grad():
        terms, leaves = {}, {}
        for name in group:
            term = found.unscaled(name)
            if name in wanted:
                leaves[name] = torch.zeros_like(term).requires_grad_()
                terms[name] = term.detach() + leaves[name]
                terms[name]._pyro_dims = term._pyro_dims
            else:
                terms[name] = term.detach()
                terms[name]._pyro_dims = term._pyro_dims
        tree, summed = found.tree(terms)
        contracted = contract_tensor_tree(tree, summed)
        total = sum(term.sum() for part in contracted.values() for term in part)
        gradients = torch.autograd.grad(total, list(leaves.values()))
    result = {}
    for (name, leaf), gradient in zip(leaves.items(), gradients, strict=True):
        own, symbol = terms[name]._pyro_dims, found.symbol(name)
        others = [i for i, s in enumerate(own) if s != symbol and s not in found.plates]
        joint = gradient.reshape(leaf.shape)
        kept = joint.sum(others) if others else joint
        kept._pyro_dims = "".join(s for i, s in enumerate(own) if i not in others)
        site = found.sites.discrete[name]
        result[name] = found.arranged(kept, [d for d in site.dims if d in site.plates], symbol).log()
    return result


def packed_terms(found: Factors, group: list[str]) -> dict[str, Tensor]:
    """Give the factors of a group without their scale."""
    return {name: found.unscaled(name) for name in group}


def most_probable(found: Factors, group: list[str], terms: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Most probable joint values of the discrete sites of a group, as indices, ``name -> (*plates)``.

    Parameters
    ----------
    found
        Factors at any draw, for their arrangement.
    terms
        Log factors by site, arranged as `packed_terms` gives them.
    """
    tensors = {}
    for name in group:
        tensors[name] = torch.as_tensor(terms[name])
        tensors[name]._pyro_dims = found.unscaled(name)._pyro_dims
    wanted = found.discrete(group)
    for name in wanted:
        require_backward(tensors[name])
    sizes = {s: n for t in tensors.values() for s, n in zip(t._pyro_dims, t.shape, strict=True)}
    tree, summed = found.tree(tensors, single=False)
    for part in contract_tensor_tree(tree, summed, ring=MapRing(cache={}, dim_to_size=sizes)).values():
        for term in part:
            term._pyro_backward()
    result = {}
    for name in wanted:
        best = tensors[name]._pyro_backward_result
        index = best[best._pyro_sample_dims.index(found.symbol(name))]
        index._pyro_dims = best._pyro_dims[1:]
        site = found.sites.discrete[name]
        result[name] = found.arranged(index, [d for d in site.dims if d in site.plates]).numpy()
    return result
