"""The deep Markov model: densities by hand, masks, its linear case against Kalman, and training."""

import math

import numpy as np
import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from quadratic_joint import gaussian_evidence
from torch.distributions import Normal, kl_divergence

from inference import SVI, fit
from ppl_models import MODELS
from ppl_models.deep_markov import deep_markov, deep_markov_guide
from ppl_models.deep_markov_networks import LEAST_SCALE
from ppl_models.linear_gaussian import LinearGaussian
from ppl_models.markov_path import MarkovPath

MODEL = MODELS["deep_markov"]
SMALL = {"num_latents": 2, "hidden": 3, "rnn_hidden": 4}


pytestmark = pytest.mark.usefixtures("direct_pyro")


def sequences(*lengths, num_features=3):
    """Random switches, and 7 beyond the end, where nothing may look."""
    x = torch.full((len(lengths), max(lengths), num_features), 7.0)
    for row, length in zip(x, lengths, strict=True):
        row[:length] = torch.bernoulli(torch.full((length, num_features), 0.5))
    return {"x": x, "lengths": torch.tensor(lengths), **SMALL}


def joint_traces(data, z=None):
    guide = deep_markov_guide if z is None else poutine.condition(deep_markov_guide, data={"z": z})
    guide = poutine.trace(guide).get_trace(**data)
    model = poutine.condition(deep_markov, data={"z": guide.nodes["z"]["value"]})
    model = poutine.trace(model).get_trace(**data)
    for trace in (guide, model):
        trace.compute_log_prob()
    return guide, model


# By hand -----------------------------------------------------------------------------------------------------------


def weights(prefix):
    return {
        n.removeprefix(f"{prefix}."): v.detach().numpy()
        for n, v in pyro.get_param_store().items()
        if n.startswith(prefix)
    }


def sigmoid(v):
    return 1 / (1 + np.exp(-v))


def silu(v):
    return v * sigmoid(v)


def softplus(v):
    return np.log1p(np.exp(v))


def normal(v, loc, scale):
    return (-0.5 * ((v - loc) / scale) ** 2 - np.log(scale) - 0.5 * math.log(2 * math.pi)).sum()


def affine(w, name, v):
    return w[f"{name}.weight"] @ v + w[f"{name}.bias"]


def log_prior_by_hand(z):
    w, before, total = weights("transition"), pyro.param("start").detach().numpy(), 0.0
    for state in z:
        gate = sigmoid(affine(w, "gate.2", silu(affine(w, "gate.0", before))))
        proposal = affine(w, "proposal.2", silu(affine(w, "proposal.0", before)))
        loc = (1 - gate) * affine(w, "linear", before) + gate * proposal
        total += normal(state, loc, softplus(affine(w, "scale.1", silu(proposal))) + LEAST_SCALE)
        before = state
    return total


def log_likelihood_by_hand(x, z):
    w, total = weights("emitter"), 0.0
    for values, state in zip(x, z, strict=True):
        p = sigmoid(affine(w, "4", silu(affine(w, "2", silu(affine(w, "0", state))))))
        total += (values * np.log(p) + (1 - values) * np.log(1 - p)).sum()
    return total


def log_guide_by_hand(x, z):
    w, h, summaries = weights("encoder"), np.zeros(SMALL["rnn_hidden"]), []
    for values in x[::-1]:  # a GRU as torch defines it
        a = w["weight_ih_l0"] @ values + w["bias_ih_l0"]
        b = w["weight_hh_l0"] @ h + w["bias_hh_l0"]
        (ar, az, an), (br, bz, bn) = np.split(a, 3), np.split(b, 3)
        update = sigmoid(az + bz)
        h = (1 - update) * np.tanh(an + sigmoid(ar + br) * bn) + update * h
        summaries.append(h)
    w, before, total = weights("combiner"), pyro.param("guide_start").detach().numpy(), 0.0
    for later, state in zip(summaries[::-1], z, strict=True):
        both = 0.5 * (np.tanh(affine(w, "state", before)) + later)
        loc, scale = np.split(affine(w, "loc_and_scale", both), 2)
        total += normal(state, loc, softplus(scale) + LEAST_SCALE)
        before = state
    return total


def test_densities_by_hand_with_sequences_of_different_length():
    data = sequences(4, 1, 3)
    guide, model = joint_traces(data)
    pyro.get_param_store()["start"] = torch.tensor([0.3, -0.4])
    pyro.get_param_store()["guide_start"] = torch.tensor([-0.2, 0.9])
    guide, model = joint_traces(data, guide.nodes["z"]["value"].detach())
    z = model.nodes["z"]["value"].numpy()
    for i, length in enumerate(data["lengths"]):
        beyond = normal(z[i, length:], 0.0, np.ones(1))
        x, path = data["x"][i, :length].numpy(), z[i, :length]
        assert model.nodes["z"]["log_prob"][i].item() == pytest.approx(log_prior_by_hand(path) + beyond, rel=1e-12)
        assert model.nodes["x"]["log_prob"][i].item() == pytest.approx(log_likelihood_by_hand(x, path), rel=1e-12)
        assert guide.nodes["z"]["log_prob"][i].item() == pytest.approx(log_guide_by_hand(x, path) + beyond, rel=1e-12)
        if length > 1:  # control: the order of steps matters
            assert log_guide_by_hand(x[::-1], path) != pytest.approx(log_guide_by_hand(x, path), rel=1e-6)


def test_a_padded_sequence_equals_the_sequence_alone():
    """Bound, densities and gradients; what stands beyond the end changes none."""
    data = sequences(5, 2)
    guide, _ = joint_traces(data)
    z = guide.nodes["z"]["value"].detach()

    def terms(data, z):
        guide, model = joint_traces(data, z)
        sites = [model.nodes["z"], model.nodes["x"], guide.nodes["z"]]
        loss = sites[0]["log_prob"].sum() + sites[1]["log_prob"].sum() - sites[2]["log_prob"].sum()
        params = dict(pyro.get_param_store().named_parameters())
        gradients = torch.autograd.grad(loss, list(params.values()))
        return [s["log_prob"].detach() for s in sites], dict(zip(params, gradients, strict=True))

    together, gradients = terms(data, z)
    garbage = data["x"].clone()
    garbage[1, 2:] = torch.nan
    again, same = terms(data | {"x": garbage}, z)
    total = dict.fromkeys(gradients, 0.0)
    for i, length in enumerate(data["lengths"]):
        alone, own = terms({"x": data["x"][i, :length], **SMALL}, z[i, :length])
        beyond = Normal(0.0, 1.0).log_prob(z[i, length:]).sum()
        for k, (one, many) in enumerate(zip(alone, together, strict=True)):
            torch.testing.assert_close(one + (beyond if k != 1 else 0.0), many[i])
        total = {name: total[name] + own[name] for name in own}
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, total[name], rtol=1e-9, atol=1e-10)
        assert torch.equal(gradient, same[name]), name
    assert all(torch.equal(a, b) for a, b in zip(together, again, strict=True))
    inside = data["x"].clone()  # control
    inside[1, 1] = 1 - inside[1, 1]
    assert not torch.equal(terms(data | {"x": inside}, z)[0][1], together[1])


def test_a_draw_has_the_steps_that_its_density_has():
    data = sequences(5, 2)
    guide, _ = joint_traces(data)
    path, loc, scale = guide.nodes["z"]["fn"].drawn_steps()
    assert path is guide.nodes["z"]["value"]
    summed = Normal(loc, scale).log_prob(path).sum(-1)
    beyond = Normal(0.0, 1.0).log_prob(path[1, 2:]).sum()
    torch.testing.assert_close(summed[0].sum(), guide.nodes["z"]["log_prob"][0])
    torch.testing.assert_close(summed[1, :2].sum() + beyond, guide.nodes["z"]["log_prob"][1])


def test_a_missing_switch_is_summed_out():
    data = sequences(3, 3)
    z = joint_traces(data)[0].nodes["z"]["value"].detach()

    def log_likelihood(value):
        x = data["x"].clone()
        x[0, 1, 2] = value
        trace = poutine.trace(poutine.condition(deep_markov, data={"z": z})).get_trace(**data | {"x": x})
        trace.compute_log_prob()
        return trace.nodes["x"]["log_prob"].detach()

    both = torch.logaddexp(log_likelihood(0.0), log_likelihood(1.0))
    torch.testing.assert_close(log_likelihood(torch.nan)[0], both[0])
    assert torch.equal(log_likelihood(torch.nan)[1], log_likelihood(1.0)[1])
    assert torch.isfinite(joint_traces(data | {"x": torch.full_like(data["x"], torch.nan)})[0].log_prob_sum())


# The linear case -----------------------------------------------------------------------------------------------------

MATRIX = torch.tensor([[0.9, 0.2], [-0.1, 0.7]], dtype=torch.float64)
STEP, WEIGHTS, NOISE = (torch.tensor(v, dtype=torch.float64) for v in ([0.5, 0.3], [1.0, -0.6], 0.4))


def make_linear(*, gate=-1e9):
    """Close the gate, and make the emitter linear: silu(v) - silu(-v) = v, twice."""
    store = pyro.get_param_store()
    settings = {
        "transition.gate.2.bias": torch.full((2,), gate),
        "transition.linear.weight": MATRIX,
        "transition.scale.1.weight": torch.zeros(2, 2),
        "transition.scale.1.bias": (STEP - LEAST_SCALE).expm1().log(),
        "emitter.0.weight": torch.stack([WEIGHTS, -WEIGHTS]),
        "emitter.2.weight": torch.tensor([[1.0, -1.0], [-1.0, 1.0]]),
        "emitter.4.weight": torch.tensor([[1.0, -1.0]]),
        "emitter.0.bias": torch.zeros(2),
        "emitter.2.bias": torch.zeros(2),
        "emitter.4.bias": torch.zeros(1),
        "emitter_scale": NOISE.expand(1),
        "start": torch.tensor([0.5, -1.0]),
    }
    for name, value in settings.items():
        store[name] = value.clone()


def kalman(series, start):
    zero = torch.zeros(2)
    chain = LinearGaussian(start, zero + 1e-12, MATRIX, STEP, WEIGHTS, NOISE, len(series))
    return chain.log_prob(series).item()


def test_the_linear_case_has_the_evidence_of_the_kalman_filter():
    data = {"x": torch.randn(2, 6, 1), "lengths": torch.tensor([6, 4]), "emission": "normal"}
    data |= {"num_latents": 2, "hidden": 2, "rnn_hidden": 3}
    deep_markov(**data)
    make_linear()
    start = pyro.param("start").detach()
    evidence, *_ = gaussian_evidence(deep_markov, data, "z", (2, 6, 2))
    expected = sum(kalman(data["x"][i, :length, 0], start) for i, length in enumerate(data["lengths"]))
    assert evidence == pytest.approx(expected, rel=1e-8)
    make_linear(gate=-3.0)  # control: an open gate is another model
    assert gaussian_evidence(deep_markov, data, "z", (2, 6, 2))[0] != pytest.approx(expected, rel=1e-4)


def test_importance_sampling_of_the_linear_case_by_the_guide_finds_the_evidence():
    """Draws of the guide with their density, against Kalman: a wrong density of either would show."""
    data = {"x": torch.tensor([[[0.3], [-0.8]]]), "lengths": torch.tensor([2]), "emission": "normal"}
    data |= {"num_latents": 2, "hidden": 2, "rnn_hidden": 3}
    joint_traces(data)
    make_linear()
    pyro.get_param_store()["combiner.loc_and_scale.bias"] = torch.tensor([0.0, 0.0, 0.7, 0.7])  # wider than the target
    num = 100_000

    def many(function):
        def particles(**arguments):
            with pyro.plate("particles", num, dim=-2):
                function(**arguments)

        return particles

    with torch.no_grad():
        guide = poutine.trace(many(deep_markov_guide)).get_trace(**data)
        model = poutine.trace(poutine.replay(many(deep_markov), trace=guide)).get_trace(**data)
        for trace in (guide, model):
            trace.compute_log_prob()
        log_weight = (model.nodes["z"]["log_prob"] + model.nodes["x"]["log_prob"] - guide.nodes["z"]["log_prob"])[:, 0]
    weight = (log_weight - kalman(data["x"][0, :, 0], pyro.param("start").detach())).exp()
    error = weight.std() / num**0.5
    assert error < 0.05
    assert abs(weight.mean() - 1) < 4 * error


# Paths ---------------------------------------------------------------------------------------------------------------


def linear_path(matrix, scale, *, num_steps=4, seen=None):
    scale = torch.tensor(scale)
    return MarkovPath(lambda state: (state @ matrix.mT, scale.expand_as(state)), torch.ones(2), num_steps, seen=seen)


def moments(matrix, scale, num_steps=4):
    """Mean and covariance of a linear path, flat."""
    matrix, mean, means = matrix.numpy(), np.ones(2), []
    powers = [np.linalg.matrix_power(matrix, k) for k in range(num_steps)]
    factor = np.zeros((2 * num_steps, 2 * num_steps))
    for t in range(num_steps):
        mean = matrix @ mean
        means.append(mean)
        for s in range(t + 1):
            factor[2 * t : 2 * t + 2, 2 * s : 2 * s + 2] = powers[t - s] * np.array(scale)
    return np.concatenate(means), factor @ factor.T


def test_draws_of_a_path_have_its_moments():
    num = 50_000
    draws = linear_path(MATRIX, [0.5, 0.3]).expand([num]).sample().flatten(-2).numpy()
    mean, covariance = moments(MATRIX, [0.5, 0.3])
    sd = np.sqrt(np.diag(covariance))
    assert np.abs((draws.mean(0) - mean) / sd).max() < 4.5 / np.sqrt(num)
    products = ((draws - mean) / sd)[:, :, None] * ((draws - mean) / sd)[:, None, :]
    error = products.std(0) / np.sqrt(num)
    correlation = covariance / np.outer(sd, sd)
    assert (np.abs(products.mean(0) - correlation) / error).max() < 4.5
    assert (np.abs(products.mean(0) - np.eye(8)) / error).max() > 20  # control


def test_the_estimate_of_kl_is_unbiased_and_steadier_than_the_difference_of_densities():
    num, other = 4000, torch.tensor([[0.5, 0.0], [0.3, 0.9]])
    q, p = linear_path(MATRIX, [0.5, 0.3]).expand([num]), linear_path(other, [0.6, 0.4]).expand([num])
    path = q.rsample()
    estimate, difference = kl_divergence(q, p), q.log_prob(path) - p.log_prob(path)
    (mean, covariance), (other_mean, other_covariance) = moments(MATRIX, [0.5, 0.3]), moments(other, [0.6, 0.4])
    shift, inverse = mean - other_mean, np.linalg.inv(other_covariance)
    log_dets = [np.linalg.slogdet(c).logabsdet for c in (covariance, other_covariance)]
    exact = 0.5 * (np.trace(inverse @ covariance) + shift @ inverse @ shift - 8 - log_dets[0] + log_dets[1])
    for values in (estimate, difference):
        assert abs(values.mean() - exact) < 4 * values.std() / num**0.5
    assert estimate.std() < 0.8 * difference.std()


def test_kl_of_one_step_is_exact_and_steps_beyond_the_end_add_nothing():
    q, p = linear_path(MATRIX, [0.5, 0.3], num_steps=1), linear_path(MATRIX, [0.6, 0.4], num_steps=1)
    by_torch = kl_divergence(
        Normal(torch.zeros(2), torch.tensor([0.5, 0.3])), Normal(torch.zeros(2), torch.tensor([0.6, 0.4]))
    )
    torch.testing.assert_close(kl_divergence(q, p), by_torch.sum())
    seen = torch.tensor([[True, False, False]])
    q = linear_path(MATRIX, [0.5, 0.3], num_steps=3, seen=seen)
    p = linear_path(MATRIX, [0.6, 0.4], num_steps=3, seen=seen)
    torch.testing.assert_close(kl_divergence(q, p), by_torch.sum().reshape(1))
    with pytest.raises(ValueError, match=r"seen: expected shape \(sequences, 3\), got \(3,\)"):
        linear_path(MATRIX, [0.5, 0.3], num_steps=3, seen=seen[0])


def test_the_analytic_bound_is_that_of_draws_and_has_its_gradients():
    data = sequences(4, 2)
    num = 2000
    results = {}
    for name, kind in {"analytic": TraceMeanField_ELBO, "draws": Trace_ELBO}.items():
        elbo = kind(num_particles=num, vectorize_particles=True, max_plate_nesting=1)
        loss = elbo.differentiable_loss(deep_markov, deep_markov_guide, **data)
        params = dict(pyro.get_param_store().named_parameters())
        results[name] = [loss, *torch.autograd.grad(loss, [params[n] for n in sorted(params)])]
    for analytic, drawn in zip(results["analytic"], results["draws"], strict=True):
        difference = (analytic - drawn).abs().max() / (1 + analytic.abs().max())
        assert difference < 0.1  # 2000 draws: differences of .02
    far = [g * 1.2 for g in results["analytic"]]
    assert (far[0] - results["draws"][0]).abs() > 0.1  # control


# Training ------------------------------------------------------------------------------------------------------------


def test_training_learns_digits_read_row_by_row():
    data = MODEL.data()
    data["x"] = data["x"][:40]
    pixels = data["x"].reshape(-1, 64)
    share = (pixels.sum(0) + 0.5) / (len(pixels) + 1)
    independent = -(pixels * share.log() + (1 - pixels) * (-share).log1p()).sum().item()
    engine = SVI(guide=MODEL.guide, elbo="trace_mean_field", num_steps=150, lr=0.03, num_samples=5, dtype="float32")
    result = fit(MODEL, data, engine, seed=1)
    loss = result.history["loss"]
    assert loss[0] > 2 * independent
    assert loss[-20:].mean() < independent
    assert result.draws["z"].shape == (4, 5, 40, 8, 4)


# Bad input -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(2, 0, 3)}, r"x: expected shape \(steps, features\) or \(sequences, steps, features\), none"),
        ({"x": torch.zeros(4)}, "x: expected shape"),
        ({"x": torch.full((2, 4, 3), 2.0)}, "x: expected whole numbers from 0 to 1, got 2 at index"),
        ({"x": torch.full((2, 4, 3), 0.5)}, r"x: expected whole numbers from 0 to 1, got 0.5 at index \(0, 0, 0\)"),
        ({"lengths": torch.tensor([4, 0])}, "lengths: expected whole numbers from 1 .* got 0 for sequence 1"),
        ({"lengths": torch.tensor([4, 5])}, "lengths: expected whole numbers from 1 to the padded length 4, got 5"),
        ({"lengths": torch.tensor([4])}, "lengths: expected one for each of 2 sequences"),
        ({"x": torch.zeros(4, 3)}, "lengths: expected with several sequences"),
        ({"num_latents": 0}, "num_latents: expected a whole number of at least 1, got 0"),
        ({"hidden": 1.5}, "hidden: expected a whole number of at least 1, got 1.5"),
        ({"rnn_hidden": -1}, "rnn_hidden: expected a whole number"),
        ({"emission": "poisson"}, "emission: expected one of bernoulli, normal, got 'poisson'"),
    ],
)
@pytest.mark.parametrize("function", [deep_markov, deep_markov_guide])
def test_bad_input_is_refused(function, change, message):
    with pytest.raises(ValueError, match=message):
        function(**sequences(4, 2) | change)


def test_sequences_of_one_step_are_fine():
    guide, model = joint_traces(sequences(1, 1))
    assert torch.isfinite(guide.log_prob_sum())
    assert torch.isfinite(model.log_prob_sum())
