"""Assignment problems of relabelling: by hand, by brute force, and under permutations of what goes in."""

import time
from itertools import permutations

import numpy as np
import pytest

from inference.alignment import (
    Normals,
    align_classes,
    align_features,
    best_orders,
    clarity,
    class_costs,
    margins,
    normals_of,
)


def total(costs, order):
    return sum(costs[old, new] for new, old in enumerate(order))


def shuffled(classes, rng):
    return np.stack([p[:, rng.permutation(p.shape[1])] for p in classes])


def noisy_classes(rng, *, num=200, rows=30, size=3, sharp=4.0):
    truth = rng.integers(size, size=rows)
    logits = sharp * np.eye(size)[truth] + rng.standard_normal((num, rows, size))
    p = np.exp(logits)
    return p / p.sum(axis=-1, keepdims=True)


@pytest.mark.parametrize("size", [2, 3, 4])
def test_the_best_order_is_that_of_brute_force(size):
    rng = np.random.default_rng(0)
    costs = rng.standard_normal((200, size, size))
    found = best_orders(costs)
    for cost, order in zip(costs, found, strict=True):
        assert sorted(order) == list(range(size))
        assert np.isclose(total(cost, order), min(total(cost, some) for some in permutations(range(size))))


def test_margins_are_the_costs_of_swaps():
    rng = np.random.default_rng(1)
    costs = rng.standard_normal((20, 4, 4))
    orders = best_orders(costs)
    for cost, order, found in zip(costs, orders, margins(costs, orders), strict=True):
        expected = []
        for i in range(4):
            for j in range(i + 1, 4):
                other = order.copy()
                other[[i, j]] = other[[j, i]]
                expected.append(total(cost, other) - total(cost, order))
        np.testing.assert_allclose(found, expected, atol=1e-12)


def test_three_draws_by_hand():
    """Rows are apart; the second draw has its labels swapped."""
    one = np.array([[0.9, 0.1], [0.2, 0.8]])
    classes = np.stack([one, one[:, ::-1], one])
    for soft in (True, False):
        given = classes if soft else np.round(classes)
        orders, _ = align_classes(given, np.tile([0, 1], (3, 1)), soft=soft)
        np.testing.assert_array_equal(orders, [[0, 1], [1, 0], [0, 1]])
    _, reference = align_classes(classes, np.tile([0, 1], (3, 1)), soft=True)
    np.testing.assert_allclose(np.exp(reference), one)
    # The cost of a permutation is the Kullback-Leibler divergence, up to the entropy of the draw.
    costs = class_costs(classes, reference)
    swapped = (one * (np.log(one) - reference[:, ::-1])).sum()
    assert np.isclose(costs[0, 0, 1] + costs[0, 1, 0] - costs[0, 0, 0] - costs[0, 1, 1], swapped)


@pytest.mark.parametrize("soft", [True, False])
def test_labels_of_the_draws_do_not_matter(soft):
    rng = np.random.default_rng(2)
    classes = noisy_classes(rng)
    classes = classes if soft else np.eye(3)[classes.argmax(axis=-1)]

    def aligned(given):
        orders, _ = align_classes(given, start(given), soft=soft)
        return np.take_along_axis(given, orders[:, None, :], axis=2)

    def start(given):  # nearest to the first draw
        return best_orders(-np.einsum("srk,rj->skj", given, given[0]))

    expected = aligned(classes)
    moved = np.concatenate([classes[:1], shuffled(classes[1:], rng)])
    np.testing.assert_array_equal(aligned(moved), expected)
    assert (expected.mean(axis=0).max(axis=-1) > 0.6).all()


def test_normals_find_back_labels_and_say_how_clear_they_are():
    rng = np.random.default_rng(3)
    identity = np.tile(np.arange(3), (500, 1))

    def clear(distance):
        features = rng.standard_normal((500, 3, 2)) + distance * np.arange(3)[:, None]
        truth = np.stack([rng.permutation(3) for _ in range(500)])
        mixed = np.take_along_axis(features, truth[:, :, None], axis=1)
        first = best_orders(((mixed[:, :, None] - features[0]) ** 2).sum(axis=-1))
        orders = align_features(mixed, first)
        right = (np.take_along_axis(truth, orders, axis=1) == identity).all(axis=1).mean()
        return clarity(normals_of(mixed, orders).costs(mixed), orders), right

    far, right = clear(8.0)
    assert right == 1.0
    assert far.agreement > 0.99
    near, right = clear(1.5)
    assert near.agreement < 0.8
    assert 0.02 < near.misclassified < 0.3
    assert abs(1.0 - right - near.misclassified) < 0.1
    none, _ = clear(0.0)
    assert none.agreement < near.agreement
    assert none.misclassified > near.misclassified


def test_costs_are_minus_log_densities():
    rng = np.random.default_rng(4)
    normals = Normals(rng.standard_normal((3, 2)), np.exp(rng.standard_normal((3, 2))))
    x = rng.standard_normal((5, 3, 2))
    z = (x[:, :, None] - normals.loc) / normals.scale
    np.testing.assert_allclose(normals.costs(x), (0.5 * z**2 + np.log(normals.scale)).sum(axis=-1), atol=1e-12)


def test_five_components_and_4000_draws_take_about_a_second():
    rng = np.random.default_rng(5)
    classes = shuffled(noisy_classes(rng, num=4000, rows=250, size=5), rng).astype(np.float32)
    begin = time.process_time()
    start = best_orders(-np.einsum("srk,rj->skj", classes, classes[0]))
    orders, _ = align_classes(classes, start, soft=True)
    assert time.process_time() - begin < 4.0  # a second and a half where nothing else runs
    together = np.take_along_axis(classes, orders[:, None], axis=2).mean(axis=0)
    assert (together.max(axis=-1) > 0.6).all()
