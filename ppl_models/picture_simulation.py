"""Drawing pictures from models whose decoders are networks."""

from collections.abc import Callable, Mapping
from typing import Any

import pyro
import torch

from ppl_models.model import Simulation
from ppl_models.simulation import draw, own_stream


def simulate_pictures(
    model: Callable[..., Any],
    seed: int,
    *,
    num_rows: int = 100,
    shape: tuple[int, ...] = (8, 8),
    truth: Mapping[str, Any] | None = None,
    weights: Mapping[str, torch.Tensor] | None = None,
    inputs: Mapping[str, Any] | None = None,
    **settings: Any,
) -> Simulation:
    """Draw latents from the prior and pictures from the decoder.

    Parameters
    ----------
    model, seed, truth, settings
        As `ppl_models.Model` has them.
    num_rows
        Number of pictures.
    shape
        (height, width), or (pixels,).
    weights
        The params of the decoder, such as those of a trained one (`pyro.get_param_store`); those not given are drawn
        as they are before training. The caller's parameter store stays as it was.
    inputs
        Further arguments with one entry for each picture.
    """
    store = pyro.get_param_store()
    with own_stream(seed), store.scope():
        for name, value in (weights or {}).items():
            pyro.param(name, value.detach().clone())
        return draw(model, {"x": torch.zeros(num_rows, *shape), **(inputs or {})}, truth=truth, **settings)
