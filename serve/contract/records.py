"""Wire types of the records that clients send."""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta, Struct

from serve.contract.rankings import MAX_MS, Id

MAX_EVENTS_BODY_BYTES = 1024 * 1024
# Limit the JSON of one record; MessagePack takes at most twice as many bytes.
MAX_RECORD_BYTES = 64 * 1024
MAX_RECORDS = 2_000  # of a batch: the loop that decodes them ranks too

Ms = Annotated[int, Meta(ge=0, le=MAX_MS, description="Milliseconds since 1970.")]
TsMs = Annotated[
    Ms | None,
    Meta(
        description="When it happened; default now. A time ahead is taken as now. Of two statements of an attribute "
        "the later one holds."
    ),
]


class Event(Struct, tag_field="type", tag="event", forbid_unknown_fields=True, omit_defaults=True):
    """What a viewer did with a candidate; `id` makes a retry harmless."""

    id: Id
    viewer: Annotated[Id | None, Meta(description="Who did it; null is an anonymous viewer.")]
    candidate: Id
    kind: Annotated[str, Meta(description="One of the surface's events.")]
    ts_ms: TsMs = None
    request_id: Annotated[Id | None, Meta(description="The ranking that showed the candidate.")] = None
    value: float | None = None


class Viewer(Struct, tag_field="type", tag="viewer", forbid_unknown_fields=True, omit_defaults=True):
    """A viewer's attributes; those that are not named stay as they are."""

    id: Id
    fields: dict[str, Any] = {}
    ts_ms: TsMs = None


class Candidate(Struct, tag_field="type", tag="candidate", forbid_unknown_fields=True, omit_defaults=True):
    """A candidate's attributes, and when it ends; what is not named stays as it is."""

    id: Id
    fields: dict[str, Any] = {}
    ts_ms: TsMs = None
    ends_ms: Annotated[Ms | None, Meta(description="When it ends or ended.")] = None


class Forget(Struct, tag_field="type", tag="forget", forbid_unknown_fields=True, omit_defaults=True):
    """Remove a viewer's state. The log keeps what was served and done until its segments are deleted."""

    viewer: Id
    ts_ms: TsMs = None


Sent = Event | Viewer | Candidate | Forget


class Rejected(Struct):
    """A record that was not taken, and why."""

    pointer: str
    detail: str


class EventsRequest(Struct, forbid_unknown_fields=True):
    """A batch of records; good ones are taken whatever the others are."""

    records: Annotated[list[Sent], Meta(max_length=MAX_RECORDS)]


class EventsAnswer(Struct):
    """What became of a batch, once what was accepted is durable."""

    accepted: int
    duplicates: Annotated[int, Meta(description="Events whose id was there before; dropped.")]
    rejected: list[Rejected]
