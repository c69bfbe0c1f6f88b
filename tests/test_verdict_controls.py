"""Negative controls of `check` on real models: fits spoilt on purpose are caught, sound ones beside them pass."""

from dataclasses import replace

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

from benchmarks.posteriordb.database import Posterior
from benchmarks.verdict_bank.fits import GAUSSIAN, REFERENCE, SPOILS, VARIATIONAL, spoilt
from inference import NUTS, SVI, AutoVI, check, fit
from inference.agreement import errors_between
from inference.diagnostics import Moments, smooth_weights, weighted_moments
from inference.modes import search_modes
from inference.verdict import VerdictKind
from ppl_models import MODELS
from tests.handmade_fits import modes
from tests.test_modes import SQUARE, square

TRUST, REWEIGHTED = VerdictKind.TRUST, VerdictKind.TRUST_REWEIGHTED
REGRESSION = MODELS["linear_regression"]
CENTRED = MODELS["eight_schools_centered"]


@pytest.fixture(scope="module")
def sound():
    return fit(REGRESSION.model, REGRESSION.data(), VARIATIONAL, seed=0, progress=False)


def without_draws(name):
    return Posterior(name, {}, {}, {})


def test_the_fit_that_is_spoilt_is_sound(sound):
    assert check(sound).kind is TRUST
    assert check(spoilt(f"{GAUSSIAN}as it is", sound, without_draws("linear_regression"), draws=slice(None))).trusted


@pytest.mark.parametrize("name", [name for name in SPOILS if name != "as it is"])
def test_a_spoilt_gaussian_is_never_trusted_as_it_stands(sound, name):
    bad = spoilt(f"{GAUSSIAN}{name}", sound, without_draws("linear_regression"), draws=slice(None))
    verdict = check(bad)
    assert verdict.kind is not TRUST
    assert verdict.kind is not VerdictKind.CANNOT_TELL
    if name == "wide":
        assert verdict.kind is REWEIGHTED
    if verdict.kind is VerdictKind.SOME_PARAMETERS:  # it says which, and not the one that was spoilt
        assert verdict.usable
        assert bad.state["labels"][len(bad.state["labels"]) // 2] not in verdict.usable


def gumbel():
    pyro.sample("x", dist.Gumbel(0.0, 1.0).expand([4]).to_event(1))


@pytest.fixture(scope="module")
def skewed():
    draws = np.random.default_rng(1).gumbel(size=(4, 1000, 4))
    return fit(gumbel, {}, VARIATIONAL, seed=0, progress=False), Posterior("gumbel", {}, {"x": draws}, {})


@pytest.mark.parametrize("name", SPOILS)
def test_exact_draws_of_a_skewed_posterior_pass_and_spoilt_ones_do_not(skewed, name):
    verdict = check(spoilt(f"{REFERENCE}{name}", *skewed, draws=slice(None)))
    assert (verdict.kind is TRUST) == (name == "as it is")


def test_weights_of_moved_draws_give_the_moments_of_the_draws_that_were_moved(skewed):
    moved = spoilt(f"{REFERENCE}wide", *skewed, draws=slice(None))
    weights = smooth_weights(moved.stats["log_weight"])
    found = weighted_moments(moved.draws["x"].reshape(-1, 4), weights.weights)
    assert weights.ess > 1000
    assert (np.abs(found.mean - np.euler_gamma) < 4.5 * found.mean_se).all()
    assert (np.abs(np.log(found.sd / (np.pi / np.sqrt(6)))) < 4.5 * found.log_sd_se).all()


@pytest.mark.parametrize("engine", [SVI(num_steps=30), SVI(guide="multivariate_normal", num_steps=100)])
def test_an_unconverged_fit_is_not_trusted(engine):
    assert not check(fit(REGRESSION.model, REGRESSION.data(), engine, seed=0, progress=False)).trusted


@pytest.mark.parametrize(
    "engine", [SVI(guide="normal"), SVI(guide="multivariate_normal"), VARIATIONAL], ids=["normal", "full", "auto"]
)
def test_a_funnel_is_not_trusted_under_a_gaussian(engine):
    verdict = check(fit(CENTRED.model, CENTRED.data(), engine, seed=0, progress=False))
    assert verdict.kind in (VerdictKind.DO_NOT_TRUST, VerdictKind.CANNOT_TELL)


# --- Modes ------------------------------------------------------------------------------------------------------------


def far_apart(apart, narrow=1.0):
    """Two modes that starts about zero do not see, masses .6 and .4."""
    x = pyro.sample("x", dist.ImproperUniform(dist.constraints.real_vector, (), (3,)))
    parts = dist.Normal(torch.tensor([0.0, apart])[:, None], torch.tensor([1.0, narrow])[:, None])
    pyro.factor("mixture", (torch.tensor([0.6, 0.4]).log() + parts.log_prob(x).sum(-1)).logsumexp(0))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("apart", "narrow"), [(6.0, 1.0), (3.5, 0.4)])
def test_one_mode_of_two_is_not_trusted_though_the_other_is_far(apart, narrow, seed):
    result = fit(far_apart, {"apart": apart, "narrow": narrow}, SVI(guide="normal", optimizer="lbfgs"), seed=seed)
    assert np.abs(result.draws["x"].mean((0, 1))).max() < 0.2  # only the mode at zero
    assert check(result, search=modes()).kind is TRUST  # weights and chains cannot see the other
    assert check(result).kind is VerdictKind.DO_NOT_TRUST


def test_a_wide_fit_does_not_cover_a_mode_by_draws_on_its_slope():
    result = fit(far_apart, {"apart": 4.5}, SVI(guide="normal", optimizer="lbfgs"), seed=0)
    wide = 1.5 * result.state["unconstrained"]
    spread = replace(result, state={**result.state, "unconstrained": wide})
    assert ((wide.sum(-1) > 3 * 4.5 / 2).sum()) > 10  # beyond the ridge
    assert search_modes(spread).num_elsewhere > 0


@pytest.fixture(scope="module")
def in_one_mode():
    """Four chains of the square model, folded into the right mode, which is what luck does to one run of eight."""
    chains = fit(square, SQUARE, NUTS(num_warmup=200, num_samples=500), seed=1, progress=False)
    points = np.abs(chains.state["unconstrained"])
    return replace(chains, draws={"mu": points[..., 0]}, state={**chains.state, "unconstrained": points})


def test_chains_that_agree_in_one_of_two_modes_are_not_trusted(in_one_mode):
    verdict = check(in_one_mode)
    assert verdict.checks["max_rhat"] < 1.01
    assert verdict.kind is VerdictKind.DO_NOT_TRUST
    assert "mode where the fit has no draws" in verdict.reason
    both = in_one_mode.state["unconstrained"] * np.random.default_rng(0).choice([-1.0, 1.0], size=(4, 500, 1))
    mixing = replace(in_one_mode, draws={"mu": both[..., 0]}, state={**in_one_mode.state, "unconstrained": both})
    assert check(mixing).kind is TRUST


def test_a_search_that_finds_nothing_takes_no_trust_from_chains(in_one_mode):
    verdict = check(in_one_mode, search=modes(num_settled=0))
    assert verdict.kind is TRUST
    assert verdict.checks["num_settled"] == 0
    relabelled = replace(in_one_mode, model=type("Model", (), {"identify": staticmethod(lambda draws: draws)})())
    assert check(relabelled, search=modes(num_elsewhere=3)).kind is TRUST
    assert check(replace(in_one_mode, model=None)).kind is TRUST


# --- A mean field whose k-hat is small by luck ------------------------------------------------------------------------


def correlated():
    pyro.sample(
        "x", dist.MultivariateNormal(torch.zeros(2), covariance_matrix=torch.tensor([[1.0, -0.8], [-0.8, 1.0]]))
    )


def test_a_small_khat_of_a_mean_field_is_not_believed():
    """The tail index of its weights is .8 at least; one estimate in six is below .6, with weighted sds of .75."""
    base = fit(correlated, {}, SVI(guide="normal", optimizer="lbfgs"), seed=0, progress=False)
    precision = np.linalg.inv([[1.0, -0.8], [-0.8, 1.0]])
    exact = Moments(*np.array([[0, 0], [0, 0], [1, 1], [0, 0]]), np.full((3, 2), np.nan), np.full((3, 2), np.nan))
    small = 0
    for seed in range(60):
        z = np.random.default_rng(seed).standard_normal((4, 1000, 2))
        x = 0.6 * z
        log_weight = 0.5 * (z**2).sum(-1) - 0.5 * np.einsum("abi,ij,abj->ab", x, precision, x)
        weights = smooth_weights(log_weight)
        if weights.khat < 0.6:
            small += 1
            stats = {"log_weight": log_weight}
            made = replace(base, draws={"x": x}, stats=stats, state={**base.state, "unconstrained": x}, seed=seed)
            weighted = errors_between(
                weighted_moments(x.reshape(-1, 2), weights.weights), exact, tail_index=np.zeros(2)
            )
            verdict = check(made, search=modes())
            assert verdict.kind is VerdictKind.MEANS_ONLY or (
                verdict.kind is REWEIGHTED and np.nanmax(weighted.severity) < 1
            )
    assert small >= 5


def test_auto_itself_has_no_such_luck():
    verdict = check(fit(correlated, {}, AutoVI(), seed=0, progress=False))
    assert verdict.kind is TRUST
