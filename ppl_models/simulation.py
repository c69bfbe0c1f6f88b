"""Drawing truth and data from a model, apart from the caller's random streams."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from pyro import poutine
from pyro.poutine.util import site_is_subsample

from ppl_models.model import Simulation


@contextmanager
def own_stream(seed: int) -> Iterator[None]:
    """Draw from a stream of our own, in float64, and leave the caller's stream and default dtype as they were.

    Only torch's CPU generator is seeded, because the models of this package draw from nothing else.
    """
    dtype = torch.get_default_dtype()
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(seed)
        torch.set_default_dtype(torch.float64)
        try:
            yield
        finally:
            torch.set_default_dtype(dtype)


def draw(
    model: Callable[..., Any], inputs: Mapping[str, Any], *, truth: Mapping[str, Any] | None = None, **settings: Any
) -> Simulation:
    """Draw latents from the prior and data from the likelihood.

    Parameters
    ----------
    model
        The Pyro function; each observed site bears the name of the argument that it observes.
    inputs
        Arguments of the model. Those that hold observations are replaced; only their shape counts.
    truth
        Values of some latent sites. The others are drawn from the prior given these.
    settings
        Further arguments of the model (prior hyperparameters, say); they become part of the data.

    Raises
    ------
    ValueError
        A name in ``truth`` is not a latent site, or its value has the wrong shape.
    """
    arguments = {**inputs, **settings}
    prior = poutine.uncondition(model)
    if truth:
        prior = poutine.condition(prior, data=_checked(truth, poutine.trace(prior).get_trace(**arguments)))
    with torch.no_grad():
        trace = poutine.trace(prior).get_trace(**arguments)
    sites = {n: s for n, s in trace.nodes.items() if s["type"] == "sample" and not site_is_subsample(s)}
    observed = {name: site["value"] for name, site in sites.items() if _was_observed(site)}
    return Simulation(
        truth={name: site["value"] for name, site in sites.items() if name not in observed},
        data={**arguments, **observed},
    )


def _was_observed(site: Mapping[str, Any]) -> bool:
    return site["infer"].get("was_observed", False) and not site["infer"].get("_deterministic", False)


def _checked(truth: Mapping[str, Any], trace: poutine.Trace) -> dict[str, torch.Tensor]:
    """Give ``truth`` as tensors of the dtype and shape that a draw from the prior has."""
    latent = {
        name: site["value"]
        for name, site in trace.nodes.items()
        if site["type"] == "sample" and not site_is_subsample(site) and not site["infer"].get("was_observed", False)
    }
    values = {}
    for name, value in truth.items():
        if name not in latent:
            raise ValueError(f"truth: '{name}' is not a latent site of the model; it has {', '.join(latent)}.")
        values[name] = torch.as_tensor(value, dtype=latent[name].dtype)
        if values[name].shape != latent[name].shape:
            raise ValueError(
                f"truth['{name}']: expected shape {tuple(latent[name].shape)} at these sizes, "
                f"got {tuple(values[name].shape)}; change the value or the sizes."
            )
    return values
