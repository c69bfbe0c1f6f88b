"""RABVI: its parts against exact answers, and fits that stop by it."""

import numpy as np
import pyro
import pytest
import torch
from pyro.infer import Trace_ELBO
from scipy.signal import lfilter
from scipy.stats import multivariate_normal

from inference import SVI, InputError, fit, svi_loop
from inference.gaussian import Gaussian
from inference.gaussian_iterates import GaussianIterates, symmetrised_kl
from inference.guides import GUIDES
from inference.isolation import isolated
from inference.rabvi import (
    MAX_ROWS,
    Level,
    Rabvi,
    _Rows,
    error_of_average,
    relative_cost,
    relative_gain,
    split_rhat,
    stationary_since,
)
from inference.stopping import BLOCK_STEPS
from inference.svi_loop import EagerSteps, Loop, Taken
from tests.test_svi import LINE, MEAN, MEAN_FIELD_SD, SMALL, hand_guide, line
from tests.test_svi_native import adam, make_problem, needs_compiler
from tests.zoo import SCHOOLS, schools

GAUSSIANS = ("normal", "diagonal_normal", "multivariate_normal", "low_rank")


def autoregression(num_steps, dim, correlation, seed=0):
    """Stationary AR(1) sequences (num_steps, dim) of variance one."""
    noise = np.random.default_rng(seed).normal(size=(num_steps, dim)) * (1 - correlation**2) ** 0.5
    noise[0] /= (1 - correlation**2) ** 0.5
    return lfilter([1.0], [1.0, -correlation], noise, axis=0)


def blocks(iterates):
    return iterates.reshape(-1, BLOCK_STEPS, iterates.shape[1]).mean(axis=1)


@pytest.mark.parametrize("correlation", [0.0, 0.9, 0.99])
def test_the_error_of_an_average_is_that_of_an_autoregression(correlation):
    num, dim = 20_000, 60
    iterates = autoregression(num, dim, correlation)
    _, error = error_of_average(blocks(iterates))
    exact = ((1 + correlation) / (1 - correlation) / num) ** 0.5
    # Each squared error has the relative sd of a variance from 100 numbers, 0.14, and more where ESS is estimated.
    assert (error**2).mean() == pytest.approx(exact**2, rel=0.15)
    assert (iterates.mean(axis=0) ** 2).mean() == pytest.approx(exact**2, rel=4.5 * (2 / dim) ** 0.5)
    if correlation:  # control: iterates are not independent
        assert iterates.std() / num**0.5 < 0.3 * exact


def test_the_effective_size_of_slow_iterates_is_known():
    num, correlation = 40_000, 0.998  # 40 effective iterates
    sizes = [error_of_average(blocks(autoregression(num, 1, correlation, seed)))[0] for seed in range(40)]
    assert np.median(sizes) == pytest.approx(num * (1 - correlation) / (1 + correlation), rel=0.35)


def test_numbers_that_do_not_move_have_no_error():
    ess, error = error_of_average(np.ones((50, 2)))
    assert ess == np.inf
    assert (error == 0).all()
    assert error_of_average(np.ones((5, 2)))[0] == 0  # too few to say


def test_rhat_tells_drift_from_noise():
    noise = autoregression(2000, 5, 0.5)
    half = 1000
    within = (noise[:half].var(axis=0, ddof=1) + noise[half:].var(axis=0, ddof=1)) / 2
    between = half * np.var([noise[:half].mean(axis=0), noise[half:].mean(axis=0)], axis=0, ddof=1)
    expected = np.sqrt((half - 1) / half + between / within / half)
    assert split_rhat(noise) == pytest.approx(expected.max(), rel=1e-12)
    assert split_rhat(noise) < 1.02
    drifting = noise.copy()
    drifting[:, 3] += np.linspace(0, 4, 2000)
    assert split_rhat(drifting) > 1.3
    assert split_rhat(np.ones((10, 2))) == 1


def test_the_window_leaves_out_the_way_there():
    num, arrived = 10_000, 4000
    way = np.maximum(1 - np.arange(num) / arrived, 0)[:, None] * 30
    iterates = autoregression(num, 4, 0.5) + way
    since = stationary_since(blocks(iterates), BLOCK_STEPS)
    assert arrived * 0.95 <= since < num
    assert stationary_since(blocks(iterates[:arrived]), BLOCK_STEPS) is None
    assert stationary_since(blocks(iterates[:20]), BLOCK_STEPS) is None


def random_gaussian(dim, seed, *, full_rank):
    rng = np.random.default_rng(seed)
    scale = np.exp(rng.normal(size=dim))
    factor = np.tril(rng.normal(size=(dim, dim)), -1) + np.diag(scale)
    return Gaussian(rng.normal(size=dim), factor if full_rank else scale)


@pytest.mark.parametrize("full_rank", [False, True])
def test_symmetrised_kl_is_torchs(full_rank):
    p, q = (random_gaussian(4, seed, full_rank=full_rank) for seed in (1, 2))
    theirs = [
        torch.distributions.MultivariateNormal(
            torch.as_tensor(g.loc), scale_tril=torch.as_tensor(g.scale if full_rank else np.diag(g.scale))
        )
        for g in (p, q)
    ]
    both = [torch.distributions.kl_divergence(*pair).item() for pair in (theirs, theirs[::-1])]
    assert symmetrised_kl(p, q) == pytest.approx(sum(both), rel=1e-10)
    assert symmetrised_kl(p, q) == pytest.approx(symmetrised_kl(q, p), rel=1e-10)
    assert symmetrised_kl(p, p) == pytest.approx(0, abs=1e-12)
    assert abs(both[0] - both[1]) > 0.1  # control: one direction is not half of it


@pytest.mark.parametrize("guide", GAUSSIANS)
def test_rows_are_read_as_the_guide_reads_its_parameters(guide):
    """The density of the Gaussian in a row is that of the guide, which Pyro computes."""
    with isolated(3):
        data = {name: torch.as_tensor(value) for name, value in SCHOOLS.items()}
        made = GUIDES[guide](schools)
        made(**data)
        params = [p for _, p in pyro.get_param_store().named_parameters()]
        for p in params:
            p.data += 0.3 * torch.randn_like(p)
        row = np.concatenate([p.detach().numpy().ravel() for p in params])
        iterates = GaussianIterates(made, params)
        gaussian, moments = iterates.gaussian(row), iterates.moments(np.stack([row, row + 0.1]))
        if guide == "normal":
            pairs = [made._get_loc_and_scale(name) for name in ("mu", "tau", "z")]
            loc, scale = (np.concatenate([np.ravel(pair[i].detach()) for pair in pairs]) for i in (0, 1))
            np.testing.assert_allclose(gaussian.scale, scale)
        else:
            loc, scale = (part.detach().numpy() for part in made._loc_scale())
            points = np.random.default_rng(0).normal(size=(3, len(loc)))
            theirs = made.get_posterior().log_prob(torch.as_tensor(points)).detach().numpy()
            factor = gaussian.scale if gaussian.full_rank else np.diag(gaussian.scale)
            np.testing.assert_allclose(multivariate_normal(gaussian.loc, factor @ factor.T).logpdf(points), theirs)
        np.testing.assert_allclose(gaussian.loc, loc)
        np.testing.assert_allclose(moments[0], np.concatenate([loc, np.log(scale)]))
        assert (moments[1] != moments[0]).any()


def test_what_is_no_gaussian_is_refused():
    with isolated(1):
        made = GUIDES["delta"](line)
        with pytest.raises(LookupError, match="AutoDelta"):
            GaussianIterates(made, [])
        made = GUIDES["normal"](line)
        made(**{name: torch.as_tensor(value) for name, value in LINE.items()})
        with pytest.raises(LookupError, match="no parameter of the guide"):
            GaussianIterates(made, [torch.zeros(2)])


def test_joined_rows_keep_the_average():
    rng, rows, kept = np.random.default_rng(0), [], _Rows()
    for _ in range(150):
        rows.append(rng.normal(size=(20, 3)))
        kept.add(rows[-1])
        assert len(kept.values) < MAX_ROWS
    given = np.concatenate(rows)
    assert kept.length == 4 * BLOCK_STEPS
    assert kept.values.mean(axis=0) == pytest.approx(given.mean(axis=0))
    assert kept.since(2000 * BLOCK_STEPS).mean(axis=0) == pytest.approx(given[2000:].mean(axis=0))


def levels_of(rates, num_steps):
    return [Level(rate, steps, np.zeros(1), 0.0, 0.0, 0.0) for rate, steps in zip(rates, num_steps, strict=True)]


def test_gain_and_cost_are_those_of_power_laws():
    rates, power, size = 0.5 ** np.arange(5), 0.7, 3.0
    distances = [(size * rate**power * (2**power - 1)) ** 2 for rate in rates[1:]]
    levels = levels_of(rates, 2000 * rates**-1.5)
    gain = 0.5**power + 0.1 / (size * rates[-1] ** power)
    assert relative_gain(levels, distances) == pytest.approx(gain, rel=1e-9)
    steps = levels[-1].num_steps
    assert relative_cost(levels) == pytest.approx(2**1.5 * steps / (steps + 1000), rel=1e-9)


class Descent:
    """Noisy gradient descent on a quadratic with its optimum at zero, biased in proportion to the rate."""

    name = "descent"

    def __init__(self, stride, *, start=30.0, rate=0.1):
        self.rng, self.stride, self.rate, self.x = np.random.default_rng(0), stride, rate, np.full(3, start)
        self.open, self.count = [], 0

    def take(self, most, *, record):
        losses, means = [], []
        for _ in range(min(most, self.stride)):
            losses.append(0.5 * (self.x**2).sum())
            self.x = self.x - self.rate * (self.x + self.rng.normal(size=3) - 5 * self.rate)
            self.open.append(self.x)
            if len(self.open) == BLOCK_STEPS:
                means.append(np.mean(self.open, axis=0))
                self.open = []
        return Taken(np.array(losses), np.array(losses), np.array(means), False)

    def shrink(self, factor):
        self.rate *= factor

    def move(self, row):
        self.x = row


class WatchPoint:
    """A unit normal around the parameters."""

    def numbers(self, rows):
        return rows

    def unit(self, numbers):
        return np.ones(len(numbers))

    def distance(self, before, after):
        return symmetrised_kl(Gaussian(before.average, np.ones(3)), Gaussian(after.average, np.ones(3)))


def test_the_rule_stops_near_the_optimum_from_far_away():
    seen = []
    for stride in (1, 7, 1000):
        steps, rule = Descent(stride), Rabvi(WatchPoint())
        status = Loop(steps, lambda: ("", 0), rule=rule).optimise()
        seen.append((status, len(rule.levels), steps.x.tolist()))
    assert seen[0] == seen[1] == seen[2]
    summary = rule.summary()
    assert status.kind == "converged"
    assert (summary["error"] <= 0.1 * summary["rate"]).all()
    assert np.isnan(summary["distance"][0])
    # The first level ends 0.5 away; halving it until that pays no more leaves a fraction.
    assert np.abs(rule.levels[0].average).max() > 0.35
    assert np.abs(steps.x).max() < 0.15
    assert steps.rate == pytest.approx(0.1 * 0.5 ** len(rule.levels))


def test_a_rule_that_has_not_ended_is_not_called_converged(monkeypatch):
    monkeypatch.setattr(svi_loop, "MAX_STEPS", 600)
    steps = Descent(1000, rate=1e-3)
    status = Loop(steps, lambda: ("", 0), rule=Rabvi(WatchPoint())).optimise()
    assert status.kind == "budget_spent"
    assert "not stationary" in status.message
    assert np.abs(steps.x).max() > 5  # control: it is far away indeed


def test_a_spent_budget_leaves_an_average(monkeypatch):
    monkeypatch.setattr(svi_loop, "MAX_STEPS", 2000)
    steps, rule = Descent(1000, start=0.0, rate=0.5), Rabvi(WatchPoint())
    monkeypatch.setattr(rule, "_ended", lambda: None)
    status = Loop(steps, lambda: ("", 0), rule=rule).optimise()
    assert status.kind == "budget_spent"
    # Iterates have an sd of 0.6 around 2.5, their average over 1000 steps one of 0.03.
    np.testing.assert_allclose(steps.x, 2.5, atol=4.5 * 0.03)


@pytest.mark.parametrize("guide", ["normal", hand_guide], ids=["by name", "by hand, 40 units away"])
def test_fits_that_stop_by_rabvi_are_near_the_optimum(guide):
    result = fit(line, LINE, SVI(guide=guide, stopping="rabvi", elbo=Trace_ELBO(), num_samples=4000), seed=1)
    assert result.status.ok, result.status
    assert "expected to gain less" in result.status.message
    assert len(result.state["levels"]["rate"]) > 1
    for i, name in enumerate(("intercept", "slope")):
        assert abs(result.draws[name].mean() - MEAN[i]) < 0.12 * MEAN_FIELD_SD[i]
        assert result.draws[name].std() == pytest.approx(MEAN_FIELD_SD[i], rel=0.12)


@needs_compiler
def test_rabvi_is_the_same_by_native_code_and_by_the_graph(monkeypatch):
    monkeypatch.setattr(svi_loop, "MAX_STEPS", 2400)
    settings = {"stopping": "rabvi", "num_particles": 1, **SMALL}
    runs = [fit(line, LINE, SVI(backend=b, **settings), seed=4) for b in ("native", "python")]
    assert [r.state["backend"] for r in runs] == ["Trace_ELBO, native", "Trace_ELBO, recorded graph"]
    assert len(runs[0].state["levels"]["rate"]) > 0
    np.testing.assert_allclose(runs[0].state["levels"]["error"], runs[1].state["levels"]["error"], rtol=1e-6)
    assert runs[0].status == runs[1].status
    np.testing.assert_allclose(runs[0].history["loss"], runs[1].history["loss"], rtol=1e-6)
    np.testing.assert_allclose(runs[0].draws["slope"], runs[1].draws["slope"], rtol=1e-6)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"stopping": "never"}, "stopping: expected one of plateau, rabvi"),
        ({"stopping": "rabvi", "num_steps": 100}, "stopping: .* num_steps"),
        ({"stopping": "plateau", "optimizer": "lbfgs"}, "stopping: L-BFGS"),
    ],
)
def test_stopping_that_cannot_be_is_refused(settings, said):
    with pytest.raises(InputError, match=said):
        SVI(**settings)


def test_eager_steps_record_and_move():
    with isolated(3):
        steps = EagerSteps(*make_problem(line, LINE, hand_guide), adam())
        iterates, means = [], []
        for _ in range(25):
            means.append(steps.take(1, record=True).means)
            iterates.append(torch.cat([p.detach().reshape(-1) for p in steps.params]).numpy().copy())
        means = np.concatenate([part for part in means if len(part)])
        np.testing.assert_allclose(means, blocks(np.array(iterates[:20])))
        assert (means[0] != iterates[9]).any()  # control
        steps.move(means[0])
        assert torch.cat([p.detach().reshape(-1) for p in steps.params]).tolist() == means[0].tolist()


def test_a_window_that_was_taken_too_early_is_given_up():
    """Iterates that pause, too short for their average to be known, and then walk on to where they stay."""
    pause = 800
    iterates = autoregression(60_000, 1, 0.95)
    iterates[pause:] += 30.0
    rule, taken, starts = Rabvi(WatchPoint()), 0, []
    while not rule.levels and taken < len(iterates):
        part = iterates[taken : taken + rule.until_look]
        taken += len(part)
        rule.step(part[:, 0].tolist(), blocks(part))
        starts.append((taken, rule._start))
    assert any(when <= pause and start is not None for when, start in starts)  # it was taken
    assert rule.levels
    assert abs(rule.levels[0].average[0] - 30.0) < 0.5
