"""Types that surface, state and feature kinds share: arrays, field references, slots of state."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]
Bools = NDArray[np.bool_]
PackedRows = NDArray[np.void]
F64 = NDArray[np.float64]
U64 = NDArray[np.uint64]
Entity = Literal["viewer", "candidate"]
ENTITIES: tuple[Entity, ...] = ("viewer", "candidate")
# The owners of fields.
OWNERS = ("viewer", "candidate", "context")
# The event that every surface has.
IMPRESSION = "impression"
# Candidates at which a viewer is counted at once.
PLACES = 8
# Steps of `Presence.max_stay_ms` in which a stay ends. `STEPS` + 1 numbers of four bytes leave the
# fields of a row aligned to eight bytes, without which NumPy reads all of them slowly.
STEPS = 7


@dataclass(frozen=True)
class FieldRef:
    """Reference to a declared field, such as `viewer.language` or `context.hour`."""

    owner: str
    name: str

    def __str__(self) -> str:
        return f"{self.owner}.{self.name}"


@dataclass(frozen=True)
class Sum:
    """Slot of state: the number of a viewer's or candidate's events, with a half-life."""

    entity: Entity
    event: str
    half_life_ms: float = np.inf


@dataclass(frozen=True)
class Map:
    """Slot of state: a viewer's decayed `event` and `over` sums by value of a candidate's field.

    A map holds `keep` entries. It evicts the entry with the least `event`, then the least `over`
    (both decayed to a common time), then the greatest key. An entry that the record's own `event`
    touches is never evicted: otherwise a full map could not learn new values. The rule does not
    read a clock, so a replay evicts the same entries as the service did.
    """

    event: str
    over: str
    field: FieldRef
    half_life_ms: float
    keep: int


@dataclass(frozen=True)
class Presence:
    """Slot of state: which known viewers are at which candidates, from `up` until `down`.

    Of two records of a viewer and a candidate the one with the later time holds; of equal times,
    the one that comes later. A viewer is kept for `PLACES` candidates: a further `up` ends the stay
    that began first, and takes the place of a stay that has ended, if there is one. A stay ends
    `max_stay_ms` after its last `up`, or up to a step earlier. A removed candidate that is added
    again has no viewers until the next `up`.

    A time over seven stays ahead of the next record's, from a wrong clock, does not count: one such
    viewer hides those who came before from a candidate's number, and the next `up` mends it. Two
    or more hide those who come until the clock has reached them.
    """

    up: str
    down: str
    max_stay_ms: float

    @property
    def step_ms(self) -> int:
        """Return the resolution of the time at which a stay ends."""
        return max(1, int(self.max_stay_ms) // STEPS)


Slot = Sum | Map | Presence
