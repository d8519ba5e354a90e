"""A kind of state: the fields of its slots in packed rows, their update by records, and their read.

`Sum` declares a slot, and `Sums` is the kind of state that keeps all sums of a surface. Rows,
batches and rebuilds find the kinds of state through the slots that a surface's features name.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from serve.features.interactions import Interactions
from serve.features.slots import ENTITIES, I64, Bools, Entity, PackedRows, Slot

# The field of a row under which all of its state is; no attribute may have this name.
STATE = "_state"
# Fields of a row as NumPy describes them, such as ("count", float64, (2,)).
Fields = list[tuple[Any, ...]]
# Names of fields and indices that lead from rows to an array with a value, or several, for each
# row.
Cell = tuple[str | int, ...]
S = TypeVar("S", bound=Slot)


class Rows(Protocol):
    """Rows of one entity. Row 0 stands for every unknown id and takes no state."""

    table: PackedRows
    ids: list[str | None]
    # Which rows have changed. Only rows of values of candidates' fields note it.
    changed: Bools

    def find_hash(self, hashed: int) -> int:
        """Return the row number of the id with this hash, 0 for an unknown id."""


class Candidates(Rows, Protocol):
    """Rows of candidates, and by field the rows of its values."""

    # By field: the row of each candidate's value, 0 for a candidate without a value.
    value_of: dict[str, I64]

    @property
    def values(self) -> Mapping[str, Rows]:
        """The tables of values."""


class StateKind(ABC, Generic[S]):
    """All slots of some types in the state of a surface; `numbers` are the indices of its events.

    A subclass names the types, `of=(Sum,)`, and defines `fields`, `observe`, and a `read` for its
    features. By default each slot has a column of its own.
    """

    registry: ClassVar[dict[type[Slot], type[StateKind[Any]]]] = {}

    def __init_subclass__(cls, *, of: tuple[type[Slot], ...]) -> None:
        assert cls.registry.keys().isdisjoint(of), f"two kinds of state keep one of {of}"
        cls.registry |= dict.fromkeys(of, cls)

    def __init__(self, slots: Sequence[S], numbers: Mapping[str, int]) -> None:
        self.slots = tuple(slots)
        self.numbers = numbers
        self._columns = {slot: f"{type(slot).__name__.lower()}{i}" for i, slot in enumerate(slots)}

    @abstractmethod
    def fields(self, slot: S, entity: Entity) -> Fields:
        """Return the fields that a slot has in a row of this entity; they are 0 at first.

        Each field must begin at a multiple of eight bytes, because NumPy reads others slowly.
        """

    @property
    def entities(self) -> Iterable[Entity]:
        """The entities whose rows may have fields of these slots."""
        return ENTITIES

    @abstractmethod
    def observe(self, viewers: Rows, candidates: Candidates, run: Interactions) -> Iterable[int]:
        """Apply records; return the rows of candidates that changed but are named by no record."""

    def forget(self, viewers: Rows, candidates: Candidates, viewer: int) -> Iterable[int]:
        """Remove from candidates' rows what a viewer contributes, and return these rows."""
        return ()

    def columns(self, entity: Entity) -> Fields:
        """Return the columns of all slots in a row of this entity."""
        described = ((self._columns[slot], self.fields(slot, entity)) for slot in self.slots)
        return [(name, fields) for name, fields in described if fields]

    def cells(self, slot: S, entity: Entity) -> list[Cell]:
        """Return where a slot is in the columns of this entity."""
        return [(self._columns[slot],)] if self.fields(slot, entity) else []

    def of(self, rows: PackedRows, slot: S) -> PackedRows:
        """Return a view of a slot's fields in rows of an entity that has them."""
        column: PackedRows = rows[STATE][self._columns[slot]]
        return column
