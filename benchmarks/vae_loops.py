"""A variational autoencoder trained twice: by `SVI`, and by a loop written by hand in PyTorch."""

from dataclasses import dataclass

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import nn
from torch.nn import functional

from inference import SVI, fit

LEARNING_RATE = 0.001
MIN_SCALE = 1e-4


@dataclass(frozen=True)
class Architecture:
    """Sizes of the layers, the same in encoder and decoder, and of a batch."""

    name: str
    pixels: int
    hidden: tuple[int, ...]
    latents: int
    batch: int = 256


DIGITS = Architecture("digits, 64-100-10", 64, (100,), 10)
MNIST = Architecture("MNIST, 784-200-200-50", 784, (200, 200), 50)


class Autoencoder(nn.Module):
    """The networks, and the model and guide of Pyro that use them."""

    def __init__(self, sizes: Architecture) -> None:
        super().__init__()
        self.latents = sizes.latents
        self.encoder = _perceptron(sizes.pixels, *sizes.hidden, 2 * sizes.latents)
        self.decoder = _perceptron(sizes.latents, *reversed(sizes.hidden), sizes.pixels)

    def encode(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Means and standard deviations of the latents."""
        loc, raw = self.encoder(x).chunk(2, -1)
        return loc, functional.softplus(raw) + MIN_SCALE

    def model(self, *, x: torch.Tensor) -> None:
        """z from a standard normal, on-off pixels from the decoder."""
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([self.latents]).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)

    def guide(self, *, x: torch.Tensor) -> None:
        """z from the encoder."""
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(*self.encode(x)).to_event(1))


def _perceptron(*sizes: int) -> nn.Sequential:
    layers = []
    for before, after in zip(sizes[:-1], sizes[1:], strict=True):
        layers += [nn.Linear(before, after, dtype=torch.float32), nn.Tanh()]
    return nn.Sequential(*layers[:-1])


def by_hand(x: torch.Tensor, sizes: Architecture, num_steps: int, *, fused: bool, seed: int = 0) -> list[float]:
    """Train with plain PyTorch; losses per step, in nats of all rows, as `by_svi` gives them."""
    torch.manual_seed(seed)
    networks = Autoencoder(sizes)
    optimizer = torch.optim.Adam(networks.parameters(), lr=LEARNING_RATE, fused=fused)
    losses: list[float] = []
    while len(losses) < num_steps:
        order = torch.randperm(len(x))
        for index in order.split(sizes.batch):
            batch = x[index]
            loc, scale = networks.encode(batch)
            logits = networks.decoder(loc + scale * torch.randn_like(scale))
            error = functional.binary_cross_entropy_with_logits(logits, batch, reduction="sum")
            divergence = (0.5 * (scale**2 + loc**2 - 1) - scale.log()).sum()
            loss = (error + divergence) * (len(x) / len(batch))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            if len(losses) == num_steps:
                break
    return losses


def by_svi(x: torch.Tensor, sizes: Architecture, num_steps: int, *, seed: int = 0) -> list[float]:
    """Train the same networks on the same objective with `SVI`."""
    torch.manual_seed(seed)
    networks = Autoencoder(sizes)
    engine = SVI(
        guide=networks.guide,
        elbo="trace_mean_field",
        batch_size=sizes.batch,
        num_steps=num_steps,
        lr=LEARNING_RATE,
        device="cpu",
        num_samples=4,
        num_chains=1,
    )
    return fit(networks.model, {"x": x}, engine, seed=seed, progress=False).history["loss"].tolist()


def pictures(sizes: Architecture, num: int) -> torch.Tensor:
    """On-off pixels (num, pixels) of ten kinds of images; what they show does not matter to the time of a step."""
    generator = np.random.default_rng(0)
    kinds = generator.random((10, sizes.pixels))[generator.integers(10, size=num)]
    return torch.as_tensor((generator.random((num, sizes.pixels)) < kinds).astype(np.float32))
