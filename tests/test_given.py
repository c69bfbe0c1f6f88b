"""Draws of another program as a fit, and distances of joint distributions."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

from inference import NUTS, check, compare, fit, from_draws, load_fit
from inference.diagnostics import sliced_wasserstein
from inference.errors import InputError
from inference.verdict_kinds import VerdictKind
from tests.handmade_fits import chain_fit, gaussian_vi, normal, sites, vi_fit


def autoregressive(seed, *, correlation=0.9, shape=(4, 2000, 3)):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=shape)
    for t in range(1, shape[1]):
        x[:, t] = correlation * x[:, t - 1] + np.sqrt(1 - correlation**2) * x[:, t]
    return x


# --- from_draws -----------------------------------------------------------------------------------------------------


def test_draws_from_elsewhere_are_a_reference():
    reference = from_draws(sites(normal(1)), source="Stan", independent=True)
    right, wrong = gaussian_vi(2), gaussian_vi(3, sd=0.5)
    found = compare({"stan": reference, "right": right, "wrong": wrong}, reference="stan")
    assert found.reference_verdict.kind is VerdictKind.TRUST
    assert "Stan" in found.reference_verdict.reason
    assert found.verdicts["right"].kind is VerdictKind.TRUST
    assert found.verdicts["wrong"].kind is not VerdictKind.TRUST
    assert np.isnan(found.costs.loc["right", "speed_up"])
    text = str(found)
    assert "Stan" in text
    assert "Joint distribution" in text


def test_only_what_a_given_reference_has_is_compared():
    draws = sites(normal(1))
    found = compare(
        {"given": from_draws({"mu": draws["mu"]}, independent=True), "fit": vi_fit(sites(normal(2)))}, reference="given"
    )
    assert list(found.table["quantity"]) == ["mu"]
    assert any("'theta'" in remark for remark in found.remarks)


def test_a_given_reference_with_sites_that_a_fit_lacks_is_refused():
    reference = from_draws(sites(normal(1)) | {"more": normal(2)[..., 0]})
    with pytest.raises(InputError, match="lacks 'more'"):
        compare({"given": reference, "fit": chain_fit(sites(normal(3)))}, reference="given")


def test_given_chains_must_agree():
    apart = normal(1)
    apart[0] += 3.0
    assert check(from_draws(sites(apart))).kind is VerdictKind.CANNOT_TELL
    assert check(from_draws(sites(normal(1)))).kind is VerdictKind.TRUST


def test_the_error_of_autocorrelated_draws_is_larger():
    x = autoregressive(1)
    given, independent = (from_draws(sites(x), independent=value) for value in (False, True))
    candidate = gaussian_vi(2, num_quantities=3)
    errors = [
        compare({"given": reference, "vi": candidate}, reference="given").table["mean_difference_se"]
        for reference in (given, independent)
    ]
    assert np.all(errors[0] > 2 * errors[1])


@pytest.mark.parametrize(
    ("draws", "message"),
    [
        ({}, "none given"),
        ({"x": np.zeros(10)}, r"draws\['x'\]: expected shape"),
        ({"x": np.zeros((4, 100)), "y": np.zeros((4, 50))}, r"draws\['y'\]"),
        ({"x": np.zeros((4, 0))}, r"draws\['x'\]"),
        ({"x": np.array([["a"]])}, "expected numbers"),
    ],
)
def test_bad_draws_are_refused(draws, message):
    with pytest.raises(InputError, match=message):
        from_draws(draws)


def test_draws_that_are_not_finite_are_no_reference():
    bad = normal(1)
    bad[0, 0, 0] = np.nan
    reference = from_draws(sites(bad))
    found = compare({"given": reference, "fit": chain_fit(sites(normal(2)))}, reference="given")
    assert found.verdicts["fit"].kind is VerdictKind.CANNOT_TELL


def test_it_keeps_and_speaks_to_arviz(tmp_path):
    given = from_draws(sites(normal(1)), source="Stan")
    tree = given.to_datatree()
    assert tree["posterior"]["theta"].shape == (4, 1000, 5)
    again = load_fit(given.save(tmp_path / "given.pt"))
    np.testing.assert_array_equal(again.draws["mu"], given.draws["mu"])
    assert check(again).kind is VerdictKind.TRUST


def test_names_come_from_a_fit_of_the_same_model():
    def model(y):
        with pyro.plate("school", len(y)):
            theta = pyro.sample("theta", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(theta, 1.0), obs=y)

    ours = fit(model, {"y": torch.tensor([0.5, -0.5])}, NUTS(num_warmup=200, num_samples=300), seed=0)
    theirs = from_draws({"theta": normal(1)[..., :2] * 0.5**0.5 + np.array([0.25, -0.25])}, like=ours)
    assert theirs.to_datatree()["posterior"]["theta"].dims == ("chain", "draw", "school")
    assert compare({"a": ours, "given": theirs}, reference="given").verdicts["a"].kind is not VerdictKind.DO_NOT_TRUST


# --- Joint distances ------------------------------------------------------------------------------------------------


def distance(x, y):
    n, m = x.shape[0] * x.shape[1], y.shape[0] * y.shape[1]
    return sliced_wasserstein(x, y, num_effective=n, num_effective_reference=m)


def test_exact_draws_are_as_far_as_expected():
    found = [distance(normal(2 * i), normal(2 * i + 1)) for i in range(20)]
    ratio = np.array([joint.distance / joint.expected for joint in found])
    assert abs(ratio.mean() - 1) < 4 * ratio.std() / np.sqrt(20)
    assert ratio.max() < 2


def test_a_correlation_is_seen_that_marginals_do_not_show():
    correlated = normal(1, num_quantities=2)
    correlated[..., 1] = 0.8 * correlated[..., 0] + 0.6 * correlated[..., 1]
    found = distance(normal(2, num_quantities=2), correlated)
    assert found.distance > 5 * found.expected


def test_units_and_directions_do_not_matter():
    x, y = normal(1, num_quantities=3), normal(2, num_quantities=3)
    base = distance(x, y)
    scaled = distance(1e6 * x - 5, 1e6 * y - 5)
    assert scaled.distance == pytest.approx(base.distance, rel=1e-6)
    mix = np.array([[1.0, 0.3, 0.0], [0.0, 2.0, 0.5], [0.1, 0.0, 1.0]])
    assert distance(x @ mix, y @ mix).distance == pytest.approx(base.distance, rel=0.5)


def test_a_simplex_and_a_constant_have_fewer_directions():
    p = np.random.default_rng(0).dirichlet([2.0, 3.0, 4.0], size=(4, 1000))
    q = np.random.default_rng(1).dirichlet([2.0, 3.0, 4.0], size=(4, 1000))
    x, y = (np.concatenate([z, np.ones((4, 1000, 1))], -1) for z in (p, q))
    found = distance(x, y)
    assert np.isfinite(found.distance)
    assert found.distance < 2.5 * found.expected
