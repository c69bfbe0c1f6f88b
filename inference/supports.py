"""Transforms of sites whose supports are the same whatever the values of other sites."""

from collections.abc import Iterable, Mapping

import numpy as np
import torch
from pyro import poutine
from torch.distributions import Transform, biject_to, constraints


def fixed_transforms(trace: poutine.Trace, names: Iterable[str]) -> dict[str, Transform] | None:
    """Give the maps from unconstrained values to the sites, or None if one of the supports may move.

    A support without a tensor in it (the real line, positive numbers, a simplex) cannot depend on another latent; one
    with tensors as bounds might, unless it says by an attribute ``fixed`` that they are data.
    """
    supports = {name: trace.nodes[name]["fn"].support for name in names}
    if not all(_is_fixed(support) for support in supports.values()):
        return None
    return {name: biject_to(support) for name, support in supports.items()}


def constrain_all(transforms: Mapping[str, Transform], unconstrained: Mapping[str, torch.Tensor]) -> dict:
    """Map unconstrained values ``name -> (n, *shape)`` to arrays of the values of the sites."""
    with torch.no_grad():
        return {name: transforms[name](value).numpy() for name, value in unconstrained.items()}


def unconstrain_all(
    transforms: Mapping[str, Transform], values: Mapping[str, torch.Tensor]
) -> tuple[np.ndarray, np.ndarray]:
    """Map values of the sites ``name -> (n, *shape)`` to points (n, D) and log Jacobians (n,)."""
    points, log_jacobian = [], torch.zeros(())
    with torch.no_grad():
        for name, transform in transforms.items():
            u = transform.inv(values[name])
            log_det = transform.log_abs_det_jacobian(u, values[name])
            points.append(u.reshape(len(u), -1))
            log_jacobian = log_jacobian + log_det.reshape(len(u), -1).sum(dim=1)
    return torch.cat(points, dim=1).numpy().astype(np.float64), log_jacobian.numpy().astype(np.float64)


def _is_fixed(support: constraints.Constraint) -> bool:
    if getattr(support, "fixed", False):
        return True
    parts = [getattr(support, name, None) for name in getattr(support, "__slots__", ())] + list(vars(support).values())
    for part in parts:
        if isinstance(part, torch.Tensor):
            return False
        nested = part if isinstance(part, list | tuple) else [part]
        if any(isinstance(inner, constraints.Constraint) and not _is_fixed(inner) for inner in nested):
            return False
        if any(not isinstance(inner, constraints.Constraint | int | float | str | None) for inner in nested):
            return False
    return True
