"""A log in a bucket that fails: nothing is missing, nothing is twice, and the writer goes on."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from dataclasses import replace
from datetime import timedelta

import pyarrow.parquet as pq
import pytest

import serve.ingest.writer
import serve.log.compaction
import serve.log.retention
import serve.storage.bucket
from serve.config.settings import AppArgs
from serve.contract.errors import StoreUnavailable, TabrankError, WriterFenced
from serve.contract.records import Event
from serve.features.rows import Schema
from serve.features.surface import load_surface
from serve.ingest.backfill import load
from serve.ingest.writer import Ingester
from serve.log.lease import Lease, read_lease, swap_lease
from serve.log.reader import read_log
from serve.log.replay import Replay
from serve.log.segments import segments
from serve.log.snapshots import snapshots
from serve.storage.atomic_files import write_whole
from serve.storage.bucket import BucketError, BucketPath, place
from serve.stores.factory import open_store
from tests.support.logging_service import assert_same_state, stored_rows
from tests.support.s3_server import named
from tests.support.small_surface import TOML
from training.erasure.forget import forget

# The library repeats a request after these. After the others a writer has to begin again.
REPEATED = ("closed", "503", "slow", "cut upload", "lost reply", "lost 503")
FAULTS = (*REPEATED, "403", "cut reply", "stale")


class Play:
    """Writers of one log in a bucket, which merge and take snapshots often."""

    def __init__(self, folder, log_folder, bucket):
        self.folder, self.bucket, self.name = folder, bucket, named("log")
        (folder / "tiny.toml").write_text(TOML)
        self.surface = load_surface(str(folder / "tiny.toml"))
        self.log = place(self.name)
        for path in log_folder.iterdir():
            write_whole(self.log / path.name, path.read_bytes())
        self.load("lmdb:one")
        self.sent = []

    def load(self, store):
        load(self.surface, self.log, store, self.folder)

    def writer(self, store="lmdb:one"):
        return Ingester(AppArgs("tiny.toml", store, "models", self.name, keep_log_days=0), self.folder)

    async def send(self, writer, num=7, *, until_s=60.0):
        """Send events until they are acknowledged, as clients do."""
        events = [Event(f"n{len(self.sent) + i}", f"v{i % 3}", "ab"[i % 2], "join") for i in range(num)]
        end = time.monotonic() + until_s
        while True:
            try:
                await taken(writer, events)
                break
            except StoreUnavailable:
                if time.monotonic() > end:
                    raise
                await asyncio.sleep(0.05)
        self.sent += [event.id for event in events]

    def assert_once_and_whole(self, store="lmdb:one"):
        """Assert that a reader finds each event once, and the state that the store has."""
        found = Counter()
        numbers = {}
        for segment in segments(self.log, "events"):
            rows = pq.read_table(segment.path, columns=["seq", "id"]).to_pylist()
            for row in rows:
                assert segment.first <= row["seq"] <= segment.last
                assert numbers.setdefault(row["seq"], row["id"]) == row["id"], "a number is used twice"
        found.update(numbers.values())
        assert sorted(found) == sorted(self.sent)
        assert max(found.values()) == 1
        log = read_log(self.log, self.surface)
        assert sorted(id_ for id_ in log.events["id"].to_pylist() if id_[0] == "n") == sorted(self.sent)
        schema = Schema(self.surface)
        replay = Replay(schema, log)
        replay.finish()
        opened = open_store(store, "tiny", schema.fingerprint, base=self.folder, writable=False)
        assert_same_state(stored_rows(schema, opened), replay, 1e-6)
        for snapshot in snapshots(self.log):
            snapshot.verify()


async def taken(writer, records):
    """Return the result of taking records."""
    taking = asyncio.ensure_future(writer.take(records, 100 * len(records)))
    await asyncio.sleep(0)
    await writer.commit_waiting()
    return await taking


@pytest.fixture
def play(tmp_path, log_folder, bucket, monkeypatch):
    monkeypatch.setattr(serve.log.compaction, "MIN_SEGMENTS", 3)
    monkeypatch.setattr(serve.log.retention, "EVERY_RECORDS", 25)
    monkeypatch.setattr(serve.ingest.writer, "TAKE_BACK_S", 0.0)
    monkeypatch.setattr(serve.storage.bucket, "RENEW_S", 0.3)
    monkeypatch.setattr(serve.storage.bucket, "EXPIRE_S", 1.5)
    monkeypatch.setattr(serve.storage.bucket, "RETRY_S", timedelta(seconds=0.06))
    serve.storage.bucket._store.cache_clear()
    bucket.slow_s = 0.05
    yield Play(tmp_path, log_folder, bucket)
    bucket.fault = lambda method, path: None
    serve.storage.bucket._store.cache_clear()


def at_random(whats, share, seed):
    """Return a fault that hits a share of the requests."""
    draw = random.Random(seed)
    return lambda method, path: draw.choice(whats) if draw.random() < share else None


@pytest.mark.parametrize("what", FAULTS)
def test_a_writer_goes_on_through_a_fault_and_a_takeover_under_it(play, bucket, what):
    # What is forbidden is not repeated by the library: a takeover needs some twenty replies.
    share = 0.05 if what == "403" else 0.25

    async def scenario():
        writer = play.writer()
        await play.send(writer)
        with bucket.remembering():
            await asyncio.to_thread(writer.upkeep)
            for step in range(6):
                bucket.fault = at_random([what], share, f"{what}{step}")
                await play.send(writer)
                await asyncio.to_thread(writer.upkeep)
        play_on = play.writer()
        bucket.fault = at_random([what], share, what)
        await play_on.take_over()
        await play.send(play_on)
        serve.ingest.writer.TAKE_BACK_S = 1e9
        # The first one is fenced, whether or not the bucket tells it so.
        with pytest.raises((WriterFenced, StoreUnavailable)):
            await taken(writer, [Event("other", "v", "a", "join")])
        await asyncio.to_thread(writer.upkeep)
        await asyncio.to_thread(play_on.upkeep)
        bucket.fault = lambda method, path: None
        await play.send(play_on)
        await asyncio.to_thread(play_on.upkeep)
        await play_on.finish()

    asyncio.run(scenario())
    assert bucket.num_failed(what) > 1
    assert snapshots(play.log)
    lease = read_lease(play.log)
    assert lease.released
    play.assert_once_and_whole()


@pytest.mark.parametrize("what", ["closed", "403", "lost 503"])
def test_a_writer_commits_without_a_bucket_and_writes_the_log_later(play, bucket, what):
    async def scenario():
        writer = play.writer()
        await play.send(writer)
        with bucket.failing(what):
            for _ in range(3):
                num_requests = len(bucket.seen)
                await play.send(writer)
                assert len(bucket.seen) == num_requests
                await asyncio.to_thread(writer.upkeep)
        assert writer.counts["roll_failed"] == 3
        await asyncio.to_thread(writer.upkeep)
        assert not writer._unflushed.any()
        await writer.finish()

    asyncio.run(scenario())
    play.assert_once_and_whole()


def test_a_service_waits_for_a_bucket_and_answers_meanwhile(play, bucket):
    async def scenario():
        writer = play.writer()
        with bucket.failing("closed"):
            starting = asyncio.create_task(writer.take_over())
            longest_s, last_s = 0.0, (began_s := time.monotonic())
            while not starting.done():
                await asyncio.sleep(0.01)
                longest_s, last_s = max(longest_s, time.monotonic() - last_s), time.monotonic()
            assert longest_s < 0.5 * (last_s - began_s), "the event loop waits for the bucket"
        await play.send(writer)
        await writer.finish()

    asyncio.run(scenario())
    play.assert_once_and_whole()


def test_a_takeover_refuses_a_list_that_ends_before_the_lease(play, bucket):
    play.load("lmdb:two")

    async def scenario():
        writer = play.writer()
        await play.send(writer)
        await writer.finish()
        with bucket.remembering():
            for name in ("viewers", "candidates", "exposures", "events"):
                segments(play.log, name)
            list((play.log / "snapshots").glob("*/*"))
        again = play.writer()
        await play.send(again)
        await again.finish()
        other = play.writer("lmdb:two")
        with bucket.failing("stale", "GET", "list-type"):
            with pytest.raises(TabrankError, match=r"the bucket's list of s3://.* ends with number"):
                play.load("lmdb:three")
            with pytest.raises(StoreUnavailable, match=r"the bucket's list of s3://.* ends with number"):
                await play.send(other, until_s=0.0)
        await play.send(other)
        await other.finish()
        play.load("lmdb:three")

    asyncio.run(scenario())
    play.assert_once_and_whole("lmdb:two")


class Paused(Exception):
    """A writer stood still here, and another one acted meanwhile."""


@pytest.mark.parametrize("at", ["before the upload", "after the upload"])
def test_a_segment_of_a_writer_that_stood_still_in_its_upload_does_not_stay(play, bucket, monkeypatch, at):
    """It may have viewers who were erased meanwhile."""
    put, others = BucketPath.put, []

    def paused(path, content, mode="overwrite"):
        if "/events/" in str(path) and not others:
            others.append(path)
            if at == "after the upload":
                put(path, content, mode)
            asyncio.run(of_another())
            if at == "after the upload":
                return
        put(path, content, mode)

    async def of_another():
        other = play.writer()
        await play.send(other)
        await asyncio.to_thread(other.upkeep)
        await other.finish()

    async def scenario():
        writer = play.writer()
        await play.send(writer)
        monkeypatch.setattr(BucketPath, "put", paused)
        await asyncio.to_thread(writer.upkeep)
        monkeypatch.undo()
        return writer

    asyncio.run(scenario())
    assert not others[0].exists()
    play.assert_once_and_whole()


def test_a_merge_that_stood_still_brings_no_erased_viewer_back(play, bucket, monkeypatch):
    merge, is_paused = serve.log.compaction._batches, []

    def pausing(paths):
        yield from merge(paths)
        if not is_paused:
            is_paused.append(True)
            # Its lock has expired meanwhile.
            (play.log / ".lock").unlink(missing_ok=True)
            forget(play.log, ["v1"], play.folder / "models")

    async def scenario():
        writer = play.writer()
        for _ in range(5):
            await play.send(writer)
            await asyncio.to_thread(writer.flush_journal)
        monkeypatch.setattr(serve.log.compaction, "_batches", pausing)
        await asyncio.to_thread(writer.upkeep)
        await play.send(writer)
        await writer.finish()

    asyncio.run(scenario())
    assert is_paused
    for segment in segments(play.log, "events"):
        viewers = pq.read_table(segment.path)["viewer"].to_pylist()
        if segment.first < 30:
            assert "v1" not in viewers


def test_a_snapshot_that_cannot_be_read_now_is_no_damaged_one(play, bucket):
    async def scenario():
        writer = play.writer()
        for _ in range(5):
            await play.send(writer)
        await asyncio.to_thread(writer.upkeep)
        await writer.finish()

    asyncio.run(scenario())
    assert snapshots(play.log)
    with bucket.failing("403", "GET", "meta.json"), pytest.raises(BucketError, match="Access Denied"):
        snapshots(play.log)


def test_a_log_that_was_copied_from_a_disk_has_left_its_store_behind(play):
    copied = Lease.of(play.folder / "log", "lmdb:store", "tiny", TOML, play.folder)
    assert copied.address(play.folder / "log") == f"lmdb:{play.folder / 'store'}"
    assert copied.address(play.log) is None


def test_a_server_that_ignores_the_condition_of_a_write_is_refused(play, monkeypatch):
    put = BucketPath.put
    first = replace(Lease.of(play.log, "lmdb:store", "tiny", TOML, play.folder), epoch=1)
    assert swap_lease(play.log, None, first)
    monkeypatch.setattr(BucketPath, "put", lambda path, content, mode="overwrite": put(path, content))
    with pytest.raises(TabrankError, match="ignores the condition of a write"):
        swap_lease(play.log, first, replace(first, epoch=2))
    assert read_lease(play.log) == first


def test_a_snapshot_whose_rows_another_process_cleaned_up_is_whole(play, bucket, monkeypatch):
    write = serve.log.snapshots.write_whole

    def after_a_clean_up(path, content):
        if path.name == "meta.json":
            serve.log.snapshots.clean_up(play.log)
        write(path, content)

    async def scenario():
        writer = play.writer()
        for _ in range(5):
            await play.send(writer)
        monkeypatch.setattr(serve.log.snapshots, "write_whole", after_a_clean_up)
        await asyncio.to_thread(writer.upkeep)
        await writer.finish()

    asyncio.run(scenario())
    assert snapshots(play.log)
    play.assert_once_and_whole()


@pytest.mark.integration
@pytest.mark.no_ray
@pytest.mark.parametrize("seed", range(10))
def test_writers_of_one_log_go_on_through_any_faults(play, bucket, seed):
    draw = random.Random(seed)

    async def scenario():
        writers = [play.writer()]
        with bucket.remembering():
            await play.send(writers[0])
            for _ in range(12):
                whats, share = draw.choice([(FAULTS, 0.02), (FAULTS, 0.05), (REPEATED, 0.3)])
                bucket.fault = at_random(whats, share, draw.random())
                if draw.random() < 0.3:
                    writers.append(play.writer())
                writer = draw.choice(writers)
                await play.send(writer)
                if draw.random() < 0.7:
                    await asyncio.to_thread(writer.upkeep)
        bucket.fault = lambda method, path: None
        last = play.writer()
        await play.send(last)
        await asyncio.to_thread(last.upkeep)
        await last.finish()

    asyncio.run(scenario())
    play.assert_once_and_whole()
