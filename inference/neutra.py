"""A log density in the base coordinates of a trained flow (NeuTra: Hoffman et al. 2019, section 3).

A flow T that fits the posterior well maps a standard normal to it, so in coordinates z, x = T(z), the posterior is near
a standard normal, whatever its shape in x. Sampled there by NUTS, it is the posterior itself, not the fit: the density
of z is p(T(z)) |det dT/dz|.
"""

import copy
from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from pyro.infer.autoguide.guides import AutoContinuous

from inference.density import START_ATTEMPTS, Density
from inference.errors import InputError
from inference.fingerprint import Unknown
from inference.fit import Fit
from inference.mapped import map_draws
from inference.nutpie_chains import Chains
from inference.sites import Sites


class Transported(Density):
    """The log density of z with x = T(z), evaluated as any density: recorded, verified, compiled.

    `eager`, `value_and_grad`, `grad` and `log_density` take z; `constrain`, `unconstrain` and `labels` are those of x.

    Parameters
    ----------
    sites
        The model.
    flow
        A trained guide whose ``get_transform()`` maps a standard normal to unconstrained values x.

    Raises
    ------
    InputError
        The guide covers other sites than the model has.
    """

    def __init__(self, sites: Sites, flow: AutoContinuous) -> None:
        if any(p.dtype != torch.get_default_dtype() for p in flow.parameters()):
            flow = copy.deepcopy(flow).to(torch.get_default_dtype())
        self._flow, self._transform = flow, flow.get_transform()
        theirs = {name: int(torch.Size(shape).numel()) for name, shape in flow._unconstrained_shapes.items()}
        if set(theirs) != set(sites.latent):
            raise InputError(
                f"init: the flow is of another model: it has the sites {', '.join(theirs)}; this model has "
                f"{', '.join(sites.latent)}."
            )
        super().__init__(sites)

    @property
    def backend(self) -> str:
        """Name of the way in which the density is evaluated."""
        return f"transported {super().backend}"

    def _record(self, example: torch.Tensor) -> None:
        if self.dim != self._flow.latent_dim:
            raise InputError(
                f"init: the flow is of data of another size: {self._flow.latent_dim} coordinates, where this model has "
                f"{self.dim}."
            )
        super()._record(example)

    def eager(self, vector: torch.Tensor, data: Mapping[str, Any] | None = None) -> torch.Tensor:
        """Log density at one z (D,), by running the flow and the Pyro model, at other data if given."""
        x, log_det = self._forward(vector)
        return super().eager(x, data) + log_det

    def start(self, chain_seed: int) -> np.ndarray:
        """Give a chain's start z (D,): a draw of the fit, which is standard normal here."""
        points = np.random.default_rng(chain_seed).standard_normal((START_ATTEMPTS, self.dim))
        values, gradients = self.grad(points)
        usable = np.isfinite(values) & np.isfinite(gradients).all(axis=1)
        if not usable.any():
            raise InputError(f"init: the density is not finite at any of {START_ATTEMPTS} draws of the flow.")
        return points[np.argmax(usable)]

    def in_x(self, points: np.ndarray, stats: dict[str, np.ndarray], adapted: dict[str, np.ndarray]) -> Chains:
        """Map draws z (chain, draw, D) to x, and ``lp`` to the log density of x; what was adapted concerns z."""
        z = torch.as_tensor(points.reshape(-1, self.dim), dtype=self.dtype)
        moved = map_draws(lambda one: dict(zip(("x", "log_det"), self._forward(one), strict=True)), z)
        lp = stats["lp"] - moved["log_det"].reshape(points.shape[:2])
        return moved["x"].reshape(points.shape).astype(np.float64), stats | {"lp": lp}, adapted

    def _forward(self, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Give x (D,), in the order of this density's coordinates, and log |det dT/dz|."""
        packed = self._transform(z)
        log_det = self._transform.log_abs_det_jacobian(z, packed).sum()
        return self.flatten({site["name"]: value for site, value in self._flow._unpack_latent(packed)}), log_det

    def _key(self) -> Hashable:
        raise Unknown("a trained flow")


def check_flow(init: Fit | None) -> AutoContinuous:
    """Give the flow of a fit; refuse a fit without one."""
    guide = None if init is None else init.state.get("guide")
    if not isinstance(guide, AutoContinuous):
        got = "None" if init is None else f"the fit by {init.engine!r}"
        raise InputError(
            "neutra: init must be a fit whose guide is a flow, or any AutoContinuous guide of Pyro's, as made by "
            f'SVI(guide="iaf"), and not loaded from a file; got {got}.'
        )
    try:
        transform = guide.get_transform()
    except (NotImplementedError, TypeError) as error:
        raise InputError(
            f"neutra: the guide {type(guide).__name__} of init has no transform from a standard normal; use "
            'SVI(guide="iaf").'
        ) from error
    if transform is None:
        raise InputError("neutra: the guide of init has never been run; train it first.")
    return guide
