"""Read and replace fields of a Serve config document by path; list items go by their names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

# Keys from the root down; in the lists of applications and of deployments, the items' names.
Path = tuple[str, ...]
# The lists whose items have names, by the depth at which they lie.
NAMED = {1: "applications", 3: "deployments"}


class Absent:
    """Value of a field that a document leaves out, with its default where that is known."""

    def __init__(self, default: Any = ...) -> None:
        self.default = default

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Absent)

    __hash__ = None  # type: ignore[assignment]


def differing(old: Any, new: Any, path: Path = ()) -> Iterator[Path]:
    """Yield the paths of the fields that differ, as deep as both sides have tables."""
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
            yield from differing(old.get(key, Absent()), new.get(key, Absent()), (*path, str(key)))


def get(document: Mapping[str, Any], path: Path) -> Any:
    """Return the value at a path, or `Absent`."""
    value: Any = document
    for depth, key in enumerate(path):
        if NAMED.get(depth) == path[depth - 1]:
            value = _by_name(value)
        value = value.get(key, Absent()) if isinstance(value, Mapping) else Absent()
    return value


def replaced(document: Mapping[str, Any], path: Path, value: Any) -> dict[str, Any]:
    """Return the document with another value at a path; `Absent` removes the field."""
    changed: dict[str, Any] = unshared(document)
    here: Any = changed
    for depth, key in enumerate(path[:-1], 1):
        missing: Any = [] if NAMED.get(depth) == key else {}
        here = _item(here, key) if isinstance(here, list) else _entered(here, key, missing)
    last = path[-1]
    if isinstance(here, list):
        here[:] = [item for item in here if item["name"] != last]
        if not isinstance(value, Absent):
            here.append(unshared(value))
    elif isinstance(value, Absent):
        here.pop(last, None)
    else:
        here[last] = unshared(value)
    return changed


def unshared(value: Any) -> Any:
    """Return a copy that shares no part with itself; `deepcopy` would keep YAML aliases shared."""
    if isinstance(value, Mapping):
        return {key: unshared(item) for key, item in value.items()}
    return [unshared(item) for item in value] if isinstance(value, list) else value


def text(path: Path) -> str:
    """Return a path for people: applications[spaces].deployments[Scorer].max_ongoing_requests."""
    shown = ""
    for depth, key in enumerate(path):
        shown += f"[{key}]" if NAMED.get(depth) == path[depth - 1] else f".{key}"
    return shown.lstrip(".")


def _by_name(items: Any) -> dict[str, Any]:
    return {item["name"]: item for item in items} if isinstance(items, list) else {}


def _entered(table: dict[str, Any], key: str, missing: Any) -> Any:
    if table.get(key) is None:
        table[key] = missing
    return table[key]


def _item(items: list[Any], name: str) -> Any:
    if name not in _by_name(items):
        items.append({"name": name})
    return _by_name(items)[name]
