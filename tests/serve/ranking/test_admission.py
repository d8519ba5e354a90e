"""Admission under load, on a real event loop."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from functools import partial

from serve.ranking.admission import SCORES_DUE, Admission
from serve.ranking.load_shedding import MOST_CREDIT


def configure(admission, deadline_ms=100, most=1_000, kill_switch=False):
    admission.configure(enabled=True, deadline_ms=deadline_ms, most=most, kill_switch=kill_switch)


def test_a_deadline_counts_from_when_the_request_came():
    async def scenario():
        admission, loop = Admission(), asyncio.get_running_loop()
        configure(admission, deadline_ms=200)
        waited_s = admission.waited_s()
        now_s = loop.time()
        return [
            admission.deadline(waited_s + more_s, ms) - now_s
            for more_s, ms in ((0, None), (0.03, None), (0, 50))
        ]

    own, waited, named = asyncio.run(scenario())
    assert SCORES_DUE * 0.2 <= own < 0.2
    assert 0.001 < own - waited < 0.031
    assert SCORES_DUE * 0.05 <= named < 0.05


def scenario(body):
    """Run `body(admission)` on a loop, with room for 100 candidates and nothing refused."""

    async def run():
        admission = Admission()
        configure(admission, most=100)
        return await body(admission)

    return asyncio.run(run())


def test_what_exceeds_the_room_is_not_scored_and_room_comes_back():
    async def body(admission):
        scoring = admission.scoring
        with scoring("", 60) as first, scoring("", 60) as second, scoring("", 40) as third:
            pass
        with admission.scoring("", 60) as again:
            return first, second, third, again

    assert scenario(body) == (True, False, True, True)


def test_a_single_request_is_scored_however_large_it_is():
    async def body(admission):
        with admission.scoring("", 1_000) as alone:
            return alone

    assert scenario(body)


def test_callers_have_equal_parts_and_one_cannot_take_the_others():
    async def body(admission):
        assert not admission.refuses("greedy")
        assert not admission.refuses("modest")
        scoring = admission.scoring
        greedy, modest = partial(scoring, "greedy"), partial(scoring, "modest")
        with greedy(60) as one, greedy(40) as two, greedy(10) as three, modest(25) as a, modest(25) as b:
            return one, two, three, a, b

    assert scenario(body) == (True, True, False, True, True), "what the others leave is free"


def test_what_is_behind_much_work_is_in_excess():
    async def body(admission):
        def rooms():
            with admission.scoring("", 1) as at_once:
                pass
            until_s = time.thread_time() + 0.04
            while time.thread_time() < until_s:
                pass
            with admission.scoring("", 1) as behind:
                return at_once, behind

        return rooms()

    assert scenario(body) == (True, False)


def test_without_room_a_request_is_refused_once_as_many_were_answered_as_scored():
    async def body(admission):
        with admission.scoring("", 60):
            answered = 0
            while not admission.refuses(""):
                # There is room for 40 yet.
                with admission.scoring("", 50) as has_room:
                    assert not has_room
                answered += 1
                await asyncio.sleep(0)
        return answered, admission.refuses("")

    assert scenario(body) == (MOST_CREDIT, False)


def test_with_the_kill_switch_none_is_scored_and_all_are_answered():
    async def body(admission):
        for _ in range(MOST_CREDIT):
            admission.load_shedder.exceeded()
        configure(admission, most=100, kill_switch=True)
        for _ in range(10):
            if admission.refuses(""):
                return "refused"
            with admission.scoring("", 10) as has_room:
                if has_room:
                    return "scored"
            await asyncio.sleep(0)
        return "answered"

    assert scenario(body) == "answered"


def test_slow_answers_lower_the_limit(monkeypatch):
    monkeypatch.setattr("serve.ranking.admission.TICK_S", 0.001)

    async def body(admission):
        running, loop = asyncio.create_task(admission.run()), asyncio.get_running_loop()
        async with asyncio.timeout(5):
            while admission.load_shedder.limit > 50:
                admission.answered(loop.time() - 5.0, is_scored=True)
                await asyncio.sleep(0)
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running

    scenario(body)
