"""Upper bound of queueing time."""

from __future__ import annotations

import asyncio
import time

from serve.ranking.admission import LoopLag
from tests.support import virtual_time

BUSY_S = 0.02


def test_the_first_after_a_rest_has_not_waited():
    async def scenario():
        lag = LoopLag()
        first = lag.waited_s()
        await asyncio.sleep(2 * BUSY_S)
        return first, lag.waited_s()

    first, later = virtual_time.run(scenario())
    assert first == 0.0
    assert later == 0.0


def test_what_comes_while_the_loop_is_held_up_has_waited_at_least_so_long():
    async def scenario():
        lag, waits = LoopLag(), []

        async def request():
            waits.append(lag.waited_s())
            virtual_time.hold_up(BUSY_S)

        loop = asyncio.get_running_loop()
        # One iteration of twice the time.
        both = asyncio.gather(request(), request())
        await asyncio.sleep(0)
        # Read in the next iteration.
        loop.call_soon(lambda: waits.append(lag.waited_s()))
        await both
        await asyncio.sleep(0)
        return waits

    first, second, third = virtual_time.run(scenario())
    assert first == 0.0
    assert second == BUSY_S
    assert third == 2 * BUSY_S


def test_where_nothing_comes_the_loop_rests():
    async def scenario():
        lag, loop = LoopLag(), asyncio.get_running_loop()
        lag.waited_s()
        began, cpu_s = loop.time(), time.thread_time()
        await asyncio.sleep(0.1)
        return time.thread_time() - cpu_s, loop.time() - began

    cpu_s, slept_s = asyncio.run(scenario())
    assert cpu_s < slept_s / 4
