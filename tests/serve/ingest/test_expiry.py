"""Viewers not seen for long are forgotten, and a store that is full forgets the oldest first."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from live import Live, event
from served import assert_same_state, stored_rows

from serve.contract.records import Event, Forget, Viewer
from serve.features.rows import Schema
from serve.ingest import expiry
from serve.ingest.writer import Ingester
from serve.log.reader import read_log
from serve.log.replay import Replay
from serve.stores.factory import open_store

DAY_MS = 86_400_000


class Visits:
    """Ingest with the event clock, and its store and log."""

    def __init__(self, folder, log_folder, days=90):
        self.live = Live(folder, log_folder)
        self.folder = folder
        self.args = replace(self.live.args, log="log", keep_viewers_days=days)
        self.counts = {}

    def run(self, *calls):
        """Commit each call's records by itself, then write the log."""

        async def scenario():
            ingester = Ingester(self.args, self.folder)
            for records in calls:
                taking = asyncio.ensure_future(ingester.take(records, 100 * len(records)))
                await asyncio.sleep(0)
                await ingester.commit_waiting()
                assert (await taking).rejected == {}
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
def visits(tmp_path, log_folder):
    return Visits(tmp_path, log_folder)


def test_a_viewer_is_forgotten_so_long_after_the_last_record(visits):
    first = [visit("cyd", DAY_MS), visit("dan", DAY_MS), Viewer("eve", {"language": "en"}, ts_ms=DAY_MS)]
    known = visits.run(
        first,
        [visit("dan", 60 * DAY_MS)],
        [visit("fay", 91 * DAY_MS)],
        [visit("fay", 91 * DAY_MS + 1)],
    )
    # The log's own table names ann and bob without a time.
    assert known == {"ann", "bob", "dan", "fay"}
    assert visits.counts["expired"] == 2


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
    assert (row["seen_ms"], row["presence0_marks"].any()) == (100 * DAY_MS, False)


def test_a_full_store_forgets_those_not_seen_for_longest(visits, monkeypatch):
    monkeypatch.setattr(expiry, "EXAMINED", 20)
    sizes, kept = [], None

    async def scenario():
        nonlocal kept
        ingester = Ingester(visits.args, visits.folder)
        monkeypatch.setattr(expiry, "MAX_STORE_BYTES", 1 << 20)
        for day in range(60):
            # Ids in any order: a store may keep its rows by them.
            records = [visit(f"{hash((day, i)) % 10**9}-{day}", day * 1_000) for i in range(100)]
            records.append(visit("daily", day * 1_000))
            await_it = asyncio.ensure_future(ingester.take(records, 10_000))
            await asyncio.sleep(0)
            await ingester.commit_waiting()
            await await_it
            ingester.flush_journal()
            sizes.append(ingester._expiry.store_bytes)
        ingester.stop()
        await ingester.run()

    asyncio.run(scenario())
    assert max(sizes) < 1.5 * (1 << 20)
    known = visits.run([visit("last", 60_000)])
    assert {"ann", "bob", "daily"} <= known
    days = [int(name.rpartition("-")[2]) for name in known if name[0].isdigit()]
    # Those who stay came late: of all who came, half came after day 30.
    assert sum(day >= 30 for day in days) > 0.8 * len(days)


def test_what_is_forgotten_is_logged_for_replays(visits):
    visits.run([visit("cyd", DAY_MS)], [visit("dan", 100 * DAY_MS)])
    log = read_log(visits.folder / "log", visits.live.surface)
    removed = [row["id"] for row in log.viewers.to_pylist() if row["removed"]]
    assert removed == ["cyd"]


def test_rankings_see_an_expired_viewer_as_unknown(tmp_path, log_folder):
    service = Live(tmp_path, log_folder)
    service.args = replace(service.args, keep_viewers_days=90)

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
    candidates = visits.stored[1]
    assert candidates.table["presence0_left"][candidates.index["a"]].max() == 1
