"""The variational autoencoders: their densities by hand, their bounds in closed form, and what they refuse."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import TraceEnum_ELBO, TraceMeanField_ELBO
from scipy.special import logsumexp
from scipy.stats import logistic

from ppl_models.encoder import posterior
from ppl_models.pixels import DiscretisedLogistic, binarise
from ppl_models.vae import vae, vae_guide
from ppl_models.vae_conditional import conditional_vae
from ppl_models.vae_semi_supervised import classify, semi_supervised_vae, semi_supervised_vae_guide
from ppl_models.vae_two_layer import two_layer_vae, two_layer_vae_guide

SMALL = {"num_latents": 2, "hidden": (5,), "activation": "tanh"}


@pytest.fixture(autouse=True)
def _store():
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    yield
    pyro.clear_param_store()


def pictures(num=4, shape=(3, 2), seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(2, (num, *shape), generator=generator).double()


def log_prob_at(model, latents, site="x", **data):
    trace = poutine.trace(poutine.condition(model, data=latents)).get_trace(**data)
    trace.compute_log_prob()
    return trace.nodes[site]["log_prob"].detach().numpy()


def weights(*names):
    return [pyro.param(name).detach().numpy() for name in names]


def decoded(z):
    """What the small dense decoder gives for each pixel, by numpy."""
    names = [f"decoder.head.{layer}.{part}" for layer in (0, 2) for part in ("weight", "bias")]
    first, first_bias, second, second_bias = weights(*names)
    return np.tanh(z @ first.T + first_bias) @ second.T + second_bias


# Densities by hand -----------------------------------------------------------------------------------------------


def test_bernoulli_pixels_by_hand():
    x, z = pictures(), torch.randn(4, 2, dtype=torch.float64)
    got = log_prob_at(vae, {"z": z}, x=x, **SMALL)
    one = 1 / (1 + np.exp(-decoded(z.numpy())))
    flat = x.reshape(4, 6).numpy()
    np.testing.assert_allclose(got, np.log(np.where(flat == 1, one, 1 - one)).sum(1), rtol=1e-10)


def test_gaussian_pixels_by_hand():
    x, z = torch.rand(4, 3, 2, dtype=torch.float64), torch.randn(4, 2, dtype=torch.float64)
    settings = {**SMALL, "decoder": "gaussian"}
    log_prob_at(vae, {"z": z}, x=x, **settings)
    pyro.get_param_store()["decoder.scale"] = torch.tensor(0.3, dtype=torch.float64)
    got = log_prob_at(vae, {"z": z}, x=x, **settings)
    error = (x.reshape(4, 6).numpy() - decoded(z.numpy())) / 0.3
    expected = (-0.5 * error**2 - np.log(0.3 * np.sqrt(2 * np.pi))).sum(1)
    np.testing.assert_allclose(got, expected, rtol=1e-10)


def test_logistic_pixels_by_hand():
    x, z = torch.randint(5, (4, 3, 2)).double() / 4, torch.randn(4, 2, dtype=torch.float64)
    settings = {**SMALL, "decoder": "logistic", "levels": 5}
    got = log_prob_at(vae, {"z": z}, x=x, **settings)
    assert pyro.param("decoder.scale").shape == (3, 2)
    flat, loc, scale = x.reshape(4, 6).numpy(), decoded(z.numpy()), weights("decoder.scale")[0].reshape(-1)
    ends = [np.where(flat == end, sign * np.inf, flat + sign / 8) for end, sign in ((0, -1), (1, 1))]
    below, above = (logistic.cdf(end, loc, scale) for end in ends)
    np.testing.assert_allclose(got, np.log(above - below).sum(1), rtol=1e-8)


@pytest.mark.parametrize("levels", [2, 17, 256])
@pytest.mark.parametrize(("loc", "scale"), [(0.4, 0.1), (-3.0, 0.02), (30.0, 2.0), (0.5, 1e-4)])
def test_discretised_logistic_sums_to_one(levels, loc, scale):
    loc, scale = torch.tensor([loc], dtype=torch.float64), torch.tensor([scale], dtype=torch.float64)
    grid = torch.arange(levels, dtype=torch.float64) / (levels - 1)
    log_probs = DiscretisedLogistic(loc, scale, levels).log_prob(grid)
    assert torch.isfinite(log_probs).all()
    probs = log_probs.exp()
    assert math.isclose(probs.sum(), 1, rel_tol=1e-9)
    pixel = DiscretisedLogistic(loc, scale, levels)
    mean = (probs * grid).sum()
    assert math.isclose(pixel.mean, mean, rel_tol=1e-9, abs_tol=1e-12)
    assert math.isclose(pixel.variance, (probs * (grid - mean) ** 2).sum(), rel_tol=1e-6, abs_tol=1e-12)


def test_draws_of_the_discretised_logistic_have_its_probabilities():
    pixel = DiscretisedLogistic(torch.tensor(0.7), torch.tensor(0.2), 5)
    draws = pixel.sample((20_000,))
    for level in torch.arange(5) / 4:
        expected = float(pixel.log_prob(level).exp())
        assert abs(float((draws == level).float().mean()) - expected) < 4 * math.sqrt(expected / 20_000)


@pytest.mark.parametrize("settings", [{}, {"decoder": "gaussian"}, {"decoder": "logistic", "levels": 2}])
def test_missing_pixels_leave_the_density_of_the_others(settings):
    x, z = pictures(), torch.randn(4, 2, dtype=torch.float64)
    settings = {**SMALL, **settings}
    whole = poutine.trace(poutine.condition(vae, data={"z": z})).get_trace(x=x, **settings)
    each = whole.nodes["x"]["fn"].base_dist.log_prob(x).detach().numpy()  # (N, *shape)
    hidden = x.clone()
    hidden[1, 0, 1] = hidden[2] = math.nan
    hidden[2, 1, 0] = x[2, 1, 0]
    got = log_prob_at(vae, {"z": z}, x=hidden, missing=True, **settings)
    expected = np.where(np.isnan(hidden.numpy()), 0, each).sum((1, 2))
    np.testing.assert_allclose(got, expected, rtol=1e-12)
    assert (np.abs(got - each.sum((1, 2)))[1:3] > 1e-6).all()  # control


def test_the_encoder_sees_which_pixels_are_missing():
    x = pictures()
    hidden = x.clone()
    hidden[0, 0, 0] = math.nan
    locs = [poutine.trace(vae_guide).get_trace(x=v, missing=True, **SMALL).nodes["z"]["fn"].mean for v in (x, hidden)]
    same = (locs[0] == locs[1]).all(1)
    assert same.tolist() == [False, True, True, True]


def test_dynamic_pictures_are_the_same_in_model_and_guide_and_new_at_each_step():
    grey = torch.rand(50, 3, 2, dtype=torch.float64)
    settings = {**SMALL, "dynamic": True}
    guides = [poutine.trace(vae_guide).get_trace(x=grey, **settings) for _ in range(2)]
    runs = [poutine.trace(poutine.replay(vae, trace=guide)).get_trace(x=grey, **settings) for guide in guides]
    for guide, run in zip(guides, runs, strict=True):
        guide.compute_log_prob()
        run.compute_log_prob()
        assert torch.equal(run.nodes["x"]["value"], binarise(grey, guide.nodes["dither"]["value"]))
        assert torch.equal(run.nodes["dither"]["log_prob"], guide.nodes["dither"]["log_prob"])
    assert not torch.equal(runs[0].nodes["x"]["value"], runs[1].nodes["x"]["value"])
    many = torch.stack([binarise(grey, torch.rand_like(grey)) for _ in range(2000)]).mean(0)
    assert ((many - grey).abs() < 5 * (grey * (1 - grey) / 2000).sqrt() + 1e-9).all()


# Bounds ----------------------------------------------------------------------------------------------------------


class AtMean(poutine.messenger.Messenger):
    """Gives normal sites their mean, so that a bound has no noise."""

    def _pyro_sample(self, msg):
        if isinstance(msg["fn"], dist.Independent) and isinstance(msg["fn"].base_dist, dist.Normal):
            msg["value"], msg["done"] = msg["fn"].base_dist.loc, True


def test_the_divergence_is_that_of_the_closed_form():
    x = pictures()
    fn = poutine.trace(vae_guide).get_trace(x=x, **SMALL).nodes["z"]["fn"].base_dist
    divergence = 0.5 * (fn.loc**2 + fn.scale**2 - 1 - 2 * fn.scale.log()).sum().item()
    assert divergence > 0.1
    reconstruction = log_prob_at(vae, {"z": fn.loc}, x=x, **SMALL).sum()
    loss = TraceMeanField_ELBO().loss(vae, AtMean()(vae_guide), x=x, **SMALL)
    assert math.isclose(-loss, reconstruction - divergence, rel_tol=1e-10)


@pytest.mark.parametrize("num_flows", [1, 3])
def test_a_flow_has_the_density_of_its_draws(num_flows):
    output = torch.randn(7, 3 * 3, dtype=torch.float64)
    q = posterior(output, 3, num_flows)
    z = q.rsample()
    log_q = q.log_prob(z)
    base = q.base_dist
    for i in range(7):

        def push(noise, i=i):
            draw = base.mean.detach().clone()
            for_one = torch.cat([draw[:i], noise[None], draw[i + 1 :]])
            for layer in q.transforms:
                for_one = layer(for_one)
            return for_one[i]

        with torch.no_grad():
            noise = z.detach()
            for layer in reversed(q.transforms):
                noise = layer.with_cache(0)._inverse(noise)
        jacobian = torch.autograd.functional.jacobian(push, noise[i])
        expected = base.log_prob(noise)[i] - torch.linalg.slogdet(jacobian).logabsdet
        torch.testing.assert_close(log_q[i], expected, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(posterior(output, 3, num_flows).log_prob(z.detach()), log_q)  # without the cache
    fresh = posterior(torch.randn(1, 9, dtype=torch.float64), 3, num_flows)
    assert fresh.rsample().shape == (1, 3)


def semi_supervised_terms(x, labels, weight, **settings):
    """The bound of each picture by hand, at the mean of z: a sum over the classes."""
    semi_supervised_vae_guide(x=x, labels=labels, num_classes=3, **settings)  # draws the weights
    probs = classify(x, num_classes=3, hidden=settings["hidden"]).numpy()
    labels = labels.numpy()
    total = np.zeros(len(x))
    for label in range(3):
        given = torch.full((len(x),), float(label), dtype=torch.float64)
        known = poutine.condition(semi_supervised_vae_guide, data={"label": given.long()})
        fn = poutine.trace(known).get_trace(x=x, labels=given, num_classes=3, **settings).nodes["z"]["fn"]
        z = fn.base_dist.loc
        log_p = log_prob_at(
            semi_supervised_vae, {"z": z, "label": given.long()}, x=x, labels=given, num_classes=3, **settings
        )
        log_p += dist.Normal(0.0, 1.0).log_prob(z).sum(-1).detach().numpy() - np.log(3)
        log_q = fn.log_prob(z).detach().numpy()
        share = np.where(labels >= 0, labels == label, probs[:, label])
        entropy = np.where(labels >= 0, 0, np.log(probs[:, label]))
        total += share * (log_p - log_q - entropy)
        total += weight * np.where(labels == label, np.log(probs[:, label]), 0)
    return total


@pytest.mark.parametrize("weight", [0.0, 2.5])
def test_labels_are_summed_out_where_they_are_unknown(weight):
    x, labels = pictures(5), torch.tensor([0.0, -1.0, 2.0, math.nan, -1.0], dtype=torch.float64)
    expected = semi_supervised_terms(x, labels, weight, **SMALL)
    at_the_mean = AtMean()(semi_supervised_vae_guide)
    data = {"x": x, "labels": labels, "num_classes": 3, "label_weight": weight, **SMALL}
    loss = TraceEnum_ELBO(max_plate_nesting=1).loss(semi_supervised_vae, at_the_mean, **data)
    assert math.isclose(-loss, expected.sum(), rel_tol=1e-8)
    unknown = TraceEnum_ELBO(max_plate_nesting=1).loss(
        semi_supervised_vae, at_the_mean, **(data | {"labels": torch.full_like(labels, -1)})
    )
    assert abs(unknown - loss) > 0.1  # control


def test_enumerated_model_is_the_sum_over_classes():
    x, labels = pictures(3), torch.tensor([1.0, -1.0, -1.0], dtype=torch.float64)
    data = {"x": x, "labels": labels, "num_classes": 3, **SMALL}
    z = torch.randn(3, 2, dtype=torch.float64)
    conditioned = poutine.condition(semi_supervised_vae, data={"z": z})

    def nothing(**_):
        pass

    got = -TraceEnum_ELBO(max_plate_nesting=1).loss(conditioned, nothing, **data)
    each = np.stack(
        [log_prob_at(semi_supervised_vae, {"z": z, "label": torch.full((3,), k)}, **data) for k in range(3)]
    )
    each[[0, 2], 0] = -np.inf
    prior = dist.Normal(0.0, 1.0).log_prob(z).sum().item()
    assert math.isclose(got, logsumexp(each - np.log(3), axis=0).sum() + prior, rel_tol=1e-9)


def test_the_conditional_decoder_uses_the_class():
    x, z = pictures(), torch.zeros(4, 2, dtype=torch.float64)
    labels = torch.tensor([0.0, 1.0, 0.0, 1.0], dtype=torch.float64)
    data = {"x": x, "num_classes": 2, **SMALL}
    got, turned = (log_prob_at(conditional_vae, {"z": z}, labels=v, **data) for v in (labels, 1 - labels))
    beside = np.concatenate([z.numpy(), np.eye(2)[labels.int().numpy()]], 1)
    one = 1 / (1 + np.exp(-decoded(beside)))
    flat = x.reshape(4, 6).numpy()
    np.testing.assert_allclose(got, np.log(np.where(flat == 1, one, 1 - one)).sum(1), rtol=1e-10)
    assert (got != turned).all()


def test_two_layers_share_the_lower_one():
    x = pictures()
    data = {"x": x, "num_top": 3, "hidden_top": (), **SMALL}
    trace = poutine.trace(two_layer_vae_guide).get_trace(**data)
    run = poutine.trace(poutine.replay(two_layer_vae, trace=trace)).get_trace(**data)
    run.compute_log_prob()
    weight, bias = weights("decoder_top.0.weight", "decoder_top.0.bias")
    output = trace.nodes["z_top"]["value"].detach().numpy() @ weight.T + bias
    loc, scale = output[:, :2], np.log1p(np.exp(output[:, 2:])) + 1e-3
    error = (trace.nodes["z"]["value"].detach().numpy() - loc) / scale
    expected = (-0.5 * error**2 - np.log(scale) - 0.5 * np.log(2 * np.pi)).sum(1)
    np.testing.assert_allclose(run.nodes["z"]["log_prob"].detach().numpy(), expected, rtol=1e-9)
