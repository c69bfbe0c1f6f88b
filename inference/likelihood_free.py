"""Objectives that are no bound: energy distance of the posterior predictive, and maximum mean discrepancy to the prior.

Both are Pyro's. What is added here is a choice of kernels, the refusal of models they cannot serve, and gradients that
SVI's loop can use.
"""

from collections.abc import Callable
from typing import Any

import torch
from pyro import poutine
from pyro.contrib.gp.kernels import RBF
from pyro.distributions import Unit
from pyro.infer import ELBO, EnergyDistance, Trace_MMD
from pyro.infer.util import torch_item

from inference.errors import InputError
from inference.sites import Sites, is_deterministic, is_observation

# Prior draws from which the widths of kernels are taken: the median of so many distances is good to a few percent.
_KERNEL_DRAWS = 200


class Energy(ELBO):
    """Posterior predictive energy distance (Gneiting & Raftery 2007), for likelihoods that can only be simulated.

    The loss is ``E|X - x| - E|X - X'|/2`` over pairs of draws X, X' from the posterior predictive, x the data. Its
    minimum is no posterior: with much data the guide shrinks onto the parameters that predict best.
    """

    def __init__(self, *, num_particles: int, max_plate_nesting: int) -> None:
        super().__init__(num_particles=num_particles, max_plate_nesting=max_plate_nesting)
        # Its draws lie along one more dim on the left, which it counts as a plate.
        self._distance = EnergyDistance(num_particles=num_particles, max_plate_nesting=max_plate_nesting + 1)

    def differentiable_loss(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Give a differentiable loss."""
        # Deterministic sites are observed sites to Pyro, which would compare them with themselves.
        model = poutine.block(model, hide_fn=lambda site: site["type"] == "sample" and is_deterministic(site))
        return self._distance(model, guide, *args, **kwargs)

    def loss(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> float:
        """Estimate the loss."""
        with torch.no_grad():
            return torch_item(self.differentiable_loss(model, guide, *args, **kwargs))

    def loss_and_grads(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> float:
        """Estimate the loss, and leave its gradient in the parameters."""
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        loss.backward()
        return torch_item(loss)

    def _get_trace(self, model: Callable, guide: Callable, args: tuple, kwargs: dict) -> Any:
        raise NotImplementedError


def make_energy(sites: Sites, num_particles: int) -> Energy:
    """Give the energy distance for a model.

    Raises
    ------
    InputError
        No observed site, or one that has no reparameterised draws, discrete sites, or a model that cannot draw many at
        once.
    """
    _refuse_discrete(sites, "energy")
    trace = poutine.trace(sites.function).get_trace(**sites.data)
    observed = {name: node["fn"] for name, node in trace.nodes.items() if is_observation(node)}
    if not observed:
        raise InputError("elbo='energy': compares simulated with observed data, and the model has no observed site.")
    for name, distribution in observed.items():
        if not distribution.has_rsample:
            raise InputError(
                f"elbo='energy': site '{name}' is {type(distribution).__name__}, whose draws have no gradient with "
                "respect to its parameters; use another objective, or a reparameterised likelihood."
            )
    _refuse_factors(trace)
    return Energy(num_particles=num_particles, max_plate_nesting=sites.max_plate_nesting)


def make_mmd(sites: Sites, num_particles: int) -> Trace_MMD:
    """Give ``pyro.infer.Trace_MMD`` (InfoVAE: Zhao, Song & Ermon 2019) with a kernel per latent site.

    The expected log likelihood, less the squared maximum mean discrepancy between guide and prior in place of their
    Kullback-Leibler divergence. Kernels are Gaussian, as wide as the median distance between prior draws.

    Raises
    ------
    InputError
        Discrete sites, or a prior without reparameterised draws.
    """
    _refuse_discrete(sites, "mmd")
    draws: dict[str, list[torch.Tensor]] = {name: [] for name in sites.latent}
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        for _ in range(_KERNEL_DRAWS):
            trace = poutine.trace(sites.function).get_trace(**sites.data)
            for name, values in draws.items():
                values.append(trace.nodes[name]["value"].reshape(-1))
    for name in draws:
        if not trace.nodes[name]["fn"].has_rsample:
            raise InputError(
                f"elbo='mmd': the prior of site '{name}', {type(trace.nodes[name]['fn']).__name__}, has no "
                "reparameterised draws to compare the guide's with; use another objective."
            )
    kernels = {
        name: RBF(values[0].numel(), lengthscale=torch.as_tensor(float(torch.pdist(torch.stack(values)).median())))
        for name, values in draws.items()
    }
    return Trace_MMD(
        kernels,
        num_particles=num_particles,
        max_plate_nesting=sites.max_plate_nesting,
        vectorize_particles=False,
    )


def _refuse_discrete(sites: Sites, name: str) -> None:
    discrete = next(iter([*sites.discrete, *sites.unenumerable]), None)
    if discrete:
        raise InputError(
            f"elbo='{name}': needs reparameterised draws of every site, and '{discrete}' is discrete; use the default "
            "objective, which sums it out."
        )


def _refuse_factors(trace: poutine.Trace) -> None:
    factors = [name for name, node in trace.nodes.items() if node["type"] == "sample" and isinstance(node["fn"], Unit)]
    if factors:
        raise InputError(
            f"elbo='energy': '{factors[0]}' is a pyro.factor, which cannot be simulated; use another objective."
        )
