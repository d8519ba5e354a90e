"""Exposure buffer: calls, timing and limits."""

from __future__ import annotations

import asyncio

import msgspec

from serve.contract.errors import TooLarge
from serve.log.events import MAX_CALL_BYTES, Exposure, pack_raw, unpack
from serve.ranking.exposure_buffer import SEND_EVERY_S, ExposureBuffer
from tests.support import virtual_time


class Sent(list):
    async def __call__(self, payload):
        self.append([exposure.ts_ms for exposure in unpack(payload)])


def exposure(ts_ms):
    return Exposure(str(ts_ms), ts_ms, None, [], b"", "launch", "model", "full", 1)


def test_what_is_from_before_a_time_is_sent_once_and_the_rest_is_kept():
    sent = Sent()
    buffer = ExposureBuffer(sent)
    for ts_ms in (5, 3, 4):
        buffer.put(exposure(ts_ms))
    asyncio.run(buffer.flush(before_ms=5))
    assert sent == [[3, 4]]
    asyncio.run(buffer.flush())
    assert sent == [[3, 4], [5]]
    assert buffer.age_s == 0.0


def test_as_long_as_rankings_of_one_time_may_follow_none_is_sent():
    async def scenario():
        sent = Sent()
        buffer = ExposureBuffer(sent, clock=asyncio.get_running_loop().time)
        running = asyncio.create_task(buffer.run(idle_s=0.2))
        for _ in range(8):
            buffer.put(exposure(7))
            await asyncio.sleep(0.19)
        busy = list(sent)
        await asyncio.sleep(0.01 + SEND_EVERY_S)
        running.cancel()
        return busy, sent

    assert virtual_time.run(scenario()) == ([], [[7] * 8])


class Receiver:
    """Accepts calls of up to `max_bytes`; refuses larger ones, and all calls while `down`."""

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


class OldExposure(msgspec.Struct, tag_field="type", tag="exposure", forbid_unknown_fields=True):
    """The record of a release whose writer refuses fields that it does not know."""

    request_id: str
    ts_ms: int
    viewer: str | None
    candidates: list[str]
    scores: bytes
    experiment: str | None
    arm: str
    rung: str
    seen_seq: int


def test_exposures_with_new_fields_wait_until_the_new_writer_replaces_an_old_one():
    old, taken = msgspec.msgpack.Decoder(list[OldExposure]), []

    async def old_writer(payload):
        taken.extend(old.decode(payload))

    async def new_writer(payload):
        taken.extend(unpack(payload))

    async def scenario():
        writer = old_writer
        buffer = ExposureBuffer(lambda payload: writer(payload))
        buffer.put(exposure(1))
        assert await buffer.flush()
        more = {"predictions": b"1234" * 2, "weights": {"join": 1.0, "hide": -5.0}, "draw": b"1234"}
        buffer.put(msgspec.structs.replace(exposure(2), **more))
        buffer.put(exposure(3))
        for _ in range(3):
            assert not await buffer.flush()
        writer = new_writer
        assert await buffer.flush()
        return buffer

    buffer = asyncio.run(scenario())
    assert [one.ts_ms for one in taken] == [1, 2, 3]
    assert taken[1].weights == {"join": 1.0, "hide": -5.0}
    assert (buffer.num_dropped, buffer.num_too_large) == (0, 0)


def test_a_writer_takes_exposures_with_fields_of_a_later_release():
    later = msgspec.msgpack.decode(pack_raw(exposure(1))) | {"novel": [1, 2]}
    (found,) = unpack(msgspec.msgpack.encode([later]))
    assert found == exposure(1)


def wide(name, num_candidates=1_000, length=256):
    """An exposure with the longest ids that the service accepts, of four bytes a character."""
    ids = [f"{i:04d}".ljust(length, "\N{ROCKET}") for i in range(num_candidates)]
    return Exposure(name, 1, None, ids, bytes(4 * num_candidates), "launch", "model", "full", 1)


def test_a_call_is_capped_in_bytes_and_in_exposures(monkeypatch):
    monkeypatch.setattr("serve.ranking.exposure_buffer.MAX_SENT", 20)
    receiver = Receiver()
    buffer = ExposureBuffer(receiver)
    for i in range(8):
        buffer.put(wide(f"w{i}"))
    for i in range(50):
        buffer.put(exposure(i))
    assert asyncio.run(buffer.flush())
    assert receiver.taken == [*(f"w{i}" for i in range(8)), *map(str, range(50))], (
        "each once, the oldest first"
    )
    assert receiver.num_refused == 0
    assert len(receiver.sizes) == 3 + 2, "three of the wide ones fit a call; 20 of the others"


def test_a_call_too_large_is_halved_and_a_single_exposure_dropped():
    receiver = Receiver(max_bytes=5_000)
    buffer = ExposureBuffer(receiver)
    for i in range(20):
        buffer.put(wide("large", 10) if i == 13 else exposure(i))
    assert asyncio.run(buffer.flush())
    assert receiver.taken == [str(i) for i in range(20) if i != 13]
    assert (buffer.num_too_large, buffer.num_dropped, buffer.age_s) == (1, 0, 0.0)
    assert receiver.num_refused < 10, "one exposure costs the others no call each"


def test_an_exposure_larger_than_a_call_is_never_sent_and_counted():
    receiver = Receiver()
    buffer = ExposureBuffer(receiver)
    buffer.put(msgspec.structs.replace(wide("wide"), numeric=bytes(MAX_CALL_BYTES)))
    buffer.put(exposure(1))
    assert asyncio.run(buffer.flush())
    assert (receiver.taken, buffer.num_too_large) == (["1"], 1)


def test_the_held_bytes_are_bounded_until_they_are_sent(monkeypatch):
    monkeypatch.setattr("serve.ranking.exposure_buffer.MAX_HELD_BYTES", 5_000_000)
    receiver = Receiver()
    receiver.down = True
    buffer = ExposureBuffer(receiver)
    for i in range(9):
        buffer.put(wide(f"w{i}"))
    assert not asyncio.run(buffer.flush())
    assert buffer.num_dropped == 4
    receiver.down = False
    assert asyncio.run(buffer.flush())
    buffer.put(wide("after"))
    assert asyncio.run(buffer.flush())
    assert receiver.taken == ["w0", "w1", "w2", "w3", "w4", "after"]
    assert buffer.num_dropped == 4


def test_a_call_that_is_never_answered_is_given_up_and_sent_again():
    receiver, calls = Receiver(), []

    async def send(payload):
        calls.append(payload)
        if len(calls) == 1:
            await asyncio.Event().wait()
        await receiver(payload)

    buffer = ExposureBuffer(send)
    buffer.put(exposure(1))
    assert not virtual_time.run(buffer.flush())
    assert virtual_time.run(buffer.flush())
    assert receiver.taken == ["1"]


def test_exposures_for_an_ingest_that_hangs_are_with_the_next_one_after_six_seconds():
    async def scenario():
        receiver, calls = Receiver(), []

        async def send(payload):
            calls.append(asyncio.get_running_loop().time())
            # The one that hangs never answers; after a second there is another one.
            if calls[-1] < 1.0:
                await asyncio.Event().wait()
            await receiver(payload)

        buffer = ExposureBuffer(send)
        buffer.put(exposure(1))
        running = asyncio.create_task(buffer.run())
        await asyncio.sleep(6.0)
        running.cancel()
        return receiver.taken

    assert virtual_time.run(scenario()) == ["1"]
