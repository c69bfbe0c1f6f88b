"""Active units and KLs against closed forms, and missing entries against the conditional normal."""

import linear_latent as ll
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

from inference import InputError, impute, latent_usage

TRUTH = ll.linear(3, 8, size=0.5)
TRUTH.weight[:, 1] = 0.0  # a latent that says nothing
X = ll.rows_of(TRUTH, 120)


def exact_kl(mean, sd):
    return 0.5 * (sd**2 + (mean**2).mean(0) - 1.0) - np.log(sd)


def test_closed_forms():
    found = latent_usage(ll.trained(TRUTH, X))
    sd = np.sqrt(np.diag(TRUTH.covariance))
    np.testing.assert_allclose(found.kl, exact_kl(TRUTH.mean(X), sd), atol=1e-9)
    np.testing.assert_allclose(found.variance, TRUTH.mean(X).var(0), atol=1e-9)
    assert found.active.tolist() == [True, False, True]
    assert found.collapsed.tolist() == [False, True, False]
    assert found.labels == ("z[0]", "z[1]", "z[2]")
    assert "2 of 3 latents are active" in str(found)
    assert "collapsed to the prior" in str(found)
    assert not found.by_draws


def flow_guide(x):
    """The same normals as a transformed distribution, of which no moment is known."""
    with pyro.plate("data", len(x)):
        loc = torch.nan_to_num(x) @ pyro.param("encoder").T + pyro.param("shift")
        flow = dist.transforms.AffineTransform(loc, pyro.param("factor").diagonal(), event_dim=1)
        pyro.sample("z", dist.TransformedDistribution(dist.Normal(torch.zeros_like(loc), 1.0).to_event(1), [flow]))


def test_moments_by_draws_where_the_guide_is_no_normal():
    factor = np.diag(np.sqrt(np.diag(TRUTH.covariance)))
    one = latent_usage(ll.trained(TRUTH, X, used_guide=ll.mean_field_guide, factor=factor))
    other = latent_usage(ll.trained(TRUTH, X, used_guide=flow_guide, factor=factor))
    assert other.by_draws
    assert not one.by_draws
    np.testing.assert_allclose(other.kl, one.kl, atol=0.1)
    np.testing.assert_allclose(other.variance, one.variance, atol=0.1)


def test_collapse_and_idle_latents_are_told_apart():
    nothing = ll.linear(2, 4)
    nothing.weight[:] = 0.0
    x = ll.rows_of(nothing, 30)
    assert "collapsed to the prior in all" in str(latent_usage(ll.trained(nothing, x)))
    idle = latent_usage(ll.trained(nothing, x, shift=1.0))
    assert "cost KL but are the same for all rows" in str(idle)
    assert not idle.collapsed.any()
    np.testing.assert_allclose(idle.kl, 0.5)


# --- Missing entries --------------------------------------------------------------------------------------------------

GAPS = X.copy()
GAPS[:, :3] = np.nan
COV = TRUTH.weight @ TRUTH.weight.T + ll.NOISE**2 * np.eye(8)
REGRESSION = COV[:3, 3:] @ np.linalg.inv(COV[3:, 3:])
MEAN = TRUTH.offset[:3] + (X[:, 3:] - TRUTH.offset[3:]) @ REGRESSION.T
SD = np.sqrt(np.diag(COV[:3, :3] - REGRESSION @ COV[3:, :3]))


@pytest.fixture(scope="module")
def used():
    return ll.trained(TRUTH, X, factor=np.eye(3))


@pytest.mark.parametrize("method", ["weighted", "nuts"])
def test_missing_entries_have_their_conditional_distribution(used, method):
    found = impute(used, {"x": GAPS}, rows=6, method=method, num_samples=1000)
    assert found.missing[:, :3].all()
    assert not found.missing[:, 3:].any()
    np.testing.assert_allclose(found.mean[:, :3], MEAN[found.rows], atol=0.12)
    np.testing.assert_allclose(found.sd[:, :3], np.tile(SD, (6, 1)), rtol=0.1)
    np.testing.assert_array_equal(found.mean[:, 3:], X[found.rows][:, 3:])
    assert (found.sd[:, 3:] == 0).all()
    np.testing.assert_allclose(found.high[:, :3] - found.low[:, :3], np.tile(2 * 1.645 * SD, (6, 1)), rtol=0.15)
    assert (found.expected_high - found.expected_low <= found.high - found.low).all()
    assert "18 missing entries" in str(found)
    assert len(found.to_frame()) == 18


def test_intervals_cover_what_was_left_out(used):
    found = impute(used, {"x": GAPS}, method="weighted")
    inside = (found.low < X) & (found.high > X)
    assert abs(inside[:, :3].mean() - 0.9) < 0.06


def test_encoder_that_takes_gaps_for_zeros_is_shown_to_be_wrong(used):
    """A negative control: the raw encoder of this test does not know of gaps."""
    raw = impute(used, {"x": GAPS}, rows=6)
    assert np.abs(raw.mean[:, :3] - MEAN[raw.rows]).max() > 0.25


def test_nothing_missing_and_refusals(used):
    assert "No entry" in str(impute(used, rows=3))
    with pytest.raises(InputError, match="method: expected one of encoder, weighted, nuts"):
        impute(used, method="guess")
    with pytest.raises(InputError, match="num_samples"):
        impute(used, num_samples=1)
