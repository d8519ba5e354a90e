"""Rows of a batch of requests as the feature kinds read them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from serve.features.slots import F64, I64, U64, Entity, FieldRef, Map, Record, Slot, Sum


class Layout(Protocol):
    """Places of sums and maps in the packed rows; `serve.features.rows.Schema` is one."""

    @property
    def place(self) -> Mapping[Slot, int]:
        """The place of each slot among the sums of its entity, or among the maps."""

    @property
    def rates(self) -> Mapping[Entity, F64]:
        """Halvings a millisecond of each sum, `[S]`."""


@dataclass(frozen=True)
class Entries:
    """A map of each viewer, decayed to now: `[B, K]` each; key 0 is an empty place."""

    keys: U64
    event: F64
    over: F64


class Batch:
    """The rows of a batch of requests, as the kinds see them: every answer is `[R]` or `[R, M]`.

    Viewer-side work is done once a request and then spread over its rows.
    """

    def __init__(
        self,
        schema: Layout,
        viewers: Record,
        candidates: Record,
        context: Record,
        request_of_row: I64,
        now_ms: I64,
    ) -> None:
        self.schema = schema
        self.request_of_row = request_of_row
        self.request_ms = now_ms  # [B]
        self.now_ms = now_ms[request_of_row]  # [R]
        self._rows = {"viewer": viewers, "candidate": candidates, "context": context}

    def _field(self, ref: FieldRef) -> NDArray[Any]:
        values = self._rows[ref.owner][ref.name]
        return values if ref.owner == "candidate" else self._spread(values)

    def _spread(self, values: NDArray[Any]) -> NDArray[Any]:
        """What each request has, `[B, ...]`, for each of its rows, `[R, ...]`."""
        return values.take(self.request_of_row, axis=0)

    def numbers(self, ref: FieldRef) -> F64:
        """A number or time, `[R]`."""
        return self._field(ref)

    def hashes(self, ref: FieldRef) -> U64:
        """A category `[R]`, or a set `[R, M]`."""
        return self._field(ref)

    def viewer_set(self, ref: FieldRef) -> U64:
        """A set of each request's viewer, `[B, M]`."""
        values: U64 = self._rows["viewer"][ref.name]
        return values

    def found(self, keys: U64, worth: F64, values: U64) -> F64:
        """`[R]`: the worth `[B, K]` of the viewer's key `[B, K]` that is the row's value `[R]`, 0 without one.

        No viewer has a key twice, but for 0.
        """
        hits = np.flatnonzero(self._spread(keys) == values[:, None])  # few, so what follows costs little
        rows, places = np.divmod(hits, keys.shape[1])
        found = np.zeros(len(values))
        found[rows] = worth[self.request_of_row[rows], places]
        return found

    def sums(self, slot: Sum) -> F64:
        """A sum, decayed to now, `[R]`."""
        value = self._decayed[slot.entity][self.schema.place[slot]]
        return value if slot.entity == "candidate" else self._spread(value)

    @cached_property
    def _decayed(self) -> dict[Entity, F64]:
        """`[S, B]` of the viewers, `[S, R]` of the candidates."""
        now = {"viewer": self.request_ms, "candidate": self.now_ms}
        decayed: dict[Entity, F64] = {}
        for entity, rates in self.schema.rates.items():
            # whole columns side by side: a row's few sums are too short for a loop over them
            sums, sums_ms = (np.ascontiguousarray(self._rows[entity][part].T) for part in ("sums", "sums_ms"))
            age_ms = np.maximum(now[entity] - sums_ms, 0)  # a clock that runs ahead adds nothing
            decayed[entity] = sums * np.exp2(age_ms * -rates[:, None])
        return decayed

    def map(self, slot: Map) -> Entries:
        """A map of each request's viewer, decayed to now."""
        i, viewers = self.schema.place[slot], self._rows["viewer"]
        age_ms = np.maximum(self.request_ms[:, None] - viewers[f"map{i}_ms"], 0)
        decay = np.exp2(age_ms * (-1.0 / slot.half_life_ms))
        return Entries(
            viewers[f"map{i}_keys"], viewers[f"map{i}_event"] * decay, viewers[f"map{i}_over"] * decay
        )
