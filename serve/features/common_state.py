"""State that two surfaces have in common: attributes and slots equal by name and options."""

from __future__ import annotations

from collections.abc import Iterator
from types import EllipsisType

from serve.features.affinity_maps import Parts
from serve.features.definitions import Kind
from serve.features.presences import presence_fields
from serve.features.rows import Schema
from serve.features.slots import Entity, FieldRef, Map, Slot, Sum

# A column of a row, and the place in it; `...` means the whole column.
Cell = tuple[str, int | EllipsisType]


def common_cells(new: Schema, old: Schema, entity: Entity) -> Iterator[tuple[Cell, Cell]]:
    """Yield pairs of cells, of an entity's rows of `new` and of `old`, with the same meaning."""
    if entity == "viewer":
        yield ("seen_ms", ...), ("seen_ms", ...)
    for place, name in enumerate(new.stated[entity]):
        if name == "ends_ms" or _is_same_field(FieldRef(entity, name), new, old):
            yield (name, ...), (name, ...)
            yield ("stated_ms", place), ("stated_ms", old.stated[entity].index(name))
    for slot in new.place:
        if _is_same_slot(slot, new, old):
            places = (schema.place[slot] for schema in (new, old))
            yield from zip(*(_cells(slot, place, entity) for place in places), strict=True)


def is_common(kind: Kind, new: Schema, old: Schema) -> bool:
    """Return whether all that a feature of `new` reads is in both states."""
    fields = [ref for ref in vars(kind).values() if isinstance(ref, FieldRef) and ref.owner != "context"]
    return all(_is_same_field(ref, new, old) for ref in fields) and all(
        _is_same_slot(slot, new, old) for slot in kind.slots
    )


def _is_same_field(ref: FieldRef, new: Schema, old: Schema) -> bool:
    ours, theirs = (schema.surface.fields[ref.owner].get(ref.name) for schema in (new, old))
    return bool(ours and theirs and (ours.type, ours.max) == (theirs.type, theirs.max))


def _is_same_slot(slot: Slot, new: Schema, old: Schema) -> bool:
    return slot in old.place and not (isinstance(slot, Map) and not _is_same_field(slot.field, new, old))


def _cells(slot: Slot, place: int, entity: Entity) -> list[Cell]:
    if isinstance(slot, Sum):
        return [(name, place) for name in ("sums", "sums_ms") if slot.entity == entity]
    if isinstance(slot, Map):
        return [(f"map{place}_{part}", ...) for part in Parts._fields if entity == "viewer"]
    names = [name.removeprefix("presence0") for name, *_ in presence_fields((slot,), entity)]
    return [(f"presence{place}{name}", ...) for name in names]
