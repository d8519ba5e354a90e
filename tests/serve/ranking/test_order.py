"""Order of each request's candidates by score, worth and standing."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from serve.ranking.order import ENDED, LIVE, UNKNOWN, ordered

NAN = float("nan")


def order(scores, standing, worth=None, request=None):
    num = len(scores)
    found = ordered(
        np.zeros(num, np.int64) if request is None else np.array(request),
        np.array(scores, np.float32),
        np.zeros(num) if worth is None else np.array(worth, np.float64),
        np.array(standing, np.int8),
    )
    return found.tolist()


def test_an_ended_room_comes_after_a_live_one_of_negative_utility():
    assert order([NAN, -3.0], [ENDED, LIVE]) == [1, 0]
    assert order([NAN, NAN, -1e30, NAN, 5.0], [UNKNOWN, ENDED, LIVE, LIVE, LIVE]) == [4, 2, 3, 1, 0]


def test_equal_scores_keep_the_given_order_or_follow_their_worth():
    assert order([0.5, 0.5, 0.7], [LIVE] * 3) == [2, 0, 1]
    assert order([-2.0, -2.0], [LIVE] * 2, worth=[1.0, 2.0]) == [1, 0]


def test_requests_are_ordered_by_themselves():
    assert order([-5.0, 9.0, NAN, -7.0], [LIVE, LIVE, ENDED, LIVE], request=[0, 0, 1, 1]) == [1, 0, 3, 2]


@given(st.lists(st.tuples(st.floats(width=32, allow_nan=True, allow_infinity=False), st.integers(0, 2))))
def test_every_score_comes_before_every_candidate_without_one(candidates):
    scores = [score if standing == LIVE else NAN for score, standing in candidates]
    standing = [standing for _, standing in candidates]
    found = order(scores, standing)
    num_scored = sum(score == score for score in scores)
    ranked = [scores[i] for i in found[:num_scored]]
    assert ranked == sorted(ranked, reverse=True)
    rest = [standing[i] for i in found[num_scored:]]
    assert rest == sorted(rest)
