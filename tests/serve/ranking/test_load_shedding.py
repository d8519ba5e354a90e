"""Load shedding, tick by tick."""

from __future__ import annotations

import pytest

from serve.ranking.load_shedding import MIN_SHARE, TICK_S, LoadShedder

DEADLINE_S = 0.1


def after(seconds, shedder=None, scored_s=0.005, lag_s=0.002):
    """Return a load shedder after these latencies and iterations for `seconds`."""
    shedder = shedder or LoadShedder(lambda: 0.5)
    for _ in range(round(seconds / TICK_S)):
        if scored_s:
            shedder.scored(scored_s)
        shedder.tick(TICK_S, lag_s, DEADLINE_S)
    return shedder


def test_without_load_all_is_scored_and_nothing_refused():
    shedder = after(5.0)
    assert shedder.level == 0.0
    assert shedder.share(0.0, DEADLINE_S) == 1.0
    assert not shedder.refuses(0.0, DEADLINE_S)


def test_a_hiccup_moves_nothing():
    shedder = after(1.0)
    shedder = after(TICK_S, shedder, scored_s=0.1, lag_s=0.2)
    assert shedder.level == 0.0
    assert after(1.0, shedder).level == 0.0


@pytest.mark.parametrize("pressed", [{"scored_s": 0.08}, {"lag_s": 0.04}])
def test_a_standing_queue_sheds_everything_and_all_recovers_without_it(pressed):
    shedder = after(1.0)
    shares = []
    for _ in range(100):
        after(TICK_S, shedder, **pressed)
        shares.append(shedder.share(0.0, DEADLINE_S))
    assert shares == sorted(shares, reverse=True)
    assert shares[0] == 1.0
    assert any(MIN_SHARE < share < 1.0 for share in shares)
    assert shares[-1] == 0.0
    assert after(4.0, shedder).level == 0.0


def test_what_had_too_little_time_hides_no_load_and_makes_none():
    def pressed(shedder, latency_s):
        for _ in range(10):
            if latency_s:
                shedder.scored(latency_s)
            for _ in range(9):
                shedder.late(0.001, DEADLINE_S)
            shedder.tick(TICK_S, 0.002, DEADLINE_S)
        return shedder.level

    assert pressed(LoadShedder(), 0.08) > 0
    assert pressed(LoadShedder(), None) == 0
    late = LoadShedder()
    for _ in range(10):
        late.late(0.08, DEADLINE_S)
        late.tick(TICK_S, 0.002, DEADLINE_S)
    assert late.level > 0


def test_long_waits_are_not_scored_and_too_much_work_is_refused():
    shedder = after(0.2, after(1.0), lag_s=0.04)
    assert 0 < shedder.level < 2
    assert shedder.share(0.010, DEADLINE_S) > 0
    assert shedder.share(0.016, DEADLINE_S) == 0
    assert not shedder.refuses(0.029, DEADLINE_S), "there is the popular order yet"
    assert after(1.0, shedder, lag_s=0.04).level == 2
    assert not shedder.refuses(0.014, DEADLINE_S)
    assert shedder.refuses(0.016, DEADLINE_S)


def test_as_long_as_there_is_no_load_a_long_turn_is_forgiven():
    shedder = LoadShedder()
    assert shedder.share(0.029, DEADLINE_S) == 1
    assert not shedder.refuses(0.029, DEADLINE_S)
    assert shedder.share(0.031, DEADLINE_S) == 0
    assert shedder.refuses(0.031, DEADLINE_S)


def test_near_the_end_a_part_of_the_requests_is_scored_a_little():
    draws = iter([0.49, 0.51])
    shedder = LoadShedder(lambda: next(draws))
    shedder.level = 1.5
    assert [shedder.share(0.0, DEADLINE_S) for _ in range(2)] == [0.0, MIN_SHARE]


def test_switched_off_it_does_nothing():
    shedder = LoadShedder()
    shedder.enabled = False
    after(5.0, shedder, scored_s=0.2, lag_s=0.2)
    assert shedder.share(9.0, DEADLINE_S) == 1.0
    assert not shedder.refuses(9.0, DEADLINE_S)
