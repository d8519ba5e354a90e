"""Calls waiting for their commit, and their grouping into commits."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from serve.log.events import IngestResult, Record

# Limit a commit to this many packed bytes, but at least one call. The bytes of the viewers' rows
# that it changes have their own limit.
COMMIT_BYTES = 4 << 20
COMMIT_ROW_BYTES = 64 << 20


@dataclass
class PendingCall:
    """Records of one call, and the future of their result once they are durable."""

    records: Sequence[Record]
    num_bytes: int
    done: asyncio.Future[IngestResult]
    since: float = field(default_factory=time.monotonic)


def groups(pending: Iterable[PendingCall], max_records: int) -> Iterator[list[PendingCall]]:
    """Yield the calls of one commit at a time: as many as the limits allow, at least one."""
    group: list[PendingCall] = []
    num = num_bytes = 0
    for call in pending:
        num, num_bytes = num + len(call.records), num_bytes + call.num_bytes
        if group and (num > max_records or num_bytes > COMMIT_BYTES):
            yield group
            group, num, num_bytes = [], len(call.records), call.num_bytes
        group.append(call)
    if group:
        yield group
