"""What every store promises: packed rows of viewers and candidates, one writer and many readers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

MAX_REMOVED = 10_000
"""Removed candidates that a store remembers. Past this it forgets the oldest down to half, but none of the
newest commit; a reader that had not yet seen a forgotten removal is told to start again (see `Changes`)."""


@dataclass(frozen=True)
class Changes:
    """The candidates whose row changed after the number that was asked for, oldest change first.

    `rows` maps an id to its newest row; b"" says that the candidate was removed. `seq` is the store's number
    at that read: ask with it the next time.

    `seq` is **below the number asked for** (it is 0, and `rows` is empty) when the store cannot answer from
    there: it was replaced, or no longer remembers so far back. Then drop every row held and ask from 0.
    """

    seq: int
    rows: dict[str, bytes]


class Store(Protocol):
    """Rows by id, and the number of the last record that they contain.

    A row is opaque and never empty. An id has 1–256 characters. Every read sees one commit, whole. Each
    method raises `StoreUnavailable` when the store is closed, missing or damaged, and works again once it is
    back. Safe to call from several threads.
    """

    def seq(self) -> int:
        """The number given to the last commit; 0 before the first."""
        ...

    def viewers(self, ids: Sequence[str]) -> list[bytes | None]:
        """The rows of `ids` in their order, None for an unknown one; one read for the whole batch."""
        ...

    def changes(self, since: int) -> Changes:
        """The candidates changed after number `since`; 0 asks for all."""
        ...

    def commit(
        self,
        seq: int,
        viewers: Mapping[str, bytes],
        candidates: Mapping[str, bytes],
        *,
        replace: bool = False,
    ) -> None:
        """Write rows and number in one step: after a crash both are there or neither is.

        A row of b"" removes its id; with `replace`, so is every id that is not named. Raises ValueError when
        `seq` is not greater than the stored number, and RuntimeError on a store opened for reading.
        """
        ...

    def close(self) -> None:
        """Give the store back; a second call does nothing."""
        ...
