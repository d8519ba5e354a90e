"""Types that surface, state and feature kinds share: arrays, fields, and the slots of state that kinds keep."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

I64 = NDArray[np.int64]
Record = NDArray[np.void]
F64 = NDArray[np.float64]
U64 = NDArray[np.uint64]
Entity = Literal["viewer", "candidate"]
IMPRESSION = "impression"  # the event that every surface has


@dataclass(frozen=True)
class FieldRef:
    """A declared field: `viewer.language`, `candidate.topic`, `context.hour`."""

    owner: str
    name: str

    def __str__(self) -> str:
        return f"{self.owner}.{self.name}"


@dataclass(frozen=True)
class Sum:
    """State: for each viewer or candidate, a sum of weighted events that halves every `half_life_ms`."""

    entity: Entity
    weights: tuple[tuple[str, float], ...]
    half_life_ms: float = np.inf


@dataclass(frozen=True)
class Map:
    """State: for each viewer, decayed `event` and `over` sums by the value of a candidate's field.

    Holds `keep` entries. To make room, the one with the least `event` goes, then the least `over`, both decayed
    to a common time, then by key; but never one that this record's own event touches, or a viewer with a full
    map could take to nothing new. The rule needs no clock, so a replay evicts as the service did.
    """

    event: str
    over: str
    field: FieldRef
    half_life_ms: float
    keep: int


Slot = Sum | Map
