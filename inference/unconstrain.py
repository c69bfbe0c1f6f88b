"""Running a model at unconstrained values, or asking which unconstrained values belong to constrained ones."""

from collections.abc import Mapping

import torch
from pyro.poutine.messenger import Messenger
from torch.distributions import biject_to


class UnconstrainMessenger(Messenger):
    """Runs a model at given unconstrained values and sums the log Jacobians of the transforms.

    The transform is read off each site as the model runs, so a support that depends on another latent
    (``Uniform(0, scale)``) is right, where transforms frozen at a first trace would be wrong.
    """

    def __init__(self, values: Mapping[str, torch.Tensor]) -> None:
        super().__init__()
        self.values = values
        self.log_jacobian: torch.Tensor | float = 0.0

    def _pyro_sample(self, msg: dict) -> None:
        if msg["name"] in self.values and not msg["is_observed"]:
            transform, u = biject_to(msg["fn"].support), self.values[msg["name"]]
            msg["value"] = transform(u)
            msg["done"] = True
            self.log_jacobian = self.log_jacobian + transform.log_abs_det_jacobian(u, msg["value"]).sum()


class ConstrainMessenger(Messenger):
    """Runs a model at given constrained values and records their unconstrained counterparts and log Jacobians."""

    def __init__(self, values: Mapping[str, torch.Tensor]) -> None:
        super().__init__()
        self.values = values
        self.unconstrained: dict[str, torch.Tensor] = {}
        self.log_jacobian: torch.Tensor | float = 0.0

    def _pyro_sample(self, msg: dict) -> None:
        if msg["name"] in self.values and not msg["is_observed"]:
            transform, x = biject_to(msg["fn"].support), self.values[msg["name"]]
            u = transform.inv(x)
            msg["value"], msg["done"] = x, True
            self.unconstrained[msg["name"]] = u
            self.log_jacobian = self.log_jacobian + transform.log_abs_det_jacobian(u, x).sum()
