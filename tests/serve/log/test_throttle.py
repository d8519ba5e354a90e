"""Background work sleeps between its steps while it is wanted, and not afterwards."""

from __future__ import annotations

import pytest

from serve.log.throttle import CpuThrottle


class Clock:
    """Fake CPU time that tests advance, and record of all sleeps."""

    def __init__(self, monkeypatch):
        self.worked_s, self.rests = 0.0, []
        monkeypatch.setattr("serve.log.throttle.time.thread_time", lambda: self.worked_s)
        monkeypatch.setattr("serve.log.throttle.time.sleep", self.rests.append)


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


def test_it_rests_three_times_as_long_as_it_worked_for_a_quarter_of_a_core(clock):
    throttle = CpuThrottle(lambda: 0.25, lambda: True)
    for worked_s in (0.1, 0.4):
        clock.worked_s += worked_s
        assert throttle()
    assert clock.rests == pytest.approx([0.3, 1.2])


def test_what_is_no_longer_wanted_does_not_rest(clock):
    throttle = CpuThrottle(lambda: 0.25, lambda: False)
    clock.worked_s += 0.1
    assert not throttle()
    assert clock.rests == []


def test_a_whole_core_needs_no_rest(clock):
    throttle = CpuThrottle(lambda: 1.0, lambda: True)
    clock.worked_s += 0.1
    assert throttle()
    assert clock.rests == [0.0]


def test_a_share_that_grows_meanwhile_shortens_the_rests(clock):
    shares = iter((0.25, 0.5, 1.0))
    throttle = CpuThrottle(lambda: next(shares), lambda: True)
    for _ in range(3):
        clock.worked_s += 0.1
        throttle()
    assert clock.rests == pytest.approx([0.3, 0.1, 0.0])
