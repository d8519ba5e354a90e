"""Take the records that clients send, and pass the valid ones to Ingest."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from serve.contract.errors import Busy, RequestError
from serve.contract.logs import SeldomWarning
from serve.contract.records import Event, EventsAnswer, Rejected
from serve.features.surface import Surface
from serve.log.events import IngestResult, decode_batch, pack
from serve.ranking.exposure_buffer import ExposureBuffer
from serve.ranking.telemetry import Metrics

# Wait this long for Ingest to make records durable; after a rollout it opens the store first.
TAKE_S = 3.0

# Takes packed records and returns once they are durable.
TakeRecords = Callable[[bytes], Awaitable[IngestResult]]


@dataclass
class RecordIntake:
    """Pass batches of records to `ingest`, the single writer."""

    surface: Surface
    event_clock: bool
    exposure_buffer: ExposureBuffer
    ingest: TakeRecords
    metrics: Metrics
    warn: SeldomWarning

    async def take(self, body: bytes) -> EventsAnswer:
        """Take a batch of records; return once the accepted records are durable.

        Raises:
            RequestError: 400 or 422 for an invalid batch; 429 or 503 if records may not be stored.
        """
        good, rejected = decode_batch(body, self.surface, event_clock=self.event_clock)
        self.metrics.rejected(len(rejected))
        # Records with equal times apply in the order attributes, rankings, events, as in a replay.
        if self.event_clock:
            has_events = any(isinstance(record, Event) for record in good.values())
            first_ms = min((record.ts_ms or 0 for record in good.values()), default=0)
            await self.exposure_buffer.flush(before_ms=None if has_events else first_ms)
        taken = await self._ingested(pack(list(good.values()))) if good else IngestResult()
        places = list(good)
        rejected += [Rejected(f"/records/{places[at]}", detail) for at, detail in taken.rejected.items()]
        num_accepted = len(good) - taken.duplicates - len(taken.rejected)
        return EventsAnswer(num_accepted, taken.duplicates, rejected)

    async def _ingested(self, payload: bytes) -> IngestResult:
        try:
            async with asyncio.timeout(TAKE_S):
                return await self.ingest(payload)
        except Exception as error:
            self.warn("events_unavailable", error)
            if isinstance(error, Busy):
                detail = "too many records are waiting; retry later"
                raise RequestError(429, "busy", detail, retry_after_s=1) from None
            detail = (
                "records may not have been stored; send them again: events are deduplicated by id, "
                "other records are idempotent"
            )
            raise RequestError(503, "not taken", detail, retry_after_s=1) from None
