"""The steady rate is what rankings keep up for five minutes, and is known for an hour."""

from __future__ import annotations

from serve.ranking.steady_rate import SteadyRate


def rate_of(*minutes: int, after_s: float = 0.0) -> float:
    """Return the rate after minutes with so many rankings each, and then `after_s` without any."""
    rate, now_s = SteadyRate(100.0), 100.0
    for count in minutes:
        for _ in range(count):
            rate.add()
        now_s += 60.0
        rate.per_s(now_s)
    return rate.per_s(now_s + after_s)


def test_traffic_of_five_minutes_is_steady_at_the_rate_of_its_quietest():
    assert rate_of(60, 120, 120, 120, 120) == 1.0
    assert rate_of(60, 120, 120, 120, 120, 120) == 2.0


def test_a_burst_or_minutes_with_a_gap_are_not():
    assert rate_of(6000) == rate_of(120, 120, 120, 120) == rate_of(9, 9, 0, 9, 9, 9, 9) == 0.0


def test_the_rate_is_known_for_an_hour_after_the_traffic_ended():
    steady = (120,) * 5
    assert rate_of(*steady, after_s=30.0) == rate_of(*steady, after_s=55 * 60.0) == 2.0
    assert rate_of(*steady, after_s=61 * 60.0) == 0.0
