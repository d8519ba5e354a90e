"""What is sent of the held exposures, and when."""

from __future__ import annotations

import asyncio

from serve.outbox import Outbox
from serve.records import Exposure, unpack


class Sent(list):
    async def __call__(self, payload):
        self.append([exposure.ts_ms for exposure in unpack(payload)])


def exposure(ts_ms):
    return Exposure(str(ts_ms), ts_ms, None, [], b"", "launch", "model", "full", 1)


def test_what_is_from_before_a_time_is_sent_once_and_the_rest_is_kept():
    sent = Sent()
    outbox = Outbox(sent)
    for ts_ms in (5, 3, 4):
        outbox.put(exposure(ts_ms))
    asyncio.run(outbox.flush(before_ms=5))
    assert sent == [[3, 4]]
    asyncio.run(outbox.flush())
    assert sent == [[3, 4], [5]]
    assert outbox.age_s == 0.0


def test_as_long_as_rankings_of_one_time_may_follow_none_is_sent(monkeypatch):
    monkeypatch.setattr("serve.outbox.SEND_EVERY_S", 0.01)

    async def scenario():
        sent = Sent()
        outbox = Outbox(sent)
        running = asyncio.create_task(outbox.run(idle_s=0.2))
        for _ in range(8):
            outbox.put(exposure(7))
            await asyncio.sleep(0.05)
        busy = list(sent)
        await asyncio.sleep(0.35)
        running.cancel()
        return busy, sent

    assert asyncio.run(scenario()) == ([], [[7] * 8])
