"""Types that surface, state and feature kinds share: arrays, field references, slots of state."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from serve.contract.rankings import VALUE

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]
Bools = NDArray[np.bool_]
PackedRows = NDArray[np.void]
F64 = NDArray[np.float64]
U64 = NDArray[np.uint64]
# What has a row of state: "viewer", "candidate", or "candidate.FIELD". The last one stands for the
# values of that field: all candidates that have a value, such as a host, share its row.
Entity = str
ENTITIES: tuple[Entity, ...] = ("viewer", "candidate")
# The owners of fields.
OWNERS = ("viewer", "candidate", "context")
# The event that every surface has.
IMPRESSION = "impression"


@dataclass(frozen=True)
class FieldRef:
    """Reference to a declared field, such as `viewer.language` or `context.hour`."""

    owner: str
    name: str

    def __str__(self) -> str:
        return f"{self.owner}.{self.name}"


# By field of candidates: the table of its values, and the row there of each candidate's value
# `[R]`.
Values = Mapping[str, tuple[PackedRows, I64]]
# Stands for a candidate's id as if it were a field. A candidate's row has its hash if a slot reads
# it.
CANDIDATE_ID = FieldRef("candidate", "id")


def value_key(field: str, hashed: int) -> str:
    """Return the key of the row of a field's value with this hash; see `VALUE`."""
    return f"{VALUE}{field}={hashed:016x}"


def field_of_key(key: str) -> str:
    """Return the field of which `value_key` made this key."""
    return key[1:].rpartition("=")[0]


@dataclass(frozen=True)
class Slot:
    """Declaration of state that a feature needs; features with equal slots share the state.

    A subclass has the options that tell one slot from another, such as event and half-life.
    """

    # True if the state of candidates loses what a viewer did who is forgotten.
    forgets: ClassVar[bool] = False


def field_refs(options: object) -> Iterator[FieldRef]:
    """Yield the declared fields that a feature or a slot names in its options."""
    return (value for value in vars(options).values() if isinstance(value, FieldRef))
