"""Annealed importance sampling against exact evidence."""

import linear_latent as ll
import numpy as np
import pytest
import torch

from inference import InputError, bracket
from inference.annealing import Annealing, RowGaussians
from inference.latent_rows import latent_rows

TRUTH = ll.linear(3, 8, size=0.5)
X = ll.rows_of(TRUTH, 40)
EXACT = TRUTH.log_p(X)


@pytest.fixture(scope="module")
def shifted():
    return ll.trained(TRUTH, X, shift=0.5)


def test_bounds_hold_the_evidence_between_them(shifted):
    found = bracket(shifted, rows=6, num_temperatures=40, num_chains=16, seed=1)
    exact = EXACT[found.rows]
    assert (found.lower - exact < 4 * found.lower_se).all()
    assert (exact - found.upper < 4 * found.upper_se).all()
    # The guide is 1.9 nats off; annealing must end much nearer.
    assert abs(found.lower.mean() - exact.mean()) < 0.4
    assert abs(found.upper.mean() - exact.mean()) < 0.4
    assert abs(found.gap) < 4 * found.gap_se + 0.3
    assert "back from draws of NUTS" in str(found)
    assert (found.rhat < 1.05).all()


def test_few_temperatures_leave_a_gap(shifted):
    """A negative control: with two steps from a guide that is far off the bounds are far apart."""
    far = ll.trained(TRUTH, X, shift=3.0)
    wide = bracket(far, rows=6, num_temperatures=2, num_chains=4, simulate=True)
    assert wide.gap > 1.0 > abs(bracket(shifted, rows=6, num_temperatures=25, simulate=True).gap)


def test_simulated_rows_have_exact_starts(shifted):
    found = bracket(shifted, rows=6, num_temperatures=20, simulate=True, seed=3)
    assert found.exact
    assert np.isnan(found.rhat).all()
    assert "exact draws of simulated rows" in str(found)
    assert abs(found.gap) < 4 * found.gap_se + 0.5
    again = bracket(shifted, rows=6, num_temperatures=20, simulate=True, seed=3)
    np.testing.assert_array_equal(found.lower, again.lower)


def test_way_back_from_wrong_draws_gives_no_upper_bound(shifted):
    """A negative control: the upper bound is one only from draws of the posterior."""
    with latent_rows(shifted) as rows:
        path = Annealing(rows, rows.part(np.arange(8)), num_temperatures=30, num_chains=8, seed=0)
        exact = torch.as_tensor(TRUTH.mean(X[:8]) + np.zeros((8, 8, 3)))
        good, se = path.upper(exact)
        bad, _ = path.upper(exact + 10.0)
    assert abs((good - EXACT[:8]).mean()) < 1.0
    assert (bad - EXACT[:8]).mean() < -1.0
    assert (se < 1.0).all()


def test_gaussians_of_rows_have_the_moments_of_their_draws():
    points = torch.randn(4000, 3, 2, dtype=torch.float64) @ torch.tensor([[1.0, 0.5], [0.0, 2.0]], dtype=torch.float64)
    q = RowGaussians.of(points)
    white = q.white(points)
    torch.testing.assert_close(q.points(white), points)
    torch.testing.assert_close(white.mean(0), torch.zeros(3, 2, dtype=torch.float64), atol=1e-9, rtol=0)
    torch.testing.assert_close(white.var(0), torch.ones(3, 2, dtype=torch.float64), atol=1e-2, rtol=0)
    torch.testing.assert_close(q.log_det, torch.linalg.slogdet(q.factor)[1])


def test_refusals(shifted):
    with pytest.raises(InputError, match="rows: expected"):
        bracket(shifted, rows=41)
    with pytest.raises(InputError, match="num_chains: expected"):
        bracket(shifted, num_chains=1)
    with pytest.raises(InputError, match="num_temperatures: expected"):
        bracket(shifted, num_temperatures=0)
