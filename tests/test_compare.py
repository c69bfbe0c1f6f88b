"""`compare` on candidates with known errors against a reference, sound or sick."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from inference.compare import compare
from inference.errors import InputError
from inference.fit import Status
from inference.verdict import VerdictKind
from tests.handmade_fits import chain_fit, gaussian_vi, normal, sites, vi_fit

TRUST, REWEIGHTED, MEANS_ONLY = VerdictKind.TRUST, VerdictKind.TRUST_REWEIGHTED, VerdictKind.MEANS_ONLY
SOME, CANNOT_TELL, DO_NOT_TRUST = VerdictKind.SOME_PARAMETERS, VerdictKind.CANNOT_TELL, VerdictKind.DO_NOT_TRUST


def judged(candidate, reference=None):
    comparison = compare({"nuts": reference or chain_fit(sites(normal(100))), "vi": candidate})
    return comparison.verdicts["vi"], comparison


def changed(seed: int, *, shift=0.0, sd=1.0, shape=(4, 1000), num_quantities=6):
    return vi_fit(sites(normal(seed, shape=shape, num_quantities=num_quantities) * sd + shift))


def only(position: int, value: float, *, rest: float) -> np.ndarray:
    vector = np.full(6, rest)
    vector[position] = value
    return vector


# --- Verdicts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(10))
def test_an_exact_copy_is_trusted(seed):
    verdict, comparison = judged(changed(seed))
    assert verdict.kind is TRUST
    assert (comparison.table["judgement"] == "good").all()


@pytest.mark.parametrize("shift", [0.3, -0.3])
@pytest.mark.parametrize("seed", range(3))
def test_a_shift_in_one_quantity_is_found_and_named(seed, shift):
    verdict, comparison = judged(changed(seed, shift=only(2, shift, rest=0.0)))
    assert verdict.kind is SOME
    assert "theta[1]" in verdict.reason
    assert verdict.worst[0].label == "theta[1]"
    row = comparison.table.set_index("quantity").loc["theta[1]"]
    assert row["mean_difference"] == pytest.approx(shift, abs=4 * row["mean_difference_se"])
    assert row["judgement"] == "bad"


@pytest.mark.parametrize("factor", [1.4, 1 / 1.4])
def test_a_wrong_sd_in_one_quantity_is_found_and_named(factor):
    verdict, comparison = judged(changed(1, sd=only(0, factor, rest=1.0)))
    assert verdict.kind is SOME
    row = comparison.table.set_index("quantity").loc["mu"]
    assert np.log(row["sd_ratio"]) == pytest.approx(np.log(factor), abs=4 * row["sd_ratio_se"] / row["sd_ratio"])
    assert verdict.worst[0].label == "mu"


def test_understated_sds_leave_the_means():
    verdict, _ = judged(changed(0, sd=0.6))
    assert verdict.kind is MEANS_ONLY
    assert "understated" in verdict.reason
    assert verdict.checks["max_log_sd_error"] == pytest.approx(-np.log(0.6), abs=0.1)


def test_understated_sds_are_mended_by_good_weights_and_not_by_poor_ones():
    good, _ = judged(gaussian_vi(0, sd=0.85))
    assert good.kind is REWEIGHTED
    assert good.checks["khat"] < good.checks["khat_limit"]
    poor, _ = judged(gaussian_vi(0, sd=0.5))
    assert poor.kind is MEANS_ONLY
    wrong = gaussian_vi(0, sd=0.75)  # weights that belong to another posterior
    wrong = replace(wrong, stats={"log_weight": np.random.default_rng(0).normal(size=(4, 1000)) * 0.1})
    assert judged(wrong)[0].kind is MEANS_ONLY


def test_a_point_estimate_is_worth_its_means_at_most():
    verdict, comparison = judged(vi_fit(sites(np.zeros((4, 1000, 6)))))
    assert verdict.kind is MEANS_ONLY
    assert comparison.table["sd_ratio"].max() < 1e-3
    assert "khat" not in verdict.checks


def test_everything_wrong_is_not_trusted():
    assert judged(changed(0, shift=1.0))[0].kind is DO_NOT_TRUST


def test_a_missed_mode_is_seen_by_the_reference():
    x = normal(100)
    x[:, ::2] += 6.0  # every chain visits both modes
    verdict, _ = judged(changed(0), chain_fit(sites(x)))
    assert verdict.kind is DO_NOT_TRUST


def test_too_few_draws_ask_for_more():
    verdict, _ = judged(changed(0, shape=(4, 60)))
    assert verdict.kind is CANNOT_TELL
    assert "Monte Carlo error" in verdict.reason
    assert "times as many" in verdict.next_step


def test_skewness_is_seen_though_mean_and_sd_are_right():
    x = np.random.default_rng(0).exponential(size=(4, 1000, 6)) - 1.0
    verdict, comparison = judged(changed(0), chain_fit(sites(x)))
    assert not verdict.trusted
    assert comparison.table["q05_difference"].abs().min() > 0.5


def test_heavy_tails_are_judged_by_quantiles():
    rng = np.random.default_rng(0)
    reference = chain_fit({"scale": np.abs(rng.standard_cauchy(size=(4, 4000))), "mu": rng.normal(size=(4, 4000))})

    def candidate(factor):
        return vi_fit({"scale": factor * np.abs(rng.standard_cauchy(size=(4, 4000))), "mu": rng.normal(size=(4, 4000))})

    verdict, comparison = judged(candidate(1.0), reference)
    table = comparison.table.set_index("quantity")
    assert verdict.kind in (TRUST, CANNOT_TELL)
    assert bool(table.loc["scale", "heavy_tailed"])
    assert np.isnan(table.loc["scale", "sd_ratio"])
    assert not table.loc["mu", "heavy_tailed"]
    assert judged(candidate(2.0), reference)[0].kind is SOME
    assert "scale" in judged(candidate(2.0), reference)[0].reason


def test_an_unsettled_candidate_that_agrees_is_trusted_with_a_remark():
    fit = replace(changed(0), status=Status("budget_spent", "All 500 steps used."))
    verdict, _ = judged(fit)
    assert verdict.kind is TRUST
    assert any("500 steps" in remark for remark in verdict.remarks)


def test_lost_correlation_is_mentioned():
    z = normal(100)
    z[..., 1] = 0.9 * z[..., 0] + np.sqrt(1 - 0.9**2) * z[..., 1]
    verdict, comparison = judged(changed(0), chain_fit(sites(z)))
    assert verdict.kind is TRUST
    pair = comparison.correlations["vi"]
    assert {pair.first, pair.second} == {"mu", "theta[0]"}
    assert pair.reference == pytest.approx(0.9, abs=4 * pair.se)
    assert any("mu and theta[0]" in remark for remark in verdict.remarks)
    assert not judged(changed(0))[0].remarks


# --- The reference is judged first ------------------------------------------------------------------------------------


def sick_references():
    diverged = chain_fit(sites(normal(100)))
    flags = np.zeros((4, 1000), dtype=bool)
    flags[:, :20] = True
    apart = normal(100)
    apart[0] += 1.0
    return {
        "divergences": replace(diverged, stats={**diverged.stats, "diverging": flags}),
        "chains apart": chain_fit(sites(apart)),
        "short": chain_fit(sites(normal(100, shape=(4, 50)))),
        "interrupted": chain_fit(sites(normal(100)), status=Status("interrupted", "Stopped.")),
    }


@pytest.mark.parametrize("name", sick_references())
def test_a_sick_reference_judges_nobody(name):
    reference = sick_references()[name]
    for candidate in (changed(0), changed(0, shift=1.0), reference):
        verdict, comparison = judged(candidate, reference)
        assert verdict.kind is CANNOT_TELL
        assert comparison.reference_verdict.reason in verdict.reason
        assert len(comparison.table) == 6  # the numbers are shown all the same


def test_a_reference_with_nan_gives_no_numbers_and_no_crash():
    x = normal(100)
    x[0, 0, 0] = np.nan
    verdict, comparison = judged(changed(0), chain_fit(sites(x)))
    assert verdict.kind is CANNOT_TELL
    assert comparison.table.empty
    assert "mu 1 of them" in str(comparison)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_candidate_with_nan_spoils_only_itself(bad):
    x = normal(1)
    x[1, 1, 1] = bad
    fits = {"nuts": chain_fit(sites(normal(100))), "bad": vi_fit(sites(x)), "good": changed(2)}
    comparison = compare(fits)
    assert comparison.verdicts["bad"].kind is CANNOT_TELL
    assert comparison.verdicts["good"].kind is TRUST
    json.dumps(comparison.to_dict(), allow_nan=False)


def test_another_chain_is_judged_by_itself_too():
    assert judged(chain_fit(sites(normal(1))))[0].kind is TRUST
    apart = normal(1)
    apart[0, :, 0] += 0.5
    verdict, _ = judged(chain_fit(sites(apart)))
    assert verdict.kind in (CANNOT_TELL, DO_NOT_TRUST)
    assert "R-hat of mu" in verdict.reason


# --- Laws -------------------------------------------------------------------------------------------------------------

ERRORS = ["mean_difference", "q05_difference", "q50_difference", "q95_difference", "wasserstein"]


def test_a_fit_does_not_differ_from_itself():
    fit = chain_fit(sites(normal(0)))
    table = compare({"nuts": fit, "again": fit}).table
    np.testing.assert_allclose(table[ERRORS], 0.0, atol=1e-12)
    np.testing.assert_allclose(table["sd_ratio"], 1.0)


def test_the_order_of_sites_does_not_matter():
    reference, candidate = chain_fit(sites(normal(0))), changed(1, shift=0.1)
    swapped = replace(candidate, draws=dict(reversed(candidate.draws.items())))
    one, other = (compare({"nuts": reference, "vi": c}).table for c in (candidate, swapped))
    np.testing.assert_array_equal(one["quantity"], other["quantity"])
    np.testing.assert_allclose(one[ERRORS], other[ERRORS])


def test_relabelling_within_a_site_moves_the_rows_and_changes_nothing():
    x, y = normal(0), normal(1) + 0.1
    order = [0, 3, 1, 5, 2, 4]
    one = compare({"nuts": chain_fit(sites(x)), "vi": vi_fit(sites(y))})
    other = compare({"nuts": chain_fit(sites(x[..., order])), "vi": vi_fit(sites(y[..., order]))})
    np.testing.assert_allclose(one.table[ERRORS].to_numpy()[order], other.table[ERRORS].to_numpy(), atol=1e-12)
    assert one.verdicts["vi"].kind is other.verdicts["vi"].kind


@pytest.mark.parametrize(("scale", "offset"), [(1e-9, 0.0), (3.0, 1e3), (1e8, -1e9)])
def test_units_do_not_matter(scale, offset):
    x, y = normal(0), normal(1) * 0.9 + 0.1
    one = compare({"nuts": chain_fit(sites(x)), "vi": vi_fit(sites(y))})
    other = compare({"nuts": chain_fit(sites(offset + scale * x)), "vi": vi_fit(sites(offset + scale * y))})
    columns = [*ERRORS, "mean_difference_se", "sd_ratio", "sd_ratio_se", "q95_difference_se", "severity"]
    np.testing.assert_allclose(one.table[columns], other.table[columns], rtol=1e-5, atol=1e-6)
    assert one.verdicts["vi"].reason == other.verdicts["vi"].reason


@pytest.mark.parametrize("shape", [(1, 4000), (2, 2000), (8, 500), (4, 3000)])
def test_chains_and_draws_may_differ(shape):
    assert judged(changed(0, shape=shape))[0].kind is TRUST


def test_scalar_errors_are_what_they_say():
    reference, candidate = normal(0), normal(1) * 1.1 + 0.2
    row = judged(vi_fit(sites(candidate)), chain_fit(sites(reference)))[1].table.iloc[0]
    ours, theirs = candidate[..., 0].ravel(), reference[..., 0].ravel()
    assert row["mean_difference"] == pytest.approx((ours.mean() - theirs.mean()) / theirs.std(ddof=1))
    assert row["sd_ratio"] == pytest.approx(ours.std(ddof=1) / theirs.std(ddof=1))
    difference = (np.quantile(ours, 0.95) - np.quantile(theirs, 0.95)) / theirs.std(ddof=1)
    assert row["q95_difference"] == pytest.approx(difference)
    assert row["wasserstein"] == pytest.approx(
        np.abs(np.sort(ours) - np.sort(theirs)).mean() / theirs.std(ddof=1), rel=1e-6
    )


# --- What is compared -------------------------------------------------------------------------------------------------


def test_label_free_quantities_are_compared_where_the_model_knows_them():
    centres = np.array([-2.0, 2.0])
    model = SimpleNamespace(identify=lambda d: {"loc": np.sort(d["loc"], axis=-1)})
    ours, theirs = (normal(s, num_quantities=2) * 0.3 + centres for s in (0, 1))
    fits = {"nuts": chain_fit({"loc": theirs}), "vi": vi_fit({"loc": ours[..., ::-1]})}
    assert not compare(fits).verdicts["vi"].trusted
    comparison = compare({name: replace(fit, model=model) for name, fit in fits.items()})
    assert comparison.verdicts["vi"].kind is TRUST
    assert any("identify" in remark for remark in comparison.remarks)


def test_constants_and_integers_are_left_out_and_said_so():
    def draws(seed):
        x = normal(seed)
        chol = np.stack([x[..., 0], np.zeros((4, 1000))], axis=-1)
        return {"chol": chol, "k": np.ones((4, 1000), dtype=np.int64)}

    comparison = compare({"nuts": chain_fit(draws(0)), "vi": vi_fit(draws(1))})
    assert list(comparison.table["quantity"]) == ["chol[0]"]
    assert any("constant" in remark and "chol[1]" in remark for remark in comparison.remarks)
    assert any("k" in remark for remark in comparison.remarks)


def test_a_constant_that_differs_is_not_left_out():
    x = normal(0)[..., 0]
    fits = {
        "nuts": chain_fit({"x": x, "c": np.ones_like(x)}),
        "vi": vi_fit({"x": normal(1)[..., 0], "c": 2 * np.ones_like(x)}),
    }
    table = compare(fits).table.set_index("quantity")
    assert table.loc["c", "judgement"] == "bad"


def test_a_thousand_quantities_are_shortened_in_print():
    fits = {
        "nuts": chain_fit(sites(normal(0, num_quantities=60))),
        "vi": changed(1, num_quantities=60),
    }
    text = str(compare(fits))
    assert "(40 more quantities" in text
    assert max(map(len, text.splitlines())) < 170


# --- Wrong requests ---------------------------------------------------------------------------------------------------


def test_an_unknown_reference_lists_the_known():
    with pytest.raises(InputError, match="expected one of auto, svi, got 'nuts'"):
        compare({"auto": changed(0), "svi": changed(1)})


def test_a_reference_alone_is_nothing_to_compare():
    with pytest.raises(InputError, match="at least one fit"):
        compare({"nuts": chain_fit(sites(normal(0)))})


def test_different_sites_are_named():
    fit = changed(0)
    fewer = replace(fit, draws={"mu": fit.draws["mu"]})
    with pytest.raises(InputError, match=r"fits\['vi'\].*lacks 'theta\[0\]'"):
        judged(fewer)
    other = replace(fit, draws={"mu": fit.draws["mu"], "beta": fit.draws["theta"]})
    with pytest.raises(InputError, match=r"lacks 'theta\[0\]'.*has 'beta\[0\]'"):
        judged(other)


def test_different_data_are_refused():
    reference = chain_fit(sites(normal(0)), data={"y": torch.zeros(3), "K": 2, "name": "a"})
    same = replace(changed(1), data={"y": torch.zeros(3, dtype=torch.float32), "K": 2, "name": "a"})
    assert judged(same, reference)[0].kind is TRUST
    with pytest.raises(InputError, match="its data 'y' differ"):
        judged(replace(same, data={"y": torch.ones(3)}), reference)
    with pytest.raises(InputError, match="its data 'y' differ"):
        judged(replace(same, data={"y": torch.zeros(4)}), reference)


# --- Output -----------------------------------------------------------------------------------------------------------


def test_costs_are_added_up_and_compared():
    costs = judged(changed(0))[1].costs
    assert costs.loc["nuts", "seconds"] == pytest.approx(3.5)
    assert costs.loc["vi", "speed_up"] == pytest.approx(3.5 / 0.35)
    assert costs.loc["nuts", "gradients_per_effective_draw"] == pytest.approx(20_000 / costs.loc["nuts", "min_ess"])
    assert np.isnan(costs.loc["vi", "gradients_per_effective_draw"])


def test_a_comparison_prints_tables_costs_and_verdicts_and_becomes_strict_json():
    fits = {"nuts": chain_fit(sites(normal(0))), "auto": gaussian_vi(1), "svi": gaussian_vi(2, sd=0.5)}
    comparison = compare(fits)
    text = str(comparison)
    for words in ("auto against nuts", "k-hat", "speed-up", "Reference nuts: TRUST", "auto: TRUST", "svi: MEANS_ONLY"):
        assert words in text
    document = json.loads(json.dumps(comparison.to_dict(), allow_nan=False))
    assert document["verdicts"]["svi"]["kind"] == "MEANS_ONLY"
    assert len(document["table"]) == 12
    assert document["costs"]["nuts"]["num_gradients"] == 20_000
