"""Wire types of `/v1/events`: the records that clients send, and the answer."""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta, Struct

from serve.contract.rankings import MAX_MS, MAX_NUMBER, Id, KeptId

MAX_EVENTS_BODY_BYTES = 1024 * 1024
# Limit the JSON of one record; MessagePack takes at most twice as many bytes.
MAX_RECORD_BYTES = 64 * 1024
# Limit a batch: the event loop that decodes it also serves rankings.
MAX_RECORDS = 2_000

Ms = Annotated[int, Meta(ge=0, le=MAX_MS, description="Milliseconds since 1970.")]
TsMs = Annotated[
    Ms | None,
    Meta(
        description="Time of the record; the default is now. A future time becomes now. If an attribute gets two "
        "values, the one with the later time wins."
    ),
]


class Event(Struct, tag_field="type", tag="event", forbid_unknown_fields=True, omit_defaults=True):
    """Action of a viewer on a candidate; `id` makes a retry idempotent."""

    id: Id
    viewer: Annotated[KeptId | None, Meta(description="The viewer who acted; null is an anonymous viewer.")]
    candidate: KeptId
    kind: Annotated[str, Meta(description="One of the surface's events.")]
    ts_ms: TsMs = None
    request_id: Annotated[Id | None, Meta(description="The ranking that showed the candidate.")] = None
    # The service checks the limit when a client sends the event. A journal may hold larger ones.
    value: (
        Annotated[float, Meta(extra_json_schema={"minimum": -MAX_NUMBER, "maximum": MAX_NUMBER})] | None
    ) = None


class Viewer(Struct, tag_field="type", tag="viewer", forbid_unknown_fields=True, omit_defaults=True):
    """Attributes of a viewer; attributes that are not named keep their values."""

    id: KeptId
    fields: dict[str, Any] = {}
    ts_ms: TsMs = None


class Candidate(Struct, tag_field="type", tag="candidate", forbid_unknown_fields=True, omit_defaults=True):
    """Attributes and end of a candidate; attributes that are not named keep their values."""

    id: KeptId
    fields: dict[str, Any] = {}
    ts_ms: TsMs = None
    ends_ms: Annotated[Ms | None, Meta(description="Time at which the candidate ends or ended.")] = None


class Forget(Struct, tag_field="type", tag="forget", forbid_unknown_fields=True, omit_defaults=True):
    """Request to remove a viewer's state.

    The log keeps the viewer's exposures and events until their segments are deleted.
    """

    viewer: KeptId
    ts_ms: TsMs = None


ClientRecord = Event | Viewer | Candidate | Forget


class Rejected(Struct):
    """Record that was rejected, with the reason."""

    pointer: str
    detail: str


class EventsRequest(Struct, forbid_unknown_fields=True):
    """Batch of records; a rejected record does not affect the others."""

    records: Annotated[list[ClientRecord], Meta(max_length=MAX_RECORDS)]


class EventsAnswer(Struct):
    """Answer to a batch, sent once the accepted records are durable."""

    accepted: int
    duplicates: Annotated[int, Meta(description="Events dropped because their id was seen before.")]
    rejected: list[Rejected]
