"""Ingest: the one writer. Events and exposures become state, and the journal, in one commit. No Ray in here."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby, takewhile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from serve.changes import Changes, packed, viewer_of
from serve.errors import Busy, LeaseLost, StoreUnavailable
from serve.journal import entries
from serve.pace import Pace, Step
from serve.records import (
    Candidate,
    Ended,
    Entry,
    Event,
    Exposure,
    Record,
    Taken,
    key,
    pack_entry,
)
from serve.retention import Retention
from serve.segments import Segments
from serve.settings import AppArgs
from serve.snapshots import numbers
from serve.state import Rows, Schema, State
from serve.stores.opening import open_store
from serve.stores.protocol import Store
from serve.strict import UNITS_MS

log = logging.getLogger("tabrank")

COMMIT_EVERY_S = 0.1  # how long records gather for one commit, and so for one sync of the disk
ROLL_EVERY_S = 60.0
ROLL_RECORDS = 100_000  # or as soon as so many are in the journal
SEGMENT_ENTRIES = 600  # a minute of commits
UPKEEP_SHARE = 0.25  # of a core: what is written to the log in one go took the rankings' for seconds
RETRY_ROLL_S = 5.0
MAX_WAITING = 20_000  # records; beyond, they are told to come again
MAX_LIVE = 1_000_000  # candidates in the live table; beyond, new ones are rejected
WINDOW = 1_000_000  # ids of events, and as many of exposures, by which a repeated one is known
ENDED_MS = 3_600_000  # after its end a candidate is kept so long, for what is late
MAX_UNROLLED = (
    1_000_000  # records in the journal; beyond, where the log cannot be written, exposures are dropped
)
MAX_ENDED = 5_000  # that leave the table in one commit


class Tally(NamedTuple):
    """What became of records since the last tally, and how much of what is durable the log has not yet."""

    counts: Counter[str]  # by kind
    event_lags_ms: list[float]  # from an event's own time until it was durable
    commits_ms: list[float]  # from a call until what it brought was
    num_unrolled: int


Tell = Callable[[Tally], None]


def ingester(
    args: AppArgs, base: Path, tell: Tell = lambda tally: None, *, max_live: int = MAX_LIVE
) -> Ingester:
    """The writer of one application's store and log."""
    surface = args.load_surface(base)
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


@dataclass
class _Waiting:
    """Records that came together, and what became of them, once those that were taken are durable."""

    records: Sequence[Record]
    done: asyncio.Future[Taken]
    since: float = field(default_factory=time.monotonic)


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
        self._ids: dict[str, dict[str, None]] = {"e": {}, "x": {}}  # by the first letter of `records.key`
        self._waiting: list[_Waiting] = []
        self._num_waiting = 0
        self._arrived = asyncio.Event()
        self._rolled = time.monotonic()
        self._num_committed = 0  # records, or found in the journal; the commit's thread counts
        self._num_rolled = 0  # of these; the roll's thread counts
        self._stopping = False
        self._tell = tell
        self.counts: Counter[str] = Counter()
        self._event_lags_ms: list[float] = []
        self._commits_ms: list[float] = []

    async def take(self, records: Sequence[Record]) -> Taken:
        """Take records; returns once they are durable. Those that were there before are not taken again, and a
        candidate that is new is not where the live table is full.

        Raises:
            Busy: too much is waiting.
            StoreUnavailable: the store cannot take them now; none of them is kept.
        """
        if self._stopping:
            raise StoreUnavailable("this writer is stopping; come again")
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
            is_full = self._num_unrolled >= ROLL_RECORDS and now - tried >= RETRY_ROLL_S
            is_due = is_full or now - self._rolled >= ROLL_EVERY_S
            if (is_due or (self._event_clock and is_idle)) and rolling.done():
                self._rolled = tried = now
                rolling = asyncio.ensure_future(asyncio.to_thread(self.upkeep))
        await rolling
        await self.flush()
        await asyncio.to_thread(self.roll)
        self._close()

    def _tally(self) -> Tally:
        tally = Tally(self.counts, self._event_lags_ms, self._commits_ms, self._num_unrolled)
        self.counts, self._event_lags_ms, self._commits_ms = Counter(), [], []
        return tally

    @property
    def _num_unrolled(self) -> int:
        return self._num_committed - self._num_rolled

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
        now = time.monotonic()
        self._commits_ms += [(now - waiting.since) * 1e3 for waiting in group]
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
            self._num_committed += len(records)
        self._remember(ids)
        self.counts.update(_counted(records))
        now_ms = time.time() * 1e3
        self._event_lags_ms += [now_ms - (e.ts_ms or 0) for e in records if isinstance(e, Event)]
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
                if name in self._ids[name[0]] or name in ids:
                    taken.duplicates += 1
                    continue
                ids[name] = None
            if isinstance(record, Exposure) and self._num_unrolled >= MAX_UNROLLED:
                self.counts["exposure_dropped"] += 1
                continue
            if isinstance(record, Candidate) and record.id not in self._candidates.index:
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
        for name in ids:
            self._ids[name[0]][name] = None
        for known in self._ids.values():
            for name in list(_first(known, len(known) - WINDOW)):
                del known[name]

    def _date(self, record: Record, received_ms: int) -> None:
        if self._event_clock:
            record.ts_ms = received_ms if record.ts_ms is None else record.ts_ms
        elif not isinstance(record, Exposure):  # whose features were computed at its own time
            # what lies ahead is taken as now
            record.ts_ms = received_ms if record.ts_ms is None else min(record.ts_ms, received_ms)

    def _ended(self, now_ms: int) -> list[Record]:
        past = np.flatnonzero(self._candidates.table["ends_ms"] < now_ms - ENDED_MS)
        return [Ended(str(self._candidates.ids[row]), now_ms) for row in past[:MAX_ENDED]]

    def _apply(self, store: Store, records: Sequence[Record]) -> tuple[dict[str, bytes], dict[str, bytes]]:
        """Apply records in their order; the rows that changed, packed."""
        state = State(self._schema)
        state.candidates = self._candidates
        names = list(dict.fromkeys(name for name in map(viewer_of, records) if name is not None))
        rows = store.read(names, self._seq)[0]
        state.viewers.apply({name: row for name, row in zip(names, rows, strict=True) if row is not None})
        changes = Changes(state)
        for record in records:
            changes.apply(record)
        changes.observe()
        return (
            packed(state.viewers, changes.viewers),
            packed(state.candidates, changes.candidates),
        )

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
                self._candidates = Rows(self._schema, "candidate")
                self._candidates.apply({name: row for name, row in changes.rows.items() if row})
                self._remember(self._segments.recent_keys(WINDOW, self._seq))
                self.counts["segment_damaged"] += len(self._segments.damaged)
                self._seq = max(
                    changes.seq, known
                )  # the store's is beyond what another writer has logged since
                self._num_committed = self._num_rolled = 0
                for _, entry in entries(store):
                    self._remember(filter(None, map(key, entry.records)))
                    self._num_committed += len(entry.records)
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

    def _attempt(self, *jobs: Callable[[Store, Step], None]) -> None:
        store = self._store
        if store is None:
            return
        step = Pace(1.0 if self._event_clock else UPKEEP_SHARE, lambda: not self._stopping)
        try:
            with self._segments.held():
                for job in jobs:
                    store.trim(0)  # of nothing: whether the lease is still held
                    job(store, step)
        except LeaseLost:
            return  # the other writer does it
        except Exception as error:
            self.counts["roll_failed"] += 1
            log.warning("the log stays as it is: %s: %s", type(error).__name__, error)

    def _roll(self, store: Store, step: Step) -> None:
        cuts, end = numbers(self._segments.folder), store.seq()
        waiting = takewhile(lambda entry: entry[0] <= end, entries(store))  # else it runs after what comes in
        for _, part in groupby(enumerate(waiting), partial(_segment, cuts)):
            last, num = self._segments.write((entry for _, entry in part), step)
            store.trim(last)
            if store is self._store:  # else another writer was there since, and the counts began anew
                self._num_rolled += num

    def _tend(self, store: Store, step: Step) -> None:
        self._retention.tend(store, self._now_ms, step)

    def _now_ms(self) -> int:
        """The service's clock."""
        return self._latest_ms if self._event_clock else int(time.time() * 1e3)


def _segment(cuts: Sequence[int], placed: tuple[int, tuple[int, Entry]]) -> tuple[int, int]:
    """Which segment the entry at a place belongs to; one that lies on one side of a snapshot goes with it."""
    place, (last, _) = placed
    return sum(cut < last for cut in cuts), place // SEGMENT_ENTRIES


def _last_ms(records: Sequence[Record]) -> int:
    return max((record.ts_ms or 0 for record in records), default=0)


def _first(names: Iterable[str], num: int) -> Iterable[str]:
    return (name for name, _ in zip(names, range(max(num, 0)), strict=False))


def _counted(records: Iterable[Record]) -> Counter[str]:
    return Counter(type(record).__name__.lower() for record in records)
