"""The live loop while a dependency is gone, full or hung, and after it recovers."""

from __future__ import annotations

import asyncio
import os
import resource
import shutil
import signal
import subprocess
import time
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import replace

import pyarrow.parquet as pq
import pytest

from serve.ingest.backfill import load
from serve.stores.candidate_table import RETRY_S
from serve.stores.lmdb_environment import environment
from tests.support.live_service import Live, event, features

SLACK_S = 1.0  # for a machine that has other things to do
# How long the service waits for Ingest, and for Redis; shorter than in production.
TAKE_S, TIMEOUT_S = 1.0, 0.4


@pytest.fixture
def on_redis(tmp_path, log_folder, empty_redis_server, monkeypatch):
    monkeypatch.setattr("serve.ranking.record_intake.TAKE_S", TAKE_S)
    monkeypatch.setattr("serve.stores.redis_client.TIMEOUT_S", TIMEOUT_S)
    return Live(tmp_path, log_folder, clock="wall", store=empty_redis_server.url)


def logged(service, table, column):
    return sorted(pq.read_table(service.folder / "served" / table)[column].to_pylist())


async def until_well(service):
    """Wait until rankings are full again and all records are durable."""
    end = time.monotonic() + 30
    while True:
        answer = await service.rank(traffic="test")
        if answer["rung"] == "full" and service.fetcher.exposure_buffer.age_s < 0.5:
            return
        assert time.monotonic() < end, answer
        await asyncio.sleep(0.05)


async def audience(service):
    answer = await service.rank(explain=True, traffic="test")
    return features(answer, "a")["audience"]


async def timed(call):
    """Return the answer and the seconds that it took."""
    begun = time.monotonic()
    return await call, time.monotonic() - begun


class Client:
    """Client that ranks and sends events, and retries each until it is acknowledged."""

    def __init__(self, service):
        self.service = service
        self.ranked, self.acknowledged = [], []
        self.rungs, self.refusals = set(), []

    async def rank_forever(self):
        while True:
            request_id = f"r{len(self.ranked):04}"
            answer, took_s = await timed(self.service.rank(request_id=request_id))
            assert took_s < 1.0 + SLACK_S, "the deadline is a second"
            self.ranked.append(request_id)
            self.rungs.add((answer["rung"], *answer["degraded"]))
            await asyncio.sleep(0.02)

    async def send_forever(self):
        while True:
            id_ = f"e{len(self.acknowledged):04}"
            sent = self.service.post("/v1/events", {"records": [event(id_, viewer=id_, ts_ms=None)]})
            response, took_s = await timed(sent)
            if response.status_code == 200:
                answer = response.json()
                assert answer["accepted"] + answer["duplicates"] == 1
                self.acknowledged.append(id_)
            else:
                self.refusals.append((response.status_code, response.headers["retry-after"]))
                assert took_s < TAKE_S + SLACK_S
                await asyncio.sleep(0.05)

    @asynccontextmanager
    async def at_work(self):
        """Run both until the block ends and all answers have arrived."""
        tasks = [asyncio.create_task(work) for work in (self.rank_forever(), self.send_forever())]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            ended = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(end) for end in ended] == [asyncio.CancelledError] * 2, ended


@pytest.mark.integration
@pytest.mark.no_ray
def test_a_killed_redis_costs_nothing_that_was_acknowledged(on_redis, empty_redis_server):
    async def scenario(service):
        client, before = Client(service), await audience(service)
        async with client.at_work():
            for _ in range(2):
                await asyncio.sleep(0.3)
                await asyncio.to_thread(empty_redis_server.kill)
                await asyncio.sleep(0.5)
                waits_s = service.fetcher.exposure_buffer.age_s
                await asyncio.to_thread(empty_redis_server.start)
                await until_well(service)
        await service.events(event("last", viewer="last", ts_ms=None))
        return client, waits_s, await audience(service) - before

    client, waits_s, num_joined = on_redis.run(scenario)
    assert client.rungs == {("full",), ("fallback", "store_unavailable")}
    assert set(client.refusals) == {(503, "1")}
    assert waits_s > 0.4, "exposures wait for the store"
    events = logged(on_redis, "events", "id")
    assert len(set(events)) == len(events)
    assert set(events) - set(client.acknowledged) <= {f"e{len(client.acknowledged):04}", "last"}
    assert set(client.acknowledged) <= set(events)
    assert num_joined == len(events), "the state has each of them once too"
    exposures = logged(on_redis, "exposures", "request_id")
    assert len(set(exposures)) == len(exposures)
    assert set(client.ranked) <= set(exposures)


@pytest.mark.integration
@pytest.mark.no_ray
def test_a_hung_redis_is_waited_for_once_and_then_left_alone(on_redis, empty_redis_server):
    # No ranking may end at its deadline here: the test measures how long the store delays one.
    on_redis.config = replace(on_redis.config, deadline_ms=10_000)

    async def scenario(service):
        await service.events(event("e1", ts_ms=None))
        process = empty_redis_server.process
        process.send_signal(signal.SIGSTOP)
        try:
            first = await timed(service.rank(request_id="first"))
            next_ones = [await timed(service.rank(request_id=f"next{i}")) for i in range(3)]
            refused = await timed(service.post("/v1/events", {"records": [event("e2", ts_ms=None)]}))
        finally:
            process.send_signal(signal.SIGCONT)
        await until_well(service)
        return first, next_ones, refused, await service.events(*(event(f"e{i}", ts_ms=None) for i in (1, 2)))

    (first, first_s), next_ones, (refused, refused_s), again = on_redis.run(scenario)
    for answer in (first, *(answer for answer, _ in next_ones)):
        assert (answer["rung"], answer["degraded"]) == ("fallback", ["store_unavailable"])
    assert first_s < TIMEOUT_S + SLACK_S
    assert sum(took_s for _, took_s in next_ones) < RETRY_S, "none of them waited"
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
    assert refused_s < TAKE_S + TIMEOUT_S + SLACK_S
    assert again["accepted"] + again["duplicates"] == 2
    assert logged(on_redis, "events", "id") == ["e1", "e2"]
    exposures = logged(on_redis, "exposures", "request_id")
    assert len(set(exposures)) == len(exposures)
    assert {"first", *(f"next{i}" for i in range(3))} <= set(exposures)


@contextmanager
def full_disk():
    """Limit files to LMDB's two meta pages, so that a commit finds no disk space."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_refuses_events_and_features_age_until_there_is_room(tmp_path, log_folder):
    service = Live(tmp_path, log_folder, clock="wall", stale_after_ms=400)

    async def scenario(service):
        await service.events(event("e1", ts_ms=None))
        with full_disk():
            refused = await service.post("/v1/events", {"records": [event("e2", ts_ms=None)]})
            fresh = await service.rank(request_id="fresh")
            await asyncio.sleep(0.5)
            stale = await service.rank(request_id="stale")
            still = await service.post("/v1/events", {"records": [event("e2", ts_ms=None)]})
        await until_well(service)
        return refused, fresh, stale, still, await service.events(event("e1"), event("e2", ts_ms=None))

    refused, fresh, stale, still, again = service.run(scenario)
    for response in (refused, still):
        assert (response.status_code, response.headers["retry-after"]) == (503, "1")
    assert (fresh["rung"], fresh["degraded"]) == ("full", [])
    assert (stale["rung"], stale["degraded"]) == ("partial", ["stale_features"])
    assert (again["accepted"], again["duplicates"]) == (1, 1)
    assert logged(service, "events", "id") == ["e1", "e2"]
    exposures = logged(service, "exposures", "request_id")
    assert len(set(exposures)) == len(exposures)
    assert {"fresh", "stale"} <= set(exposures)


def test_exposures_beyond_the_buffer_are_not_kept_and_counted(tmp_path, log_folder, monkeypatch):
    monkeypatch.setattr("serve.ranking.exposure_buffer.MAX_HELD", 5)
    service = Live(tmp_path, log_folder, clock="wall")

    async def scenario(service):
        buffer = service.fetcher.exposure_buffer
        service.is_ingest_away = True
        answers = [await service.rank(request_id=f"r{i}") for i in range(20)]
        num_left_out = buffer.num_dropped + buffer.num_thinned
        service.is_ingest_away = False
        assert await buffer.flush()
        after = await service.rank(request_id="after")
        return answers, num_left_out, after, buffer.num_dropped + buffer.num_thinned

    answers, num_left_out, after, in_the_end = service.run(scenario)
    assert [(answer["rung"], answer["degraded"]) for answer in (*answers, after)] == [("full", [])] * 21
    assert (num_left_out, in_the_end) == (15, 15)
    kept = logged(service, "exposures", "request_id")
    assert (len(kept), kept[:4]) == (6, ["after", "r0", "r1", "r2"])


def data_of(service):
    (data,) = (service.folder / "store").glob("*/data.mdb")
    return data


def replaced_by_garbage(data):
    draft = data.with_name("draft")
    draft.write_bytes(os.urandom(data.stat().st_size))
    draft.replace(data)


def replaced_by_nothing(data):
    draft = data.with_name("draft")
    draft.write_bytes(b"")
    draft.replace(data)


def deleted(data):
    data.unlink()


def overwritten_in_place(data):
    size = data.stat().st_size
    with data.open("r+b") as file:
        file.write(os.urandom(size))


def locks_cut_short(data):
    os.truncate(data.with_name("lock.mdb"), 0)


@pytest.mark.integration
@pytest.mark.no_ray
@pytest.mark.parametrize(
    "fault", [replaced_by_garbage, replaced_by_nothing, deleted, overwritten_in_place, locks_cut_short]
)
def test_a_lost_or_damaged_store_fails_no_ranking_and_is_reopened(tmp_path, log_folder, fault):
    service = Live(tmp_path, log_folder, clock="wall")

    async def scenario(service):
        client, data = Client(service), data_of(service)
        async with client.at_work():
            await asyncio.sleep(0.3)
            kept = await asyncio.to_thread(between_two_commits, data, fault)
            await asyncio.sleep(0.7)
            if fault is not locks_cut_short:  # which mends itself
                kept.replace(data)
            begun = time.monotonic()
            await until_well(service)
            healed_s = time.monotonic() - begun
        return client, healed_s

    client, healed_s = service.run(scenario)
    assert client.ranked, "each was answered with 200 in its time"
    # While no event is committed, the answers of both kinds may turn stale as well.
    assert client.rungs <= {
        ("full",),
        ("partial", "stale_features"),
        ("fallback", "store_unavailable"),
        ("fallback", "store_unavailable", "stale_features"),
    }
    assert set(client.refusals) <= {(503, "1")}
    assert healed_s < 5.0
    events = logged(service, "events", "id")
    assert len(set(events)) == len(events)
    assert set(client.acknowledged) <= set(events)
    assert set(client.ranked) <= set(logged(service, "exposures", "request_id"))


def between_two_commits(data, fault):
    """Copy the file and damage it, so that the copy has everything that was acknowledged."""
    used = environment(data.parent.resolve())
    with used._changed:
        used._changed.wait_for(lambda: used._num_uses == 0)
        kept = data.with_name("kept")
        shutil.copy(data, kept)
        fault(data)
    return kept


@pytest.fixture
def small_disk(tmp_path):
    """A separate disk of 6 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(folder)], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip("a small disk needs root, and the right to mount a tmpfs")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.integration
@pytest.mark.no_ray
def test_a_disk_that_fills_under_load_fails_no_ranking_and_keeps_events(small_disk, log_folder, monkeypatch):
    monkeypatch.setattr("serve.ranking.exposure_buffer.MAX_HELD", 30)
    service = Live(small_disk, log_folder, clock="wall", stale_after_ms=500)

    async def scenario(service):
        client = Client(service)
        async with client.at_work():
            await asyncio.sleep(0.3)
            filler = small_disk / "filler"
            with suppress(OSError), filler.open("wb", buffering=0) as file:
                while True:
                    file.write(bytes(4096))
            await asyncio.sleep(1.2)
            buffer = service.fetcher.exposure_buffer
            refused, num_dropped = len(client.refusals), buffer.num_dropped + buffer.num_thinned
            await asyncio.to_thread(service.ingester.flush_journal)  # nor can the log be written
            partial = list(small_disk.rglob("*.partial"))
            filler.unlink()
            begun = time.monotonic()
            await until_well(service)
            healed_s = time.monotonic() - begun
        return client, refused, num_dropped, partial, healed_s

    client, num_refused, num_dropped, partial, healed_s = service.run(scenario)
    assert client.ranked, "each was answered with 200 in its time"
    assert client.rungs == {("full",), ("partial", "stale_features")}
    assert num_refused > 0
    assert set(client.refusals) == {(503, "1")}
    assert num_dropped > 0, "more rankings than can wait"
    assert partial == []
    assert healed_s < 5.0
    events = logged(service, "events", "id")
    assert len(set(events)) == len(events)
    assert set(client.acknowledged) <= set(events)
    exposures = logged(service, "exposures", "request_id")
    assert len(set(exposures)) == len(exposures)
    buffer = service.fetcher.exposure_buffer
    num_left_out = buffer.num_dropped + buffer.num_thinned
    assert 0 < len(set(client.ranked) - set(exposures)) <= num_left_out, "each is counted"
    assert not list(small_disk.rglob("*.partial"))


def test_a_damaged_newest_segment_is_named_and_its_numbers_skipped(tmp_path, log_folder, caplog):
    service = Live(tmp_path, log_folder, clock="wall")
    tallies = []

    def sent(*ids):
        async def send(service):
            return await service.events(*(event(id_, ts_ms=None) for id_ in ids))

        return service.run(send)

    def numbers():
        return dict(zip(logged(service, "events", "id"), logged(service, "events", "seq"), strict=True))

    sent("e1", "e2")
    sent("e3")
    newest = max((tmp_path / "served" / "events").glob("[0-9]*.parquet"))
    before, whole = numbers(), newest.read_bytes()
    newest.write_bytes(whole[: len(whole) // 2])
    service.on_tally = tallies.append
    assert sent("e1", "e4") == {"accepted": 1, "duplicates": 1, "rejected": []}
    assert sum(tally.counts["segment_damaged"] for tally in tallies) == 1
    assert f"{newest}: not readable as Parquet" in caplog.text
    newest.write_bytes(whole)
    assert numbers() == before | {"e4": numbers()["e4"]}
    assert numbers()["e4"] > before["e3"]
    assert sent("e3", "e4")["duplicates"] == 2


def test_a_store_that_lacks_damaged_records_is_refused_until_they_are_moved_away(tmp_path, log_folder):
    service = Live(tmp_path, log_folder, clock="wall")
    service.run(lambda service: service.events(*(event(f"e{i}", ts_ms=None) for i in range(20))))
    last = logged(service, "events", "seq")[-1]
    damaged = set((tmp_path / "served").glob("*/[0-9]*.parquet"))
    for path in damaged:
        path.write_bytes(b"PAR1")
    load(service.surface, log_folder, "lmdb:restored", tmp_path)
    service.args = replace(service.args, store="lmdb:restored")

    async def scenario(service):
        refused = await service.post("/v1/events", {"records": [event("new", ts_ms=None)]})
        for path in damaged:
            path.unlink()
        return refused, await service.events(event("new", ts_ms=None))

    refused, taken = service.run(scenario)
    assert (refused.status_code, taken["accepted"]) == (503, 1)
    (added,) = (tmp_path / "served" / "events").glob("[0-9]*.parquet")
    assert pq.read_table(added)["seq"].to_pylist() > [last]


def test_a_stray_folder_beside_the_snapshots_is_ignored_and_named_once(tmp_path, log_folder, caplog):
    stray = tmp_path / "served" / "snapshots" / f"{4:020d}.bak"
    stray.mkdir(parents=True)
    (stray / "meta.json").write_text("{}")
    service = Live(tmp_path, log_folder, clock="wall")
    for id_ in ("e1", "e2"):
        service.run(lambda service, id_=id_: service.events(event(id_, ts_ms=None)))
    assert logged(service, "events", "id") == ["e1", "e2"]
    assert caplog.text.count(f"{stray} is ignored") == 1
