"""OpenAPI document, generated from the wire types; `api.md` beside it describes the API."""

from __future__ import annotations

from http import HTTPStatus
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import msgspec

from serve.contract.rankings import (
    MAX_FIELD_CHARACTERS,
    MAX_MS,
    MAX_NUMBER,
    MAX_SET_MEMBERS,
    Problem,
    RankAnswer,
    RankRequest,
)
from serve.contract.records import EventsAnswer, EventsRequest
from serve.features.surface import Surface
from serve.http.examples import examples
from serve.http.introspection import Description, Liveness, Readiness
from serve.ranking.admission import SCORES_DUE

ABOUT = Path(__file__).with_name("api.md").read_text()
TYPES = (RankRequest, RankAnswer, EventsRequest, EventsAnswer, Problem, Description, Readiness, Liveness)
ANY = {
    "400": "Malformed JSON or header.",
    "405": "Wrong method; Allow names the right one.",
    "431": "Too many headers, or too long.",
    "500": "Internal error.",
}
REFUSED = {
    "401": "No valid key in X-Api-Key although one is needed.",
    "403": "X-Arm without a key that allows it; Host or Origin of another service.",
    "408": "The body did not arrive in time.",
    "413": "The body is too large.",
    "415": "Not application/json.",
    "422": "Invalid value; `pointer` is a JSON Pointer to it.",
    "429": "Server overloaded, or rate limit of the key exceeded: retry (Retry-After).",
}
NOT_TAKEN = {"503": "Records may not have been stored: retry (Retry-After)."}
TEXT = {"type": "string"}
DEADLINE_MS = {"type": "integer", "minimum": 1, "maximum": 60000}
REQUEST_ID = {"type": "string", "pattern": "^[!-~]{1,256}$"}
RETRY_AFTER = {"Retry-After": {"required": True, "schema": {"type": "integer"}, "description": "Seconds."}}
# Headers of answers, by status.
SENT: dict[str, Any] = {
    "401": {"WWW-Authenticate": {"required": True, "schema": TEXT}},
    "405": {"Allow": {"required": True, "schema": TEXT}},
    "429": RETRY_AFTER,
    "503": RETRY_AFTER,
}
SENT_ALWAYS = {"X-Request-Id": {"schema": REQUEST_ID, "description": "That of the request, else a new one."}}
VALUES: dict[str, dict[str, Any]] = {
    "number": {"type": ["number", "null"], "minimum": -MAX_NUMBER, "maximum": MAX_NUMBER},
    "time": {"type": ["number", "null"], "minimum": -MAX_MS, "maximum": MAX_MS},
    "category": {"type": ["string", "null"], "maxLength": MAX_FIELD_CHARACTERS},
    "set": {
        "type": ["array", "null"],
        "maxItems": MAX_SET_MEMBERS,
        "items": {"type": "string", "maxLength": MAX_FIELD_CHARACTERS},
    },
}
# Without configured keys no key is needed.
KEYS: list[dict[str, list[str]]] = [{"ApiKey": []}, {}]


def openapi(surface: Surface, *, event_clock: bool) -> dict[str, Any]:
    """Return the OpenAPI 3.1 document of one surface."""
    template = "#/components/schemas/{name}"
    schemas, components = _for_generators(msgspec.json.schema_components(TYPES, ref_template=template))
    schema_of = dict(zip(TYPES, schemas, strict=True))
    _sharpen(components, surface, event_clock)
    shown = examples(surface, event_clock=event_clock)
    given = _header("X-Request-Id", REQUEST_ID, "Returned in the answer.")

    def operation(tag: str, name: str, summary: str, answered: Any, refused: Any, **more: Any) -> Any:
        answers = dict(answered)
        for status, text in (ANY | refused).items():
            content = {"schema": schema_of[Problem], "example": _problem(status, text)}
            answers[status] = {
                "description": text,
                "headers": SENT_ALWAYS | SENT.get(status, {}),
                "content": {"application/problem+json": content},
            }
        keys = {"security": KEYS} if "401" in refused else {}
        about = {"operationId": name, "tags": [tag], "summary": summary, "parameters": [given]}
        return about | keys | more | {"responses": dict(sorted(answers.items()))}

    def status(name: str, summary: str, schema: Any, refused: tuple[str, ...] = ()) -> Any:
        why = {code: REFUSED[code] for code in refused}
        return {"get": operation("service", name, summary, {"200": _content(summary, schema)}, why)}

    late = f"Without scores at {100 * SCORES_DUE:g} % of it, the popular order."
    rank = operation(
        "ranking",
        "rank",
        "Rank live candidates for a viewer",
        {"200": _content("The ranking.", schema_of[RankAnswer], shown["rank"]["200"])},
        REFUSED,
        parameters=[
            _header("X-Deadline-Ms", DEADLINE_MS, late),
            given,
            _header("X-Arm", TEXT, "For tests: rank with this arm; counts for no experiment."),
        ],
        requestBody=_body(schema_of[RankRequest], shown["rank"]["request"]),
    )
    outcomes = {
        "200": "Every record was taken, or is a duplicate; accepted records are durable.",
        "207": "Some or all records were rejected, each with a reason; the accepted ones are durable.",
    }
    events = operation(
        "events",
        "events",
        "Record events of viewers, and changes of viewers and candidates",
        {
            code: _content(text, schema_of[EventsAnswer], shown["events"][code])
            for code, text in outcomes.items()
        },
        REFUSED | NOT_TAKEN,
        description="Records are stored, also when sent from `/docs`, and move the next rankings.",
        requestBody=_body(schema_of[EventsRequest], shown["events"]["request"]),
    )
    described = "The model in use, its features and the limits"
    ready = "State of the store, the model and the candidate table, and what is wrong"
    page = {"description": "An HTML page", "content": {"text/html": {"schema": TEXT}}}
    return {
        "openapi": "3.1.0",
        "info": {"title": f"tabrank: {surface.name}", "version": _version(), "description": ABOUT},
        # The paths lie beside this document, whatever the route prefix.
        "servers": [{"url": "."}],
        "paths": {
            "/v1/rank": {"post": rank},
            "/v1/events": {"post": events},
            "/v1/model": status("model", described, schema_of[Description], ("401", "403", "429")),
            "/livez": status("livez", "Liveness of the process", schema_of[Liveness]),
            "/readyz": status("readyz", ready, schema_of[Readiness]),
            "/openapi.json": status("openapi", "This document", {"type": "object"}),
            "/docs": {"get": operation("service", "docs", "A page to try requests on", {"200": page}, {})},
        },
        "components": {
            "schemas": components,
            "securitySchemes": {"ApiKey": {"type": "apiKey", "in": "header", "name": "X-Api-Key"}},
        },
    }


def _for_generators(schema: Any) -> Any:
    """Return msgspec's schemas in the form that generators of clients read.

    Enumerations have a type, one of a single value is a constant, and what has a discriminator is
    `oneOf`. openapi-typescript requires callers to send what has a default, so nothing has one.
    """
    if isinstance(schema, list | tuple):
        return [_for_generators(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    schema = {key: _for_generators(value) for key, value in schema.items() if key != "default"}
    if "discriminator" in schema:
        schema["oneOf"] = schema.pop("anyOf")
    if isinstance(schema.get("enum"), list):
        schema["type"] = "string" if isinstance(schema["enum"][0], str) else "boolean"
        if len(schema["enum"]) == 1:
            schema["const"] = schema.pop("enum")[0]
    return schema


def _sharpen(components: dict[str, Any], surface: Surface, event_clock: bool) -> None:
    """Add the surface's fields to the schemas, and require `now_ms` with the event clock."""
    stated = {name: field for name, field in surface.fields["candidate"].items() if field.request_time}
    for schema, key, fields in (
        ("RankRequest", "context", surface.fields["context"]),
        ("StatedCandidate", "fields", stated),
        ("Viewer", "fields", surface.fields["viewer"]),
        ("Candidate", "fields", surface.fields["candidate"]),
    ):
        components[schema]["properties"][key] |= {
            "properties": {name: VALUES[field.type] for name, field in fields.items()},
            "additionalProperties": False,
        }
    request = components["RankRequest"]
    request["properties"]["candidates"]["uniqueItems"] = True
    components["Event"]["properties"]["kind"]["enum"] = list(surface.events)
    # Later versions may add values, so a client must not refuse one that it does not know.
    degraded = components["RankAnswer"]["properties"]["degraded"]
    degraded["items"] = {"type": "string", "x-extensible-enum": degraded["items"]["enum"]}
    if not event_clock:
        del request["properties"]["now_ms"]
        return
    request["required"].append("now_ms")
    request["properties"]["now_ms"] = request["properties"]["now_ms"]["anyOf"][0]


def _content(description: str, schema: dict[str, Any], shown: Any = None) -> dict[str, Any]:
    return {"description": description, "headers": SENT_ALWAYS, "content": _json(schema, shown)}


def _body(schema: dict[str, Any], shown: Any) -> dict[str, Any]:
    return {"required": True, "content": _json(schema, shown)}


def _json(schema: dict[str, Any], shown: Any) -> dict[str, Any]:
    return {"application/json": {"schema": schema} | ({"examples": shown} if shown else {})}


def _problem(status: str, text: str) -> dict[str, Any]:
    title, place = HTTPStatus(int(status)).phrase.lower(), "/candidates/2" if status == "422" else None
    problem = Problem(title, int(status), text, pointer=place, request_id="request-17")
    return dict(msgspec.to_builtins(problem))


def _header(name: str, schema: dict[str, Any], description: str) -> dict[str, Any]:
    return {"name": name, "in": "header", "required": False, "schema": schema, "description": description}


def _version() -> str:
    try:
        return version("tabrank")
    except PackageNotFoundError:
        return "0"
