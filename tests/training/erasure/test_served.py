"""Erase viewers from a log that a service wrote, with snapshots and its store."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import re
import shutil
from contextlib import closing

import numpy as np
import pyarrow.parquet as pq
import pytest

from serve.contract.errors import TabrankError
from serve.contract.hashing import hash64
from serve.features.rows import Schema
from serve.ingest.takeover import Claim
from serve.log.events import entries
from serve.log.snapshots import set_truncation_point, snapshots, truncation_point
from serve.log.writer import write_log
from tests.support.live_service import event
from tests.support.logging_service import Logging, assert_same_state
from tests.support.row_values import audience, flat
from tests.support.small_surface import tables
from training.audit.audit import audit
from training.erasure import states
from training.erasure.forget import forget
from training.fit.prepare import prepare

pytestmark = [pytest.mark.integration, pytest.mark.no_ray]
DAY_MS = 86_400_000
FIRST_DAY, DAYS = 100, 6
A_DAY = 80
VIEWERS = [f"viewer-{i:04}" for i in range(500)]
GONE = VIEWERS[::10]
ROOMS = ["a", "b", "d", "new"]


class Kept(Logging):
    """Service that keeps four days of its log: a snapshot replaces the older records."""

    def __init__(self, folder, log_folder=None):
        super().__init__(folder, log_folder)
        self.args = dataclasses.replace(self.args, keep_log_days=4, keep_viewers_days=0)


async def rank(service, viewer, now_ms):
    """Rank for a viewer, and return the events that follow; all ids name the viewer."""
    request_id = f"{viewer}-r{now_ms}"
    price = {"candidate": "zz", "fields": {"price": 1.0}}
    await service.rank(viewer, [*ROOMS, price], now_ms, request_id=request_id, context={"hour": 3.0})
    anonymous = event(f"{viewer}-c{now_ms}", "click", "a", None, now_ms + 20, request_id=request_id)
    return [anonymous, move(viewer, now_ms + 30, request_id=request_id)]


def move(viewer, now_ms, kind="join", **more):
    """Return the event that a viewer comes to its room or leaves it."""
    return event(f"{viewer}-{kind}{now_ms}", kind, ROOMS[int(viewer[-3:]) % 4], viewer, now_ms, **more)


async def days(service):
    """Each day other viewers come, and some of them leave; then the log is cut."""
    for day in range(DAYS):
        now_ms = (FIRST_DAY + day) * DAY_MS
        today = VIEWERS[day * A_DAY : (day + 1) * A_DAY]
        records = [{"type": "candidate", "id": "new", "ts_ms": now_ms, "fields": {"topic": "jazz"}}]
        for number, viewer in enumerate(today):
            now_ms += 20_000
            records.append({"type": "viewer", "id": viewer, "ts_ms": now_ms, "fields": {"language": "en"}})
            if number % 5 == 0:
                await service.events(*records)
                records = await rank(service, viewer, now_ms)
            else:
                records.append(move(viewer, now_ms))
            if number % 3 == 2:
                records.append(move(today[number - 1], now_ms + 1_000, "leave"))
        await service.events(*records)
        await asyncio.to_thread(service.ingester.upkeep)
    # After the last snapshot, some who were there leave, and others come.
    for viewer in [*today[31:51], *VIEWERS[DAYS * A_DAY :]]:
        now_ms += 7_000
        await service.events(move(viewer, now_ms, "leave" if viewer in today else "join"))
    await service.events({"type": "forget", "viewer": VIEWERS[7], "ts_ms": now_ms})


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kept")
    write_log(folder / "log", tables())
    Kept(folder, folder / "log").run(days)
    return folder


@pytest.fixture
def service(tmp_path, made):
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    return Kept(tmp_path)


def everything(folder, schema, store):
    """Yield (place, text or bytes) of all that the log's files, the store and its journal hold."""
    for path in sorted((folder / "log").rglob("*")):
        if path.suffix == ".parquet":
            for column in pq.read_table(path).to_pydict().values():
                yield from ((path, value if isinstance(value, bytes) else repr(value)) for value in column)
        elif path.is_file() and path.name != "LEASE":
            yield path, path.read_text()
    with store.dump() as dump:
        for _, name, row in dump.rows:
            yield "store", name
            yield "store", row
    for _, entry in entries(store):
        yield "journal", repr(entry.records)
    store.close()


def traces(service, viewers):
    """Return where a decoded value has the id of one of these viewers, or its hash."""
    hashes = [hash64(viewer) for viewer in viewers]
    texts = re.compile("|".join([*viewers, *map(str, hashes)]))
    rows = re.compile(b"|".join(re.escape(number.to_bytes(8, "little")) for number in hashes), re.DOTALL)
    found = everything(service.folder, Schema(service.surface), service.store())
    return {
        str(place) for place, value in found if (rows if isinstance(value, bytes) else texts).search(value)
    }


def assert_replayed(service):
    """Assert that a replay of the log ends in the state of the store.

    Presences count the same from the log's end on; a row says it from another origin, because the
    service counted the erased viewers until they left.
    """
    schema, replay, stored = Schema(service.surface), service.replay(), service.stored()
    replay.finish()
    ids, end_ms = list(stored[1].index), service.log().ends_ms
    later = [end_ms + minutes * 60_000 for minutes in range(0, 300, 10)]
    ours, theirs = (
        [audience(schema, rows, ids, now_ms) for now_ms in later]
        for rows in (stored[1], replay.state.candidates)
    )
    assert ours == theirs
    assert np.array(ours).max() > 1
    for rows in (*stored, replay.state.viewers, replay.state.candidates):
        for name, values in flat(rows.table).items():
            if name.endswith(("newest_step", "present", "count_began_ms")):
                values[:] = 0
    assert_same_state(stored, replay)


def files(folder):
    """Return the content of all files but LMDB's table of readers."""
    return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != "lock.mdb"}


def test_no_trace_of_erased_viewers_is_left(service):
    assert len(traces(service, GONE)) > 10
    result = forget(service.folder / "log", [*GONE, "nobody"], service.folder / "models")
    assert traces(service, GONE) == set()
    assert result["unknown"] == 1
    assert result["rows"]["viewers"] < len(GONE) < result["rows"]["events"]
    assert traces(service, VIEWERS[1:2])


def test_a_replay_of_the_rest_equals_the_store(service):
    assert_replayed(service)
    forget(service.folder / "log", GONE, service.folder / "models")
    assert truncation_point(service.folder / "log")
    assert_replayed(service)
    # In the newest snapshot, erased viewers were in the rooms.
    set_truncation_point(service.folder / "log", snapshots(service.folder / "log")[-1].seq)
    assert_replayed(service)


def test_a_dry_run_counts_and_changes_nothing(service):
    before = files(service.folder)
    counted = forget(service.folder / "log", GONE, service.folder / "models", dry_run=True)
    assert files(service.folder) == before
    done = forget(service.folder / "log", GONE, service.folder / "models")
    # The dry run does not count what is in the journal.
    assert all(counted["rows"][name] <= number for name, number in done["rows"].items())
    assert counted["rows"]["snapshots"] == done["rows"]["snapshots"] > 0
    again = forget(service.folder / "log", GONE, service.folder / "models", dry_run=True)
    assert set(again["rows"].values()) == {0}
    assert again["unknown"] == len(GONE)


def test_an_interrupted_erasure_is_finished_by_the_next(service):
    class Killed(BaseException):
        pass

    def kill(share):
        if share > 0.5:
            raise Killed

    with pytest.raises(Killed):
        forget(service.folder / "log", GONE, service.folder / "models", progress=kill)
    assert traces(service, GONE)
    # What a rewriter leaves that ends before it has deleted the rows of before.
    rows = snapshots(service.folder / "log")[-1].file("viewer")
    shutil.copyfile(rows, rows.with_name("viewers-0123456789ab.parquet"))
    forget(service.folder / "log", GONE, service.folder / "models")
    assert traces(service, GONE) == set()
    assert_replayed(service)


def test_a_journal_that_cannot_be_written_is_told_and_written_by_the_next(service, monkeypatch):
    log, models = service.folder / "log", service.folder / "models"
    with monkeypatch.context() as full:
        full.setattr("serve.log.segments.Segments.write", lambda *_: 1 / 0)
        with pytest.raises(TabrankError, match="journal could not be written to the log"):
            forget(log, GONE, models)
    forget(log, GONE, models)
    assert traces(service, GONE) == set()


def test_rows_of_the_erased_are_not_trained_on(service):
    whole = prepare(service.surface, service.folder / "log")
    forget(service.folder / "log", GONE, service.folder / "models")
    rest = prepare(service.surface, service.folder / "log")
    erased = service.log().exposures.filter(service.log().exposures["erased"])
    assert len(erased) > 10
    # An exposure has five candidates.
    num_whole, num_rest = (len(each.rows) + len(each.valid) for each in (whole, rest))
    assert num_whole - num_rest == 5 * len(erased)


def test_an_audit_holds_without_the_erased(service):
    assert audit(service.folder / "log", service.surface)["held"]
    forget(service.folder / "log", GONE, service.folder / "models")
    result = audit(service.folder / "log", service.surface)
    assert result["held"]
    assert 0 < result["erased_rows"] < result["rows"]


def test_the_store_is_asked_for_some_viewers_at_a_time(service, monkeypatch):
    asked = []

    def opened(*given, **more):
        store = open_claimed(*given, **more)
        read = store.read
        store.read = lambda ids, since: asked.append(len(ids)) or read(ids, since)
        return store

    open_claimed = Claim.open
    monkeypatch.setattr(Claim, "open", opened)
    monkeypatch.setattr(states, "AT_ONCE", 30)
    assert forget(service.folder / "log", GONE, service.folder / "models", dry_run=True)["unknown"] == 0
    assert asked == [30, 20]


def test_a_running_service_goes_on(service):
    async def erased(service):
        now_ms = (FIRST_DAY + DAYS - 1) * DAY_MS + 4_000_000
        await service.events(event("before", viewer=GONE[0], ts_ms=now_ms))
        await asyncio.to_thread(forget, service.folder / "log", GONE, service.folder / "models")
        answer = await service.events(event("after", viewer=VIEWERS[1], ts_ms=now_ms))
        assert answer == {"accepted": 1, "duplicates": 0, "rejected": []}
        assert traces(service, GONE) == set()

    service.run(erased)
    assert_replayed(service)


def test_a_log_that_lost_all_its_viewers_is_read(service):
    forget(service.folder / "log", [*VIEWERS, "ann", "bob"], service.folder / "models")
    (left,) = (service.folder / "log" / "viewers").iterdir()
    assert pq.read_table(left)["removed"].to_pylist() == [True]
    log = service.log()
    assert (len(log.viewers), log.exposures["viewer"].null_count) == (1, len(log.exposures))


def test_a_snapshot_is_of_its_own_surface(service, tmp_path):
    copy = tmp_path / "copy" / "log"
    shutil.copytree(service.folder / "log", copy)
    lease = json.loads((copy / "LEASE").read_text())
    (copy / "LEASE").write_text(json.dumps(lease | {"surface": "none"}))
    assert forget(copy, GONE, service.folder / "models")["rows"]["snapshots"] > 0
    left = {name for snapshot in snapshots(copy) for name in snapshot.ids("viewer").to_pylist()}
    assert not left.intersection(GONE)


def test_a_snapshot_of_another_state_is_refused_before_anything_changes(service):
    meta = snapshots(service.folder / "log")[-1].path / "meta.json"
    meta.write_text(meta.read_text().replace(Schema(service.surface).fingerprint, "0" * 64))
    before = files(service.folder)
    with pytest.raises(TabrankError, match=r"of another state \(schema 000000000000\)\. Use the"):
        forget(service.folder / "log", GONE, service.folder / "models")
    assert {path: content for path, content in files(service.folder).items() if path in before} == before


def test_a_copy_of_a_log_has_no_store_and_loses_the_viewers(service, tmp_path):
    copy = tmp_path / "copy" / "log"
    shutil.copytree(service.folder / "log", copy)
    before = service.stored()
    assert forget(copy, GONE, service.folder / "models")["store"] is None
    texts = " ".join(str(pq.read_table(path).to_pylist()) for path in copy.rglob("*.parquet"))
    assert not set(GONE).intersection(re.findall(r"viewer-\d{4}", texts))
    assert len(service.stored()[0]) == len(before[0])


def test_a_log_of_an_earlier_release_names_no_store_and_is_refused(service):
    (service.folder / "log" / "LEASE").unlink()
    with pytest.raises(TabrankError, match="has no LEASE, so its store is unknown; start its service once"):
        forget(service.folder / "log", GONE, service.folder / "models")


def test_viewers_leave_a_store_in_redis(tmp_path, log_folder, empty_redis_server):
    service = Logging(tmp_path, log_folder, store=empty_redis_server.url)
    service.run(lambda service: service.events(event("e9", "click", ts_ms=70_000)))
    assert forget(tmp_path / "log", ["ann"], tmp_path / "models")["store"] == empty_redis_server.url
    assert list(service.stored()[0].index) == ["bob"]
    with closing(service.store()) as store:
        assert store.journal(0, 9) == []
