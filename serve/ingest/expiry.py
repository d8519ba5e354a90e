"""Expiry of viewers: forget those who were not seen for long, some at a time."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator

import numpy as np

from serve.contract.errors import StoreUnavailable
from serve.contract.logs import SeldomWarning
from serve.contract.rankings import VALUE
from serve.contract.records import Forget
from serve.contract.validation import UNITS_MS
from serve.features.rows import Schema
from serve.features.slots import field_of_key
from serve.features.state_kind import STATE
from serve.ingest.intake import Group
from serve.log.events import viewer_of
from serve.stores.protocol import Store

# Viewers are examined once this many are due, or this many seconds after the last time.
EVERY_DUE, EVERY_S = 2_000, 1.0
# Two viewers are examined for each row that a commit adds, and at least one for every eight
# records. If every viewer comes only once, the store then has at most twice as many rows as viewers
# who are not due to be forgotten.
FOR_ROW, FOR_RECORDS = 2, 8
# At least LEAST are examined at a time. One commit examines at most MOST, which take some ms to
# read and 0.1 s to forget; the next commits examine the rest.
LEAST, MOST = 64, 2_048
# Limits the values of candidates' fields that are kept although no candidate has them now. If there
# are more, those that have had no event for longest are forgotten before their time.
MAX_VALUES = 2_000_000
FOR_YEARS_MS = 10 * 365 * UNITS_MS["d"]


class ViewerExpiry:
    """Go round through a store's viewers, and forget those without a record for `keep_ms`.

    Values of candidates' fields that no candidate has now are forgotten in the same way. If
    `keep_ms` is 0, everything is kept except values beyond `MAX_VALUES`. A commit forgets at most
    `most` viewers. `store_bytes` is the store's size when viewers were last examined.
    """

    def __init__(self, schema: Schema, keep_ms: int, most: int) -> None:
        self._schema, self._keep_ms, self._most = schema, keep_ms, min(most, MOST)
        self._cursor = b""
        # How many values without a candidate this round has found so far, and how long they are
        # kept.
        self._num_values, self._keep_values_ms = 0, keep_ms or FOR_YEARS_MS
        # How many viewers are due to be examined, and when some were examined last.
        self._due, self._examined_s = 0.0, -EVERY_S
        self._warn = SeldomWarning()
        self.store_bytes = 0
        # When `serve load` filled the store. Values count from then on, so that a store that was
        # filled from an old log does not lose them at once.
        self.filled_ms = 0

    def committed(self, num_records: int, num_added: int) -> None:
        """Count a commit's records, and the rows that it added to the store's viewers."""
        self._due += num_records / FOR_RECORDS + FOR_ROW * num_added

    def expire(self, store: Store, group: Group, now_ms: int) -> None:
        """Add records that forget the next expired viewers, unless the group has one of theirs."""
        now_s = time.monotonic()
        if self._due < EVERY_DUE and now_s - self._examined_s < EVERY_S:
            return
        limit = min(max(int(self._due), LEAST), self._most)
        self._due, self._examined_s = max(self._due - limit, 0), now_s
        try:
            if self._keep_ms or self._schema.values:
                self._examine(store, limit, group, now_ms)
            self.store_bytes = store.num_bytes()
        except StoreUnavailable as error:
            self._warn("viewers do not expire", error)

    def _examine(self, store: Store, limit: int, group: Group, now_ms: int) -> None:
        self._cursor, found = store.viewers(self._cursor, limit)
        values = [(key, row) for key, row in found if key[0] == VALUE]
        self._num_values += len(values)
        expired = list(self._old_values(values, now_ms - self._keep_values_ms))
        if not self._cursor:
            self._end_round()
        present, size = set(map(viewer_of, group.records)), self._schema.viewer.itemsize
        rows = {
            name: row for name, row in found if len(row) == size and name not in present and name[0] != VALUE
        }
        seen = np.frombuffer(b"".join(rows.values()), self._schema.viewer)["seen_ms"].tolist()
        before_ms = now_ms - self._keep_ms if self._keep_ms else 0
        expired += [Forget(name, ms) for name, ms in zip(rows, seen, strict=True) if ms < before_ms]
        group.records += expired
        group.counts["expired"] += len(expired)

    def _old_values(self, values: Iterable[tuple[str, bytes]], before_ms: int) -> Iterator[Forget]:
        """Yield records that forget the values that have had no event since a time."""
        for key, row in values:
            layout = self._schema.values.get(field_of_key(key))
            if layout is not None and len(row) == layout.itemsize:
                last_ms = int(np.frombuffer(row, layout)[STATE]["sums_ms"].max())
                if max(last_ms, self.filled_ms) < before_ms:
                    yield Forget(key, last_ms)

    def _end_round(self) -> None:
        """Keep values for a shorter time if there are too many, otherwise for a longer one."""
        room = MAX_VALUES / max(self._num_values, 1)
        # From 0 it could not grow again.
        keep_ms = max(int(self._keep_values_ms * min(room, 1.1)), UNITS_MS["s"])
        self._keep_values_ms = min(keep_ms, self._keep_ms or FOR_YEARS_MS)
        self._num_values = 0
