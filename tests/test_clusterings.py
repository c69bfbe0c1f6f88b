"""The posterior over clusterings, by brute force on few rows and against scikit-learn on more."""

from itertools import product

import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score, mutual_info_score

from inference import InputError, clusterings
from inference.clusterings import expected_losses, similarity_matrix
from inference.discrete_plots import co_clustering_figure
from tests.handmade_fits import chain_fit


def fit_of(labels, **changes):
    """A fit whose only discrete site has these draws (n, N), in two chains."""
    labels = np.asarray(labels)
    draws = {"assignment": labels.reshape(2, -1, labels.shape[1]), "mu": np.zeros((2, len(labels) // 2))}
    return chain_fit(draws, state={"num_gradients": 1, "backend": "by hand", "discrete": ["assignment"]}, **changes)


def noisy(rng, truth, *, num=200, size=4, wrong=0.15):
    labels = np.where(rng.random((num, len(truth))) < wrong, rng.integers(size, size=(num, len(truth))), truth)
    return np.stack([rng.permutation(size)[row] for row in labels])


def all_clusterings(num):
    """Every way to divide rows, each once, by labels in the order of appearance."""
    seen = {tuple(np.unique(some, return_inverse=True)[1]) for some in product(range(num), repeat=num)}
    return np.array(sorted({tuple(list(dict.fromkeys(some)).index(v) for v in some) for some in seen}))


def test_four_rows_by_hand():
    labels = np.array([[0, 0, 1, 1], [1, 1, 0, 0], [0, 0, 1, 2], [0, 0, 0, 0]])
    found = clusterings(fit_of(labels))
    np.testing.assert_allclose(
        found.similarity, [[1, 1, 0.25, 0.25], [1, 1, 0.25, 0.25], [0.25, 0.25, 1, 0.75], [0.25, 0.25, 0.75, 1]]
    )
    assert found.num_clusters.to_dict() == {1: 0.25, 2: 0.5, 3: 0.25}
    np.testing.assert_array_equal(found.point, [0, 0, 1, 1])
    assert "2 clusters are occupied with probability 0.50" in str(found)


def test_losses_are_scikit_learns():
    rng = np.random.default_rng(0)
    one, other = rng.integers(3, size=40), rng.integers(4, size=40)
    entropies = mutual_info_score(one, one) + mutual_info_score(other, other)
    variation = (entropies - 2 * mutual_info_score(one, other)) / np.log(2)
    together = [np.equal.outer(some, some) for some in (one, other)]
    apart = (together[0] != together[1]).sum() / (40 * 39)
    for loss, expected in (("vi", variation), ("binder", apart)):
        assert np.isclose(expected_losses(one[None], other[None], 4, loss)[0], expected)
        assert np.isclose(expected_losses(one[None], one[None], 4, loss)[0], 0.0, atol=1e-12)


@pytest.mark.parametrize("loss", ["vi", "binder"])
@pytest.mark.parametrize("seed", range(4))
def test_the_point_clustering_is_the_best_of_all(loss, seed):
    rng = np.random.default_rng(seed)
    labels = noisy(rng, np.array([0, 0, 0, 1, 1, 2]), num=60, wrong=0.3)
    found = clusterings(fit_of(labels), loss=loss)
    least = expected_losses(all_clusterings(6), labels, 4, loss).min()
    assert np.isclose(found.expected_loss, least)
    assert np.isclose(expected_losses(found.point[None], labels, 4, loss)[0], found.expected_loss)


@pytest.mark.parametrize("loss", ["vi", "binder"])
def test_labels_of_the_draws_do_not_matter(loss):
    rng = np.random.default_rng(1)
    truth = np.repeat([0, 1, 2, 3], [10, 20, 30, 40])
    labels = noisy(rng, truth)
    moved = np.stack([rng.permutation(4)[row] for row in labels])
    one, other = (clusterings(fit_of(some), loss=loss) for some in (labels, moved))
    assert adjusted_rand_score(truth, one.point) == 1.0
    np.testing.assert_array_equal(np.bincount(one.point), [40, 30, 20, 10])  # numbered by size
    np.testing.assert_array_equal(one.point, other.point)
    np.testing.assert_array_equal(one.similarity, other.similarity)
    assert one.num_clusters.equals(other.num_clusters)


def test_rows_that_cluster_with_none_make_no_clusters():
    """Negative control: pure noise has no structure to find."""
    labels = np.random.default_rng(2).integers(4, size=(400, 30))
    found = clusterings(fit_of(labels))
    off = found.similarity[~np.eye(30, dtype=bool)]
    assert (np.abs(off - 0.25) < 4.5 * np.sqrt(0.25 * 0.75 / 400)).all()
    assert found.point.max() == 0 or (np.bincount(found.point) == 1).all()


def test_of_many_rows_some_are_shown():
    rng = np.random.default_rng(3)
    labels = noisy(rng, np.arange(12_000) % 3, num=20, size=3, wrong=0.05)
    found = clusterings(fit_of(labels))
    assert found.similarity.shape == (5000, 5000)
    assert found.point.shape == (12_000,)
    few = found.rows[:50]
    np.testing.assert_allclose(found.similarity[:50, :50], similarity_matrix(labels[:, few], 3), rtol=1e-6)


def test_refuses():
    with pytest.raises(InputError, match="loss: expected one of vi, binder"):
        clusterings(fit_of([[0, 1], [0, 1]]), loss="square")
    with pytest.raises(InputError, match="no draws of assignments"):
        clusterings(chain_fit({"mu": np.zeros((2, 10))}))
    two = fit_of([[0, 1], [0, 1]])
    two.draws["other"] = two.draws["assignment"]
    two.state["discrete"].append("other")
    with pytest.raises(InputError, match="site: expected one of assignment, other"):
        clusterings(two)
    assert clusterings(two, site="other").site == "other"


def test_the_figure_has_clusters_in_blocks_and_in_each_the_surest_first():
    similarity = np.array([[1.0, 0.0, 0.6, 0.9], [0.0, 1.0, 0.3, 0.1], [0.6, 0.3, 1.0, 0.7], [0.9, 0.1, 0.7, 1.0]])
    axes = co_clustering_figure(similarity, np.array([0, 1, 0, 0])).axes[0]
    order = [3, 0, 2, 1]  # with their own: 2.6, 2.5, 2.3; then the other cluster
    np.testing.assert_array_equal(axes.images[0].get_array(), similarity[np.ix_(order, order)])
