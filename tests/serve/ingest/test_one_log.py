"""One log, one order of records: whatever writers and stores do, nothing is lost or twice."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

import pyarrow.parquet as pq
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from served import assert_same_state, stored_rows
from stub import publish_stub
from tiny import TOML, tables

import serve.ingest.writer
import serve.log.compaction
from serve.config.settings import AppArgs
from serve.contract.errors import StoreUnavailable, TabrankError
from serve.contract.records import Candidate, Event, Forget, Viewer
from serve.features.rows import Schema
from serve.ingest.backfill import load
from serve.ingest.writer import Ingester
from serve.log.events import Exposure, pack
from serve.log.reader import TABLES, read_log
from serve.log.replay import Replay
from serve.log.segments import segments
from serve.log.writer import write_log
from serve.stores.factory import open_store
from serve.stores.lmdb import LmdbStore

# Surfaces with other half-lives and so other states; the last one also has another field.
SURFACES = {
    "a": TOML,
    "b": TOML.replace('half_life = "10s"', 'half_life = "20s"'),
    "c": TOML.replace('half_life = "1h"', 'half_life = "2h"').replace(
        "[context]\n", '[context]\nday = "number"\n'
    ),
}
STORES = ("lmdb:one", "lmdb:two")
# A store in memory needs no disk to sync.
MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


@dataclass
class Play:
    """A log with the writers, stores and surfaces that a sequence of operations drives."""

    folder: Path
    writers: list[Ingester] = field(default_factory=list)
    acknowledged: list[str] = field(default_factory=list)
    num_sent: int = 0

    def args(self, surface, store):
        return AppArgs(f"{surface}.toml", store, "models", "log", keep_log_days=0)

    async def load(self, surface, store):
        """Fill a store beside whatever runs."""
        args = self.args(surface, store)
        load(args.load_surface(self.folder), self.folder / "log", store, self.folder)

    async def start(self, surface, store):
        """Start a writer, which takes over the log."""
        writer = Ingester(self.args(surface, store), self.folder)
        self.writers.append(writer)
        await writer.take_over()

    async def send(self, at, num):
        """Send records to a writer; remember the ids of those that it acknowledged."""
        records = []
        for _ in range(num):
            self.num_sent += 1
            i = self.num_sent
            viewer = f"v{i % 5}"
            records += [
                Event(f"new{i}", viewer, "ab"[i % 2], ("join", "click", "leave")[i % 3]),
                Exposure(f"x{i}", int(time.time() * 1e3), viewer, ["a", "b"], b"\0" * 8, "e", "m", "full", 0),
            ]
            if i % 4 == 0:
                fields = {"topic": "jazz"}
                records += [Candidate(f"c{i}", fields), Viewer(viewer, {"language": "fr"})]
            if i % 7 == 0:
                records.append(Forget(viewer))
        writer = self.writers[at % len(self.writers)]
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
        await asyncio.to_thread(self.writers[at % len(self.writers)].flush_journal)

    async def tend(self, at):
        """Flush, merge segments, and take a snapshot."""
        await asyncio.to_thread(self.writers[at % len(self.writers)].upkeep)

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
        writer = self.writers.pop(at % len(self.writers))
        writer.stop()
        await writer.run()

    def written(self):
        """Return the ids of all events and exposures in the log, by number."""
        found = {}
        for name in TABLES:
            for segment in segments(self.folder / "log", name):
                table = pq.read_table(segment.path)
                ids = table["request_id" if name == "exposures" else "id"].to_pylist()
                for number, id_ in zip(table["seq"].to_pylist(), ids, strict=True):
                    assert segment.first <= number <= segment.named_last
                    assert found.setdefault(number, (name, id_)) == (name, id_), "a number is used twice"
        return found


# A sequence takes a tenth of a second: do not shrink one that fails, it is short.
FAST = [Phase.explicit, Phase.reuse, Phase.generate]
AT = st.integers(0, 3)
OPERATIONS = st.one_of(
    st.tuples(st.just("load"), st.sampled_from(list(SURFACES)), st.sampled_from(STORES)),
    st.tuples(st.just("start"), st.sampled_from(list(SURFACES)), st.sampled_from(STORES)),
    st.tuples(st.just("send"), AT, st.integers(1, 4)),
    st.tuples(st.just("send"), AT, st.integers(1, 4)),
    st.tuples(st.sampled_from(["flush", "tend", "crash", "crash_in_flush", "stop"]), AT),
)


async def play(folder, operations, take_back_s):
    for name, text in SURFACES.items():
        (folder / f"{name}.toml").write_text(text)
    publish_stub(folder / "models", TOML)
    write_log(folder / "log", tables())
    playing = Play(folder)
    for surface, store in (("a", STORES[0]), ("b", STORES[0]), ("c", STORES[1])):
        await playing.load(surface, store)
    await playing.start("a", STORES[0])
    with (
        mock.patch.object(serve.ingest.writer, "TAKE_BACK_S", take_back_s),
        mock.patch.object(serve.log.compaction, "MIN_SEGMENTS", 3),
    ):
        for name, *arguments in operations:
            if playing.writers or name in ("load", "start"):
                try:
                    await getattr(playing, name)(*arguments)
                except TabrankError:
                    # Refused, so nothing was acknowledged.
                    continue
    # The last service: whatever happened, it drains the log and catches up.
    playing.writers.clear()
    await playing.start("b", STORES[0])
    await playing.send(0, 2)
    await playing.stop(0)
    found = Counter(id_ for name, id_ in playing.written().values() if name in ("events", "exposures"))
    assert set(playing.acknowledged) <= set(found), "an acknowledged record is missing"
    assert max(found.values()) == 1, "a record has two numbers"
    surface = playing.args("b", STORES[0]).load_surface(folder)
    schema = Schema(surface)
    store = open_store(STORES[0], surface.name, schema.fingerprint, base=folder, writable=False)
    replay = Replay(schema, read_log(folder / "log", surface, test_traffic=True))
    replay.finish()
    assert_same_state(stored_rows(schema, store), replay, tolerance=1e-6)


def run(operations, take_back_s):
    folder = Path(tempfile.mkdtemp(dir=MEMORY))
    try:
        asyncio.run(play(folder, operations, take_back_s))
    finally:
        shutil.rmtree(folder)


sequences = given(st.lists(OPERATIONS, min_size=1, max_size=14), st.sampled_from([0.0, 1e9]))


@sequences
@settings(max_examples=20, deadline=None, phases=FAST)
def test_nothing_is_lost_or_renumbered_in_any_sequence(operations, take_back_s):
    run(operations, take_back_s)


@pytest.mark.integration
@sequences
@settings(max_examples=1_000, deadline=None, phases=FAST)
def test_nothing_is_lost_or_renumbered_in_a_thousand_sequences(operations, take_back_s):
    run(operations, take_back_s)


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
def test_a_change_of_the_surface_keeps_what_was_acknowledged(operations):
    run(operations, 1e9)
