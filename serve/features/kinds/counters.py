"""Decayed sums of events: the kinds `count` and `rate`, and `recency`, the time since the last.

Their entity is a viewer, a candidate, a value of a candidate's field, or a pair of viewer and
candidate. Pairs are kept in maps of `serve.features.kinds.affinity`, all others in sums.
Shapes: B requests, R rows, n rows of a table, S sums of an entity, or those that an event changes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from serve.features.affinity_maps import Map
from serve.features.batch import Batch
from serve.features.interactions import Interactions
from serve.features.kind import PAIR, Event, HalfLife, Holder, Keep, Kind, Prior, Transform, Words
from serve.features.kinds.affinity import Maps, pairs
from serve.features.slots import ENTITIES, F64, I64, Entity, Slot
from serve.features.state_kind import STATE, Candidates, Cell, Fields, Rows, StateKind


@dataclass(frozen=True)
class Sum(Slot):
    """The number of an entity's events, with a half-life."""

    entity: Entity
    event: str
    half_life_ms: float = np.inf


class Sums(StateKind[Sum], of=(Sum,)):
    """All sums; those of an entity share two columns, so that one operation reads many."""

    def __init__(self, slots: Sequence[Sum], numbers: Mapping[str, int]) -> None:
        super().__init__(slots, numbers)
        self.by_entity: dict[Entity, tuple[Sum, ...]] = {
            entity: tuple(s for s in slots if s.entity == entity)
            for entity in dict.fromkeys((*ENTITIES, *(s.entity for s in slots)))
        }
        self._value_fields = [e.partition(".")[2] for e in self.by_entity if e not in ENTITIES]
        self.place = {s: i for sums in self.by_entity.values() for i, s in enumerate(sums)}
        # An infinite half-life gives the rate 0, so the factor exp2(0) = 1.
        self.rates = {e: np.array([1.0 / s.half_life_ms for s in sums]) for e, sums in self.by_entity.items()}
        # The places of the sums that an event changes.
        self._changed = {
            (entity, numbers[event]): np.array([i for i, s in enumerate(sums) if s.event == event], np.int64)
            for entity, sums in self.by_entity.items()
            for event in numbers
        }

    @property
    def entities(self) -> Iterable[Entity]:
        """The entities that have a sum, and viewers and candidates."""
        return self.by_entity

    def fields(self, slot: Sum, entity: Entity) -> Fields:
        """Return the sum, and the time to which it is decayed."""
        return [("sums", "<f8"), ("sums_ms", "<i8")] if slot.entity == entity else []

    def columns(self, entity: Entity) -> Fields:
        """Return two columns with a place for each of the entity's sums."""
        if entity not in self.by_entity:
            return []
        num = len(self.by_entity[entity])
        return [("sums", "<f8", (num,)), ("sums_ms", "<i8", (num,))]

    def cells(self, slot: Sum, entity: Entity) -> list[Cell]:
        """Return the place of a sum in both columns."""
        return [(name, self.place[slot]) for name, _ in self.fields(slot, entity)]

    def observe(self, viewers: Rows, candidates: Candidates, run: Interactions) -> Sequence[int]:
        """Apply the records of one event after another, all at once because sums commute."""
        for event in run.events:
            records = run.only(event)
            times_ms, times, num = np.repeat(records.ts_ms, records.lengths), records.lengths, None
            if records.weight is not None:
                times, num = times * records.weight, np.repeat(records.weight, records.lengths)
            self._add("viewer", event, viewers, records.viewer, records.ts_ms, times)
            self._add("candidate", event, candidates, records.candidates, times_ms, num)
            for name in self._value_fields:
                at = candidates.value_of[name][records.candidates]
                self._add(f"candidate.{name}", event, candidates.values[name], at, times_ms, num)
        return ()

    def _add(
        self, entity: Entity, event: int, table: Rows, rows: I64, ts_ms: I64, times: I64 | None = None
    ) -> None:
        """Add the event at `ts_ms` to rows `[n]`, which may repeat, `times` `[n]`, or once."""
        places = self._changed[entity, event]
        known = rows.nonzero()[0]
        if not len(places) or not len(known):
            return
        table.changed[rows] = True
        changed, of_row = _distinct(rows[known], len(table.table))
        # Copies `[S, U]` of the changed cells: NumPy adds to a plain array ten times as fast.
        cells, rates = (changed, places[:, None]), self.rates[entity][places, None]
        sums, sums_ms = table.table[STATE]["sums"], table.table[STATE]["sums_ms"]
        old_ms, new = sums_ms[cells], sums[cells].copy()
        new_ms, at_ms = old_ms.copy(), np.tile(ts_ms[known], len(places))
        # The flat places `[S * n]` of the cells in these copies.
        at = (of_row + np.arange(0, new.size, len(changed))[:, None]).ravel()
        np.maximum.at(new_ms.ravel(), at, at_ms)
        new *= np.exp2((old_ms - new_ms) * rates)
        # A late event counts at its own time, so it is added in decayed form.
        late_ms = (at_ms - new_ms.ravel()[at]).reshape(len(places), -1)
        arrived = np.exp2(late_ms * rates)
        np.add.at(new.ravel(), at, (arrived if times is None else arrived * times[known]).ravel())
        sums[cells], sums_ms[cells] = new, new_ms

    def read(self, batch: Batch, slot: Sum) -> F64:
        """Return a sum, decayed to now, `[R]`."""
        decayed = batch.once(Sums, self._decayed)
        return batch.per_row(slot.entity, decayed[slot.entity][self.place[slot]])

    def last_ms(self, batch: Batch, slot: Sum) -> I64:
        """Return the time of the last event of a sum, 0 without one, `[R]`."""
        rows = batch.rows(slot.entity)[STATE]
        return batch.per_row(slot.entity, rows["sums_ms"][:, self.place[slot]])

    def _decayed(self, batch: Batch) -> dict[Entity, F64]:
        """Return all sums, `[S, B]` of viewers and `[S, R]` of candidates and of their values."""
        decayed: dict[Entity, F64] = {}
        for entity, rates in self.rates.items():
            rows = batch.rows(entity)[STATE]
            # Transpose to [S, rows]: NumPy's inner loop then runs over many rows, not a few sums.
            sums, sums_ms = (np.ascontiguousarray(rows[name].T) for name in ("sums", "sums_ms"))
            # A sum from a clock that runs ahead must not grow.
            age_ms = np.maximum(batch.times_ms(entity) - sums_ms, 0)
            decayed[entity] = sums * np.exp2(age_ms * -rates[:, None])
        return decayed


def _distinct(rows: I64, num_rows: int) -> tuple[I64, I64]:
    """Return the distinct rows in order, and the place of each row among them."""
    if len(rows) == 1:
        return rows, np.zeros(1, np.int64)
    # Sorting takes longer than a pass over all rows of the table, unless it has many more.
    if 64 * len(rows) < num_rows:
        order = rows.argsort()
        is_first = np.diff(rows[order], prepend=-1) != 0
        of_row = np.empty(len(rows), np.int64)
        of_row[order] = np.cumsum(is_first) - 1
        return rows[order[is_first]], of_row
    is_there = np.zeros(num_rows, bool)
    is_there[rows] = True
    return is_there.nonzero()[0], np.cumsum(is_there)[rows] - 1


@dataclass(frozen=True)
class Count(Kind, kind="count"):
    """Number of the entity's events, of which each counts less with time if there is a half-life.

    Attributes:
        entity: Whose events: `viewer`, `candidate`, `candidate.FIELD` or the pair.
        event: The event that is counted.
        half_life: Time after which an event counts half. Without it, every event counts fully.
        keep: Candidates that a viewer's map remembers, of the pair only; 64 by default.
        transform: `log1p` gives the model log(1 + value), for values with a long tail.
    """

    template = "{event} events of the {entity}"
    entity: Holder
    event: Event
    half_life_ms: HalfLife = np.inf
    keep: Keep = None
    transform: Transform = "none"

    @cached_property
    def slots(self) -> tuple[Map | Sum]:
        """One decayed sum, or the viewer's map of them by candidate."""
        if self.entity == PAIR:
            return (pairs(self.event, self.event, self.half_life_ms, self.keep),)
        return (Sum(str(self.entity), self.event, self.half_life_ms),)

    def value(self, batch: Batch) -> F64:
        """Return `[R]`, ≥ 0; 0 of a pair that is forgotten."""
        (slot,) = self.slots
        if isinstance(slot, Map):
            return batch.kept(Maps).read_pairs(batch, slot).event
        return batch.kept(Sums).read(batch, slot)


@dataclass(frozen=True)
class Rate(Kind, kind="rate"):
    """How often an event follows another: (events + rate · weight) / (over + weight).

    Rate and weight are the prior's. Both numbers decay with the half-life. This is the posterior
    mean under a Beta prior (Gelman et al., Bayesian Data Analysis, 2.4).

    Attributes:
        entity: Whose events: `viewer`, `candidate`, `candidate.FIELD` or the pair.
        event: The event that is counted.
        over: The event that it is divided by, mostly `impression`.
        prior: The rate to assume where little or nothing has happened yet.
        half_life: Time after which an event counts half. Without it, every event counts fully.
        keep: Candidates that a viewer's map remembers, of the pair only; 64 by default.
        transform: `log1p` gives the model log(1 + value), for values with a long tail.
    """

    template = "{event} per {over} of the {entity}"
    entity: Holder
    event: Event
    over: Event
    prior: Prior
    half_life_ms: HalfLife = np.inf
    keep: Keep = None
    transform: Transform = "none"

    @cached_property
    def slots(self) -> tuple[Map] | tuple[Sum, Sum]:
        """The decayed sums of `event` and `over`, or the viewer's map of both by candidate."""
        if self.entity == PAIR:
            return (pairs(self.event, self.over, self.half_life_ms, self.keep),)
        event = Sum(str(self.entity), self.event, self.half_life_ms)
        return event, replace(event, event=self.over)

    def value(self, batch: Batch) -> F64:
        """Return `[R]`; the prior's rate where neither event occurred, or the pair is forgotten."""
        p = self.prior
        if isinstance(self.slots[0], Map):
            event, over, _ = batch.kept(Maps).read_pairs(batch, self.slots[0])
        else:
            event, over = (batch.kept(Sums).read(batch, slot) for slot in self.slots if isinstance(slot, Sum))
        return (event + p.rate * p.weight) / (over + p.weight)


@dataclass(frozen=True)
class Recency(Kind, kind="recency"):
    """Seconds since the entity's last event.

    Attributes:
        entity: Whose events: `viewer`, `candidate`, `candidate.FIELD` or the pair.
        event: The event.
        keep: Candidates that a viewer's map remembers, of the pair only; 64 by default.
        transform: `log1p` gives the model log(1 + value), for values with a long tail.
    """

    template = "time since the last {event} of the {entity}"
    unit: Words = field(default="s", repr=False, compare=False, kw_only=True)
    entity: Holder
    event: Event
    keep: Keep = None
    transform: Transform = "none"

    @cached_property
    def slots(self) -> tuple[Map | Sum]:
        """A sum, or a map, that holds the time; a `count` without half-life shares it."""
        return Count(self.entity, self.event, keep=self.keep).slots

    def value(self, batch: Batch) -> F64:
        """Return `[R]`, ≥ 0; NaN without an event, or of a pair that is forgotten."""
        (slot,) = self.slots
        last_ms: I64 | F64
        if isinstance(slot, Map):
            last_ms = batch.kept(Maps).read_pairs(batch, slot).ms
        else:
            last_ms = batch.kept(Sums).last_ms(batch, slot)
        return np.where(last_ms == 0, np.nan, np.maximum(batch.now_ms - last_ms, 0) / 1000.0)
