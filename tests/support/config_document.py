"""Serve config documents: change one field by its path, and make one as a deploy does."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path as FilePath
from typing import Any

from serve.config.application import OUR_APPLICATION
from serve.config.settings import AppArgs
from serve.contract.errors import TabrankError
from serve.operate.host.field import NAMED, Path, unshared


def replaced(document: Mapping[str, Any], path: Path, value: Any) -> dict[str, Any]:
    """Return the document with another value at a path; `...` removes the field."""
    changed: dict[str, Any] = unshared(document)
    here: Any = changed
    for depth, key in enumerate(path[:-1], 1):
        missing: Any = [] if NAMED.get(depth) == key else {}
        here = _item(here, key) if isinstance(here, list) else _entered(here, key, missing)
    last = path[-1]
    if isinstance(here, list):
        here[:] = [item for item in here if item["name"] != last]
        if value is not ...:
            here.append(unshared(value))
    elif value is ...:
        here.pop(last, None)
    else:
        here[last] = unshared(value)
    return changed


def deployed(document: Mapping[str, Any], base: FilePath) -> dict[str, Any]:
    """Return the document with the text of each surface, as its file in `base` is now."""
    made: dict[str, Any] = unshared(document)
    for app in made["applications"]:
        if app["import_path"] == OUR_APPLICATION:
            args = AppArgs.from_mapping(app["args"])
            # An earlier release may have deployed a surface that this one refuses.
            with suppress(TabrankError):
                app["args"]["surface_text"] = args.load_surface(base).text
    return made


def _entered(table: dict[str, Any], key: str, missing: Any) -> Any:
    if table.get(key) is None:
        table[key] = missing
    return table[key]


def _item(items: list[Any], name: str) -> Any:
    if all(item["name"] != name for item in items):
        items.append({"name": name})
    return next(item for item in items if item["name"] == name)
