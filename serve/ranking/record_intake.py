"""Take the records that clients send, and pass the valid ones to Ingest."""

from __future__ import annotations

import asyncio

from serve.contract.errors import Busy, RequestError
from serve.contract.records import Event, EventsAnswer, Rejected
from serve.log.events import IngestResult, decode_batch, pack
from serve.ranking.service import NOT_TAKEN, FeatureFetcher

# Wait this long for Ingest to make records durable; after a rollout it opens the store first.
TAKE_S = 3.0


async def take(fetcher: FeatureFetcher, body: bytes) -> EventsAnswer:
    """Take a batch of records; return once the accepted records are durable.

    Raises:
        RequestError: 400 or 422 for an invalid batch; 429 or 503 if records may not be stored.
    """
    good, rejected = decode_batch(body, fetcher.surface, event_clock=fetcher.event_clock)
    fetcher.metrics.rejected(len(rejected))
    # Records with equal times apply in the order attributes, rankings, events, as in a replay.
    if fetcher.event_clock:
        has_events = any(isinstance(record, Event) for record in good.values())
        first_ms = min((record.ts_ms or 0 for record in good.values()), default=0)
        await fetcher.exposure_buffer.flush(before_ms=None if has_events else first_ms)
    taken = await _ingested(fetcher, pack(list(good.values()))) if good else IngestResult()
    places = list(good)
    rejected += [Rejected(f"/records/{places[at]}", detail) for at, detail in taken.rejected.items()]
    num_accepted = len(good) - taken.duplicates - len(taken.rejected)
    return EventsAnswer(num_accepted, taken.duplicates, rejected)


async def _ingested(fetcher: FeatureFetcher, payload: bytes) -> IngestResult:
    try:
        async with asyncio.timeout(TAKE_S):
            return await fetcher.ingest(payload)
    except Exception as error:
        fetcher.warn(NOT_TAKEN, error)
        if isinstance(error, Busy):
            detail = "too many records are waiting; retry later"
            raise RequestError(429, "busy", detail, retry_after_s=1) from None
        detail = (
            "records may not have been stored; send them again: events are deduplicated by id, "
            "other records are idempotent"
        )
        raise RequestError(503, "not taken", detail, retry_after_s=1) from None
