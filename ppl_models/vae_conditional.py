"""The conditional variational autoencoder: pictures of a given class."""

from typing import Any

import pyro
import torch

from ppl_models import images
from ppl_models.encoder import check_latents, num_encoded, posterior, standard_normal
from ppl_models.model import HeldOut, Model, Simulation
from ppl_models.networks import image_decoder, image_encoder
from ppl_models.picture_simulation import simulate_pictures
from ppl_models.pixels import binarise, check_images, check_labels, look, observe, sample_dither
from ppl_models.vae import BY_ELBO, HIDDEN

NUM_LATENTS = 8  # the accuracies with few labels in docs/vae.md are with so many


def conditional_vae(
    *,
    x: torch.Tensor,
    labels: torch.Tensor,
    num_classes: int = 10,
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
    """Decode pictures from their class and a standard normal vector of all else (Sohn, Lee & Yan 2015).

    Parameters
    ----------
    x
        As `ppl_models.vae.vae`, like the arguments not named here.
    labels
        (N,), the class of each picture, from 0.
    num_classes
        Number of classes.

    Raises
    ------
    ValueError
        Pictures, labels or settings out of range.
    """
    check_latents(num_latents, num_flows)
    shape = check_images(x, decoder=decoder, levels=levels, missing=missing, dynamic=dynamic)
    check_labels(labels, len(x), num_classes)
    decode = image_decoder(num_latents + num_classes, shape, hidden=hidden[::-1], kind=network, activation=activation)
    with pyro.plate("data", len(x)):
        dither = sample_dither(x) if dynamic else None
        z = pyro.sample("z", standard_normal(x, num_latents))
        output = decode("decoder", beside(z, one_hot(labels, num_classes, x)))
        return observe(x, output, decoder=decoder, levels=levels, missing=missing, dither=dither)


def conditional_vae_guide(
    *,
    x: torch.Tensor,
    labels: torch.Tensor,
    num_classes: int = 10,
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
    """Encode each picture, together with its class, as a normal of ``z``.

    Parameters and errors are those of `conditional_vae`.
    """
    check_latents(num_latents, num_flows)
    shape = check_images(x, decoder=decoder, levels=levels, missing=missing, dynamic=dynamic)
    check_labels(labels, len(x), num_classes)
    encode = image_encoder(
        shape,
        num_encoded(num_latents, num_flows),
        hidden=hidden,
        kind=network,
        activation=activation,
        num_channels=2 if missing else 1,
        num_extra=num_classes,
    )
    with pyro.plate("data", len(x)):
        seen = binarise(x, sample_dither(x)) if dynamic else x
        output = encode("encoder", look(seen, missing=missing), one_hot(labels, num_classes, x))
        pyro.sample("z", posterior(output, num_latents, num_flows))


def one_hot(labels: torch.Tensor, num_classes: int, like: torch.Tensor) -> torch.Tensor:
    """Give labels (...) as vectors (..., num_classes) with a one at the class, in the dtype of the pictures."""
    # torch's one_hot looks at the values, which a recording does not allow
    return (labels.unsqueeze(-1) == torch.arange(num_classes, device=like.device)).to(like)


def beside(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Join the last dims, after broadcasting the others."""
    lead = torch.broadcast_shapes(first.shape[:-1], second.shape[:-1])
    return torch.cat([first.expand(*lead, -1), second.expand(*lead, -1)], -1)


def _simulate(seed: int, *, num_rows: int = 100, num_classes: int = 10, **others: Any) -> Simulation:
    """Go through the classes in turn, and draw pictures of them as `simulate_pictures`."""
    inputs = {"labels": torch.arange(num_rows, dtype=torch.float64) % num_classes, "num_classes": num_classes}
    return simulate_pictures(conditional_vae, seed, num_rows=num_rows, inputs=inputs, **others)


def _data() -> dict[str, Any]:
    digits = images.digits().binarised()
    return {"x": digits.train.double(), "labels": digits.train_labels.double(), "num_classes": 10}


def _held_out() -> HeldOut:
    digits = images.digits().binarised()
    return HeldOut({"x": digits.test, "labels": digits.test_labels}, digits.test_labels.int())


CONDITIONAL_VAE = Model(
    name="conditional_vae",
    model=conditional_vae,
    data=_data,
    simulate=_simulate,
    summary="variational autoencoder of pictures whose class is given (1500 handwritten digits)",
    guide=conditional_vae_guide,
    may_miss="x",
    training=BY_ELBO,
    held_out=_held_out,
)
