"""Load shedding, tick by tick."""

from __future__ import annotations

import pytest

from serve.ranking.load_shedding import MIN_SHARE, MOST_CREDIT, TICK_S, LoadShedder

DEADLINE_S = 0.1
MOST = 1_000


def after(seconds, shedder=None, scored_s=0.005):
    """Return a load shedder after this latency for `seconds`."""
    shedder = shedder or LoadShedder(MOST)
    for _ in range(round(seconds / TICK_S)):
        if scored_s:
            shedder.answered(scored_s, is_scored=True)
        shedder.tick(TICK_S, DEADLINE_S)
    return shedder


def test_without_load_the_limit_is_whole():
    shedder = after(5.0)
    assert (shedder.limit, shedder.level) == (MOST, 0.0)
    assert not shedder.delays(0.014, DEADLINE_S)


def test_a_hiccup_moves_nothing():
    assert after(2 * TICK_S, after(1.0), scored_s=0.1).level == 0.0


def test_slow_answers_lower_the_limit_to_its_floor_and_quick_ones_restore_it():
    shedder, limits = after(1.0), []
    for _ in range(100):
        limits.append(after(TICK_S, shedder, scored_s=0.08).limit)
    assert limits == sorted(limits, reverse=True)
    assert limits[-1] == MIN_SHARE * MOST
    assert shedder.level == 1.0 - MIN_SHARE
    assert after(2.0, shedder).limit == MOST


def test_a_request_behind_much_work_is_in_excess_and_behind_more_refused():
    shedder = after(4 * TICK_S, scored_s=0.06)
    assert shedder.limit < MOST
    assert shedder.delays(0.016, DEADLINE_S)
    assert not shedder.refuses(0.016, DEADLINE_S, on_credit=True), "there is the popular order yet"
    assert shedder.refuses(0.026, DEADLINE_S, on_credit=True)


def test_while_the_limit_is_whole_long_iterations_are_forgiven():
    shedder = LoadShedder(MOST)
    assert not shedder.delays(0.019, DEADLINE_S)
    assert shedder.delays(0.021, DEADLINE_S)
    assert not shedder.refuses(0.026, DEADLINE_S, on_credit=False)
    assert shedder.refuses(0.028, DEADLINE_S, on_credit=False)


def test_no_more_requests_in_excess_are_answered_than_are_scored():
    def num_answered():
        num = 0
        while not shedder.refuses(0.0, DEADLINE_S, on_credit=True):
            shedder.exceeded()
            num += 1
        return num

    shedder = LoadShedder(MOST)
    assert num_answered() == MOST_CREDIT
    # Answers that were not asked for beforehand leave no debt.
    shedder.exceeded()
    for _ in range(7):
        shedder.answered(0.005, is_scored=True)
    assert num_answered() == 7
    assert not shedder.refuses(0.0, DEADLINE_S, on_credit=False)


@pytest.mark.parametrize("capacity_rps", [200, 1_500, 20_000])
def test_the_limit_finds_the_speed_of_any_machine_within_two_seconds(capacity_rps):
    """The latency of a full queue is its length over the rate, as Little found."""
    shedder, candidates = LoadShedder(96 * 55), 55
    limits = []
    for _ in range(100):
        after(TICK_S, shedder, scored_s=min(shedder.limit / candidates / capacity_rps, 0.1))
        limits.append(shedder.limit / candidates)
    fits = min(0.03 * capacity_rps, 96)
    settled = limits[40:]
    assert 0.7 * fits < min(settled) <= max(settled) < 1.3 * fits


def test_answers_without_scores_are_no_latency_but_earn_credit():
    shedder = LoadShedder(MOST)
    for _ in range(MOST_CREDIT):
        shedder.exceeded()
    for _ in range(10):
        shedder.answered(0.08, is_scored=False)
        shedder.tick(TICK_S, DEADLINE_S)
    assert shedder.limit == MOST
    assert not shedder.refuses(0.0, DEADLINE_S, on_credit=True)


def test_what_had_too_little_time_hides_no_load_and_makes_none():
    def limit(latency_s, late_s):
        shedder = LoadShedder(MOST)
        for _ in range(10):
            if latency_s:
                shedder.answered(latency_s, is_scored=True)
            for _ in range(9):
                shedder.late(late_s, DEADLINE_S)
            shedder.tick(TICK_S, DEADLINE_S)
        return shedder.limit

    assert limit(0.08, 0.001) < MOST
    assert limit(None, 0.001) == MOST
    assert limit(None, 0.08) < MOST


def test_switched_off_it_does_nothing():
    shedder = LoadShedder(MOST)
    shedder.enabled = False
    after(5.0, shedder, scored_s=0.2)
    assert (shedder.limit, shedder.level) == (float("inf"), 0.0)
    assert not shedder.delays(9.0, DEADLINE_S)
    assert not shedder.refuses(9.0, DEADLINE_S, on_credit=True)
