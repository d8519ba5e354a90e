"""Viewers not seen for long are forgotten, some at a time."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import replace

import pytest

from serve.contract.errors import StoreUnavailable
from serve.contract.records import Event, Forget, Viewer
from serve.features.rows import Schema
from serve.features.surface import read_surface
from serve.ingest import expiry, writer
from serve.ingest.intake import Group
from serve.ingest.writer import Ingester
from serve.log.reader import read_log
from serve.log.replay import Replay
from serve.stores.factory import open_store
from tests.support.live_service import Live, event
from tests.support.logging_service import assert_same_state, stored_rows
from tests.support.memory_store import MemoryStore
from tests.support.row_values import audience
from tests.support.small_surface import TOML

DAY_MS = 86_400_000


class Visits:
    """Ingest with the event clock, and its store and log."""

    def __init__(self, folder, log_folder, days=90):
        self.live = Live(folder, log_folder)
        self.folder = folder
        self.args = replace(self.live.args, log="log", keep_viewers_days=days)
        self.counts, self.sizes = {}, []

    def run(self, *calls):
        """Commit each call's records by itself, then write the log."""

        async def scenario():
            ingester = Ingester(self.args, self.folder)
            for records in calls:
                taking = asyncio.ensure_future(ingester.take(records, 100 * len(records)))
                await asyncio.sleep(0)
                await ingester.commit_waiting()
                assert (await taking).rejected == {}
                self.sizes.append(ingester._expiry.store_bytes)
            self.counts = ingester.counts
            ingester.stop()
            await ingester.run()

        asyncio.run(scenario())
        schema = Schema(self.live.surface)
        store = open_store(self.args.store, "tiny", schema.fingerprint, base=self.folder, writable=False)
        self.stored = stored_rows(schema, store)
        replay = Replay(schema, read_log(self.folder / "log", self.live.surface))
        replay.finish()
        assert_same_state(self.stored, replay)
        return set(self.stored[0].index)


def visit(viewer, ts_ms, kind="click"):
    return Event(f"{viewer} at {ts_ms}", viewer, "a", kind, ts_ms=ts_ms)


@pytest.fixture
def visits(tmp_path, log_folder, monkeypatch):
    # Examine viewers in each commit.
    monkeypatch.setattr(expiry, "EVERY_S", 0.0)
    return Visits(tmp_path, log_folder)


def test_a_viewer_is_forgotten_so_long_after_the_last_record(visits):
    first = [visit("cyd", DAY_MS), visit("dan", DAY_MS), Viewer("eve", {"language": "en"}, ts_ms=DAY_MS)]
    known = visits.run(
        first,
        [visit("dan", 60 * DAY_MS)],
        [visit("fay", 91 * DAY_MS)],
        [visit("fay", 91 * DAY_MS + 1)],
    )
    # The log that filled the store has ann and bob.
    assert known == {"ann", "bob", "dan", "fay"}
    assert (visits.counts["expired"], visits.counts["forget"]) == (2, 0)


def test_a_record_with_an_old_time_counts_as_seen_when_it_comes(visits):
    old = Viewer("cyd", {"language": "en"}, ts_ms=DAY_MS)
    assert visits.run([old, visit("dan", 200 * DAY_MS)], [visit("dan", 201 * DAY_MS)]) >= {"cyd"}


def test_an_old_log_loses_nobody_before_the_days_since_its_load_have_passed(visits):
    now_ms = int(time.time() * 1e3)
    assert visits.run([visit("cyd", now_ms + 89 * DAY_MS)], [visit("cyd", now_ms + 89 * DAY_MS + 1)]) == {
        "ann",
        "bob",
        "cyd",
    }
    assert visits.run([visit("cyd", now_ms + 91 * DAY_MS)], [visit("cyd", now_ms + 91 * DAY_MS + 1)]) == {
        "cyd"
    }


def test_viewers_are_examined_now_and_then(visits, monkeypatch):
    monkeypatch.setattr(expiry, "EVERY_S", 3_600.0)
    known = visits.run([visit("cyd", DAY_MS)], *([visit("dan", 100 * DAY_MS + i)] for i in range(5)))
    assert known >= {"cyd", "dan"}
    assert len(set(visits.sizes)) == 1, "measured once, with the first commit"
    monkeypatch.setattr(expiry, "EVERY_DUE", 2)
    known = visits.run(*([visit("dan", 101 * DAY_MS + i)] for i in range(19)))
    assert "cyd" not in known


def test_the_store_is_measured_before_records_come(visits):
    visits.run([visit("cyd", DAY_MS)])

    async def size(**args):
        ingester = Ingester(replace(visits.args, **args), visits.folder)
        running = asyncio.ensure_future(ingester.run())
        ingester.stop()
        await running
        return ingester._expiry.store_bytes

    assert asyncio.run(size()) > 0
    # Where there is no store yet, records make one.
    assert asyncio.run(size(store="lmdb:another")) == 0


@pytest.mark.parametrize("most", [1_000, 20])
def test_viewers_who_come_once_stay_for_the_days_and_no_longer(monkeypatch, most):
    monkeypatch.setattr(expiry, "EVERY_S", 3_600.0)
    monkeypatch.setattr(expiry, "EVERY_DUE", 200)
    schema, store = Schema(read_surface(TOML)), MemoryStore()
    store.take_epoch()
    expires, kept = expiry.ViewerExpiry(schema, 5 * DAY_MS, most), schema.blank("viewer")
    # A hundred viewers a day in ten commits, with ids in any order: a store keeps its rows by them.
    for number in range(1_000):
        day = number // 10
        kept["seen_ms"] = day * DAY_MS
        names = [f"{hash((number, i)) % 10**9}-{day}" for i in range(10)]
        group = Group(False, [visit(name, day * DAY_MS) for name in names])
        expires.expire(store, group, day * DAY_MS)
        rows = {
            record.viewer: b"" if isinstance(record, Forget) else kept.tobytes() for record in group.records
        }
        store.commit(number + 1, rows, {})
        expires.committed(10, 10)
    days = [int(name.rpartition("-")[2]) for name, _ in store.viewers(b"", 10_000)[1]]
    assert sum(day >= 95 for day in days) == 500
    # At most as many rows again wait for the end of a round.
    assert len(days) <= 1_000


@pytest.mark.parametrize("method", ["viewers", "num_bytes"])
def test_a_store_that_cannot_be_examined_takes_records(visits, monkeypatch, caplog, method):
    def refuse(*arguments):
        raise StoreUnavailable("SCAN is forbidden")

    class Strict:
        def __init__(self, store):
            self._store = store

        def __getattr__(self, name):
            return refuse if name == method else getattr(self._store, name)

    opened = writer.open_store
    monkeypatch.setattr(writer, "open_store", lambda *args, **options: Strict(opened(*args, **options)))
    with caplog.at_level(logging.WARNING, "tabrank"):
        known = visits.run([visit("cyd", DAY_MS)], *([visit("dan", 100 * DAY_MS + i)] for i in range(20)))
    assert ("cyd" in known) == (method == "viewers")
    assert [record.message for record in caplog.records] == [
        "viewers do not expire: StoreUnavailable: SCAN is forbidden"
    ]


def test_a_commit_forgets_no_more_viewers_than_it_may_have_rows(visits, monkeypatch):
    size = Schema(visits.live.surface).viewer.itemsize
    monkeypatch.setattr(writer, "COMMIT_ROW_BYTES", 2 * 3 * size)
    known = visits.run(*([visit(f"v{i}", DAY_MS)] for i in range(9)), [visit("w", 100 * DAY_MS)])
    num_forgotten = 9 - len([name for name in known if name[0] == "v"])
    assert 1 <= num_forgotten == visits.counts["expired"] <= 3


def test_zero_days_keep_all(tmp_path, log_folder):
    visits = Visits(tmp_path, log_folder, days=0)
    assert visits.run([visit("cyd", 1)], [visit("dan", 30_000 * DAY_MS)]) >= {"cyd", "dan"}


def test_a_viewer_who_comes_as_the_row_expires_keeps_it(visits):
    late_ms = 100 * DAY_MS
    known = visits.run([visit("cyd", DAY_MS)], [visit("cyd", late_ms), visit("dan", late_ms)])
    assert known >= {"cyd", "dan"}
    assert visits.counts["expired"] == 0


def test_a_forgotten_viewer_who_comes_again_is_new(visits):
    visits.run([visit("cyd", DAY_MS, "join")], [visit("dan", 100 * DAY_MS)], [visit("cyd", 100 * DAY_MS)])
    viewers = visits.stored[0]
    row = viewers.table[viewers.index["cyd"]]
    assert (row["seen_ms"], row["_state"]["presence0"]["candidate"].any()) == (100 * DAY_MS, False)


def test_what_is_forgotten_is_logged_for_replays(visits):
    visits.run([visit("cyd", DAY_MS)], [visit("dan", 100 * DAY_MS)])
    log = read_log(visits.folder / "log", visits.live.surface)
    removed = [row["id"] for row in log.viewers.to_pylist() if row["removed"]]
    assert removed == ["cyd"]


def test_rankings_see_an_expired_viewer_as_unknown(tmp_path, log_folder, monkeypatch):
    monkeypatch.setattr(expiry, "EVERY_S", 0.0)
    service = Live(tmp_path, log_folder)
    assert service.args.keep_viewers_days == 90

    async def scenario(service):
        await service.events(event("e1", viewer="cyd", ts_ms=DAY_MS))
        before = await service.rank("cyd", now_ms=DAY_MS + 1, traffic="test")
        await service.events(event("e2", viewer="ann", ts_ms=92 * DAY_MS))
        return before, await service.rank("cyd", now_ms=92 * DAY_MS + 1, traffic="test")

    answers = service.run(scenario)
    assert [answer["unknown_viewer"] for answer in answers] == [False, True]


def test_a_forget_of_a_client_leaves_the_audience(visits):
    visits.run(
        [visit("cyd", DAY_MS, "join"), visit("dan", DAY_MS, "join")],
        [Forget("cyd", ts_ms=DAY_MS + 1)],
    )
    schema = Schema(visits.live.surface)
    assert audience(schema, visits.stored[1], ["a"], DAY_MS + 1) == [1]
