"""Service that applies the retention of its log at given times, and weeks of traffic for it."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

import numpy as np

from serve.features.rows import Schema
from serve.log.lease import read_lease, types_of
from serve.log.retention import enforce_retention
from serve.log.segments import Segments, segments
from tests.support.live_service import event
from tests.support.logging_service import Logging

DAY_MS = 86_400_000
DAYS = 16
# Number of the first day since 1970. Times of the first two months of 1970, in milliseconds, would
# be taken for seconds.
FIRST_DAY = 100
KEEP_DAYS = 8


def at(day):
    return (FIRST_DAY + day) * DAY_MS


class Kept(Logging):
    """Service without its own retention; `tend` applies it at a given time."""

    @asynccontextmanager
    async def running(self):
        async with super().running():
            self.ingester._retain = lambda *_: None
            yield self

    def tend(self, now_ms, keep_days=KEEP_DAYS, wanted=lambda: True):
        schema, keep_ms = Schema(self.surface), int(keep_days * DAY_MS)
        store = self.store()
        try:
            enforce_retention(self.served(), schema, keep_ms, store, lambda: now_ms, wanted)
        finally:
            store.close()

    def files(self):
        return sorted(str(p.relative_to(self.log_path)) for p in self.log_path.glob("**/*") if p.is_file())

    def served(self):
        lease = read_lease(self.log_path)
        return Segments(self.log_path, types_of(self.surface.text), lease.epoch if lease else 0)

    def segments(self, name="events"):
        return [segment.first for segment in segments(self.log_path, name)]


async def a_day(service, day):
    """Record a day's rankings and events, a new candidate, and sometimes a forgotten viewer."""
    rng = np.random.default_rng(day)
    ids = ["a", "b", "d", "zz", f"new{day - 1}", f"new{day}"]
    now_ms = 50_000 + at(day)
    fields = {"topic": "jazz", "tags": ["x", "y"], "started_ms": now_ms}
    await service.events({"type": "candidate", "id": f"new{day}", "ts_ms": now_ms, "fields": fields})
    for i in range(6):
        now_ms += int(rng.integers(1, 1000))
        viewer = [None, "ann", "bob", "cyd"][rng.integers(4)]
        shown = rng.permutation(ids)[: rng.integers(1, 6)].tolist()
        body = {"request_id": f"r{day}-{i}x", "context": {"hour": float(i)}}
        await service.rank(viewer, shown, now_ms, **body)
        kinds = rng.choice(["click", "join", "leave"], 2).tolist()
        records = [event(f"e{day}-{i}-{k}", k, str(rng.choice(ids)), viewer, now_ms + 1) for k in set(kinds)]
        await service.events(*records)
    if day % 5 == 3:
        await service.events({"type": "forget", "viewer": "cyd", "ts_ms": now_ms})
    return now_ms


async def weeks(service):
    """Record DAYS days. After each one, write out the log, post an event, and apply retention."""
    for day in range(1, DAYS + 1):
        now_ms = await a_day(service, day)
        await asyncio.to_thread(service.ingester.flush_journal)
        await service.events(event(f"late{day}", "click", "a", "ann", now_ms))
        await asyncio.to_thread(service.tend, now_ms)
