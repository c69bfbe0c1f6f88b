"""Deep Markov model: sequences seen through a hidden path that a network moves (Krishnan, Shalit & Sontag 2017)."""

from collections.abc import Callable, Mapping
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints

from ppl_models import datasets
from ppl_models.deep_markov_networks import backward_gru, combiner, emitter, gated_transition
from ppl_models.features import Features
from ppl_models.hmm_parts import check_codes, check_count, check_series, steps_with_values
from ppl_models.markov_path import MarkovPath, SeenRows
from ppl_models.model import HeldOut, Model, Simulation
from ppl_models.simulation import draw, own_stream

EMISSIONS = ("bernoulli", "normal")
# What the inference network sees where a switch is missing: half on.
MISSING_CODE = 0.5


def deep_markov(
    *,
    x: torch.Tensor,
    lengths: torch.Tensor | None = None,
    num_latents: int = 8,
    hidden: int = 32,
    rnn_hidden: int = 32,
    emission: str = "bernoulli",
) -> torch.Tensor:
    """Let a hidden vector move by a gated network, and each step's features depend on it through another network.

    The networks ``transition`` and ``emitter`` and the state ``start`` before the first step are parameters, for
    maximum likelihood; the latent is the path ``z`` (sequences, steps, num_latents).

    Parameters
    ----------
    x
        (steps, features), or (sequences, steps, features) with ``lengths`` (sequences,). Zeros and ones; with
        ``emission="normal"`` any numbers, with an sd for each feature (parameter ``emitter_scale``). NaN is missing.
    num_latents
        Length of the hidden vector.
    hidden, rnn_hidden
        Widths of the hidden layers of transition and emitter, and of the inference network of `deep_markov_guide`.

    Raises
    ------
    ValueError
        A shape, a length or a value is not as said.
    """
    seen = _checked(x, lengths, num_latents, hidden, rnn_hidden, emission)
    transition = gated_transition(num_latents, hidden).bind("transition", x)
    emit = emitter(num_latents, hidden, x.shape[-1]).bind("emitter", x)
    start = pyro.param("start", lambda: x.new_zeros(num_latents))
    path = MarkovPath(transition, start, x.shape[-2], seen=seen)
    if x.dim() == 2:
        return _observe(x, pyro.sample("z", path), emit, seen, emission)
    with pyro.plate("sequence", len(x)):
        return _observe(x, pyro.sample("z", path), emit, seen, emission)


def deep_markov_guide(
    *,
    x: torch.Tensor,
    lengths: torch.Tensor | None = None,
    num_latents: int = 8,
    hidden: int = 32,
    rnn_hidden: int = 32,
    emission: str = "bernoulli",
) -> torch.Tensor:
    """Guess each state from the one before and from this and all later values, as the exact posterior depends on them.

    A GRU reads each sequence backwards, from its own end (network ``encoder``); ``combiner`` joins its summaries with
    the states. Arguments as of `deep_markov`.
    """
    seen = _checked(x, lengths, num_latents, hidden, rnn_hidden, emission)
    encoder = backward_gru(x.shape[-1], rnn_hidden).bind("encoder", x)
    step = combiner(num_latents, rnn_hidden).bind("combiner", x)
    start = pyro.param("guide_start", lambda: x.new_zeros(num_latents))
    filled = torch.where(x.isnan(), MISSING_CODE if emission == "bernoulli" else 0.0, x)
    summary = encoder(filled.reshape(-1, *x.shape[-2:]), lengths).reshape(*x.shape[:-1], rnn_hidden)
    path = MarkovPath(step, start, x.shape[-2], context=summary, seen=seen)
    if x.dim() == 2:
        return pyro.sample("z", path)
    with pyro.plate("sequence", len(x)):
        return pyro.sample("z", path)


def _checked(
    x: torch.Tensor, lengths: torch.Tensor | None, num_latents: int, hidden: int, rnn_hidden: int, emission: str
) -> torch.Tensor | None:
    """Give which steps are seen, (sequences, steps), None for all; raise ValueError where an argument is wrong."""
    for name, value in (("num_latents", num_latents), ("hidden", hidden), ("rnn_hidden", rnn_hidden)):
        check_count(name, value)
    if emission not in EMISSIONS:
        raise ValueError(f"emission: expected one of {', '.join(EMISSIONS)}, got {emission!r}.")
    check_series("x", x, event_dim=1)
    seen = steps_with_values(lengths, x, event_dim=1)
    if emission == "bernoulli":
        check_codes("x", x, seen, highest=1)
    return seen


def _observe(
    x: torch.Tensor, z: torch.Tensor, emit: Callable[..., torch.Tensor], seen: torch.Tensor | None, emission: str
) -> torch.Tensor:
    """Observe sequences as the site ``x``."""
    rows = SeenRows(z, seen)
    natural = rows.spread(emit(rows.of(z)))
    if emission == "bernoulli":
        return pyro.sample("x", Features(dist.Bernoulli(logits=natural), seen), obs=x)
    scale = pyro.param("emitter_scale", lambda: x.new_ones(x.shape[-1]), constraint=constraints.positive)
    return pyro.sample("x", Features(dist.Normal(natural, scale), seen), obs=x)


def _data() -> dict[str, Any]:
    """Read a hundred handwritten digits from top to bottom, a row of eight pixels at each step."""
    return {"x": datasets.digit_pixels().reshape(-1, 8, 8), "num_latents": 4}


def _held_out() -> HeldOut:
    """Give the next hundred pictures of the same digits."""
    pixels, labels = datasets.more_digit_pixels()
    return HeldOut({"x": pixels.reshape(-1, 8, 8)}, labels)


def _simulate(
    seed: int,
    *,
    num_steps: int = 20,
    num_features: int = 6,
    num_sequences: int | None = 30,
    truth: Mapping[str, Any] | None = None,
    **settings: Any,
) -> Simulation:
    """Draw networks as they begin before training, paths, and sequences of half to full length."""
    with own_stream(seed), pyro.get_param_store().scope():
        inputs: dict[str, Any] = {"num_latents": 4}
        shape: tuple[int, ...] = (num_steps, num_features)
        if num_sequences is not None:
            shape = (num_sequences, *shape)
            inputs["lengths"] = torch.randint((num_steps + 1) // 2, num_steps + 1, (num_sequences,))
            inputs["lengths"][0] = num_steps
        return draw(deep_markov, inputs | {"x": torch.zeros(shape)}, truth=truth, **settings)


DEEP_MARKOV = Model(
    name="deep_markov",
    model=deep_markov,
    data=_data,
    simulate=_simulate,
    summary="a hidden path moved by a network, seen through another (handwritten digits, read row by row)",
    guide=deep_markov_guide,
    may_miss="x",
    training={"elbo": "trace_mean_field", "batch_size": 20, "num_epochs": 300, "lr": 5e-3, "lr_schedule": "cosine"},
    held_out=_held_out,
)
