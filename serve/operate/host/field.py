"""Read fields of a Serve config document by path; list items go by their names."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import msgspec

# Keys from the root down. In the lists of applications and of deployments, they are the items'
# names.
Path = tuple[str, ...]
# The lists whose items have names, by the depth at which they lie.
NAMED = {1: "applications", 3: "deployments"}


def differing(old: Any, new: Any, effect: Callable[[Path, Any], Any], path: Path = ()) -> Iterator[Path]:
    """Yield the paths of the fields that differ; where both sides have tables, look inside.

    `effect` returns a value as it is to be compared. It gets ... for a field that is left out.
    """
    if path and NAMED.get(len(path)) == path[-1]:
        old, new = _by_name(old), _by_name(new)
        # A deployment that is not listed exists with no options.
        if path[-1] == "deployments":
            old, new = ({name: side.get(name, {}) for name in {**old, **new}} for side in (old, new))
    if not isinstance(old, Mapping) or not isinstance(new, Mapping):
        if old != new:
            yield path
        return
    for key in {**old, **new}:
        if not (key == "name" and len(path) - 1 in NAMED):
            below = (*path, str(key))
            was, now = (effect(below, side.get(key, ...)) for side in (old, new))
            yield from differing(was, now, effect, below)


def get(document: Mapping[str, Any], path: Path, missing: Any = ...) -> Any:
    """Return the value at a path, or `missing` where the document leaves the field out."""
    value: Any = document
    for depth, key in enumerate(path):
        if NAMED.get(depth) == path[depth - 1]:
            value = _by_name(value)
        if not isinstance(value, Mapping) or key not in value:
            return missing
        value = value[key]
    return value


def unshared(document: Any) -> Any:
    """Return a copy as JSON would hold it, where no part appears twice as with YAML's aliases."""
    return msgspec.to_builtins(document, str_keys=True)


def parsed(document: Mapping[str, Any]) -> Any:
    """Return a Serve document as Ray's own model, `ServeDeploySchema`."""
    from ray.serve.schema import ServeDeploySchema

    # The validator of `gang_scheduling_config` puts an object into its input.
    return ServeDeploySchema.model_validate(unshared(document))


def level_of(path: Path) -> Path:
    """Return the keys of a path without the names of applications and deployments."""
    return tuple(key for depth, key in enumerate(path) if NAMED.get(depth) != path[depth - 1])


def text(path: Path) -> str:
    """Return a path for people: applications[spaces].deployments[Scorer].max_ongoing_requests."""
    shown = ""
    for depth, key in enumerate(path):
        shown += f"[{key}]" if NAMED.get(depth) == path[depth - 1] else f".{key}"
    return shown.lstrip(".")


def _by_name(items: Any) -> dict[str, Any]:
    return {item["name"]: item for item in items} if isinstance(items, list) else {}
