"""One log, one order of records: whatever writers and stores do, nothing is lost or twice."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from unittest import mock

import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import serve.ingest.takeover
import serve.ingest.writer
import serve.log.compaction
import serve.log.rebuild
from serve.config.settings import AppArgs
from serve.contract.errors import StoreUnavailable, TabrankError
from serve.contract.records import Candidate, Event, Forget, Viewer
from serve.features.rows import Schema
from serve.features.surface import read_surface
from serve.ingest.backfill import load
from serve.ingest.writer import Ingester
from serve.log.events import Exposure, pack
from serve.log.lease import read_lease, swap_lease
from serve.log.reader import TABLES, read_log
from serve.log.replay import Replay
from serve.log.segments import segments
from serve.log.stream import LogStream
from serve.log.writer import write_log
from serve.storage.atomic_files import write_whole
from serve.storage.bucket import is_bucket, place
from serve.stores.factory import open_store
from serve.stores.lmdb import LmdbStore
from tests.support.logging_service import assert_same_state, stored_rows
from tests.support.s3_server import named
from tests.support.small_surface import TOML, tables
from tests.support.stub_artifact import publish_stub

# Surfaces with other half-lives and so other states. With a zone, the state is that of `a`.
SURFACES = {
    "a": TOML,
    "b": TOML.replace('half_life = "10s"', 'half_life = "20s"'),
    "c": TOML.replace('half_life = "1h"', 'half_life = "2h"').replace(
        "[context]\n", '[context]\nday = "number"\n'
    ),
    "d": TOML.replace("[context]\n", '[context]\nzone = "category"\n'),
}
CONTEXTS = {"d": {"zone": "north"}}
FREE = ("load", "start", "crash_in_takeover", "lose", "copy")
STORES = ("lmdb:one", "lmdb:two")
# A store in memory needs no disk to sync.
MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


@dataclass
class Play:
    """A log with the writers, stores and surfaces that a sequence of operations drives."""

    folder: Path
    # The place of the log, from the folder or in a bucket.
    log: str = "log"
    # Each with its surface and store.
    writers: list[tuple[Ingester, str, str]] = field(default_factory=list)
    acknowledged: list[str] = field(default_factory=list)
    num_sent: int = 0
    num_copies: int = 0

    @property
    def place(self):
        return place(self.log, self.folder)

    def args(self, surface, store):
        return AppArgs(f"{surface}.toml", store, "models", self.log, keep_log_days=0)

    async def load(self, surface, store):
        """Fill a store beside whatever runs."""
        args = self.args(surface, store)
        load(args.load_surface(self.folder), self.place, store, self.folder)

    async def start(self, surface, store):
        """Start a writer, which takes over the log."""
        writer = Ingester(self.args(surface, store), self.folder)
        self.writers.append((writer, surface, store))
        await writer.take_over()

    async def send(self, at, num):
        """Send records to a writer; remember the ids of those that it acknowledged."""
        writer, surface, _ = self.writers[at % len(self.writers)]
        records, context = [], CONTEXTS.get(surface, {})
        for _ in range(num):
            self.num_sent += 1
            i = self.num_sent
            viewer = f"v{i % 5}"
            records += [
                Event(f"new{i}", viewer, "ab"[i % 2], ("join", "click", "leave")[i % 3]),
                Exposure(
                    *(f"x{i}", int(time.time() * 1e3), viewer, ["a", "b"], b"\0" * 8, "e", "m", "full", 0),
                    context=context,
                ),
            ]
            if i % 4 == 0:
                fields = {"topic": "jazz"}
                records += [Candidate(f"c{i}", fields), Viewer(viewer, {"language": "fr"})]
            if i % 7 == 0:
                records.append(Forget(viewer))
        taking = asyncio.ensure_future(writer.take(records, len(pack(records))))
        await asyncio.sleep(0)
        await writer.commit_waiting()
        result = await taking
        assert not result.rejected
        assert not result.duplicates
        self.acknowledged += [record.id for record in records if isinstance(record, Event)]
        self.acknowledged += [record.request_id for record in records if isinstance(record, Exposure)]

    async def flush(self, at):
        """Write a writer's journal to the log."""
        await asyncio.to_thread(self.writers[at % len(self.writers)][0].flush_journal)

    async def tend(self, at):
        """Flush, merge segments, and take a snapshot."""
        await asyncio.to_thread(self.writers[at % len(self.writers)][0].upkeep)

    async def crash(self, at):
        """End a writer without a word."""
        self.writers.pop(at % len(self.writers))

    async def crash_in_flush(self, at):
        """End a writer after it has written a segment and before it trims the journal."""
        trim = LmdbStore.trim

        def dying(store, through):
            if through:
                raise StoreUnavailable("killed")
            trim(store, through)

        with mock.patch.object(LmdbStore, "trim", dying):
            await self.flush(at)
        await self.crash(at)

    async def stop(self, at):
        """Stop a writer as a rollout does."""
        writer, *_ = self.writers.pop(at % len(self.writers))
        writer.stop()
        await writer.run()

    async def crash_in_takeover(self, surface, store, at):
        """Start a writer that ends before one of its changes of the lease."""
        changes = []

        def dying(*arguments):
            changes.append(arguments)
            if len(changes) > at:
                raise StoreUnavailable("killed")
            return swap_lease(*arguments)

        with mock.patch.object(serve.ingest.takeover, "swap_lease", dying):
            await self.start(surface, store)
        if len(changes) > at:
            self.writers.pop()

    async def lose(self, store):
        """Lose a store with its journal, give that up, fill it anew, and find the old one again."""
        self.writers = [one for one in self.writers if one[2] != store]
        path, away = self.folder / store.partition(":")[2], self.folder / "away"
        path.rename(away)
        try:
            await self.give_up(store)
            await self.start("a", store)
            if self.writers:
                await self.send(len(self.writers) - 1, 2)
        finally:
            self.writers = [one for one in self.writers if one[2] != store]
            # What the new one took is lost in its turn.
            self.forgo()
            shutil.rmtree(path, ignore_errors=True)
            away.rename(path)

    async def give_up(self, store):
        self.forgo()
        args = self.args("a", store)
        surface = args.load_surface(self.folder)
        try:
            load(surface, self.place, store, self.folder)
        except StoreUnavailable:
            load(surface, self.place, store, self.folder, without_journal=True)

    def forgo(self):
        """Expect of the log only what it has now."""
        written = {id_ for _, id_ in self.written().values()}
        self.acknowledged = [id_ for id_ in self.acknowledged if id_ in written]

    async def copy(self, store):
        """Copy the log beside itself, and let a service write to the copy."""
        name = f"copy{self.num_copies}"
        self.num_copies += 1
        copied = self.place.with_name(f"{self.place.name}-{name}")
        copy_files(self.place, copied)
        surface = self.args("a", store).load_surface(self.folder)
        args = replace(self.args("a", f"lmdb:{name}-store"), log=str(copied))
        lease = read_lease(copied)
        is_open = lease is not None and not lease.released
        load(surface, copied, args.store, self.folder, without_journal=is_open)
        writer = Ingester(args, self.folder)
        event = Event(f"of-{name}", "v1", "a", "join")
        taking = asyncio.ensure_future(writer.take([event], 100))
        await asyncio.sleep(0)
        await writer.commit_waiting()
        await taking
        await writer.finish()

    def written(self):
        """Return the ids of all events and exposures in the log, by number."""
        found = {}
        for name in TABLES:
            for segment in segments(self.place, name):
                table = pq.read_table(segment.path)
                ids = table["request_id" if name == "exposures" else "id"].to_pylist()
                for number, id_ in zip(table["seq"].to_pylist(), ids, strict=True):
                    assert segment.first <= number <= segment.last
                    assert found.setdefault(number, (name, id_)) == (name, id_), "a number is used twice"
        return found


def copy_files(folder, other):
    """Copy what is in a folder; either may be in a bucket."""
    for path in folder.glob("**/*"):
        if not path.is_dir():
            target = other / path.relative_to(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            write_whole(target, path.read_bytes())


# A sequence takes a tenth of a second: do not shrink one that fails, it is short.
FAST = [Phase.explicit, Phase.reuse, Phase.generate]
AT = st.integers(0, 3)
OPERATIONS = st.one_of(
    st.tuples(st.just("load"), st.sampled_from(list(SURFACES)), st.sampled_from(STORES)),
    st.tuples(st.just("start"), st.sampled_from(list(SURFACES)), st.sampled_from(STORES)),
    st.tuples(st.just("send"), AT, st.integers(1, 4)),
    st.tuples(st.just("send"), AT, st.integers(1, 4)),
    st.tuples(st.sampled_from(["flush", "tend", "crash", "crash_in_flush", "stop"]), AT),
    st.tuples(
        st.just("crash_in_takeover"),
        st.sampled_from(list(SURFACES)),
        st.sampled_from(STORES),
        st.integers(0, 1),
    ),
    st.tuples(st.sampled_from(["lose", "copy"]), st.sampled_from(STORES)),
)


@cache
def surface_named(name):
    return read_surface(SURFACES[name.removesuffix(".toml")], name)


async def play(folder, operations, take_back_s, log):
    playing = Play(folder, log)
    await playing.start("a", STORES[0])
    with (
        mock.patch.object(serve.ingest.writer, "TAKE_BACK_S", take_back_s),
        mock.patch.object(serve.log.compaction, "MIN_SEGMENTS", 3),
        # What joins in the log says nothing of its order, and takes half of a load.
        mock.patch.object(serve.log.rebuild, "_checked_joins", return_value={}),
        mock.patch.object(AppArgs, "load_surface", lambda args, _: surface_named(args.surface)),
    ):
        for name, *arguments in operations:
            if playing.writers or name in FREE:
                try:
                    await getattr(playing, name)(*arguments)
                except TabrankError:
                    # Refused, so nothing was acknowledged.
                    continue
    # The last service: whatever happened, it drains the log and catches up.
    playing.writers.clear()
    await playing.start("b", STORES[0])
    try:
        await playing.send(0, 2)
    except StoreUnavailable:
        # A store that was given up is back. The message says what to do.
        playing.writers.clear()
        shutil.rmtree(folder / "one")
        await playing.give_up(STORES[0])
        await playing.load("b", STORES[0])
        await playing.start("b", STORES[0])
        await playing.send(0, 2)
    await playing.stop(0)
    found = Counter(id_ for name, id_ in playing.written().values() if name in ("events", "exposures"))
    assert set(playing.acknowledged) <= set(found), "an acknowledged record is missing"
    assert max(found.values()) == 1, "a record has two numbers"
    surface = playing.args("b", STORES[0]).load_surface(folder)
    schema = Schema(surface)
    parts = list(LogStream(playing.place, surface))
    streamed = {id_ for part in parts for id_ in part.events["id"].to_pylist()}
    streamed |= {id_ for part in parts for id_ in part.exposures["request_id"].to_pylist()}
    assert set(playing.acknowledged) <= streamed
    store = open_store(STORES[0], surface.name, schema.fingerprint, base=folder, writable=False)
    replay = Replay(schema, read_log(playing.place, surface, test_traffic=True))
    replay.finish()
    assert_same_state(stored_rows(schema, store), replay, tolerance=1e-6)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A log with the stores of three surfaces: to fill them takes half of the time."""
    folder = tmp_path_factory.mktemp("prepared")
    prepare(folder)
    return folder


def prepare(folder):
    for name, text in SURFACES.items():
        (folder / f"{name}.toml").write_text(text)
    publish_stub(folder / "models", TOML)
    write_log(folder / "log", tables())
    for surface, store in (("a", STORES[0]), ("b", STORES[0]), ("c", STORES[1])):
        asyncio.run(Play(folder).load(surface, store))


def run(prepared, operations, take_back_s, log="log"):
    folder = Path(tempfile.mkdtemp(dir=MEMORY))
    try:
        shutil.copytree(prepared, folder, dirs_exist_ok=True)
        if is_bucket(log):
            copy_files(folder / "log", place(log))
            shutil.rmtree(folder / "log")
        asyncio.run(play(folder, operations, take_back_s, log))
    finally:
        shutil.rmtree(folder)


# Long sequences: a third of the time of a short one goes into its beginning and its end.
sequences = given(st.lists(OPERATIONS, min_size=6, max_size=20), st.sampled_from([0.0, 1e9]))


@sequences
@settings(max_examples=4, deadline=None, phases=FAST)
def test_nothing_is_lost_or_renumbered_in_any_sequence(prepared, operations, take_back_s):
    run(prepared, operations, take_back_s)


@pytest.mark.integration
@sequences
@settings(max_examples=80, deadline=None, phases=FAST)
def test_nothing_is_lost_or_renumbered_in_many_sequences(prepared, operations, take_back_s):
    run(prepared, operations, take_back_s)


# The environment and the cache of a bucket are the same for all examples.
IN_BUCKET = {"deadline": None, "phases": FAST, "suppress_health_check": [HealthCheck.function_scoped_fixture]}


@sequences
@settings(max_examples=2, **IN_BUCKET)
def test_nothing_is_lost_or_renumbered_in_a_bucket(prepared, bucket, operations, take_back_s):
    run(prepared, operations, take_back_s, named("log"))


@pytest.mark.integration
@pytest.mark.no_ray
@sequences
@settings(max_examples=15, **IN_BUCKET)
def test_nothing_is_lost_or_renumbered_in_many_sequences_in_a_bucket(
    prepared, bucket, operations, take_back_s
):
    run(prepared, operations, take_back_s, named("log"))


BESIDE = [("send", 0, 4), ("load", "b", "lmdb:one"), ("send", 0, 4)]


@pytest.mark.parametrize(
    "operations",
    [
        [*BESIDE, ("start", "b", "lmdb:one"), ("send", 1, 4), ("stop", 0), ("send", 0, 3), ("stop", 0)],
        [
            *BESIDE,
            ("crash", 0),
            ("start", "b", "lmdb:one"),
            ("send", 0, 4),
            ("stop", 0),
            ("start", "a", "lmdb:one"),
        ],
        [
            ("send", 0, 4),
            ("crash_in_flush", 0),
            ("load", "c", "lmdb:two"),
            ("start", "c", "lmdb:two"),
            ("send", 0, 1),
        ],
    ],
    ids=["rolling change of the surface", "crash, change, and change back", "crash before the trim"],
)
@pytest.mark.parametrize("log", ["log", pytest.param("s3", id="in a bucket")])
def test_a_change_of_the_surface_keeps_what_was_acknowledged(prepared, operations, log, request):
    if log == "s3":
        request.getfixturevalue("bucket")
        log = named("log")
    run(prepared, operations, 1e9, log)
