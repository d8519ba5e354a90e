"""Turn a log into the sequence of requests that replays it against a service."""

from __future__ import annotations

import json
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from operator import itemgetter
from typing import Any, Literal

import msgspec
from msgspec.structs import replace

from serve.contract import records as wire
from serve.contract.rankings import VALUE, RankRequest, StatedCandidate
from serve.contract.records import MAX_EVENTS_BODY_BYTES, MAX_RECORDS, ClientRecord
from serve.features.rows import EVER_MS
from serve.features.surface import Surface
from serve.log.reader import Log
from serve.log.replay import EVENT, UPSERT, event_times

# Half of the largest body that the service takes, which leaves room for separators.
MAX_POST_BYTES = MAX_EVENTS_BODY_BYTES // 2

# A record's time, its kind (`UPSERT` or `EVENT`), and the record as it is sent.
Timed = tuple[int, int, ClientRecord]


def replay_requests(log: Log, surface: Surface) -> Iterator[tuple[int, RankRequest] | list[ClientRecord]]:
    """Yield what replays a log in the order of time: rankings, and lists of records to send.

    A ranking comes with its exposure's index in the log. For each time, the order is as in
    `serve.log.replay`: first the rankings, because a ranking does not see records of its own time;
    then attributes, in a list of their own, so that they exist when the rankings count as
    impressions; events last.
    """
    records = sorted([*_upserts(log, surface), *_events(log)], key=itemgetter(0, 1))
    at = 0
    for now_ms, exposures in groupby(_rankings(log), key=itemgetter(0)):
        now = bisect_left(records, now_ms, at, key=itemgetter(0))
        yield [record for *_, record in records[at:now]]
        for _, exposure, request in exposures:
            yield exposure, request
        at = bisect_right(records, (now_ms, UPSERT), now, key=itemgetter(0, 1))
        yield [record for *_, record in records[now:at]]
    yield [record for *_, record in records[at:]]


def _rankings(log: Log) -> list[tuple[int, int, RankRequest]]:
    """Return (time, index in the log, request) of each exposure, in the order of time."""
    rankings = []
    for exposure, row in enumerate(log.exposures.to_pylist()):
        stated = json.loads(row["stated"]) if row["stated"] else {}
        context = (row["context"] or {}).items()
        request = RankRequest(
            row["viewer"],
            [StatedCandidate(name, stated[name]) if name in stated else name for name in row["candidates"]],
            context={name: value for name, value in context if value is not None},
            request_id=row["request_id"],
            now_ms=row["ts_ms"],
        )
        # An exposure may represent several, all of which the state counts, so send it as often.
        for again in [request, *[replace(request, request_id=None)] * (row["one_in"] - 1)]:
            rankings.append((row["ts_ms"], exposure, again))
    return sorted(rankings, key=itemgetter(0, 1))


def _upserts(log: Log, surface: Surface) -> Iterator[Timed]:
    """Yield attribute records. One without a time gets a time in 1970, before all others."""
    first_ms = min(log.exposures["ts_ms"].to_pylist())
    for row in log.viewers.to_pylist():
        ts_ms = EVER_MS if row["ts_ms"] is None else row["ts_ms"]
        if not row["removed"]:
            yield ts_ms, UPSERT, wire.Viewer(row["id"], _fields(row, surface, "viewer"), max(ts_ms, 0))
        # A forget from before the log is already in the store, with what the viewer did since then.
        # The service forgets values of fields by itself.
        elif ts_ms >= first_ms and row["id"][0] != VALUE:
            yield ts_ms, UPSERT, wire.Forget(row["id"], ts_ms)
    for row in log.candidates.to_pylist():
        # The service itself removes candidates that ended long ago.
        if not row["removed"]:
            ts_ms = EVER_MS if row["ts_ms"] is None else row["ts_ms"]
            fields = _fields(row, surface, "candidate")
            yield ts_ms, UPSERT, wire.Candidate(row["id"], fields, max(ts_ms, 0), row["ends_ms"])


def _fields(
    row: Mapping[str, Any], surface: Surface, owner: Literal["viewer", "candidate"]
) -> dict[str, Any]:
    """Return the fields that a row sets. None or NaN means that it clears a field."""
    names = surface.fields[owner] if row["stated"] is None else row["stated"]
    return {name: row[name] for name in names}


def _events(log: Log) -> Iterator[Timed]:
    times = event_times(log.exposures, log.events).tolist()
    for ts_ms, row in zip(times, log.events.to_pylist(), strict=True):
        names = ("id", "viewer", "candidate", "kind", "request_id", "value")
        yield ts_ms, EVENT, wire.Event(**{name: row[name] for name in names}, ts_ms=ts_ms)


def posts(records: Iterable[ClientRecord]) -> Iterator[bytes]:
    """Yield request bodies with the records, as few as the service's limits allow."""
    parts: list[bytes] = []
    size = 0
    # NaN is encoded as null.
    for record in map(msgspec.json.encode, records):
        if parts and (size + len(record) > MAX_POST_BYTES or len(parts) == MAX_RECORDS):
            yield _body(parts)
            parts, size = [], 0
        parts.append(record)
        size += len(record) + 1
    if parts:
        yield _body(parts)


def _body(parts: list[bytes]) -> bytes:
    return b'{"records":[' + b",".join(parts) + b"]}"
