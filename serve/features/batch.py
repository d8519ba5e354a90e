"""Rows of a batch of requests, as feature kinds read them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serve.features.slots import F64, I64, STEPS, U64, Entity, FieldRef, Map, PackedRows, Presence, Slot, Sum


@dataclass(eq=False)
class Batch:
    """Rows of a batch of B requests with R candidates; methods return `[R]` or `[R, M]`.

    `place` is the index of each slot among the sums of its entity, the maps or the presences of the
    packed rows; `rates` `[S]` are the halvings per millisecond of each entity's sums. `viewer`,
    `context` and the time `request_ms` are `[B]`, `candidate` and `request_of_row` `[R]`. Viewer
    values are computed once a request and then spread over the request's rows.
    """

    place: Mapping[Slot, int]
    rates: Mapping[Entity, F64]
    viewer: PackedRows
    candidate: PackedRows
    context: PackedRows
    request_of_row: I64
    request_ms: I64

    def __post_init__(self) -> None:
        self.now_ms = self._spread(self.request_ms)  # [R]

    def field(self, ref: FieldRef) -> NDArray[Any]:
        """Return the numbers or times of a field `[R]`, or its hashes `[R]`, of a set `[R, M]`."""
        values = getattr(self, ref.owner)[ref.name]
        return values if ref.owner == "candidate" else self._spread(values)

    def _spread(self, values: NDArray[Any]) -> NDArray[Any]:
        """Spread `[B, ...]`, one value a request, to `[R, ...]`, one a row."""
        return values.take(self.request_of_row, axis=0)

    def found(self, keys: U64, worth: F64, values: U64) -> F64:
        """Look up each row's value `[R]` in its viewer's keys `[B, K]`; return the worth `[R]`.

        The result is 0 where no key equals the value. A viewer's keys are distinct, except for 0:
        an empty place, which a missing value equals, so its worth must be 0.
        """
        # The keys of a single request need no copy for each row.
        hits = np.flatnonzero((keys if len(keys) == 1 else self._spread(keys)) == values[:, None])
        rows, places = np.divmod(hits, keys.shape[1])
        found = np.zeros(len(values))
        found[rows] = worth[self.request_of_row[rows], places]
        return found

    def sums(self, slot: Sum) -> F64:
        """Return a sum, decayed to now, `[R]`."""
        value = self._decayed[slot.entity][self.place[slot]]
        return value if slot.entity == "candidate" else self._spread(value)

    @cached_property
    def _decayed(self) -> dict[Entity, F64]:
        """Decayed sums: `[S, B]` of viewers, `[S, R]` of candidates."""
        now = {"viewer": self.request_ms, "candidate": self.now_ms}
        decayed: dict[Entity, F64] = {}
        for entity, rates in self.rates.items():
            # Transpose to [S, rows]: NumPy's inner loop then runs over many rows, not a few sums.
            sums, sums_ms = (
                np.ascontiguousarray(getattr(self, entity)[part].T) for part in ("sums", "sums_ms")
            )
            # A sum from a clock that runs ahead must not grow.
            decayed[entity] = sums * np.exp2(np.maximum(now[entity] - sums_ms, 0) * -rates[:, None])
        return decayed

    def presence(self, slot: Presence, entity: Entity) -> NDArray[Any]:
        """Return the number of viewers at each candidate, or of candidates of its viewer, `[R]`."""
        name, rows, step_ms = f"presence{self.place[slot]}", getattr(self, entity), slot.step_ms
        if entity == "viewer":
            marks, now = rows[name + "_marks"], self.request_ms // step_ms
            is_there = (marks & 1) * (np.abs(now[:, None] - (marks >> 1) // step_ms) < STEPS)
            return self._spread(is_there.sum(axis=1))
        # The newest step is ahead of a clock that is behind.
        age = np.maximum(self.now_ms // step_ms - rows[name + "_newest"], 0)
        # A lookup in the bytes of the rows takes half the time of one by row and column.
        fields: Any = rows.dtype.fields
        first, width = fields[name + "_left"][1] // 4, rows.itemsize // 4
        at = np.arange(first, first + len(rows) * width, width) + np.minimum(age, STEPS)
        left: NDArray[np.int32] = rows.view(np.int32).take(at)
        return left

    def map(self, slot: Map) -> tuple[U64, F64, F64]:
        """Return keys, `event` and `over` of a map of each request's viewer, `[B, K]` each.

        The sums are decayed to now; key 0 marks an empty place.
        """
        i, viewers = self.place[slot], self.viewer
        age_ms = np.maximum(self.request_ms[:, None] - viewers[f"map{i}_ms"], 0)
        decay = np.exp2(age_ms * (-1.0 / slot.half_life_ms))
        return viewers[f"map{i}_keys"], viewers[f"map{i}_event"] * decay, viewers[f"map{i}_over"] * decay
