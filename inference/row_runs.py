"""Running a model or a guide for many draws of many rows, and splitting its log density into one number for each.

Draws are a plate on the left of the model's own. Where the model's networks do not bear that (a convolution takes one
batch dim), rows are repeated for every draw instead, which any model of independent rows bears.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import _Subsample
from torch.distributions import biject_to

from inference.errors import InputError
from inference.sites import is_deterministic, mark_enumerable

DRAWS_PLATE = "_draws_of_rows"


class Held(Messenger):
    """Gives latent sites the values of unconstrained ones, and keeps the log Jacobians."""

    def __init__(self, values: Mapping[str, torch.Tensor]) -> None:
        super().__init__()
        self.values = values
        self.log_jacobians: list[torch.Tensor] = []

    def _pyro_sample(self, msg: dict) -> None:
        if msg["name"] in self.values and not msg["is_observed"]:
            transform, u = biject_to(msg["fn"].support), self.values[msg["name"]]
            msg["value"], msg["done"] = transform(u), True
            self.log_jacobians.append(transform.log_abs_det_jacobian(u, msg["value"]))


class Unscaled(Messenger):
    """Takes scales back to one: a weighted KL or a mini-batch changes what is trained, not what p(x) is."""

    def _pyro_sample(self, msg: dict) -> None:
        msg["scale"] = 1.0


def unscaled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a model, so that its log density has no scales."""

    def run(**data: Any) -> Any:
        with Unscaled():
            return function(**data)

    return run


@dataclass(frozen=True, eq=False)
class Runs:
    """How a function is run for S draws of n rows.

    Attributes
    ----------
    function
        Model or guide.
    arguments
        Names of its arguments that have a row each.
    nesting
        Plates of the model, the rows' being the leftmost.
    tiled
        Whether rows are repeated, draw after draw, rather than a plate added.
    """

    function: Callable[..., Any]
    arguments: tuple[str, ...]
    nesting: int
    tiled: bool = False

    def trace(self, data: Mapping[str, Any], num: int, *, enumerated: bool = False) -> poutine.Trace:
        """Run once, with ``num`` draws of every row."""
        function = self.function
        if enumerated:
            marked = poutine.infer_config(function, config_fn=mark_enumerable)
            function = poutine.enum(marked, first_available_dim=-2 - self.nesting)
        if self.tiled:
            return poutine.trace(function).get_trace(**self.repeat(data, num))
        with pyro.plate(DRAWS_PLATE, num, dim=-1 - self.nesting):
            return poutine.trace(function).get_trace(**data)

    def repeat(self, data: Mapping[str, Any], num: int) -> dict[str, Any]:
        """Repeat the rows of the data: all rows for draw 0, then for draw 1."""
        return {n: v.repeat(num, *[1] * (v.dim() - 1)) if n in self.arguments else v for n, v in data.items()}

    def joined(self, value: torch.Tensor) -> torch.Tensor:
        """Give a value (S, n, *shape) the shape that a run has it in."""
        return value.reshape(-1, *value.shape[2:]) if self.tiled else value

    def parted(self, value: torch.Tensor, num: int) -> torch.Tensor:
        """Give a value of a run the shape (S, n, *shape)."""
        return value.reshape(num, -1, *value.shape[1:]) if self.tiled else value

    def log_density(self, trace: poutine.Trace, num: int, n: int) -> torch.Tensor:
        """Sum log probabilities over sites, over plates inside of a row, and over enumerated values: (S, n), float64.

        Raises
        ------
        InputError
            A site outside of the plate of the rows.
        """
        inner, leading = self.nesting - 1, 1 if self.tiled else 2
        total = torch.zeros((), dtype=torch.float64)
        for node in trace.nodes.values():
            if node["type"] != "sample" or isinstance(node["fn"], _Subsample) or is_deterministic(node):
                continue
            term = scale_and_mask(node["fn"].log_prob(node["value"]), 1.0, node["mask"])
            found = term.shape[-1 - inner] if term.dim() >= leading + inner else 1
            if found != (num * n if self.tiled else n):
                raise InputError(_no_rows(node["name"], found))
            total = total + (term.sum(dim=tuple(range(-inner, 0))) if inner else term).double()
        while total.dim() > leading:
            total = total.logsumexp(0)
        return total.expand(num * n).reshape(num, n) if self.tiled else total.expand(num, n)


def _no_rows(site: str, found: int) -> str:
    if found == 1:
        return (
            f"site '{site}': its log density does not split into rows. Put it inside of the plate of the rows; a guide "
            "must be amortised (a network of the data), or 'normal'."
        )
    return (
        f"site '{site}': has {found} rows of its own. A guide with values for each row of the fit knows no other rows: "
        "use one that computes them from the data (an encoder)."
    )
