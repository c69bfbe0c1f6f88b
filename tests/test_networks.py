"""Networks whose weights live in the parameter store."""

import pyro
import pytest
import torch

from ppl_models.networks import Network, image_decoder, image_encoder, mlp
from ppl_models.vae import vae_guide


@pytest.fixture(autouse=True)
def _store():
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    yield
    pyro.clear_param_store()


def test_weights_are_drawn_once_and_named_after_the_network():
    network = mlp(3, (4,), 2)
    x = torch.ones(5, 3, dtype=torch.float64)
    first = network("decoder", x)
    assert set(pyro.get_param_store().keys()) == {f"decoder.{n}" for n in ("0.weight", "0.bias", "2.weight", "2.bias")}
    assert torch.equal(first, network("decoder", x))
    assert not torch.equal(first, network("another", x))  # control
    assert mlp(3, (4,), 2) is network
    assert first.dtype == torch.float64
    assert network("decoder", x.float()).dtype == torch.float32


def test_a_structure_draws_nothing_from_the_callers_stream():
    def after(make):
        torch.manual_seed(3)
        make()
        return torch.rand(1)

    assert after(lambda: Network(lambda: torch.nn.Linear(2, 2))) == after(lambda: None)
    assert after(lambda: torch.nn.Linear(2, 2)) != after(lambda: None)  # control


@pytest.mark.parametrize("shape", [(8, 8), (28, 28), (4, 7), (13, 5)])
def test_convolutional_networks_fit_every_size(shape):
    x = torch.rand(6, 3, 1, *shape)
    encode = image_encoder(shape, 10, hidden=(4, 6), kind="convolutional", num_extra=2)
    assert encode("encoder", x, torch.rand(2)).shape == (6, 3, 10)
    decode = image_decoder(3, shape, hidden=(6, 4), kind="convolutional")
    assert decode("decoder", torch.rand(6, 3, 3)).shape == (6, 3, *shape)
    each = torch.stack([encode("encoder", row[None], torch.zeros(2))[0] for row in x[0]])
    torch.testing.assert_close(encode("encoder", x[0], torch.zeros(2)), each)  # rows do not see each other


def test_networks_refuse_what_they_cannot_do():
    with pytest.raises(ValueError, match=r"needs images \(N, height, width\), got rows of shape \(64,\)"):
        image_encoder((64,), 2, hidden=(4,), kind="convolutional")
    with pytest.raises(ValueError, match="3 convolutions of stride 2 need images of at least 8 x 8 pixels, got 7 x 28"):
        image_decoder(2, (7, 28), hidden=(4, 4, 4), kind="convolutional")
    with pytest.raises(ValueError, match="activation: expected one of relu, .*, got 'sine'"):
        mlp(2, (3,), 2, "sine")
    with pytest.raises(ValueError, match=r"hidden: expected widths from 1, got \(0,\)"):
        mlp(2, (0,), 2)


def test_weights_of_another_size_are_refused():
    vae_guide(x=torch.ones(4, 3, 2), hidden=(5,))
    with pytest.raises(ValueError, match=r"param 'encoder.head.0.weight': .* shape \(5, 6\), .* need \(5, 9\)"):
        vae_guide(x=torch.ones(4, 3, 3), hidden=(5,))
