"""Rows of a batch of requests, as feature kinds read them."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from serve.features.slots import F64, I64, U64, Entity, FieldRef, PackedRows, Values

T = TypeVar("T")
# `Batch.among` looks hashes up in a table that has SPREAD places for each member of a set. Of 64
# hashes that are not in the set, about one falls on a member's place and must be compared with it.
# Training computes many requests at once, so MAX_PLACES limits the table to 20 MiB; a member then
# has fewer places.
SPREAD, MAX_PLACES = 64, 1 << 22


@dataclass(eq=False)
class Batch:
    """Rows of a batch of B requests with R candidates; methods return `[R]` or `[R, M]`.

    `state` are the schema's kinds of state. `viewer`, `context` and the time `request_ms` have the
    shape `[B]`, `candidate` and `request_of_row` have `[R]`. `values` are those of the candidates'
    fields. What depends on the viewer alone is computed once for each request, and then spread over
    the request's rows.
    """

    state: Mapping[type, Any]
    viewer: PackedRows
    candidate: PackedRows
    context: PackedRows
    request_of_row: I64
    request_ms: I64
    values: Values
    _computed: dict[Hashable, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.now_ms = self.per_row("context", self.request_ms)  # [R]

    def kept(self, kind: type[T]) -> T:
        """Return the kind of state of this class."""
        found: T = self.state[kind]
        return found

    def rows(self, owner: str) -> PackedRows:
        """Return an owner's rows: `[B]` of viewers or contexts, `[R]` of candidates or values."""
        _, _, name = owner.partition(".")
        if name:
            table, at = self.values[name]
            return self.once(owner, lambda _: table.take(at))
        rows: PackedRows = getattr(self, owner)
        return rows

    def times_ms(self, entity: Entity) -> I64:
        """Return the time at which each of the entity's rows is read."""
        return self.request_ms if entity == "viewer" else self.now_ms

    def per_row(self, owner: str, values: NDArray[Any]) -> NDArray[Any]:
        """Return a value for each row, `[R, ...]`, from one for each row of the owner."""
        return values.take(self.request_of_row, axis=0) if owner in ("viewer", "context") else values

    def once(self, key: Hashable, compute: Callable[[Batch], T]) -> T:
        """Return the result for this key; compute it from the batch the first time."""
        value: T | None = self._computed.get(key)
        if value is None:
            value = self._computed[key] = compute(self)
        return value

    def field(self, ref: FieldRef) -> NDArray[Any]:
        """Return a field's numbers, times or hashes, `[R]`, or the hashes of a set, `[R, M]`."""
        return self.per_row(ref.owner, getattr(self, ref.owner)[ref.name])

    def found(self, keys: U64, worth: F64, values: U64) -> F64:
        """Look up each row's value `[R]` in its viewer's keys `[B, K]`; return the worth `[R]`.

        The result is 0 where no key equals the value. A viewer's keys are distinct, except that
        every empty place has the key 0. A missing value is 0 too, so the worth of empty places must
        be 0.
        """
        rows, places = self.places(keys, values)
        found = np.zeros(len(values))
        found[rows] = worth[self.request_of_row[rows], places]
        return found

    def places(self, keys: U64, values: U64) -> tuple[I64, I64]:
        """Return the rows whose value is a key of their viewer, and the places of these keys."""
        # The keys of a single request need no copy for each row.
        hits = np.flatnonzero((keys if len(keys) == 1 else self.per_row("viewer", keys)) == values[:, None])
        return np.divmod(hits, keys.shape[1])

    def among(self, hashes: U64, rows: I64, sets: U64) -> I64:
        """Return which of the hashes `[N]` of rows `[N]` are in their viewer's set `[B, M]`.

        0 is an empty place, which is in no set.
        """
        members = sets.ravel()
        left = np.flatnonzero(members)
        # Each set has a table by the low bits of a hash. It rules out most hashes in one look-up.
        spread = max(1, min(SPREAD, MAX_PLACES // max(sets.size, 1)))
        size = 1 << (spread * sets.shape[1] - 1).bit_length()
        low = np.uint64(size - 1)
        place = (members[left] & low).view(np.int64) + left // sets.shape[1] * size
        is_taken = np.zeros(len(sets) * size, bool)
        is_taken[place] = True
        at = (self.request_of_row * size).take(rows)
        at += (hashes & low).view(np.int64)
        hits = np.flatnonzero(is_taken.take(at))
        at, values = at[hits], hashes[hits]
        # A place holds one member: compare those that share it one after the other.
        member_at = np.empty(len(is_taken), np.int32)
        is_equal = np.zeros(len(hits), bool)
        while len(left):
            member_at[place] = left
            is_equal |= members[member_at[at]] == values
            is_next = member_at[place] != left
            left, place = left[is_next], place[is_next]
        return hits[is_equal]
