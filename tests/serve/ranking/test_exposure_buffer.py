"""Exposure buffer: calls, timing and limits."""

from __future__ import annotations

import asyncio

import msgspec
import numpy as np
import pytest
from scipy.stats import chi2, chisquare

from serve.contract.errors import TooLarge
from serve.log.events import MAX_CALL_BYTES, Exposure, pack_raw, unpack
from serve.ranking.exposure_buffer import MAX_HELD, SEND_EVERY_S, ExposureBuffer
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
    for i in range(90):
        buffer.put(wide(f"w{i}"))
    assert not asyncio.run(buffer.flush())
    receiver.down = False
    assert asyncio.run(buffer.flush())
    # About a MB each. The fourth and fifth came when the buffer was filling: they are a sample.
    assert (len(receiver.taken), receiver.taken[:3]) == (5, ["w0", "w1", "w2"])
    assert buffer.num_dropped > 0
    assert buffer.num_dropped + buffer.num_thinned == 85
    buffer.put(wide("after"))
    assert asyncio.run(buffer.flush())
    assert receiver.taken[-1] == "after"


class SlowWriter:
    """Makes `ceiling` exposures a second durable, for all buffers; keeps them."""

    def __init__(self, ceiling):
        self.ceiling = ceiling
        self.kept, self._waiting, self._arrived = [], [], asyncio.Event()

    async def __call__(self, payload):
        done = asyncio.get_running_loop().create_future()
        self._waiting.append((unpack(payload), done))
        self._arrived.set()
        await done

    async def run(self):
        while True:
            await self._arrived.wait()
            await asyncio.sleep(0.1)
            waiting, self._waiting = self._waiting, []
            self._arrived.clear()
            for records, done in waiting:
                await asyncio.sleep(len(records) / self.ceiling)
                self.kept += records
                if not done.done():
                    done.set_result(None)


STEP_S, NUM_VIEWERS = 0.01, 97


async def under_load(num_replicas, phases, ceiling=2_000):
    """Offer (seconds, times the ceiling) to the buffers of replicas that share a writer.

    Returns the kept exposures, the times and viewers of all, and the buffers; after a second of
    each phase also the largest `one_in` of the buffers, and the age of the oldest exposure after
    four seconds of each.
    """
    clock, writer = asyncio.get_running_loop().time, SlowWriter(ceiling)
    buffers = [ExposureBuffer(writer, clock=clock) for _ in range(num_replicas)]
    running = [asyncio.create_task(part.run()) for part in (writer, *buffers)]
    offered, after, ages = [], [], []
    for seconds, load in phases:
        for step in range(round(seconds / STEP_S)):
            if step == round(1 / STEP_S):
                after.append(max(buffer.one_in for buffer in buffers))
            for _ in range(round(load * ceiling * STEP_S)):
                number = len(offered)
                viewer = number * 31 % NUM_VIEWERS
                offered.append((clock(), viewer))
                one = Exposure(f"r{number}", round(clock() * 1e3), f"v{viewer}", [], b"", "e", "a", "full", 1)
                buffers[number % num_replicas].put(one)
            # The first seconds of a load that comes at once are the time in which it is noticed.
            if step > 4 / STEP_S:
                ages.append(max(buffer.age_s for buffer in buffers))
            await asyncio.sleep(STEP_S)
    await asyncio.sleep(10)
    for task in running:
        task.cancel()
    return writer.kept, np.array(offered), buffers, after, max(ages, default=0.0)


def evenness(kept, place, num_offered):
    """Return p of χ²: those that the kept ones stand for, by place, against those offered.

    An exposure kept at the rate 1 / n adds n² − n to the variance of their number.
    """
    one_in = np.array([exposure.one_in for exposure in kept])
    stands_for = np.bincount(place, one_in, len(num_offered))
    variance = np.bincount(place, one_in * (one_in - 1.0), len(num_offered))
    is_thinned = variance > 0
    terms = (stands_for - num_offered)[is_thinned] ** 2 / variance[is_thinned]
    return chi2.sf(terms.sum(), is_thinned.sum())


@pytest.mark.parametrize("num_replicas", [1, 6])
def test_beyond_the_ceiling_of_ingest_an_even_sample_is_kept_and_says_its_rate(num_replicas):
    scenario = under_load(num_replicas, [(3, 0.5), (20, 5.0), (3, 0.3)])
    kept, offered, buffers, _, oldest_s = virtual_time.run(scenario)
    assert sum(buffer.num_dropped for buffer in buffers) == 0
    assert len(kept) + sum(buffer.num_thinned for buffer in buffers) == len(offered)
    seconds = np.array([exposure.ts_ms // 1_000 for exposure in kept])
    assert evenness(kept, seconds, np.bincount(offered[:, 0].astype(int), minlength=26)) > 0.01
    viewers = np.array([int(exposure.viewer[1:]) for exposure in kept])
    assert evenness(kept, viewers, np.bincount(offered[:, 1].astype(int))) > 0.01
    # The viewers of those kept, without regard to their rates.
    busy = (seconds >= 5) & (seconds < 23)
    assert chisquare(np.bincount(viewers[busy], minlength=NUM_VIEWERS)).pvalue > 0.01
    # Ingest is used: what is kept is near its ceiling, and the features are not stale.
    assert 0.6 * 2_000 < busy.sum() / 18 < 1.1 * 2_000
    assert oldest_s < 5.0


@pytest.mark.parametrize("num_replicas", [1, 6])
def test_the_rate_follows_the_load_within_a_second_or_two(num_replicas):
    phases = [(5, 0.5), (5, 5.0), (2, 5.0), (3, 0.3), (3, 0.3)]
    *_, after, _ = virtual_time.run(under_load(num_replicas, phases))
    assert after[0] == 1
    assert min(after[1:3]) >= 3
    assert after[4] == 1


def test_below_the_ceiling_every_exposure_is_kept_for_itself():
    kept, offered, *_ = virtual_time.run(under_load(3, [(10, 0.8)]))
    assert len(kept) == len(offered)
    assert {exposure.one_in for exposure in kept} == {1}


def test_a_request_is_in_the_sample_of_every_replica_or_of_none():
    receiver = Receiver()
    receiver.down = True
    buffers = [ExposureBuffer(receiver), ExposureBuffer(receiver)]
    for buffer in buffers:
        for i in range(MAX_HELD):
            buffer.put(exposure(i))
    receiver.down = False
    for buffer in buffers:
        assert asyncio.run(buffer.flush())
    first, second = np.split(np.array(receiver.taken), 2)
    assert 0 < buffers[0].num_thinned < MAX_HELD
    assert (first == second).all()


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


def declared(number, text):
    return msgspec.structs.replace(exposure(number), request_id=f"r{number}", declaration=text)


def test_after_each_call_the_next_exposure_carries_the_declaration_and_so_does_each_change():
    taken = []

    async def send(payload):
        taken.append([one.declaration for one in unpack(payload)])

    buffer = ExposureBuffer(send)
    for texts in ("aaa", "aab", ["b", None, "b"]):
        for number, text in enumerate(texts):
            buffer.put(declared(number, text))
        asyncio.run(buffer.flush())
    assert taken == [["a", None, None], ["a", None, "b"], ["b", None, None]]


@pytest.mark.parametrize("seed", range(20))
def test_a_declaration_outlives_failed_calls_lost_calls_and_a_sample(seed):
    rng, taken, outcomes = np.random.default_rng(seed), [], []

    async def send(payload):
        outcomes.append(str(rng.choice(["taken", "failed", "lost"], p=[0.6, 0.2, 0.2])))
        if outcomes[-1] == "failed":
            raise OSError("away")
        # Ingest may drop what it has no room for, and answer all the same.
        if outcomes[-1] == "taken":
            taken.extend(unpack(payload))

    buffer, of = ExposureBuffer(send), {}
    for number in range(400):
        of[f"r{number}"] = f"declaration {number // 90}"
        buffer.one_in = int(rng.integers(1, 4))
        buffer.put(declared(number, of[f"r{number}"]))
        if rng.random() < 0.1:
            asyncio.run(buffer.flush())
    assert len(taken) > 40
    assert {"taken", "failed", "lost"} == set(outcomes)
    known = None
    for one in taken:
        known = one.declaration or known
        assert known == of[one.request_id]
    assert sum(one.declaration is not None for one in taken) <= len(outcomes) + 5
