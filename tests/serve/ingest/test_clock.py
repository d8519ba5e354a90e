from __future__ import annotations

import pytest

from serve.ingest.clock import CONFIRM_S, HARMLESS_S, SETTLE_S, WallClock

HOUR_S = 3_600.0


class Machine:
    """Fake of a machine's two clocks."""

    def __init__(self):
        self.wall_s, self.elapsed_s = 1_800_000_000.0, 500.0

    def clock(self):
        return WallClock(lambda: self.wall_s, lambda: self.elapsed_s)

    def wait(self, seconds):
        self.wall_s += seconds
        self.elapsed_s += seconds

    def run(self, clock, seconds):
        """Let time pass with a reading a minute; return whether each one was settled."""
        settled = []
        for _ in range(int(seconds // 60)):
            self.wait(60)
            clock()
            settled.append(clock.is_settled)
        return settled


@pytest.fixture
def machine():
    return Machine()


def test_time_goes_on_with_the_machine(machine):
    clock = machine.clock()
    machine.wait(12.5)
    assert (clock(), clock.num_steps) == (1_800_000_012_500, 0)


def test_a_clock_that_is_slewed_is_followed(machine):
    clock = machine.clock()
    for _ in range(100):
        machine.wait(1.0)
        machine.wall_s += 0.1
        clock()
    assert (clock(), clock.num_steps) == (pytest.approx(machine.wall_s * 1_000, abs=1), 0)


@pytest.mark.parametrize("step_s", [6 * HOUR_S, -6 * HOUR_S])
def test_a_step_is_followed_once_it_has_lasted_and_is_counted_once(machine, step_s):
    clock = machine.clock()
    machine.wall_s += step_s
    assert clock() == 1_800_000_000_000
    machine.wait(SETTLE_S - 1)
    assert clock() == 1_800_000_000_000 + (SETTLE_S - 1) * 1_000
    machine.wait(1)
    assert (clock(), clock.num_steps) == (machine.wall_s * 1_000, 1)


def test_steps_that_follow_each_other_do_not_put_off_the_clock_for_ever(machine):
    clock = machine.clock()
    for _ in range(10):
        machine.wait(SETTLE_S / 2)
        machine.wall_s += 1.5
        clock()
    assert machine.wall_s * 1_000 - clock() <= 3_000


def test_a_step_that_is_taken_back_was_none(machine):
    clock = machine.clock()
    machine.wall_s += 6 * HOUR_S
    clock()
    machine.wait(SETTLE_S - 1)
    machine.wall_s -= 6 * HOUR_S
    assert (clock(), clock.num_steps) == (machine.wall_s * 1_000, 2)
    machine.wait(SETTLE_S + 1)
    assert clock() == machine.wall_s * 1_000


@pytest.mark.parametrize("step_s", [30 * 24 * HOUR_S, 6 * HOUR_S, -6 * HOUR_S])
def test_a_step_is_settled_an_hour_after_it_was_followed(machine, caplog, step_s):
    clock = machine.clock()
    machine.run(clock, 600)
    assert clock.is_settled
    machine.wall_s += step_s
    assert machine.run(clock, CONFIRM_S + 600) == [False] * 60 + [True] * 10
    (record,) = caplog.records
    assert f"stepped by {step_s:+.0f} s" in record.getMessage()


def test_a_step_that_is_taken_back_within_the_hour_is_never_settled(machine):
    clock = machine.clock()
    machine.run(clock, 600)
    machine.wall_s += 6 * HOUR_S
    ahead = machine.run(clock, 50 * 60)
    machine.wall_s -= 6 * HOUR_S
    assert (ahead + machine.run(clock, CONFIRM_S + 600)) == [False] * 110 + [True] * 10
    assert clock() == machine.wall_s * 1_000


def test_small_steps_again_and_again_leave_a_clock_settled(machine):
    clock = machine.clock()
    for _ in range(100):
        machine.wall_s += HARMLESS_S / 20
        assert all(machine.run(clock, 120))
    assert machine.wall_s * 1_000 - clock() <= HARMLESS_S / 20 * 1_000
