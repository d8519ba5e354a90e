"""Describe what a deploy changed, for the list of changes in `service.json`."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from serve.config.application import OUR_APPLICATION, OUR_INGRESS
from serve.config.slate import Rule
from serve.contract.typed_reader import read
from serve.operate.diff.difference import SURFACE_TEXT, Change, compare, shown
from serve.operate.host.field import get
from serve.operate.host.kill_switch import SWITCH
from serve.operate.host.service_state import Probe, ServiceChange, iso

# Limits the list. It is enough for an hour in which somebody tries many settings.
MAX_CHANGES = 50
# A change names this many fields, and says how many more there are.
MAX_FIELDS = 3
KEYS = ("deployments", OUR_INGRESS, "user_config", "api_keys")
# Keys of an arm that decide its order.
TREATMENTS = ("weights", "slate")


def now() -> str:
    """Return the present time in ISO form and UTC."""
    return iso(time.time())


def added(changes: list[ServiceChange], what: str, probes: Sequence[Probe] = ()) -> list[ServiceChange]:
    """Return the changes with one more at the end; drop the oldest beyond `MAX_CHANGES`."""
    return [*changes, ServiceChange(now(), what, [*probes])][-MAX_CHANGES:]


def described(file: Path, before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """Return what a deploy changed: the kill switch, or the file's first fields.

    Only weights, rules and the surface's version are shown with their values, as the history of
    what ranked. Other fields may hold secrets.
    """
    changes = compare(before, after, {}).changes
    if changes and all(change.path[-1] == SWITCH[-1] for change in changes):
        switched = (f"{'on' if one.new is True else 'off'} for {one.path[1]}" for one in changes)
        return f"kill switch {', '.join(switched)}"
    # If there is only one application, a deployment's fields are named without it.
    short = 3 if len(after["applications"]) == 1 else 0
    fields = [
        ".".join(map(str, one.path[short * (one.path[2:3] == ("deployments",)) :])) + _treatment(one)
        for one in changes
    ]
    more = [f"{len(fields) - MAX_FIELDS} more"] * (len(fields) > MAX_FIELDS)
    what = ", ".join([*fields[:MAX_FIELDS], *more]) or "no field differs"
    return f"deployed {file.name}: {what}"


def _treatment(change: Change) -> str:
    """Return before and after: a surface's version, or an arm's weights and rules."""
    if change.path[-1] == SURFACE_TEXT:
        return f" {shown(change.old)} → {shown(change.new)}"
    settings, arms, below = change.path[2:5], change.path[5:7], change.path[8:]
    if settings != KEYS[:-1] or arms != ("experiment", "arms"):
        return ""
    if below:
        sides = [(change.old, change.new)] if below[0] in TREATMENTS else []
    else:
        sides = [(get(change.old, (key,)), get(change.new, (key,))) for key in TREATMENTS]
    told = [f"{_in_words(old)} → {_in_words(new)}" for old, new in sides if old != new]
    return f" {', '.join(told)}" if told else ""


def _in_words(value: Any) -> str:
    """Return weights as `diff` shows them, or rules in words."""
    if not isinstance(value, list):
        return shown(value)
    return f"[{'; '.join(read(Rule, rule, 'slate').text for rule in value)}]"


def broken(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Probe]:
    """Return requests, to be sent without a key, that worked before a deploy and may fail now."""
    probes, routes = [], {app.get("route_prefix", "/") for app in after["applications"]}
    for app in (app for app in before["applications"] if app["import_path"] == OUR_APPLICATION):
        here = ("applications", app["name"])
        was, route = app.get("route_prefix", "/"), get(after, (*here, "route_prefix"), "/")
        had, has = (get(side, (*here, *KEYS), None) for side in (before, after))
        if was and was not in routes:
            probes.append(Probe("route_changed", app["name"], f"{was.rstrip('/')}/livez", 404))
        if route and has and not had:
            probes.append(Probe("first_key", app["name"], f"{route.rstrip('/')}/v1/model", 401))
    return probes
