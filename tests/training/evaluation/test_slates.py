from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import ndcg_score

from training.evaluation.slates import Slates, pairs_won, sink_non_finite


def ragged(seed: int = 0, num_slates: int = 60):
    """Return slates of 1 to 15 shuffled rows; some have one label only, and scores often tie."""
    rng = np.random.default_rng(seed)
    slate = rng.permutation(np.repeat(np.arange(num_slates) * 7, rng.integers(1, 16, num_slates)))
    label = (rng.random(len(slate)) < 0.3).astype(np.float32)
    return Slates(label, slate, slate), rng.permutation(len(slate)).astype(np.float64), rng


def by_slate(slates, score, measured, counts):
    parts = [np.flatnonzero(slates.slate == s) for s in np.unique(slates.slate)]
    return [measured(slates.label[p], score[p]) for p in parts if counts(slates.label[p])]


def has_order(label):
    return len(label) >= 2 and label.sum() > 0


def ndcg(slates, score, k=10):
    return slates.ndcg(slates.order(score), k)


@pytest.mark.parametrize("k", [1, 5, 10])
def test_ndcg_of_each_slate_is_that_of_scikit_learn(k):
    slates, score, _ = ragged()
    expected = by_slate(slates, score, lambda y, s: ndcg_score([y], [s], k=k), has_order)
    # Some slates are not rankable.
    assert len(expected) < len(slates)
    np.testing.assert_allclose(ndcg(slates, score, k), expected)


def test_ties_are_broken_at_random_and_always_the_same_way():
    slates, score, _ = ragged(num_slates=2_000)
    level = np.zeros(len(score))
    np.testing.assert_array_equal(ndcg(slates, level), ndcg(slates, level))
    # The score is random.
    assert ndcg(slates, level).mean() == pytest.approx(ndcg(slates, score).mean(), abs=0.02)
    # The log's order does not break ties.
    by_label = Slates(np.sort(slates.label)[::-1].copy(), slates.slate, slates.slate)
    assert ndcg(by_label, level).mean() == pytest.approx(ndcg(slates, score).mean(), abs=0.02)


def test_what_no_slate_defines_is_empty():
    slates = Slates(np.float32([0, 1, 0]), *2 * [np.int64([3, 1, 2])])
    score = np.float64([0.1, 0.2, 0.3])
    assert len(ndcg(slates, score)) == 0
    assert len(ndcg(slates.take(np.zeros(3, bool)), score[:0])) == 0


def test_a_row_wins_its_correctly_ordered_pairs():
    won = pairs_won(np.array([True, False, True, False]), np.float64([1, 1, 3, 2]))
    assert won.tolist() == [0.5, 1.5, 2.0, 1.0]


def test_scores_that_are_not_finite_go_below_all_others():
    assert sink_non_finite(np.float32([np.nan, -3, np.inf, 5])).tolist() == [-4, -3, -4, 5]
    assert sink_non_finite(np.float32([np.nan, np.nan])).tolist() == [-1, -1]
