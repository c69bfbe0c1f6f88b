"""Classification probabilities of single rows: p(assignment | parameters, data), exact, for every draw."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from pyro import poutine

from inference.errors import InputError
from inference.mapped import map_draws
from inference.sites import Sites


def classification(sites: Sites, name: str, latents: Mapping[str, np.ndarray], rows: np.ndarray) -> np.ndarray:
    """Probabilities of the values of a summed-out site, one for each row of its plates.

    All factors that hold the site's enumerated dim are added up over the plates that it is not in, and normalised.

    Parameters
    ----------
    sites
        The model, inside `inference.isolation.isolated`.
    name
        A discrete site, the only one in its factors.
    latents
        ``name -> (n, *shape)`` for every continuous latent.
    rows
        (R,), flat positions in the site's plates.

    Returns
    -------
    ndarray
        (n, R, K), float32.

    Raises
    ------
    InputError
        The site depends on other discrete sites, so that its rows cannot be summed by themselves.
    """
    dtype = torch.get_default_dtype()
    tensors = {site: torch.as_tensor(np.asarray(latents[site])).to(dtype) for site in sites.latent}
    chosen = torch.as_tensor(rows)

    def one(values: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        logits = _logits(sites, name, values)
        return {"p": logits.reshape(-1, logits.shape[-1])[chosen].softmax(-1).to(torch.float32)}

    return map_draws(one, tensors)["p"]


def _logits(sites: Sites, name: str, values: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Log joint probabilities (*plates, K) of the site's values with all that depends on them."""
    model = poutine.condition(sites.enumerated, data=dict(values))
    trace = poutine.trace(poutine.enum(model, first_available_dim=-1 - sites.max_plate_nesting)).get_trace(**sites.data)
    trace.compute_log_prob()
    trace.pack_tensors()
    node = trace.nodes[name]
    label = node["infer"]["_enumerate_symbol"]
    plates = [f for f in node["cond_indep_stack"] if f.vectorized]
    plates = [trace.plate_to_symbol[f.name] for f in sorted(plates, key=lambda f: f.dim)]
    known = {*trace.plate_to_symbol.values(), label}
    total: Any = 0.0
    for factor in (n["packed"]["log_prob"] for n in trace.nodes.values() if n["type"] == "sample"):
        dims = factor._pyro_dims
        if label in dims:
            if not set(dims) <= known:
                raise InputError(f"site '{name}': depends on other discrete sites; its rows cannot be taken singly.")
            total = total + _onto(factor, dims, [*plates, label])
    sizes = [f.size for f in sorted((f for f in node["cond_indep_stack"] if f.vectorized), key=lambda f: f.dim)]
    return total.expand(*sizes, total.shape[-1])


def _onto(factor: torch.Tensor, dims: str, target: list[str]) -> torch.Tensor:
    """Sum a packed factor over the plates that are not in the target, and give it the target's axes."""
    extra = [i for i, symbol in enumerate(dims) if symbol not in target]
    kept = [symbol for symbol in dims if symbol in target]
    factor = factor.sum(dim=extra) if extra else factor
    factor = factor.permute([kept.index(symbol) for symbol in target if symbol in kept])
    for axis, symbol in enumerate(target):
        if symbol not in kept:
            factor = factor.unsqueeze(axis)
    return factor
