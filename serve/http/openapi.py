"""OpenAPI document: the wire types in `openapi.json`; `api.md` beside it describes the API."""

from __future__ import annotations

import json
from collections.abc import Mapping
from http import HTTPStatus
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import msgspec

from serve.contract.rankings import Problem, RankAnswer, RankRequest
from serve.contract.records import EventsAnswer, EventsRequest
from serve.features.field_types import TYPES
from serve.features.surface import Field, Surface
from serve.http.introspection import Description, Liveness, Readiness
from serve.ranking.admission import SCORES_DUE

ABOUT = Path(__file__).with_name("api.md").read_text()
# The document without its schemas. A value "$name" stands for a value from the surface or the code.
# A status that states no answer is one of the `problems`. Each operation gets what is `everywhere`.
TEMPLATE = Path(__file__).with_suffix(".json").read_text()
WIRE = (RankRequest, RankAnswer, EventsRequest, EventsAnswer, Problem, Description, Readiness, Liveness)
NOW_MS = TYPES["time"].example


def openapi(surface: Surface, *, event_clock: bool) -> dict[str, Any]:
    """Return the OpenAPI 3.1 document of one surface."""
    template = "#/components/schemas/{name}"
    _, components = _for_generators(msgspec.json.schema_components(WIRE, ref_template=template))
    _sharpen(components, surface, event_clock)
    document = _filled(surface)
    document["components"]["schemas"] = components
    everywhere, problems = document.pop("everywhere"), document.pop("problems")
    for path in document["paths"].values():
        for operation in path.values():
            _complete(operation, everywhere, problems)
    if event_clock:
        ranking = document["paths"]["/v1/rank"]["post"]["requestBody"]["content"]["application/json"]
        for example in ranking["examples"].values():
            example["value"]["now_ms"] = NOW_MS
    return document


def _filled(surface: Surface) -> dict[str, Any]:
    """Return the template with the names and fields of a surface."""
    values = {
        "title": f"tabrank: {surface.name}",
        "version": _version(),
        "about": ABOUT,
        "late": f"A request that has no scores after {100 * SCORES_DUE:g} % of it gets the popular order.",
        "surface": surface.name,
        "event": surface.primary.event,
        "feature": next(iter(surface.features)),
        "stated": _examples(surface.stated),
        **{owner: _examples(fields) for owner, fields in surface.fields.items()},
    }
    text = TEMPLATE
    for name, value in values.items():
        text = text.replace(f'"${name}"', json.dumps(value))
    return dict(json.loads(text))


def _complete(operation: dict[str, Any], everywhere: dict[str, Any], problems: dict[str, Any]) -> None:
    """Add what operations have in common: a header, security, and the problems that they answer."""
    answers = operation["responses"]
    operation["parameters"] = [*operation.get("parameters", ()), everywhere["parameter"]]
    # An operation that never answers 401 needs no key.
    if "401" in answers:
        operation["security"] = everywhere["security"]
    for status in sorted({*answers, *everywhere["statuses"]}):
        answer = answers.pop(status, None) or _problem(status, **problems[status])
        answers[status] = answer | {"headers": everywhere["headers"] | answer.get("headers", {})}


def _problem(status: str, description: str, headers: dict[str, Any] | None = None) -> dict[str, Any]:
    title, place = HTTPStatus(int(status)).phrase.lower(), "/candidates/2" if status == "422" else None
    problem = Problem(title, int(status), description, pointer=place, request_id="request-17")
    content = {"schema": {"$ref": "#/components/schemas/Problem"}, "example": msgspec.to_builtins(problem)}
    answer = {"description": description, "headers": headers or {}}
    return answer | {"content": {"application/problem+json": content}}


def _examples(fields: Mapping[str, Field]) -> dict[str, Any]:
    return {name: TYPES[field.type].example for name, field in fields.items()}


def _for_generators(schema: Any) -> Any:
    """Return msgspec's schemas in the form that generators of clients read.

    Enumerations get a type, and one with a single value becomes a constant. Types that have a
    discriminator become `oneOf`. Defaults are left out, because openapi-typescript requires callers
    to send what has a default.
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
    for schema, key, fields in (
        ("RankRequest", "context", surface.fields["context"]),
        ("StatedCandidate", "fields", surface.stated),
        ("Viewer", "fields", surface.fields["viewer"]),
        ("Candidate", "fields", surface.fields["candidate"]),
    ):
        known = {name: TYPES[field.type].schema for name, field in fields.items()}
        components[schema]["properties"][key] |= {"properties": known, "additionalProperties": False}
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


def _version() -> str:
    try:
        return version("tabrank")
    except PackageNotFoundError:
        return "0"
