"""The variational autoencoder: a latent vector, a network that decodes it, and a guide that encodes pictures."""

from functools import partial
from typing import Any

import pyro
import torch

from ppl_models import images
from ppl_models.encoder import check_latents, num_encoded, posterior, standard_normal
from ppl_models.model import HeldOut, Model
from ppl_models.networks import image_decoder, image_encoder
from ppl_models.picture_simulation import simulate_pictures
from ppl_models.pixels import binarise, check_images, look, observe, sample_dither

NUM_LATENTS = 10
HIDDEN = (200, 200)
# Chosen on the last 300 of the digits that train, and for their price, as were the latents: see docs/vae.md.
TRAINING = {
    "elbo": "iwae",
    "num_particles": 5,
    "batch_size": 100,
    "num_epochs": 100,
    "lr": 5e-3,
    "lr_schedule": "cosine",
}
# The plain bound, for its relatives.
BY_ELBO = {"elbo": "trace_mean_field", "batch_size": 128, "num_epochs": 100, "lr": 5e-3, "lr_schedule": "cosine"}


def vae(
    *,
    x: torch.Tensor,
    num_latents: int = NUM_LATENTS,
    hidden: tuple[int, ...] = HIDDEN,
    network: str = "dense",
    activation: str = "elu",
    decoder: str = "bernoulli",
    levels: int = 17,
    missing: bool = False,
    dynamic: bool = False,
    num_flows: int = 0,
) -> torch.Tensor:
    """Decode pictures from a standard normal vector by a network (Kingma & Welling 2014; Rezende et al. 2014).

    The weights are params ``decoder...`` here and ``encoder...`` in the guide `vae_guide`, both in Pyro's store.

    Parameters
    ----------
    x
        Pictures (N, height, width) or rows of pixels (N, pixels), grey levels in [0, 1]. NaN marks a missing pixel.
    num_latents
        Size of the latent vector ``z``.
    hidden
        Layers of the encoder, from the picture on; the decoder has them in the opposite order. ``dense``: widths;
        ``convolutional``: channels of layers that halve the sides.
    network
        ``dense`` or ``convolutional``.
    activation
        After hidden layers: ``tanh``, ``relu``, ``leaky_relu``, ``elu``, ``softplus`` or ``silu``.
    decoder
        What pixels are given ``z``: ``bernoulli`` (ones and zeros), ``gaussian`` (one learnt noise), or ``logistic``
        (one of ``levels`` grey levels, with a learnt noise for each pixel).
    levels
        Number of grey levels for ``logistic``: 17 for scikit-learn's digits, 256 for bytes.
    missing
        Pixels may be missing. They are integrated out; the encoder sees zero for them, and which they are.
    dynamic
        ``x`` has grey levels, and each step draws anew which pixels are one (Burda et al. 2016).
    num_flows
        Inverse autoregressive layers on top of the encoder.

    Raises
    ------
    ValueError
        Pictures or settings out of range.
    """
    check_latents(num_latents, num_flows)
    shape = check_images(x, decoder=decoder, levels=levels, missing=missing, dynamic=dynamic)
    decode = image_decoder(num_latents, shape, hidden=hidden[::-1], kind=network, activation=activation)
    with pyro.plate("data", len(x)):
        dither = sample_dither(x) if dynamic else None
        z = pyro.sample("z", standard_normal(x, num_latents))
        return observe(x, decode("decoder", z), decoder=decoder, levels=levels, missing=missing, dither=dither)


def vae_guide(
    *,
    x: torch.Tensor,
    num_latents: int = NUM_LATENTS,
    hidden: tuple[int, ...] = HIDDEN,
    network: str = "dense",
    activation: str = "elu",
    decoder: str = "bernoulli",
    levels: int = 17,
    missing: bool = False,
    dynamic: bool = False,
    num_flows: int = 0,
) -> None:
    """Encode each picture as a normal of ``z``, with a flow on top where ``num_flows`` asks for one.

    Parameters and errors are those of `vae`.
    """
    check_latents(num_latents, num_flows)
    shape = check_images(x, decoder=decoder, levels=levels, missing=missing, dynamic=dynamic)
    encode = image_encoder(
        shape,
        num_encoded(num_latents, num_flows),
        hidden=hidden,
        kind=network,
        activation=activation,
        num_channels=2 if missing else 1,
    )
    with pyro.plate("data", len(x)):
        seen = binarise(x, sample_dither(x)) if dynamic else x
        output = encode("encoder", look(seen, missing=missing))
        pyro.sample("z", posterior(output, num_latents, num_flows))


def data() -> dict[str, Any]:
    """Give the 1500 digits for training, zeros and ones (1500, 8, 8)."""
    return {"x": images.digits().binarised().train.double()}


def held_out() -> HeldOut:
    """Give the 297 digits that other people wrote, with what they are."""
    digits = images.digits().binarised()
    return HeldOut({"x": digits.test}, digits.test_labels.int())


VAE = Model(
    name="vae",
    model=vae,
    data=data,
    simulate=partial(simulate_pictures, vae),
    summary="variational autoencoder: pictures decoded from a latent vector by a network (1500 handwritten digits)",
    guide=vae_guide,
    may_miss="x",
    training=TRAINING,
    held_out=held_out,
)
