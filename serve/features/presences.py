"""Updates of which viewers are at which candidates; `slots.Presence` states the rule.

A viewer's row holds the newest record of each of some candidates, as a `mark`: 2 · ts_ms, plus 1
if the viewer was there after it. A candidate's row holds the newest step in which a viewer came,
and how many viewers are left 0, 1, … and `STEPS` steps after it, so that readers look up a number.
A count that begins at 0, for example of a removed candidate that was added again, gets a number,
its `life`. A viewer keeps the life of the count that it is in, and takes nothing from another one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serve.features.slots import I64, PLACES, STEPS, U64, Entity, PackedRows, Presence

# A time this many steps ahead of a later record's comes from a wrong clock.
FAR = STEPS * STEPS
# Numbers of counts, by the time of their first viewer. A prime: times are often multiples of 1,000.
LIVES = 65_521


def presence_fields(slots: Sequence[Presence], entity: Entity) -> list[Any]:
    """Return the fields of these slots in a row."""
    viewer = (("keys", "<u8", (PLACES,)), ("marks", "<i8", (PLACES,)), ("lives", "<u2", (PLACES,)))
    candidate = (("newest", "<i8", ()), ("left", "<i4", (STEPS + 1,)), ("life", "<i8", ()))
    parts = viewer if entity == "viewer" else candidate
    return [(f"presence{i}_{name}", *kind) for i in range(len(slots)) for name, *kind in parts]


class Presences:
    """One slot of state in the tables of viewers and candidates.

    `find` returns the row of a candidate by the hash of its id, 0 for an unknown one.
    """

    def __init__(
        self, slot: Presence, i: int, viewers: PackedRows, candidates: PackedRows, find: Callable[[int], int]
    ) -> None:
        self._step_ms = slot.step_ms
        self._keys: U64 = viewers[f"presence{i}_keys"]
        self._marks: I64 = viewers[f"presence{i}_marks"]
        self._lives: NDArray[np.uint16] = viewers[f"presence{i}_lives"]
        self._newest: I64 = candidates[f"presence{i}_newest"]
        self._left: NDArray[np.int32] = candidates[f"presence{i}_left"]
        self._life: I64 = candidates[f"presence{i}_life"]
        self._find = find

    def move(self, viewer: int, candidate: int, key: int, ts_ms: int, comes: bool) -> int:
        """Apply one record; return the row of another candidate that the viewer left, or 0."""
        keys, marks = self._keys[viewer].tolist(), self._marks[viewer].tolist()
        mark = 2 * ts_ms + comes
        if key in keys:
            at = keys.index(key)
            is_late = 0 < (marks[at] >> 1) - ts_ms < FAR * self._step_ms
        else:
            at = min(range(len(marks)), key=lambda place: (marks[place] & 1, marks[place]))
            is_late = marks[at] & 1 and not (comes and mark >= marks[at])
        if is_late:
            return 0
        left = self._find(keys[at]) if marks[at] & 1 and keys[at] != key else 0
        if marks[at] & 1:
            self._drop(candidate if keys[at] == key else left, marks[at], self._lives[viewer, at])
        if comes:
            self._lives[viewer, at] = self._add(candidate, ts_ms)
        self._keys[viewer, at], self._marks[viewer, at] = key, mark
        return left

    def leave(self, viewer: int) -> list[int]:
        """Take a viewer out of all candidates, and return their rows."""
        there = self._marks[viewer] & 1 > 0
        left = [self._find(key) for key in self._keys[viewer][there].tolist()]
        for stay in zip(left, self._marks[viewer][there].tolist(), self._lives[viewer][there], strict=True):
            self._drop(*stay)
        return left

    def _add(self, candidate: int, ts_ms: int) -> int:
        """Count a viewer from this time on; return the life of the count."""
        step, newest = ts_ms // self._step_ms, int(self._newest[candidate])
        left, moved = self._left[candidate].tolist(), abs(step - newest)
        # A single viewer who is far ahead of the next came at a wrong time.
        if step > newest or (moved >= FAR and left[0] < 2):
            left = left[moved:] + [0] * min(moved, STEPS + 1)
            self._newest[candidate] = newest = step
        if not left[0]:
            self._life[candidate] = ts_ms % LIVES + 1
        self._change(candidate, left, STEPS + step - newest, 1)
        return int(self._life[candidate])

    def _drop(self, candidate: int, mark: int, life: int) -> None:
        """Count a viewer with this mark no longer, if the count has this life."""
        if life == self._life[candidate]:
            left, newest = self._left[candidate].tolist(), int(self._newest[candidate])
            self._change(candidate, left, STEPS + (mark >> 1) // self._step_ms - newest, -1)

    def _change(self, candidate: int, left: list[int], end: int, by: int) -> None:
        """Change the numbers of the first `end` steps, in which the viewer is still there."""
        # Two counts have the same life by chance with a probability of 1.5e-5: stay above 0.
        if 0 < end <= STEPS and (by > 0 or left[end - 1] > left[end]):
            self._left[candidate] = [number + by for number in left[:end]] + left[end:]
