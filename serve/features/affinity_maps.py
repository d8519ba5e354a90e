"""Vectorized updates of the viewers' maps; `Map` states the rule.

The records of one viewer must be applied in order. Records are therefore applied in rounds: the
first record of each viewer, then the second, and so on.

Shapes: N records, Q pairs of a record and a key that it touches, V records of a round (each of a
different viewer), K entries of a map, W entries before eviction.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from serve.features.slots import CANDIDATE_ID, F64, I64, U64, Bools, FieldRef, PackedRows, Slot

# Ranks for eviction: entries of the lowest rank are kept first.
TOUCHED, UNTOUCHED, EMPTY = 0, 1, 2


@dataclass(frozen=True)
class Map(Slot):
    """A viewer's decayed `event` and `over` sums by value of a candidate's field.

    A map holds `keep` entries. It evicts the entry with the least `event`, then the least `over`
    (both decayed to a common time), then the greatest key. An entry that the record's own `event`
    touches is never evicted: otherwise a full map could not learn new values.

    A map of pairs evicts the entry with the oldest record, because candidates come and go, then the
    greatest key: a page with more candidates than `keep` leaves the same ones whenever it is shown.
    Neither rule reads a clock, so a replay evicts the same entries as the service did.
    """

    event: str
    over: str
    field: FieldRef
    half_life_ms: float
    keep: int


class Parts(NamedTuple):
    """Arrays of one map, one row a viewer. Key 0 marks an empty place; empty places come last."""

    keys: U64
    event: F64
    over: F64
    ms: I64

    def each(self, made: Callable[[NDArray[Any]], NDArray[Any]]) -> Parts:
        """Return the parts with `made` applied to each."""
        return Parts(*map(made, self))

    @classmethod
    def of(cls, rows: PackedRows) -> Parts:
        """Return views of the fields of one map in viewers' rows."""
        return cls(rows["keys"], rows["event"], rows["over"], rows["ms"])


class Pairs(NamedTuple):
    """Distinct pairs of a record and a key that it touches, `[Q]`, sorted by record and key.

    `counts` is the number of the record's candidates that have the key, times the number of records
    that this one stands for.
    """

    record: I64
    keys: U64
    counts: F64

    @classmethod
    def of(cls, values: U64, lengths: I64) -> Pairs:
        """Return the pairs for candidates' values, `[P]` or `[P, M]`.

        `lengths` `[N]` says how many of the P candidates belong to each record.
        """
        # Most records hold one candidate, for which the general code is slow.
        if len(values) == 1 == values.size:
            held = values.ravel()[: int(values.any())]
            return cls(lengths.nonzero()[0][: len(held)], held, np.ones(len(held)))
        if len(values) == 0:
            return cls(np.zeros(0, np.int64), np.zeros(0, np.uint64), np.zeros(0))
        if values.ndim == 2:
            lengths = lengths * values.shape[1]
        width = int(lengths.max())
        # Padded rows: sorting each row is faster than sorting all values at once.
        rows = np.zeros((len(lengths), width), np.uint64)
        rows[np.arange(width) < lengths[:, None]] = values.ravel()
        rows.sort(axis=1)
        starts = np.ones(rows.shape, bool)
        np.not_equal(rows[:, 1:], rows[:, :-1], out=starts[:, 1:])
        at = starts.ravel().nonzero()[0]
        keys = rows.ravel()[at]
        counts = np.empty(len(at))
        counts[:-1] = at[1:] - at[:-1]
        counts[-1] = rows.size - at[-1]
        held = keys != 0
        return cls(at[held] // width, keys[held], counts[held])


class Round(NamedTuple):
    """Records of distinct viewers, `[V]`, and the keys that they touch, `[Q]`.

    `hit` is true for the map's `event` and false for its `over` event. `owner` `[Q]` is the record
    of each key.
    """

    viewers: I64
    ts_ms: I64
    hit: Bools
    owner: I64
    keys: U64
    counts: F64

    def each(self, values: NDArray[Any]) -> NDArray[Any]:
        """Spread `[V]` to `[Q]`; a single value is returned as is, because it broadcasts."""
        return values if len(values) == 1 else values[self.owner]


def apply_to_map(
    slot: Map, parts: Parts, pairs: Pairs, viewers: I64, ts_ms: I64, hit: Bools, over: Bools
) -> None:
    """Apply records `[N]` to a map, except those of viewer 0 and those neither `hit` nor `over`."""
    # Fast path: one record is the most frequent call in training.
    if len(viewers) == 1:
        if viewers[0] and (hit[0] or over[0]) and len(pairs.keys):
            _apply(slot, parts, Round(viewers, ts_ms, hit, *pairs))
        return
    rounds = _rounds(np.where(hit | over, viewers, 0))
    round_of_pair = rounds[pairs.record]
    for number in range(int(round_of_pair.max(initial=-1)) + 1):
        mine = (round_of_pair == number).nonzero()[0]
        if len(mine):
            records = (rounds == number).nonzero()[0]
            place_of = np.empty(len(viewers), np.int64)
            place_of[records] = np.arange(len(records))
            owner = place_of[pairs.record[mine]]
            of_record = viewers[records], ts_ms[records], hit[records]
            _apply(slot, parts, Round(*of_record, owner, pairs.keys[mine], pairs.counts[mine]))


def _rounds(viewers: I64) -> I64:
    """Return for each record, `[N]`, how many earlier ones its viewer has; -1 for viewer 0."""
    order = np.argsort(viewers, kind="stable")
    places = np.arange(len(viewers))
    starts = np.where(np.diff(viewers[order], prepend=-1) != 0, places, 0)
    rounds = np.empty(len(viewers), np.int64)
    rounds[order] = places - np.maximum.accumulate(starts)
    rounds[viewers == 0] = -1
    return rounds


def _apply(slot: Map, parts: Parts, now: Round) -> None:
    # A single record changes its row in place, which halves its time.
    one = len(now.viewers) == 1
    rows = slice(int(now.viewers[0]), int(now.viewers[0]) + 1) if one else now.viewers
    held = parts.each(lambda part: part[rows])
    hits = (now.each(held.keys) == now.keys[:, None]).ravel().nonzero()[0]
    if len(hits) == len(now.keys):
        _add(slot.half_life_ms, held, hits % slot.keep + now.owner * slot.keep, now)
    else:
        held, one = _with_new(slot, held, hits, now), False
    if not one:
        for part, values in zip(parts, held, strict=True):
            part[rows] = values


def _with_new(slot: Map, held: Parts, hits: I64, now: Round) -> Parts:
    """Return the maps, `[V, K]`, after a round that adds entries and evicts others.

    `hits` are the places, in `[Q, K]`, at which a key of the round is already held.
    """
    known, places = np.divmod(hits, slot.keep)
    is_new = np.ones(len(now.keys), bool)
    is_new[known] = False
    owner = now.owner[is_new]
    used, num_new = np.count_nonzero(held.keys, axis=1), np.bincount(owner, minlength=len(now.viewers))
    first_new = np.cumsum(num_new) - num_new
    # [Q]; the new entries of a viewer follow the ones in use.
    columns = np.empty(len(now.keys), np.int64)
    columns[known] = places
    columns[is_new] = used[owner] + np.arange(len(owner)) - first_new[owner]
    width = max(slot.keep, int((used + num_new).max()))
    at = columns + now.owner * width
    wide = held.each(lambda part: _widened(part, width))
    wide.keys.ravel()[at[is_new]] = now.keys[is_new]
    wide.ms.ravel()[at[is_new]] = now.ts_ms[owner]
    best = None
    if width > slot.keep and slot.field != CANDIDATE_ID:
        best = _by_worth(slot.half_life_ms, wide, at, is_new, now)
    _add(slot.half_life_ms, wide, at, now)
    if width == slot.keep:
        return wide
    if best is None:
        best = np.lexsort((wide.keys, -wide.ms, wide.keys == 0))
    stay = np.sort(best[:, : slot.keep], axis=1)
    return wide.each(lambda part: part[np.arange(len(stay))[:, None], stay])


def _widened(part: NDArray[Any], width: int) -> NDArray[Any]:
    """Return a copy of the array `[V, K]` that has `width` columns; the new ones are 0."""
    wide = np.zeros((len(part), width), part.dtype)
    wide[:, : part.shape[1]] = part
    return wide


def _by_worth(half_life_ms: float, wide: Parts, at: I64, is_new: Bools, now: Round) -> I64:
    """Return the columns of the entries, `[V, W]`, best first, judged before the round counts."""
    hit = now.hit[now.owner]
    rank = np.where(wide.keys == 0, EMPTY, UNTOUCHED)
    rank.ravel()[at[hit]] = TOUCHED
    # A new entry is judged by the counts that arrive with it, and an old one by its sums so far.
    over = wide.over.copy()
    arrived = is_new & ~hit
    over.ravel()[at[arrived]] = now.counts[arrived]
    decay = np.exp2((wide.ms - wide.ms.max(axis=1, keepdims=True)) / half_life_ms)
    return np.lexsort((wide.keys, -over * decay, -wide.event * decay, rank))


def _add(half_life_ms: float, parts: Parts, at: I64, now: Round) -> None:
    """Add the counts of a round at the places `at`; the count of a late record is decayed first."""
    # `ravel` returns views, so the assignments below change `parts`.
    _, event, over, ms = (part.ravel() for part in parts)
    ts_ms, hit, arrived = now.each(now.ts_ms), now.each(now.hit), now.counts
    old_ms = ms[at]
    new_ms = np.maximum(old_ms, ts_ms)
    late_ms = new_ms - ts_ms
    if late_ms.any():
        arrived = arrived * np.exp2(-late_ms / half_life_ms)
    decay = np.exp2((old_ms - new_ms) / half_life_ms)
    hits = arrived * hit
    event[at] = event[at] * decay + hits
    over[at] = over[at] * decay + (arrived - hits)
    ms[at] = new_ms
