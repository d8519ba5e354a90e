"""Ingest: the one writer. Events and exposures become state, and the journal, in one commit. No Ray in here."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby, islice, takewhile
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple

import numpy as np

from serve.config.settings import AppArgs
from serve.contract.errors import Busy, LeaseLost, StoreUnavailable
from serve.contract.records import Candidate, Event
from serve.contract.validation import UNITS_MS
from serve.features.rows import Rows, Schema, State
from serve.features.slots import I64
from serve.ingest.apply import Changes, packed, viewer_of
from serve.ingest.clock import WallClock
from serve.log.events import (
    CANDIDATES,
    EVENT_IDS,
    EXPOSURE_IDS,
    VIEWERS,
    Ended,
    Entry,
    Exposure,
    Record,
    Taken,
    key,
    owner_key,
    pack_entry,
    remembered_key,
)
from serve.log.journal import entries
from serve.log.retention import Retention
from serve.log.segments import Segments
from serve.log.snapshots import numbers
from serve.log.throttle import Pace, Step
from serve.stores.factory import open_store
from serve.stores.protocol import Store

log = logging.getLogger("tabrank")

COMMIT_EVERY_S = 0.1  # how long records gather for one commit, and so for one sync of the disk
ROLL_EVERY_S = 60.0
ROLL_RECORDS = 100_000  # or as soon as so many are in the journal
ROLL_BYTES = 64 << 20  # or as many bytes
SEGMENT_ENTRIES = 600  # a minute of commits
SEGMENT_BYTES = 256 << 20  # of these, as they are in the journal
UPKEEP_SHARE = 0.25  # of a core: what is written to the log in one go took the rankings' for seconds
RETRY_ROLL_S = 5.0
# Refuse records with "busy" beyond so many that wait, or so many packed bytes: unpacked they take five times as much.
MAX_WAITING = 20_000
MAX_WAITING_BYTES = 32 << 20
# Commit so many packed bytes at once, but at least one call; the rows of viewers that they change have their own bound.
COMMIT_BYTES = 4 << 20
COMMIT_ROW_BYTES = 64 << 20
# Reject new candidates where the live table holds so many, or its rows have so many bytes.
MAX_LIVE = 1_000_000
MAX_LIVE_BYTES = 1 << 30
# Remember so many ids of events, of exposures, of forgotten viewers and of removed candidates, by which repeated and
# late records are recognised.
WINDOW = 1_000_000
ENDED_MS = 3_600_000  # after its end a candidate is kept so long, for what is late
# Remember removals of so long ago after a restart.
REMOVED_MS = UNITS_MS["d"]
AHEAD_MS = 1_000  # count a time that lies further ahead: somebody's clock is wrong
# Where the log cannot be written the journal grows: drop exposures beyond so many records or bytes in it, and refuse
# everything beyond twice as many bytes.
MAX_UNROLLED = 1_000_000
MAX_UNROLLED_BYTES = 1 << 30
MAX_ENDED = 5_000  # that leave the table in one commit


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


@dataclass
class _Waiting:
    """Records that came together, and what became of them, once those that were taken are durable."""

    records: Sequence[Record]
    num_bytes: int
    done: asyncio.Future[Taken]
    since: float = field(default_factory=time.monotonic)


@dataclass
class _Group:
    """Records of one commit: those admitted so far, their keys as in `Ingester._keys`, and new candidates."""

    records: list[Record] = field(default_factory=list)
    keys: dict[bytes, int] = field(default_factory=dict)
    new: set[str] = field(default_factory=set)


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
        self._max_live = min(max_live, MAX_LIVE_BYTES // schema.candidate.itemsize)
        self._max_records = max(1, COMMIT_ROW_BYTES // max(1, schema.viewer.itemsize))
        self._store: Store | None = None
        self._candidates = Rows(schema, "candidate")
        self._seq = 0
        self._latest_ms = 0  # of a record
        # The keys that are remembered, the oldest first; of a removed viewer or candidate with the time in ms before
        # which records about it come too late.
        self._keys: dict[bytes, dict[bytes, int]] = {
            window: {} for window in (EVENT_IDS, EXPOSURE_IDS, VIEWERS, CANDIDATES)
        }
        self._waiting: list[_Waiting] = []
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
        if self._unrolled[1] > 2 * MAX_UNROLLED_BYTES:
            raise Busy("the journal is full, for the log cannot be written: see the replica log of Ingest")
        done: asyncio.Future[Taken] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(records, num_bytes, done))
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
        for group in self._groups(waiting):
            await self._commit_group(group)
            self._num_waiting -= sum(len(one.records) for one in group)
            self._waiting_bytes -= sum(one.num_bytes for one in group)

    def _groups(self, waiting: Iterable[_Waiting]) -> Iterator[list[_Waiting]]:
        """Yield calls for one commit each: as many as its bounds allow, at least one."""
        group: list[_Waiting] = []
        num = num_bytes = 0
        for one in waiting:
            num, num_bytes = num + len(one.records), num_bytes + one.num_bytes
            if group and (num > self._max_records or num_bytes > COMMIT_BYTES):
                yield group
                group, num, num_bytes = [], len(one.records), one.num_bytes
            group.append(one)
        if group:
            yield group

    async def _commit_group(self, group: Sequence[_Waiting]) -> None:
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
        received_ms = self._clock()
        admitted = _Group()
        taken = [self._admit(waiting.records, admitted, received_ms) for waiting in group]
        records = admitted.records
        last_ms = max((record.ts_ms or 0 for record in records), default=0)
        self._latest_ms = max(self._latest_ms, last_ms)
        self._end(admitted, last_ms if self._event_clock else received_ms)
        if records:
            seq = self._seq + len(records)
            try:
                viewers, candidates = self._apply(store, records, received_ms)
                journal = pack_entry(Entry(received_ms, records))
                store.commit(seq, viewers, candidates, journal=journal)
            except BaseException:
                self._close()  # the table holds what was not committed: read it again
                raise
            self._seq = seq
            self._journaled += (len(records), len(journal))
        self._remember(admitted.keys)
        self.counts.update(type(record).__name__.lower() for record in records)
        now_ms = time.time() * 1e3
        self._event_lags_ms += [now_ms - (e.ts_ms or 0) for e in records if isinstance(e, Event)]
        self.counts["duplicate"] += sum(answer.duplicates for answer in taken)
        self.counts["rejected"] += sum(len(answer.rejected) for answer in taken)
        return taken

    def _admit(self, records: Iterable[Record], group: _Group, received_ms: int) -> Taken:
        """Date records, and put into the group those that are new, in time and have room."""
        taken = Taken()
        for place, record in enumerate(records):
            ts_ms = self._date(record, received_ms)
            name, owner = remembered_key(record), owner_key(record)
            if isinstance(record, Event | Exposure) and self._recalled(name, group) is not None:
                taken.duplicates += 1
            # A removal of a time to come was dated by a wrong clock: it must not hold off what is true now.
            elif ts_ms < self._removed_ms(owner, group) <= received_ms:
                self.counts["late"] += 1
                # Attributes give way to later ones, and a removal to a later one.
                if isinstance(record, Event | Exposure):
                    taken.rejected[place] = (
                        "the viewer was forgotten after this record's ts_ms; it is dropped"
                    )
            elif isinstance(record, Exposure) and self._holds(MAX_UNROLLED, MAX_UNROLLED_BYTES):
                self.counts["exposure_dropped"] += 1
            elif isinstance(record, Candidate) and not self._has_room(record.id, group):
                taken.rejected[place] = (
                    f"the live table is full ({self._max_live} candidates); end some first: "
                    "each leaves it an hour after its end"
                )
            else:
                group.records.append(record)
                if name is not None:
                    group.keys[name] = ts_ms if name == owner else 0
        return taken

    def _recalled(self, name: bytes | None, group: _Group) -> int | None:
        """Return what is remembered under a key, None where nothing is."""
        return None if name is None else group.keys.get(name, self._keys[name[:1]].get(name))

    def _removed_ms(self, owner: bytes | None, group: _Group) -> int:
        """Return the time before which records of a viewer or candidate come too late; 0 where there is none."""
        removed_ms = self._recalled(owner, group) or 0
        # A candidate is removed so long after its end: what came between may still prolong it.
        return removed_ms - ENDED_MS if owner and owner[:1] == CANDIDATES else removed_ms

    def _has_room(self, candidate: str, group: _Group) -> bool:
        """Return whether the live table holds a candidate, or has room for it, which it then takes in this group."""
        if candidate not in self._candidates.index and candidate not in group.new:
            if len(self._candidates) + len(group.new) >= self._max_live:
                return False
            group.new.add(candidate)
        return True

    def _remember(self, keys: Mapping[bytes, int]) -> None:
        for name, ts_ms in keys.items():
            # Removed again, it is the newest.
            self._keys[name[:1]].pop(name, None)
            self._keys[name[:1]][name] = ts_ms
        for known in self._keys.values():
            for name in list(islice(known, max(len(known) - WINDOW, 0))):
                del known[name]

    def _date(self, record: Record, received_ms: int) -> int:
        """Return the time of a record, which gets one where it has none or where its own lies ahead."""
        if record.ts_ms is None:
            record.ts_ms = received_ms
        elif record.ts_ms > received_ms and not self._event_clock:
            if record.ts_ms > received_ms + AHEAD_MS:
                self.counts["time_ahead"] += 1
            record.ts_ms = received_ms
            if isinstance(record, Exposure):
                # Its features were computed for another time: an audit cannot compare them.
                record.numeric = record.category = None
        return record.ts_ms

    def _end(self, group: _Group, now_ms: int) -> None:
        """Remove candidates that ended long ago, except those that the group changes: it may prolong one."""
        past = np.flatnonzero(self._candidates.table["ends_ms"] < now_ms - ENDED_MS)[:MAX_ENDED]
        changed = {record.id for record in group.records if isinstance(record, Candidate)}
        for name in [str(self._candidates.ids[row]) for row in past]:
            if name not in changed:
                group.records.append(Ended(name, now_ms))
                group.keys[key(CANDIDATES, name)] = now_ms

    def _apply(
        self, store: Store, records: Sequence[Record], received_ms: int
    ) -> tuple[dict[str, bytes], dict[str, bytes]]:
        """Apply records in their order; the rows that changed, packed."""
        state = State(self._schema)
        state.candidates = self._candidates
        names = list(dict.fromkeys(name for name in map(viewer_of, records) if name is not None))
        rows = store.read(names, self._seq)[0]
        state.viewers.apply({name: row for name, row in zip(names, rows, strict=True) if row is not None})
        changes = Changes(state)
        for record in records:
            changes.apply(record, received_ms)
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
                self._remember(dict.fromkeys(self._segments.recent_keys(WINDOW, self._seq), 0))
                self._remember(self._segments.removals(self._clock() - REMOVED_MS))
                self.counts["segment_damaged"] += len(self._segments.damaged)
                self._seq = max(
                    changes.seq, known
                )  # the store's is beyond what another writer has logged since
                self._journaled, self._logged = np.zeros((2, 2), np.int64)
                for _, entry in entries(store):
                    for record in entry.records:
                        if (name := remembered_key(record)) is not None:
                            self._remember({name: (record.ts_ms or 0) if name == owner_key(record) else 0})
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
        # The counts of this opening of the store: another writer may have it opened anew meanwhile.
        logged = self._logged
        for _, part in groupby(_placed(waiting, cuts), itemgetter(0)):
            last, num, num_bytes = self._segments.write((entry for _, entry in part), step)
            store.trim(last)
            logged += (num, num_bytes)

    def _tend(self, store: Store, step: Step) -> None:
        self._retention.tend(store, self._now_ms, step)

    def _now_ms(self) -> int:
        """The service's clock."""
        return self._latest_ms if self._event_clock else self._clock()


def _placed(
    entries: Iterable[tuple[int, Entry]], cuts: Sequence[int]
) -> Iterator[tuple[object, tuple[int, Entry]]]:
    """Yield each entry with a key of its segment; no segment goes across a snapshot."""
    num_bytes = 0
    for place, (last, entry) in enumerate(entries):
        num_bytes += entry.num_bytes
        side = sum(cut < last for cut in cuts)
        yield (side, place // SEGMENT_ENTRIES, num_bytes // SEGMENT_BYTES), (last, entry)
