"""Calls and their admission: duplicates, late records and records without room are dropped."""

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

# Reject new candidates beyond this many candidates, or bytes of rows, in the live table.
MAX_LIVE = 1_000_000
MAX_LIVE_BYTES = 1 << 30
# Ids remembered of events, exposures, forgotten viewers and removed candidates each. They identify
# repeated and late records.
WINDOW = 1_000_000
# After a restart, remember removals of the last day.
REMOVED_MS = UNITS_MS["d"]
# Keep a candidate this long after its end, for late records.
ENDED_MS = 3_600_000
# Of one viewer, candidate and kind, take this many events with times in the same fixed window. Late
# events come together, so of all that arrive in such a window, take ten times as many: this bounds
# what a client moves whose times are wrong.
MAX_REPEATS, REPEATS_MS = 20, 600_000
MAX_ARRIVED = 10 * MAX_REPEATS
# Counters of these events. Two share one with a probability of 2e-7, and are then limited together.
NUM_COUNTERS = 1 << 22
# Count a record whose time is further ahead: its sender's clock is wrong.
AHEAD_MS = 1_000
# Candidates removed from the live table in one commit.
MAX_ENDED = 5_000
# The journal grows while the log cannot be written. Drop exposures beyond this many records or
# bytes, and refuse all records beyond twice as many bytes.
MAX_UNFLUSHED = 1_000_000
MAX_UNFLUSHED_BYTES = 1 << 30
# Limit a commit to this many packed bytes, but at least one call. The bytes of the viewers' rows
# that it changes have their own limit.
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
    """Yield the calls of one commit at a time: as many as the limits allow, at least one."""
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
    """Records admitted to one commit, with their keys as in `Intake`, and the new candidates."""

    drops_exposures: bool
    records: list[Record] = field(default_factory=list)
    keys: dict[bytes, int] = field(default_factory=dict)
    new: set[str] = field(default_factory=set)
    counts: Counter[str] = field(default_factory=Counter)


class Intake:
    """Admission by live table and keys of earlier records; the caller commits the result."""

    def __init__(self, schema: Schema, *, event_clock: bool, max_live: int) -> None:
        self.candidates = CandidateRows(schema)
        self._event_clock = event_clock
        row_bytes = sum(row.itemsize for row in (schema.candidate, *schema.values.values()))
        self._max_live = min(max_live, MAX_LIVE_BYTES // row_bytes)
        # Remembered keys, oldest first, with values of `_values`.
        self._keys: dict[bytes, dict[bytes, int]] = {
            window: {} for window in (EVENT_IDS, EXPOSURE_IDS, VIEWERS, CANDIDATES)
        }
        # The window of arrival of the events that the counters count; another value resets them.
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
            # A future removal comes from a wrong clock: it must not block current records.
            elif ts_ms < self._removed_ms(owner, group) <= received_ms:
                group.counts["late"] += 1
                # Late attributes and removals are superseded anyway, so they are not rejected.
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
        """Return the time before which records of a viewer or candidate are late; 0 for none."""
        removed_ms = self._recalled(owner, group) or 0
        # A candidate is removed ENDED_MS after its end: a record from between may still prolong it.
        return removed_ms - ENDED_MS if owner and owner[:1] == CANDIDATES else removed_ms

    def _has_room(self, candidate: str, group: Group) -> bool:
        """Return whether a candidate is in the live table or has room there; reserve the room."""
        if candidate not in self.candidates.index and candidate not in group.new:
            if len(self.candidates) + len(group.new) >= self._max_live:
                return False
            group.new.add(candidate)
        return True

    def _is_repeated(self, event: Event, received_ms: int) -> bool:
        """Return whether the event is one too many; count it otherwise.

        The event clock, which is for replays, has no such limit.
        """
        if event.viewer is None or self._event_clock:
            return False
        if received_ms // REPEATS_MS != self.window:
            self.window, self._counters = received_ms // REPEATS_MS, bytearray(NUM_COUNTERS)
        # A client cannot choose events that share a counter: the key of `hash` is secret.
        kind = (event.viewer, event.candidate, event.kind)
        at = hash((*kind, (event.ts_ms or 0) // REPEATS_MS)) % NUM_COUNTERS
        arrived = hash(kind) % NUM_COUNTERS
        if self._counters[at] >= MAX_REPEATS or self._counters[arrived] >= MAX_ARRIVED:
            return True
        self._counters[at] += 1
        self._counters[arrived] += 1
        return False

    def remember(self, keys: Mapping[bytes, int]) -> None:
        """Remember keys with their times, and forget the oldest beyond `WINDOW` of each kind."""
        for name, ts_ms in keys.items():
            # Move a key that is remembered already to the newest end.
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
                # The features were computed for another time, so an audit could not compare them.
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
    """Return what to remember under the key of a record, and what else its repeats may have.

    Of a removed viewer or candidate it is the time in ms before which its records are late. Of an
    event or exposure it is a hash from 1 to 255, since so small an integer takes no memory: of what
    its repeats have in common with it. Attempts at one ranking come less than ten minutes apart.
    """
    if isinstance(record, Event):
        return (hash((record.viewer, record.candidate, record.kind)) % 255 + 1,)
    if isinstance(record, Exposure):
        window = record.ts_ms // REPEATS_MS
        return tuple(hash((record.viewer, at)) % 255 + 1 for at in (window, window - 1, window + 1))
    return (record.ts_ms or 0,)
