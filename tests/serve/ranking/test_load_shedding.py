"""Load shedding, tick by tick."""

from __future__ import annotations

import math

import pytest

from serve.ranking.load_shedding import MIN_SHARE, MOST_CREDIT, TICK_S, TICKS, LoadShedder

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


def test_without_a_queue_there_is_no_limit():
    shedder = after(5.0)
    assert (shedder.stands, shedder.limit, shedder.level) == (False, math.inf, 0.0)


def test_a_burst_or_a_pause_that_passes_within_two_ticks_changes_nothing():
    assert not after((TICKS - 1) * TICK_S, after(1.0), scored_s=0.2).stands
    assert not after((TICKS - 1) * TICK_S, scored_s=0.2).stands, "also of a new process"


def test_one_quick_ranking_in_an_interval_shows_that_the_queue_does_not_stand():
    shedder = after(1.0)
    for _ in range(20):
        for latency_s in (0.09, 0.005, 0.15):
            shedder.answered(latency_s, is_scored=True)
        shedder.tick(TICK_S, DEADLINE_S)
        shedder = after((TICKS - 1) * TICK_S, shedder, scored_s=0.09)
    assert not shedder.stands


def test_a_queue_that_stands_lowers_the_limit_to_its_floor_and_quick_answers_lift_it():
    shedder, limits = after(1.0), []
    for _ in range(100):
        limits.append(after(TICK_S, shedder, scored_s=0.08).limit)
    assert limits[:TICKS] == [math.inf] * (TICKS - 1) + [limits[TICKS - 1]]
    assert limits[TICKS - 1] < MOST
    assert limits == sorted(limits, reverse=True)
    assert limits[-1] == MIN_SHARE * MOST
    assert shedder.level == 1.0 - MIN_SHARE
    assert not after(2.0, shedder).stands


def test_no_more_requests_in_excess_are_answered_than_are_within_the_limit():
    def num_answered():
        num = 0
        while shedder.credit >= 1:
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


@pytest.mark.parametrize("capacity_rps", [200, 1_500, 20_000])
def test_the_limit_finds_the_speed_of_any_machine_within_two_seconds(capacity_rps):
    """The latency of a full queue is its length over the rate, as Little found."""
    shedder, candidates = LoadShedder(96 * 55), 55
    limits = []
    for _ in range(100):
        waiting = min(shedder.limit / candidates, 200)
        after(TICK_S, shedder, scored_s=min(waiting / capacity_rps, 0.1))
        limits.append(min(shedder.limit / candidates, 96))
    fits = min(0.02 * capacity_rps, 96)
    settled = limits[40:]
    assert 0.7 * fits < min(settled) <= max(settled) < 1.4 * fits


def test_answers_without_scores_count_only_where_none_are_scored():
    def stands(scored_s):
        shedder = LoadShedder(MOST)
        for _ in range(2 * TICKS):
            shedder.answered(0.08, is_scored=False)
            if scored_s:
                shedder.answered(scored_s, is_scored=True)
            shedder.tick(TICK_S, DEADLINE_S)
        return shedder.stands

    assert stands(scored_s=None)
    assert not stands(scored_s=0.005)


def test_a_late_tick_does_not_take_the_whole_limit():
    shedder = after(TICKS * TICK_S, scored_s=0.08)
    shedder.answered(0.08, is_scored=True)
    shedder.tick(1.0, DEADLINE_S)
    assert shedder.limit > MOST / 2


def test_switched_off_it_does_nothing():
    shedder = LoadShedder(MOST)
    shedder.enabled = False
    after(5.0, shedder, scored_s=0.2)
    assert (shedder.stands, shedder.limit, shedder.level) == (False, math.inf, 0.0)
