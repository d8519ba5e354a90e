"""The live table: the candidates that may be shown, in memory, as the store had them at one commit."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from serve.contract.errors import StoreUnavailable
from serve.features.rows import Rows, Schema
from serve.stores.protocol import Store

RETRY_S = 0.5  # a store that failed is left alone so long, and nine times as long as the failing took:
PATIENCE = 9  # one that hangs stops the replica's loop at each attempt, so for a tenth of the time at most


class LiveTable:
    """Reads viewers, and brings the candidates up to the very commit that they are of.

    `rows` are the candidates, `seq` the number of the last record that they contain.
    """

    def __init__(self, schema: Schema, open_store: Callable[[], Store]) -> None:
        self.rows = Rows(schema, "candidate")
        self._viewer_bytes = schema.viewer.itemsize
        self.seq = 0
        self._open_store = open_store
        self._store: Store | None = None
        self._read: float | None = None  # the last time that all was well
        self._failed: tuple[float, str] | None = None  # until when to leave it alone, and why

    def read(self, viewers: Sequence[str]) -> list[bytes | None]:
        """The packed rows of `viewers`, None for an unknown or damaged one; `rows` are of the same commit.

        Raises:
            StoreUnavailable: `rows` are as they were; the store is not asked again for `RETRY_S` or more.
        """
        begun = time.monotonic()
        if self._failed is not None and begun < self._failed[0]:
            raise StoreUnavailable(self._failed[1])
        try:
            packed = self._read_store(viewers)
        except StoreUnavailable as error:
            now = time.monotonic()
            self._failed = (now + max(RETRY_S, PATIENCE * (now - begun)), str(error))
            raise
        self._failed, self._read = None, time.monotonic()
        return [None if row is None or len(row) != self._viewer_bytes else row for row in packed]

    def _read_store(self, viewers: Sequence[str]) -> list[bytes | None]:
        if self._store is None:
            self._store = self._open_store()
        packed, changes = self._store.read(viewers, self.seq)
        if changes.seq < self.seq:  # it was replaced, or has forgotten what we missed: start anew
            packed, changes = self._store.read(viewers, 0)
            for name in list(self.rows.index):
                self.rows.drop(name)
        self.rows.apply(changes.rows)
        self.seq = changes.seq
        return packed

    def close(self) -> None:
        """Give the store back; the candidates stay as they are."""
        store, self._store = self._store, None
        if store is not None:
            store.close()

    @property
    def age_s(self) -> float | None:
        """How long ago the store was last read; None before the first time."""
        return None if self._read is None else time.monotonic() - self._read
