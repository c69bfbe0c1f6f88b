"""Iterates of Pyro's Gaussian guides, as rows of unconstrained parameters, read as Gaussians."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pyro
import torch
from pyro.infer.autoguide import (
    AutoDiagonalNormal,
    AutoLaplaceApproximation,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
)
from torch.distributions import transform_to

from inference.gaussian import Gaussian

_PACKED = (AutoDiagonalNormal, AutoMultivariateNormal, AutoLowRankMultivariateNormal)


class GaussianIterates:
    """Reads rows of parameters as Gaussians over the guide's unconstrained vector of D coordinates.

    Parameters
    ----------
    guide
        An `AutoNormal`, `AutoDiagonalNormal`, `AutoMultivariateNormal` or `AutoLowRankMultivariateNormal`.
    params
        The leaf tensors whose numbers make a row, in the row's order.

    Raises
    ------
    LookupError
        The guide is not Gaussian, or there are other parameters than its own, such as the model's.
    """

    def __init__(self, guide: Callable[..., Any], params: Sequence[torch.Tensor]) -> None:
        if not is_gaussian(guide):
            raise LookupError(f"{type(guide).__name__} is not a Gaussian guide")
        store = pyro.get_param_store()
        known = {id(p): name for name, p in store.named_parameters()}
        prefix = f"{guide._pyro_name}."
        ends = np.cumsum([0, *(p.numel() for p in params)])
        self._parts: dict[str, tuple[slice, torch.Size, Any]] = {}
        for p, (start, end) in zip(params, pairwise(ends.tolist()), strict=True):
            name = known.get(id(p), "")
            if not name.startswith(prefix):
                raise LookupError(f"'{name}' is no parameter of the guide")
            constraint = transform_to(store._constraints[name])
            self._parts[name.removeprefix(prefix)] = slice(start, end), p.shape, constraint
        names = [name.removeprefix("locs.") for name in self._parts if name.startswith("locs.")]
        self._pairs = [(f"locs.{n}", f"scales.{n}") for n in names] or [("loc", "scale")]
        if {name for pair in self._pairs for name in pair} - set(self._parts):
            raise LookupError("a location or a scale of the guide does not move")

    def moments(self, rows: np.ndarray) -> np.ndarray:
        """Means, then logarithms of the marginal sds, (n, 2 D), of the Gaussians in rows (n, P)."""
        loc, scale = self._loc_and_scale(rows)
        spread = 1.0
        if "scale_tril" in self._parts:
            spread = np.sqrt((self._part(rows, "scale_tril") ** 2).sum(axis=-1))
        if "cov_factor" in self._parts:
            spread = np.sqrt(1 + (self._part(rows, "cov_factor") ** 2).sum(axis=-1))
        return np.concatenate([loc, np.log(scale * spread)], axis=1)

    def gaussian(self, row: np.ndarray) -> Gaussian:
        """Give the Gaussian of one row (P,)."""
        rows = row[None]
        loc, scale = (part[0] for part in self._loc_and_scale(rows))
        if "scale_tril" in self._parts:
            return Gaussian(loc, scale[:, None] * self._part(rows, "scale_tril")[0])
        if "cov_factor" in self._parts:
            factor = self._part(rows, "cov_factor")[0]
            return Gaussian(loc, scale[:, None] * np.linalg.cholesky(np.eye(len(loc)) + factor @ factor.T))
        return Gaussian(loc, scale)

    def _loc_and_scale(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        parts = [
            np.concatenate([self._part(rows, pair[i]).reshape(len(rows), -1) for pair in self._pairs], 1)
            for i in (0, 1)
        ]
        return parts[0], parts[1]

    def _part(self, rows: np.ndarray, name: str) -> np.ndarray:
        where, shape, constrain = self._parts[name]
        with torch.no_grad():
            return constrain(torch.as_tensor(rows[:, where]).reshape(-1, *shape)).numpy()


def is_gaussian(guide: Callable[..., Any]) -> bool:
    """Whether a guide is one of Pyro's whose density is a Gaussian while it moves."""
    # Laplace's is a point until it has arrived.
    return isinstance(guide, (AutoNormal, *_PACKED)) and not isinstance(guide, AutoLaplaceApproximation)


def symmetrised_kl(p: Gaussian, q: Gaussian) -> float:
    """KL(p, q) + KL(q, p) in nats, for two Gaussians that are both mean field or both full rank.

    That is (tr(S_q^-1 S_p) + tr(S_p^-1 S_q)) / 2 - D + d^T (S_p^-1 + S_q^-1) d / 2, with S the covariances and d the
    difference of the means: the log determinants cancel.
    """
    total = -float(len(p.loc))
    for above, below in ((p, q), (q, p)):
        shift = below.whiten(above.loc[None])
        # Columns of the other's factor, in coordinates that whiten this one; the location is taken out again.
        factor = below.whiten(below.loc + above.scale.T) if above.full_rank else above.scale / below.scale
        total += 0.5 * float((factor**2).sum() + (shift**2).sum())
    return total
