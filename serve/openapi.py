"""The OpenAPI document, from the same types that decode and encode the bodies, and a page that shows it."""

from __future__ import annotations

import html
import json
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import msgspec

from serve.api import Problem, RankAnswer, RankRequest
from serve.records import EventsAnswer, EventsRequest
from serve.surface import Surface

STYLE = (
    "body{font:16px/1.5 sans-serif;max-width:50em;margin:2em auto;padding:0 1em}"
    "pre{background:#f4f4f4;padding:1em;overflow:auto}"
)
REFUSALS = {
    "400": "Not JSON, or a header that cannot be read.",
    "403": "X-Arm without the key for it.",
    "408": "The body did not come in time.",
    "413": "The body is too large.",
    "415": "Not application/json.",
    "422": "JSON that means nothing; `pointer` says where.",
    "500": "A fault of ours.",
}


def openapi(surface: Surface) -> dict[str, Any]:
    """OpenAPI 3.1 for one surface."""
    (request, answer, events_request, events_answer, problem), components = msgspec.json.schema_components(
        [RankRequest, RankAnswer, EventsRequest, EventsAnswer, Problem],
        ref_template="#/components/schemas/{name}",
    )
    refused = {
        status: {"description": why, "content": {"application/problem+json": {"schema": problem}}}
        for status, why in REFUSALS.items()
    }
    headers = [
        _header(
            "X-Deadline-Ms",
            {"type": "integer", "minimum": 1, "maximum": 60000},
            "After it, the popular order.",
        ),
        _header("X-Request-Id", {"type": "string", "maxLength": 256}, "Comes back in the answer."),
        _header("X-Arm", {"type": "string"}, "For testers: this arm ranks, and it counts for no experiment."),
        _header("X-Api-Key", {"type": "string"}, "The key that X-Arm needs."),
    ]
    rank = {
        "summary": "Rank live candidates for a viewer",
        "operationId": "rank",
        "parameters": headers,
        "requestBody": {"required": True, "content": {"application/json": {"schema": request}}},
        "responses": {"200": _json("The ranking.", answer), **refused},
    }
    events = {
        "summary": "Take what viewers did, and what changed of viewers and candidates",
        "operationId": "events",
        "requestBody": {"required": True, "content": {"application/json": {"schema": events_request}}},
        "responses": {
            "200": _json("What became of the records; those accepted are durable.", events_answer),
            **{status: answered for status, answered in refused.items() if status != "403"},
            "429": {**refused["500"], "description": "Too much is waiting: send them again (Retry-After)."},
            "503": {**refused["500"], "description": "Perhaps not taken: send them again (Retry-After)."},
        },
    }
    paths: dict[str, Any] = {"/v1/rank": {"post": rank}, "/v1/events": {"post": events}}
    for path, what in (
        ("/v1/model", "The model in use, its features and the limits"),
        ("/livez", "Whether the process answers"),
        ("/readyz", "What it would answer from"),
        ("/openapi.json", "This document"),
    ):
        operation = {"summary": what, "responses": {"200": _json(what, {"type": "object"})}}
        paths[path] = {"get": operation}
    page = {"description": "A page for people", "content": {"text/html": {}}}
    paths["/docs"] = {"get": {"summary": "This document, to read", "responses": {"200": page}}}
    return {
        "openapi": "3.1.0",
        "info": {"title": f"tabrank: {surface.name}", "version": _version()},
        "paths": paths,
        "components": {"schemas": components},
    }


def docs_page(document: dict[str, Any]) -> str:
    """A self-contained page: no script, nothing fetched from elsewhere."""
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
    title = html.escape(document["info"]["title"])
    head = f"<!doctype html><meta charset=utf-8><title>{title}</title><style>{STYLE}</style>"
    return f"{head}<h1>{title}</h1>{''.join(parts)}"


def _json(description: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _header(name: str, schema: dict[str, Any], description: str) -> dict[str, Any]:
    return {"name": name, "in": "header", "required": False, "schema": schema, "description": description}


def _version() -> str:
    try:
        return version("tabrank")
    except PackageNotFoundError:
        return "0"
