"""A variational autoencoder with two layers of latent vectors, one above the other."""

from functools import partial

import pyro
import torch

from ppl_models.encoder import check_latents, diagonal_normal, num_encoded, posterior, standard_normal
from ppl_models.model import Model
from ppl_models.networks import image_decoder, image_encoder, mlp
from ppl_models.picture_simulation import simulate_pictures
from ppl_models.pixels import binarise, check_images, look, observe, sample_dither
from ppl_models.vae import BY_ELBO, HIDDEN, data, held_out

NUM_LATENTS, NUM_TOP = 16, 8
HIDDEN_TOP = (64,)


def two_layer_vae(
    *,
    x: torch.Tensor,
    num_latents: int = NUM_LATENTS,
    num_top: int = NUM_TOP,
    hidden: tuple[int, ...] = HIDDEN,
    hidden_top: tuple[int, ...] = HIDDEN_TOP,
    network: str = "dense",
    activation: str = "elu",
    decoder: str = "bernoulli",
    levels: int = 17,
    missing: bool = False,
    dynamic: bool = False,
    num_flows: int = 0,
) -> torch.Tensor:
    """Decode a latent vector from another, and pictures from the former (Burda et al. 2016, appendix C).

    ``z_top`` is standard normal, ``z`` normal with a mean and scales that a network makes of it.

    The guide goes upwards: ``z`` from the picture, then ``z_top`` from ``z``. So the divergence of ``z`` from its prior
    has no closed form: use ``Trace_ELBO`` or an importance-weighted bound, not ``TraceMeanField_ELBO``.

    Parameters
    ----------
    x
        As `ppl_models.vae.vae`, like the arguments not named here.
    num_latents, num_top
        Sizes of ``z`` and ``z_top``.
    hidden_top
        Widths of the layers between ``z`` and ``z_top``, upwards.
    num_flows
        Inverse autoregressive layers on top of the encoder of ``z``.

    Raises
    ------
    ValueError
        Pictures or settings out of range.
    """
    check_latents(num_latents, num_flows)
    check_latents(num_top, name="num_top")
    shape = check_images(x, decoder=decoder, levels=levels, missing=missing, dynamic=dynamic)
    decode_top = mlp(num_top, hidden_top[::-1], 2 * num_latents, activation)
    decode = image_decoder(num_latents, shape, hidden=hidden[::-1], kind=network, activation=activation)
    with pyro.plate("data", len(x)):
        dither = sample_dither(x) if dynamic else None
        top = pyro.sample("z_top", standard_normal(x, num_top))
        z = pyro.sample("z", diagonal_normal(decode_top("decoder_top", top)))
        return observe(x, decode("decoder", z), decoder=decoder, levels=levels, missing=missing, dither=dither)


def two_layer_vae_guide(
    *,
    x: torch.Tensor,
    num_latents: int = NUM_LATENTS,
    num_top: int = NUM_TOP,
    hidden: tuple[int, ...] = HIDDEN,
    hidden_top: tuple[int, ...] = HIDDEN_TOP,
    network: str = "dense",
    activation: str = "elu",
    decoder: str = "bernoulli",
    levels: int = 17,
    missing: bool = False,
    dynamic: bool = False,
    num_flows: int = 0,
) -> None:
    """Encode each picture as a normal of ``z``, and ``z`` as a normal of ``z_top``.

    Parameters and errors are those of `two_layer_vae`.
    """
    check_latents(num_latents, num_flows)
    check_latents(num_top, name="num_top")
    shape = check_images(x, decoder=decoder, levels=levels, missing=missing, dynamic=dynamic)
    encode = image_encoder(
        shape,
        num_encoded(num_latents, num_flows),
        hidden=hidden,
        kind=network,
        activation=activation,
        num_channels=2 if missing else 1,
    )
    encode_top = mlp(num_latents, hidden_top, 2 * num_top, activation)
    with pyro.plate("data", len(x)):
        seen = binarise(x, sample_dither(x)) if dynamic else x
        output = encode("encoder", look(seen, missing=missing))
        z = pyro.sample("z", posterior(output, num_latents, num_flows))
        pyro.sample("z_top", diagonal_normal(encode_top("encoder_top", z)))


TWO_LAYER_VAE = Model(
    name="two_layer_vae",
    model=two_layer_vae,
    data=data,
    simulate=partial(simulate_pictures, two_layer_vae),
    summary="variational autoencoder with two layers of latent vectors (1500 handwritten digits)",
    guide=two_layer_vae_guide,
    may_miss="x",
    training={**BY_ELBO, "elbo": "trace"},
    held_out=held_out,
)
