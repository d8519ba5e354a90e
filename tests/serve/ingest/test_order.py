"""State after late records, repeated records and records from wrong clocks."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serve.contract.records import Candidate, Event, Forget, Viewer
from serve.features.rows import Schema, encode
from serve.ingest import expiry
from serve.ingest.clock import WallClock
from serve.ingest.writer import Ingester
from serve.log.events import Exposure
from serve.log.reader import read_log
from serve.log.replay import Replay
from serve.log.snapshots import truncation_point
from serve.stores.factory import open_store
from tests.support.live_service import Live, event, features
from tests.support.logging_service import assert_same_state, stored_rows

HOUR_MS = 3_600_000


@pytest.fixture
def service(tmp_path, log_folder):
    return Live(tmp_path, log_folder)


def exposure(request_id, viewer="ann", ts_ms=52_000, candidates=("a", "b")):
    return Exposure(
        request_id, ts_ms, viewer, list(candidates), b"\0" * 4 * len(candidates), "e", "m", "full", 0
    )


def candidate(id_, ts_ms, ends_ms=None, **fields):
    end = {} if ends_ms is None else {"ends_ms": ends_ms}
    return {"type": "candidate", "id": id_, "ts_ms": ts_ms, "fields": fields} | end


def language(service, viewer="ann"):
    """Return the viewer's language from its row in the store."""
    schema = Schema(service.surface)
    store = open_store(service.args.store, "tiny", schema.fingerprint, base=service.folder, writable=False)
    viewers, _ = stored_rows(schema, store)
    return viewers.table["language"][viewers.index[viewer]] if viewer in viewers.index else None


def test_an_end_that_is_prolonged_as_the_candidate_is_swept_is_kept(service):
    async def scenario(service):
        before = await service.rank(candidates=["c"], now_ms=29_000, explain=True)
        answer = await service.events(candidate("c", 30_001 + HOUR_MS, ends_ms=3 * HOUR_MS))
        return answer, before, await service.rank(candidates=["c"], now_ms=30_002 + HOUR_MS, explain=True)

    answer, before, ranked = service.run(scenario)
    assert answer["accepted"] == 1
    assert ranked["unknown_candidates"] == []
    assert features(ranked, "c")["topic"] == features(before, "c")["topic"]


def test_an_older_update_that_comes_late_changes_what_no_later_one_has_set(service):
    async def scenario(service):
        late = {
            "type": "viewer",
            "id": "ann",
            "ts_ms": 51_000,
            "fields": {"language": "de", "follows": ["ida"]},
        }
        await service.events({"type": "viewer", "id": "ann", "ts_ms": 52_000, "fields": {"language": "fr"}})
        return await service.events(late)

    assert service.run(scenario)["accepted"] == 1
    assert language(service) == encode(service.surface.fields["viewer"]["language"], "fr")


def test_an_older_end_that_comes_late_does_not_end_a_candidate(service):
    async def scenario(service):
        await service.events(candidate("a", 52_000, ends_ms=90_000))
        await service.events(candidate("a", 51_000, ends_ms=51_500))
        return await service.rank(candidates=["a"], now_ms=53_000)

    assert service.run(scenario)["ranking"][0]["score"] is not None


@pytest.mark.parametrize("restarted", [False, True])
def test_what_a_forgotten_viewer_did_before_comes_too_late(service, restarted):
    forget = Forget("ann", ts_ms=53_000)
    late = [exposure("r9"), Event("e9", "ann", "a", "join", ts_ms=52_999), Viewer("ann", {}, ts_ms=52_999)]

    async def first(service):
        await service.ingester.take([forget], 100)
        await asyncio.to_thread(service.ingester.flush_journal)
        await service.ingester.take([Viewer("bob", {}, ts_ms=53_001)], 100)
        return None if restarted else await service.ingester.take(late, 100)

    async def second(service):
        return await service.ingester.take(late, 100)

    taken = service.run(first)
    taken = service.run(second) if restarted else taken
    assert sorted(taken.rejected) == [0, 1]
    assert language(service) is None


def test_an_older_forget_that_comes_late_takes_nothing_away(service):
    async def scenario(service):
        await service.events({"type": "forget", "viewer": "ann", "ts_ms": 53_000})
        await service.events({"type": "viewer", "id": "ann", "ts_ms": 54_000, "fields": {"language": "fr"}})
        return await service.events({"type": "forget", "viewer": "ann", "ts_ms": 52_000})

    assert service.run(scenario) == {"accepted": 1, "duplicates": 0, "rejected": []}
    assert language(service) == encode(service.surface.fields["viewer"]["language"], "fr")


def test_a_forgotten_viewer_who_comes_again_is_known(service):
    async def scenario(service):
        await service.events({"type": "forget", "viewer": "ann", "ts_ms": 53_000})
        await service.events(event("e9", ts_ms=53_000))
        return await service.rank(now_ms=54_000)

    assert not service.run(scenario)["unknown_viewer"]


def test_a_removed_candidate_does_not_come_back_with_what_was_said_before(service):
    async def scenario(service):
        await service.events(event("e9", ts_ms=30_001 + HOUR_MS))
        await service.events(candidate("c", 29_000, topic="jazz"))
        gone = await service.rank(candidates=["c"], now_ms=30_002 + HOUR_MS)
        await service.events(candidate("c", 31_000, topic="jazz"))
        return gone, await service.rank(candidates=["c"], now_ms=30_003 + HOUR_MS)

    gone, anew = service.run(scenario)
    assert (gone["unknown_candidates"], anew["unknown_candidates"]) == (["c"], [])


class Machine:
    """Fake machine whose wall clock can be set."""

    def __init__(self):
        self.wall_s, self.elapsed_s = 1_800_000_000.0, 0.0

    def clock(self):
        return WallClock(lambda: self.wall_s, lambda: self.elapsed_s)

    def wait(self, seconds):
        self.wall_s += seconds
        self.elapsed_s += seconds

    @property
    def now_ms(self):
        return int(self.wall_s * 1e3)


class Writer:
    """Successive ingesters over one store and log, on a fake machine."""

    def __init__(self, folder):
        self.folder, self.machine = folder, Machine()
        self.live = Live(folder)
        self.args = replace(self.live.args, clock="wall")
        self.counts = {}
        self.start()

    def start(self):
        self.ingester = Ingester(self.args, self.folder, clock=self.machine.clock())

    async def take(self, *records):
        """Commit the records of one call; return its result."""
        taking = asyncio.ensure_future(self.ingester.take(records, 100 * len(records)))
        await asyncio.sleep(0)
        await self.ingester.commit_waiting()
        return await taking

    async def stop(self):
        self.ingester.stop()
        await self.ingester.run()

    def stored(self):
        schema = Schema(self.live.surface)
        store = open_store(self.args.store, "tiny", schema.fingerprint, base=self.folder, writable=False)
        return stored_rows(schema, store)

    def replayed(self):
        replay = Replay(Schema(self.live.surface), read_log(self.folder / "served", self.live.surface))
        replay.finish()
        return replay


def test_a_clock_step_during_a_commit_ends_no_candidate(tmp_path):
    writer = Writer(tmp_path)
    begin_ms = writer.machine.now_ms

    async def scenario():
        await writer.take(Candidate("a", {"topic": "jazz"}, ends_ms=begin_ms + 3 * HOUR_MS))
        writer.machine.wall_s += 6 * 3_600
        await writer.take(Event("e1", "ann", "a", "join"), exposure("r1", ts_ms=begin_ms + 6 * HOUR_MS))
        writer.machine.wall_s -= 6 * 3_600
        await writer.take(Event("e2", "ann", "a", "join"))
        counts = writer.ingester.counts
        await writer.stop()
        return counts

    counts = asyncio.run(scenario())
    _, candidates = writer.stored()
    assert set(candidates.index) == {"a"}
    assert candidates.table["_state"]["sums_ms"].max() <= begin_ms
    assert counts["time_ahead"] == 1


def test_an_exposure_from_a_clock_ahead_counts_as_now_without_features(tmp_path):
    writer = Writer(tmp_path)
    ahead = exposure("r1", ts_ms=writer.machine.now_ms + HOUR_MS)
    ahead.numeric = ahead.category = b"\0" * 8
    told = []

    async def scenario():
        await writer.take(Candidate("a", {}), ahead)
        told.append(writer.ingester.counts["time_ahead"])
        await writer.stop()

    asyncio.run(scenario())
    (row,) = pq.read_table(tmp_path / "served" / "exposures").to_pylist()
    assert (row["ts_ms"], row["numeric"], row["category"], told) == (writer.machine.now_ms, None, None, [1])


async def pass_time(writer, minutes):
    """Commit an event every minute."""
    for _ in range(minutes):
        writer.machine.wait(60)
        await writer.take(Event(f"e{writer.machine.elapsed_s}", "bob", "b", "join"))


@pytest.mark.parametrize("minutes", [3, 55])
def test_a_clock_that_is_ahead_for_less_than_an_hour_ends_no_candidate_and_no_viewer(
    tmp_path, monkeypatch, minutes
):
    monkeypatch.setattr(expiry, "EVERY_S", 0.0)
    writer = Writer(tmp_path)
    ends_ms = writer.machine.now_ms + 3 * HOUR_MS

    async def scenario():
        await writer.take(Candidate("a", {"topic": "jazz"}, ends_ms=ends_ms), Viewer("ann", {}))
        writer.machine.wall_s += 100 * 24 * 3_600
        await pass_time(writer, minutes)
        writer.machine.wall_s -= 100 * 24 * 3_600
        await pass_time(writer, 3)
        await writer.stop()

    asyncio.run(scenario())
    viewers, candidates = writer.stored()
    assert ("ann" in viewers.index, "a" in candidates.index) == (True, True)


def test_candidates_and_viewers_expire_an_hour_after_a_step_of_the_clock(tmp_path, monkeypatch):
    monkeypatch.setattr(expiry, "EVERY_S", 0.0)
    writer = Writer(tmp_path)
    ends_ms = writer.machine.now_ms + 3 * HOUR_MS

    async def scenario():
        await writer.take(Candidate("a", {"topic": "jazz"}, ends_ms=ends_ms), Viewer("ann", {}))
        writer.machine.wall_s += 100 * 24 * 3_600
        await pass_time(writer, 63)
        await writer.stop()

    asyncio.run(scenario())
    viewers, candidates = writer.stored()
    assert ("ann" in viewers.index, "a" in candidates.index) == (False, False)


@pytest.mark.parametrize(("minutes", "is_truncated"), [(55, False), (63, True)])
def test_a_clock_that_is_a_month_ahead_deletes_the_log_only_after_an_hour(tmp_path, minutes, is_truncated):
    writer = Writer(tmp_path)

    async def scenario():
        await pass_time(writer, 1)
        writer.ingester.upkeep()
        writer.machine.wait(8 * 24 * 3_600)
        await pass_time(writer, 1)
        writer.ingester.upkeep()
        writer.machine.wall_s += 31 * 24 * 3_600
        await pass_time(writer, minutes)
        writer.ingester.upkeep()
        await writer.stop()

    asyncio.run(scenario())
    assert len(list((tmp_path / "served" / "snapshots").glob("[0-9]*"))) == 1 + is_truncated
    assert (truncation_point(tmp_path / "served") > 0) is is_truncated


def test_what_was_removed_by_a_clock_that_was_ahead_can_come_again(tmp_path):
    writer = Writer(tmp_path)
    begin_ms = writer.machine.now_ms

    async def step(hours):
        writer.machine.wall_s += hours * 3_600
        for _ in range(3):
            await writer.take(Event(f"e{writer.machine.elapsed_s}", "bob", "b", "join"))
            writer.machine.wait(60)

    async def scenario():
        await writer.take(
            Candidate("a", {}, ends_ms=begin_ms + 2 * HOUR_MS), Viewer("ann", {"language": "en"})
        )
        await step(+6)
        await writer.take(Forget("ann"))
        await step(-6)
        taken = await writer.take(
            Candidate("a", {}, ends_ms=begin_ms + 2 * HOUR_MS),
            Viewer("ann", {"language": "fr"}),
            Event("e", "ann", "a", "join"),
        )
        await writer.stop()
        return taken

    assert asyncio.run(scenario()).rejected == {}
    viewers, candidates = writer.stored()
    assert ("ann" in viewers.index, "a" in candidates.index) == (True, True)


def test_a_step_of_the_clock_is_counted(tmp_path):
    writer = Writer(tmp_path)
    tallies = []

    async def scenario():
        writer.ingester = Ingester(writer.args, tmp_path, tallies.append, clock=writer.machine.clock())
        running = asyncio.ensure_future(writer.ingester.run())
        writer.machine.wall_s += 3_600
        await writer.ingester.take([Event("e1", "ann", "a", "join")], 100)
        await writer.ingester.take([Event("e2", "ann", "a", "join")], 100)
        writer.ingester.stop()
        await running

    asyncio.run(scenario())
    assert sum(tally.counts["clock_step"] for tally in tallies) == 1


@pytest.mark.parametrize("step_h", [6, -6])
def test_an_update_is_kept_after_a_step_of_the_clock_that_lasts(tmp_path, step_h):
    writer = Writer(tmp_path)

    async def scenario():
        await writer.take(Viewer("ann", {"language": "en"}))
        writer.machine.wall_s += step_h * 3_600
        for _ in range(3):
            await writer.take(Event(f"e{writer.machine.elapsed_s}", "bob", "a", "join"))
            writer.machine.wait(60)
        await writer.take(Viewer("ann", {"language": "fr"}))
        await writer.stop()

    asyncio.run(scenario())
    viewers, _ = writer.stored()
    french = encode(writer.live.surface.fields["viewer"]["language"], "fr")
    assert viewers.table["language"][viewers.index["ann"]] == french


VIEWERS, CANDIDATES = st.sampled_from(["ann", "bob", "cyd"]), st.sampled_from(["a", "b", "c", "d"])
BACK_MS = st.sampled_from([0, 0, 1, 900, 60_000, HOUR_MS, 6 * HOUR_MS, -1, -5_000, -6 * HOUR_MS])
STEPS = st.one_of(
    st.tuples(st.just("event"), VIEWERS, CANDIDATES, BACK_MS, st.sampled_from(["click", "join", "leave"])),
    st.tuples(st.just("event"), VIEWERS, CANDIDATES, BACK_MS, st.sampled_from(["click", "join", "leave"])),
    st.tuples(st.just("exposure"), VIEWERS, CANDIDATES, BACK_MS, CANDIDATES),
    st.tuples(st.just("viewer"), VIEWERS, CANDIDATES, BACK_MS, st.sampled_from(["en", "fr", None])),
    st.tuples(st.just("candidate"), VIEWERS, CANDIDATES, BACK_MS, st.sampled_from(["jazz", "news", None])),
    st.tuples(st.just("end"), VIEWERS, CANDIDATES, BACK_MS, st.integers(-2 * HOUR_MS, 3 * HOUR_MS)),
    st.tuples(st.just("forget"), VIEWERS, CANDIDATES, BACK_MS, st.none()),
    st.tuples(st.just("again"), st.integers(1, 40)),
    st.tuples(st.just("wait"), st.sampled_from([0.5, 70.0, 3_700.0])),
    st.tuples(st.just("step"), st.sampled_from([-6, 6])),
    st.tuples(st.just("commit")),
    st.tuples(st.just("commit")),
    st.tuples(st.just("restart"), st.integers(0, 5)),
)


def record(number, step, now_ms):
    """Return the record of a step."""
    kind, viewer, name, back_ms, more = step
    ts_ms = None if back_ms == 1 and kind != "exposure" else now_ms - back_ms
    match kind:
        case "event":
            return Event(f"e{number}", viewer, name, more, ts_ms=ts_ms)
        case "exposure":
            return exposure(f"r{number}", viewer, ts_ms, dict.fromkeys((name, more)))
        case "viewer":
            return Viewer(viewer, {"language": more}, ts_ms=ts_ms)
        case "candidate":
            return Candidate(name, {"topic": more, "started_ms": float(now_ms)}, ts_ms=ts_ms)
        case "end":
            return Candidate(name, {}, ts_ms=ts_ms, ends_ms=now_ms + more)
        case "forget":
            return Forget(viewer, ts_ms=ts_ms)


def holds_its_replay(tmp_path_factory, steps):
    writer = Writer(tmp_path_factory.mktemp("writer"))

    async def scenario():
        now_ms = writer.machine.now_ms
        await writer.take(Candidate("a", {}), exposure("r", ts_ms=now_ms - 1))
        sent, gathered = [], []
        for number, step in enumerate(steps):
            match step[0]:
                case "wait":
                    writer.machine.wait(step[1])
                case "step":
                    writer.machine.wall_s += step[1] * 3_600
                case "again":
                    gathered += sent[-step[1] :][:1]
                case "commit" | "restart":
                    await writer.take(*map(copied, gathered))
                    gathered = []
                    if step == ("restart", 0):
                        await writer.stop()
                        writer.start()
                case _:
                    sent.append(record(number, step, writer.machine.now_ms))
                    gathered.append(sent[-1])
        await writer.take(*map(copied, gathered))
        await writer.stop()

    asyncio.run(scenario())
    assert_same_state(writer.stored(), writer.replayed(), tolerance=1e-6)


def after_steps(num_examples):
    """Return a test of `holds_its_replay` with so many examples of 200 to 220 steps."""
    slow = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example]
    sized = settings(max_examples=num_examples, deadline=None, derandomize=True, suppress_health_check=slow)
    return sized(given(steps=st.lists(STEPS, min_size=200, max_size=220))(holds_its_replay))


test_the_state_is_a_replay_of_the_log = pytest.mark.integration(pytest.mark.no_ray(after_steps(8)))
test_after_ten_thousand_steps_the_state_is_a_replay_of_the_log = pytest.mark.proof(
    pytest.mark.integration(pytest.mark.no_ray(after_steps(50)))
)


def copied(sent):
    """Return a copy of a record to resend, because Ingest sets the time of the original."""
    return type(sent)(**{name: getattr(sent, name) for name in sent.__struct_fields__})
