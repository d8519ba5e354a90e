"""The exposure buffer: what it sends and when, and its limits."""

from __future__ import annotations

import asyncio

import msgspec

from serve.contract.errors import TooLarge
from serve.log.events import MAX_CALL_BYTES, Exposure, unpack
from serve.ranking.exposure_buffer import Outbox


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
    monkeypatch.setattr("serve.ranking.exposure_buffer.SEND_EVERY_S", 0.01)

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


class Receiver:
    """Takes calls of up to `max_bytes`; refuses the others for their size, and all while it is `down`."""

    def __init__(self, max_bytes=MAX_CALL_BYTES):
        self.max_bytes = max_bytes
        self.taken, self.sizes, self.num_refused = [], [], 0
        self.down = False

    async def __call__(self, payload):
        self.sizes.append(len(payload))
        if self.down:
            raise ConnectionError("gone")
        if len(payload) > self.max_bytes:
            self.num_refused += 1
            raise TooLarge("larger than max")
        self.taken += [exposure.request_id for exposure in unpack(payload)]


def wide(name, num_candidates=1_000, length=256):
    """An exposure of ids as long as the edge accepts them, of four bytes a character."""
    ids = [f"{i:04d}".ljust(length, "\N{ROCKET}") for i in range(num_candidates)]
    return Exposure(name, 1, None, ids, bytes(4 * num_candidates), "launch", "model", "full", 1)


def test_a_call_is_capped_in_bytes_and_in_exposures(monkeypatch):
    monkeypatch.setattr("serve.ranking.exposure_buffer.MAX_SENT", 20)
    receiver = Receiver()
    outbox = Outbox(receiver)
    for i in range(8):
        outbox.put(wide(f"w{i}"))
    for i in range(50):
        outbox.put(exposure(i))
    assert asyncio.run(outbox.flush())
    assert receiver.taken == [*(f"w{i}" for i in range(8)), *map(str, range(50))], (
        "each once, the oldest first"
    )
    assert receiver.num_refused == 0
    assert len(receiver.sizes) == 3 + 2, "three of the wide ones fit a call; 20 of the others"


def test_what_is_refused_for_its_size_is_halved_and_what_alone_is_too_large_is_dropped_and_counted():
    receiver = Receiver(max_bytes=5_000)
    outbox = Outbox(receiver)
    for i in range(20):
        outbox.put(wide("large", 10) if i == 13 else exposure(i))
    assert asyncio.run(outbox.flush())
    assert receiver.taken == [str(i) for i in range(20) if i != 13]
    assert (outbox.num_too_large, outbox.num_dropped, outbox.age_s) == (1, 0, 0.0)
    assert receiver.num_refused < 10, "one exposure costs the others no call each"


def test_an_exposure_larger_than_a_call_is_never_sent_and_counted():
    receiver = Receiver()
    outbox = Outbox(receiver)
    outbox.put(msgspec.structs.replace(wide("wide"), numeric=bytes(MAX_CALL_BYTES)))
    outbox.put(exposure(1))
    assert asyncio.run(outbox.flush())
    assert (receiver.taken, outbox.num_too_large) == (["1"], 1)


def test_what_is_held_is_bounded_in_bytes_and_there_is_room_again_once_it_is_sent(monkeypatch):
    monkeypatch.setattr("serve.ranking.exposure_buffer.MAX_HELD_BYTES", 5_000_000)
    receiver = Receiver()
    receiver.down = True
    outbox = Outbox(receiver)
    for i in range(9):
        outbox.put(wide(f"w{i}"))
    assert not asyncio.run(outbox.flush())
    assert outbox.num_dropped == 4
    receiver.down = False
    assert asyncio.run(outbox.flush())
    outbox.put(wide("after"))
    assert asyncio.run(outbox.flush())
    assert receiver.taken == ["w0", "w1", "w2", "w3", "w4", "after"]
    assert outbox.num_dropped == 4


def test_a_call_that_is_never_answered_is_given_up_and_sent_again(monkeypatch):
    monkeypatch.setattr("serve.ranking.exposure_buffer.SEND_TIMEOUT_S", 0.05)
    receiver, calls = Receiver(), []

    async def send(payload):
        calls.append(payload)
        if len(calls) == 1:
            await asyncio.Event().wait()
        await receiver(payload)

    outbox = Outbox(send)
    outbox.put(exposure(1))
    assert not asyncio.run(outbox.flush())
    assert asyncio.run(outbox.flush())
    assert receiver.taken == ["1"]
