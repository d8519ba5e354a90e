"""Ingest: the one writer. Events and exposures become state, and the journal, in one commit. No Ray in here."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from serve.errors import LeaseLost, StoreUnavailable
from serve.kinds import IMPRESSION
from serve.records import (
    Candidate,
    Ended,
    Entry,
    Event,
    Exposure,
    Forget,
    Record,
    Taken,
    Viewer,
    key,
    pack_entry,
    unpack_entry,
)
from serve.retention import Retention
from serve.segments import Segments
from serve.settings import AppArgs
from serve.snapshots import numbers
from serve.state import I64, Rows, Run, Schema, State
from serve.stores.opening import open_store
from serve.stores.protocol import Store
from serve.strict import UNITS_MS
from serve.surface import load_surface

log = logging.getLogger("tabrank")

COMMIT_EVERY_S = 0.1  # how long records gather for one commit, and so for one sync of the disk
ROLL_EVERY_S = 60.0
ROLL_RECORDS = 100_000  # or as soon as so many are in the journal
ROLL_ENTRIES = 500  # journal entries that a segment is made of at a time: a minute at ten commits a second
MAX_WAITING = 20_000  # records; beyond, exposures are dropped and events are told to come again
MAX_LIVE = 1_000_000  # candidates in the live table; beyond, new ones are rejected
WINDOW = 1_000_000  # ids of events and exposures by which a repeated one is known
ENDED_MS = 3_600_000  # after its end a candidate is kept so long, for what is late
MAX_JOURNAL = 1_000_000  # entries
Tell = Callable[[Counter[str]], None]  # takes what was counted since it was last called


def ingester(
    args: AppArgs, base: Path, tell: Tell = lambda counts: None, *, max_live: int = MAX_LIVE
) -> Ingester:
    """The writer of one application's store and log."""
    surface = load_surface(args.surface if not args.surface.endswith(".toml") else str(base / args.surface))
    schema = Schema(surface)
    opened = partial(open_store, args.store, surface.name, schema.fingerprint, base=base)
    return Ingester(
        schema,
        lambda writable: opened(writable=writable),
        Segments(base / args.log, surface),
        Retention(base / args.log, schema.fingerprint, args.keep_log_days * UNITS_MS["d"]),
        tell,
        event_clock=args.clock == "event",
        max_live=max_live,
    )


class Busy(Exception):
    """More is waiting than can be held; come again."""


@dataclass
class _Waiting:
    """Records that came together, and what became of them, once those that were taken are durable."""

    records: Sequence[Record]
    done: asyncio.Future[Taken]


class Ingester:
    """Takes records in, and commits what has gathered every `COMMIT_EVERY_S`: state, number and journal together.

    `open_store(writable)` opens the store. Whoever commits first after another writer takes the lease and reads
    the table again, so a rollout's two, or a `serve load` under way, never mix their rows.
    With the event clock a record's own time is its time, and commits wait for nothing.
    """

    def __init__(
        self,
        schema: Schema,
        open_store: Callable[[bool], Store],
        segments: Segments,
        retention: Retention,
        tell: Tell = lambda counts: None,
        *,
        event_clock: bool = False,
        max_live: int = MAX_LIVE,
    ) -> None:
        self._schema = schema
        self._open_store = open_store
        self._segments = segments
        self._retention = retention
        self._event_clock = event_clock
        self._max_live = max_live
        self._store: Store | None = None
        self._candidates = Rows(schema, "candidate")
        self._seq = 0
        self._latest_ms = 0  # of a record
        self._ids: dict[str, None] = {}
        self._waiting: list[_Waiting] = []
        self._num_waiting = 0
        self._arrived = asyncio.Event()
        self._rolled = time.monotonic()
        self._num_unrolled = 0  # records committed since a roll began, or found in the journal
        self._stopping = False
        self._tell = tell
        self.counts: Counter[str] = Counter()

    async def take(self, records: Sequence[Record]) -> Taken:
        """Take records; returns once they are durable. Those that were there before are not taken again, and a
        candidate that is new is not where the live table is full.

        Raises:
            Busy: too much is waiting.
            StoreUnavailable: the store cannot take them now; none of them is kept.
        """
        if self._num_waiting + len(records) > MAX_WAITING:
            raise Busy(f"{self._num_waiting} records are waiting; come again")
        done: asyncio.Future[Taken] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(records, done))
        self._num_waiting += len(records)
        self._arrived.set()
        return await done

    async def run(self) -> None:
        """Commit what gathers and roll the journal into segments, until `stop`; then commit and roll the rest."""
        rolling: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        rolling.set_result(None)
        while not self._stopping:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._arrived.wait(), 1.0)
            if not self._event_clock:
                await asyncio.sleep(COMMIT_EVERY_S)
            self._tell(self.counts)
            is_idle = not self._waiting
            await self.flush()
            is_due = time.monotonic() - self._rolled >= ROLL_EVERY_S or self._num_unrolled >= ROLL_RECORDS
            if (is_due or (self._event_clock and is_idle)) and rolling.done():
                self._rolled, self._num_unrolled = time.monotonic(), 0
                rolling = asyncio.ensure_future(asyncio.to_thread(self.upkeep))
        await rolling
        await self.flush()
        await asyncio.to_thread(self.roll)
        self._close()

    def stop(self) -> None:
        """Have `run` end."""
        self._stopping = True
        self._arrived.set()

    async def flush(self) -> None:
        """Commit what has gathered."""
        group, self._waiting, self._num_waiting = self._waiting, [], 0
        self._arrived.clear()
        if not group:
            return
        try:
            taken = await asyncio.to_thread(self._commit, group)
        except Exception as error:
            log.warning("%d records were not taken: %s: %s", len(group), type(error).__name__, error)
            for waiting in group:
                if not waiting.done.done():
                    waiting.done.set_exception(StoreUnavailable(str(error)))
            return
        for waiting, answer in zip(group, taken, strict=True):
            if not waiting.done.done():  # whoever waited may have gone
                waiting.done.set_result(answer)

    def _commit(self, group: Sequence[_Waiting]) -> list[Taken]:
        try:
            return self._commit_once(group)
        except LeaseLost:  # another writer was there since: read what it left, and write after it
            self._close()
            return self._commit_once(group)

    def _commit_once(self, group: Sequence[_Waiting]) -> list[Taken]:
        store = self._opened()
        received_ms = int(time.time() * 1e3)
        ids: dict[str, None] = {}
        added: set[str] = set()
        records: list[Record] = []
        taken = [self._admit(waiting.records, records, ids, added) for waiting in group]
        for record in records:
            self._date(record, received_ms)
        last_ms = _last_ms(records)
        self._latest_ms = max(self._latest_ms, last_ms)
        records += self._ended(last_ms if self._event_clock else received_ms)
        if records:
            seq = self._seq + len(records)
            try:
                viewers, candidates = self._apply(store, records)
                journal = pack_entry(Entry(received_ms, records))
                store.commit(seq, viewers, candidates, journal=journal)
            except BaseException:
                self._close()  # the table holds what was not committed: read it again
                raise
            self._seq = seq
            self._num_unrolled += len(records)
        self._remember(ids)
        self.counts.update(_counted(records))
        self.counts["duplicate"] += sum(answer.duplicates for answer in taken)
        self.counts["rejected"] += sum(len(answer.rejected) for answer in taken)
        return taken

    def _admit(
        self, records: Iterable[Record], admitted: list[Record], ids: dict[str, None], added: set[str]
    ) -> Taken:
        """Append to `admitted` those that are new and have room; `ids` and new candidates are this group's so far."""
        taken = Taken()
        for place, record in enumerate(records):
            name = key(record)
            if name is not None:
                if name in self._ids or name in ids:
                    taken.duplicates += 1
                    continue
                ids[name] = None
            elif isinstance(record, Candidate) and record.id not in self._candidates.index:
                if record.id not in added and len(self._candidates) + len(added) >= self._max_live:
                    taken.rejected[place] = self._full
                    continue
                added.add(record.id)
            admitted.append(record)
        return taken

    @property
    def _full(self) -> str:
        return (
            f"the live table is full ({self._max_live} candidates); end some first: "
            "each leaves it an hour after its end"
        )

    def _remember(self, ids: Iterable[str]) -> None:
        self._ids.update(dict.fromkeys(ids))
        for name in list(_first(self._ids, len(self._ids) - WINDOW)):
            del self._ids[name]

    def _date(self, record: Record, received_ms: int) -> None:
        if self._event_clock:
            record.ts_ms = received_ms if record.ts_ms is None else record.ts_ms
        else:  # what lies ahead is taken as now
            record.ts_ms = received_ms if record.ts_ms is None else min(record.ts_ms, received_ms)

    def _ended(self, now_ms: int) -> list[Record]:
        past = np.flatnonzero(self._candidates.table["ends_ms"] < now_ms - ENDED_MS)
        return [Ended(str(self._candidates.ids[row]), now_ms) for row in past]

    def _apply(self, store: Store, records: Sequence[Record]) -> tuple[dict[str, bytes], dict[str, bytes]]:
        """Apply records in their order; the rows that changed, packed."""
        state = State(self._schema)
        state.candidates = self._candidates
        names = list(dict.fromkeys(name for name in map(_viewer, records) if name is not None))
        rows = store.read(names, self._seq)[0]
        state.viewers.apply({name: row for name, row in zip(names, rows, strict=True) if row is not None})
        changes = _Changes(state, self._schema)
        for record in records:
            changes.apply(record)
        changes.observe()
        return (
            _packed(state.viewers, changes.viewers),
            _packed(state.candidates, changes.candidates),
        )

    def _opened(self) -> Store:
        """The store, with the lease taken and the live table and the ids read; as it is where all is well."""
        if self._store is None:
            if self._seq:  # one that is gone is not made anew under a service that has written to it
                self._open_store(False).close()
            store = self._open_store(True)
            try:
                store.take_lease()
                changes = store.read([], 0)[1]
                self._candidates = Rows(self._schema, "candidate")
                self._candidates.apply({name: row for name, row in changes.rows.items() if row})
                self._remember(self._segments.recent_keys(WINDOW, self._seq))
                self._seq = max(changes.seq, self._segments.last_seq(), *numbers(self._segments.folder))
                self._num_unrolled = 0
                for _, packed in store.journal(0, MAX_JOURNAL):
                    records = unpack_entry(packed).records
                    self._remember(filter(None, map(key, records)))
                    self._num_unrolled += len(records)
            except BaseException:
                store.close()
                raise
            self._store = store
        return self._store

    def _close(self) -> None:
        store, self._store = self._store, None
        if store is not None:
            store.close()

    def roll(self) -> None:
        """Write the journal's entries as segments, and drop them from it. What fails is tried again later."""
        self._attempt(self._roll)

    def upkeep(self) -> None:
        """Roll, then see to the log's files. What fails is tried again later."""
        self._attempt(self._roll, self._tend)

    def _attempt(self, *steps: Callable[[Store], None]) -> None:
        store = self._store
        if store is None:
            return
        try:
            for step in steps:
                step(store)
        except LeaseLost:
            return  # the other writer does it
        except Exception as error:
            self.counts["roll_failed"] += 1
            log.warning("the log stays as it is: %s: %s", type(error).__name__, error)

    def _roll(self, store: Store) -> None:
        cuts = numbers(self._segments.folder)
        while entries := store.journal(0, ROLL_ENTRIES):
            for cut in cuts:  # a segment that lies on one side of a snapshot can be deleted with it
                if entries[0][0] <= cut < entries[-1][0]:
                    entries = [entry for entry in entries if entry[0] <= cut]
            self._segments.write([(seq, unpack_entry(packed)) for seq, packed in entries])
            store.trim(entries[-1][0])

    def _tend(self, store: Store) -> None:
        store.trim(0)  # of nothing: whether the lease is still held
        self._retention.tend(store, self._now_ms, lambda: not self._stopping)

    def _now_ms(self) -> int:
        """The service's clock."""
        return self._latest_ms if self._event_clock else int(time.time() * 1e3)


class _Changes:
    """Records on their way into the state: runs of exposures and events between what changes attributes."""

    def __init__(self, state: State, schema: Schema) -> None:
        self._state = state
        self._impressions = not schema.surface.impression_events
        self._run: list[tuple[str, int, I64, int]] = []  # event, viewer's row, candidates' rows, time
        self.viewers: dict[str, None] = {}
        self.candidates: dict[str, None] = {}

    def apply(self, record: Record) -> None:
        """Take one record; what it changes is counted among the changed."""
        if isinstance(record, Exposure):
            if self._impressions and record.traffic != "test":
                self._observed(IMPRESSION, record.viewer, record.candidates, record.ts_ms)
        elif isinstance(record, Event):
            self._observed(record.kind, record.viewer, (record.candidate,), record.ts_ms or 0)
        else:
            self.observe()
            self._change(record)

    def _observed(self, event: str, viewer: str | None, candidates: Sequence[str], ts_ms: int) -> None:
        row = 0
        if viewer is not None:
            row = self._state.viewers.add(viewer)
            self.viewers[viewer] = None
        known = self._state.candidates.find(candidates)
        self.candidates.update(dict.fromkeys(candidates))
        self._run.append((event, row, known, ts_ms))

    def _change(self, record: Record) -> None:
        if isinstance(record, Viewer):
            self._state.upsert("viewer", record.id, record.fields)
            self.viewers[record.id] = None
        elif isinstance(record, Candidate):
            self._state.upsert("candidate", record.id, record.fields, record.ends_ms)
            self.candidates[record.id] = None
        elif isinstance(record, Forget):
            self._state.viewers.drop(record.viewer)
            self.viewers[record.viewer] = None
        elif isinstance(record, Ended):
            self._state.candidates.drop(record.id)
            self.candidates[record.id] = None

    def observe(self) -> None:
        """Apply the run that has gathered; one call for all of it costs a tenth of one for each."""
        run, self._run = self._run, []
        if run:
            events, viewers, candidates, times = zip(*run, strict=True)
            numbers = [self._state.schema.number[event] for event in events]
            lengths = np.array([len(rows) for rows in candidates])
            self._state.observe(
                Run(
                    np.array(numbers), np.array(viewers), np.array(times), lengths, np.concatenate(candidates)
                )
            )


def _packed(rows: Rows, names: Iterable[str]) -> dict[str, bytes]:
    """The rows as a store keeps them, b"" where the id has none."""
    names = list(names)
    at = rows.find(names)
    packed = rows.table.take(at).tobytes()
    size = rows.table.dtype.itemsize
    return {
        name: packed[i * size : (i + 1) * size] if row else b""
        for i, (name, row) in enumerate(zip(names, at.tolist(), strict=True))
    }


def _viewer(record: Record) -> str | None:
    if isinstance(record, Viewer):
        return record.id
    return None if isinstance(record, Candidate | Ended) else record.viewer


def _last_ms(records: Sequence[Record]) -> int:
    return max((record.ts_ms or 0 for record in records), default=0)


def _first(names: Iterable[str], num: int) -> Iterable[str]:
    return (name for name, _ in zip(names, range(max(num, 0)), strict=False))


def _counted(records: Iterable[Record]) -> Counter[str]:
    return Counter(type(record).__name__.lower() for record in records)
