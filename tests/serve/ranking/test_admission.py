"""Admission under load, on a real event loop."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from serve.ranking.admission import ANSWER_MARGIN_S, Admission


def test_a_deadline_counts_from_when_the_request_came():
    async def scenario():
        admission, loop = Admission(), asyncio.get_running_loop()
        admission.configure(enabled=True, deadline_ms=200)
        waited_s = admission.waited_s()
        now_s = loop.time()
        return [
            admission.deadline(waited_s + more_s, ms) - now_s
            for more_s, ms in ((0, None), (0.03, None), (0, 50))
        ]

    own, waited, named = asyncio.run(scenario())
    assert 0.2 - ANSWER_MARGIN_S <= own < 0.25
    assert 0.001 < own - waited < 0.031
    assert 0.05 - ANSWER_MARGIN_S <= named < 0.1


def test_answers_that_take_too_long_move_it_until_nothing_is_scored(monkeypatch):
    monkeypatch.setattr("serve.ranking.admission.TICK_S", 0.001)

    async def scenario():
        admission = Admission()
        admission.configure(enabled=True, deadline_ms=100)
        assert admission.num_scored(10, 0.0) == 10
        running, loop = asyncio.create_task(admission.run()), asyncio.get_running_loop()
        async with asyncio.timeout(5):
            while admission.num_scored(10, 0.0):
                admission.scored(loop.time() - 5.0)
                await asyncio.sleep(0)
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running

    asyncio.run(scenario())
