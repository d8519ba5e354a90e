"""Expiry of viewers: those not seen for long are forgotten, some with each commit."""

from __future__ import annotations

import numpy as np

from serve.contract.records import Forget
from serve.features.rows import NEVER_MS, Schema
from serve.ingest.intake import Group
from serve.log.events import viewer_of
from serve.stores.protocol import Store

# Where viewers expire, those not seen for longest are forgotten beyond this size of the store. It
# is half of the largest LMDB store.
MAX_STORE_BYTES = 32 << 30
# Viewers that a commit examines, and one more for each of its records. Of a full store it examines
# two for each, and forgets half of them: more than its records can add.
EXAMINED = 64


class ViewerExpiry:
    """Round through a store's viewers that forgets those without a record for `keep_ms`.

    0 keeps all. A viewer whom the log's table names without a time stays. `store_bytes` is the
    store's size at the last commit.
    """

    def __init__(self, schema: Schema, keep_ms: int) -> None:
        self._schema, self._keep_ms = schema, keep_ms
        self._cursor = b""
        self.store_bytes = 0

    def expire(self, store: Store, group: Group, now_ms: int) -> None:
        """Add records that forget the next expired viewers; none of a viewer in the group."""
        self.store_bytes = store.num_bytes()
        if not self._keep_ms:
            return
        is_full = self.store_bytes > MAX_STORE_BYTES
        limit = EXAMINED + (1 + is_full) * len(group.records)
        self._cursor, found = store.viewers(self._cursor, limit)
        size = self._schema.viewer.itemsize
        found = [(name, row) for name, row in found if len(row) == size]
        rows = np.frombuffer(b"".join(row for _, row in found), self._schema.viewer)
        seen_ms = rows["seen_ms"]
        before_ms = now_ms - self._keep_ms
        timed_ms = seen_ms[seen_ms < NEVER_MS]
        if is_full and len(timed_ms):
            before_ms = max(before_ms, int(np.median(timed_ms)) + 1)
        present = set(map(viewer_of, group.records))
        for place in np.flatnonzero(seen_ms < before_ms).tolist():
            if (name := found[place][0]) not in present:
                present.add(name)
                group.records.append(Forget(name, int(seen_ms[place])))
                group.counts["expired"] += 1
