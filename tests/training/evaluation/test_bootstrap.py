from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from training.evaluation.bootstrap import MAX_BLOCKS, Bootstrap, interval
from training.evaluation.slates import Slates, pairs_won


def clustered(seed: int, num_slates: int = 400, per: int = 8):
    """Return slates that differ from one another, so that their rows are not independent."""
    rng = np.random.default_rng(seed)
    mood, luck = np.repeat(rng.normal(size=(2, num_slates)), per, axis=1)
    score = 0.3 * rng.normal(size=num_slates * per) + mood
    label = (rng.random(len(score)) < 1 / (1 + np.exp(1 - score - 3 * luck))).astype(np.float32)
    return Slates(label, np.repeat(np.arange(num_slates), per)), score


def test_draws_of_a_mean_spread_as_the_mean_itself_does():
    num_slates = 2_000
    values = np.random.default_rng(0).exponential(size=num_slates)
    draws = Bootstrap(np.arange(num_slates)).ratio(values, np.ones(num_slates))
    assert draws.mean() == pytest.approx(values.mean(), abs=0.01)
    assert draws.std() == pytest.approx(values.std() / np.sqrt(num_slates), rel=0.15)


def test_draws_of_the_auc_equal_a_bootstrap_that_counts_all_pairs():
    slates, score = clustered(1)
    drawn = Bootstrap(slates.cluster).auc(slates, pairs_won(slates.label > 0, score))
    rng = np.random.default_rng(2)
    rows = np.arange(len(score)).reshape(len(slates), -1)
    anew = []
    for _ in range(200):
        chosen = rows[rng.integers(0, len(slates), len(slates))].ravel()
        anew.append(roc_auc_score(slates.label[chosen], score[chosen]))
    assert drawn.mean() == pytest.approx(roc_auc_score(slates.label, score), abs=0.002)
    assert drawn.std() == pytest.approx(np.std(anew), rel=0.2)
    # Each row is its own slate, as if rows were independent: the interval is too narrow.
    apart = Slates(slates.label, np.arange(len(score)))
    assert Bootstrap(apart.cluster).auc(apart, pairs_won(apart.label > 0, score)).std() < 0.8 * np.std(anew)


def test_slates_of_one_viewer_are_drawn_together():
    mood = np.repeat(np.random.default_rng(6).exponential(size=200), 10)
    draws = Bootstrap(np.arange(2_000) // 10).ratio(mood, np.ones(2_000))
    assert draws.std() == pytest.approx(mood.std() / np.sqrt(200), rel=0.15)


def test_more_slates_than_blocks_spread_the_same():
    num_slates = 3 * MAX_BLOCKS
    values = np.random.default_rng(3).exponential(size=num_slates)
    draws = Bootstrap(np.arange(num_slates)).ratio(values, np.ones(num_slates))
    assert draws.std() == pytest.approx(values.std() / np.sqrt(num_slates), rel=0.15)


def test_the_same_seed_draws_the_same():
    values, ones = np.arange(50.0), np.ones(50)
    first, second = Bootstrap(np.arange(50), seed=4), Bootstrap(np.arange(50), seed=4)
    np.testing.assert_array_equal(first.ratio(values, ones), second.ratio(values, ones))
    np.testing.assert_array_equal(first.ratio(values, ones), first.ratio(values, ones))
    assert (Bootstrap(np.arange(50), seed=5).ratio(values, ones) != first.ratio(values, ones)).any()


def test_an_interval_holds_the_middle_of_the_draws_that_are_defined():
    low, high = interval(np.append(np.arange(1_001.0), np.nan))
    assert (low, high) == (25, 975)
    assert interval(np.array([np.nan, 1.0])) is None
