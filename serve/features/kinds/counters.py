"""Decayed sums of the events of viewers and candidates: the kinds `count` and `rate`.

Shapes: n rows, which may repeat; U distinct rows; S sums of an entity, or those that an event
changes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serve.features.batch import Batch
from serve.features.interactions import Interactions
from serve.features.kind import Event, HalfLife, Kind, Prior, Transform
from serve.features.slots import ENTITIES, F64, I64, Entity, PackedRows, Slot
from serve.features.state_kind import STATE, Cell, Fields, StateKind, Tables


@dataclass(frozen=True)
class Sum(Slot):
    """The number of a viewer's or candidate's events, with a half-life."""

    entity: Entity
    event: str
    half_life_ms: float = np.inf


class Sums(StateKind[Sum], of=Sum):
    """All sums. Those of an entity share two columns, so that one operation updates or reads many."""

    def __init__(self, slots: Sequence[Sum], numbers: Mapping[str, int]) -> None:
        super().__init__(slots, numbers)
        self.by_entity: dict[Entity, tuple[Sum, ...]] = {
            entity: tuple(s for s in slots if s.entity == entity) for entity in ENTITIES
        }
        self.place = {s: i for sums in self.by_entity.values() for i, s in enumerate(sums)}
        # An infinite half-life gives the rate 0, so the factor exp2(0) = 1.
        self.rates = {e: np.array([1.0 / s.half_life_ms for s in sums]) for e, sums in self.by_entity.items()}
        self._effects = {
            entity: {number: Effect.of(event, sums) for event, number in numbers.items()}
            for entity, sums in self.by_entity.items()
        }

    def fields(self, slot: Sum, entity: Entity) -> Fields:
        """Return the sum, and the time to which it is decayed."""
        return [("sums", "<f8"), ("sums_ms", "<i8")] if slot.entity == entity else []

    def columns(self, entity: Entity) -> Fields:
        """Return two columns with a place for each of the entity's sums."""
        num = len(self.by_entity[entity])
        return [("sums", "<f8", (num,)), ("sums_ms", "<i8", (num,))]

    def cells(self, slot: Sum, entity: Entity) -> list[Cell]:
        """Return the place of a sum in both columns."""
        return [(name, self.place[slot]) for name, _ in self.fields(slot, entity)]

    def observe(self, tables: Tables, run: Interactions) -> Sequence[int]:
        """Apply the records of one event after another, all at once because sums commute."""
        for event in run.events:
            viewers, candidates = (self._effects[entity][event] for entity in ENTITIES)
            records = run.only(event)
            if viewers:
                viewers.add(tables.viewers.table[STATE], records.viewer, records.ts_ms, records.lengths)
            if candidates:
                times_ms = np.repeat(records.ts_ms, records.lengths)
                candidates.add(tables.candidates.table[STATE], records.candidates, times_ms)
        return ()

    def read(self, batch: Batch, slot: Sum) -> F64:
        """Return a sum, decayed to now, `[R]`."""
        entity = slot.entity
        decayed = batch.once((Sums, entity), lambda: self._decayed(batch, entity))
        return batch.per_row(entity, decayed[self.place[slot]])

    def _decayed(self, batch: Batch, entity: Entity) -> F64:
        """Return all sums of the entity, `[S, B]` of viewers and `[S, R]` of candidates."""
        rows: PackedRows = batch.rows(entity)[STATE]
        # Transpose to [S, rows]: NumPy's inner loop then runs over many rows, not a few sums.
        sums, sums_ms = (np.ascontiguousarray(rows[name].T) for name in ("sums", "sums_ms"))
        # A sum from a clock that runs ahead must not grow.
        age_ms = np.maximum(batch.times_ms(entity) - sums_ms, 0)
        decayed: F64 = sums * np.exp2(age_ms * -self.rates[entity][:, None])
        return decayed


@dataclass(frozen=True)
class Effect:
    """Columns that an event changes in the sums of one entity, and their rates of decay, `[S]`."""

    columns: I64
    rates: F64

    @classmethod
    def of(cls, event: str, sums: Sequence[Sum]) -> Effect | None:
        """Return the effect of an event on these sums; None if it changes none of them."""
        columns = np.array([i for i, s in enumerate(sums) if s.event == event], np.int64)
        return cls(columns, np.array([1.0 / sums[i].half_life_ms for i in columns])) if len(columns) else None

    def add(self, table: Any, rows: I64, ts_ms: I64, times: I64 | None = None) -> None:
        """Add the event to each row `[n]` at `ts_ms` `[n]`, `times` `[n]` times; skip row 0."""
        if not rows.all():
            known = rows > 0
            rows, ts_ms, times = rows[known], ts_ms[known], None if times is None else times[known]
            if not len(rows):
                return
        cells: Any = self.columns
        group: I64 | slice = slice(None)
        if len(rows) == 1:
            # Fast path: a single row needs no grouping, which halves its time.
            table, last_ms = table[rows[0]], ts_ms
        else:
            unique, group, last_ms = _grouped(rows, ts_ms)
            cells = unique[:, None], self.columns
            last_ms, ts_ms = last_ms[:, None], ts_ms[:, None]
        old_ms = table["sums_ms"][cells]
        new_ms = np.maximum(old_ms, last_ms)
        # A late event counts at its own time, so it is added in decayed form.
        arrived = np.exp2((ts_ms - new_ms[group]) * self.rates)
        if times is not None:
            arrived = arrived * times[:, None]
        if isinstance(group, np.ndarray):
            arrived = _summed(arrived, group, len(new_ms))
        table["sums"][cells] = table["sums"][cells] * np.exp2((old_ms - new_ms) * self.rates) + arrived
        table["sums_ms"][cells] = new_ms


def _grouped(rows: I64, ts_ms: I64) -> tuple[I64, I64 | slice, I64]:
    """Return the distinct rows `[U]`, the index of each row in them (all if none repeats), and the
    last time of each distinct row `[U]`.
    """
    if len(set(rows.tolist())) == len(rows):
        return rows, slice(None), ts_ms
    unique, group = np.unique(rows, return_inverse=True)
    last_ms = np.full(len(unique), np.iinfo(np.int64).min)
    np.maximum.at(last_ms, group, ts_ms)
    return unique, group, last_ms


def _summed(arrived: F64, group: I64, num_rows: int) -> NDArray[Any]:
    """Sum `[n, S]` by the index of the row: `[U, S]`."""
    num_sums = arrived.shape[1]
    places = group[:, None] * num_sums + np.arange(num_sums)
    sums = np.bincount(places.ravel(), arrived.ravel(), num_rows * num_sums)
    return sums.reshape(num_rows, num_sums)


@dataclass(frozen=True)
class Count(Kind, kind="count"):
    """Number of the viewer's or candidate's events, decayed with `half_life`."""

    template = "{event} events of the {entity}"
    entity: Entity
    event: Event
    half_life_ms: HalfLife = np.inf
    transform: Transform = "none"

    @cached_property
    def slots(self) -> tuple[Sum]:
        """One decayed sum."""
        return (Sum(self.entity, self.event, self.half_life_ms),)

    def value(self, batch: Batch) -> F64:
        """Return `[R]`, ≥ 0."""
        return batch.kept(Sums).read(batch, *self.slots)


@dataclass(frozen=True)
class Rate(Kind, kind="rate"):
    """Smoothed engagement rate: (events + rate · weight) / (over + weight), both decayed.

    This is the posterior mean under a Beta prior (Gelman et al., Bayesian Data Analysis, 2.4).
    """

    template = "{event} per {over} of the {entity}"
    entity: Entity
    event: Event
    over: Event
    prior: Prior
    half_life_ms: HalfLife = np.inf
    transform: Transform = "none"

    @cached_property
    def slots(self) -> tuple[Sum, Sum]:
        """The decayed sums of `event` and `over`."""
        event = Sum(self.entity, self.event, self.half_life_ms)
        return event, replace(event, event=self.over)

    def value(self, batch: Batch) -> F64:
        """Return `[R]`; the prior's rate where neither event occurred."""
        p = self.prior
        event, over = (batch.kept(Sums).read(batch, slot) for slot in self.slots)
        return (event + p.rate * p.weight) / (over + p.weight)
