"""Contract of feature kinds through the whole writer: each kind, in a store, its log and a replica.

A surface has features of every kind of the registry with options drawn at random, so that a new
kind is tested here without an edit. Two fields of candidates are always counted.
"""

from __future__ import annotations

from contextlib import closing, suppress
from unittest import mock

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve.contract.errors import StoreUnavailable, TabrankError
from serve.contract.hashing import hash64
from serve.contract.rankings import VALUE
from serve.contract.records import Candidate, Event, Forget, Viewer
from serve.features.kinds.counters import Sum, Sums
from serve.features.registry import KINDS
from serve.features.rows import CandidateRows, Schema
from serve.features.slots import value_key
from serve.features.state_kind import STATE
from serve.features.surface import read_surface
from serve.ingest import expiry, intake
from serve.ingest.apply import apply_records
from serve.ingest.backfill import load
from serve.log import rebuild, stream
from serve.log.events import Ended, Exposure, JournalEntry
from serve.log.reader import read_log
from serve.log.replay import Replay
from serve.log.snapshots import replay_snapshots
from serve.log.writer import write_log
from serve.stores.candidate_table import CandidateTable
from serve.stores.factory import open_store
from tests.support import live_service
from tests.support.kind_service import (
    DAY_MS,
    REQUESTS,
    SHOWN,
    KindService,
    assert_holds_live_values_alone,
    assert_stored,
    drawn_call,
    rows_of,
)
from tests.support.kind_world import START_MS, VIEWERS, features_of, log_tables, surface_of
from tests.support.kind_world import toml as toml_of
from tests.support.logging_service import Logging, busy_hour
from tests.support.memory_store import MemoryStore, Rows
from tests.support.small_surface import TOML, tables
from training.audit.audit import audit
from training.erasure.forget import forget

SEEDS = st.integers(0, 2**32 - 1)
# Of two fields, and with equal state.
COUNTED = {
    "hosts": {"kind": "count", "entity": "candidate.host", "event": "join"},
    "host_rate": {
        "kind": "rate",
        "entity": "candidate.host",
        "event": "join",
        "over": "impression",
        "prior": {"rate": 0.1, "weight": 10},
        "half_life": "2m",
    },
    "languages": {"kind": "recency", "entity": "candidate.language", "event": "impression"},
    "shown": {"kind": "count", "entity": ["viewer", "candidate"], "event": "impression"},
}
every_kind = st.fixed_dictionaries({f"drawn_{kind}": features_of(kind) for kind in KINDS})


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    """Let candidates be removed soon after their end, and examine viewers in each commit."""
    # Drawn events follow no ranking.
    monkeypatch.setattr(rebuild, "check_joins", lambda *_, **options: {})
    # A log is replayed in many parts.
    monkeypatch.setattr(stream, "VALUES_AT_ONCE", 16)
    monkeypatch.setattr(intake, "ENDED_MS", 20_000)
    monkeypatch.setattr(expiry, "EVERY_S", 0.0)


def take_over(service):
    """Let another store take over, which then lacks what the first one takes."""
    other = {"lmdb:one": "lmdb:two", "lmdb:two": "lmdb:one"}[service.store]
    if other not in service.filled:
        service.fill(other)
    service.restart(other)


def load_anew(service):
    """Fill a new store, and go on with that."""
    service.check()
    service.fill(f"lmdb:new{len(service.seen)}")
    service.check_state(service.replay().as_served(), f"lmdb:new{len(service.seen)}")


@given(drawn=every_kind, seed=SEEDS)
@settings(deadline=None, max_examples=3)
def test_a_replica_has_the_features_of_a_replay_whatever_happens_to_the_writer(drawn, seed, tmp_path_factory):
    rng = np.random.default_rng(seed)
    surface = surface_of(**COUNTED, **drawn)
    folder = tmp_path_factory.mktemp("live") / "served"
    with KindService(folder, surface, keep_days=int(rng.choice([0, 2]))) as service:
        for _ in range(16):
            happens = [KindService.restart, KindService.crash, take_over, load_anew, KindService.cut]
            if rng.random() < 0.2:
                happens[rng.integers(len(happens))](service)
            records = drawn_call(rng, service)
            if rng.random() < 0.15:
                # Where all records are late, there is no commit.
                with service.failing(is_written=rng.random() < 0.5), suppress(StoreUnavailable):
                    service.take(records)
            service.commit(*records)
        service.check()
        result = audit(service.log, surface)
    assert result["held"], result["worst"]


def key_of(host):
    return value_key("host", hash64(host))


HAL = key_of("hal")


def drawn_order(rng):
    """Return records of two candidates and two hosts, in any order."""
    records = [
        Event("e", "v0", "c0", "join", START_MS),
        Exposure("r", START_MS, "v0", ["c1"], b"", None, "", "", 0),
    ]
    for i in range(30):
        now_ms, candidate = START_MS + 1_000 * (i + 1), f"c{rng.integers(2)}"
        host = ["hal", "ida", None][rng.integers(3)]
        made = [
            Candidate(candidate, {"host": host, "language": host}, now_ms),
            Candidate(candidate, {"host": host}, now_ms - 5_000),
            Ended(candidate, now_ms),
            Event(f"e{i}", "v0", candidate, "join", now_ms),
            Exposure(f"r{i}", now_ms, "v0", ["c0", "c1"], b"", None, "model", "full", 0),
            Forget(HAL, now_ms),
            Forget("v0", now_ms),
        ]
        records.append(made[rng.integers(len(made))])
    return records


@given(seed=SEEDS, length=st.integers(1, 12))
@settings(deadline=None, max_examples=15)
def test_records_in_any_order_and_in_any_commits_give_what_the_replay_has(seed, length, tmp_path_factory):
    rng = np.random.default_rng(seed)
    surface = surface_of(**COUNTED)
    schema, content, records = Schema(surface), Rows(), drawn_order(rng)
    store = MemoryStore(content)
    store.take_epoch()
    replica = CandidateTable(schema, lambda: MemoryStore(content, writable=False))
    live, seq = CandidateRows(schema), 0
    while seq < len(records):
        part = records[seq : seq + rng.integers(1, length + 1)]
        *changed, _ = apply_records(live, store, seq, JournalEntry(2 * START_MS, part), START_MS)
        if rng.random() < 0.2:
            # It could not be written: the writer reads its table again.
            live = CandidateRows(schema)
            live.apply({name: row for name, row in store.read([], 0)[1].rows.items() if row})
            continue
        seq += len(part)
        store.commit(seq, *changed)
        assert_holds_live_values_alone(live)
        if rng.random() < 0.5:
            replica.read([])
            assert_holds_live_values_alone(replica.rows)
    folder = tmp_path_factory.mktemp("orders") / "log"
    write_log(folder, log_tables(records))
    replay = Replay(schema, read_log(folder, surface))
    replay.finish()
    assert_stored(store, replay.as_served())


@given(drawn=every_kind, seed=SEEDS)
@settings(deadline=None, max_examples=3)
def test_duplicates_and_late_attributes_change_no_byte(drawn, seed, tmp_path_factory):
    rng = np.random.default_rng(seed)
    folder = tmp_path_factory.mktemp("again") / "served"
    with KindService(folder, surface_of(**COUNTED, **drawn)) as service:
        sent = []
        for _ in range(8):
            records = drawn_call(rng, service)
            sent += [record for record in records if isinstance(record, Event)]
            service.commit(*records)
        sent += service.exposures()
        service.take(sent)
        now_ms = service.now_ms
        fields = {"host": "hal", "language": "en"}
        service.take(
            [
                Candidate("c0", fields, now_ms, now_ms + DAY_MS),
                Viewer("v0", {"language": "en", "topics": ["news"]}, now_ms),
            ]
        )
        late = [
            Candidate("c0", {"host": "ida", "language": "fr"}, START_MS - 1, START_MS),
            Viewer("v0", {"language": "fr", "topics": ["jazz"]}, START_MS - 1),
        ]
        before = service.content()
        for _ in range(3):
            again = [sent[i] for i in rng.permutation(len(sent))] + late
            result = service.take([again[i] for i in rng.permutation(len(again))])
            assert result.duplicates + len(result.rejected) == len(sent)
        assert service.content() == before
        service.restart()
        assert service.take(sent).duplicates + len(result.rejected) >= len(sent)
        assert service.content() == before
        service.see()
        service.check()


@pytest.fixture
def service(tmp_path, request):
    """Return a service that counts for hosts, languages and pairs, and keeps viewers two days."""
    with KindService(tmp_path / "served", surface_of(**COUNTED), keep_days=2) as service:
        yield service


def counted(service, name, candidate, viewer="v0"):
    """Return a feature of a candidate in the last ranking."""
    matrix = service.seen[-1][2]
    at = REQUESTS.index(viewer) * len(SHOWN) + SHOWN.index(candidate)
    return matrix.numeric[at, service.features.columns.numeric.index(name)]


def hosts_in(service):
    """Return the rows of hosts in the store, live and at rest."""
    return {name: row for (_, name), row in service.content().items() if name.startswith(f"{VALUE}host=")}


def join(candidate, now_ms, viewer="v0"):
    return Event(f"{viewer} {candidate} {now_ms}", viewer, candidate, "join", now_ms)


def begin(candidate, host, now_ms, ends_ms=None):
    return Candidate(candidate, {"host": host, "language": None}, now_ms, ends_ms)


def later(service, days):
    """Let days pass, in which one viewer comes once an hour and the others do not."""
    for _ in range(int(24 * days)):
        service.now_ms += DAY_MS // 24
        service.take([Viewer("v1", {"price": 1.0}, service.now_ms)])


def test_values_at_rest_expire_and_those_of_live_candidates_do_not(service):
    now_ms = service.now_ms + 1
    service.commit(begin("c0", "hal", now_ms, now_ms + 1_000), begin("c1", "ida", now_ms))
    service.commit(join("c0", now_ms), join("c1", now_ms), join("c1", now_ms, "v2"))
    assert (counted(service, "hosts", "c0"), counted(service, "hosts", "c1")) == (1, 2)
    later(service, 1)
    # The value rests in the store, where no replica reads it, and comes back as it was.
    assert ("viewer", HAL) in service.content()
    service.see()
    assert HAL not in service.replica.rows.values["host"].index
    now_ms = service.now_ms
    service.commit(begin("c2", "hal", now_ms, now_ms + 1_000))
    assert ("candidate", HAL) in service.content()
    assert counted(service, "hosts", "c2") == 1
    later(service, 3)
    assert {name for _, name in service.content()} >= {"v1", key_of("ida")}
    assert not {name for _, name in service.content()} & {"v0", HAL}
    service.commit(begin("c2", "hal", service.now_ms))
    assert (counted(service, "hosts", "c2"), counted(service, "hosts", "c1")) == (0, 2)
    service.commit(join("c2", service.now_ms))
    assert counted(service, "hosts", "c2") == 1
    service.check()


def test_a_value_that_comes_back_as_it_expires_keeps_its_state(service):
    now_ms = service.now_ms + 1
    service.commit(begin("c0", "hal", now_ms, now_ms + 1_000), join("c0", now_ms))
    later(service, 1)
    service.now_ms += 2 * DAY_MS
    service.commit(begin("c2", "hal", service.now_ms))
    assert service.writer.counts["expired"] > 0
    assert counted(service, "hosts", "c2") == 1
    service.check()


def test_with_too_many_values_at_rest_the_oldest_are_forgotten_before_their_time(service, monkeypatch):
    monkeypatch.setattr(expiry, "MAX_VALUES", 5)
    hosts = [f"host{i}" for i in range(40)]
    for host in hosts:
        now_ms = service.now_ms = service.now_ms + 60_000
        service.commit(begin("c0", host, now_ms), join("c0", now_ms))
    for _ in range(30):
        service.now_ms += 60_000
        service.commit(begin("c0", "last", service.now_ms))
    rest = {name for entity, name in service.content() if entity == "viewer"}
    kept = [host for host in hosts if key_of(host) in rest]
    assert kept == hosts[len(hosts) - len(kept) :]
    assert len(kept) <= 5
    service.check()


def test_once_there_is_room_again_values_rest_for_their_time(service, monkeypatch):
    monkeypatch.setattr(expiry, "MAX_VALUES", 1)
    now_ms = service.now_ms
    for host in ("hal", "ida", "joe", None):
        service.commit(begin("c0", host, now_ms), join("c0", now_ms))
    # However many rounds there are, none of them is old.
    for number in range(60):
        service.take([Viewer("v1", {"price": float(number)}, now_ms)])
    assert len(hosts_in(service)) == 3
    monkeypatch.setattr(expiry, "MAX_VALUES", 100)
    for number in range(200):
        service.take([Viewer("v1", {"price": float(number)}, now_ms)])
    later(service, 1.5)
    assert len(hosts_in(service)) == 3
    service.check()


def test_an_old_log_loses_no_value_before_the_days_since_its_load_have_passed(service):
    now_ms = service.now_ms
    service.commit(begin("c0", "hal", now_ms, now_ms + 1_000), join("c0", now_ms))
    service.commit(Event("e", "v0", "c1", "join", now_ms + 30_000))
    filled_ms = service.now_ms = now_ms + 100 * DAY_MS
    service.stop()
    with mock.patch("serve.ingest.backfill.time.time", return_value=filled_ms / 1e3):
        service.fill("lmdb:two")
    service.start("lmdb:two")
    # However many values rest there, a replica reads none of them.
    with closing(service.opened()) as store:
        assert HAL not in store.read([], 0)[1].rows
    later(service, 1.9)
    assert HAL in hosts_in(service)
    later(service, 0.2)
    assert HAL not in hosts_in(service)
    service.check()


def test_a_forgotten_viewer_leaves_the_values_and_takes_the_pairs(service):
    now_ms = service.now_ms + 1
    service.commit(begin("c0", "hal", now_ms), begin("c1", "ida", now_ms), begin("c2", "ida", now_ms))
    service.commit(*(join(name, now_ms, viewer) for name in ("c0", "c1") for viewer in ("v0", "v1")))
    service.commit(begin("c1", "joe", now_ms))
    for _ in REQUESTS:
        service.commit()
    assert [counted(service, "shown", "c0", viewer) > 0 for viewer in ("v0", "v1")] == [True, True]
    values = hosts_in(service)
    assert set(values) == {HAL, key_of("ida"), key_of("joe")}
    result = service.take([Forget("v0", service.now_ms + 1)])
    assert not result.rejected
    service.see()
    assert [counted(service, "shown", "c0", viewer) > 0 for viewer in ("v0", "v1")] == [False, True]
    assert hosts_in(service) == values
    service.check()


@pytest.mark.parametrize("is_written", [False, True])
def test_a_commit_that_fails_brings_no_value_back_twice(service, is_written):
    now_ms = service.now_ms
    service.commit(begin("c0", "hal", now_ms), begin("c1", "ida", now_ms), join("c0", now_ms))
    service.commit(begin("c0", "joe", now_ms))
    records = [begin("c1", "hal", now_ms), join("c1", now_ms)]
    with service.failing(is_written=is_written), pytest.raises(StoreUnavailable):
        service.take(records)
    service.commit()
    assert counted(service, "hosts", "c1") == (2 if is_written else 0)
    service.commit(*records)
    assert counted(service, "hosts", "c1") == 2
    service.check()


def test_a_writer_that_starts_writes_only_the_values_that_change(service):
    now_ms = service.now_ms
    service.commit(begin("c0", "hal", now_ms), begin("c1", "ida", now_ms), join("c0", now_ms))
    service.restart()
    store = service.writer._opened()
    with mock.patch.object(store, "commit", wraps=store.commit) as commit:
        service.take([join("c1", now_ms)])
    written = {name for name in commit.call_args.args[2] if name.startswith(f"{VALUE}host=")}
    assert written == {key_of("ida")}


def test_a_store_that_takes_over_has_the_values_that_rested_and_came_back_meanwhile(service):
    now_ms = service.now_ms
    service.commit(begin("c0", "hal", now_ms), begin("c1", "ida", now_ms), join("c0", now_ms))
    service.commit(begin("c0", "joe", now_ms), join("c1", now_ms))
    service.fill("lmdb:two")
    service.commit(begin("c2", "hal", now_ms), join("c2", now_ms), begin("c1", "hal", now_ms))
    service.commit(begin("c1", None, now_ms), join("c2", now_ms, "v1"))
    service.restart("lmdb:two")
    service.commit(begin("c1", "ida", now_ms))
    assert [counted(service, "hosts", name) for name in ("c0", "c1", "c2")] == [0, 1, 3]
    service.check()


def test_a_log_without_its_first_records_has_the_values_live_and_at_rest(service):
    now_ms = service.now_ms
    service.commit(begin("c0", "hal", now_ms), begin("c1", "ida", now_ms))
    service.commit(join("c0", now_ms), join("c1", now_ms))
    service.commit(begin("c1", "joe", now_ms))
    service.cut()
    service.commit(join("c0", now_ms, "v1"))
    service.commit(begin("c1", "ida", now_ms))
    assert [counted(service, "hosts", name) for name in ("c0", "c1")] == [2, 1]
    service.commit()
    service.check()
    assert replay_snapshots(service.log)


def test_a_changed_surface_takes_the_counts_that_both_have_from_a_snapshot(service):
    now_ms = service.now_ms
    service.commit(begin("c0", "hal", now_ms), begin("c1", "kim", now_ms))
    service.commit(join("c0", now_ms), join("c1", now_ms), join("c1", now_ms, "v1"))
    service.commit(begin("c1", "joe", now_ms))
    # The last segment of a table stays when a log is cut.
    for _ in range(2):
        service.cut()
        service.commit(join("c2", now_ms))
    service.stop()
    clicks = {"kind": "count", "entity": "candidate.host", "event": "click"}
    surface = surface_of(clicks=clicks, **COUNTED)
    schema = Schema(surface)
    load(surface, service.log, "lmdb:other", service.folder)
    place = schema.kept(Sums).place[Sum("candidate.host", "join")]
    with closing(
        open_store("lmdb:other", surface.name, schema.fingerprint, base=service.folder, writable=False)
    ) as store:
        rows = rows_of(schema, store)
    assert rows["held"][HAL][STATE]["sums"][place] == 1
    assert rows["at rest"][key_of("kim")][STATE]["sums"][place] == 2


@pytest.mark.parametrize("is_cut", [False, True])
def test_the_erasure_of_a_viewer_leaves_the_values(service, is_cut):
    now_ms = service.now_ms + 1
    service.commit(begin("c0", "hal", now_ms, now_ms + 1_000), begin("c1", "ida", now_ms))
    service.commit(*(join(name, now_ms, viewer) for name in ("c0", "c1") for viewer in ("v0", "v1")))
    service.now_ms += 60_000
    service.commit()
    if is_cut:
        service.cut()
    service.stop()
    before = hosts_in(service)
    assert {HAL, key_of("ida")} <= set(before)
    erased = forget(service.log, ["v0", "v2"], service.folder / "models")
    assert erased["viewers"] == 2
    assert hosts_in(service) == before
    service.start("lmdb:one")
    service.check_state(service.replay().as_served())
    service.fill("lmdb:two")
    service.check_state(service.replay().as_served(), "lmdb:two")


def test_an_erased_viewer_is_inside_no_candidate_of_a_snapshot(tmp_path):
    friends = {"kind": "friends", "viewer": "viewer.topics", "up": "join", "down": "leave"}
    with KindService(tmp_path / "served", surface_of(friends=friends, **COUNTED)) as service:
        now_ms = service.now_ms + 1
        service.commit(begin("c0", "hal", now_ms), *(join("c0", now_ms, f"v{i}") for i in range(3)))
        service.cut()
        service.stop()

        def inside():
            key, snapshot = value_key("id", hash64("c0")), replay_snapshots(service.log)[-1]
            rows = pq.read_table(snapshot.file("candidate")).to_pydict()
            stored = dict(zip(*rows.values(), strict=True))
            hashes = np.frombuffer(stored[key], np.uint64).tolist()
            return [viewer for viewer in VIEWERS if hash64(viewer) in hashes]

        assert inside() == ["v0", "v1", "v2"]
        forget(service.log, ["v1"], service.folder / "models")
        assert inside() == ["v0", "v2"]
        service.start("lmdb:one")
        service.check_state(service.replay().as_served())


@pytest.mark.parametrize(("unknown", "popular"), [("last", "audience"), ("scored", "host_rate")])
def test_the_audit_holds_for_rankings_of_the_service(unknown, popular, tmp_path, monkeypatch):
    toml = TOML.replace('"audience"', f'"{popular}"\nunknown_candidates = "{unknown}"', 1)
    more = "\n".join(f"{name} = {toml_of(options)}" for name, options in COUNTED.items())
    toml += more.replace("candidate.language", "candidate.topic") + "\n"
    monkeypatch.setattr(live_service, "TOML", toml)
    write_log(tmp_path / "log", tables())
    service = Logging(tmp_path, tmp_path / "log")
    service.run(busy_hour)
    result = audit(tmp_path / "log", service.surface)
    assert result["held"], result["worst"]
    assert result["rows"] > 100
    assert set(COUNTED) <= set(result["features"])
    served = pq.read_table(tmp_path / "log/exposures", columns=["numeric"])["numeric"].to_pylist()
    matrix = np.concatenate([np.array(row) for row in served]).reshape(result["rows"], -1)
    assert (np.nanmax(matrix[:, -len(COUNTED) :], axis=0) > 0).all()


def test_a_field_that_requests_state_has_no_counts():
    toml = TOML + 'by_price = { kind = "count", entity = "candidate.place", event = "join" }\n'
    toml = toml.replace("[context]", 'place = { type = "category", request_time = true }\n[context]')
    with pytest.raises(TabrankError, match=r"'candidate\.place' is stated by requests, so that no event"):
        read_surface(toml)
