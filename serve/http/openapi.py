"""OpenAPI document and its HTML page, generated from the types of the request bodies."""

from __future__ import annotations

import html
import json
from importlib.metadata import PackageNotFoundError, version
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
from serve.ranking.admission import SCORES_DUE
from serve.report.page import whole_page

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
DEADLINE_MS = {"type": "integer", "minimum": 1, "maximum": 60000}
REQUEST_ID = {"type": "string", "pattern": "^[!-~]{1,256}$"}
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
# Names of msgspec's schemas in the document. Generated clients use the published names.
PUBLISHED = {"StatedCandidate": "serve.api.Candidate", "Candidate": "serve.records.Candidate"}
# Without configured keys no key is needed.
KEYS: list[dict[str, list[str]]] = [{"ApiKey": []}, {}]


def openapi(surface: Surface, *, event_clock: bool) -> dict[str, Any]:
    """Return the OpenAPI 3.1 document of one surface."""
    schemas, components = _published(
        msgspec.json.schema_components(
            [RankRequest, RankAnswer, EventsRequest, EventsAnswer, Problem],
            ref_template="#/components/schemas/{name}",
        )
    )
    request, answer, events_request, events_answer, problem = schemas
    _sharpen(components, surface, event_clock)
    given = _header("X-Request-Id", REQUEST_ID, "Returned in the answer.")

    def operation(summary: str, answered: dict[str, Any], refused: dict[str, str], **more: Any) -> Any:
        content = {"application/problem+json": {"schema": problem}}
        why = sorted((ANY | refused).items())
        refusals = {status: {"description": text, "content": content} for status, text in why}
        keys = {"security": KEYS} if "401" in refused else {}
        responses = {"200": answered, **refusals}
        return {"summary": summary, **keys, "parameters": [given], **more, "responses": responses}

    def status(summary: str, refused: tuple[str, ...] = ()) -> Any:
        answered = _content(summary, {"type": "object"})
        return {"get": operation(summary, answered, {code: REFUSED[code] for code in refused})}

    late = f"Without scores at {100 * SCORES_DUE:g} % of it, the popular order."
    rank = operation(
        "Rank live candidates for a viewer",
        _content("The ranking.", answer),
        REFUSED,
        operationId="rank",
        parameters=[
            _header("X-Deadline-Ms", DEADLINE_MS, late),
            given,
            _header("X-Arm", {"type": "string"}, "For tests: rank with this arm; counts for no experiment."),
        ],
        requestBody=_body(request),
    )
    events = operation(
        "Record events of viewers, and changes of viewers and candidates",
        _content("The outcome of each record; accepted records are durable.", events_answer),
        REFUSED | NOT_TAKEN,
        operationId="events",
        requestBody=_body(events_request),
    )
    page = {"description": "An HTML page", "content": {"text/html": {}}}
    return {
        "openapi": "3.1.0",
        "info": {"title": f"tabrank: {surface.name}", "version": _version()},
        "paths": {
            "/v1/rank": {"post": rank},
            "/v1/events": {"post": events},
            "/v1/model": status("The model in use, its features and the limits", ("401", "403", "429")),
            "/livez": status("Liveness of the process"),
            "/readyz": status("State of the store, the model and the candidate table, and what is wrong"),
            "/openapi.json": status("This document"),
            "/docs": {"get": operation("This document, as HTML", page, {})},
        },
        "components": {
            "schemas": components,
            "securitySchemes": {"ApiKey": {"type": "apiKey", "in": "header", "name": "X-Api-Key"}},
        },
    }


def docs_page(document: dict[str, Any]) -> str:
    """Return a self-contained page: no script, and nothing loaded from elsewhere."""
    parts = []
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            answers = "".join(
                f"<li><b>{status}</b> {html.escape(response['description'])}</li>"
                for status, response in operation["responses"].items()
            )
            parts.append(
                f"<h2>{method.upper()} {path}</h2><p>{html.escape(operation['summary'])}</p><ul>{answers}</ul>"
            )
    for name, schema in document["components"]["schemas"].items():
        parts.append(f"<h3>{name}</h3><pre>{html.escape(json.dumps(schema, indent=2))}</pre>")
    return whole_page(document["info"]["title"], parts)


def _published(schemas: Any) -> Any:
    """Return msgspec's schemas under the names of `PUBLISHED`."""
    text = json.dumps(schemas)
    for name, published in PUBLISHED.items():
        text = text.replace(f'"#/components/schemas/{name}"', f'"#/components/schemas/{published}"')
        text = text.replace(f'"{name}": {{', f'"{published}": {{')
        text = text.replace(f'"title": "{name}"', '"title": "Candidate"')
    return json.loads(text)


def _sharpen(components: dict[str, Any], surface: Surface, event_clock: bool) -> None:
    """Add the surface's fields to the schemas, and require `now_ms` with the event clock."""
    stated = {name: field for name, field in surface.fields["candidate"].items() if field.request_time}
    for schema, key, fields in (
        ("RankRequest", "context", surface.fields["context"]),
        ("serve.api.Candidate", "fields", stated),
        ("Viewer", "fields", surface.fields["viewer"]),
        ("serve.records.Candidate", "fields", surface.fields["candidate"]),
    ):
        components[schema]["properties"][key] |= {
            "properties": {name: VALUES[field.type] for name, field in fields.items()},
            "additionalProperties": False,
        }
    request = components["RankRequest"]
    request["properties"]["candidates"]["uniqueItems"] = True
    components["Event"]["properties"]["kind"]["enum"] = list(surface.events)
    if not event_clock:
        del request["properties"]["now_ms"]
        return
    request["required"].append("now_ms")
    request["properties"]["now_ms"] = request["properties"]["now_ms"]["anyOf"][0]


def _content(description: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _body(schema: dict[str, Any]) -> dict[str, Any]:
    return {"required": True, "content": {"application/json": {"schema": schema}}}


def _header(name: str, schema: dict[str, Any], description: str) -> dict[str, Any]:
    return {"name": name, "in": "header", "required": False, "schema": schema, "description": description}


def _version() -> str:
    try:
        return version("tabrank")
    except PackageNotFoundError:
        return "0"
