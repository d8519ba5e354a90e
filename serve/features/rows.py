"""State of a surface: packed rows of viewers and candidates, and how records change them.

A row is a NumPy record; stores keep its bytes. Row 0 stands for every unknown id: all its values
are missing, and it never changes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from serve.contract.hashing import hash64
from serve.features.affinity_maps import Pairs, Parts, apply_to_map
from serve.features.decayed_counters import Effect
from serve.features.id_index import Buckets
from serve.features.presences import Presences, presence_fields
from serve.features.slots import ENTITIES, I64, IMPRESSION, Entity, Map, PackedRows, Presence, Slot, Sum
from serve.features.surface import Field, Surface

# Apply fewer records than this one by one: they are mostly of one viewer, so rounds are slower.
MIN_RECORDS_AT_ONCE = 16
# Limit the candidates, plus RECORD_COST for each record, that are applied at once: temporary arrays
# stay within some MB.
MAX_CANDIDATES_AT_ONCE = 1 << 14
RECORD_COST = 32
# Time of an attribute without a time of its own: every other time is later.
EVER_MS = np.iinfo(np.int64).min
# End of a candidate whose end is not known.
NEVER_MS = np.iinfo(np.int64).max


class Schema:
    """Layout of a surface's rows, with the sums, maps and presences in them."""

    def __init__(self, surface: Surface) -> None:
        self.surface = surface
        slots = list(dict.fromkeys(slot for kind in surface.features.values() for slot in kind.slots))
        self.maps: tuple[Map, ...] = tuple(s for s in slots if isinstance(s, Map))
        self.presences: tuple[Presence, ...] = tuple(s for s in slots if isinstance(s, Presence))
        self.sums: dict[Entity, tuple[Sum, ...]] = {
            entity: tuple(s for s in slots if isinstance(s, Sum) and s.entity == entity)
            for entity in ENTITIES
        }
        groups: tuple[tuple[Slot, ...], ...] = (self.maps, self.presences, *self.sums.values())
        self.place = {slot: i for group in groups for i, slot in enumerate(group)}
        # An infinite half-life gives the rate 0, so the factor exp2(0) = 1.
        self.rates = {e: np.array([1.0 / s.half_life_ms for s in sums]) for e, sums in self.sums.items()}
        self.events = tuple(dict.fromkeys((IMPRESSION, *surface.events)))
        self.number = {event: number for number, event in enumerate(self.events)}
        self.effects = {
            entity: [Effect.of(event, sums) for event in self.events] for entity, sums in self.sums.items()
        }
        # Attributes in the order of their times in `stated_ms`, the candidate's end included.
        self.stated: dict[Entity, tuple[str, ...]] = {
            "viewer": tuple(surface.fields["viewer"]),
            "candidate": (*surface.fields["candidate"], "ends_ms"),
        }
        seen = ("seen_ms", "<i8")
        self.viewer = np.dtype([*self._attributes("viewer"), seen, *self._state("viewer"), *self._maps()])
        ends = ("ends_ms", "<i8")
        self.candidate = np.dtype([*self._attributes("candidate"), ends, *self._state("candidate")])
        self.context = np.dtype(self._attributes("context"))
        layout = repr((self.viewer.descr, self.candidate.descr, self.sums, self.maps, self.presences))
        self.fingerprint = hashlib.sha256(layout.encode()).hexdigest()

    def _attributes(self, owner: str) -> list[Any]:
        code: dict[str, Any] = {"number": "<f8", "time": "<f8", "category": "<u8"}
        return [
            (name, "<u8", (f.max,)) if f.type == "set" else (name, code[f.type])
            for name, f in self.surface.fields[owner].items()
        ]

    def _state(self, entity: Entity) -> list[Any]:
        num_stated, n = len(self.stated[entity]), len(self.sums[entity])
        state = [("stated_ms", "<i8", (num_stated,)), ("sums", "<f8", (n,)), ("sums_ms", "<i8", (n,))]
        return state + presence_fields(self.presences, entity)

    def _maps(self) -> list[Any]:
        return [
            (f"map{i}_{part}", code, (m.keep,))
            for i, m in enumerate(self.maps)
            for part, code in (("keys", "<u8"), ("event", "<f8"), ("over", "<f8"), ("ms", "<i8"))
        ]

    def blank(self, entity: Entity, n: int = 1) -> PackedRows:
        """Return `n` rows with all values missing."""
        rows = np.zeros(n, self.viewer if entity == "viewer" else self.candidate)
        for name, declared in self.surface.fields[entity].items():
            if declared.type in ("number", "time"):
                rows[name] = np.nan
        rows["stated_ms"] = EVER_MS
        if entity == "candidate":
            rows["ends_ms"] = NEVER_MS
        return rows

    def context_rows(self, contexts: Sequence[Mapping[str, object]]) -> PackedRows:
        """Return `[B]` rows of the declared context fields; a field without a value is missing."""
        rows = np.zeros(len(contexts), self.context)
        for name, declared in self.surface.fields["context"].items():
            rows[name] = [encode(declared, context.get(name)) for context in contexts]
        return rows


def encode(declared: Field, value: Any) -> Any:
    """Encode a field's value for its row: a float, a hash, or the first `max` hashes, padded."""
    if declared.type in ("number", "time"):
        return np.nan if value is None else float(value)
    if declared.type == "category":
        return 0 if value is None else hash64(value)
    hashes = [hash64(v) for v in dict.fromkeys(value or ())][: declared.max]
    return hashes + [0] * (declared.max - len(hashes))


class RowTable:
    """Growing table of one entity's rows by id; row 0 stands for unknown ids."""

    def __init__(self, schema: Schema, entity: Entity) -> None:
        self.entity: Entity = entity
        self.schema = schema
        self.index: dict[str, int] = {}
        self.table = schema.blank(entity, 64)
        self.ids: list[str | None] = [None]
        self._free: list[int] = []
        self._buckets = Buckets(self.index)
        # Row numbers by the hash of the id, once they are needed.
        self._by_hash: dict[int, int] | None = None

    def __len__(self) -> int:
        return len(self.index)

    def find(self, ids: Sequence[str | None]) -> I64:
        """Return the row number of each id, 0 for an unknown id."""
        return self._buckets.find(ids)

    def find_hash(self, hashed: int) -> int:
        """Return the row number of the id with this hash, 0 for an unknown id."""
        if self._by_hash is None:
            self._by_hash = {hash64(name): row for name, row in self.index.items()}
        return self._by_hash.get(hashed, 0)

    def add(self, name: str) -> int:
        """Return the row number of an id; an unknown id gets a blank row."""
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
        if self._by_hash is not None:
            self._by_hash[hash64(name)] = row
        self._buckets.changed(name)
        return row

    def see(self, now_ms: int) -> None:
        """Keep the time at which all viewers of the table were seen, by which their rows expire."""
        seen_ms = self.table["seen_ms"][1 : len(self.ids)]
        np.maximum(seen_ms, now_ms, out=seen_ms)

    def apply(self, changed: Mapping[str, bytes]) -> None:
        """Apply the changes that a store reports: packed rows by id, b"" for a removed id.

        A row of another size is damaged, so its id is removed.
        """
        if not {0, self.table.itemsize}.issuperset(map(len, changed.values())):
            size = self.table.itemsize
            changed = {name: row if len(row) == size else b"" for name, row in changed.items()}
        put = [self.add(name) for name, packed in changed.items() if packed]
        if put:
            self.table[put] = np.frombuffer(b"".join(changed.values()), self.table.dtype)
        for name, packed in changed.items():
            if not packed:
                self.drop(name)

    def drop(self, name: str) -> None:
        """Remove an id; a later id may reuse its row."""
        row = self.index.pop(name, None)
        if row is not None:
            self.table[row] = self.table[0]
            self.ids[row] = None
            self._free.append(row)
            if self._by_hash is not None:
                del self._by_hash[hash64(name)]
            self._buckets.changed(name)


class Interactions(NamedTuple):
    """Sequence of N exposures and events in order, with no other record between them.

    An event has one candidate; an exposure is an impression of each of its candidates.

    `event` `[N]`: index in `Schema.events`. `viewer` `[N]`: row number; row 0 takes no state.
    `ts_ms` `[N]`. `lengths` `[N]`: number of candidates of each record.
    `candidates` `[P]`: row numbers.
    """

    event: I64
    viewer: I64
    ts_ms: I64
    lengths: I64
    candidates: I64

    def only(self, event: int) -> Interactions:
        """Return the records of one event."""
        chosen = self.event == event
        candidates = self.candidates[np.repeat(chosen, self.lengths)]
        return Interactions._make([*(values[chosen] for values in self[:4]), candidates])

    def parts(self) -> Iterator[Interactions]:
        """Yield parts that are fast to apply at once.

        Few records are yielded one by one, many in parts of bounded size.
        """
        num = len(self.event)
        if num == 1:
            yield self
            return
        ends = np.cumsum(self.lengths)
        cuts = np.arange(num + 1)
        if num >= MIN_RECORDS_AT_ONCE:
            changes = np.diff((ends + RECORD_COST * cuts[1:]) // MAX_CANDIDATES_AT_ONCE, prepend=0, append=-1)
            cuts = np.concatenate([[0], changes[1:].nonzero()[0] + 1])
        for begin, end in pairwise(cuts.tolist()):
            part = slice(begin, end)
            candidates = self.candidates[ends[begin] - self.lengths[begin] : ends[end - 1]]
            yield Interactions._make([*(values[part] for values in self[:4]), candidates])


class State:
    """Rows of all viewers and candidates of a surface; it changes only by records, in order."""

    def __init__(self, schema: Schema) -> None:
        self.schema = schema
        self.viewers = RowTable(schema, "viewer")
        self.candidates = RowTable(schema, "candidate")

    def forget(self, row: int) -> list[int]:
        """Make a viewer's row blank; return the rows of the candidates that the viewer leaves."""
        left = [candidate for slot in self._presences() for candidate in slot.leave(row)]
        self.viewers.table[row] = self.schema.blank("viewer")[0]
        return left

    def upsert(
        self,
        entity: Entity,
        name: str,
        fields: Mapping[str, object],
        ends_ms: int | None = None,
        *,
        ts_ms: int = EVER_MS,
        received_ms: int = NEVER_MS,
    ) -> None:
        """Set the named attributes of a viewer or candidate, unless they have a later time already.

        A stored time after `received_ms`, the arrival of this record, does not count as later: it
        comes from a wrong clock. Sums and maps do not change.
        """
        rows = self.viewers if entity == "viewer" else self.candidates
        row = rows.add(name)
        declared, stated_ms = self.schema.surface.fields[entity], rows.table["stated_ms"][row]
        end = {} if ends_ms is None else {"ends_ms": ends_ms}
        for key, value in {**fields, **end}.items():
            place = self.schema.stated[entity].index(key)
            if not ts_ms < stated_ms[place] <= received_ms:
                rows.table[key][row] = encode(declared[key], value) if key in declared else value
                stated_ms[place] = ts_ms

    def observe(self, run: Interactions) -> list[int]:
        """Apply records; the result equals that of one at a time, except for rounding of sums.

        Returns the rows of candidates that viewers left because they came to too many others.
        """
        left: list[int] = []
        for part in run.parts():
            present = set(part.event.tolist())
            for event in present:
                self._observe_sums(event, part if len(present) == 1 else part.only(event))
            self._observe_maps(present, part)
            left += self._observe_presences(present, part)
        return left

    def _observe_sums(self, event: int, run: Interactions) -> None:
        """Apply the records of one event to the sums, all at once because sums commute."""
        viewers, candidates = (effects[event] for effects in self.schema.effects.values())
        if viewers:
            viewers.add(self.viewers.table, run.viewer, run.ts_ms, run.lengths)
        if candidates:
            candidates.add(self.candidates.table, run.candidates, np.repeat(run.ts_ms, run.lengths))

    def _observe_maps(self, present: set[int], run: Interactions) -> None:
        pairs: dict[str, Pairs] = {}
        for i, m in enumerate(self.schema.maps):
            event, over = self.schema.number[m.event], self.schema.number[m.over]
            if event in present or over in present:
                field = m.field.name
                if field not in pairs:
                    pairs[field] = Pairs.of(self.candidates.table[field][run.candidates], run.lengths)
                parts = Parts.of(self.viewers.table, i)
                hit, counted = run.event == event, run.event == over
                apply_to_map(m, parts, pairs[field], run.viewer, run.ts_ms, hit, counted)

    def _observe_presences(self, present: set[int], run: Interactions) -> Iterator[int]:
        for slot, p in zip(self._presences(), self.schema.presences, strict=True):
            up, down = self.schema.number[p.up], self.schema.number[p.down]
            if up in present or down in present:
                event, viewer, ts_ms = (
                    np.repeat(values, run.lengths) for values in (run.event, run.viewer, run.ts_ms)
                )
                moves = ((event == up) | (event == down)) & (viewer > 0) & (run.candidates > 0)
                columns = (viewer, run.candidates, ts_ms, event == up)
                for who, candidate, at_ms, comes in zip(*(c[moves].tolist() for c in columns), strict=True):
                    key = hash64(self.candidates.ids[candidate] or "")
                    if left := slot.move(who, candidate, key, at_ms, comes):
                        yield left

    def _presences(self) -> list[Presences]:
        tables = self.viewers.table, self.candidates.table, self.candidates.find_hash
        return [Presences(p, i, *tables) for i, p in enumerate(self.schema.presences)]
