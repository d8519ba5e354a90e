"""Take the records that clients send, and pass the valid ones to Ingest."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from serve.contract.errors import Busy, RequestError, WriterFenced
from serve.contract.records import MAX_RECORDS, ClientRecord, Event, EventsAnswer, Rejected
from serve.log.events import IngestResult, pack
from serve.ranking.health import NOT_TAKEN
from serve.ranking.service import RankingService

# How long to wait until Ingest has made records durable. After a rollout it opens the store first.
TAKE_S = 3.0
# If a writer answers whose log another one has taken over, the call is repeated after this time.
FENCED_S = 0.1
# Limits the records of one key that a replica may have at Ingest to one full batch. Ingest commits
# in order, so the records of every other key wait for these. A batch of new viewers takes it 0.05
# s.
MAX_UNDER_WAY = MAX_RECORDS


class RecordsUnderWay:
    """Limit the records of each key that a replica has sent to Ingest and that are not durable."""

    def __init__(self) -> None:
        self._num: Counter[str] = Counter()
        # Records of each key's last batch. They are the estimate for the next one, which is unread.
        self._last_size: Counter[str] = Counter()

    def require_room(self, key: str) -> None:
        """Raise RequestError 429 if a key's next batch, which is unread, probably has no room."""
        num = self._num[key]
        if num + max(self._last_size[key], 1) > MAX_UNDER_WAY:
            detail = (
                f"{num} records of the key {key!r} are not stored yet, and it may have {MAX_UNDER_WAY} such "
                "records; send the next ones when the answer for these has come"
            )
            raise RequestError(429, "busy", detail, retry_after_s=1)

    @contextmanager
    def held(self, key: str, num_records: int) -> Iterator[None]:
        """Count records as under way, or raise RequestError 429 if there is no room for them."""
        self._last_size[key] = num_records
        self.require_room(key)
        self._num[key] += num_records
        try:
            yield
        finally:
            self._num[key] -= num_records


async def take(
    service: RankingService, good: dict[int, ClientRecord], rejected: list[Rejected]
) -> EventsAnswer:
    """Take a decoded batch of records; return once the accepted records are durable.

    Raises:
        RequestError: 429 or 503 if records may not be stored.
    """
    service.metrics.rejected(len(rejected))
    # Records with equal times are applied in the order attributes, rankings, events, as in a
    # replay.
    if service.event_clock:
        has_events = any(isinstance(record, Event) for record in good.values())
        first_ms = min((record.ts_ms or 0 for record in good.values()), default=0)
        await service.exposure_buffer.flush(before_ms=None if has_events else first_ms)
    taken = await _ingested(service, pack(list(good.values()))) if good else IngestResult()
    places = list(good)
    rejected += [Rejected(f"/records/{places[at]}", detail) for at, detail in taken.rejected.items()]
    num_accepted = len(good) - taken.duplicates - len(taken.rejected)
    return EventsAnswer(num_accepted, taken.duplicates, rejected)


async def _ingested(service: RankingService, payload: bytes) -> IngestResult:
    try:
        async with asyncio.timeout(TAKE_S):
            while True:
                try:
                    return await service.ingest(payload)
                # During a rollout there are two writers, and the call went to the old one.
                except WriterFenced:
                    await asyncio.sleep(FENCED_S)
    except Busy:
        detail = "too many records are waiting; retry later"
        raise RequestError(429, "busy", detail, retry_after_s=1) from None
    except Exception as error:
        service.warn(NOT_TAKEN, error)
        detail = (
            "records may not have been stored; send them again: events are deduplicated by id, "
            "other records are idempotent"
        )
        raise RequestError(503, "not taken", detail, retry_after_s=1) from None
