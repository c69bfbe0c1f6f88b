"""Neural networks whose weights live in Pyro's parameter store, so that a model remains a plain function.

A `Network` is the structure alone. It is made once for its settings; a call takes the weights from the store, and
draws those that are not there yet. An eager step of training therefore builds and initialises nothing.
"""

from collections.abc import Callable
from functools import cache
from itertools import pairwise
from math import prod

import pyro
import torch
from torch import nn
from torch.func import functional_call

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "tanh": nn.Tanh,
    "elu": nn.ELU,
    "softplus": nn.Softplus,
    "silu": nn.SiLU,
}
KINDS = ("dense", "convolutional")
# Layers of a convolutional network have this kernel and stride: each halves the sides, rounding up.
KERNEL, STRIDE, PADDING = 3, 2, 1


class Network:
    """The structure of a torch module, whose weights are params ``<name>.<torch name>`` such as ``decoder.0.weight``.

    Parameters
    ----------
    build
        Gives the module, newly initialised. It is called once for the structure, without touching the caller's random
        stream, and once whenever weights are not in the store, out of that stream.

    Examples
    --------
    >>> decoder = Network(lambda: torch.nn.Linear(2, 64))
    >>> logits = decoder("decoder", z)  # the params "decoder.weight" and "decoder.bias"
    """

    def __init__(self, build: Callable[[], nn.Module]) -> None:
        self.build = build
        with torch.random.fork_rng(devices=[]):
            self.module = build()
        self.shapes = {name: weight.shape for name, weight in self.module.named_parameters()}
        self.buffers = dict(self.module.named_buffers())

    def __call__(self, name: str, *inputs: torch.Tensor) -> torch.Tensor:
        """Apply the network called ``name``; its weights, like its outputs, have dtype and device of the first input.

        Parameters
        ----------
        name
            Prefix of the params. Calls with the same name share their weights.
        inputs
            What the module takes.

        Returns
        -------
        torch.Tensor
            What the module gives; a tensor comes in the first input's dtype, also under autocast.
        """
        return self.bind(name, inputs[0])(*inputs)

    def bind(self, name: str, like: torch.Tensor) -> Callable[..., torch.Tensor]:
        """Fetch the weights now, for calls after the model's or guide's end, as a distribution makes them.

        Parameters
        ----------
        name
            Prefix of the params.
        like
            A tensor whose dtype and device the weights shall have.
        """
        weights = self._weights(name, like)

        def apply(*inputs: torch.Tensor) -> torch.Tensor:
            output = functional_call(self.module, weights, inputs)
            return output.to(inputs[0].dtype) if isinstance(output, torch.Tensor) else output

        return apply

    def trained(self, name: str, like: torch.Tensor) -> Callable[..., torch.Tensor]:
        """Fetch the weights as `bind`, where they must be in the store already.

        Raises
        ------
        ValueError
            They are not, or have other shapes.
        """
        store = pyro.get_param_store()
        missing = [f"{name}.{n}" for n in self.shapes if f"{name}.{n}" not in store]
        if missing:
            raise ValueError(
                f"param '{missing[0]}' is not in Pyro's parameter store; call this inside `with fit.restored():` of a "
                "trained fit, or after training by plain Pyro."
            )
        return self.bind(name, like)

    def _weights(self, name: str, like: torch.Tensor) -> dict[str, torch.Tensor]:
        fresh: dict[str, torch.Tensor] = {}

        def initial(weight: str) -> torch.Tensor:
            if not fresh:
                fresh.update(self.build().named_parameters())
            return fresh[weight].detach().to(like)

        params = {n: pyro.param(f"{name}.{n}", lambda n=n: initial(n)).to(like) for n in self.shapes}
        for weight, value in params.items():
            expected = self.shapes[weight]
            if value.shape != expected:
                raise ValueError(
                    f"param '{name}.{weight}': the parameter store has weights of shape {tuple(value.shape)}, these "
                    f"pictures and settings need {tuple(expected)}; give pictures of the size and the settings that "
                    "the network was trained with, or clear the store (`pyro.clear_param_store()`)."
                )
        return params | {n: b.to(like.device) for n, b in self.buffers.items()}


def dense(num_inputs: int, hidden: tuple[int, ...], num_outputs: int, activation: str = "tanh") -> nn.Sequential:
    """Build a fully connected network, linear where ``hidden`` is empty."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise((num_inputs, *hidden)):
        layers += [nn.Linear(inputs, outputs), ACTIVATIONS[activation]()]
    return nn.Sequential(*layers, nn.Linear((num_inputs, *hidden)[-1], num_outputs))


@cache
def mlp(num_inputs: int, hidden: tuple[int, ...], num_outputs: int, activation: str = "tanh") -> Network:
    """Give a fully connected network for inputs (..., num_inputs) and outputs (..., num_outputs).

    Parameters
    ----------
    num_inputs, num_outputs
        Sizes of the last dim.
    hidden
        Widths of the hidden layers; none: an affine map.
    activation
        After each hidden layer; one of `ACTIVATIONS`.

    Raises
    ------
    ValueError
        A width below one, or an unknown activation.
    """
    check_layers(hidden, activation)
    return Network(lambda: dense(num_inputs, hidden, num_outputs, activation))


class ToVector(nn.Module):
    """A network from images (..., channels, *shape), with further numbers (..., num_extra) beside, to vectors."""

    def __init__(self, image: nn.Module, head: nn.Module, num_dims: int) -> None:
        super().__init__()
        self.image, self.head, self.num_dims = image, head, num_dims

    def forward(self, images: torch.Tensor, extra: torch.Tensor | None = None) -> torch.Tensor:
        """Map images (..., channels, *shape) to (..., num_outputs)."""
        lead = images.shape[: images.dim() - self.num_dims]
        features = self.image(images.reshape(prod(lead), *images.shape[len(lead) :]))
        features = features.reshape(*lead, -1)
        if extra is not None:
            lead = torch.broadcast_shapes(lead, extra.shape[:-1])
            features = torch.cat([features.expand(*lead, -1), extra.expand(*lead, -1)], -1)
        return self.head(features)


class ToImage(nn.Module):
    """A network from vectors to images (..., *shape)."""

    def __init__(self, head: nn.Module, image: nn.Module, start: tuple[int, ...], shape: tuple[int, ...]) -> None:
        super().__init__()
        self.head, self.image, self.start, self.shape = head, image, start, shape

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        """Map (..., num_inputs) to (..., *shape)."""
        lead = vectors.shape[:-1]
        return self.image(self.head(vectors).reshape(prod(lead), *self.start)).reshape(*lead, *self.shape)


@cache
def image_encoder(
    shape: tuple[int, ...],
    num_outputs: int,
    *,
    hidden: tuple[int, ...],
    kind: str = "dense",
    activation: str = "tanh",
    num_channels: int = 1,
    num_extra: int = 0,
) -> Network:
    """Give a network from images (..., num_channels, *shape), beside numbers (..., num_extra), to (..., num_outputs).

    Parameters
    ----------
    shape
        Of an image: (pixels,) or (height, width); convolutional networks need the latter.
    num_outputs
        Size of the output's last dim.
    hidden
        ``dense``: widths of the hidden layers. ``convolutional``: channels of the layers, each of which halves the
        sides; an affine map follows.
    kind
        ``dense`` or ``convolutional``.
    activation
        One of `ACTIVATIONS`.
    num_channels
        Images laid over each other, such as grey levels and which of them are missing.
    num_extra
        Further inputs, such as a label, which join after the convolutions.

    Raises
    ------
    ValueError
        A size that convolutions cannot halve as often as asked for, or settings out of range.
    """
    check_layers(hidden, activation, kind)
    if kind == "dense":
        num_inputs = num_channels * prod(shape) + num_extra
        return Network(
            lambda: ToVector(nn.Flatten(), dense(num_inputs, hidden, num_outputs, activation), 1 + len(shape))
        )
    sizes = halved(shape, hidden)

    def build() -> nn.Module:
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise((num_channels, *hidden)):
            layers += [nn.Conv2d(inputs, outputs, KERNEL, STRIDE, PADDING), ACTIVATIONS[activation]()]
        head = nn.Linear((num_channels, *hidden)[-1] * prod(sizes[-1]) + num_extra, num_outputs)
        return ToVector(nn.Sequential(*layers), head, 3)

    return Network(build)


@cache
def image_decoder(
    num_inputs: int, shape: tuple[int, ...], *, hidden: tuple[int, ...], kind: str = "dense", activation: str = "tanh"
) -> Network:
    """Give a network from (..., num_inputs) to images (..., *shape), the mirror image of `image_encoder`.

    Raises
    ------
    ValueError
        As `image_encoder`.
    """
    check_layers(hidden, activation, kind)
    if kind == "dense":
        pixels = prod(shape)
        return Network(lambda: ToImage(dense(num_inputs, hidden, pixels, activation), nn.Identity(), (pixels,), shape))
    sizes = halved(shape, hidden[::-1])[::-1]

    def build() -> nn.Module:
        head = nn.Sequential(nn.Linear(num_inputs, hidden[0] * prod(sizes[0])), ACTIVATIONS[activation]())
        layers: list[nn.Module] = []
        for i, (inputs, outputs) in enumerate(pairwise((*hidden, 1))):
            # the sizes were halved rounding up, which 2 n - 1 undoes for odd ones: an even one needs one more
            more = tuple(1 - size % 2 for size in sizes[i + 1])
            layers += [nn.ConvTranspose2d(inputs, outputs, KERNEL, STRIDE, PADDING, more), ACTIVATIONS[activation]()]
        return ToImage(head, nn.Sequential(*layers[:-1]), (hidden[0], *sizes[0]), shape)

    return Network(build)


def halved(shape: tuple[int, ...], hidden: tuple[int, ...]) -> list[tuple[int, int]]:
    """Give height and width of an image before, between and after convolutions of stride two.

    Raises
    ------
    ValueError
        No height and width, or too small for so many layers.
    """
    if len(shape) != 2:
        raise ValueError(
            f"x: a convolutional network needs images (N, height, width), got rows of shape {shape}; "
            "reshape x, or use network='dense'."
        )
    if not hidden:
        raise ValueError("hidden: a convolutional network needs the channels of at least one layer, got none.")
    least = 2 ** len(hidden)
    if min(shape) < least:
        raise ValueError(
            f"x: {len(hidden)} convolutions of stride {STRIDE} need images of at least {least} x {least} pixels, got "
            f"{shape[0]} x {shape[1]}; give fewer layers in hidden, or use network='dense'."
        )
    sizes = [shape]
    for _ in hidden:
        sizes.append(tuple(-(-side // STRIDE) for side in sizes[-1]))
    return sizes


def check_layers(hidden: tuple[int, ...], activation: str, kind: str = "dense") -> None:
    """Refuse widths below one and unknown names.

    Raises
    ------
    ValueError
        Such a setting, with the possible ones.
    """
    if any(isinstance(width, bool) or not isinstance(width, int) or width < 1 for width in hidden):
        raise ValueError(f"hidden: expected widths from 1, got {hidden}.")
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation: expected one of {', '.join(ACTIVATIONS)}, got {activation!r}.")
    if kind not in KINDS:
        raise ValueError(f"network: expected one of {', '.join(KINDS)}, got {kind!r}.")
