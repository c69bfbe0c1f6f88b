"""Forecasts of hidden Markov chains and of linear-Gaussian series: against sums over paths, the joint normal, peers."""

import itertools
import math
import warnings

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from scipy import stats

from ppl_models import MODELS
from ppl_models.hidden_markov import HiddenMarkov
from ppl_models.hmm_emissions import Autoregression
from ppl_models.hmm_forecast import chain_at, forecast, last_state
from ppl_models.linear_gaussian import LinearGaussian, forecast_series, smooth
from ppl_models.state_space import _accumulated

K = 3


pytestmark = pytest.mark.usefixtures("direct_pyro")


def rows(*shape):
    return torch.rand(*shape, K).add(0.1).log().log_softmax(-1)


# Hidden Markov chains ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("moving", [False, True], ids=["alike", "time-varying"])
def test_a_forecast_is_what_bayes_rule_says_about_a_longer_sequence(moving):
    """P(next values | values) of categories: a ratio of two densities of whole sequences."""
    T, h = 4, 3
    steps = T + h if moving else 1
    logits = torch.randn(steps, K, 2)
    maps = rows(T + h - 1 if moving else 1, K)
    initial = rows()
    whole = HiddenMarkov(initial, maps, dist.Categorical(logits=logits), T + h)
    seen = HiddenMarkov(initial, maps[: T - 1] if moving else maps, dist.Categorical(logits=logits[:T]), T)
    value = torch.tensor([0.0, 1.0, 1.0, 0.0])
    future = {"transition_logits": maps[T - 1 :], "emission": dist.Categorical(logits=logits[T:])} if moving else {}
    result = forecast(seen, value, h, num_samples=4000, **future)
    assert result.state.shape == (h, K)
    assert result.mean is None
    torch.testing.assert_close(result.state.sum(-1), torch.ones(h))
    every = torch.tensor(list(itertools.product([0.0, 1.0], repeat=h)))
    probability = (whole.log_prob(torch.cat([value.expand(2**h, T), every], -1)) - seen.log_prob(value)).exp()
    counts = torch.stack([(result.draws == v).all(-1).sum() for v in every]).double()
    statistic = ((counts - 4000 * probability) ** 2 / (4000 * probability)).sum()
    assert statistic < 24.3  # .999 of chi-square with 7 degrees
    # The state at each step, from the values there: P(value) = sum_k P(k) P(value | k).
    emission = future.get("emission", dist.Categorical(logits=logits)).probs
    exact = torch.stack([probability[every[:, t] == 1].sum() for t in range(h)])
    torch.testing.assert_close((result.state * emission[..., 1]).sum(-1), exact)
    control = (last_state(seen, value) * emission[..., 1]).sum(-1)  # the last state, not moved on
    assert (control - exact).abs().max() > 1e-3
    if moving:
        # As many steps as were seen moves: the past must not be taken for the future.
        with pytest.raises(ValueError, match="transition_logits: expected those of the 3 steps to come"):
            forecast(seen, value, h)


def test_moments_are_those_of_the_draws():
    chain = HiddenMarkov(rows(), rows(K), dist.Normal(3 * torch.randn(1, K, 2), 0.5).to_event(1), 6)
    result = forecast(chain, chain.sample(), 2, num_samples=4000)
    assert result.draws.shape == (4000, 2, 2)
    error = (result.draws.mean(0) - result.mean).abs() / (result.sd / math.sqrt(4000))
    assert error.max() < 5
    assert (result.draws.std(0) / result.sd - 1).abs().max() < 0.1
    assert (result.sd > 0.6).all()  # control: wider than any one state's


def test_an_autoregression_goes_on_from_its_last_values():
    emission = Autoregression(torch.zeros(1), torch.full((1,), 0.1), torch.tensor([[0.5, 0.3]]))
    chain = HiddenMarkov(torch.zeros(1), torch.zeros(1, 1), emission, 3)
    result = forecast(chain, torch.tensor([0.0, 8.0, 10.0]), 2, num_samples=4000)
    first = 0.5 * 10 + 0.3 * 8
    second = 0.5 * first + 0.3 * 10
    np.testing.assert_allclose(result.draws.mean(0), [first, second], atol=5 * 0.12 / math.sqrt(4000))


def test_chains_at_posterior_draws_are_those_of_each_draw():
    for name, sizes in (("gaussian_hmm_full", {"num_sequences": 2}), ("factorial_hmm", {}), ("poisson_hmm", {})):
        model = MODELS[name]
        data = model.simulate(1, num_steps=8, **sizes).data
        several = [model.simulate(seed, num_steps=8, **sizes).truth for seed in range(3)]
        draws = {n: torch.stack([truth[n] for truth in several]) for n in several[0]}
        chain = chain_at(model.model, data, draws)
        assert chain.batch_shape == (3, sizes.get("num_sequences", 1))
        together = chain.log_prob(data["x"])
        for i, truth in enumerate(several):
            one = chain_at(model.model, data, {n: v[None] for n, v in truth.items()})
            torch.testing.assert_close(together[i], one.log_prob(data["x"])[0])
        assert not torch.allclose(together[0], together[1])
        if not sizes:
            assert forecast(chain, data["x"], 4, num_samples=5).draws.shape == (5, 3, 1, 4)
    with pytest.raises(ValueError, match="draws: expected every latent site of the model, log_rate too"):
        chain_at(model.model, data, {n: v for n, v in draws.items() if n != "log_rate"})
    with pytest.raises(ValueError, match=r"draws: expected equally many for every site, got \[2, 3\]"):
        chain_at(model.model, data, draws | {"initial": draws["initial"][:2]})


def test_forecasts_that_cannot_be_are_refused():
    chain = HiddenMarkov(rows(), rows(K), dist.Normal(torch.zeros(1, K), 1.0), 3)
    with pytest.raises(ValueError, match="num_steps: expected at least one step to forecast, got 0"):
        forecast(chain, torch.zeros(3), 0)
    short = HiddenMarkov(rows(), rows(K), chain.emission, 3, mask=torch.tensor([True, True, False]))
    with pytest.raises(ValueError, match="value: some sequences end before the last step"):
        forecast(short, torch.zeros(3), 1)


# Linear-Gaussian ---------------------------------------------------------------------------------------------------


def made(T=7, n=2, batch=()):
    matrix = torch.eye(n) + 0.3 * torch.randn(n, n)
    parts = torch.randn(*batch, n), torch.rand(n) + 0.5, matrix, torch.rand(*batch, n) + 0.2, torch.randn(n)
    return LinearGaussian(*parts, torch.rand(batch) + 0.3, T)


def joint(model):
    """Mean and covariance of state path and series, written out as one normal: the slow way."""
    F, n, T = model.matrix.numpy(), len(model.loc), model.num_steps
    # All noises, first state first, and what each state makes of them.
    sds = np.concatenate([model.scale.numpy(), np.tile(model.step_scale.numpy(), T)])
    maps, row = [], np.hstack([np.eye(n), np.zeros((n, n * T))])
    mean, m = [], model.loc.numpy()
    for t in range(T):
        row, m = F @ row, F @ m
        row[:, n * (t + 1) : n * (t + 2)] += np.eye(n)
        maps.append(row)
        mean.append(m)
    path, h = np.array(maps), model.weights.numpy()
    states = np.concatenate(path)
    values = path.transpose(0, 2, 1) @ h
    V = np.diag(sds**2)
    noise = float(model.noise_scale) ** 2 * np.eye(T)
    return (
        np.array(mean),
        states @ V @ states.T,
        states @ V @ values.T,
        np.array(mean) @ h,
        values @ V @ values.T + noise,
    )


@pytest.mark.parametrize("gaps", [[], [0], [2, 3], [6], [0, 1, 2, 3, 4, 5, 6]])
def test_evidence_smoothing_and_forecast_equal_the_joint_normal(gaps):
    model = made()
    series = model.sample().numpy()
    series[gaps] = np.nan
    seen = ~np.isnan(series)
    mean, state_cov, cross, value_mean, value_cov = joint(model)
    V = value_cov[np.ix_(seen, seen)]
    expected = stats.multivariate_normal(value_mean[seen], V).logpdf(series[seen]) if seen.any() else 0.0
    assert model.log_prob(torch.from_numpy(series)).item() == pytest.approx(expected, rel=1e-9, abs=1e-9)
    result = smooth(model, series)
    assert result.log_evidence == pytest.approx(expected, rel=1e-9, abs=1e-9)
    gain = cross[:, seen] @ np.linalg.pinv(V) if seen.any() else np.zeros((14, 0))
    np.testing.assert_allclose(result.mean, mean + (gain @ (series - value_mean)[seen]).reshape(7, 2), atol=1e-8)
    covariance = state_cov - gain @ cross[:, seen].T
    for t in range(7):
        np.testing.assert_allclose(result.covariance[t], covariance[2 * t : 2 * t + 2, 2 * t : 2 * t + 2], atol=1e-8)
    # A forecast is a longer series of which the end is missing.
    longer = LinearGaussian(*(getattr(model, n) for n in PARTS), 10)
    ahead = smooth(longer, np.r_[series, np.full(3, np.nan)])
    h = model.weights.numpy()
    forecasts, sds = forecast_series(model, series, 3)
    np.testing.assert_allclose(forecasts, ahead.mean[7:] @ h, atol=1e-8)
    variance = np.einsum("i,tij,j->t", h, ahead.covariance[7:], h) + model.noise_scale.item() ** 2
    np.testing.assert_allclose(sds, np.sqrt(variance), atol=1e-8)


PARTS = ("loc", "scale", "matrix", "step_scale", "weights", "noise_scale")


def test_evidence_equals_statsmodels():
    """Its Kalman filter and smoother, on the Nile with a gap, and on log GDP."""
    from statsmodels.tsa.statespace.structural import UnobservedComponents

    nile = MODELS["local_level"].data()["x"].clone()
    nile[20:30] = torch.nan
    one = torch.ones(1)
    ours = LinearGaussian(900 * one, 300 * one, torch.eye(1), 40 * one, one, torch.tensor(120.0), 100)
    peer = UnobservedComponents(nile.numpy(), "local level")
    peer.initialize_known([900.0], [[300.0**2 + 40.0**2]])
    peer.loglikelihood_burn = 0  # with a start that is known every step counts
    theirs = peer.smooth([120.0**2, 40.0**2])
    assert ours.log_prob(nile).item() == pytest.approx(theirs.llf, rel=1e-10)
    result = smooth(ours, nile.numpy())
    np.testing.assert_allclose(result.mean[:, 0], theirs.smoothed_state[0], rtol=1e-9)
    np.testing.assert_allclose(result.covariance[:, 0, 0], theirs.smoothed_state_cov[0, 0], rtol=1e-8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peer_forecast = theirs.get_forecast(5)
    mean, sd = forecast_series(ours, nile.numpy(), 5)
    np.testing.assert_allclose(mean, peer_forecast.predicted_mean, rtol=1e-9)
    np.testing.assert_allclose(sd, peer_forecast.se_mean, rtol=1e-9)

    gdp = MODELS["local_linear_trend"].data()["x"]
    matrix = torch.tensor([[1.0, 1.0], [0.0, 1.0]])
    start, first = torch.tensor([790.0, 0.8]), torch.tensor([20.0, 2.0])
    steps = torch.tensor([0.6, 0.2])
    ours = LinearGaussian(start, first, matrix, steps, torch.tensor([1.0, 0.0]), torch.tensor(0.3), len(gdp))
    peer = UnobservedComponents(gdp.numpy(), "local linear trend")
    covariance = matrix @ torch.diag(first**2) @ matrix.mT + torch.diag(steps**2)
    peer.initialize_known((matrix @ start).numpy(), covariance.numpy())
    peer.loglikelihood_burn = 0
    theirs = peer.smooth([0.3**2, 0.6**2, 0.2**2])
    assert ours.log_prob(gdp).item() == pytest.approx(theirs.llf, rel=1e-10)


def test_draws_have_the_joint_distribution_and_batches_are_apart():
    model = made(T=3)
    *_, mean, covariance = joint(model)
    draws = model.sample((4000,)).numpy()
    distance = np.einsum("ni,ij,nj->n", draws - mean, np.linalg.inv(covariance), draws - mean)
    assert stats.kstest(distance, stats.chi2(3).cdf).pvalue > 1e-3
    assert stats.kstest(distance * 1.2, stats.chi2(3).cdf).pvalue < 1e-6  # control
    batch = made(batch=(4,))
    values = batch.sample()
    assert values.shape == (4, 7)
    for i, value in enumerate(values):
        parts = batch.loc[i], batch.scale, batch.matrix, batch.step_scale[i], batch.weights, batch.noise_scale[i]
        torch.testing.assert_close(LinearGaussian(*parts, 7).log_prob(value), batch.log_prob(values)[i])


def test_bad_series_are_refused():
    model = made()
    with pytest.raises(ValueError, match="num_steps: expected a series of at least one step, got 0"):
        LinearGaussian(*(getattr(model, n) for n in PARTS), 0)
    with pytest.raises(ValueError, match=r"matrix: expected sizes \(2, 2\)"):
        LinearGaussian(*(getattr(model, n)[:1] if n == "weights" else getattr(model, n) for n in PARTS), 7)
    with pytest.raises(ValueError, match="value: expected series of 7 steps"):
        model.log_prob(torch.zeros(6))
    with pytest.raises(ValueError, match="num_steps: expected at least one step to forecast"):
        forecast_series(model, np.zeros(7), 0)
    with pytest.raises(ValueError, match="model: expected one, without batch"):
        smooth(made(batch=(2,)), np.zeros(7))


@pytest.mark.parametrize("steps", [1, 2, 7, 64, 65])
def test_the_path_of_volatility_is_an_autoregression(steps):
    shocks, persistence = torch.randn(steps), torch.tensor(0.9)
    path = [shocks[0]]
    for shock in shocks[1:]:
        path.append(persistence * path[-1] + shock)
    torch.testing.assert_close(_accumulated(shocks, persistence), torch.stack(path))
