"""Records of the live loop, their decoding, and their form in calls and in the journal."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from serve.contract.errors import RequestError, did_you_mean
from serve.contract.messages import below, check_kept, decoded, invalid, malformed, quoted
from serve.contract.rankings import MAX_NUMBER
from serve.contract.records import (
    MAX_RECORD_BYTES,
    MAX_RECORDS,
    Candidate,
    ClientRecord,
    Event,
    Forget,
    Rejected,
    Viewer,
)
from serve.contract.validation import PLAIN_MS
from serve.features.field_values import bounded, check_unit
from serve.features.slots import Entity
from serve.features.surface import Surface
from serve.stores.protocol import Store

# Limits a call between deployments. Ray's gRPC refuses 4 MiB, and adds some hundred bytes itself.
MAX_CALL_BYTES = 3 * 1024 * 1024
# While Ingest does not keep up, an exposure that is logged stands for at most this many. With a
# higher number, few exposures would decide what a model learns about such a time, and little more
# work would be saved.
MAX_ONE_IN = 16
# How many journal entries are read at once. An entry has up to 4 MiB
# (`serve.ingest.intake.COMMIT_BYTES`), so a read takes at most 32 MiB.
ENTRIES_AT_ONCE = 8
# Times in this range are certainly in milliseconds. This makes a quick check for each record.
EARLIEST_MS, LATEST_MS = PLAIN_MS
# First bytes of the keys that `key` returns, one for each kind of id.
EVENT_IDS, EXPOSURE_IDS, VIEWERS, CANDIDATES = b"e", b"x", b"v", b"c"


class Ended(Struct, tag_field="type", tag="ended", forbid_unknown_fields=True, omit_defaults=True):
    """Removal of a candidate from the live table, an hour after its end; only Ingest writes it."""

    id: str
    ts_ms: int | None = None


class Exposure(Struct, tag_field="type", tag="exposure", omit_defaults=True):
    """One answered ranking.

    Unknown fields are ignored. During a deploy, replicas of the new release may send exposures with
    new fields to the writer of the old one, which must not refuse them.

    Attributes:
        candidates: The candidates in the order shown, up to the limit.
        scores: Their utilities, float32; NaN where the model did not score.
        predictions: The amounts of all outcomes of the first candidate, then of the next one,
            float32. Left out if there is only one outcome.
        weights: The outcomes in order, each with the weight that was applied. Without them the
            score is a probability.
        experiment: The viewer's experiment, or None. `share` is the arm's share in it.
        seen_seq: Number of the last record that the features include.
        stated: The fields that the request stated, by candidate.
        latency_ms: Time from the request's arrival in the replica to its answer.
        degraded: The reasons why the answer is degraded.
        propensity: In an order that was drawn at random, the probability of each pick given the
            picks before it.
        draw: The log weight of each candidate in such an order, float32; −inf for candidates that
            were not drawn and for pins.
        rules: The rules of the arm's slate, in words. They do not apply to a drawn order, and
            boosts do not apply where nothing is scored.
        place_before: The place of each candidate, from 0, before rules and pins, uint16. Left out
            if they changed nothing.
        pinned: The places that the request chose.
        numeric: With `category`, the feature matrix of a sampled share of exposures, float32 and
            uint64, with the rows in the order shown.
        surface: The first 12 digits of `Surface.fingerprint`, for an exposure with features.
        one_in: How many exposures this one stands for. It is above 1 if Ingest did not keep up:
            each exposure was then kept with a probability of 1 / `one_in`, by the hash of its
            request id.
        declaration: What the experiment's report judges by, as JSON. Only the first exposure of a
            replica after each call of Ingest carries it.
    """

    request_id: str
    ts_ms: int
    viewer: str | None
    candidates: list[str]
    scores: bytes
    experiment: str | None
    arm: str
    rung: str
    seen_seq: int
    model: str | None = None
    context: dict[str, Any] = {}
    stated: dict[str, dict[str, Any]] = {}
    traffic: str = "live"
    share: float | None = None
    latency_ms: float | None = None
    degraded: list[str] = []
    propensity: list[float] | None = None
    numeric: bytes | None = None
    category: bytes | None = None
    surface: str | None = None
    predictions: bytes | None = None
    weights: dict[str, float] = {}
    draw: bytes | None = None
    rules: list[str] = []
    place_before: bytes | None = None
    pinned: list[int] = []
    one_in: int = 1
    declaration: str | None = None


Record = ClientRecord | Ended | Exposure


class JournalEntry(Struct, array_like=True):
    """Journal entry of one commit; the number of its last record is the entry's number.

    `num_bytes` is the packed size, set when the entry is read.
    """

    received_ms: int
    records: list[Record]
    num_bytes: int = 0


# Reads the entries of a store's journal, as `entries` does.
Entries = Callable[[Store], Iterator[tuple[int, JournalEntry]]]


class IngestResult(Struct):
    """Result of a call of Ingest, once its records are durable.

    `duplicates` counts the records that were dropped because they had come before. `rejected` maps
    the index of a rejected record to the reason.
    """

    duplicates: int = 0
    rejected: dict[int, str] = {}


class _Raw(Struct, forbid_unknown_fields=True):
    records: Annotated[list[msgspec.Raw], Meta(max_length=MAX_RECORDS)]


_encoder = msgspec.msgpack.Encoder()
_batch = msgspec.json.Decoder(_Raw)
_sent = msgspec.json.Decoder(ClientRecord)
_records = msgspec.msgpack.Decoder(list[Record])
_entry = msgspec.msgpack.Decoder(JournalEntry)
KINDS: dict[str, type[Struct]] = {"event": Event, "viewer": Viewer, "candidate": Candidate, "forget": Forget}


def decode_batch(
    body: bytes, surface: Surface, *, event_clock: bool
) -> tuple[dict[int, ClientRecord], list[Rejected]]:
    """Return a request body's valid records, by index, and its rejected ones, by JSON Pointer.

    Raises:
        RequestError: 400 if the body is not JSON, 422 if it is not a batch.
    """
    raws = decoded(_batch, body, {"": ("records",)}).records
    good: dict[int, ClientRecord] = {}
    rejected: list[Rejected] = []
    # In JSON, a string that begins with NUL can be written in this way only.
    may_begin_with_nul = b'"\\u0000' in body
    for i, raw in enumerate(raws):
        try:
            record = _decode(raw, surface, event_clock=event_clock)
            if may_begin_with_nul:
                for name in ("viewer", "candidate") if isinstance(record, Event | Forget) else ("id",):
                    check_kept(getattr(record, name, None), f"/{name}")
            good[i] = record
        except RequestError as error:
            rejected.append(Rejected(f"/records/{i}{error.pointer or ''}", str(error)))
    return good, rejected


def _decode(raw: msgspec.Raw, surface: Surface, *, event_clock: bool) -> ClientRecord:
    if len(raw) > MAX_RECORD_BYTES:
        detail = (
            f"the record has {len(raw)} bytes; one may have {MAX_RECORD_BYTES}: send fewer or shorter fields"
        )
        raise RequestError(422, "invalid record", detail)
    try:
        record: ClientRecord = _sent.decode(raw)
    except RecursionError as error:
        raise malformed(error) from None
    except (msgspec.ValidationError, UnicodeDecodeError) as error:
        kind = KINDS.get(_kind(raw), Event)
        raise invalid(str(error), {"": kind.__struct_fields__}) from None
    if isinstance(record, Event):
        if record.kind not in surface.events:
            names = ", ".join(surface.events)
            hint = did_you_mean(record.kind, surface.events)
            detail = f"{quoted(record.kind)} is not an event of the surface{hint}; its events are {names}"
            raise RequestError(422, "invalid record", detail, "/kind")
        if abs(record.value or 0.0) > MAX_NUMBER:
            detail = (
                f"{record.value:g} is not a number up to {MAX_NUMBER:g}; send the amount in a larger unit"
            )
            raise RequestError(422, "invalid record", detail, "/value")
    elif not isinstance(record, Forget):
        owner: Entity = "viewer" if isinstance(record, Viewer) else "candidate"
        for name, value in record.fields.items():
            record.fields[name] = value = bounded(surface.fields[owner], name, value, below("/fields", name))
            # The log's readers refuse empty strings.
            if value == "" or (isinstance(value, list) and "" in value):
                detail = f"{name!r} holds an empty string; send null, or leave that member of the set out"
                raise RequestError(422, "invalid record", detail, below("/fields", name))
        if isinstance(record, Candidate) and record.ends_ms:
            check_unit(record.ends_ms, "/ends_ms")
    if event_clock and record.ts_ms is None:
        raise RequestError(422, "invalid record", "ts_ms is missing; the event clock needs it", "/ts_ms")
    if record.ts_ms and not EARLIEST_MS <= record.ts_ms < LATEST_MS:
        check_unit(record.ts_ms, "/ts_ms")
    return record


def _kind(raw: msgspec.Raw) -> str:
    try:
        value = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return ""
    return str(value.get("type", "")) if isinstance(value, dict) else ""


def pack(content: Sequence[Record | msgspec.Raw] | JournalEntry) -> bytes:
    """Pack records for Ingest, or an entry for the journal; output of `pack_raw` is copied."""
    return _encoder.encode(content)


def pack_raw(record: Record) -> msgspec.Raw:
    """Pack one record, so that its size is known before `pack` puts it into a call."""
    return msgspec.Raw(_encoder.encode(record))


def unpack(payload: bytes) -> list[Record]:
    """Unpack the records that `pack` packed."""
    return _records.decode(payload)


def entries(store: Store, after: int = 0) -> Iterator[tuple[int, JournalEntry]]:
    """Yield the entries of a store's journal above `after`, each after its last record's number.

    These commits are durable but not yet in the log. Few of them are in memory at once.
    """
    while packed := store.journal(after, ENTRIES_AT_ONCE):
        for after, payload in packed:
            entry = _entry.decode(payload)
            entry.num_bytes = len(payload)
            yield after, entry


def remembered_key(record: Record) -> bytes | None:
    """Return the key that deduplicates an event or exposure, or that identifies a removal.

    Records of attributes have no such key.
    """
    if isinstance(record, Event):
        return key(EVENT_IDS, record.id)
    if isinstance(record, Exposure):
        return key(EXPOSURE_IDS, record.request_id)
    return owner_key(record) if isinstance(record, Forget | Ended) else None


def owner_key(record: Record) -> bytes | None:
    """Return the key of the viewer or candidate whose row a record changes, or None."""
    if isinstance(record, Candidate | Ended):
        return key(CANDIDATES, record.id)
    viewer = viewer_of(record)
    return None if viewer is None else key(VIEWERS, viewer)


def viewer_of(record: Record) -> str | None:
    """Return the viewer whose row a record may change, or None."""
    if isinstance(record, Viewer):
        return record.id
    return None if isinstance(record, Candidate | Ended) else record.viewer


def key(window: bytes, id_: str) -> bytes:
    """Return a key of 9 bytes for an id of any length: the letter of its kind and a 64-bit hash.

    A new id collides with any of a million others with a probability of 5e-14.
    """
    return window + hashlib.blake2b(id_.encode("utf-8", "surrogatepass"), digest_size=8).digest()
