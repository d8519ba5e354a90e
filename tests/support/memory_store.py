"""Reference store in the memory of this process: it does what the contract suite expects."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from serve.contract.errors import StoreUnavailable, TabrankError
from serve.features.slots import Entity
from serve.stores.fencing import FencingEpoch, check_seq
from serve.stores.protocol import LOAD, Changes, Dump, Packed


@dataclass
class Rows:
    """Content that all stores of one name share.

    `candidates` maps an id to (number of its last change, row). The row of a removed candidate is
    b"". The store knows all changes after the number `floor`, which is that of the last
    replacement of all rows.
    """

    seq: int = 0
    epoch: int = 0
    # How often all rows were replaced.
    id: int = 0
    floor: int = 0
    note: bytes = b""
    beat_ms: int = 0
    viewers: dict[str, bytes] = field(default_factory=dict)
    candidates: dict[str, tuple[int, bytes]] = field(default_factory=dict)
    journal: dict[int, bytes] = field(default_factory=dict)
    num_writers: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


class MemoryStore:
    """`Store` over dicts, whose content is lost when the process ends."""

    def __init__(self, rows: Rows | None = None, *, writable: bool = True) -> None:
        self._rows: Rows | None = Rows() if rows is None else rows
        self._epoch = FencingEpoch(writable=writable)
        self._writable = writable
        self._rows.num_writers += writable
        self._id = -1

    def origin(self) -> str:
        """See `Store`."""
        return "memory"

    def seq(self) -> int:
        """See `Store`."""
        with self._locked() as rows:
            return rows.seq

    def read(self, ids: Sequence[str], since: int) -> tuple[list[bytes | None], Changes]:
        """See `Store`."""
        with self._locked() as rows:
            if since == 0 or self._id < 0:
                self._id = rows.id
            seq, changed = _changes(rows, since) if self._id == rows.id else (0, {})
            changes = Changes(seq, changed, rows.beat_ms)
            return [rows.viewers.get(id_) for id_ in ids], changes

    def note(self) -> bytes:
        """See `Store`."""
        with self._locked() as rows:
            return rows.note

    def viewers(self, cursor: bytes, limit: int) -> tuple[bytes, list[tuple[str, bytes]]]:
        """See `Store`."""
        with self._locked() as rows:
            rest = [item for item in sorted(rows.viewers.items()) if _key(item[0]) > cursor]
        return _key(rest[limit - 1][0]) if len(rest) > limit else b"", rest[:limit]

    def num_bytes(self) -> int:
        """See `Store`."""
        with self._locked() as rows:
            return sum(map(len, rows.viewers.values()))

    def journal(self, after: int, limit: int) -> list[tuple[int, bytes]]:
        """See `Store`."""
        with self._locked() as rows:
            return [(seq, entry) for seq, entry in rows.journal.items() if seq > after][:limit]

    @contextmanager
    def dump(self) -> Iterator[Dump]:
        """See `Store`."""
        with self._locked() as rows:
            found: list[tuple[Entity, str, bytes]] = [("viewer", *item) for item in rows.viewers.items()]
            found += [("candidate", id_, row) for id_, (_, row) in rows.candidates.items() if row]
            dump = Dump(rows.seq, iter(found))
        yield dump

    def refuse_writer(self, busy: str) -> None:
        """See `Store`."""
        with self._locked() as rows:
            if rows.num_writers:
                raise TabrankError(busy)

    def take_epoch(self) -> int:
        """See `Store`."""
        self._epoch.require_writable()
        with self._locked() as rows:
            rows.epoch += 1
            return self._epoch.take(b"", rows.epoch)

    def commit(self, seq: int, viewers: Packed, candidates: Packed, journal: bytes = b"") -> None:
        """See `Store`."""
        self._commit(seq, viewers, candidates, journal, None)

    def beat(self) -> None:
        """See `Store`."""
        with self._locked() as rows:
            self._epoch.check(b"", rows.epoch)
            rows.beat_ms = int(time.time() * 1e3)

    def replace(self, seq: int, viewers: Packed, candidates: Packed, note: bytes = b"") -> None:
        """See `Store`."""
        self._commit(seq, viewers, candidates, b"", note)

    def _commit(
        self, seq: int, viewers: Packed, candidates: Packed, journal: bytes, note: bytes | None
    ) -> None:
        with self._locked() as rows:
            self._epoch.check(b"", rows.epoch)
            if note is None:
                check_seq(seq, rows.seq)
            else:
                rows.id += 1
                rows.viewers.clear()
                rows.candidates.clear()
                rows.floor, rows.note = seq, note
            for id_, row in viewers.items():
                if row:
                    rows.viewers[id_] = row
                else:
                    rows.viewers.pop(id_, None)
            for id_, row in candidates.items():
                if row or rows.candidates.get(id_, (0, b""))[1]:
                    rows.candidates[id_] = (seq, row)
            if journal:
                rows.journal[seq] = journal
            rows.seq, rows.beat_ms = seq, int(time.time() * 1e3)

    def trim(self, through: int) -> None:
        """See `Store`."""
        with self._locked() as rows:
            self._epoch.check(b"", rows.epoch)
            for seq in [seq for seq in rows.journal if seq <= through]:
                del rows.journal[seq]

    def close(self) -> None:
        """See `Store`."""
        rows, self._rows = self._rows, None
        if rows is not None:
            rows.num_writers -= self._writable

    @contextmanager
    def _locked(self) -> Iterator[Rows]:
        if self._rows is None:
            raise StoreUnavailable("the memory store is closed; open it again")
        with self._rows.lock:
            yield self._rows


def _key(id_: str) -> bytes:
    return id_.encode("utf-32-be", "surrogatepass")


def _changes(rows: Rows, since: int) -> tuple[int, dict[str, bytes]]:
    if since and not rows.floor <= since <= rows.seq:
        return 0, {}
    return rows.seq, {id_: row for id_, (seq, row) in rows.candidates.items() if seq > since}


_named: dict[str, Rows] = {}


def open_memory(name: str, *, writable: bool) -> MemoryStore:
    """Open the store of a name, which all of this process share.

    A writer creates a missing store.
    """
    if not writable and name not in _named:
        raise StoreUnavailable(f"there is no store {name} in this process; fill it with {LOAD}")
    return MemoryStore(_named.setdefault(name, Rows()), writable=writable)
