"""Retention of some days: a snapshot replaces the deleted records."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import re
import shutil
from itertools import pairwise

import numpy as np
import pyarrow.parquet as pq
import pytest

import serve.log.compaction
import serve.log.retention
import serve.log.snapshots
from serve.contract.errors import TabrankError
from serve.features.rows import Schema
from serve.features.surface import read_surface
from serve.ingest.backfill import load
from serve.log.reader import TABLES, read_log
from serve.log.replay import Replay
from serve.log.snapshots import snapshots, truncation_point
from serve.log.writer import write_log
from serve.storage.bucket import place
from tests.support.live_service import event
from tests.support.logging_service import Logging, assert_same_state, assert_same_sums, assert_served_features
from tests.support.retention_service import DAY_MS, DAYS, KEEP_DAYS, Kept, a_day, at, weeks
from tests.support.s3_server import named
from tests.support.small_surface import TOML, tables
from training.audit.audit import audit
from training.data.dataset import build
from training.data.split import split


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kept")
    write_log(folder / "log", tables())
    Kept(folder, folder / "log").run(weeks)
    return folder


@pytest.fixture
def service(tmp_path, made):
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    return Kept(tmp_path, None)


async def one_more(service):
    """Record an event, so that a snapshot is due."""
    await service.events(event("more", "click", "a", "ann", at(DAYS) + 60_000))


def numbers(service):
    """Return the numbers of the records that are in segments."""
    return {n for name in TABLES for n in pq.read_table(service.folder / "log" / name)["seq"].to_pylist()}


def named_alike(files):
    """Return a log's files but locks, without the checksums in the names of snapshots' rows."""
    return [re.sub(r"-[0-9a-f]{12}\.", ".", file) for file in files if file[0] != "."]


def horizon(service):
    return truncation_point(service.folder / "log")


def test_a_replay_of_what_is_left_ends_in_the_state_of_the_store(service):
    replay = service.replay()
    replay.finish()
    assert_same_state(service.stored(), replay)


def test_every_ranking_that_is_left_saw_the_features_that_the_log_gives(service):
    replay = service.replay()
    compared = assert_served_features(service, replay)
    expected = {f"r{day}-{i}x" for day in range(DAYS - KEEP_DAYS + 2, DAYS + 1) for i in range(6)}
    assert set(compared) >= expected
    assert replay.before_snapshot.sum() == len(service.log().exposures) - len(compared) >= 3


def test_a_store_filled_from_the_rest_of_a_log_equals_the_served_one(service):
    before = service.stored()
    load(service.surface, service.folder / "log", "lmdb:store", service.folder)
    assert_same_sums(before, service.stored())


def test_what_lies_before_the_horizon_is_deleted_and_nothing_else(service):
    seq = horizon(service)
    first, *_ = taken = snapshots(service.folder / "log")
    assert first.seq == seq
    ages = [(at(DAYS) - snapshot.ts_ms) / DAY_MS for snapshot in taken]
    assert KEEP_DAYS - 0.1 < ages[0] < KEEP_DAYS * 1.25 + 1.1
    *spaced, second, newest = ages
    assert (round(second), round(newest)) == (1, 0)
    assert all(1.9 < older - newer < 3.1 for older, newer in pairwise(spaced))
    for name in ("candidates", "exposures", "events"):
        served = pq.read_table(service.folder / "log" / name)["seq"].to_numpy()
        assert served.min() > seq
    last = max(pq.read_table(service.folder / "log" / name)["seq"].to_numpy().max() for name in TABLES)
    numbers = np.concatenate(
        [pq.read_table(service.folder / "log" / name)["seq"].to_numpy() for name in TABLES]
    )
    assert set(range(seq + 1, last + 1)) <= set(numbers.tolist())
    assert (service.folder / "log" / "viewers.parquet").exists(), "base tables are the user's"


def test_a_log_in_a_bucket_is_kept_as_long_as_one_on_a_disk(service, tmp_path, bucket, monkeypatch):
    # On a busy machine, the first record waits for many requests to the bucket.
    monkeypatch.setattr("serve.ranking.record_intake.TAKE_S", 30.0)
    away, name = tmp_path / "away", named("log")
    away.mkdir()
    write_log(place(name), tables())
    other = Kept(away, None)
    load(other.surface, place(name), "lmdb:store", away)
    other.args = dataclasses.replace(other.args, log=name)
    other.run(weeks)

    assert truncation_point(place(name)) == horizon(service) > 0
    assert named_alike(other.files()) == named_alike(service.files())
    replay = other.replay()
    assert assert_served_features(other, replay) == assert_served_features(service, service.replay())
    assert replay.before_snapshot.any()
    replay.finish()
    assert_same_state(other.stored(), replay)
    # A store is filled from what is left.
    before = other.stored()
    load(other.surface, place(name), "lmdb:again", away)
    other.args = dataclasses.replace(other.args, store="lmdb:again")
    assert_same_sums(before, other.stored())


def test_the_last_segment_of_a_table_stays(service):
    assert len(service.segments("viewers")) >= 1
    service.tend(at(DAYS + 40))
    service.tend(at(DAYS + 80))
    assert [len(service.segments(name)) for name in TABLES] == [1] * 4
    replay = service.replay()
    replay.finish()
    assert_same_state(service.stored(), replay)


def test_a_log_that_is_kept_for_ever_has_the_newest_two_snapshots(tmp_path, log_folder):
    service = Kept(tmp_path, log_folder)

    async def days(service):
        for day in range(1, 5):
            now_ms = await a_day(service, day)
            await asyncio.to_thread(service.ingester.flush_journal)
            await asyncio.to_thread(service.tend, now_ms, keep_days=0)

    service.run(days)
    before = service.files()
    taken = snapshots(tmp_path / "log")
    assert [round((at(4) - snapshot.ts_ms) / DAY_MS) for snapshot in taken] == [1, 0]
    # An unchanged state needs no other snapshot.
    service.tend(at(40), keep_days=0)
    assert service.files() == before
    assert truncation_point(tmp_path / "log") == 0
    replay = service.replay()
    replay.finish()
    assert_same_state(service.stored(), replay)


def test_what_a_longer_retention_needed_is_kept_where_it_is_turned_off(service):
    service.run(one_more)
    service.tend(at(DAYS + 40), keep_days=0)
    assert snapshots(service.folder / "log")[0].seq == horizon(service)
    replay = service.replay()
    replay.finish()
    assert_same_state(service.stored(), replay)


@pytest.mark.parametrize(("hours", "num_records", "is_due"), [(0.9, 1, False), (0.9, 2, True), (1, 1, True)])
def test_a_snapshot_is_due_after_an_hour_or_many_records(service, monkeypatch, hours, num_records, is_due):
    newest = snapshots(service.folder / "log")[-1]
    monkeypatch.setattr(serve.log.retention, "EVERY_RECORDS", 2)

    async def some(service):
        for i in range(num_records):
            await service.events(event(f"more{i}", "click", "a", "ann", at(DAYS) + 60_000))

    service.run(some)
    service.tend(newest.ts_ms + int(hours * 3_600_000))
    assert (snapshots(service.folder / "log")[-1].seq > newest.seq) == is_due


def test_snapshots_of_a_rebuild_keep_no_segments_apart(service, monkeypatch):
    monkeypatch.setattr(serve.log.retention, "EVERY_MS", 0)
    monkeypatch.setattr(serve.log.compaction, "MIN_SEGMENTS", 5)
    before = len(service.segments())

    async def hours(service):
        for hour in range(5):
            await service.events(event(f"more{hour}", "click", "a", "ann", at(DAYS) + 60_000))
            await asyncio.to_thread(service.ingester.flush_journal)
            await asyncio.to_thread(service.tend, at(DAYS) + 3_600_000 * hour)

    service.run(hours)
    assert len(service.segments()) <= before + 1
    replay = service.replay()
    replay.finish()
    assert_same_state(service.stored(), replay)


def test_a_segment_that_goes_on_after_the_horizon_stays(service, monkeypatch):
    monkeypatch.setattr(serve.log.compaction, "MIN_SEGMENTS", 2)
    # Compact as if there were no snapshots.
    serve.log.compaction.compact(service.served())
    assert len(service.segments("exposures")) == 1
    monkeypatch.setattr(serve.log.compaction, "MIN_SEGMENTS", 100)
    service.run(lambda service: a_day(service, DAYS + 1))
    service.tend(at(DAYS + 3))
    assert horizon(service) > min(service.segments("exposures"))
    assert len(service.segments("exposures")) == 2
    replay = service.replay()
    assert len(assert_served_features(service, replay)) > 6
    replay.finish()
    assert_same_state(service.stored(), replay)


@pytest.mark.parametrize("step", ["rows", "put", "set_truncation_point", "unlink", "remove_folder"])
def test_an_end_at_any_step_loses_nothing(service, monkeypatch, step):
    service.run(one_more)
    exposures = set(service.log().exposures["request_id"].to_pylist())
    now_ms = at(DAYS + 3)

    def end(*args):
        raise OSError("the end")

    def set_truncation_point(log, seq):
        serve.log.snapshots.set_truncation_point(log, seq)
        end()

    if step == "rows":
        monkeypatch.setattr(serve.log.snapshots, "_write_rows", end)
    elif step == "put":
        monkeypatch.setattr(serve.log.snapshots, "put", end)
    elif step == "set_truncation_point":
        monkeypatch.setattr(serve.log.retention, "set_truncation_point", end)
    elif step == "unlink":
        monkeypatch.setattr(serve.log.retention, "set_truncation_point", set_truncation_point)
    else:
        monkeypatch.setattr(serve.log.snapshots, "remove_folder", end)
    with pytest.raises(OSError, match="the end"):
        service.tend(now_ms)
    monkeypatch.undo()
    replay = service.replay()
    compared = assert_served_features(service, replay)
    replay.finish()
    assert_same_state(service.stored(), replay)
    assert {f"r{day}-{i}x" for day in range(DAYS - 3, DAYS + 1) for i in range(6)} <= set(compared)
    if step in ("rows", "put", "set_truncation_point"):
        assert exposures == set(service.log().exposures["request_id"].to_pylist())
    service.tend(now_ms)
    replay = service.replay()
    replay.finish()
    assert_same_state(service.stored(), replay)


def test_a_service_that_stops_leaves_no_half_a_snapshot(service, monkeypatch):
    monkeypatch.setattr(serve.log.snapshots, "AT_ONCE", 2)
    service.run(one_more)
    now_ms, keep_days = at(DAYS) + 4_000_000, KEEP_DAYS + 1
    service.tend(at(DAYS) + 60_000, keep_days)
    before = service.files()
    service.tend(now_ms, keep_days, wanted=lambda: False)
    assert service.files() == before
    service.tend(now_ms, keep_days)
    assert len({*service.files()} - {*before}) == 3


def test_a_state_of_another_schema_is_refused_with_the_way_out(service):
    other = read_surface(TOML.replace('half_life = "1h"', 'half_life = "2h"'), "tiny.toml")
    log = read_log(service.folder / "log", other)
    with pytest.raises(TabrankError, match=r"snapshot of another state .* without its folder 'snapshots'"):
        build(Schema(other), log)
    for snapshot in snapshots(service.folder / "log"):
        meta = json.loads((snapshot.path / "meta.json").read_text())
        (snapshot.path / "meta.json").write_text(json.dumps(meta | {"format": 2}))
    with pytest.raises(
        TabrankError, match=r"missing, damaged or of another release.* without its folder 'snapshots'"
    ):
        load(other, service.folder / "log", "lmdb:store", service.folder)
    shutil.copytree(service.folder / "log", service.folder / "copy", ignore=lambda *_: ["snapshots"])
    assert len(build(Schema(other), read_log(service.folder / "copy", other)))


def test_a_log_goes_on_from_the_first_snapshot_of_a_state_that_changed(service):
    other = read_surface(TOML.replace('half_life = "1h"', 'half_life = "2h"'), "tiny.toml")
    taken = snapshots(service.folder / "log")
    for snapshot in taken[2:]:
        meta = json.loads((snapshot.path / "meta.json").read_text())
        meta["state_fingerprint"] = Schema(other).fingerprint
        (snapshot.path / "meta.json").write_text(json.dumps(meta))
    replay = Replay(Schema(other), read_log(service.folder / "log", other))
    seen = read_log(service.folder / "log", other).exposures["seen_seq"].fill_null(-1).to_numpy()
    assert (replay.before_snapshot == (seen < taken[2].seq)).all()
    assert taken[2].seq > horizon(service)


def test_a_damaged_snapshot_is_refused_and_nothing_deleted_for_it(service):
    log = service.folder / "log"
    first, second, *_ = snapshots(log)
    second.file("viewer").write_bytes(b"what was left of it")
    before = numbers(service)
    with pytest.raises(TabrankError, match=r"viewers-.*parquet: damaged"):
        service.tend(second.ts_ms + KEEP_DAYS * DAY_MS)
    assert numbers(service) == before
    service.replay()
    first.file("candidate").unlink()
    with pytest.raises(TabrankError, match=r"candidates-.*parquet: cannot be read"):
        service.replay()
    for snapshot in snapshots(log):
        shutil.rmtree(snapshot.path)
    with pytest.raises(
        TabrankError, match="the snapshot that replaced them is missing, damaged or of another release"
    ):
        service.log()


def test_a_snapshot_without_readable_metadata_stops_neither_merging_nor_deleting(service):
    _, second, *_ = snapshots(service.folder / "log")
    (second.path / "meta.json").write_text("{}")
    first = service.segments()[0]
    service.tend(at(DAYS + 40))
    assert service.segments()[0] > first
    replay = service.replay()
    replay.finish()
    assert_same_state(service.stored(), replay)


def test_rows_are_of_the_rankings_that_can_be_computed(service):
    log = read_log(service.folder / "log", service.surface)
    data = build(Schema(service.surface), log)
    replay = service.replay()
    names = np.array(log.exposures["request_id"].to_pylist())
    assert replay.before_snapshot.any()
    named = {data.request_ids[i] for i in set(data.slate.tolist())}
    assert named
    assert not named & set(names[replay.before_snapshot])


def test_before_takes_the_snapshot_along_and_after_goes_on_from_it(service):
    schema = Schema(service.surface)
    log = service.folder / "log"
    whole = build(schema, read_log(log, service.surface))
    before, after = service.folder / "before", service.folder / "after"
    split(log, 0.6, before, after)
    assert not (after / "snapshots").exists()
    assert truncation_point(before) == horizon(service)
    past, rest = (read_log(folder, service.surface) for folder in (before, after))
    assert len(build(schema, past))
    data = build(schema, rest, history=past)
    np.testing.assert_allclose(data.matrix.numeric, whole.matrix.numeric[-len(data) :], rtol=1e-6, atol=1e-6)
    cut_ms = int(rest.exposures["ts_ms"].to_numpy().min())
    assert all(snapshot.ts_ms < cut_ms for snapshot in snapshots(before))


def test_a_cut_before_the_snapshot_is_refused(service):
    with pytest.raises(TabrankError, match="before the snapshot with which it begins"):
        split(service.folder / "log", 0.04, service.folder / "before", service.folder / "after")


def test_numbers_go_on_above_a_snapshots_where_the_store_was_lost(service, monkeypatch):
    async def more(service):
        await a_day(service, DAYS + 1)
        await asyncio.to_thread(service.tend, at(DAYS + 2))
        # The service ends before it has written out the journal.
        store, service.ingester._store = service.ingester._store, None
        store.close()

    service.run(more)
    last = snapshots(service.folder / "log")[-1].seq
    assert last > max(service.segments("events"))
    shutil.rmtree(service.folder / "store")
    load(service.surface, service.folder / "log", "lmdb:store", service.folder, without_journal=True)
    service.run(lambda service: service.events(event("after", ts_ms=at(DAYS + 2))))
    assert min(service.segments("events")[-1:]) > last


def test_a_running_service_writes_snapshots_and_deletes_what_is_too_old(tmp_path, log_folder):
    service = Logging(tmp_path, log_folder)
    service.args = dataclasses.replace(service.args, keep_log_days=8)

    async def scenario(service):
        for day in (1, 4, 7, 13, 16):
            await a_day(service, day)
            for _ in range(200):
                if not service.ingester._waiting and service.store().journal(0, 1) == []:
                    break
                # The last day ends by itself, a second after its last record.
                if day < 16:
                    service.ingester._arrived.set()
                await asyncio.sleep(0.05)
        for _ in range(200):
            if truncation_point(tmp_path / "log"):
                break
            await asyncio.sleep(0.05)

    service.run(scenario)
    assert truncation_point(tmp_path / "log") > 0
    replay = service.replay()
    assert replay.before_snapshot.any()
    assert_served_features(service, replay)
    replay.finish()
    assert_same_state(service.stored(), replay)


def test_files_of_other_names_are_left_alone(service):
    (service.folder / "log" / "events.parquet").rename(service.folder / "log" / "events" / "part-0.parquet")
    service.tend(at(DAYS + 80))
    assert (service.folder / "log" / "events" / "part-0.parquet").exists()
    replay = service.replay()
    replay.finish()
    assert_same_state(service.stored(), replay)


def test_an_audit_holds_and_counts_what_it_cannot_compare(service):
    log, replay = service.folder / "log", service.replay()
    found = audit(log, service.surface)
    assert found["held"]
    num_before = found["before_snapshot"]
    assert num_before == replay.before_snapshot.sum() - len(tables()["exposures"])
    # All records are expired; one snapshot is written.
    service.tend(at(DAYS + 80))
    service.tend(at(DAYS + 160))
    with pytest.raises(TabrankError, match="ranked before the snapshot"):
        audit(log, service.surface)


def test_a_row_group_of_a_snapshot_holds_a_bounded_number_of_bytes(log_folder, tmp_path, monkeypatch):
    service = Kept(tmp_path, log_folder)
    monkeypatch.setattr(serve.log.snapshots, "AT_ONCE_BYTES", 2 * Schema(service.surface).candidate.itemsize)
    store = service.store()
    serve.log.snapshots.write(tmp_path / "log", store, Schema(service.surface), lambda: 0, lambda: True)
    store.close()
    (snapshot,) = snapshots(tmp_path / "log")
    with pq.ParquetFile(snapshot.file("candidate")) as file:
        assert (file.metadata.num_rows, file.metadata.num_row_groups) == (4, 2)
