"""What training by mini-batches refuses, and how it says so."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from inference import SVI, InputError, fit
from inference.errors import one_line
from inference.svi_draws import affordable
from tests.training_models import FEW, Rootless, X, images, network, regression, train


def exploding(vae, at):
    """The decoder's weights are ruined by a schedule of learning rates that is infinite at a step."""
    return lambda optimizer: torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1e30 if step == at else 1.0)


def test_a_loss_that_is_not_finite_names_layer_step_and_checkpoint(tmp_path):
    vae, data = network(), images()
    result = train(vae, data, lr_schedule=exploding(vae, 6), checkpoint=tmp_path, checkpoint_every=2)
    assert result.status.kind == "diverged"
    message = result.status.message
    assert "step 8 (epoch 2)" in message
    assert "the layer with parameter 'decoder.0.weight'" in message
    assert str(tmp_path / "step-00000006.pt") in message
    assert "checkpoint" not in train(vae, data, lr_schedule=exploding(vae, 6)).status.message
    with pytest.raises(InputError, match=r"not finite at step 1 \(epoch 1\): parameter 'decoder.2.bias'.*nan"):
        train(network(Rootless), data)


def test_a_huge_rate_is_told_in_a_sentence(tmp_path):
    """Adam's first step moves every weight by the rate: the second loss overflows."""
    message = train(network(), images(), lr=1e30, checkpoint=tmp_path, checkpoint_every=1).status.message
    assert "Diverged at step 2 (epoch 1): the output of the layer with parameter" in message
    assert str(tmp_path / "step-00000001.pt") in message
    assert len(message) < 500


def test_long_messages_keep_their_beginning_and_their_end():
    tensor = torch.zeros(20, 20)
    said = one_line(ValueError(f"Expected a value within the support,\nbut found {tensor} in the site x"))
    assert said.startswith("Expected a value within the support, but found tensor([[0.")
    assert said.endswith("in the site x")
    assert " ... " in said
    assert len(said) <= 400
    assert one_line(ValueError("short \n enough")) == "short enough"
    assert one_line(ValueError("a" * 400)) == "a" * 400


def test_torch_does_not_fill_the_screen_with_tensors():
    def normal(*, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Bernoulli(probs=z + x.new_full((len(x),), 7.0)), obs=x)

    with pytest.raises(InputError, match="probs") as caught:
        fit(normal, {"x": torch.ones(500)}, SVI(num_steps=5, **FEW))
    assert len(str(caught.value)) < 700
    assert "\n" not in str(caught.value)


def whole_plate(*, x, num):
    with pyro.plate("data", num):
        pyro.sample("z", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(0.0, 1.0).expand([num]).to_event(1), obs=x)


def outside(*, x):
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(w, 1.0), obs=x)
    pyro.factor("penalty", -(x**2).sum())


def no_plate(*, x):
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    pyro.sample("x", dist.Normal(w, 1.0).expand([len(x)]).to_event(1), obs=x)


def two_arguments(*, x, y):
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(w * x, 1.0), obs=y)


def local(*, x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


@pytest.mark.parametrize(
    ("model", "data", "options", "message"),
    [
        (regression, {"x": X, "y": X}, {"batch_size": 13}, "batch_size: expected at most the 12 rows of plate 'data'"),
        (regression, {"x": X, "y": X}, {"batch_size": 0}, "batch_size"),
        (regression, {"x": X, "y": X}, {"batch_plate": "rows"}, "no plate 'rows'; its plates are data"),
        (no_plate, {"x": X}, {}, r"no plate has the size of the leading dim .*arguments: x \(12\)"),
        (two_arguments, {"x": X, "y": X[:-1]}, {}, r"x \(12,\), y \(11,\)|\(12,\).*\(11,\)"),
        (local, {"x": X}, {}, "guide='normal': has numbers of its own for each row of plate 'data'"),
        (outside, {"x": X}, {}, "site 'penalty' is outside of plate 'data'"),
        (regression, {"x": X[:0], "y": X[:0]}, {}, "fails on the data|no rows|size cannot be zero"),
        (regression, {"x": X, "y": X}, {"num_epochs": None}, "either num_epochs or num_steps"),
        (regression, {"x": X, "y": X}, {"validation": 2}, "validation: expected a fraction"),
        (regression, {"x": X, "y": X}, {"validation": 0.9}, "leaves 1 to train on"),
        (regression, {"x": X, "y": X}, {"validation": {"x": X[:3], "y": X[:2]}}, "validation"),
        (regression, {"x": X, "y": X}, {"patience": 3}, "patience: needs rows held out"),
        (regression, {"x": X, "y": X}, {"optimizer": "lbfgs"}, "lbfgs"),
        (regression, {"x": X, "y": X}, {"elbo": "iw", "num_particles": 2}, "subsampled.*slope"),
        (regression, {"x": X, "y": X}, {"kl_weight": -1.0}, "kl_weight: expected"),
        (regression, {"x": X, "y": X}, {"kl_weight": lambda step: -1.0}, "kl_weight: expected .* at step 0"),
        (regression, {"x": X, "y": X}, {"device": "cuda:7"}, "device"),
        (regression, {"x": X, "y": X}, {"resume": True}, "resume: needs a folder"),
        (regression, {"x": X, "y": X}, {"stopping": "rabvi"}, "stopping"),
        (regression, {"x": X, "y": X}, {"num_restarts": 2}, "num_restarts"),
    ],
)
def test_what_cannot_be_trained_says_why(model, data, options, message):
    with pytest.raises(InputError, match=message):
        fit(model, data, SVI(**{"guide": "normal", "batch_size": 4, "num_epochs": 1, **FEW, **options}))


def test_a_plate_that_does_not_follow_the_rows_is_refused():
    def guide(*, x, num):
        with pyro.plate("data", num):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    with pytest.raises(InputError, match="given 4 rows of x"):
        fit(whole_plate, {"x": X, "num": 12}, SVI(guide=guide, batch_size=4, num_epochs=1))


def test_options_of_training_need_a_batch_size():
    for name, value in (("num_epochs", 3), ("kl_weight", 0.5), ("validation", 0.1), ("checkpoint", "x")):
        with pytest.raises(InputError, match=f"{name}: is an option of training by mini-batches"):
            SVI(**{name: value})


def test_datasets_are_arrays_and_loaders_are_refused():
    x = torch.as_tensor(X)
    engine = SVI(batch_size=4, num_epochs=1, **FEW)
    one = fit(regression, {"x": TensorDataset(x), "y": x}, engine)
    other = fit(regression, {"x": x, "y": x}, engine)
    np.testing.assert_array_equal(one.draws["slope"], other.draws["slope"])
    with pytest.raises(InputError, match=r"data\['x'\]: expected arrays or a Dataset, got a DataLoader"):
        fit(regression, {"x": DataLoader(TensorDataset(x)), "y": x}, engine)
    with pytest.raises(InputError, match="items are single arrays, got items of tuple"):
        fit(regression, {"x": TensorDataset(x, x), "y": x}, engine)


def test_fits_that_are_too_large_keep_fewer_draws_and_say_so(monkeypatch):
    monkeypatch.setattr("inference.svi_draws.MAX_DRAWN", 200 * 4 * 40)
    result = train(network(), images(), num_samples=100, num_chains=4)
    assert result.draws["z"].shape == (4, 10, 200, 4)
    assert any("4 x 10 draws were kept in place of 4 x 100" in note for note in result.notes)
    monkeypatch.setattr("inference.svi_draws.MAX_DRAWN", 200 * 4 * 6)
    with result.restored() as sites:
        assert affordable(sites, (4, 100))[0] == (1, 6)


def test_a_guide_that_cannot_be_drawn_from_after_a_divergence_says_where_it_diverged():
    class Encoder(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.encode = torch.nn.Linear(3, 2)

        def model(self, *, x):
            with pyro.plate("row", len(x)):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                pyro.sample("x", dist.Normal(z[:, None].expand(-1, 3), 1.0).to_event(1), obs=x)

        def guide(self, *, x):
            pyro.module("encoder", self)
            with pyro.plate("row", len(x)):
                loc, raw = self.encode(x).unbind(-1)
                pyro.sample("z", dist.Normal(loc, torch.nn.functional.softplus(raw)))

    own, x = Encoder(), torch.randn(60, 3, generator=torch.Generator().manual_seed(1))
    with pytest.raises(InputError, match=r"^guide: cannot be drawn from .* Diverged at step \d+ \(epoch 1\)"):
        fit(own.model, {"x": x}, SVI(guide=own.guide, batch_size=20, num_epochs=3, lr=1e30), seed=1)
