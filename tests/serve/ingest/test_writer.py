"""The writer under failures: another writer, a failing store, a log that cannot be written."""

from __future__ import annotations

import asyncio
import errno
import shutil
import time
from collections import Counter
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import serve.ingest.writer
import serve.log.compaction
import serve.log.segments
from serve.contract.errors import StoreUnavailable, TabrankError, WriterFenced
from serve.contract.records import Candidate, Event
from serve.features.kinds.counters import Sum, Sums
from serve.features.rows import Schema
from serve.ingest.backfill import load
from serve.ingest.writer import MAX_WAITING, MAX_WAITING_BYTES, Busy, Ingester
from serve.log.events import Exposure, entries
from serve.log.lease import read_lease, swap_lease
from serve.log.retention import rewriting
from serve.log.throttle import CpuThrottle
from serve.log.writer import write_log
from tests.support.live_service import Live, event
from tests.support.row_values import audience as audience_of
from tests.support.small_surface import tables


@pytest.fixture
def service(tmp_path, log_folder):
    return Live(tmp_path, log_folder)


def served(service, table):
    return pq.read_table(service.folder / "served" / table)


def segments(service):
    return sorted((service.folder / "served" / "events").glob("*.parquet"))


def audience(answer):
    return next(r["features"]["audience"] for r in answer["ranking"] if r["candidate"] == "a")


@pytest.fixture(params=["lmdb", pytest.param("redis", marks=[pytest.mark.integration, pytest.mark.no_ray])])
def served_store(request):
    return "lmdb:store" if request.param == "lmdb" else request.getfixturevalue("redis_server").url


def test_a_load_into_the_store_of_a_running_service_is_refused(tmp_path, log_folder, served_store):
    service = Live(tmp_path, log_folder, store=served_store)
    loaded = (service.surface, log_folder, served_store, service.folder)

    async def scenario(service):
        await service.events(event("e9"))
        before = audience(await service.rank(now_ms=52_000, explain=True))
        with pytest.raises(
            TabrankError, match=r"--store .*: a running service or another load writes to it; stop that first"
        ):
            await asyncio.to_thread(load, *loaded)
        # Another store can be filled meanwhile.
        await asyncio.to_thread(load, service.surface, log_folder, "lmdb:other", service.folder)
        return before, audience(await service.rank(now_ms=52_000, explain=True))

    before, after = service.run(scenario)
    assert before == after
    assert load(*loaded)["viewers"] == 2


def test_a_writer_whose_log_was_taken_over_refuses_and_takes_it_back_later(service, monkeypatch):
    monkeypatch.setattr(serve.ingest.writer, "TAKE_BACK_S", 0.5)

    async def scenario(service):
        other = Ingester(service.args, service.folder)
        await service.events(event("mine0", viewer="v0"))
        running = asyncio.create_task(other.run())
        await other.take([Event("other0", "w0", "a", "join", ts_ms=51_000)], 100)
        with pytest.raises(
            WriterFenced, match=r"another writer has taken over .*: its lease has the store tiny-"
        ):
            await service.ingester.take([Event("mine1", "v1", "a", "join", ts_ms=51_001)], 100)
        await asyncio.sleep(0.6)
        again = await service.ingester.take([Event("mine1", "v1", "a", "join", ts_ms=51_001)], 100)
        with pytest.raises(WriterFenced):
            await other.take([Event("other1", "w1", "a", "join", ts_ms=51_002)], 100)
        other.stop()
        await running
        return again, await service.rank(now_ms=54_000, explain=True)

    again, after = service.run(scenario)
    assert again.duplicates == 0
    assert audience(after) == 3
    assert sorted(served(service, "events")["id"].to_pylist()) == ["mine0", "mine1", "other0"]
    seqs = served(service, "events")["seq"].to_pylist() + served(service, "exposures")["seq"].to_pylist()
    assert len(set(seqs)) == len(seqs)


def test_a_writer_goes_on_at_once_when_the_other_one_has_stopped(service):
    async def scenario(service):
        other = Ingester(service.args, service.folder)
        await service.events(event("mine0"))
        running = asyncio.create_task(other.run())
        await other.take([Event("other0", "w0", "a", "join", ts_ms=51_000)], 100)
        other.stop()
        await running
        return await service.events(event("mine1", viewer="v1", ts_ms=51_001), event("other0"))

    assert service.run(scenario) == {"accepted": 1, "duplicates": 1, "rejected": []}
    assert sorted(served(service, "events")["id"].to_pylist()) == ["mine0", "mine1", "other0"]


def test_a_store_that_lacks_too_many_records_is_refused(service, log_folder, monkeypatch):
    load(service.surface, log_folder, "lmdb:behind", service.folder)
    service.run(lambda service: service.events(*(event(f"e{i}", ts_ms=51_000 + i) for i in range(9))))
    monkeypatch.setattr(serve.ingest.writer, "MAX_CATCH_UP", 8)
    service.args = replace(service.args, store="lmdb:behind")

    async def scenario(service):
        refused = await service.post("/v1/events", {"records": [event("e9")]})
        monkeypatch.setattr(serve.ingest.writer, "MAX_CATCH_UP", 20)
        return refused, await service.events(event("e9"), event("e8"))

    refused, taken = service.run(scenario)
    assert (refused.status_code, taken["accepted"], taken["duplicates"]) == (503, 1, 1)


def test_a_lost_journal_is_refused_until_it_is_given_up(service):
    """The service was killed, and its store deleted."""

    async def killed(service):
        await service.events(event("e9"))
        await asyncio.to_thread(service.ingester.flush_journal)
        await service.events(event("e10"))
        service.ingester.flush_journal = service.ingester._release = lambda: None

    service.run(killed)
    shutil.rmtree(service.folder / "store")
    write_log(service.folder / "base", tables())
    for path in (service.folder / "base").glob("*.parquet"):
        shutil.copy(path, service.folder / "served")
    loaded = (service.surface, service.folder / "served", "lmdb:store", service.folder)
    with pytest.raises(StoreUnavailable, match=r"there is no store tiny-.* --without-journal"):
        load(*loaded)
    assert not (service.folder / "store").exists()
    load(*loaded, without_journal=True)
    assert service.run(lambda service: service.events(event("e10")))["accepted"] == 1
    assert served(service, "events")["id"].to_pylist() == ["e9", "e10"]


def test_a_commit_that_fails_leaves_nothing_behind(service):
    async def scenario(service):
        await service.events(event("e9"))
        store = service.ingester._store
        commit = store.commit

        def broken(*args, **kwargs):
            raise StoreUnavailable("no space left on device")

        store.commit = broken
        refused = await service.post("/v1/events", {"records": [event("e10", viewer="cyd", ts_ms=51_500)]})
        store.commit = commit
        again = await service.events(event("e10", viewer="cyd", ts_ms=51_500))
        return refused, again, await service.rank(now_ms=54_000, explain=True)

    refused, again, after = service.run(scenario)
    assert refused.status_code == 503
    assert again["accepted"] == 1
    assert audience(after) == 1
    assert served(service, "events")["id"].to_pylist() == ["e9", "e10"]


def test_a_log_that_cannot_be_written_stays_in_the_journal(service):
    (service.folder / "served").mkdir()
    (service.folder / "served" / "events").write_text("in the way")
    service.run(lambda service: service.events(event("e9")))
    (service.folder / "served" / "events").unlink()
    service.run(lambda service: service.events(event("e10")))
    assert served(service, "events")["id"].to_pylist() == ["e9", "e10"]


def test_what_is_too_much_is_refused_at_once(service):
    async def scenario(service):
        with pytest.raises(Busy):
            await service.ingester.take(
                [Event(str(i), "ann", "a", "join") for i in range(MAX_WAITING + 1)], 100
            )
        return await service.events(event("e9"))

    assert service.run(scenario)["accepted"] == 1


def test_more_bytes_than_may_wait_are_refused_at_once(service):
    async def scenario(service):
        with pytest.raises(Busy):
            await service.ingester.take([Event("e1", "ann", "a", "join")], MAX_WAITING_BYTES + 1)
        return await service.events(event("e9"))

    assert service.run(scenario)["accepted"] == 1


@pytest.mark.parametrize(
    ("bound", "value"), [("intake.COMMIT_BYTES", 450), ("writer.COMMIT_ROW_BYTES", 3_000)]
)
def test_what_has_gathered_is_committed_in_pieces_of_bounded_size(service, monkeypatch, bound, value):
    monkeypatch.setattr(f"serve.ingest.{bound}", value)
    service.args = replace(service.args, clock="wall")

    async def scenario(service):
        service.ingester.flush_journal = lambda: None
        calls = [service.events(event(f"e{i}", ts_ms=None)) for i in range(20)]
        answers = await asyncio.gather(*calls)
        commits = [len(entry.records) for _, entry in entries(service.ingester._store)]
        await service.events(event("e20", ts_ms=None))
        return answers, commits

    answers, commits = service.run(scenario)
    assert [answer["accepted"] for answer in answers] == [1] * 20
    assert sum(commits) == 21, "one candidate of the log had ended"
    assert len(commits) >= 3
    assert max(commits) <= 10


def test_a_full_table_rejects_a_new_candidate_by_name(tmp_path, log_folder):
    service = Live(tmp_path, log_folder)
    service.run(lambda service: service.rank())
    num_live = len(service.fetcher.live.rows)

    def candidate(id_, ts_ms=51_000, **more):
        return {"type": "candidate", "id": id_, "ts_ms": ts_ms} | more

    async def scenario(service):
        sent = [event("e9", kind="jion"), candidate("n"), candidate("m"), candidate("n"), candidate("a")]
        full = await service.events(*sent, event("e10", ts_ms=51_001))
        both = await service.events(candidate("m"), candidate("n", fields={"price": 2.0}))
        unknown = (await service.rank(candidates=["n", "m"], now_ms=52_000))["unknown_candidates"]
        await service.events(candidate("n", ends_ms=51_000))
        await service.events(event("e11", ts_ms=51_001 + 3_600_000))
        return full, both, unknown, await service.events(candidate("m", 4_000_000))

    service.max_live = num_live + 1
    full, both, unknown, room = service.run(scenario)
    detail = f"the live table is full ({num_live + 1} candidates); end some first"
    assert full["accepted"] == 4
    assert [rejected["pointer"] for rejected in full["rejected"]] == ["/records/0/kind", "/records/2"]
    assert full["rejected"][1]["detail"].startswith(detail)
    assert (both["accepted"], [rejected["pointer"] for rejected in both["rejected"]]) == (1, ["/records/0"])
    assert unknown == ["m"]
    assert (room["accepted"], room["rejected"]) == (1, [])
    assert served(service, "candidates")["id"].to_pylist().count("m") == 1, "what was rejected is not logged"


class Taking:
    """Writer with a wall clock that the test sets; no viewer is known to it before."""

    num_steps, is_settled = 0, True

    def __init__(self, service):
        self.now_ms = 1_800_000_000_000
        args = replace(service.args, clock="wall")
        self.ingester = Ingester(args, service.folder, clock=self)

    def __call__(self):
        return self.now_ms

    async def take(self, *records):
        """Commit the records, and return the result."""
        taking = asyncio.ensure_future(self.ingester.take(records, 100 * len(records)))
        await asyncio.sleep(0)
        await self.ingester.commit_waiting()
        return await taking

    def counts(self, name):
        """Return the joins of a candidate, and its audience."""
        rows = self.ingester._intake.candidates
        sums, joins = rows.table["_state"]["sums"], Sum("candidate", "join")
        audience = audience_of(rows.schema, rows, [name], self.now_ms)
        return sums[rows.index[name], rows.schema.kept(Sums).place[joins]], audience[0]


def test_one_viewer_moves_a_count_by_twenty_in_ten_minutes(service):
    writer = Taking(service)

    def joins(viewer, num, since=0):
        names = (f"{viewer} {writer.now_ms} {i}" for i in range(since, since + num))
        return [Event(name, viewer, "n", "join") for name in names]

    async def scenario():
        await writer.take(Candidate("n", {}), Candidate("m", {}))
        for window in (1, 2):
            many = [await writer.take(*joins("ann", 2_000, 2_000 * i)) for i in range(5)]
            assert [len(result.rejected) for result in many] == [1_980, *[2_000] * 4]
            assert writer.counts("n") == (20 * window, 1)
            writer.now_ms += 600_000
        assert (
            many[0]
            .rejected[20]
            .startswith("the viewer has 20 'join' events of this candidate in ten minutes")
        )
        assert writer.ingester.counts["rejected"] == 2 * 9_980
        # Others, other candidates, other kinds and viewers without an id have their own numbers.
        await writer.take(*joins("ann", 30), *joins("bob", 30), *joins(None, 30))
        assert writer.counts("n") == (40 + 20 + 20 + 30, 2)
        others = [Event("c", "ann", "n", "click"), Event("m", "ann", "m", "join")]
        assert (await writer.take(*others)).rejected == {}

    asyncio.run(scenario())


def test_late_events_count_by_their_own_times(service):
    writer = Taking(service)

    def clicks(name, num, apart_ms):
        first_ms = writer.now_ms - num * apart_ms
        return [Event(f"{name} {i}", "ann", "n", "click", first_ms + i * apart_ms) for i in range(num)]

    async def scenario():
        await writer.take(Candidate("n", {}))
        day = await writer.take(*clicks("half an hour apart", 48, 1_800_000))
        assert day.rejected == {}
        at_once = await writer.take(*clicks("at once", 30, 1))
        assert len(at_once.rejected) == 10
        # Of any times, no more than 200 in ten minutes count.
        many = await writer.take(*clicks("an hour apart", 1_000, 3_600_000))
        assert len(many.rejected) == 1_000 - (200 - 48 - 20)
        assert "or 200 that came in ten minutes" in many.rejected[999]
        writer.now_ms += 600_000
        assert (await writer.take(*clicks("in the next window", 200, 1_800_000))).rejected == {}

    asyncio.run(scenario())


def test_events_of_a_commit_that_failed_do_not_use_up_the_number(service, monkeypatch):
    writer = Taking(service)

    async def scenario():
        await writer.take(Candidate("n", {}))
        with monkeypatch.context() as patch:
            patch.setattr("serve.stores.lmdb.LmdbStore.commit", refuse)
            for _ in range(25):
                with pytest.raises(StoreUnavailable):
                    await writer.take(Event("e1", "ann", "n", "join"))
        assert (await writer.take(Event("e1", "ann", "n", "join"))).rejected == {}

    def refuse(*arguments, **more):
        raise StoreUnavailable("no")

    asyncio.run(scenario())


def test_different_records_with_the_id_of_another_are_counted(service):
    writer = Taking(service)
    before_ms = writer.now_ms
    many = range(50)

    def join(viewer="ann", candidate="a", kind="join"):
        return Event("e", viewer, candidate, kind)

    def ranking(number, ts_ms=before_ms, viewer="ann"):
        return Exposure(f"r{number}", ts_ms, viewer, ["a"], b"", None, "model", "full", 0)

    async def counted(*records):
        writer.ingester.counts.clear()
        assert (await writer.take(*records)).duplicates == len(records)
        return writer.ingester.counts["repeated_other"]

    async def scenario():
        await writer.take(Candidate("a", {}), join(), *map(ranking, many))
        writer.now_ms += 100 * 600_000
        # A retry of a ranking may have another time and another order.
        assert await counted(join(), *(ranking(i, before_ms + 300) for i in many)) == 0
        # A few of them have the same hash of 8 bits.
        for others in (
            [join(viewer=f"v{i}") for i in many],
            [join(candidate=f"c{i}") for i in many],
            [join(kind=f"k{i}") for i in many],
            [ranking(0, viewer=f"v{i}") for i in many],
            [ranking(0, before_ms + (2 + i) * 600_000) for i in many],
        ):
            assert await counted(*others) >= 0.7 * len(others)

    asyncio.run(scenario())


def test_of_a_record_before_a_restart_a_repeat_is_no_different_one(service):
    service.run(lambda service: service.events(event("e9", viewer="ann")))
    tallies = []
    service.on_tally = lambda tally: tallies.append(tally.counts)
    service.run(lambda service: service.events(event("e9", viewer="bob")))
    assert sum(counts["duplicate"] for counts in tallies) == 1
    assert sum(counts["repeated_other"] for counts in tallies) == 0


def test_numbers_go_on_after_a_restart(service):
    service.run(lambda service: service.events(event("e9")))
    service.run(lambda service: service.events(event("e10")))
    first, second = served(service, "events")["seq"].to_pylist()
    assert second > first


def test_a_store_that_is_gone_is_not_made_anew(service):
    async def scenario(service):
        await service.events(event("e9"))
        shutil.rmtree(service.folder / "store")
        refused = await service.post("/v1/events", {"records": [event("e10")]})
        return refused, await service.rank(now_ms=54_000)

    refused, answer = service.run(scenario)
    assert refused.status_code == 503
    assert (answer["rung"], answer["degraded"]) == ("fallback", ["store_unavailable"])


def test_event_lags_and_call_durations_end_when_records_are_durable(service):
    tallies = []
    service.on_tally = tallies.append

    async def scenario(service):
        await service.events(event("e9"), event("e10", "click"))
        await service.rank(now_ms=54_000)
        await service.fetcher.exposure_buffer.flush()
        # The tally after this call contains the earlier events.
        await service.events({"type": "forget", "viewer": "bob"})

    service.run(scenario)
    lags_ms = [lag_ms for tally in tallies for lag_ms in tally.event_lags_ms]
    now_ms = time.time() * 1e3
    # The exposure has no lag.
    assert [now_ms - lag_ms for lag_ms in lags_ms] == pytest.approx([51_000] * 2, abs=60_000)
    commits_ms = [took_ms for tally in tallies for took_ms in tally.commits_ms]
    assert sum(tally.counts["exposure"] for tally in tallies) == 1
    assert len(commits_ms) == 2
    assert all(0 < took_ms < 5_000 for took_ms in commits_ms)
    assert max(tally.num_unflushed for tally in tallies) > 0


@pytest.mark.parametrize(("bound", "value"), [("FLUSH_RECORDS", 5), ("FLUSH_BYTES", 250)])
def test_a_full_journal_is_rolled_before_its_minute(service, monkeypatch, bound, value):
    monkeypatch.setattr(serve.ingest.writer, bound, value)
    service.args = replace(service.args, clock="wall")

    async def scenario(service):
        await service.events(*(event(f"e{i}", ts_ms=None) for i in range(5)))
        for _ in range(300):
            if segments(service):
                break
            await asyncio.sleep(0.01)
        return served(service, "events")["id"].to_pylist()

    assert service.run(scenario) == [f"e{i}" for i in range(5)]


@pytest.mark.parametrize(("most", "share"), [(1_000, 0.25), (20, 0.5), (10, 1.0), (2, 1.0)])
def test_upkeep_takes_more_of_a_core_the_fuller_the_journal_is(service, monkeypatch, most, share):
    service.args = replace(service.args, clock="wall")
    shares = []

    class Recorded(CpuThrottle):
        def __init__(self, share, wanted):
            shares.append(share())
            super().__init__(share, wanted)

    async def scenario(service):
        await service.events(*(event(f"e{i}", ts_ms=None) for i in range(4)))
        monkeypatch.setattr(serve.ingest.writer, "CpuThrottle", Recorded)
        monkeypatch.setattr("serve.ingest.intake.MAX_UNFLUSHED", most)
        await asyncio.to_thread(service.ingester.flush_journal)

    service.run(scenario)
    assert shares[0] == pytest.approx(share)


def test_the_segments_of_an_hour_become_one_while_the_service_runs(service, monkeypatch):
    monkeypatch.setattr(serve.log.compaction, "MIN_SEGMENTS", 3)
    service.args = replace(service.args, clock="wall")

    async def scenario(service):
        for i in range(4):
            await service.events(event(f"e{i}", ts_ms=51_000 + i))
            await asyncio.to_thread(service.ingester.upkeep)
        return len(segments(service))

    assert service.run(scenario) == 2
    assert served(service, "events")["id"].to_pylist() == [f"e{i}" for i in range(4)]


def test_files_that_another_process_rewrites_are_merged_later_and_the_log_goes_on(service):
    service.args = replace(service.args, clock="wall")
    counts = Counter()
    service.on_tally = lambda tally: counts.update(tally.counts)

    async def scenario(service):
        with rewriting(service.folder / "served"):
            await service.events(event("e1", ts_ms=None))
            await asyncio.to_thread(service.ingester.upkeep)
            return len(segments(service)), (counts + service.ingester.counts)["roll_failed"]

    assert service.run(scenario) == (1, 1)


def test_a_log_of_which_all_times_are_0_is_loaded(tmp_path, surface):
    log = tables()
    for name in ("exposures", "events"):
        log[name] = log[name].set_column(1, "ts_ms", pa.array([0] * len(log[name])))
    write_log(tmp_path / "zeros", log)
    filled = load(surface, tmp_path / "zeros", "lmdb:store", tmp_path)
    assert (filled["viewers"], filled["diagnoses"]) == (2, [])


def test_a_restarted_writer_does_not_make_a_lost_store_anew(service):
    service.run(lambda service: service.events(event("e9")))
    shutil.rmtree(service.folder / "store")

    async def scenario(service):
        refused = await service.post("/v1/events", {"records": [event("e10")]})
        return refused, await service.rank(now_ms=54_000)

    refused, answer = service.run(scenario)
    assert refused.status_code == 503
    assert (answer["rung"], answer["degraded"]) == ("fallback", ["store_unavailable"])


def test_event_ids_survive_a_restart_after_any_number_of_rankings(service, monkeypatch):
    monkeypatch.setattr("serve.ingest.intake.WINDOW", 5)

    async def scenario(service):
        await service.events(event("e9"))
        for i in range(12):
            await service.rank(now_ms=60_000 + i)

    service.run(scenario)
    again = service.run(lambda service: service.events(event("e9", ts_ms=70_000)))
    assert (again["accepted"], again["duplicates"]) == (0, 1)


def test_a_fenced_writer_does_not_write_the_log_last(service):
    async def scenario(service):
        await service.events(event("e9"))
        other = Ingester(service.args, service.folder)
        running = asyncio.create_task(other.run())
        await other.take([Event("e10", "bob", "a", "join", ts_ms=51_000)], 100)
        await asyncio.to_thread(other.flush_journal)
        # This writer has not noticed yet that it is fenced.
        service.ingester.flush_journal()
        other.stop()
        await running

    service.run(scenario)
    assert served(service, "events")["id"].to_pylist() == ["e9", "e10"]


def test_numbers_that_only_json_can_hold_are_logged_or_refused(service):
    async def scenario(service):
        answers = []
        for i, hour in enumerate((2**53 + 1, 10**20, 10**40)):
            body = {"viewer": "ann", "candidates": ["a"], "context": {"hour": hour}, "now_ms": 52_000 + i}
            answers.append((await service.post("/v1/rank", body)).status_code)
        fields = {"price": 2**60, "started_ms": 1.0}
        new = {"type": "candidate", "id": "n", "ts_ms": 53_000, "fields": fields}
        late = {"type": "candidate", "id": "m", "ts_ms": 53_000, "fields": {"started_ms": 10**17}}
        return answers, await service.events(new, late, event("e9", ts_ms=53_000))

    answers, told = service.run(scenario)
    assert answers == [200, 200, 422]
    assert told["accepted"] == 2
    assert [rejected["pointer"] for rejected in told["rejected"]] == ["/records/1/fields/started_ms"]
    assert len(served(service, "exposures")) == 2
    assert served(service, "events")["id"].to_pylist() == ["e9"]


def test_a_segment_holds_a_bounded_number_of_bytes(service, monkeypatch):
    monkeypatch.setattr("serve.log.retention.SEGMENT_BYTES", 200)

    async def scenario(service):
        roll, service.ingester.flush_journal = service.ingester.flush_journal, lambda: None
        for i in range(8):
            await service.events(event(f"e{i}"))
        await asyncio.to_thread(roll)

    service.args = replace(service.args, clock="wall")
    service.run(scenario)
    assert 3 <= len(segments(service)) <= 6
    assert sorted(served(service, "events")["id"].to_pylist()) == [f"e{i}" for i in range(8)]


def test_a_surface_of_viewers_without_any_state_takes_events(tmp_path):
    service = Live(tmp_path)
    text = (tmp_path / "tiny.toml").read_text()
    declared, features = text.index("[viewer]"), text.index("[features]")
    plain = 'topic = { kind = "category", field = "candidate.topic" }\n'
    plain += 'audience = { kind = "gauge", entity = "candidate", up = "join", down = "leave" }\n'
    (tmp_path / "tiny.toml").write_text(
        text[:declared] + text[text.index("[candidate]") : features] + "[features]\n" + plain
    )

    async def scenario():
        writer = Ingester(service.args, tmp_path)
        taking = asyncio.ensure_future(writer.take([Event("e1", "ann", "a", "join", ts_ms=1)], 100))
        await asyncio.sleep(0)
        await writer.commit_waiting()
        return await taking

    assert asyncio.run(scenario()).rejected == {}


def test_a_segment_that_cannot_be_opened_just_now_is_not_damaged(service, monkeypatch):
    service.run(lambda service: service.events(event("e9")))
    read = serve.log.segments.open_parquet

    def too_many_files(path, **more):
        raise OSError(errno.EMFILE, "too many open files")

    async def scenario(service):
        monkeypatch.setattr("serve.log.segments.open_parquet", too_many_files)
        refused = await service.post("/v1/events", {"records": [event("e9")]})
        monkeypatch.setattr("serve.log.segments.open_parquet", read)
        return refused, await service.events(event("e9"))

    refused, again = service.run(scenario)
    assert (refused.status_code, again["duplicates"]) == (503, 1)


def test_a_writer_goes_on_beside_a_damaged_segment(service):
    service.run(lambda service: service.events(event("e9")))
    (path,) = segments(service)
    path.write_bytes(b"no parquet")
    counts = Counter()
    service.on_tally = lambda tally: counts.update(tally.counts)
    assert service.run(lambda service: service.events(event("e10")))["accepted"] == 1
    assert counts["segment_damaged"] == 1


def test_a_writer_starts_though_it_cannot_read_the_log(service, caplog):
    service.run(lambda service: service.events(event("e9")))
    (path,) = segments(service)
    path.with_name(f"{99:020d}-{99:020d}-{1:010d}.parquet").symlink_to("gone")
    asyncio.run(Ingester(service.args, service.folder).take_over())
    assert "no heartbeat is left in the store" in caplog.text


def test_a_live_table_holds_a_bounded_number_of_bytes(tmp_path, log_folder, monkeypatch):
    service = Live(tmp_path, log_folder)
    row_bytes = Schema(service.surface).candidate.itemsize
    monkeypatch.setattr("serve.ingest.intake.MAX_LIVE_BYTES", 6 * row_bytes)

    async def scenario(service):
        new = [{"type": "candidate", "id": f"n{i}", "ts_ms": 51_000} for i in range(4)]
        return await service.events(*new)

    assert service.run(scenario)["accepted"] == 2, "four are there before"


def test_a_journal_with_too_many_bytes_refuses_until_the_log_is_written(service, monkeypatch):
    (service.folder / "served").mkdir()
    (service.folder / "served" / "events").write_text("in the way")

    async def scenario(service):
        await service.events(event("e9"))
        monkeypatch.setattr("serve.ingest.intake.MAX_UNFLUSHED_BYTES", 10)
        refused = await service.post("/v1/events", {"records": [event("e10")]})
        (service.folder / "served" / "events").unlink()
        await asyncio.to_thread(service.ingester.flush_journal)
        return refused, await service.events(event("e10"))

    refused, taken = service.run(scenario)
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
    assert taken["accepted"] == 1
    assert served(service, "events")["id"].to_pylist() == ["e9", "e10"]


@pytest.mark.parametrize(
    ("bound", "value"), [("intake.MAX_UNFLUSHED", 3), ("intake.MAX_UNFLUSHED_BYTES", 1_800)]
)
def test_a_journal_not_written_to_the_log_takes_events_but_not_exposures(service, monkeypatch, bound, value):
    monkeypatch.setattr(f"serve.ingest.{bound}", value)

    async def scenario(service):
        for i in range(6):
            await service.rank(now_ms=60_000 + i)
        return await service.events(event("e9", ts_ms=70_000))

    (service.folder / "served").mkdir()
    (service.folder / "served" / "exposures").write_text("in the way")
    assert service.run(scenario)["accepted"] == 1
    (service.folder / "served" / "exposures").unlink()
    service.run(lambda service: service.events(event("e10", ts_ms=80_000)))
    assert len(served(service, "exposures")) == 3
    assert served(service, "events")["id"].to_pylist() == ["e9", "e10"]


def test_a_writer_whose_lease_is_gone_acknowledges_nothing_that_it_cannot_log(service):
    async def scenario(service):
        await service.events(event("e1"))
        folder = service.folder / service.args.log
        held = read_lease(folder)
        assert swap_lease(folder, held, replace(held, epoch=held.epoch + 1))
        await service.post("/v1/events", {"records": [event("e2")]})
        await asyncio.to_thread(service.ingester.flush_journal)
        return await service.post("/v1/events", {"records": [event("e3")]})

    assert service.run(scenario).status_code == 503
