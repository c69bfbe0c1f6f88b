"""Gaps of encoders whose gaps are known, and the verdict by rows."""

import linear_latent as ll
import numpy as np
import pytest

from inference import InputError, amortisation, check
from inference.verdict_kinds import VerdictKind

TRUTH = ll.linear(3, 8, size=0.5)
X = ll.rows_of(TRUTH, 50)
FACTOR = np.linalg.cholesky(TRUTH.covariance)
# The best independent normals have the conditional sds.
BEST_SDS = np.diag(np.diag(np.linalg.inv(TRUTH.covariance)) ** -0.5)
SHORT = {"rows": 3, "num_samples": 500}


def kl(gaps, *, shift=0.0, factor=FACTOR):
    rows = X[gaps.rows]
    return TRUTH.kl(TRUTH.mean(rows) + shift, factor, rows)


def within(values, exact, se, floor=0.02):
    assert (np.abs(values - exact) < 4 * np.asarray(se) + floor).all()


def test_exact_encoder_has_no_gaps():
    gaps = amortisation(ll.trained(TRUTH, X), **SHORT)
    assert gaps.family == "full_rank"
    within(gaps.table["log_p"], TRUTH.log_p(X)[gaps.rows], gaps.table["log_p_se"], floor=0.005)
    within(gaps.approximation_gap, 0.0, gaps.table["approximation_gap_se"])
    within(gaps.amortisation_gap, 0.0, gaps.table["amortisation_gap_se"])
    assert gaps.table["mean_error"].max() < 0.2
    assert gaps.comparison.verdicts["encoder"].trusted
    assert not gaps.remarks


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_shifted_encoder_has_its_kl_as_amortisation_gap(dtype):
    gaps = amortisation(ll.trained(TRUTH, X, shift=0.4, dtype=dtype), **SHORT)
    within(gaps.approximation_gap, 0.0, gaps.table["approximation_gap_se"])
    within(gaps.amortisation_gap, kl(gaps, shift=0.4), gaps.table["amortisation_gap_se"])
    sds = np.sqrt(np.diag(TRUTH.covariance))
    np.testing.assert_allclose(gaps.table["mean_error"], (0.4 / sds).max(), atol=0.15)
    assert gaps.comparison.verdicts["encoder"].kind is VerdictKind.DO_NOT_TRUST
    assert gaps.comparison.verdicts["free"].trusted
    assert "amortisation gap" in str(gaps)
    assert str(gaps).count("\n") > 5


def test_best_mean_field_has_an_approximation_gap_only():
    used = ll.trained(TRUTH, X, used_guide=ll.mean_field_guide, factor=BEST_SDS)
    gaps = amortisation(used, **SHORT)
    assert gaps.family == "mean_field"
    exact = kl(gaps, factor=BEST_SDS)
    assert (exact > 0.1).all()
    within(gaps.approximation_gap, exact, gaps.table["approximation_gap_se"])
    within(gaps.amortisation_gap, 0.0, gaps.table["amortisation_gap_se"])
    full = amortisation(used, family="full_rank", **SHORT)
    within(full.approximation_gap, 0.0, full.table["approximation_gap_se"])
    within(full.amortisation_gap, exact, full.table["amortisation_gap_se"])


def test_rows_by_number_and_refusals():
    used = ll.trained(TRUTH, X)
    gaps = amortisation(used, rows=[7], num_samples=200, num_warmup=100, num_chains=2)
    assert gaps.to_frame().index.tolist() == [7]
    with pytest.raises(InputError, match="family: expected"):
        amortisation(used, family="flow")
    with pytest.raises(InputError, match="num_samples: expected"):
        amortisation(used, num_samples=3)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("TRUST", {}),
        ("DO_NOT_TRUST", {"shift": 0.4}),
        ("TRUST_REWEIGHTED", {"factor": 1.4 * FACTOR}),
        ("MEANS_ONLY", {"used_guide": ll.mean_field_guide, "factor": 0.7 * BEST_SDS}),
    ],
)
def test_check_judges_by_rows(kind, settings):
    verdict = check(ll.trained(TRUTH, X, **settings))
    assert verdict.kind == kind
    assert "row" in verdict.reason
    assert verdict.worst[0].label.startswith("row ")
    assert verdict.checks["log_p"] == pytest.approx(TRUTH.log_p(X).mean(), abs=0.1)
    assert any("single rows" in remark for remark in verdict.remarks)
