"""State that two surfaces have in common: attributes and slots equal by name and options."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from numpy.typing import NDArray

from serve.features.kind import Kind
from serve.features.rows import Schema
from serve.features.slots import CANDIDATE_ID, Entity, FieldRef, PackedRows, Slot, field_refs
from serve.features.state_kind import STATE, Cell


def common_cells(new: Schema, old: Schema, entity: Entity) -> Iterator[tuple[Cell, Cell]]:
    """Yield pairs of cells, of an entity's rows of `new` and of `old`, with the same meaning."""
    if entity == "viewer":
        yield ("seen_ms",), ("seen_ms",)
    for place, name in enumerate(new.stated.get(entity, ())):
        if name == "ends_ms" or _is_same_field(FieldRef(entity, name), new, old):
            yield (name,), (name,)
            yield ("stated_ms", place), ("stated_ms", old.stated[entity].index(name))
    for slot, kept in new.kept_by.items():
        if _is_same_slot(slot, new, old):
            pairs = zip(kept.cells(slot, entity), old.kept_by[slot].cells(slot, entity), strict=True)
            yield from (((STATE, *ours), (STATE, *theirs)) for ours, theirs in pairs)


def is_common(kind: Kind, new: Schema, old: Schema) -> bool:
    """Return True if both states have all that a feature of `new` reads."""
    are_fields = all(_is_same_field(ref, new, old) for ref in field_refs(kind) if ref.owner != "context")
    return are_fields and all(_is_same_slot(slot, new, old) for slot in kind.slots)


def _is_same_field(ref: FieldRef, new: Schema, old: Schema) -> bool:
    if ref == CANDIDATE_ID:
        return True
    ours, theirs = (schema.surface.fields[ref.owner].get(ref.name) for schema in (new, old))
    return bool(ours and theirs and (ours.type, ours.max) == (theirs.type, theirs.max))


def _is_same_slot(slot: Slot, new: Schema, old: Schema) -> bool:
    return slot in old.kept_by and all(_is_same_field(ref, new, old) for ref in field_refs(slot))


def view(rows: PackedRows, cell: Cell) -> NDArray[Any]:
    """Return a view of one cell, which has a value or an array for each row."""
    found: NDArray[Any] = rows
    for step in cell:
        found = found[step] if isinstance(step, str) else found[:, step]
    return found
