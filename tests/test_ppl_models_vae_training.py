"""Training of the variational autoencoders by plain Pyro, and what they refuse."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO

from ppl_models import MODELS, images
from ppl_models.vae import vae, vae_guide
from ppl_models.vae_conditional import conditional_vae
from ppl_models.vae_semi_supervised import classify, semi_supervised_vae

SMALL = {"num_latents": 2, "hidden": (5,)}


@pytest.fixture(autouse=True)
def _store():
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    yield
    pyro.clear_param_store()


def train(model, guide, x, elbo, *, num_steps=300, **settings):
    """Plain Pyro on batches of 128 pictures; gives the mean bound of the last tenth, in nats a picture."""
    optimiser = SVI(model, guide, pyro.optim.Adam({"lr": 5e-3}), elbo)
    losses = []
    for _ in range(num_steps):
        rows = torch.randint(len(x), (128,))
        cut = {n: v[rows] if isinstance(v, torch.Tensor) and len(v) == len(x) else v for n, v in settings.items()}
        losses.append(optimiser.step(x=x[rows], **cut) / 128)
    return np.mean(losses[-num_steps // 10 :])


def independent_pixels():
    """Nats that the test digits cost where each pixel is one with its frequency."""
    digits = images.digits().binarised()
    share = (digits.train.sum(0) + 0.5) / (len(digits.train) + 1)
    return -float(dist.Bernoulli(share).to_event(2).log_prob(digits.test).mean())


def test_independent_pixels_cost_24_nats():
    assert abs(independent_pixels() - 24.0) < 0.05


@pytest.mark.parametrize(
    "settings",
    [{}, {"network": "convolutional", "hidden": (8, 16)}, {"num_flows": 2}],
    ids=lambda settings: next(iter(settings), "dense"),
)
def test_a_trained_bound_lies_above_independent_pixels(settings):
    digits = images.digits().binarised()
    settings = {"hidden": (64,), **settings}
    elbo = Trace_ELBO() if "num_flows" in settings else TraceMeanField_ELBO()
    train(vae, vae_guide, digits.train, elbo, **settings)
    losses = [elbo.loss(vae, vae_guide, x=digits.test, **settings) / len(digits.test) for _ in range(10)]
    assert np.mean(losses) + 4 * np.std(losses) / math.sqrt(10) < independent_pixels() - 2


def test_missing_pixels_are_filled_better_than_from_their_frequency():
    digits = images.digits().binarised()
    settings = {"hidden": (64,), "missing": True}

    def hide(x):
        return torch.where(torch.rand_like(x) < 0.3, math.nan, x)

    train(vae, vae_guide, hide(digits.train), TraceMeanField_ELBO(), **settings)
    hidden = hide(digits.test)
    unseen, means = hidden.isnan(), []
    for _ in range(20):
        z = poutine.trace(vae_guide).get_trace(x=hidden, **settings).nodes["z"]["value"]
        given = poutine.condition(vae, data={"z": z})
        means.append(poutine.trace(given).get_trace(x=hidden, **settings).nodes["x"]["fn"].mean.detach())
    wrong = (torch.stack(means).mean(0) - digits.test)[unseen].square().mean()
    from_frequency = (digits.train.mean(0) - digits.test)[unseen].square().mean()
    assert wrong < 0.75 * from_frequency


# What is refused -------------------------------------------------------------------------------------------------

X = torch.randint(2, (4, 3, 2), generator=torch.Generator().manual_seed(0)).double()
LABELS = torch.tensor([0.0, 1.0, 2.0, 1.0], dtype=torch.float64)


def put(value, place=(1, 0, 0)):
    x = X.clone()
    x[place] = value
    return x


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"x": put(1.5)}, r"x: expected grey levels from 0 to 1, got 1.5 at index \(1, 0, 0\) \(1 such pixels\)"),
        ({"x": put(-0.1)}, "x: expected grey levels from 0 to 1, got -0.1"),
        ({"x": put(math.inf)}, "x: expected grey levels from 0 to 1, got inf"),
        ({"x": X[0, 0]}, r"x: expected pictures \(N, height, width\) .*, got torch.float64 \(2,\)"),
        ({"x": X[:0]}, r"at least one, got torch.float64 \(0, 3, 2\)"),
        ({"x": X[:, :0]}, r"at least one, got torch.float64 \(4, 0, 2\)"),
        ({"x": X.byte()}, r"x: expected pictures .* got torch.uint8"),
        ({"x": X.numpy()}, "x: expected pictures .* got ndarray"),
        ({"x": put(math.nan)}, r"x: 1 pixels are missing \(NaN\), the first at index \(1, 0, 0\); set missing=True"),
        ({"x": put(math.nan, 2), "missing": True}, r"x: picture 2 has no pixel that is seen \(1 such\); leave it out"),
        ({"x": put(0.5)}, "decoder='bernoulli' expects zeros and ones, got 0.5 .* dynamic=True"),
        ({"x": put(0.3), "decoder": "logistic", "levels": 17}, "x: expected one of 17 grey levels k / 16, got 0.3"),
        ({"levels": 1}, "levels: expected a number of grey levels from 2, got 1"),
        ({"decoder": "poisson"}, "decoder: expected one of bernoulli, gaussian, logistic, got 'poisson'"),
        ({"decoder": "gaussian", "dynamic": True}, "dynamic: .* need decoder='bernoulli', got 'gaussian'"),
        ({"network": "recurrent"}, "network: expected one of dense, convolutional, got 'recurrent'"),
        ({"num_latents": 0}, "num_latents: expected a whole number from 1, got 0"),
        ({"num_flows": -1}, "num_flows: expected a whole number from 0, got -1"),
    ],
)
@pytest.mark.parametrize("function", [vae, vae_guide])
def test_what_is_no_picture_is_refused(function, changed, message):
    with pytest.raises(ValueError, match=message):
        function(**({"x": X, **SMALL} | changed))


@pytest.mark.parametrize(
    ("name", "labels", "message"),
    [
        ("conditional_vae", LABELS[:3], r"labels: expected one for each of 4 pictures, shape \(4,\), got \(3,\)"),
        ("conditional_vae", [0, 1, 2, 1], "labels: expected one for each of 4 pictures, .* got list"),
        ("conditional_vae", LABELS + 1, "labels: expected classes from 0 to 2, got 3 at index 2; 1 such"),
        ("conditional_vae", LABELS - 1, "labels: expected classes from 0 to 2, got -1 at index 0; 1 such"),
        (
            "semi_supervised_vae",
            LABELS - 2,
            r"labels: expected classes from 0 to 2, or -1 \(unknown\), got -2 at index 0",
        ),
        ("semi_supervised_vae", LABELS + 0.5, r"or -1 \(unknown\), got 0.5 at index 0; 4 such"),
    ],
)
def test_what_is_no_label_is_refused(name, labels, message):
    for function in (MODELS[name].model, MODELS[name].guide):
        with pytest.raises(ValueError, match=message):
            function(x=X, labels=labels, num_classes=3, **SMALL)


def test_other_settings_that_are_refused():
    with pytest.raises(ValueError, match="num_flows: a flow needs num_latents of at least 2, got 1"):
        vae_guide(x=X, num_latents=1, hidden=(5,), num_flows=1)
    with pytest.raises(ValueError, match="label_weight: expected a finite number from 0, got -1"):
        semi_supervised_vae(x=X, labels=LABELS, label_weight=-1, **SMALL)
    with pytest.raises(ValueError, match="num_classes: expected a number of classes from 1, got 0"):
        conditional_vae(x=X, labels=LABELS, num_classes=0, **SMALL)
    with pytest.raises(ValueError, match="param 'classifier.head.0.weight' is not in Pyro's parameter store"):
        classify(X)


def test_simulation_takes_trained_weights_and_leaves_the_store_alone():
    vae(x=X, **SMALL)
    state = {name: value.detach().clone() for name, value in pyro.get_param_store().items()}
    pyro.clear_param_store()
    state["decoder.head.2.bias"] += 50  # all pixels dark
    drawn = MODELS["vae"].simulate(1, num_rows=3, shape=(3, 2), weights=state, **SMALL)
    assert bool((drawn.data["x"] == 1).all())
    assert len(pyro.get_param_store()) == 0
    assert not bool((MODELS["vae"].simulate(1, num_rows=3, shape=(3, 2), **SMALL).data["x"] == 1).all())  # control
