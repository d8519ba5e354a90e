"""The viewer's decayed engagement by value of a candidate's field: the kind `affinity`.

By the hash of the candidate's id, a map keeps pairs of viewer and candidate.

Shapes: B requests, R rows, K entries of a map.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, NamedTuple

import numpy as np

from serve.contract.typed_reader import Between
from serve.features.affinity_maps import Map, Pairs, Parts, apply_to_map
from serve.features.batch import Batch
from serve.features.interactions import Interactions
from serve.features.kind import Event, HalfLife, Kind, Prior, Transform, field_of
from serve.features.slots import CANDIDATE_ID, F64, U64, Entity, FieldRef
from serve.features.state_kind import Candidates, Fields, Rows, StateKind


class Entries(NamedTuple):
    """Decayed sums `[R]` and newest time of each row's pair; 0 of a pair without an entry."""

    event: F64
    over: F64
    ms: F64


def pairs(event: str, over: str, half_life_ms: float, keep: int | None) -> Map:
    """Return the map of a viewer's last candidates, 64 by default."""
    return Map(event, over, CANDIDATE_ID, half_life_ms, keep or 64)


class Maps(StateKind[Map], of=(Map,)):
    """All maps."""

    def fields(self, slot: Map, entity: Entity) -> Fields:
        """Return the fields of `Parts`."""
        codes = ("<u8", "<f8", "<f8", "<i8")
        parts = zip(Parts._fields, codes, strict=True)
        return [(name, code, (slot.keep,)) for name, code in parts] if entity == "viewer" else []

    def observe(self, viewers: Rows, candidates: Candidates, run: Interactions) -> Sequence[int]:
        """Apply the records of a map's two events."""
        pairs: dict[str, Pairs] = {}
        for slot in self.slots:
            event, over = self.numbers[slot.event], self.numbers[slot.over]
            if not run.events.isdisjoint((event, over)):
                field = slot.field.name
                if field not in pairs:
                    touched = Pairs.of(candidates.table[field][run.candidates], run.lengths)
                    if run.weight is not None:
                        touched = touched._replace(counts=touched.counts * run.weight[touched.record])
                    pairs[field] = touched
                parts = Parts.of(self.of(viewers.table, slot))
                hit, counted = run.event == event, run.event == over
                apply_to_map(slot, parts, pairs[field], run.viewer, run.ts_ms, hit, counted)
        return ()

    def read(self, batch: Batch, slot: Map) -> tuple[U64, F64, F64]:
        """Return keys, `event` and `over` of each request's viewer, `[B, K]` each.

        The sums are decayed to now; key 0 marks an empty place.
        """
        parts = Parts.of(self.of(batch.viewer, slot))
        age_ms = np.maximum(batch.request_ms[:, None] - parts.ms, 0)
        decay = np.exp2(age_ms * (-1.0 / slot.half_life_ms))
        return parts.keys, parts.event * decay, parts.over * decay

    def read_pairs(self, batch: Batch, slot: Map) -> Entries:
        """Return the entries of a map of pairs; features with the same map share them."""
        return batch.once((Maps, slot), lambda _: self._read_pairs(batch, slot))

    def _read_pairs(self, batch: Batch, slot: Map) -> Entries:
        parts = Parts.of(self.of(batch.viewer, slot))
        rows, places = batch.places(parts.keys, batch.candidate[CANDIDATE_ID.name])
        # Few candidates have an entry: decay theirs alone.
        request = batch.request_of_row[rows]
        event, over = (part[request, places] for part in (parts.event, parts.over))
        ms = parts.ms[request, places]
        if slot.half_life_ms < np.inf:
            decay = np.exp2(np.maximum(batch.request_ms[request] - ms, 0) * (-1.0 / slot.half_life_ms))
            event, over = event * decay, over * decay
        found = np.zeros((len(Entries._fields), len(batch.candidate)))
        found[:, rows] = event, over, ms
        return Entries(*found)


@dataclass(frozen=True)
class Affinity(Kind, kind="affinity"):
    """The viewer's own rate of an event on candidates with the same value of a field.

    For a set it is the mean over the values of the candidate's set. Example: the share of rooms on
    jazz that this viewer joined, of those on jazz that were shown to this viewer.

    Attributes:
        event: The event that is counted.
        over: The event that it is divided by, mostly `impression`.
        field: A category or a set of candidates.
        prior: The rate to assume of a value that the viewer has met seldom or never.
        keep: How many values a viewer's map remembers.
        half_life: Time after which an event counts half. Without it, every event counts fully.
        transform: `log1p` gives the model log(1 + value), for values with a long tail.
    """

    template = "viewer's {event} per {over} at the same {field}"
    event: Event
    over: Event
    field: Annotated[FieldRef, field_of("category", "set", of="candidate")]
    prior: Prior
    keep: Annotated[int, Between(1, 1024)]
    half_life_ms: HalfLife = np.inf
    transform: Transform = "none"

    @cached_property
    def slots(self) -> tuple[Map]:
        """One map per viewer."""
        return (Map(self.event, self.over, self.field, self.half_life_ms, self.keep),)

    def value(self, batch: Batch) -> F64:
        """Return `[R]`: the prior's rate without an entry, NaN without a value of the candidate."""
        p = self.prior
        keys, event, over = batch.kept(Maps).read(batch, *self.slots)
        # [B, K]: the entry's rate minus the prior's; exactly 0 at an empty place.
        gain = (event - p.rate * over) / (over + p.weight)
        values = batch.field(self.field)
        if values.ndim == 1:
            return np.where(values == 0, np.nan, p.rate + batch.found(keys, gain, values))
        num_values = (values != 0).sum(axis=1)
        total = np.zeros(len(values))
        for m in range(values.shape[1]):
            total += batch.found(keys, gain, values[:, m])
        return np.where(num_values == 0, np.nan, p.rate + total / np.maximum(num_values, 1))
