"""`check` with short chains: draws whose errors are known, of a posterior that is known, under weights that fail."""

import re
from dataclasses import replace

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

from inference import AutoVI, InputError, check, fit
from inference.diagnostics import khat_limit, smooth_weights
from inference.quantities import quantities
from inference.resampled_verdict import judge_resampled
from inference.second_opinion import ask_chains
from inference.verdict import VerdictKind
from inference.weight_verdict import judge_weights
from tests.handmade_fits import modes

DIM = 8


def model(scale: torch.Tensor) -> None:
    """Sample a Gaussian of eight dimensions with sds of its own, and one that follows from it."""
    theta = pyro.sample("theta", dist.Normal(torch.arange(1.0, DIM + 1.0), scale).to_event(1))
    pyro.deterministic("total", theta.sum())


SCALE = torch.logspace(-1, 2, DIM)


@pytest.fixture(scope="module")
def exact():
    return fit(model, {"scale": SCALE}, AutoVI(), seed=1, progress=False)


def draws_of(exact, *, shift=0.0, sd=1.0, seed=0):
    """Replace the fit's draws by draws that are off by ``shift`` sds and a factor, and give their true log weights."""
    z = np.random.default_rng(seed).normal(size=(4, 1000, DIM))
    white = np.broadcast_to(sd, DIM) * z + np.broadcast_to(shift, DIM)
    x = np.arange(1.0, DIM + 1.0) + white * SCALE.numpy()
    log_weight = (0.5 * z**2 - 0.5 * white**2 + np.log(np.broadcast_to(sd, DIM))).sum(axis=-1)
    return replace(
        exact,
        draws={"theta": x, "total": x.sum(axis=-1)},
        state={**exact.state, "unconstrained": x},
        stats={**exact.stats, "log_weight": log_weight},
    )


def spoilt(made):
    """Replace the weights by some that have nothing to do with the draws, and no mean."""
    heavy = np.random.default_rng(0).pareto(0.85, size=(4, 1000))
    return replace(made, stats={"log_weight": np.log1p(0.02 * heavy)})


def test_draws_that_are_right_are_trusted_whatever_the_tail_of_their_weights(exact):
    wrong_tail = spoilt(draws_of(exact))
    assert smooth_weights(wrong_tail.stats["log_weight"]).khat > khat_limit(4000)
    verdict = check(wrong_tail, search=modes())
    assert verdict.kind is VerdictKind.TRUST
    assert {"khat", "taddaa_mean", "taddaa_log_sd", "taddaa_correlation", "num_settled"} <= verdict.checks.keys()
    assert verdict.checks["taddaa_mean"] < 0.2
    assert check(wrong_tail, search=modes(num_elsewhere=2)).kind is VerdictKind.DO_NOT_TRUST
    without = replace(wrong_tail, state={k: v for k, v in wrong_tail.state.items() if k != "unconstrained"})
    assert check(without, search=modes()).kind is VerdictKind.CANNOT_TELL
    assert check(replace(wrong_tail, model=None), search=modes()).kind is VerdictKind.CANNOT_TELL


ONE_NARROW = np.where(np.arange(DIM) == 3, 0.6, 1.0)


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        ({"sd": 0.6}, VerdictKind.MEANS_ONLY, r"understated, ratio 0\.(5[7-9]|6[0-3])"),
        ({"sd": 1.6}, VerdictKind.MEANS_ONLY, r"overstated, ratio 1\.(5[4-9]|6[0-6])"),
        ({"shift": 0.6}, VerdictKind.DO_NOT_TRUST, r"mean off by [+]0\.[56]"),
        ({"sd": ONE_NARROW}, VerdictKind.SOME_PARAMETERS, r"not these: theta\[3\]\."),
    ],
)
def test_an_error_that_weights_cannot_show_is_found_named_and_measured(exact, error, kind, words):
    verdict = check(spoilt(draws_of(exact, **error)), search=modes())
    assert verdict.kind is kind
    assert re.search(words, verdict.reason)
    assert verdict.next_step


def test_chains_see_the_sites_that_follow(exact):
    opinion = ask_chains(draws_of(exact), quantities(draws_of(exact)))
    assert opinion.labels == (*(f"theta[{i}]" for i in range(DIM)), "total")
    assert not opinion.unreliable


def test_weighted_moments_are_held_against_chains_from_resampled_draws(exact):
    narrow = draws_of(exact, sd=np.where(np.arange(DIM) < 2, 0.7, 1.0))
    weights = smooth_weights(narrow.stats["log_weight"].ravel())
    opinion = ask_chains(narrow, quantities(narrow), weights=weights, resampled=True)
    assert (opinion.raw.states()[:2] == "bad").all()
    assert "bad" not in opinion.weighted.states()
    wrong = replace(weights, weights=np.full(4000, 1 / 4000))
    assert (ask_chains(narrow, quantities(narrow), weights=wrong, resampled=True).weighted.states()[:2] == "bad").all()


def asked(opinion):
    calls = []

    def ask(*_, **options):
        calls.append(options)
        return opinion

    return ask, calls


def test_chains_are_spared_where_weights_are_clear(exact):
    clear = draws_of(exact)
    ask, calls = asked(None)
    assert judge_weights(clear, quantities(clear), search=modes(), ask=ask).kind is VerdictKind.TRUST
    assert not calls


def test_weights_that_mend_the_draws_need_chains_that_do_not_contradict(exact):
    off = draws_of(exact, sd=np.where(np.arange(DIM) == 0, 0.75, 1.0))
    found, weights = quantities(off), smooth_weights(off.stats["log_weight"].ravel())
    assert weights.khat < 0.6
    assert judge_weights(off, found, search=modes()).kind is VerdictKind.TRUST_REWEIGHTED
    uniform = replace(weights, weights=np.full(4000, 1 / 4000))  # as if weighting had not helped
    ask, calls = asked(ask_chains(off, found, weights=uniform, resampled=True))
    assert judge_weights(off, found, search=modes(), ask=ask).kind is VerdictKind.SOME_PARAMETERS
    assert calls[0]["resampled"]


def test_chains_that_cannot_tell_acquit_nobody_but_may_convict(exact):
    for error, kind in (({}, VerdictKind.CANNOT_TELL), ({"shift": 0.8}, VerdictKind.DO_NOT_TRUST)):
        off = spoilt(draws_of(exact, **error))
        ask, calls = asked(replace(ask_chains(off, quantities(off)), unreliable="they are stuck"))
        verdict = judge_weights(off, quantities(off), search=modes(), ask=ask)
        assert verdict.kind is kind
        assert "they are stuck" in verdict.reason
        assert len(calls) == 1


def test_what_weights_have_proved_wrong_stays_wrong_whatever_chains_say(exact):
    """Chains that say all is well of draws whose weights, though poor, move a mean by .6 sd."""
    right = draws_of(exact)
    ask, _ = asked(ask_chains(right, quantities(right)))
    off = draws_of(exact, shift=0.6)
    verdict = judge_weights(off, quantities(off), search=modes(), ask=ask)
    assert verdict.kind is not VerdictKind.TRUST


# --- Draws that an engine has resampled -------------------------------------------------------------------------------


def resampled(exact, *, khat, ess=1500.0, **error):
    made = draws_of(exact, **error)
    importance = {"khat": khat, "khat_limit": 0.7, "ess": ess, "num_proposals": 20000}
    return replace(made, stats={}, state={**made.state, "importance": importance})


def test_resampled_draws_are_trusted_on_a_small_khat_after_a_look_for_modes(exact):
    verdict = check(resampled(exact, khat=0.3), search=modes())
    assert verdict.kind is VerdictKind.TRUST
    assert "0.05 sd" in verdict.reason  # 2.05 / sqrt(1500)
    assert check(resampled(exact, khat=0.3), search=modes(num_elsewhere=1)).kind is VerdictKind.DO_NOT_TRUST


@pytest.mark.parametrize("khat", [0.65, 1.5, np.nan])
def test_chains_decide_about_resampled_draws_beyond(exact, khat):
    assert check(resampled(exact, khat=khat), search=modes()).kind is VerdictKind.TRUST
    assert check(resampled(exact, khat=khat, shift=0.6), search=modes()).kind is VerdictKind.DO_NOT_TRUST
    assert check(resampled(exact, khat=khat, sd=0.6), search=modes()).kind is VerdictKind.MEANS_ONLY


def test_without_chains_resampled_draws_with_a_large_khat_are_not_trusted(exact):
    def impossible(*_, **__):
        raise InputError("fit: no density.")

    for khat, kind in ((0.55, VerdictKind.TRUST), (0.65, VerdictKind.CANNOT_TELL)):
        made = resampled(exact, khat=khat)
        assert judge_resampled(made, quantities(made), search=modes(), ask=impossible).kind is kind


def test_few_effective_draws_make_resampled_moments_uncertain(exact):
    opinions = [
        ask_chains(made, quantities(made)) for made in (resampled(exact, khat=0.9, ess=ess) for ess in (4000.0, 100.0))
    ]
    assert (opinions[1].raw.mean_se > 2 * opinions[0].raw.mean_se).all()
