"""Store protocol: packed rows of viewers and candidates, and a journal.

A store has one writer and many readers.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol

from serve.features.slots import Entity

LOAD = "`python -m serve load --log LOG`"
# Packed rows by id.
Packed = Mapping[str, bytes]


def shown(url: str) -> str:
    """Return the address for messages: without user, password and options."""
    return url if url.startswith("lmdb:") else re.sub(r":(//)?.*@", r":\1", url).partition("?")[0]


def encoded(id_: str) -> bytes:
    """Return the bytes of an id, which need not be valid Unicode."""
    return id_.encode("utf-8", "surrogatepass")


def decoded(raw: bytes) -> str:
    """Return the id that these bytes encode."""
    return raw.decode("utf-8", "surrogatepass")


@dataclass(frozen=True)
class Changes:
    """Candidates whose row changed after the requested number, and perhaps others, in any order.

    `rows` maps an id to its newest row. b"" means that there is no such candidate any more. A read
    from 0 need not report such candidates, because its reader holds no rows. `seq` is the store's
    number at the time of the read; pass it to the next read.

    If the store cannot answer from the requested number, `rows` is empty and `seq` is 0, which is
    **below the requested number**. The reader must then drop all rows and read from 0. This happens
    if the store or all its rows were replaced, or if it forgot which candidates changed or were
    removed. It forgets the oldest changes, never those of the newest commit.

    `beat_ms` is the time of the last heartbeat of the store's writer, on the clock of its machine
    or of the server; 0 if it left none.
    """

    seq: int
    rows: dict[str, bytes]
    beat_ms: int = field(default=0, compare=False)


@dataclass(frozen=True)
class Dump:
    """Every row of one commit once, in any order, as (entity, id, row), and the commit's number."""

    seq: int
    rows: Iterator[tuple[Entity, str, bytes]]


class Store(Protocol):
    """Rows by id, the number of the last record applied to them, and the journal of records.

    A row is opaque and never empty. An id has 1–256 characters. Every read sees one whole commit.
    Each method raises `StoreUnavailable` while the store is closed, missing or damaged, and works
    again once the store is back. Methods are thread-safe.
    """

    def origin(self) -> str:
        """Return the random name that the store got when it was created; a copy has it too."""

    def seq(self) -> int:
        """Return the number of the last commit; 0 before the first."""

    def read(self, ids: Sequence[str], since: int) -> tuple[list[bytes | None], Changes]:
        """Return viewers and changed candidates of the same commit.

        The first element holds the rows of the viewers `ids` in their order, None for an unknown
        viewer. The second holds the candidates that changed after the number `since`; 0 asks for
        all.
        """

    def note(self) -> bytes:
        """Return the note about the rows of the last `replace`; b"" without one."""

    def viewers(self, cursor: bytes, limit: int) -> tuple[bytes, list[tuple[str, bytes]]]:
        """Return about `limit` viewers with their rows, and the cursor of those that follow.

        Begin with the cursor b"", and end when it is returned. Such a pass returns each viewer that
        exists during all of it at least once.
        """

    def num_bytes(self) -> int:
        """Return the bytes that the store takes; a server reports those of all its content."""

    def journal(self, after: int, limit: int) -> list[tuple[int, bytes]]:
        """Return the first `limit` journal entries with a number above `after`, in order."""

    def dump(self) -> AbstractContextManager[Dump]:
        """Stream all rows of the newest commit within the `with` block; commits can continue.

        Read `rows` to its end: only then are the rows those of one commit. The iteration raises
        `StoreUnavailable` if the store was replaced meanwhile or, in some stores, if another handle
        has committed.
        """

    def refuse_writer(self, busy: str) -> None:
        """Raise TabrankError with the message `busy` if a living process has it open for writing.

        Handles of this process count too. Some stores need a permission to see other clients, and
        raise `StoreUnavailable` without it.
        """

    def take_epoch(self) -> int:
        """Make this handle the only writer, durably, and return its fencing epoch.

        The epoch is one more than that of the previous writer, whose next `commit` or `trim` raises
        `WriterFenced`.
        """

    def commit(self, seq: int, viewers: Packed, candidates: Packed, journal: bytes = b"") -> None:
        """Write rows, number and journal entry atomically, with a heartbeat.

        A row of b"" removes its id. A `journal` that is not empty is kept as one entry under `seq`
        until it is trimmed.

        Raises:
            WriterFenced: another writer took a newer fencing epoch; this is checked atomically with
                the write.
            ValueError: `seq` is not greater than the stored number.
            RuntimeError: this handle never took an epoch.
            StoreUnavailable: nothing was written, or the answer was lost; `seq()` shows which.
        """

    def beat(self) -> None:
        """Leave a heartbeat, by which readers know that the writer lives.

        It need not be durable. Raises what `commit` raises.
        """

    def replace(self, seq: int, viewers: Packed, candidates: Packed, note: bytes = b"") -> None:
        """Replace all rows and the note about them atomically; readers start from 0.

        `seq` is the number of the last record in the rows, whatever number is stored. The journal
        stays, because its entries are acknowledged and may be stored nowhere else. Leaves a
        heartbeat, and raises what `commit` raises.
        """

    def trim(self, through: int) -> None:
        """Drop the journal entries with numbers up to `through`; raises what `commit` raises."""

    def close(self) -> None:
        """Release the store; a second call does nothing."""
