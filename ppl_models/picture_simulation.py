"""Drawing pictures, or the missing parts of pictures, from models whose decoders are networks."""

from collections.abc import Callable, Mapping
from typing import Any

import pyro
import torch
from pyro import poutine

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


def impute(
    model: Callable[..., Any],
    data: Mapping[str, Any],
    *,
    guide: Callable[..., Any] | None = None,
    latents: Mapping[str, torch.Tensor] | None = None,
    num_samples: int = 100,
    seed: int = 0,
) -> torch.Tensor:
    """Draw the missing pixels of pictures from their predictive distribution given those that are seen.

    The weights are those in Pyro's parameter store, as a fit leaves them (`inference.Fit.restored`).

    Parameters
    ----------
    model
        One of the pictures `x`, such as `ppl_models.vae.vae`.
    data
        Its arguments, with NaN in ``x`` for pixels to fill in, and ``missing=True``.
    guide
        Gives the latents of each draw; exact only as far as the guide is.
    latents
        Draws of the latent sites, each (draw, N, ...), in place of a guide: of NUTS, say.
    num_samples
        Number of draws with a guide.
    seed
        The caller's random stream is left alone.

    Returns
    -------
    torch.Tensor
        Draws (draw, N, *shape), in which pixels that are seen are as in ``x``. Their mean is the expected grey level.

    Raises
    ------
    ValueError
        Neither guide nor latents, or both.
    """
    if (guide is None) == (latents is None):
        raise ValueError("impute: expected either a guide or draws of the latents.")
    num_samples = num_samples if latents is None else min(len(value) for value in latents.values())
    unseen, draws = data["x"].isnan(), []
    with own_stream(seed), torch.no_grad():
        for i in range(num_samples):
            if latents is None:
                given = poutine.replay(model, trace=poutine.trace(guide).get_trace(**data))
            else:
                given = poutine.condition(model, data={name: value[i] for name, value in latents.items()})
            drawn = poutine.trace(given).get_trace(**data).nodes["x"]["fn"].sample()
            draws.append(torch.where(unseen, drawn, data["x"]))
    return torch.stack(draws)
