"""State: packed rows of viewers and candidates, and the one way in which records change them.

A row is a NumPy record; its bytes are what a store keeps. Row 0 is nobody: all missing, never changed, and
what an unknown id is scored on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serve.buckets import Buckets
from serve.hashing import hash64
from serve.kinds import Entity, Map, Slot, Sum
from serve.surface import Field, Surface

I64 = NDArray[np.int64]
Record = NDArray[np.void]
NEVER_MS = np.iinfo(np.int64).max  # the end of a candidate whose end is not known


class Schema:
    """What a surface's state is made of: the layout of the rows and the sums and maps in them."""

    def __init__(self, surface: Surface) -> None:
        self.surface = surface
        slots = list(dict.fromkeys(slot for kind in surface.features.values() for slot in kind.slots()))
        self.maps: tuple[Map, ...] = tuple(s for s in slots if isinstance(s, Map))
        self.sums: dict[Entity, tuple[Sum, ...]] = {
            "viewer": tuple(s for s in slots if isinstance(s, Sum) and s.entity == "viewer"),
            "candidate": tuple(s for s in slots if isinstance(s, Sum) and s.entity == "candidate"),
        }
        groups: tuple[tuple[Slot, ...], ...] = (self.maps, *self.sums.values())
        self.place = {slot: i for group in groups for i, slot in enumerate(group)}
        # a half-life of infinity is a factor of exp2(0)
        self.rates = {e: np.array([1.0 / s.half_life_ms for s in sums]) for e, sums in self.sums.items()}
        self.viewer = np.dtype(self._attributes("viewer") + self._sums("viewer") + self._maps())
        self.candidate = np.dtype(
            [*self._attributes("candidate"), ("ends_ms", "<i8"), *self._sums("candidate")]
        )
        self.context = np.dtype(self._attributes("context"))
        layout = repr((self.viewer.descr, self.candidate.descr, self.sums, self.maps))
        self.fingerprint = hashlib.sha256(layout.encode()).hexdigest()

    def _attributes(self, owner: str) -> list[Any]:
        code: dict[str, Any] = {"number": "<f8", "time": "<f8", "category": "<u8"}
        return [
            (name, "<u8", (f.max,)) if f.type == "set" else (name, code[f.type])
            for name, f in self.surface.fields[owner].items()
        ]

    def _sums(self, entity: Entity) -> list[Any]:
        n = len(self.sums[entity])
        return [("sums", "<f8", (n,)), ("sums_ms", "<i8", (n,))]

    def _maps(self) -> list[Any]:
        return [
            (f"map{i}_{part}", code, (m.keep,))
            for i, m in enumerate(self.maps)
            for part, code in (("keys", "<u8"), ("event", "<f8"), ("over", "<f8"), ("ms", "<i8"))
        ]

    def blank(self, entity: Entity, n: int = 1) -> Record:
        """`n` rows of which nothing is known."""
        dtype = self.viewer if entity == "viewer" else self.candidate
        rows = np.zeros(n, dtype)
        for name, declared in self.surface.fields[entity].items():
            if declared.type in ("number", "time"):
                rows[name] = np.nan
        if entity == "candidate":
            rows["ends_ms"] = NEVER_MS
        return rows

    def context_rows(self, contexts: Sequence[Mapping[str, object]]) -> Record:
        """`[B]`: the declared context fields of each request; what a request does not say is missing."""
        rows = np.zeros(len(contexts), self.context)
        for name, declared in self.surface.fields["context"].items():
            rows[name] = [encode(declared, context.get(name)) for context in contexts]
        return rows


def encode(declared: Field, value: Any) -> Any:
    """A field's value as its row keeps it: a float, a hash, or a padded row of hashes (the first `max`)."""
    if declared.type in ("number", "time"):
        return np.nan if value is None else float(value)
    if declared.type == "category":
        return 0 if value is None else hash64(value)
    hashes = [hash64(v) for v in dict.fromkeys(value or ())][: declared.max]
    return hashes + [0] * (declared.max - len(hashes))


class Rows:
    """The rows of one entity by id, growing as ids come; row 0 is nobody."""

    def __init__(self, schema: Schema, entity: Entity) -> None:
        self.entity: Entity = entity
        self.schema = schema
        self.index: dict[str, int] = {}
        self.table = schema.blank(entity, 64)
        self.ids: list[str | None] = [None]
        self._free: list[int] = []
        self._buckets = Buckets(self.index)

    def __len__(self) -> int:
        return len(self.index)

    def find(self, ids: Sequence[str | None]) -> I64:
        """The row number of each id, 0 where it has none."""
        return self._buckets.find(ids)

    def add(self, name: str) -> int:
        """The row number of an id, which gets a blank row if it has none."""
        row = self.index.get(name)
        if row is not None:
            return row
        if self._free:
            row = self._free.pop()
            self.ids[row] = name
        else:
            row = len(self.ids)
            self.ids.append(name)
            if row == len(self.table):
                self.table = np.concatenate([self.table, self.schema.blank(self.entity, row)])
        self.index[name] = row
        self._buckets.changed(name)
        return row

    def put(self, name: str, packed: bytes) -> None:
        """Replace an id's row by the packed one."""
        row = self.add(name)
        self.table[row] = np.frombuffer(packed, self.table.dtype)[0]

    def apply(self, changed: Mapping[str, bytes]) -> None:
        """Take what a store says has changed: packed rows by id, b"" for an id that is gone."""
        put = [self.add(name) for name, packed in changed.items() if packed]
        if put:
            self.table[put] = np.frombuffer(b"".join(changed.values()), self.table.dtype)
        for name, packed in changed.items():
            if not packed:
                self.drop(name)

    def drop(self, name: str) -> None:
        """Forget an id; another may get its row."""
        row = self.index.pop(name, None)
        if row is not None:
            self.table[row] = self.schema.blank(self.entity)[0]
            self.ids[row] = None
            self._free.append(row)
            self._buckets.changed(name)


class State:
    """All viewers and candidates of a surface. Records are applied in order; nothing else changes it."""

    def __init__(self, schema: Schema) -> None:
        self.schema = schema
        self.viewers = Rows(schema, "viewer")
        self.candidates = Rows(schema, "candidate")

    def upsert(
        self, entity: Entity, name: str, fields: Mapping[str, object], ends_ms: int | None = None
    ) -> None:
        """Set the named attributes of a viewer or candidate; sums and maps stay."""
        rows = self.viewers if entity == "viewer" else self.candidates
        row = rows.add(name)
        for key, value in fields.items():
            rows.table[key][row] = encode(self.schema.surface.fields[entity][key], value)
        if ends_ms is not None:
            rows.table["ends_ms"][row] = ends_ms

    def observe(self, event: str, viewers: I64, candidates: I64, ts_ms: I64) -> None:
        """Apply one record's or many records' (viewer, candidate) pairs of one event to the sums.

        `viewers`, `candidates`, `ts_ms`: `[n]` row numbers and times. Row 0 takes no state. Sums commute, so
        the order within a call does not matter; maps do not, see `observe_maps`.
        """
        self._observe_sums(self.viewers, event, viewers, ts_ms)
        self._observe_sums(self.candidates, event, candidates, ts_ms)

    def _observe_sums(self, rows: Rows, event: str, at: I64, ts_ms: I64) -> None:
        sums = self.schema.sums[rows.entity]
        columns = [(j, w) for j, s in enumerate(sums) for name, w in s.weights if name == event]
        if not columns:
            return
        known = at > 0
        at, ts_ms = at[known], ts_ms[known]
        if not len(at):
            return
        unique, inverse = (at, np.zeros(1, np.int64)) if len(at) == 1 else np.unique(at, return_inverse=True)
        value, value_ms = rows.table["sums"], rows.table["sums_ms"]
        for j, weight in columns:
            rate = self.schema.rates[rows.entity][j]
            old_ms = value_ms[unique, j]
            new_ms = old_ms.copy()
            np.maximum.at(new_ms, inverse, ts_ms)
            # a late event counts at its own time, so it comes in already decayed
            arrived = np.bincount(inverse, weight * np.exp2((ts_ms - new_ms[inverse]) * rate), len(unique))
            value[unique, j] = value[unique, j] * np.exp2((old_ms - new_ms) * rate) + arrived
            value_ms[unique, j] = new_ms

    def observe_maps(self, event: str, viewer: int, candidates: I64, ts_ms: int) -> None:
        """Apply one record (an exposure's impressions, or one event) to the viewer's maps, in order."""
        if viewer == 0:
            return
        for i, m in enumerate(self.schema.maps):
            if event in (m.event, m.over):
                values = self.candidates.table[m.field.name][candidates].ravel()
                values = values[values != 0]
                keys, counts = _counted(values)
                if len(keys):
                    self._observe_map(i, m, viewer, keys, counts, ts_ms, event == m.event)

    def _observe_map(
        self,
        i: int,
        m: Map,
        viewer: int,
        keys: NDArray[np.uint64],
        counts: NDArray[np.float64],
        ts_ms: int,
        hit: bool,
    ) -> None:
        table = self.viewers.table
        old = [table[f"map{i}_{part}"][viewer] for part in ("keys", "event", "over", "ms")]
        match = old[0][:, None] == keys[None, :]
        found, at = match.any(axis=0), match.argmax(axis=0)
        if not found.all():  # room for new entries, by the rule of `Map`
            new = keys[~found]
            zeros = np.zeros(len(new))
            joined = [
                np.concatenate(pair)
                for pair in zip(old, (new, zeros, zeros, np.full(len(new), ts_ms)), strict=True)
            ]
            used = np.flatnonzero(joined[0])
            joined = [part[used] for part in joined]
            if len(used) > m.keep:
                arrived = np.zeros(len(used))
                arrived[len(used) - len(new) :] = counts[~found]
                touched = hit & np.isin(joined[0], keys)
                decay = np.exp2((joined[3] - joined[3].max()) / m.half_life_ms)
                over = (joined[2] + (0.0 if hit else arrived)) * decay
                stay = np.sort(np.lexsort((joined[0], -over, -joined[1] * decay, ~touched))[: m.keep])
                joined = [part[stay] for part in joined]
            for part, values in zip(old, joined, strict=True):
                part[: len(values)] = values
            match = old[0][:, None] == keys[None, :]
            found, at = match.any(axis=0), match.argmax(axis=0)
        at, counts = at[found], counts[found]
        new_ms = np.maximum(old[3][at], ts_ms)
        decay = np.exp2((old[3][at] - new_ms) / m.half_life_ms)
        arrived = counts * np.exp2((ts_ms - new_ms) / m.half_life_ms)
        old[1][at] = old[1][at] * decay + (arrived if hit else 0.0)
        old[2][at] = old[2][at] * decay + (0.0 if hit else arrived)
        old[3][at] = new_ms


def _counted(values: NDArray[np.uint64]) -> tuple[NDArray[np.uint64], NDArray[np.float64]]:
    """The distinct values and how often each is there; most records hold one, for which a sort is dear."""
    if len(values) == 1:
        return values, np.ones(1)
    keys, counts = np.unique(values, return_counts=True)
    return keys, counts.astype(np.float64)
