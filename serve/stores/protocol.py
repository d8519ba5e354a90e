"""What every store promises: packed rows of viewers and candidates and a journal, one writer and many readers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from serve.features.slots import Entity

LOAD = "`python -m serve load --log LOG`"
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


@dataclass(frozen=True)
class Dump:
    """All rows of one commit, each once, in no order: (entity, id, row), and that commit's number."""

    seq: int
    rows: Iterator[tuple[Entity, str, bytes]]


class Store(Protocol):
    """Rows by id, the number of the last record that they contain, and the journal of what led there.

    A row is opaque and never empty. An id has 1–256 characters. Every read sees one commit, whole. Each
    method raises `StoreUnavailable` when the store is closed, missing or damaged, and works again once it is
    back. Safe to call from several threads.
    """

    def seq(self) -> int:
        """The number given to the last commit; 0 before the first."""
        ...

    def read(self, ids: Sequence[str], since: int) -> tuple[list[bytes | None], Changes]:
        """The viewers and the candidates of one and the same commit, in one read.

        The rows of the viewers `ids` in their order, None for an unknown one; the candidates changed after number
        `since`, where 0 asks for all.
        """
        ...

    def journal(self, after: int, limit: int) -> list[tuple[int, bytes]]:
        """The first `limit` journal entries whose number is greater than `after`, in order."""
        ...

    def dump(self) -> AbstractContextManager[Dump]:
        """All rows of the newest commit, streamed within the `with` block; commits go on meanwhile.

        The rows are that commit's only where `rows` comes to its end: it raises `StoreUnavailable` where the store
        was replaced meanwhile, or, in some stores, another handle than this one has committed.
        """
        ...

    def take_lease(self) -> int:
        """Make this handle the one writer, durably; the epoch, one more than that of the writer before.

        Whoever held the lease finds out at its next `commit` or `trim`. Raises RuntimeError on a store
        opened for reading.
        """
        ...

    def commit(
        self,
        seq: int,
        viewers: Mapping[str, bytes],
        candidates: Mapping[str, bytes],
        *,
        replace: bool = False,
        journal: bytes = b"",
    ) -> None:
        """Write rows, number and journal entry in one step: after a crash all are there or none is.

        A row of b"" removes its id; with `replace`, so is every id that is not named. A `journal` that is not
        empty is one entry, kept under `seq` until it is trimmed: replacing the rows keeps it too, for it was
        acknowledged and may be nowhere else yet.

        Raises:
            LeaseLost: another writer took the lease; this was checked in the same step as the writing.
            ValueError: `seq` is not greater than the stored number.
            RuntimeError: the store was opened for reading, or its lease was never taken.
            StoreUnavailable: nothing was written, or the answer was lost on its way: `seq()` tells which.
        """
        ...

    def trim(self, through: int) -> None:
        """Drop the journal entries whose number is not greater than `through`; raises as `commit` does."""
        ...

    def close(self) -> None:
        """Give the store back; a second call does nothing."""
        ...
