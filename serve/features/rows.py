"""State: packed rows of viewers and candidates, and the one way in which records change them.

A row is a NumPy record; its bytes are what a store keeps. Row 0 is nobody: all missing, never changed, and
what an unknown id is scored on.
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
from serve.features.slots import I64, IMPRESSION, Entity, Map, Record, Slot, Sum
from serve.features.surface import Field, Surface

WORTH_A_ROUND = 16  # records: fewer are quicker one by one, most being of one viewer
AT_ONCE = 1 << 14  # candidates, and RECORD for each record: what is built of them stays within some MB
RECORD = 32
EVER_MS = np.iinfo(np.int64).min  # the time of an attribute that has held since ever
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
        self.events = tuple(dict.fromkeys((IMPRESSION, *surface.events)))
        self.number = {event: number for number, event in enumerate(self.events)}
        self.effects = {
            entity: [Effect.of(event, sums) for event in self.events] for entity, sums in self.sums.items()
        }
        # Attributes in the order of their times in `stated_ms`; a candidate's end is one of them.
        self.stated: dict[Entity, tuple[str, ...]] = {
            "viewer": tuple(surface.fields["viewer"]),
            "candidate": (*surface.fields["candidate"], "ends_ms"),
        }
        self.viewer = np.dtype(
            [*self._attributes("viewer"), self._stated("viewer"), *self._sums("viewer"), *self._maps()]
        )
        self.candidate = np.dtype(
            [
                *self._attributes("candidate"),
                ("ends_ms", "<i8"),
                self._stated("candidate"),
                *self._sums("candidate"),
            ]
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

    def _stated(self, entity: Entity) -> Any:
        return "stated_ms", "<i8", (len(self.stated[entity]),)

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
        rows["stated_ms"] = EVER_MS
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
        """Take what a store says has changed: packed rows by id, b"" for an id that is gone.

        A row of another size is damaged; its id counts as gone, and no other row is mistaken for it.
        """
        if not {0, self.table.itemsize}.issuperset(map(len, changed.values())):
            changed = {name: row if self.is_sound(row) else b"" for name, row in changed.items()}
        put = [self.add(name) for name, packed in changed.items() if packed]
        if put:
            self.table[put] = np.frombuffer(b"".join(changed.values()), self.table.dtype)
        for name, packed in changed.items():
            if not packed:
                self.drop(name)

    def is_sound(self, packed: bytes) -> bool:
        """Whether it can be a row: what was damaged may have another size."""
        return len(packed) == self.table.itemsize

    def drop(self, name: str) -> None:
        """Forget an id; another may get its row."""
        row = self.index.pop(name, None)
        if row is not None:
            self.table[row] = self.schema.blank(self.entity)[0]
            self.ids[row] = None
            self._free.append(row)
            self._buckets.changed(name)


class Run(NamedTuple):
    """N exposures and events in their order, with nothing else between them.

    An event has one candidate; an exposure is an impression of each of its own.
    """

    event: I64  # [N], its number in `Schema.events`
    viewer: I64  # [N], row numbers; row 0 takes no state
    ts_ms: I64  # [N]
    lengths: I64  # [N], how many of `candidates` each has
    candidates: I64  # [P], row numbers

    def only(self, event: int) -> Run:
        """Its records of one event."""
        chosen = self.event == event
        candidates = self.candidates[np.repeat(chosen, self.lengths)]
        return Run(
            self.event[chosen], self.viewer[chosen], self.ts_ms[chosen], self.lengths[chosen], candidates
        )

    def parts(self) -> Iterator[Run]:
        """It in the parts that are quick to apply at once: few records one by one, very many in some parts."""
        num = len(self.event)
        if num == 1:
            yield self
            return
        ends = np.cumsum(self.lengths)
        cuts = np.arange(num + 1)
        if num >= WORTH_A_ROUND:
            changes = np.diff((ends + RECORD * cuts[1:]) // AT_ONCE, prepend=0, append=-1)
            cuts = np.concatenate([[0], changes[1:].nonzero()[0] + 1])
        for begin, end in pairwise(cuts.tolist()):
            part = slice(begin, end)
            candidates = self.candidates[ends[begin] - self.lengths[begin] : ends[end - 1]]
            yield Run(self.event[part], self.viewer[part], self.ts_ms[part], self.lengths[part], candidates)


class State:
    """All viewers and candidates of a surface. Records are applied in order; nothing else changes it."""

    def __init__(self, schema: Schema) -> None:
        self.schema = schema
        self.viewers = Rows(schema, "viewer")
        self.candidates = Rows(schema, "candidate")

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
        """Set the named attributes of a viewer or candidate, but those that were stated of a later time.

        A time after `received_ms`, when the record came, does not count as later: the clock was wrong then.
        Sums and maps stay.
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

    def observe(self, run: Run) -> None:
        """Apply records. Any number at once leaves what one by one would, but for the sums' rounding."""
        for part in run.parts():
            present = set(part.event.tolist())
            for event in present:
                self._observe_sums(event, part if len(present) == 1 else part.only(event))
            self._observe_maps(present, part)

    def _observe_sums(self, event: int, run: Run) -> None:
        """Sums commute, so all records of an event go at once."""
        viewers, candidates = (effects[event] for effects in self.schema.effects.values())
        if viewers:
            viewers.add(self.viewers.table, run.viewer, run.ts_ms, run.lengths)
        if candidates:
            candidates.add(self.candidates.table, run.candidates, np.repeat(run.ts_ms, run.lengths))

    def _observe_maps(self, present: set[int], run: Run) -> None:
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
