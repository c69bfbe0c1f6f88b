"""Copies of points under other labels."""

import numpy as np
import torch

from inference.label_copies import _unconstrained


class Roots:
    """A density of one site, a 2 x 2 covariance, whose unconstrained values are its Cholesky factor."""

    dim = 4

    def unconstrain(self, values):
        roots = torch.linalg.cholesky(torch.as_tensor(values["covariance"]))
        return roots.reshape(-1, 4).numpy(), np.zeros(len(roots))


def test_a_singular_covariance_does_not_keep_others_from_their_labels():
    covariance = np.array([[[4.0, 0.0], [0.0, 9.0]], [[1.0, 2.0], [2.0, 1.0]], [[1.0, 0.0], [0.0, 1.0]]])
    points = _unconstrained(Roots(), {"covariance": covariance})
    np.testing.assert_array_equal(points[0], [2.0, 0.0, 0.0, 3.0])
    assert np.isnan(points[1]).all()
    np.testing.assert_array_equal(points[2], [1.0, 0.0, 0.0, 1.0])
