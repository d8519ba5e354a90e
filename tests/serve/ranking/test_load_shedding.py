"""The ladder, tick by tick."""

from __future__ import annotations

import pytest

from serve.ranking.load_shedding import MIN_SHARE, TICK_S, LoadShedder

DEADLINE_S = 0.1


def after(seconds, ladder=None, scored_s=0.005, turn_s=0.002):
    """A ladder that has seen these latencies and turns for so long."""
    ladder = ladder or LoadShedder(lambda: 0.5)
    for _ in range(round(seconds / TICK_S)):
        if scored_s:
            ladder.scored(scored_s)
        ladder.tick(TICK_S, turn_s, DEADLINE_S)
    return ladder


def test_without_load_all_is_scored_and_nothing_refused():
    ladder = after(5.0)
    assert ladder.level == 0.0
    assert ladder.share(0.0, DEADLINE_S) == 1.0
    assert not ladder.refuses(0.0, DEADLINE_S)


def test_a_hiccup_moves_nothing():
    ladder = after(1.0)
    ladder = after(TICK_S, ladder, scored_s=0.1, turn_s=0.2)
    assert ladder.level == 0.0
    assert after(1.0, ladder).level == 0.0


@pytest.mark.parametrize("pressed", [{"scored_s": 0.08}, {"turn_s": 0.04}])
def test_a_queue_that_stands_takes_it_down_to_the_popular_order_and_without_it_all_comes_back(pressed):
    ladder = after(1.0)
    shares = []
    for _ in range(100):
        after(TICK_S, ladder, **pressed)
        shares.append(ladder.share(0.0, DEADLINE_S))
    assert shares == sorted(shares, reverse=True)
    assert shares[0] == 1.0
    assert any(MIN_SHARE < share < 1.0 for share in shares)
    assert shares[-1] == 0.0
    assert after(4.0, ladder).level == 0.0


def test_what_had_too_little_time_hides_no_load_and_makes_none():
    def pressed(ladder, latency_s):
        for _ in range(10):
            if latency_s:
                ladder.scored(latency_s)
            for _ in range(9):
                ladder.late(0.001, DEADLINE_S)
            ladder.tick(TICK_S, 0.002, DEADLINE_S)
        return ladder.level

    assert pressed(LoadShedder(), 0.08) > 0
    assert pressed(LoadShedder(), None) == 0
    late = LoadShedder()
    for _ in range(10):
        late.late(0.08, DEADLINE_S)
        late.tick(TICK_S, 0.002, DEADLINE_S)
    assert late.level > 0


def test_what_waited_too_long_is_not_scored_and_what_comes_behind_too_much_work_is_refused():
    ladder = after(0.2, after(1.0), turn_s=0.04)
    assert 0 < ladder.level < 2
    assert ladder.share(0.010, DEADLINE_S) > 0
    assert ladder.share(0.016, DEADLINE_S) == 0
    assert not ladder.refuses(0.029, DEADLINE_S), "there is the popular order yet"
    assert after(1.0, ladder, turn_s=0.04).level == 2
    assert not ladder.refuses(0.014, DEADLINE_S)
    assert ladder.refuses(0.016, DEADLINE_S)


def test_as_long_as_there_is_no_load_a_long_turn_is_forgiven():
    ladder = LoadShedder()
    assert ladder.share(0.029, DEADLINE_S) == 1
    assert not ladder.refuses(0.029, DEADLINE_S)
    assert ladder.share(0.031, DEADLINE_S) == 0
    assert ladder.refuses(0.031, DEADLINE_S)


def test_near_the_end_a_part_of_the_requests_is_scored_a_little():
    draws = iter([0.49, 0.51])
    ladder = LoadShedder(lambda: next(draws))
    ladder.level = 1.5
    assert [ladder.share(0.0, DEADLINE_S) for _ in range(2)] == [0.0, MIN_SHARE]


def test_switched_off_it_does_nothing():
    ladder = LoadShedder()
    ladder.enabled = False
    after(5.0, ladder, scored_s=0.2, turn_s=0.2)
    assert ladder.share(9.0, DEADLINE_S) == 1.0
    assert not ladder.refuses(9.0, DEADLINE_S)
