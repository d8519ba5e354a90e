"""Viewers at candidates, from one event until another: the kinds `gauge` and `friends`.

A viewer's row holds the newest record at each of up to 8 candidates. Time is divided into *steps*
of a seventh of the longest stay. A candidate's row holds eight numbers: how many viewers still
count in the newest step in which one came, how many one step later, and so on until 0. A read looks
up one of them. Example: if two viewers came in the newest step and one in the step before, the
numbers are 3, 3, 3, 3, 3, 3, 2, 0.

A count that was 0 begins anew with its next viewer, for example that of a removed candidate that
was added again. A viewer's row keeps the time at which the count began, so that a viewer who leaves
takes nothing from a later count.

For `friends`, a candidate's row also holds which viewers are counted, at most 64 (`NEWEST`), in the
order in which their stays end, the last first. So the number of a read says how many of the first
still count. Example: after 3 of 5 stays have ended, the first 2 viewers. A viewer's place in the
row is never before the one in the true order, so nobody counts longer than the number says. It is
behind where viewers are not known: those beyond 64, and those of an old state without `Inside`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from serve.contract.hashing import hash64
from serve.contract.typed_reader import checked_by
from serve.contract.validation import UNITS_MS, duration_ms
from serve.features.batch import Batch
from serve.features.interactions import Interactions
from serve.features.kind import DURATION_SCHEMA, Event, Kind, Transform, field_of
from serve.features.slots import CANDIDATE_ID, ENTITIES, I64, U64, Bools, Entity, FieldRef, Slot
from serve.features.state_kind import STATE, Candidates, Fields, Rows, StateKind

# Candidates at which a viewer is counted at once.
PLACES = 8
# Steps of `Presence.max_stay_ms` in which a stay ends. `STEPS` + 1 numbers of four bytes leave the
# fields of a row aligned to eight bytes.
STEPS = 7
# Viewers that a candidate's row names; a row of 64 takes 512 bytes.
NEWEST = 64
# A time this many steps ahead of a later record's comes from a wrong clock.
FAR = STEPS * STEPS
# The entity of state that few records change, and that would slow down the read of all others.
BESIDE = str(CANDIDATE_ID)
STAY = Field(alias="max_stay", json_schema_extra={"default": "4h"})
MaxStay = Annotated[float, checked_by(duration_ms), STAY, DURATION_SCHEMA]


@dataclass(frozen=True)
class Presence(Slot):
    """The known viewers at each candidate, from `up` until `down`.

    Each viewer is kept at 8 candidates (`PLACES`); the oldest stay is dropped. Example: a viewer
    who joins a ninth room no longer counts in the room joined first. A stay that has ended gives
    its place first.

    If two records are about the same viewer and candidate, the one with the later time decides. If
    the times are equal, it is the one that arrives later. A stay ends `max_stay_ms` after its last
    `up`, or up to a step earlier. A removed candidate that is added again has no viewers until the
    next `up`.

    A wrong clock may send a time that is far ahead, by more than seven of the longest stays. If one
    viewer at a candidate has such a time, the candidate's number leaves out those who came before,
    until the next `up` with a right time puts the wrong one aside. If two or more have such times,
    the number leaves out everybody who comes before the clock has reached these times.
    """

    forgets: ClassVar[bool] = True
    up: str
    down: str
    max_stay_ms: float

    @property
    def step_ms(self) -> int:
        """Return the resolution of the time at which a stay ends."""
        return max(1, int(self.max_stay_ms) // STEPS)


@dataclass(frozen=True)
class Inside(Slot):
    """The viewers whom a presence counts at each candidate, the newest 64 (`NEWEST`).

    Example: of 70 viewers the 6 who came first are not known, and stay unknown when others leave.
    """

    forgets: ClassVar[bool] = True
    presence: Presence


class Stays(NamedTuple):
    """Newest record of each viewer at `PLACES` candidates.

    A stay has the hash of the candidate's id, the time of the record, whether the viewer is there
    after it, and the time at which the count began that the viewer is part of.
    """

    candidate: U64
    ms: I64
    is_there: Bools
    count_began_ms: I64


class Counts(NamedTuple):
    """Numbers of viewers of each candidate.

    The numbers are those `present` in the newest step in which a viewer came, one step later, and
    so on up to `STEPS` steps, when it is 0.
    """

    newest_step: I64
    present: NDArray[np.int32]
    count_began_ms: I64


class Presences(StateKind[Presence | Inside], of=(Presence, Inside)):
    """All presences."""

    @cached_property
    def presences(self) -> dict[Presence, Inside | None]:
        """The slots that count, each with the one beside it, if a feature needs that."""
        beside = {slot.presence: slot for slot in self.slots if isinstance(slot, Inside)}
        return {slot: beside.get(slot) for slot in self.slots if isinstance(slot, Presence)}

    @property
    def entities(self) -> Iterable[Entity]:
        """Viewers and candidates, and what is beside a candidate if a feature needs that."""
        return (*ENTITIES, BESIDE) if any(self.presences.values()) else ENTITIES

    def fields(self, slot: Presence | Inside, entity: Entity) -> Fields:
        """Return the fields of `Stays` for a viewer, of `Counts` or of `Inside` for a candidate."""
        if isinstance(slot, Inside):
            return [("viewers", "<u8", (NEWEST,))] if entity == BESIDE else []
        if entity == "viewer":
            codes = zip(Stays._fields, ("<u8", "<i8", "?", "<i8"), strict=True)
            return [(name, code, (PLACES,)) for name, code in codes]
        counts = [("newest_step", "<i8"), ("present", "<i4", (STEPS + 1,)), ("count_began_ms", "<i8")]
        return counts if entity == "candidate" else []

    def observe(self, viewers: Rows, candidates: Candidates, run: Interactions) -> Iterator[int]:
        """Apply the records of one viewer and candidate after the other."""
        for slot, inside in self.presences.items():
            up, down = self.numbers[slot.up], self.numbers[slot.down]
            if run.events.isdisjoint((up, down)):
                continue
            table = self._table(viewers, candidates, slot, inside)
            of_record = (run.event, run.viewer, run.ts_ms)
            event, viewer, ts_ms = (np.repeat(values, run.lengths) for values in of_record)
            moves = ((event == up) | (event == down)) & (viewer > 0) & (run.candidates > 0)
            columns = (viewer, run.candidates, ts_ms, event == up)
            for move in zip(*(column[moves].tolist() for column in columns), strict=True):
                if left := table.move(*move):
                    yield left

    def forget(self, viewers: Rows, candidates: Candidates, viewer: int) -> Iterator[int]:
        """Take a viewer out of all candidates, and yield their rows."""
        for slot, inside in self.presences.items():
            yield from self._table(viewers, candidates, slot, inside).leave_all(viewer)

    def _table(self, viewers: Rows, candidates: Candidates, slot: Presence, inside: Inside | None) -> _Table:
        stays, counts = self.of(viewers.table, slot), self.of(candidates.table, slot)
        return _Table(
            slot.step_ms,
            Stays(*(stays[name] for name in Stays._fields)),
            Counts(*(counts[name] for name in Counts._fields)),
            self.of(candidates.values[CANDIDATE_ID.name].table, inside)["viewers"] if inside else None,
            viewers,
            candidates,
        )

    def read(self, batch: Batch, slot: Presence, entity: Entity) -> NDArray[Any]:
        """Return the number of viewers at each candidate, or of candidates of its viewer, `[R]`."""
        return batch.once((slot, entity), lambda _: self._read(batch, slot, entity))

    def _read(self, batch: Batch, slot: Presence, entity: Entity) -> NDArray[Any]:
        rows = self.of(batch.rows(entity), slot)
        step = batch.times_ms(entity) // slot.step_ms
        if entity == "viewer":
            age = np.abs(step[:, None] - rows["ms"] // slot.step_ms)
            return batch.per_row(entity, (rows["is_there"] & (age < STEPS)).sum(axis=1))
        # The newest step is ahead of a clock that is behind.
        age = np.maximum(step - rows["newest_step"], 0)
        present: NDArray[np.int32] = rows["present"][np.arange(len(rows)), np.minimum(age, STEPS)]
        return present

    def num_inside(self, batch: Batch, slot: Inside, sets: U64) -> I64:
        """Return how many at each candidate are in the set `[B, M]` of the row's viewer, `[R]`."""
        number = np.minimum(self.read(batch, slot.presence, "candidate"), NEWEST)
        table, at = batch.values[CANDIDATE_ID.name]
        # Most candidates have few viewers: read these alone, as words of eight bytes.
        offset = table.dtype[STATE].fields[self._columns[slot]][1]  # type: ignore[index]
        start = (at * table.itemsize + offset) // 8 - number.cumsum() + number
        rows = np.arange(len(number)).repeat(number)
        viewers = table.view(np.uint64).take(start.take(rows) + np.arange(len(rows)))
        inside = batch.among(viewers, rows, sets)
        return np.bincount(rows[inside], minlength=len(number))


@dataclass
class _Table:
    """Stays of all viewers, and counts of all candidates with those `inside`, of one slot."""

    step_ms: int
    stays: Stays
    counts: Counts
    inside: U64 | None
    viewers: Rows
    candidates: Candidates

    def move(self, viewer: int, candidate: int, ts_ms: int, comes: bool) -> int:
        """Apply one record; return the row of another candidate that the viewer left, or 0."""
        key = hash64(self.candidates.ids[candidate] or "")
        keys, ms, is_there, began_ms = (field[viewer].tolist() for field in self.stays)
        if key in keys:
            at, row = keys.index(key), candidate
            is_late = 0 < ms[at] - ts_ms < FAR * self.step_ms
        else:
            at = min(range(PLACES), key=lambda place: (is_there[place], ms[place]))
            row = self.candidates.find_hash(keys[at]) if is_there[at] else 0
            is_late = is_there[at] and not (comes and ts_ms >= ms[at])
        if is_late:
            return 0
        if is_there[at]:
            self._leave(viewer, row, ms[at], began_ms[at])
        count_began_ms = self._come(viewer, candidate, ts_ms) if comes else 0
        for field, value in zip(self.stays, (key, ts_ms, comes, count_began_ms), strict=True):
            field[viewer, at] = value
        return 0 if row == candidate else row

    def leave_all(self, viewer: int) -> Iterator[int]:
        """Take a viewer out of all candidates, and yield their rows."""
        stays = (field[viewer].tolist() for field in self.stays)
        for key, ms, is_there, began_ms in zip(*stays, strict=True):
            if is_there:
                row = self.candidates.find_hash(key)
                self._leave(viewer, row, ms, began_ms)
                yield row

    def _come(self, viewer: int, candidate: int, ts_ms: int) -> int:
        """Count a viewer from this time on; return the time at which the count began."""
        counts, step = self.counts, ts_ms // self.step_ms
        present, ahead = counts.present[candidate], step - int(counts.newest_step[candidate])
        # A single viewer who is far ahead of the next came at a wrong time.
        if ahead > 0 or (ahead <= -FAR and present[0] < 2):
            present[:] = [*present[abs(ahead) :], *[0] * min(abs(ahead), STEPS + 1)]
            counts.newest_step[candidate], ahead = step, 0
        if not present[0]:
            counts.count_began_ms[candidate] = ts_ms
        end = max(0, STEPS + ahead)
        place = int(present[end])
        if self.inside is not None and place < NEWEST:
            # Behind those whose stays end later.
            inside = self._changing(self.inside, candidate)
            inside[place + 1 :] = inside[place:-1]
            inside[place] = self._hash(viewer)
        present[:end] += 1
        return int(counts.count_began_ms[candidate])

    def _changing(self, inside: U64, candidate: int) -> U64:
        """Return the row of those inside, which the caller is about to change."""
        row = self.candidates.value_of[CANDIDATE_ID.name][candidate]
        self.candidates.values[CANDIDATE_ID.name].changed[row] = True
        found: U64 = inside[row]
        return found

    def _hash(self, viewer: int) -> int:
        return hash64(self.viewers.ids[viewer] or "")

    def _leave(self, viewer: int, candidate: int, ms: int, count_began_ms: int) -> None:
        """Stop counting a viewer who came at this time, if the count is the same one."""
        counts, present = self.counts, self.counts.present[candidate]
        end = STEPS + ms // self.step_ms - int(counts.newest_step[candidate])
        # Two counts may have begun at the same time: stay above 0.
        is_counted = 0 < end <= STEPS and present[end - 1] > present[end]
        if is_counted and count_began_ms == counts.count_began_ms[candidate]:
            present[:end] -= 1
        if self.inside is not None:
            inside = self._changing(self.inside, candidate)
            others = inside[inside != self._hash(viewer)]
            inside[: len(others)] = others
            inside[len(others) :] = 0


@dataclass(frozen=True)
class Gauge(Kind, kind="gauge"):
    """Number of viewers who are at a candidate now, or of candidates at which a viewer is.

    A viewer is at a candidate from `up` until `down`. Example: join and leave give the audience of
    a room. Each viewer counts once at a candidate, and at the last 8 candidates only; one without
    an id does not count. `down` events get lost, so a stay also ends `max_stay` after the last
    `up`, or up to a seventh of that earlier.

    Attributes:
        entity: `candidate` for the viewers who are there, `viewer` for where the viewer is.
        up: The event with which a viewer comes.
        down: The event with which the viewer leaves.
        max_stay: Time after `up` from which the viewer no longer counts, even without `down`.
        transform: `log1p` gives the model log(1 + value), for values with a long tail.
    """

    template = "between {up} and {down} now"
    entity: Literal["viewer", "candidate"]
    up: Event
    down: Event
    max_stay_ms: MaxStay = 4.0 * UNITS_MS["h"]
    transform: Transform = "none"

    @cached_property
    def slots(self) -> tuple[Presence]:
        """One presence, which gauges of viewers and of candidates share."""
        return (Presence(self.up, self.down, self.max_stay_ms),)

    def value(self, batch: Batch) -> NDArray[Any]:
        """Return `[R]`, ≥ 0."""
        return batch.kept(Presences).read(batch, *self.slots, self.entity)


@dataclass(frozen=True)
class Friends(Kind, kind="friends"):
    """Number of those who are at a candidate now and whose ids are in the viewer's set.

    They are counted as by `Gauge`. A candidate keeps the 64 who came last, so the number is exact
    while at most 64 are there.

    Attributes:
        viewer: A set of viewers that holds ids of other viewers.
        up: The event with which a viewer comes.
        down: The event with which the viewer leaves.
        max_stay: Time after `up` from which the viewer no longer counts, even without `down`.
        transform: `log1p` gives the model log(1 + value), for values with a long tail.
    """

    template = "{viewer} between {up} and {down} now"
    viewer: Annotated[FieldRef, field_of("set")]
    up: Event
    down: Event
    max_stay_ms: MaxStay = 4.0 * UNITS_MS["h"]
    transform: Transform = "none"

    @cached_property
    def slots(self) -> tuple[Presence, Inside]:
        """The presence of a gauge with the same options, and the viewers that it counts."""
        presence = Presence(self.up, self.down, self.max_stay_ms)
        return (presence, Inside(presence))

    def value(self, batch: Batch) -> NDArray[Any]:
        """Return `[R]`, ≥ 0; 0 for an empty set."""
        return batch.kept(Presences).num_inside(batch, self.slots[1], batch.viewer[self.viewer.name])
