from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.ranking.exploration import NEAREST, draw, log_weight, pick_probability

SCORES = st.lists(st.one_of(st.floats(0.0, 1.0, width=32), st.just(float("nan"))), max_size=40)


def drawn(scores, seed=0):
    score = np.array(scores, np.float32)
    return score, *draw(score, np.random.default_rng(seed))[:2]


@given(SCORES, st.integers(0, 2**32))
def test_every_candidate_has_one_place_and_the_unscored_come_last(scores, seed):
    score, order, propensity = drawn(scores, seed)
    assert sorted(order.tolist()) == list(range(len(score)))
    num_scored = int((~np.isnan(score)).sum())
    assert not np.isnan(score[order[:num_scored]]).any()
    assert order[num_scored:].tolist() == np.flatnonzero(np.isnan(score)).tolist()
    assert (propensity[num_scored:] == 1.0).all()


@given(SCORES, st.integers(0, 2**32))
def test_a_pick_is_as_probable_as_its_odds_among_those_that_are_left(scores, seed):
    score, order, propensity = drawn(scores, seed)
    p = np.clip(score[order].astype(np.float64), NEAREST, 1 - NEAREST)
    odds = p / (1 - p)
    for k in np.flatnonzero(~np.isnan(odds)):
        assert propensity[k] == pytest.approx(odds[k] / np.nansum(odds[k:]), rel=1e-6)
        assert 0.0 < propensity[k] <= 1.0


def test_orders_are_drawn_as_often_as_their_propensity_says():
    score = np.array([0.6, 0.3, 0.05, 0.5], np.float32)
    probability = {
        order: pick_probability(log_weight(score[list(order)])).prod() for order in permutations(range(4))
    }
    assert sum(probability.values()) == pytest.approx(1.0)
    rng, num = np.random.default_rng(1), 10_000
    counts = dict.fromkeys(probability, 0)
    for _ in range(num):
        counts[tuple(draw(score, rng)[0].tolist())] += 1
    expected = np.array([probability[order] * num for order in counts])
    chi2 = ((np.array(list(counts.values())) - expected) ** 2 / expected).sum()
    # The 99.9 % point of χ² with 23 degrees of freedom.
    assert chi2 < 49.7


def test_the_same_seed_draws_the_same_order():
    assert drawn([0.1, 0.2, 0.3] * 9, 7)[1].tolist() == drawn([0.1, 0.2, 0.3] * 9, 7)[1].tolist()


def test_certain_scores_leave_something_to_chance():
    _, order, propensity = drawn([0.0, 1.0, 1.0])
    assert set(order[:2].tolist()) == {1, 2}
    assert np.isfinite(propensity).all()
    assert (propensity > 0).all()


def utilities(*scores):
    return np.array(scores, np.float32)


def weights(*scores):
    return log_weight(utilities(*scores), is_probability=False)


@pytest.mark.parametrize("scores", [(2.0, 3.0), (-3.0, -1.0), (-3.0, 0.5, 2.0)])
def test_the_higher_of_two_utilities_has_the_higher_weight_outside_of_0_to_1_too(scores):
    assert (np.diff(weights(*scores)) > 0.5).all()
    order, propensity, weight = draw(utilities(*scores), np.random.default_rng(0), is_probability=False)
    assert weight.tolist() == weights(*scores)[order].tolist()
    assert propensity[0] == pytest.approx(np.exp(weight[0]) / np.exp(weight).sum())


@given(
    st.lists(st.integers(-50, 50), min_size=1, max_size=20),
    st.integers(-1000, 1000),
    st.sampled_from([0.25, 1.0, 64.0]),
)
def test_a_constant_added_and_another_unit_change_no_weight(scores, constant, unit):
    other = unit * (utilities(*scores) + constant)
    np.testing.assert_allclose(log_weight(other, is_probability=False), weights(*scores), atol=1e-9)


def test_equal_utilities_and_a_single_one_have_the_weight_0():
    assert weights(0.1, 0.1, 0.1).tolist() == [0.0] * 3
    assert weights(-7.0).tolist() == [0.0]
    assert weights().tolist() == []


def test_a_slate_is_standardized_by_itself_and_without_its_unscored_candidates():
    slates = np.array([[1.0, 3.0, np.nan], [-2.0, -2.0, 4.0]])
    found = log_weight(slates, is_probability=False)
    assert found[0].tolist() == [-1.0, 1.0, pytest.approx(np.nan, nan_ok=True)]
    np.testing.assert_allclose(found[1], [-(0.5**0.5), -(0.5**0.5), 2**0.5])


def test_unscored_candidates_follow_a_drawn_order_of_utilities():
    score = utilities(np.nan, -4.0, np.nan, 5.0)
    order, propensity, weight = draw(score, np.random.default_rng(3), is_probability=False)
    assert order[2:].tolist() == [0, 2]
    assert propensity[2:].tolist() == [1.0, 1.0]
    assert weight[2:].tolist() == [-np.inf, -np.inf]
    np.testing.assert_allclose(propensity[:2], pick_probability(weight[:2]))
