"""Admission under load."""

from __future__ import annotations

import asyncio
import socket
import time
from contextlib import suppress
from functools import partial

import pytest

from serve.ranking.admission import SCORES_DUE, Admission
from serve.ranking.load_shedding import MOST_CREDIT, TICK_S, TICKS
from tests.support import virtual_time

HOST = socket.gethostname()


def configure(admission, deadline_ms=100, most=1_000):
    admission.configure(enabled=True, deadline_ms=deadline_ms, most=most)


def let_stand(admission):
    """Let the admission see a queue that stands; return its limit."""
    for _ in range(TICKS):
        admission.load_shedder.answered(0.0406, is_scored=True)
        admission.load_shedder.tick(TICK_S, 0.1)
    assert admission.load_shedder.stands
    return admission.load_shedder.limit


def scenario(body, stands=True):
    """Run `body(admission)` on a loop; a queue stands, with room for 100 candidates."""

    async def run():
        admission = Admission()
        configure(admission, most=111)
        if stands:
            assert 99 < let_stand(admission) < 101
        return await body(admission)

    return virtual_time.run(run())


def test_a_deadline_counts_from_when_the_request_came():
    async def body(admission):
        configure(admission, deadline_ms=200)
        return [admission.deadline(50.0, ms) for ms in (None, 50)]

    assert scenario(body) == pytest.approx([50.0 + SCORES_DUE * 0.2, 50.0 + SCORES_DUE * 0.05])


def test_a_stamp_of_this_host_tells_when_a_request_came():
    async def body(admission):
        loop = asyncio.get_running_loop()
        stamps = [f"{HOST} {round((time.time() - age_s) * 1e6)}".encode() for age_s in (0.03, 0.0, -60.0)]
        return [loop.time() - admission.arrived_s(stamp) for stamp in stamps]

    assert scenario(body) == pytest.approx([0.03, 0.0, 0.0], abs=0.005)


@pytest.mark.parametrize(
    "stamp", ["", "elsewhere 5", f"{HOST} ", f"{HOST} -5", f"{HOST} soon", HOST, f"{HOST} {'9' * 400}"]
)
def test_without_a_stamp_of_this_host_a_request_came_as_early_as_it_can_have(stamp):
    async def body(admission):
        loop = asyncio.get_running_loop()
        admission.arrived_s()
        virtual_time.hold_up(0.02)
        return loop.time() - admission.arrived_s(stamp.encode())

    assert scenario(body) == 0.02


def test_a_burst_is_neither_refused_nor_limited():
    async def body(admission):
        came_s = asyncio.get_running_loop().time() - 5.0
        rooms = [admission.room("", 60) for _ in range(2 * MOST_CREDIT)]
        return [(admission.refuses("", came_s), room.__enter__()) for room in rooms]

    assert set(scenario(body, stands=False)) == {(False, True)}


def test_what_exceeds_the_room_is_not_scored_and_room_comes_back():
    async def body(admission):
        room = admission.room
        with room("", 60) as first, room("", 60) as second, room("", 39) as third:
            pass
        with room("", 60) as again:
            return first, second, third, again

    assert scenario(body) == (True, False, True, True)


def test_a_single_request_is_scored_however_large_it_is():
    async def body(admission):
        with admission.room("", 1_000) as alone:
            return alone

    assert scenario(body)


def test_callers_have_equal_parts_and_one_cannot_take_the_others():
    async def body(admission):
        now_s = asyncio.get_running_loop().time()
        assert not admission.refuses("greedy", now_s)
        assert not admission.refuses("modest", now_s)
        greedy, modest = partial(admission.room, "greedy"), partial(admission.room, "modest")
        with greedy(60) as one, greedy(39) as two, greedy(10) as three, modest(25) as a, modest(24) as b:
            return one, two, three, a, b

    assert scenario(body) == (True, True, False, True, True), "what the others leave is free"


def test_the_older_part_of_a_queue_that_stands_is_refused():
    async def body(admission):
        now_s = asyncio.get_running_loop().time()
        return [admission.refuses("", now_s - age_s) for age_s in (0.01, 0.04)]

    assert scenario(body) == [False, True]
    assert scenario(body, stands=False) == [False, False]


def test_without_room_a_request_is_refused_once_as_many_were_answered_as_scored():
    async def body(admission):
        loop, answered = asyncio.get_running_loop(), 0
        with admission.room("", 60):
            while not admission.refuses("", loop.time()):
                # There is room for 40 yet.
                with admission.room("", 50) as has_room:
                    assert not has_room
                answered += 1
                await asyncio.sleep(0)
        return answered, admission.refuses("", loop.time())

    assert scenario(body) == (MOST_CREDIT, False)


@pytest.mark.parametrize(
    ("scored_s", "late_s", "stands"), [(0.08, 0.001, True), (None, 0.001, False), (None, 0.08, True)]
)
def test_what_had_too_little_time_hides_no_queue_and_makes_none(scored_s, late_s, stands):
    async def body(admission):
        loop, shedder = asyncio.get_running_loop(), admission.load_shedder
        for _ in range(10):
            if scored_s:
                admission.answered(loop.time() - scored_s, is_scored=True, is_late=False)
            for _ in range(9):
                admission.answered(loop.time() - late_s, is_scored=False, is_late=True)
            shedder.tick(TICK_S, 0.1)
        return shedder.stands

    assert scenario(body, stands=False) == stands


def test_a_deadline_leaves_an_iteration_and_a_single_long_one_is_none():
    async def body(admission):

        async def iteration(seconds):
            admission.arrived_s()
            virtual_time.hold_up(seconds)
            await asyncio.sleep(0)

        found_s = []
        for lengths_s in ((0.001, 0.001, 0.05), (0.02, 0.02, 0.02)):
            for seconds in lengths_s:
                await iteration(seconds)
            admission.arrived_s()
            found_s.append(admission.deadline(0.0, None))
            await asyncio.sleep(0.01)
        return found_s

    paused_s, busy_s = scenario(body)
    assert SCORES_DUE * 0.1 - 0.02 < paused_s <= SCORES_DUE * 0.1 - 0.001
    assert busy_s <= SCORES_DUE * 0.1 - 0.02


def test_slow_answers_lower_the_limit():
    async def body(admission):
        running, loop = asyncio.create_task(admission.run()), asyncio.get_running_loop()
        async with asyncio.timeout(5):
            while admission.load_shedder.limit > 50:
                admission.answered(loop.time() - 5.0, is_scored=True, is_late=False)
                await asyncio.sleep(TICK_S / 10)
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running

    scenario(body, stands=False)
