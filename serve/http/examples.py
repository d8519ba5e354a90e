"""Examples of the OpenAPI document: those of `examples.json`, with the names of a surface."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from serve.features.surface import Surface

TEMPLATE = Path(__file__).with_suffix(".json").read_text()
NOW_MS = 1_767_225_600_000
VALUES = {"number": 3, "time": NOW_MS, "category": "example", "set": ["example"]}


def examples(surface: Surface, *, event_clock: bool) -> Any:
    """Return the examples of `rank` and `events`: of their requests, and of answers by status."""
    fields = {
        owner: {name: VALUES[field.type] for name, field in declared.items()}
        for owner, declared in surface.fields.items()
    }
    stated = {name: VALUES[f.type] for name, f in surface.fields["candidate"].items() if f.request_time}
    names = {"surface": surface.name, "event": surface.label.event, "feature": next(iter(surface.features))}
    text = TEMPLATE
    for name, value in (fields | {"stated": stated} | names).items():
        text = text.replace(f'"${name}"', json.dumps(value))
    found = json.loads(text)
    for example in found["rank"]["request"].values() if event_clock else ():
        example["value"]["now_ms"] = NOW_MS
    return found
