"""Calls and their admission: drop duplicates, late records, and records without room."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice

import numpy as np

from serve.contract.records import Candidate, Event
from serve.contract.validation import UNITS_MS
from serve.features.rows import CandidateRows, Schema
from serve.log.events import (
    CANDIDATES,
    EVENT_IDS,
    EXPOSURE_IDS,
    VIEWERS,
    Ended,
    Exposure,
    IngestResult,
    Record,
    key,
    owner_key,
    remembered_key,
)

# New candidates are rejected once the live table has this many candidates, or bytes of rows.
MAX_LIVE = 1_000_000
MAX_LIVE_BYTES = 1 << 30
# How many ids are remembered of each: events, exposures, forgotten viewers and removed candidates.
# They identify repeated and late records.
WINDOW = 1_000_000
# After a restart, only removals of the last day are remembered.
REMOVED_MS = UNITS_MS["d"]
# A candidate is kept this long after its end, for late records.
ENDED_MS = 3_600_000
# A viewer may send MAX_REPEATS events of one kind about one candidate whose times are in the same
# fixed window. Late events arrive together, so ten times as many may arrive in one window. This
# second limit bounds what a client with wrong times can move.
MAX_REPEATS, REPEATS_MS = 20, 600_000
MAX_ARRIVED = 10 * MAX_REPEATS
# How many counters there are for these events. Two kinds of event share a counter, and are limited
# together, with a probability of 2e-7.
NUM_COUNTERS = 1 << 22
# A record whose time is further ahead than this is counted, because its sender's clock is wrong.
AHEAD_MS = 1_000
# Limits the candidates that one commit removes from the live table.
MAX_ENDED = 5_000
# The journal grows while the log cannot be written. Drop exposures beyond this many records or
# bytes, and refuse all records beyond twice as many bytes.
MAX_UNFLUSHED = 1_000_000
MAX_UNFLUSHED_BYTES = 1 << 30
# Limits on a commit: on its packed bytes, and on the bytes of the viewers' rows that it changes. A
# commit takes at least one call.
COMMIT_BYTES = 4 << 20
COMMIT_ROW_BYTES = 64 << 20


# The value of a remembered event or exposure of which only the id is known.
UNKNOWN = 0


@dataclass
class PendingCall:
    """Records of one call, and the future of their result once they are durable."""

    records: Sequence[Record]
    num_bytes: int
    done: asyncio.Future[IngestResult]
    since: float = field(default_factory=time.monotonic)


def groups(pending: Iterable[PendingCall], max_records: int) -> Iterator[list[PendingCall]]:
    """Yield the calls of one commit after the other: as many as the limits allow, at least one."""
    group: list[PendingCall] = []
    num = num_bytes = 0
    for call in pending:
        num, num_bytes = num + len(call.records), num_bytes + call.num_bytes
        if group and (num > max_records or num_bytes > COMMIT_BYTES):
            yield group
            group, num, num_bytes = [], len(call.records), call.num_bytes
        group.append(call)
    if group:
        yield group


@dataclass
class Group:
    """Records that are admitted to one commit, their keys as in `Intake`, and new candidates."""

    drops_exposures: bool
    records: list[Record] = field(default_factory=list)
    keys: dict[bytes, int] = field(default_factory=dict)
    new: set[str] = field(default_factory=set)
    counts: Counter[str] = field(default_factory=Counter)


class Intake:
    """Admit records by the live table and the keys of earlier ones; the caller commits them."""

    def __init__(self, schema: Schema, *, event_clock: bool, max_live: int) -> None:
        self.candidates = CandidateRows(schema)
        self._event_clock = event_clock
        row_bytes = sum(row.itemsize for row in (schema.candidate, *schema.values.values()))
        self._max_live = min(max_live, MAX_LIVE_BYTES // row_bytes)
        # Remembered keys, oldest first, with values of `_values`.
        self._keys: dict[bytes, dict[bytes, int]] = {
            window: {} for window in (EVENT_IDS, EXPOSURE_IDS, VIEWERS, CANDIDATES)
        }
        # The window in which the counted events arrived. The counters are reset when it changes.
        self.window, self._counters = -1, bytearray()

    def admit(self, records: Iterable[Record], group: Group, received_ms: int) -> IngestResult:
        """Set the times of records, and add the new, timely ones that have room to the group."""
        taken = IngestResult()
        for place, record in enumerate(records):
            ts_ms = self._date(record, group, received_ms)
            name, owner = remembered_key(record), owner_key(record)
            known = self._recalled(name, group)
            if isinstance(record, Event | Exposure) and known is not None:
                taken.duplicates += 1
                group.counts["repeated_other"] += known not in (UNKNOWN, *_values(record))
            # A removal in the future comes from a wrong clock, and must not block current records.
            elif ts_ms < self._removed_ms(owner, group) <= received_ms:
                group.counts["late"] += 1
                # Late attributes and removals change nothing, so there is no need to reject them.
                if isinstance(record, Event | Exposure):
                    taken.rejected[place] = (
                        "the viewer was forgotten after this record's ts_ms; the record is dropped"
                    )
            elif isinstance(record, Exposure) and group.drops_exposures:
                group.counts["exposure_dropped"] += 1
            elif isinstance(record, Candidate) and not self._has_room(record.id, group):
                taken.rejected[place] = (
                    f"the live table is full ({self._max_live} candidates); end some first: "
                    "a candidate leaves it an hour after its end"
                )
            elif isinstance(record, Event) and self._is_repeated(record, received_ms):
                taken.rejected[place] = (
                    f"the viewer has {MAX_REPEATS} {record.kind!r} events of this candidate in ten minutes, "
                    f"or {MAX_ARRIVED} that came in ten minutes: further ones do not count; "
                    "send an action once"
                )
            else:
                group.records.append(record)
                if name is not None:
                    group.keys[name] = _values(record)[0]
        return taken

    def _recalled(self, name: bytes | None, group: Group) -> int | None:
        """Return the value remembered under a key, or None."""
        return None if name is None else group.keys.get(name, self._keys[name[:1]].get(name))

    def _removed_ms(self, owner: bytes | None, group: Group) -> int:
        """Return the time before which records of a viewer or candidate are late, or 0."""
        removed_ms = self._recalled(owner, group) or 0
        # A candidate is removed ENDED_MS after its end. A record from the time between may prolong
        # it.
        return removed_ms - ENDED_MS if owner and owner[:1] == CANDIDATES else removed_ms

    def _has_room(self, candidate: str, group: Group) -> bool:
        """Return True if a candidate is in the live table or has room there; reserve the room."""
        if candidate not in self.candidates.index and candidate not in group.new:
            if len(self.candidates) + len(group.new) >= self._max_live:
                return False
            group.new.add(candidate)
        return True

    def _is_repeated(self, event: Event, received_ms: int) -> bool:
        """Return True if the event is one too many; otherwise count it.

        There is no such limit with the event clock, which is for replays.
        """
        if event.viewer is None or self._event_clock:
            return False
        if received_ms // REPEATS_MS != self.window:
            self.window, self._counters = received_ms // REPEATS_MS, bytearray(NUM_COUNTERS)
        # The key of `hash` is secret, so a client cannot choose events that share a counter.
        kind = (event.viewer, event.candidate, event.kind)
        at = hash((*kind, (event.ts_ms or 0) // REPEATS_MS)) % NUM_COUNTERS
        arrived = hash(kind) % NUM_COUNTERS
        if self._counters[at] >= MAX_REPEATS or self._counters[arrived] >= MAX_ARRIVED:
            return True
        self._counters[at] += 1
        self._counters[arrived] += 1
        return False

    def remember(self, keys: Mapping[bytes, int]) -> None:
        """Remember keys with their values; of each kind, keep only the newest `WINDOW`."""
        for name, ts_ms in keys.items():
            # A key that is remembered already moves to the newest end.
            self._keys[name[:1]].pop(name, None)
            self._keys[name[:1]][name] = ts_ms
        for known in self._keys.values():
            for name in list(islice(known, max(len(known) - WINDOW, 0))):
                del known[name]

    def _date(self, record: Record, group: Group, received_ms: int) -> int:
        """Return the time of a record; a missing or future time is replaced by the arrival time."""
        if record.ts_ms is None:
            record.ts_ms = received_ms
        elif record.ts_ms > received_ms and not self._event_clock:
            if record.ts_ms > received_ms + AHEAD_MS:
                group.counts["time_ahead"] += 1
            record.ts_ms = received_ms
            if isinstance(record, Exposure):
                # The features were computed for the other time, so an audit could not compare them.
                record.numeric = record.category = None
        return record.ts_ms

    def end(self, group: Group, now_ms: int) -> None:
        """Remove candidates that ended long ago, except those that the group may prolong."""
        past = np.flatnonzero(self.candidates.table["ends_ms"] < now_ms - ENDED_MS)[:MAX_ENDED]
        changed = {record.id for record in group.records if isinstance(record, Candidate)}
        for name in [str(self.candidates.ids[row]) for row in past]:
            if name not in changed:
                group.records.append(Ended(name, now_ms))
                group.keys[key(CANDIDATES, name)] = now_ms


def _values(record: Record) -> tuple[int, ...]:
    """Return the value to remember under a record's key, and then others that its repeats may have.

    For a removed viewer or candidate, the value is the time in ms before which its records are
    late. For an event or exposure, it is a hash of what its repeats have in common with it. The
    hash is from 1 to 255, because Python keeps such small integers once. Attempts at one ranking
    come less than ten minutes apart.
    """
    if isinstance(record, Event):
        return (hash((record.viewer, record.candidate, record.kind)) % 255 + 1,)
    if isinstance(record, Exposure):
        window = record.ts_ms // REPEATS_MS
        return tuple(hash((record.viewer, at)) % 255 + 1 for at in (window, window - 1, window + 1))
    return (record.ts_ms or 0,)
