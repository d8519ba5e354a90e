"""In-memory table of the live candidates, consistent with one commit of the store."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from serve.contract.errors import StoreUnavailable
from serve.features.rows import CandidateRows, Schema
from serve.stores.protocol import Store

# After a failed read, the next one waits for RETRY_S, or for PATIENCE times as long as the failed
# read took if that is longer. A store that hangs blocks the event loop at each attempt. This limits
# it to a tenth of the time.
RETRY_S = 0.5
PATIENCE = 9
# A writer leaves a heartbeat every second. The next one is overdue this long after the last.
BEAT_WITHIN_S = 2.0


class CandidateTable:
    """Read viewers, and update the candidates to the same commit.

    `rows` holds the candidates, `seq` the number of the last record that they contain.
    """

    def __init__(self, schema: Schema, open_store: Callable[[], Store]) -> None:
        self.rows = CandidateRows(schema)
        self._viewer_bytes = schema.viewer.itemsize
        self.seq = 0
        self._open_store = open_store
        self._store: Store | None = None
        # Monotonic time of the last successful read.
        self._read: float | None = None
        # The writer's last heartbeat, and when this reader learned of it, on the monotonic clock.
        self._beat_ms = 0
        self._beat_s = time.monotonic()
        # The store's note when all rows were last read.
        self.note = b""
        # The error of the last read, if it failed, and the monotonic time of the next attempt.
        self.error: StoreUnavailable | None = None
        self._retry_s = 0.0

    def read(self, viewers: Sequence[str]) -> list[bytes | None]:
        """Return the packed rows of `viewers`, and update `rows` to the same commit.

        A row is None if the viewer is unknown or the stored row is damaged.

        Raises:
            StoreUnavailable: the read failed, or the last failure is too recent to try again;
                `rows` stays as it was.
        """
        begun = time.monotonic()
        if self.error is not None and begun < self._retry_s:
            raise StoreUnavailable(str(self.error))
        try:
            packed = self._read_store(viewers)
        except StoreUnavailable as error:
            now = time.monotonic()
            self.error, self._retry_s = error, now + max(RETRY_S, PATIENCE * (now - begun))
            raise
        self.error, self._read = None, time.monotonic()
        return [None if row is None or len(row) != self._viewer_bytes else row for row in packed]

    def _read_store(self, viewers: Sequence[str]) -> list[bytes | None]:
        if self._store is None:
            self._store = self._open_store()
        since = self.seq
        packed, changes = self._store.read(viewers, since)
        # The store was replaced, or has forgotten the changes since `seq`, so read all of it.
        if changes.seq < since:
            packed, changes = self._store.read(viewers, since := 0)
        if not since:
            self.note = self._store.note()
            self.rows = CandidateRows(self.rows.schema)
        if changes.beat_ms != self._beat_ms:
            # The clock of the writer's machine may differ. It counts only before the first change.
            age_s = 0.0 if self._beat_ms else time.time() - changes.beat_ms / 1e3
            self._beat_ms, self._beat_s = changes.beat_ms, time.monotonic() - max(age_s, 0.0)
        self.rows.apply(changes.rows)
        self.seq = changes.seq
        return packed

    def close(self) -> None:
        """Close the store; the candidates stay as they are."""
        store, self._store = self._store, None
        if store is not None:
            store.close()

    @property
    def age_s(self) -> float | None:
        """Return the seconds since the store was last read; None before the first read."""
        return None if self._read is None else time.monotonic() - self._read

    @property
    def silent_s(self) -> float:
        """Return for how many seconds the writer's heartbeat has been overdue; 0 if it is not."""
        return max(time.monotonic() - self._beat_s - BEAT_WITHIN_S, 0.0)
