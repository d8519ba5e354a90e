"""What of a log is sent to a service to play it, and in which order."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import Any, Literal

from serve.contract.records import MAX_EVENTS_BODY_BYTES, MAX_RECORDS
from serve.features.rows import EVER_MS
from serve.features.surface import Surface
from serve.log.reader import Log
from serve.log.replay import EVENT, UPSERT, event_times

MAX_POST_BYTES = MAX_EVENTS_BODY_BYTES // 2  # with room for what lies between the records

Timed = tuple[int, int, dict[str, Any]]
"""A record's time, `UPSERT` or `EVENT`, and the record as it is sent."""


@dataclass(frozen=True)
class Step:
    """One request: the body of a ranking, and which exposure it is; or records, and none."""

    kind: Literal["rank", "events"]
    body: bytes
    exposure: int | None = None


def steps(log: Log, surface: Surface) -> Iterator[Step]:
    """The requests that play a log in its own time, one after the other.

    At one time rankings come first: what is of the same time is unseen. Attributes of that time follow alone, so that
    they are there when its rankings count as impressions, then its events, as in `serve.log.replay`.
    """
    records = sorted([*_upserts(log, surface), *_events(log)], key=itemgetter(0, 1))
    at = 0
    for now_ms, exposures in groupby(_rankings(log), key=itemgetter(0)):
        end = at
        while end < len(records) and records[end][0] < now_ms:
            end += 1
        yield from _posts(records[at:end])
        for _, exposure, body in exposures:
            yield Step("rank", json.dumps(body, allow_nan=False).encode(), exposure)
        at = end
        while end < len(records) and records[end][:2] == (now_ms, UPSERT):
            end += 1
        yield from _posts(records[at:end])
        at = end
    yield from _posts(records[at:])


def _rankings(log: Log) -> list[tuple[int, int, dict[str, Any]]]:
    """Time, place in the log and body of each exposure, in the order of time."""
    rankings = []
    for exposure, row in enumerate(log.exposures.to_pylist()):
        stated = json.loads(row["stated"]) if row["stated"] else {}
        body = {
            "request_id": row["request_id"],
            "now_ms": row["ts_ms"],
            "viewer": row["viewer"],
            "candidates": [
                {"candidate": name, "fields": stated[name]} if name in stated else name
                for name in row["candidates"]
            ],
            "context": {name: value for name, value in (row["context"] or {}).items() if value is not None},
        }
        rankings.append((row["ts_ms"], exposure, body))
    return sorted(rankings, key=itemgetter(0, 1))


def _upserts(log: Log, surface: Surface) -> Iterator[Timed]:
    """Attributes; what holds since ever is sent as of 1970, before all else."""
    first_ms = min(log.exposures["ts_ms"].to_pylist())
    for row in log.viewers.to_pylist():
        ts_ms = EVER_MS if row["ts_ms"] is None else row["ts_ms"]
        record = {"ts_ms": max(ts_ms, 0)}
        if not row["removed"]:
            yield (
                ts_ms,
                UPSERT,
                {"type": "viewer", "id": row["id"], "fields": _fields(row, surface, "viewer")} | record,
            )
        elif ts_ms >= first_ms:  # of an earlier time it is in the store, with what the viewer did since
            yield ts_ms, UPSERT, {"type": "forget", "viewer": row["id"]} | record
    for row in log.candidates.to_pylist():
        if row["removed"]:
            continue  # the service removes what ended long ago by itself
        ts_ms = EVER_MS if row["ts_ms"] is None else row["ts_ms"]
        record = {"type": "candidate", "id": row["id"], "fields": _fields(row, surface, "candidate")}
        ends = {} if row["ends_ms"] is None else {"ends_ms": row["ends_ms"]}
        yield ts_ms, UPSERT, record | ends | {"ts_ms": max(ts_ms, 0)}


def _fields(
    row: Mapping[str, Any], surface: Surface, owner: Literal["viewer", "candidate"]
) -> dict[str, Any]:
    """The fields that a row sets; null where it says that there is none."""
    names = surface.fields[owner] if row["stated"] is None else row["stated"]
    return {name: None if _is_nan(row[name]) else row[name] for name in names}


def _is_nan(value: object) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _events(log: Log) -> Iterator[Timed]:
    times = event_times(log.exposures, log.events).tolist()
    for ts_ms, row in zip(times, log.events.to_pylist(), strict=True):
        names = ("id", "viewer", "candidate", "kind", "request_id")
        record = {name: row[name] for name in names if row[name] is not None or name == "viewer"}
        yield ts_ms, EVENT, {"type": "event", **record, "ts_ms": ts_ms}


def _posts(records: list[Timed]) -> Iterator[Step]:
    """Records in as few posts as a service takes."""
    parts: list[bytes] = []
    size = 0
    for *_, record in records:
        text = json.dumps(record, allow_nan=False).encode()
        if parts and (size + len(text) > MAX_POST_BYTES or len(parts) == MAX_RECORDS):
            yield _post(parts)
            parts, size = [], 0
        parts.append(text)
        size += len(text) + 1
    if parts:
        yield _post(parts)


def _post(parts: list[bytes]) -> Step:
    return Step("events", b'{"records":[' + b",".join(parts) + b"]}")
