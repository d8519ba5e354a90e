"""State of a surface: packed rows of viewers and candidates, and how records change them.

A row is a NumPy record; stores keep its bytes. Row 0 stands for every unknown id: all its values
are missing, and it never changes.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from serve.contract.hashing import hash64
from serve.contract.rankings import VALUE
from serve.features.field_types import TYPES
from serve.features.id_index import Buckets
from serve.features.interactions import Interactions
from serve.features.slots import (
    CANDIDATE_ID,
    ENTITIES,
    I64,
    IMPRESSION,
    U64,
    Bools,
    Entity,
    PackedRows,
    Slot,
    Values,
    field_of_key,
    field_refs,
    value_key,
)
from serve.features.state_kind import STATE, StateKind
from serve.features.surface import Field, Surface

T = TypeVar("T")
# Time of an attribute that has no time of its own. Every other time is later.
EVER_MS = np.iinfo(np.int64).min
# End of a candidate whose end is not known.
NEVER_MS = np.iinfo(np.int64).max


class Schema:
    """Layout of a surface's rows, and the kinds of state in them."""

    def __init__(self, surface: Surface) -> None:
        self.surface = surface
        self.events = tuple(dict.fromkeys((IMPRESSION, *surface.events)))
        self.number = {event: number for number, event in enumerate(self.events)}
        by_kind: defaultdict[type[StateKind[Any]], list[Slot]] = defaultdict(list)
        for slot in dict.fromkeys(slot for kind in surface.features.values() for slot in kind.slots):
            by_kind[StateKind.registry[type(slot)]].append(slot)
        self.state: dict[type, StateKind[Any]] = {
            kind: kind(slots, self.number) for kind, slots in by_kind.items()
        }
        self.kept_by = {slot: kind for kind in self.state.values() for slot in kind.slots}
        entities = dict.fromkeys(entity for kind in self.state.values() for entity in kind.entities)
        refs = (ref for slot in self.kept_by for ref in field_refs(slot))
        keeps_id = str(CANDIDATE_ID) in entities or CANDIDATE_ID in refs
        # Attributes in the order of their times in `stated_ms`, the candidate's end included.
        self.stated: dict[Entity, tuple[str, ...]] = {
            "viewer": tuple(surface.fields["viewer"]),
            "candidate": (*surface.fields["candidate"], "ends_ms"),
        }
        seen, ends = ("seen_ms", "<i8"), ("ends_ms", "<i8")
        self.viewer = np.dtype([*self._attributes("viewer"), seen, *self._state("viewer")])
        id_hash = [(CANDIDATE_ID.name, "<u8")] * keeps_id
        self.candidate = np.dtype([*self._attributes("candidate"), *id_hash, ends, *self._state("candidate")])
        self.context = np.dtype(self._attributes("context"))
        # The layout of a value's row, by field. Only fields of candidates for whose values the
        # state counts have one.
        counted = [entity.removeprefix("candidate.") for entity in entities if entity not in ENTITIES]
        self.values = {field: np.dtype(self._state(f"candidate.{field}")) for field in counted}
        layout = repr((self.viewer.descr, self.candidate.descr, list(self.kept_by)))
        self.fingerprint = hashlib.sha256(layout.encode()).hexdigest()

    def kept(self, kind: type[T]) -> T:
        """Return the kind of state of this class."""
        found: T = self.state[kind]  # type: ignore[assignment]
        return found

    def _attributes(self, owner: str) -> list[Any]:
        fields = self.surface.fields[owner]
        return [TYPES[declared.type].column(name, declared.max) for name, declared in fields.items()]

    def _state(self, entity: Entity) -> list[Any]:
        columns = [column for kind in self.state.values() for column in kind.columns(entity)]
        if entity not in ENTITIES:
            return [(STATE, columns)]
        stated = ("stated_ms", "<i8", (len(self.stated[entity]),))
        return [stated, (STATE, columns)] if columns else [stated]

    def layout(self, entity: Entity) -> np.dtype[np.void]:
        """Return the layout of an entity's row."""
        if entity not in ENTITIES:
            return self.values[entity.removeprefix("candidate.")]
        return self.viewer if entity == "viewer" else self.candidate

    def blank(self, entity: Entity, n: int = 1) -> PackedRows:
        """Return `n` rows with all values missing."""
        rows = np.zeros(n, self.layout(entity))
        if entity not in ENTITIES:
            return rows
        for name, declared in self.surface.fields[entity].items():
            rows[name] = TYPES[declared.type].blank
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
    """Encode a field's plain value for its row."""
    return TYPES[declared.type].encode(value, declared.max)


class RowTable:
    """Growing table of one entity's rows by id; row 0 stands for unknown ids."""

    def __init__(self, schema: Schema, entity: Entity) -> None:
        self.entity: Entity = entity
        self.schema = schema
        self.index: dict[str, int] = {}
        self.table = schema.blank(entity, 64)
        # Which rows kinds of state have changed. Only tables of values use it.
        self.changed: Bools = np.zeros(len(self.table), bool)
        self.ids: list[str | None] = [None]
        self._free: list[int] = []
        self._buckets = Buckets(self.index)
        # Row numbers by the hash of the id; built once they are needed.
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
                self.changed = np.append(self.changed, np.zeros(row, bool))
        self.index[name] = row
        if self._by_hash is not None:
            self._by_hash[hash64(name)] = row
        self._buckets.changed(name)
        return row

    def see(self, now_ms: int) -> None:
        """Note that all viewers of the table were seen now; their rows expire by this time."""
        seen_ms = self.table["seen_ms"][1 : len(self.ids)]
        np.maximum(seen_ms, now_ms, out=seen_ms)

    def apply(self, changed: Mapping[str, bytes]) -> None:
        """Apply the changes that a store reports: packed rows by id, b"" for a removed id.

        A row that has another size than the layout is damaged, so its id is removed.
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


class CandidateRows(RowTable):
    """Rows of candidates, and of those of their fields' values for which the state counts.

    For example, the state may count the joins of each host. `values` then has a table of hosts,
    under the name of the field, with the keys of `value_key`. `value_of` has the row in this table
    of each candidate's host, 0 for a candidate without a host.

    A value stays in its table when no candidate has it any more. A caller may take it out then, and
    must bring it back before a candidate has it again.

    A kind with wide state that few records change keeps it under the candidate's id, as if the id
    were such a field. This state ends with the candidate.
    """

    def __init__(self, schema: Schema) -> None:
        super().__init__(schema, "candidate")
        self.values = {field: RowTable(schema, f"candidate.{field}") for field in schema.values}
        self.value_of: dict[str, I64] = {field: np.zeros(len(self.table), np.int64) for field in self.values}
        self._hashes: dict[str, U64] = {field: np.zeros(len(self.table), np.uint64) for field in self.values}
        # By field: how many candidates have the value of a row.
        self._holders: dict[str, Counter[int]] = {field: Counter() for field in self.values}
        self._keeps_id = CANDIDATE_ID.name in (schema.candidate.names or ())

    def add(self, name: str) -> int:
        """Return the row number of an id, as `RowTable.add` does; the caller must `link` it."""
        is_new = self._keeps_id and name not in self.index
        row = super().add(name)
        if is_new:
            self.table[CANDIDATE_ID.name][row] = hash64(name)
        return row

    def link(self, rows: I64) -> None:
        """Link rows to the values that their fields have now; `rows` names each row once."""
        for field, values in self.values.items():
            if more := len(self.table) - len(self._hashes[field]):
                self._hashes[field] = np.append(self._hashes[field], np.zeros(more, np.uint64))
                self.value_of[field] = np.append(self.value_of[field], np.zeros(more, np.int64))
            hashes, value_of = self._hashes[field], self.value_of[field]
            at = rows[self.table[field][rows] != hashes[rows]]
            if not len(at):
                continue
            old, now = value_of[at], self.table[field][at]
            new = [values.add(value_key(field, hashed)) if hashed else 0 for hashed in now.tolist()]
            hashes[at], value_of[at] = now, new
            self._holders[field].update(new)
            self._holders[field].subtract(old.tolist())
            if field == CANDIDATE_ID.name:
                values.table[old] = values.table[0]
            values.changed[old] = values.changed[new] = True

    def absent(self, fields: Mapping[str, Any]) -> list[str]:
        """Return the keys of a candidate's values that have no row here."""
        keys = {field: value_key(field, hash64(fields[field])) for field in self.values if fields.get(field)}
        return [key for field, key in keys.items() if key not in self.values[field].index]

    def bring(self, key: str, packed: bytes) -> None:
        """Put the row of a value back that the caller had taken out."""
        values = self.values[field_of_key(key)]
        values.apply({key: packed})
        values.changed[values.index.get(key, 0)] = True

    def is_held(self, field: str, row: int) -> bool:
        """Return True if a candidate has the value of this row."""
        return self._holders[field][row] > 0

    def take_changed(self, field: str) -> list[int]:
        """Return the rows of values that were changed, added or removed since the last call."""
        changed = self.values[field].changed
        changed[0] = False
        rows: list[int] = changed.nonzero()[0].tolist()
        changed[rows] = False
        return rows

    def values_of(self, rows: I64) -> Values:
        """Return the values `[R]` of the candidates in these rows."""
        return {field: (of.table, self.value_of[field].take(rows)) for field, of in self.values.items()}

    def apply(self, changed: Mapping[str, bytes]) -> None:
        """Apply the changes that a store reports, those of values included."""
        if not self.values or not changed:
            super().apply(changed)
            return
        parts: defaultdict[str, dict[str, bytes]] = defaultdict(dict)
        for name, packed in changed.items():
            parts[field_of_key(name) if name[0] == VALUE else ""][name] = packed
        super().apply(parts[""])
        self.link(self.find(list(parts[""])))
        for field, values in self.values.items():
            values.apply(parts[field])
            # The store has these changes already.
            values.changed[:] = False

    def drop(self, name: str) -> None:
        """Remove an id; a later id may reuse its row."""
        row = self.index.get(name, 0)
        super().drop(name)
        if self.values:
            self.link(np.array([row]))


class State:
    """Rows of all viewers and candidates of a surface; only records change them, in order."""

    def __init__(self, schema: Schema) -> None:
        self.schema = schema
        self.viewers = RowTable(schema, "viewer")
        self.candidates = CandidateRows(schema)

    def rows(self, entity: Entity) -> RowTable:
        """Return the rows of an entity."""
        if entity not in ENTITIES:
            return self.candidates.values[entity.removeprefix("candidate.")]
        return self.viewers if entity == "viewer" else self.candidates

    def forget(self, name: str) -> list[int]:
        """Make a viewer's row blank; return the rows of candidates that this changes.

        `name` may also be the key of a field's value. Its row is blanked unless a candidate has the
        value.
        """
        left: list[int] = []
        if row := self.viewers.index.get(name):
            for kind in self.schema.state.values():
                left += kind.forget(self.viewers, self.candidates, row)
            self.viewers.table[row] = self.viewers.table[0]
        field = field_of_key(name)
        values = self.candidates.values.get(field)
        if values and (row := values.index.get(name)) and not self.candidates.is_held(field, row):
            values.table[row] = values.table[0]
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
        comes from a wrong clock. State that features keep does not change.
        """
        rows = self.rows(entity)
        row = rows.add(name)
        declared, stated_ms = self.schema.surface.fields[entity], rows.table["stated_ms"][row]
        end = {} if ends_ms is None else {"ends_ms": ends_ms}
        for key, value in {**fields, **end}.items():
            place = self.schema.stated[entity].index(key)
            if not ts_ms < stated_ms[place] <= received_ms:
                rows.table[key][row] = encode(declared[key], value) if key in declared else value
                stated_ms[place] = ts_ms
        if entity == "candidate" and self.candidates.values:
            self.candidates.link(np.array([row]))

    def observe(self, run: Interactions) -> list[int]:
        """Apply records at once; the result is as if one after the other, but for rounding of sums.

        Return the rows of candidates that changed although no record names them.
        """
        left: list[int] = []
        for part in run.parts():
            for kind in self.schema.state.values():
                left += kind.observe(self.viewers, self.candidates, part)
        return left
