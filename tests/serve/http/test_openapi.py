"""The OpenAPI document in the form that generators of clients read, and its examples."""

from __future__ import annotations

import json
import re

import msgspec
import pytest
from jsonschema import Draft202012Validator

from serve.contract.rankings import Problem, RankAnswer, Reason
from serve.contract.records import EventsAnswer
from serve.features.surface import load_surface, read_surface
from serve.http.decoding import decode_request
from serve.http.openapi import openapi
from serve.log.events import decode_batch
from tests.support.small_surface import TOML

SURFACES = {"spaces": load_surface("spaces"), "tiny": read_surface(TOML)}
ANSWERS = {"rank": RankAnswer, "events": EventsAnswer}
PROBLEM = "application/problem+json"


@pytest.fixture(params=SURFACES)
def surface(request):
    return SURFACES[request.param]


@pytest.fixture
def document(surface):
    return openapi(surface, event_clock=False)


def operations(document):
    return [operation for path in document["paths"].values() for operation in path.values()]


def examples(content):
    return [one["value"] for one in content["examples"].values()]


def test_the_names_of_schemas_and_operations_are_names_in_any_language(document):
    names = list(document["components"]["schemas"])
    assert all(re.fullmatch("[A-Z][A-Za-z]+", name) for name in names)
    assert all(schema["title"] == name for name, schema in document["components"]["schemas"].items())
    ids = [operation["operationId"] for operation in operations(document)]
    assert ids == ["rank", "events", "model", "livez", "readyz", "openapi", "docs"]
    assert all(len(operation["tags"]) == 1 and operation["summary"] for operation in operations(document))


def test_a_record_is_told_by_its_type(document):
    schemas = document["components"]["schemas"]
    records = schemas["EventsRequest"]["properties"]["records"]["items"]
    mapping = records["discriminator"]["mapping"]
    assert [one["$ref"] for one in records["oneOf"]] == list(mapping.values())
    for tag, reference in mapping.items():
        schema = schemas[reference.rpartition("/")[2]]
        assert schema["properties"]["type"] == {"type": "string", "const": tag}
        assert "type" in schema["required"]


def test_values_that_later_versions_may_add_are_not_closed(document):
    degraded = document["components"]["schemas"]["RankAnswer"]["properties"]["degraded"]["items"]
    assert degraded["type"] == "string"
    assert "stale_features" in degraded["x-extensible-enum"]
    assert "enum" not in degraded


def test_refusals_name_the_headers_that_come_with_them(document):
    answers = document["paths"]["/v1/events"]["post"]["responses"]
    named = {status: set(answer["headers"]) - {"X-Request-Id"} for status, answer in answers.items()}
    assert {status: names for status, names in named.items() if names} == {
        "401": {"WWW-Authenticate"},
        "405": {"Allow"},
        "429": {"Retry-After"},
        "503": {"Retry-After"},
    }


def test_the_examples_are_valid_and_of_this_version(document, surface):
    def check(schema, value):
        Draft202012Validator({**schema, "components": document["components"]}).validate(value)

    num = 0
    for operation in operations(document):
        for status, answer in operation["responses"].items():
            for kind, content in answer["content"].items():
                shown = [content["example"]] if kind == PROBLEM else examples({"examples": {}} | content)
                type_ = Problem if kind == PROBLEM else ANSWERS.get(operation["operationId"])
                for value in shown:
                    num += 1
                    check(content["schema"], value)
                    # A field that the type does not have would be lost.
                    assert msgspec.to_builtins(msgspec.convert(value, type_)) == value, (status, value)
    assert num > 40
    given = {path: document["paths"][path]["post"]["requestBody"] for path in ("/v1/rank", "/v1/events")}
    for path, body in given.items():
        content = body["content"]["application/json"]
        for value in examples(content):
            check(content["schema"], value)
            raw = json.dumps(value).encode()
            if path == "/v1/rank":
                assert decode_request(raw, surface, event_clock=False).viewer == "viewer-1"
            else:
                good, rejected = decode_batch(raw, surface, event_clock=False)
                assert (len(good), rejected) == (len(value["records"]), [])
    (ranked,) = examples(
        document["paths"]["/v1/rank"]["post"]["responses"]["200"]["content"]["application/json"]
    )
    assert set(ranked["ranking"][0]["reasons"][0]) == set(Reason.__struct_fields__)


def test_the_first_ranking_to_try_counts_no_impression(surface):
    for event_clock in (False, True):
        body = openapi(surface, event_clock=event_clock)["paths"]["/v1/rank"]["post"]["requestBody"]
        first, live = examples(body["content"]["application/json"])
        assert (first["traffic"], live.get("traffic", "live")) == ("test", "live")
        assert ("now_ms" in first) is event_clock
        decode_request(json.dumps(first).encode(), surface, event_clock=event_clock)
