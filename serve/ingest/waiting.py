"""Calls that wait for their commit, and the groups of calls that are committed together."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from serve.log.events import Record, Taken

# Commit so many packed bytes at once, but at least one call; the rows of viewers that they change have their own bound.
COMMIT_BYTES = 4 << 20
COMMIT_ROW_BYTES = 64 << 20


@dataclass
class Waiting:
    """Records that came together, and what became of them, once those that were taken are durable."""

    records: Sequence[Record]
    num_bytes: int
    done: asyncio.Future[Taken]
    since: float = field(default_factory=time.monotonic)


def groups(waiting: Iterable[Waiting], max_records: int) -> Iterator[list[Waiting]]:
    """Yield calls for one commit each: as many as its bounds allow, at least one."""
    group: list[Waiting] = []
    num = num_bytes = 0
    for one in waiting:
        num, num_bytes = num + len(one.records), num_bytes + one.num_bytes
        if group and (num > max_records or num_bytes > COMMIT_BYTES):
            yield group
            group, num, num_bytes = [], len(one.records), one.num_bytes
        group.append(one)
    if group:
        yield group
