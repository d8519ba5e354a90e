"""How long a request may have waited to be seen, on a real event loop."""

from __future__ import annotations

import asyncio
import time

from serve.ranking.loop_lag import LoopLag

BUSY_S = 0.02


def test_the_first_after_a_rest_has_not_waited():
    async def scenario():
        turns = LoopLag()
        first = turns.waited_s()
        await asyncio.sleep(2 * BUSY_S)
        return first, turns.waited_s()

    first, later = asyncio.run(scenario())
    assert first == 0.0
    assert later == 0.0


def test_what_comes_while_the_loop_is_held_up_has_waited_at_least_so_long():
    async def scenario():
        turns, waits, works = LoopLag(), [], []

        async def request():
            waits.append(turns.waited_s())
            time.sleep(BUSY_S)  # no work: others have the CPU
            works.append(turns.worked_s())

        loop = asyncio.get_running_loop()
        both = asyncio.gather(request(), request())  # one turn of twice the time
        await asyncio.sleep(0)
        loop.call_soon(lambda: waits.append(turns.waited_s()))  # read in the turn after
        await both
        await asyncio.sleep(0)
        return waits, works, turns.take_longest_s(), turns.take_longest_s()

    (first, second, third), works, longest, again = asyncio.run(scenario())
    assert first == 0.0
    assert BUSY_S <= second < third
    assert third >= 2 * BUSY_S
    assert longest >= 2 * BUSY_S
    assert again < longest
    assert max(works) < BUSY_S


def test_the_work_that_goes_before_is_counted_in_cpu_time():
    async def scenario():
        turns, works = LoopLag(), []

        async def request():
            works.append(turns.worked_s())
            end = time.thread_time() + BUSY_S
            while time.thread_time() < end:
                pass

        await asyncio.gather(request(), request())
        return works

    first, second = asyncio.run(scenario())
    assert first < BUSY_S <= second


def test_where_nothing_comes_the_loop_rests():
    async def scenario():
        turns, loop = LoopLag(), asyncio.get_running_loop()
        turns.waited_s()
        began, cpu_s = loop.time(), time.process_time()
        await asyncio.sleep(0.1)
        return time.process_time() - cpu_s, loop.time() - began

    cpu_s, slept_s = asyncio.run(scenario())
    assert cpu_s < slept_s / 4
