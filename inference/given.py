"""Draws from elsewhere as a fit: a reference that another program made."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from inference.errors import InputError
from inference.fit import Fit, Status


@dataclass(frozen=True)
class Given:
    """Stands where other fits have their engine.

    Attributes
    ----------
    source
        Where the draws come from.
    independent
        Whether the draws are independent, so that their number is their effective number.
    """

    method: ClassVar[str] = "given"
    source: str = "elsewhere"
    independent: bool = False


def from_draws(
    draws: Mapping[str, Any], *, source: str = "elsewhere", independent: bool = False, like: Fit | None = None
) -> Fit:
    """Make a fit of draws that another program made, for `compare` or ArviZ.

    As a reference it is taken at its word: what it has too few draws or disagreeing chains for is said, no more is
    known of it. Only the quantities that it has are compared.

    Parameters
    ----------
    draws
        ``name -> (chain, draw, *shape)``.
    source
        Where they come from, for reports.
    independent
        Whether the draws are independent; else their effective number is estimated from their autocorrelation.
    like
        A fit of the same model, which gives its names of rows and columns and its label-free quantities.

    Raises
    ------
    InputError
        No draws, no axes for chain and draw, or axes that differ between names.

    Examples
    --------
    >>> stan = from_draws({"mu": mu, "theta": theta}, source="Stan")
    >>> compare({"stan": stan, "auto": auto}, reference="stan")
    """
    arrays = {name: np.asarray(value) for name, value in draws.items()}
    if not arrays:
        raise InputError("draws: none given; expected a mapping from site to an array (chain, draw, *shape).")
    first = next(iter(arrays.values())).shape[:2]
    for name, value in arrays.items():
        if value.dtype.kind not in "biuf":
            raise InputError(f"draws['{name}']: expected numbers, got an array of {value.dtype}.")
        if value.ndim < 2 or value.shape[:2] != first or 0 in first:
            raise InputError(
                f"draws['{name}']: expected shape (chain, draw, *shape) with the same chains and draws for all names "
                f"({first} for '{next(iter(arrays))}'), got {value.shape}."
            )
    state = {"num_gradients": 0, "backend": source, "dims": {}, "module": {}, "dtype": torch.float64}
    state["params"] = {"params": {}, "constraints": {}}
    if like is not None:
        state |= {name: like.state[name] for name in ("function", "params", "dims", "dtype") if name in like.state}
    return Fit(
        draws=arrays,
        stats={},
        history={},
        status=Status("finished", f"Given by {source}."),
        engine=Given(source, independent),
        seed=0,
        seconds={},
        model=None if like is None else like.model,
        data={} if like is None else like.data,
        state=state,
    )
