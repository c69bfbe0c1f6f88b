"""Made-up sequences from the hidden Markov models and state-space models."""

from collections.abc import Callable, Mapping
from typing import Any

import torch

from ppl_models.model import Simulation
from ppl_models.simulation import draw, own_stream


def simulate(
    model: Callable[..., Any],
    seed: int,
    *,
    num_steps: int = 100,
    num_features: int = 3,
    num_covariates: int = 1,
    num_sequences: int | None = None,
    truth: Mapping[str, Any] | None = None,
    scaled: bool = False,
    vectors: bool = False,
    covariates: bool = False,
    integers: Mapping[str, int] | None = None,
    settings: Mapping[str, float] | None = None,
    **given: Any,
) -> Simulation:
    """Draw parameters and one sequence, or several of different lengths, from a model.

    Parameters
    ----------
    model, seed, truth
        As for `ppl_models.Model.simulate`.
    num_steps
        Length of the sequence, of the longest one where there are several.
    num_features, num_covariates
        Of a model of vectors (``vectors``), and of one with covariates ``z`` (``covariates``): standard normal.
    num_sequences
        Where given, there are so many, and ``lengths`` from half the longest on.
    scaled
        The priors take their location and scale from data: put 0 and 1 there, since there are none before the draw.
    integers, settings
        Further arguments by default, whole numbers and others.
    given
        Arguments of the model (``K``, say); they become part of the data.
    """
    arguments: dict[str, Any] = {"K": 2} if "K" in _names(model) else {}
    arguments |= dict(integers or {}) | {name: torch.tensor(value) for name, value in (settings or {}).items()}
    with own_stream(seed):
        arguments = {n: v.double() if isinstance(v, torch.Tensor) else v for n, v in arguments.items()}
        if scaled:
            arguments |= {"centre": torch.tensor(0.0), "spread": torch.tensor(1.0)}
        shape = (num_steps, num_features) if vectors else (num_steps,)
        if num_sequences is not None:
            shape = (num_sequences, *shape)
            lengths = torch.randint((num_steps + 1) // 2, num_steps + 1, (num_sequences,))
            lengths[0] = num_steps
            arguments["lengths"] = lengths
        if covariates:
            arguments["z"] = torch.randn(num_steps, num_covariates)
        return draw(model, {"x": torch.zeros(shape), **arguments, **given}, truth=truth)


def _names(model: Callable[..., Any]) -> tuple[str, ...]:
    code = model.__code__
    return code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
