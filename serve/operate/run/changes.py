"""Describe what a deploy changed, for the list of changes in `service.json`."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from serve.config.application import OUR_APPLICATION, OUR_INGRESS
from serve.operate.diff.apply import SWITCH
from serve.operate.diff.difference import compare
from serve.operate.diff.field import get
from serve.operate.diff.running import shapes_of

# Enough for an hour in which somebody looks for the right setting.
MAX_CHANGES = 50
# The rest of a longer list is counted.
MAX_FIELDS = 3
KEYS = ("deployments", OUR_INGRESS, "user_config", "api_keys")


def now() -> str:
    """Return this moment in ISO form, UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def added(changes: list[dict[str, Any]], what: str, **more: object) -> list[dict[str, Any]]:
    """Return the changes with one more, the newest last; the oldest are dropped."""
    return [*changes, {"at": now(), "what": what, **more}][-MAX_CHANGES:]


def described(
    file: Path, before: Mapping[str, Any], after: Mapping[str, Any], applications: Mapping[str, Any]
) -> str:
    """Return what a deploy changed: the kill switch, or the file's first fields without values."""
    changes = compare(before, after, shapes_of(applications)).changes
    if changes and all(change.path[-1] == SWITCH for change in changes):
        switched = (f"{'on' if one.new is True else 'off'} for {one.path[1]}" for one in changes)
        return f"kill switch {', '.join(switched)}"
    # A deployment's fields are named without its application if there is no other.
    short = 3 if len(after["applications"]) == 1 else 0
    fields = [".".join(map(str, one.path[short * (one.path[2:3] == ("deployments",)) :])) for one in changes]
    more = [f"{len(fields) - MAX_FIELDS} more"] * (len(fields) > MAX_FIELDS)
    what = ", ".join([*fields[:MAX_FIELDS], *more]) or "no field differs"
    return f"deployed {file.name}: {what}"


def broken(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the requests that worked before a deploy and may not after it, as probes of `status`.

    Each has the `name` of its diagnosis, the application (`where`), the `path` to ask without a
    key, and the `status` that tells that callers of before fail.
    """
    probes = []
    for app in (app for app in before["applications"] if app["import_path"] == OUR_APPLICATION):
        here = ("applications", app["name"])
        was, route = (get(side, (*here, "route_prefix"), "/") for side in (before, after))
        had, has = (get(side, (*here, *KEYS), None) for side in (before, after))
        if was and was != route:
            path = f"{was.rstrip('/')}/livez"
            probes.append({"name": "route_changed", "where": app["name"], "path": path, "status": 404})
        if route and has and not had:
            path = f"{route.rstrip('/')}/v1/model"
            probes.append({"name": "first_key", "where": app["name"], "path": path, "status": 401})
    return probes
