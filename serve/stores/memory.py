"""A store in this process's memory: for tests."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from serve.errors import StoreUnavailable
from serve.stores.protocol import MAX_REMOVED, Changes


@dataclass
class Rows:
    """What the stores of one name share; `candidates`: id → (number of its change, row), oldest first."""

    seq: int = 0
    floor: int = 0  # removals up to this number may be forgotten
    viewers: dict[str, bytes] = field(default_factory=dict)
    candidates: dict[str, tuple[int, bytes]] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)


class MemoryStore:
    """The semantics of `Store` over dicts; gone with the process."""

    def __init__(self, rows: Rows | None = None, *, writable: bool = True) -> None:
        self._rows: Rows | None = Rows() if rows is None else rows
        self._writable = writable

    def seq(self) -> int:
        """See `Store`."""
        return self._open().seq

    def viewers(self, ids: Sequence[str]) -> list[bytes | None]:
        """See `Store`."""
        rows = self._open()
        with rows.lock:
            return [rows.viewers.get(id_) for id_ in ids]

    def changes(self, since: int) -> Changes:
        """See `Store`."""
        rows = self._open()
        with rows.lock:
            if since and not rows.floor <= since <= rows.seq:
                return Changes(0, {})
            changed = {id_: row for id_, (seq, row) in rows.candidates.items() if seq > since}
            return Changes(rows.seq, changed)

    def commit(
        self,
        seq: int,
        viewers: Mapping[str, bytes],
        candidates: Mapping[str, bytes],
        *,
        replace: bool = False,
    ) -> None:
        """See `Store`."""
        rows = self._open()
        if not self._writable:
            raise RuntimeError("this store was opened for reading; open it with writable=True to commit")
        with rows.lock:
            if seq <= rows.seq:
                raise ValueError(
                    f"seq: {seq} is not after the stored {rows.seq}; commit records in their order"
                )
            if replace:
                rows.viewers.clear()
            for id_, row in viewers.items():
                if row:
                    rows.viewers[id_] = row
                else:
                    rows.viewers.pop(id_, None)
            unnamed = dict.fromkeys(rows.candidates, b"") if replace else {}
            for id_, row in {**unnamed, **candidates}.items():
                if row or rows.candidates.get(id_, (0, b""))[1]:
                    rows.candidates.pop(id_, None)
                    rows.candidates[id_] = (seq, row)
            self._forget(rows, seq)
            rows.seq = seq

    def close(self) -> None:
        """See `Store`."""
        self._rows = None

    def _open(self) -> Rows:
        if self._rows is None:
            raise StoreUnavailable("the memory store is closed; open it again")
        return self._rows

    @staticmethod
    def _forget(rows: Rows, newest: int) -> None:
        removed = [(id_, seq) for id_, (seq, row) in rows.candidates.items() if not row]
        if len(removed) > MAX_REMOVED:
            for id_, seq in removed[: len(removed) - MAX_REMOVED // 2]:
                if seq < newest:
                    del rows.candidates[id_]
                    rows.floor = seq
