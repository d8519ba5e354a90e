"""Ingest: the one writer. Events and exposures become state, and the journal, in one commit. No Ray in here."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from serve.config.settings import AppArgs
from serve.contract.errors import Busy, StoreUnavailable, WriterFenced
from serve.contract.records import Event
from serve.contract.validation import UNITS_MS
from serve.features.rows import Rows, Schema
from serve.features.slots import I64
from serve.ingest import intake, rolling
from serve.ingest.apply import apply_records
from serve.ingest.clock import WallClock
from serve.ingest.intake import MAX_LIVE, Group, Intake
from serve.ingest.waiting import COMMIT_ROW_BYTES, Waiting, groups
from serve.log.events import Entry, Record, Taken, owner_key, pack_entry, remembered_key
from serve.log.journal import entries
from serve.log.retention import Retention
from serve.log.segments import Segments
from serve.log.snapshots import numbers
from serve.log.throttle import CpuThrottle, OnStep
from serve.stores.factory import open_store
from serve.stores.protocol import Store

log = logging.getLogger("tabrank")

COMMIT_EVERY_S = 0.1  # how long records gather for one commit, and so for one sync of the disk
ROLL_EVERY_S = 60.0
ROLL_RECORDS = 100_000  # or as soon as so many are in the journal
ROLL_BYTES = 64 << 20  # or as many bytes
UPKEEP_SHARE = 0.25  # of a core: what is written to the log in one go took the rankings' for seconds
RETRY_ROLL_S = 5.0
# Refuse records with "busy" beyond so many that wait, or so many packed bytes: unpacked they take five times as much.
MAX_WAITING = 20_000
MAX_WAITING_BYTES = 32 << 20
# Remember removals of so long ago after a restart.
REMOVED_MS = UNITS_MS["d"]


class Tally(NamedTuple):
    """What became of records since the last tally, and how much of what is durable the log has not yet."""

    counts: Counter[str]  # by kind
    event_lags_ms: list[float]  # from an event's own time until it was durable
    commits_ms: list[float]  # from a call until what it brought was
    num_unrolled: int


Tell = Callable[[Tally], None]


def ingester(
    args: AppArgs,
    base: Path,
    tell: Tell = lambda tally: None,
    *,
    max_live: int = MAX_LIVE,
    clock: WallClock | None = None,
) -> Ingester:
    """Return the writer of one application's store and log."""
    surface = args.load_surface(base)
    schema = Schema(surface)
    opened = partial(open_store, args.store, surface.name, schema.fingerprint, base=base)
    return Ingester(
        schema,
        lambda writable: opened(writable=writable),
        Segments(base / args.log, surface),
        Retention(base / args.log, schema.fingerprint, args.keep_log_days * UNITS_MS["d"]),
        tell,
        clock=clock or WallClock(),
        event_clock=args.clock == "event",
        max_live=max_live,
    )


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
        tell: Tell = lambda tally: None,
        *,
        clock: WallClock,
        event_clock: bool = False,
        max_live: int = MAX_LIVE,
    ) -> None:
        self._schema = schema
        self._open_store = open_store
        self._segments = segments
        self._retention = retention
        self._clock = clock
        self._num_steps = 0
        self._event_clock = event_clock
        self._max_records = max(1, COMMIT_ROW_BYTES // max(1, schema.viewer.itemsize))
        self._store: Store | None = None
        self._intake = Intake(schema, event_clock=event_clock, max_live=max_live)
        self._seq = 0
        self._latest_ms = 0  # of a record
        self._waiting: list[Waiting] = []
        self._num_waiting = self._waiting_bytes = 0
        self._arrived = asyncio.Event()
        self._rolled = time.monotonic()
        # Records and their packed bytes: those that came into the journal, counted by the commit's thread, and those
        # that went into the log, by the roll's.
        self._journaled, self._logged = np.zeros((2, 2), np.int64)
        self._stopping = False
        self._tell = tell
        self.counts: Counter[str] = Counter()
        self._event_lags_ms: list[float] = []
        self._commits_ms: list[float] = []

    async def take(self, records: Sequence[Record], num_bytes: int) -> Taken:
        """Take records of so many packed bytes; returns once they are durable.

        Those that were there before are not taken again, nor is a new candidate where the live table is full.

        Raises:
            Busy: too much is waiting, or the log has not been written for too long.
            StoreUnavailable: the store cannot take them now; none of them is kept.
        """
        if self._stopping:
            raise StoreUnavailable("this writer is stopping; come again")
        if (
            self._num_waiting + len(records) > MAX_WAITING
            or self._waiting_bytes + num_bytes > MAX_WAITING_BYTES
        ):
            raise Busy(f"{self._num_waiting} records are waiting; retry in a second")
        if self._unrolled[1] > 2 * rolling.MAX_UNROLLED_BYTES:
            raise Busy("the journal is full, for the log cannot be written: see the replica log of Ingest")
        done: asyncio.Future[Taken] = asyncio.get_running_loop().create_future()
        self._waiting.append(Waiting(records, num_bytes, done))
        self._num_waiting += len(records)
        self._waiting_bytes += num_bytes
        self._arrived.set()
        return await done

    async def run(self) -> None:
        """Commit what gathers and roll the journal into segments, until `stop`; then commit and roll the rest."""
        rolling: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        rolling.set_result(None)
        tried = 0.0
        while not self._stopping:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._arrived.wait(), 1.0)
            if not self._event_clock:
                await asyncio.sleep(COMMIT_EVERY_S)
            self._tell(self._tally())
            is_idle = not self._waiting
            await self.flush()
            now = time.monotonic()
            is_full = self._holds(ROLL_RECORDS, ROLL_BYTES) and now - tried >= RETRY_ROLL_S
            is_due = is_full or now - self._rolled >= ROLL_EVERY_S
            if (is_due or (self._event_clock and is_idle)) and rolling.done():
                self._rolled = tried = now
                rolling = asyncio.ensure_future(asyncio.to_thread(self.upkeep))
        await rolling
        await self.flush()
        await asyncio.to_thread(self.roll)
        self._close()

    def _tally(self) -> Tally:
        self._clock()  # each second, so that it sees a step of the system's clock soon
        self.counts["clock_step"] += self._clock.num_steps - self._num_steps
        self._num_steps = self._clock.num_steps
        tally = Tally(self.counts, self._event_lags_ms, self._commits_ms, int(self._unrolled[0]))
        self.counts, self._event_lags_ms, self._commits_ms = Counter(), [], []
        return tally

    @property
    def _unrolled(self) -> I64:
        """Records, and their bytes, that are in the journal and not in the log."""
        return self._journaled - self._logged

    def _holds(self, num: int, num_bytes: int) -> bool:
        """Return whether the journal holds so many records, or bytes, that are not in the log."""
        return bool((self._unrolled >= (num, num_bytes)).any())

    def stop(self) -> None:
        """Have `run` end."""
        self._stopping = True
        self._arrived.set()

    async def flush(self) -> None:
        """Commit what has gathered, in one or more commits."""
        waiting, self._waiting = self._waiting, []
        self._arrived.clear()
        for group in groups(waiting, self._max_records):
            await self._commit_group(group)
            self._num_waiting -= sum(len(one.records) for one in group)
            self._waiting_bytes -= sum(one.num_bytes for one in group)

    async def _commit_group(self, group: Sequence[Waiting]) -> None:
        try:
            taken = await asyncio.to_thread(self._commit, group)
        except Exception as error:
            log.warning("%d records were not taken: %s: %s", len(group), type(error).__name__, error)
            for waiting in group:
                if not waiting.done.done():
                    waiting.done.set_exception(StoreUnavailable(str(error)))
            return
        now = time.monotonic()
        self._commits_ms += [(now - waiting.since) * 1e3 for waiting in group]
        for waiting, answer in zip(group, taken, strict=True):
            if not waiting.done.done():  # whoever waited may have gone
                waiting.done.set_result(answer)

    def _commit(self, group: Sequence[Waiting]) -> list[Taken]:
        try:
            return self._commit_once(group)
        except WriterFenced:  # another writer was there since: read what it left, and write after it
            self._close()
            return self._commit_once(group)

    def _commit_once(self, group: Sequence[Waiting]) -> list[Taken]:
        store = self._opened()
        received_ms = self._clock()
        admitted = Group(self._holds(rolling.MAX_UNROLLED, rolling.MAX_UNROLLED_BYTES))
        taken = [self._intake.admit(waiting.records, admitted, received_ms) for waiting in group]
        self.counts.update(admitted.counts)
        records = admitted.records
        last_ms = max((record.ts_ms or 0 for record in records), default=0)
        self._latest_ms = max(self._latest_ms, last_ms)
        self._intake.end(admitted, last_ms if self._event_clock else received_ms)
        if records:
            seq = self._seq + len(records)
            try:
                viewers, candidates = apply_records(
                    self._intake.candidates, store, self._seq, records, received_ms
                )
                journal = pack_entry(Entry(received_ms, records))
                store.commit(seq, viewers, candidates, journal=journal)
            except BaseException:
                self._close()  # the table holds what was not committed: read it again
                raise
            self._seq = seq
            self._journaled += (len(records), len(journal))
        self._intake.remember(admitted.keys)
        self.counts.update(type(record).__name__.lower() for record in records)
        now_ms = time.time() * 1e3
        self._event_lags_ms += [now_ms - (e.ts_ms or 0) for e in records if isinstance(e, Event)]
        self.counts["duplicate"] += sum(answer.duplicates for answer in taken)
        self.counts["rejected"] += sum(len(answer.rejected) for answer in taken)
        return taken

    def _opened(self) -> Store:
        """The store, with the lease taken and the live table and the ids read; as it is where all is well."""
        if self._store is None:
            self._segments.damaged.clear()
            known = max(self._seq, self._segments.last_seq(), *numbers(self._segments.folder))
            if known:
                self._refuse_empty_store(known)
            store = self._open_store(True)
            try:
                store.take_lease()
                changes = store.read([], 0)[1]
                self._intake.candidates = Rows(self._schema, "candidate")
                self._intake.candidates.apply({name: row for name, row in changes.rows.items() if row})
                self._intake.remember(dict.fromkeys(self._segments.recent_keys(intake.WINDOW, self._seq), 0))
                self._intake.remember(self._segments.removals(self._clock() - REMOVED_MS))
                self.counts["segment_damaged"] += len(self._segments.damaged)
                self._seq = max(
                    changes.seq, known
                )  # the store's is beyond what another writer has logged since
                self._journaled, self._logged = np.zeros((2, 2), np.int64)
                for _, entry in entries(store):
                    for record in entry.records:
                        if (name := remembered_key(record)) is not None:
                            self._intake.remember(
                                {name: (record.ts_ms or 0) if name == owner_key(record) else 0}
                            )
                    self._journaled += (len(entry.records), entry.num_bytes)
            except BaseException:
                store.close()
                raise
            self._store = store
        return self._store

    def _refuse_empty_store(self, known: int) -> None:
        """Raise StoreUnavailable where the store is gone or empty: the log, or this writer, knows of another."""
        store = self._open_store(False)
        try:
            if not store.seq():
                raise StoreUnavailable(
                    f"the store is empty, and {self._segments.folder} has records up to number {known}; "
                    "fill it with `python -m serve load --log LOG`"
                )
        finally:
            store.close()

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

    def _attempt(self, *jobs: Callable[[Store, OnStep], None]) -> None:
        store = self._store
        if store is None:
            return
        step = CpuThrottle(1.0 if self._event_clock else UPKEEP_SHARE, lambda: not self._stopping)
        try:
            with self._segments.held():
                for job in jobs:
                    store.trim(0)  # of nothing: whether the lease is still held
                    job(store, step)
        except WriterFenced:
            return  # the other writer does it
        except Exception as error:
            self.counts["roll_failed"] += 1
            log.warning("the log stays as it is: %s: %s", type(error).__name__, error)

    def _roll(self, store: Store, step: OnStep) -> None:
        # The counts of this opening of the store: another writer may have it opened anew meanwhile.
        rolling.roll(store, self._segments, self._logged, step)

    def _tend(self, store: Store, step: OnStep) -> None:
        self._retention.tend(store, self._now_ms, step)

    def _now_ms(self) -> int:
        """The service's clock."""
        return self._latest_ms if self._event_clock else self._clock()
