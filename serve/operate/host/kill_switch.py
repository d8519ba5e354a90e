"""Kill switch of our applications in a Serve document: set it, or keep it on."""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any

from serve.config.application import OUR_APPLICATION, OUR_INGRESS
from serve.contract.errors import TabrankError
from serve.operate.host.field import Path, get, unshared

# Path of the setting in an application.
SWITCH: Path = ("deployments", OUR_INGRESS, "user_config", "kill_switch")


def switched(document: Mapping[str, Any], on: bool, among: Set[Any] | None = None) -> dict[str, Any]:
    """Return the document with the kill switch of our applications set, or removed.

    If `among` is given, only of those whose name or route is in it. Without it, raise TabrankError
    if there is no application of ours.
    """
    switched_document: dict[str, Any] = unshared(document)
    ours = [app for app in switched_document["applications"] if app["import_path"] == OUR_APPLICATION]
    if not ours and among is None:
        raise TabrankError(f"no application of {OUR_APPLICATION} runs here; only those have a kill switch")
    for app in ours:
        if among is not None and among.isdisjoint((app["name"], app.get("route_prefix", "/"))):
            continue
        deployments = app.setdefault("deployments", [])
        ingress = next((one for one in deployments if one["name"] == OUR_INGRESS), None)
        if ingress is None:
            deployments.append(ingress := {"name": OUR_INGRESS})
        knobs = ingress.get("user_config") or {}
        if on:
            ingress["user_config"] = {**knobs, SWITCH[-1]: True}
        elif knobs.get(SWITCH[-1]):
            ingress["user_config"] = {key: value for key, value in knobs.items() if key != SWITCH[-1]}
    return switched_document


def switched_on(document: Mapping[str, Any]) -> set[Any]:
    """Return the names and the routes of the applications whose kill switch is on."""
    apps = document.get("applications", ())
    on = (app for app in apps if get(document, ("applications", app["name"], *SWITCH), False))
    return {mark for app in on for mark in (app["name"], app.get("route_prefix", "/"))}


def kept(document: Mapping[str, Any], *earlier: Mapping[str, Any]) -> dict[str, Any]:
    """Return the document with the kill switch on wherever an earlier document has it on.

    An application is known by its name or its route, so that a new name does not end the switch.
    """
    return switched(document, True, {mark for one in earlier for mark in switched_on(one)})
