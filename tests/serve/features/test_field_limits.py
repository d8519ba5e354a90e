"""Limits of client fields: characters, members of a set, bytes of a record."""

from __future__ import annotations

import json

import pytest

from serve.contract.errors import RequestError
from serve.contract.rankings import (
    MAX_CANDIDATES,
    MAX_FIELD_CHARACTERS,
    MAX_ID_CHARACTERS,
    MAX_NUMBER,
    MAX_SET_MEMBERS,
)
from serve.contract.records import MAX_EVENTS_BODY_BYTES, MAX_RECORD_BYTES, MAX_RECORDS
from serve.features.surface import read_surface
from serve.http.decoding import decode_request
from serve.http.openapi import openapi
from serve.log.events import MAX_CALL_BYTES, Exposure, decode_batch, pack
from serve.log.replay import decode_stated
from serve.ranking.exposure_buffer import ExposureBuffer
from tests.support.small_surface import TOML

FIELDS = 'place = "category"\nlabels = "set"\nx = "number"\n'
STATED = (
    'labels = { type = "set", request_time = true }\nplace = { type = "category", request_time = true }\n'
)
SURFACE = read_surface(
    TOML.replace("[viewer]\n", f"[viewer]\n{FIELDS}")
    .replace("[candidate]\n", f"[candidate]\n{STATED}")
    .replace("[context]\n", f"[context]\n{FIELDS}"),
    "limits.toml",
)
LONGEST = "\N{ROCKET}" * MAX_FIELD_CHARACTERS
MOST = [f"t{i}" for i in range(MAX_SET_MEMBERS)]
TOO_LONG = [
    ({"place": LONGEST + "x"}, "/place", "257 characters; one may have 256"),
    ({"labels": ["jazz", LONGEST + "x"]}, "/labels/1", "257 characters; one may have 256"),
    ({"labels": [*MOST, "x"]}, "/labels", "257 members; a set may have 256"),
]


def body(**document):
    return json.dumps(document, ensure_ascii=False).encode()


def rank(candidates=("a",), **context):
    return decode_request(
        body(viewer=None, candidates=list(candidates), context=context), SURFACE, event_clock=False
    )


def batch(*records):
    return decode_batch(body(records=list(records)), SURFACE, event_clock=False)


@pytest.mark.parametrize(("fields", "pointer", "said"), TOO_LONG)
def test_a_ranking_whose_fields_are_too_long_is_refused_with_the_limit(fields, pointer, said):
    for where, ask in (
        ("/context", lambda: rank(**fields)),
        ("/candidates/1/fields", lambda: rank(("a", {"candidate": "b", "fields": fields}))),
    ):
        with pytest.raises(RequestError, match=said) as refusal:
            ask()
        assert (refusal.value.status, refusal.value.pointer) == (422, where + pointer)


@pytest.mark.parametrize(("fields", "pointer", "said"), TOO_LONG)
def test_a_record_whose_fields_are_too_long_is_rejected_alone(fields, pointer, said):
    records = [{"type": kind, "id": "a", "fields": fields} for kind in ("viewer", "candidate")]
    good, rejected = batch(*records, {"type": "viewer", "id": "b"})
    assert list(good) == [2]
    assert [one.pointer for one in rejected] == [f"/records/{i}/fields{pointer}" for i in range(2)]
    assert all(said in one.detail for one in rejected)


def test_an_event_of_a_number_beyond_the_limit_is_rejected_alone():
    event = {"type": "event", "viewer": None, "candidate": "a", "kind": SURFACE.events[0]}
    good, (rejected,) = batch(
        *({**event, "id": str(value), "value": value} for value in (1e30, -1e30, 1e300, 0.0, None))
    )
    assert list(good) == [0, 1, 3, 4]
    assert (rejected.pointer, "up to 1e+30" in rejected.detail) == ("/records/2/value", True)


def test_fields_as_long_as_may_be_are_taken():
    assert rank(place=LONGEST, labels=MOST, x=None).context == {"place": LONGEST, "labels": MOST, "x": None}
    good, rejected = batch({"type": "viewer", "id": "a", "fields": {"place": LONGEST, "labels": MOST}})
    assert (list(good), rejected) == ([0], [])


def test_a_log_may_hold_longer_fields_than_a_request():
    stated = json.dumps({"a": {"place": LONGEST * 2}})
    assert decode_stated(stated, "row 0", SURFACE.fields["candidate"]) == {"a": {"place": LONGEST * 2}}


def test_a_record_has_a_limit_in_bytes():
    record = {"type": "viewer", "id": "a", "fields": {"labels": ["x" * 256] * 256}}
    good, (rejected,) = batch(record, {"type": "forget", "viewer": "a"})
    assert list(good) == [1]
    assert rejected.pointer == "/records/0"
    assert f"one may have {MAX_RECORD_BYTES}" in rejected.detail


NUL = "\0host=00"
EVENT = {"type": "event", "id": "e", "viewer": "a", "candidate": "a", "kind": "join"}


@pytest.mark.parametrize(
    ("record", "pointer"),
    [
        (EVENT | {"viewer": NUL}, "/viewer"),
        (EVENT | {"candidate": NUL}, "/candidate"),
        ({"type": "viewer", "id": NUL}, "/id"),
        ({"type": "candidate", "id": NUL}, "/id"),
        ({"type": "forget", "viewer": NUL}, "/viewer"),
    ],
)
def test_a_record_takes_no_id_that_begins_as_a_key_of_a_value(record, pointer):
    good, (rejected,) = batch(record, EVENT | {"id": NUL, "viewer": None, "candidate": "a\0"})
    assert list(good) == [1]
    assert rejected.pointer == f"/records/0{pointer}"
    assert rejected.detail == "the id '\\x00host=00' begins with NUL, as no id may; leave that character out"


@pytest.mark.parametrize(
    ("request_", "pointer"),
    [
        ({"viewer": NUL, "candidates": ["a"]}, "/viewer"),
        ({"viewer": None, "candidates": ["a\0", NUL]}, "/candidates/1"),
        ({"viewer": None, "candidates": ["a", "\t", {"candidate": NUL}]}, "/candidates/2"),
    ],
)
def test_a_ranking_takes_no_id_that_begins_as_a_key_of_a_value(request_, pointer):
    with pytest.raises(RequestError, match=r"'\\x00host=00' begins with NUL") as error:
        decode_request(json.dumps(request_).encode(), SURFACE, event_clock=False)
    assert (error.value.status, error.value.pointer) == (422, pointer)


@pytest.mark.parametrize("fields", [{"place": ""}, {"labels": ["a", ""]}])
def test_a_record_takes_no_empty_string_which_no_reader_of_a_log_takes(fields):
    good, (rejected,) = batch({"type": "viewer", "id": "a", "fields": fields}, EVENT)
    (name,) = fields
    assert (list(good), rejected.pointer) == ([1], f"/records/0/fields/{name}")
    assert rejected.detail.startswith(f"{name!r} holds an empty string; send null")


def test_the_openapi_document_says_the_limits():
    schemas = openapi(SURFACE, event_clock=False)["components"]["schemas"]
    context = schemas["RankRequest"]["properties"]["context"]["properties"]
    assert context["place"]["maxLength"] == MAX_FIELD_CHARACTERS
    assert context["labels"]["maxItems"] == MAX_SET_MEMBERS
    assert context["labels"]["items"]["maxLength"] == MAX_FIELD_CHARACTERS


LARGEST = {
    "numbers": {"type": "viewer", "id": "a", "fields": {"x": 1}},
    "ids": {"type": "forget", "viewer": "\N{ROCKET}" * MAX_ID_CHARACTERS},
    "strings": {"type": "viewer", "id": "a", "fields": {"labels": MOST, "place": LONGEST}},
    "events": {"type": "event", "id": "a", "viewer": "a", "candidate": "a", "kind": "join", "value": 1},
}


@pytest.mark.parametrize("kind", LARGEST)
def test_whatever_fits_a_body_of_records_fits_a_call_of_ingest(kind):
    one = body(**LARGEST[kind])
    num = min(MAX_RECORDS, MAX_EVENTS_BODY_BYTES // (len(one) + 1) - 1)
    raw = b'{"records":[' + b",".join([one] * num) + b"]}"
    assert len(raw) <= MAX_EVENTS_BODY_BYTES
    good, rejected = decode_batch(raw, SURFACE, event_clock=False)
    assert (len(good), rejected) == (num, [])
    assert len(pack(list(good.values()))) <= 2 * len(raw) < MAX_CALL_BYTES


def test_a_ranking_of_the_most_and_longest_ids_is_logged():
    ids = [f"{i:04d}".ljust(MAX_ID_CHARACTERS, "\N{ROCKET}") for i in range(MAX_CANDIDATES)]
    stated = {name: {"price": MAX_NUMBER} for name in ids}
    exposure = Exposure(
        "r", 1, None, ids, bytes(4 * MAX_CANDIDATES), "launch", "model", "full", 1, stated=stated
    )
    buffer = ExposureBuffer(lambda payload: None)
    buffer.put(exposure)
    assert (buffer.num_too_large, buffer.num_dropped) == (0, 0)
    assert buffer.age_s > 0
