"""`check` on fits whose faults are known, each beside the sound fit it was made from."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from inference import limits
from inference.errors import InputError
from inference.fit import Status
from inference.verdict import Verdict, VerdictKind, check
from tests.handmade_fits import chain_fit, gaussian_vi, modes, normal, sites, vi_fit

TRUST, REWEIGHTED = VerdictKind.TRUST, VerdictKind.TRUST_REWEIGHTED
CANNOT_TELL, DO_NOT_TRUST = VerdictKind.CANNOT_TELL, VerdictKind.DO_NOT_TRUST


def never(fit):
    raise AssertionError("the mode search is dear and must not run here")


# --- Markov chains ----------------------------------------------------------------------------------------------------


def with_stats(**stats):
    fit = chain_fit(sites(normal(0)))
    return replace(fit, stats={**fit.stats, **stats})


def share(value: float) -> np.ndarray:
    flags = np.zeros(4000, dtype=bool)
    flags[: round(4000 * value)] = True
    return flags.reshape(4, 1000)


def slow(rho: float) -> np.ndarray:
    x = normal(1)
    for t in range(1, 1000):
        x[:, t] = rho * x[:, t - 1] + np.sqrt(1 - rho**2) * x[:, t]
    return x


def far_chain() -> np.ndarray:
    x = normal(0)
    x[0, :, 2] += 5.0
    return x


def drifting_energy() -> np.ndarray:
    return np.cumsum(np.random.default_rng(0).normal(size=(4, 1000)), axis=1)


CHAINS = {
    "sound": (chain_fit(sites(normal(0))), TRUST, "no draw diverged"),
    "antithetic": (chain_fit(sites(slow(-0.6))), TRUST, "R-hat"),
    "few divergences": (with_stats(diverging=share(0.0005)), TRUST, "2 diverged"),
    "divergences": (with_stats(diverging=share(0.01)), CANNOT_TELL, "40 of 4000 draws diverged"),
    "many divergences": (with_stats(diverging=share(0.1)), DO_NOT_TRUST, "400 of 4000 draws diverged"),
    "energy": (with_stats(energy=drifting_energy()), CANNOT_TELL, "E-BFMI"),
    "tree depth": (with_stats(reached_max_treedepth=share(0.3)), CANNOT_TELL, "30.0% of the draws"),
    "a chain elsewhere": (chain_fit(sites(far_chain())), DO_NOT_TRUST, "R-hat of theta[1]"),
    "slow": (chain_fit(sites(slow(0.95))), CANNOT_TELL, "effective sample size"),
    "short": (chain_fit(sites(normal(0, shape=(4, 60)))), CANNOT_TELL, "400 are needed"),
    "one chain": (chain_fit(sites(normal(0, shape=(1, 4000)))), CANNOT_TELL, "One chain"),
    "two chains": (chain_fit(sites(normal(0, shape=(2, 2000)))), TRUST, "The 2 chains agree"),
    "six chains": (chain_fit(sites(normal(0, shape=(6, 500)))), TRUST, "The 6 chains agree"),
    "stuck": (chain_fit(sites(np.ones((4, 1000, 3)))), DO_NOT_TRUST, "never moved"),
    "interrupted": (
        chain_fit(sites(normal(0)), status=Status("interrupted", "Stopped at draw 1000.")),
        CANNOT_TELL,
        "Stopped at draw 1000",
    ),
}


@pytest.mark.parametrize("name", CHAINS)
def test_chains(name):
    fit, kind, words = CHAINS[name]
    verdict = check(fit, search=never)
    assert verdict.kind is kind
    assert words in verdict.reason
    assert verdict.next_step
    assert verdict.trusted is (kind is TRUST)


def test_divergences_are_located_where_they_gather_and_only_there():
    x = normal(5, num_quantities=30)
    gathered = chain_fit(sites(x))
    gathered.stats["diverging"][:] = x[..., 12] < -2.0
    verdict = check(gathered)
    assert "mostly where theta[11] is small (around -2." in verdict.reason
    assert verdict.checks["divergent_quantile"] < 0.02
    assert verdict.checks["divergent_shift"] < -2.0
    above = replace(gathered, stats={**gathered.stats, "diverging": x[..., 0] > 1.5})
    assert "where mu is large" in check(above).reason
    scattered = replace(
        gathered, stats={**gathered.stats, "diverging": np.random.default_rng(0).random(size=(4, 1000)) < 0.02}
    )
    assert "draws diverged: " in check(scattered).reason
    assert "divergent_quantile" not in check(scattered).checks


def test_a_fault_among_many_sound_quantities_is_found_and_named_first():
    x = normal(3, num_quantities=40)
    x[1, :, 17] += 1.0
    verdict = check(chain_fit(sites(x)))
    assert not verdict.trusted
    assert verdict.worst[0].label == "theta[16]"


def test_constants_are_not_judged():
    draws = {"x": normal(0)[..., 0], "chol": np.stack([normal(1)[..., 0], np.ones((4, 1000))], axis=-1)}
    assert check(chain_fit(draws)).kind is TRUST


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("make", [chain_fit, vi_fit])
def test_draws_that_are_not_finite_cannot_be_judged(make, bad):
    x = normal(0)
    x[2, 7, 3] = bad
    verdict = check(make(sites(x)), search=never)
    assert verdict.kind is CANNOT_TELL
    assert "theta[2]" in verdict.reason


def test_switching_labels_do_not_matter_where_the_model_identifies_them():
    x = normal(0, num_quantities=2) * 0.3 + np.array([-2.0, 2.0])
    x[1] = x[1, :, ::-1]  # the second chain names the components the other way round
    draws = {"loc": x}
    model = SimpleNamespace(identify=lambda d: {"sorted": np.sort(d["loc"], axis=-1)})
    assert check(chain_fit(draws)).kind is DO_NOT_TRUST
    verdict = check(chain_fit(draws, model=model))
    assert verdict.kind is TRUST
    assert verdict.worst[0].label.startswith("sorted[")
    assert any("identify" in remark for remark in verdict.remarks)


def test_nothing_continuous_is_a_wrong_request():
    with pytest.raises(InputError, match="got k"):
        check(chain_fit({"k": np.zeros((4, 10), dtype=np.int64)}))


# --- Variational fits -------------------------------------------------------------------------------------------------


def test_an_exact_fit_is_trusted_after_a_look_for_other_modes():
    verdict = check(gaussian_vi(0), search=modes())
    assert verdict.kind is TRUST
    assert verdict.checks["khat"] < limits.KHAT_TRUST
    assert {"num_settled", "max_mean_error", "max_log_sd_error", "is_ess", "functional_khat"} <= verdict.checks.keys()
    assert "8 starts" in verdict.reason


@pytest.mark.parametrize("seed", range(5))
def test_a_nearly_exact_fit_is_trusted(seed):
    fit = gaussian_vi(seed, shift=0.03, sd=np.array([1.0, 0.97, 1.03, 1.0, 0.98, 1.0]))
    assert check(fit, search=modes()).kind is TRUST


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    "error",
    [
        {"shift": np.array([0, 0, 0.2, 0, 0, 0])},
        {"sd": np.array([1, 1, 1, 1 / 1.25, 1, 1])},
        {"sd": np.array([1, 1, 1, 1.25, 1, 1])},
    ],
    ids=["mean", "narrow", "wide"],
)
def test_one_wrong_quantity_is_not_trusted_raw_though_khat_is_small(seed, error):
    verdict = check(gaussian_vi(seed, **error), search=modes())
    assert verdict.checks["khat"] < limits.KHAT_TRUST  # k-hat alone would let it pass
    assert verdict.kind is REWEIGHTED
    assert verdict.worst[0].label == ("theta[1]" if "shift" in error else "theta[2]")


def test_an_understated_sd_is_mended_by_its_weights():
    verdict = check(gaussian_vi(0, sd=np.array([0.7, 1, 1, 1, 1, 1])), search=modes())
    assert verdict.kind is REWEIGHTED
    assert verdict.worst[0].errors["sd_ratio"] == pytest.approx(0.7, abs=0.06)


def test_the_worst_quantities_have_a_khat_of_their_own():
    """That of w and h, which is no smaller than that of w alone up to its error; zero where weights are constant."""
    for sd, low, high in ((0.7, 0.4, 0.9), (1.0, 0.0, 0.0)):
        verdict = check(gaussian_vi(0, sd=np.array([1, 1, 1, sd, 1, 1])), search=modes())
        khat = [row.errors["khat"] for row in verdict.worst]
        assert low <= min(khat) <= max(khat) <= high
        assert max(khat) <= verdict.checks["functional_khat"]


def test_a_hopeless_fit_is_never_trusted():
    for sd, shift in ((0.5, 0.0), (1.0, 3.0), (0.3, 1.0)):
        verdict = check(gaussian_vi(0, sd=sd, shift=shift), search=never)
        assert verdict.kind in (CANNOT_TELL, DO_NOT_TRUST)


@pytest.mark.parametrize("seed", range(8))
def test_khat_between_the_limits_alone_is_never_trust(seed):
    """All six sds at .68: k-hat wanders about .6, where the weighted sd may be wrong as well."""
    verdict = check(gaussian_vi(seed, sd=0.68), search=modes())
    assert verdict.kind is not TRUST
    if verdict.checks["khat"] >= limits.KHAT_REWEIGHTED:
        assert not verdict.trusted


def test_a_missed_mode_is_never_trusted():
    fit = gaussian_vi(0)
    assert check(fit, search=modes()).kind is TRUST
    verdict = check(fit, search=modes(num_elsewhere=3))
    assert verdict.kind is DO_NOT_TRUST
    assert "3 of 8" in verdict.reason


def test_another_mode_of_an_exchangeable_model_may_be_a_relabelling():
    model = SimpleNamespace(identify=lambda draws: draws)
    verdict = check(replace(gaussian_vi(0), model=model), search=modes(num_elsewhere=3))
    assert verdict.kind is CANNOT_TELL
    assert "relabelled" in verdict.reason


def test_a_search_that_saw_nothing_does_not_count_as_one():
    assert check(gaussian_vi(0), search=modes(num_settled=0)).kind is CANNOT_TELL

    def impossible(fit):
        raise InputError("plate 'rows': subsampling.")

    verdict = check(gaussian_vi(0), search=impossible)
    assert verdict.kind is CANNOT_TELL
    assert "plate 'rows'" in verdict.reason


def test_the_default_search_refuses_a_fit_without_a_density():
    verdict = check(gaussian_vi(0))
    assert verdict.kind is CANNOT_TELL
    assert "no flat log density" in verdict.reason


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"status": Status("budget_spent", "All 500 steps used, still improving.")}, CANNOT_TELL),
        ({"status": Status("interrupted", "Stopped at step 20.")}, CANNOT_TELL),
        ({"status": Status("diverged", "The loss became NaN at step 20.")}, DO_NOT_TRUST),
        ({"state": {"num_gradients": 1, "starts": {"elbo": np.array([-5.0, -9.0]), "agree": False}}}, CANNOT_TELL),
    ],
    ids=["budget", "interrupted", "diverged", "starts"],
)
def test_an_unsettled_fit_is_not_trusted(changes, kind):
    verdict = check(replace(gaussian_vi(0), **changes), search=never)
    assert verdict.kind is kind


def test_starts_that_agree_do_not_stand_in_the_way():
    state = {"num_gradients": 1, "starts": {"elbo": np.array([-5.0, -5.01]), "agree": True}}
    assert check(replace(gaussian_vi(0), state=state), search=modes()).kind is TRUST


def test_a_point_estimate_gets_a_sentence_and_no_khat():
    verdict = check(vi_fit(sites(normal(0))), search=never)
    assert verdict.kind is CANNOT_TELL
    assert "density" in verdict.reason
    assert "khat" not in verdict.checks


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_not_numbers_cannot_be_judged(bad):
    fit = gaussian_vi(0)
    log_weight = fit.stats["log_weight"].copy()
    log_weight[1, 5] = bad
    verdict = check(replace(fit, stats={"log_weight": log_weight}), search=never)
    assert verdict.kind is CANNOT_TELL
    assert "1 of 4000" in verdict.reason


def test_too_few_draws_are_not_judged_by_their_weights():
    assert check(gaussian_vi(0, shape=(4, 100)), search=never).kind is CANNOT_TELL
    assert check(gaussian_vi(0, shape=(1, 4000)), search=modes()).kind is TRUST


# --- The verdict itself -----------------------------------------------------------------------------------------------


def test_a_verdict_prints_headline_reason_table_and_next_step():
    text = str(check(gaussian_vi(0, shift=0.2), search=modes()))
    assert text.splitlines()[0] == "TRUST_REWEIGHTED: You can trust the re-weighted draws, not the raw ones."
    assert "worst quantities" in text
    assert "Next: " in text
    assert max(map(len, text.splitlines())) <= 120


def test_a_verdict_becomes_strict_json():
    verdict = check(chain_fit(sites(normal(0, shape=(1, 500)))))  # one chain: its R-hat is NaN
    assert json.loads(json.dumps(verdict.to_dict(), allow_nan=False))["kind"] == "CANNOT_TELL"
    assert verdict.to_dict()["checks"]["max_rhat"] is None


def test_only_two_kinds_are_trusted():
    trusted = {kind for kind in VerdictKind if Verdict(kind, "").trusted}
    assert trusted == {TRUST, REWEIGHTED}
    assert all(Verdict(kind, "").headline for kind in VerdictKind)
