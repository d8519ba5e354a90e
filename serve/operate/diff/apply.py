"""Bring what runs to another document, in place: the file's, or the same with the kill switch turned."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from serve.config.application import OUR_APPLICATION, OUR_INGRESS
from serve.config.reader import read
from serve.contract.errors import TabrankError
from serve.operate.diff.consequence import Consequence
from serve.operate.diff.field import unshared
from serve.operate.diff.running import Progress, find

SWITCH = "kill_switch"


def diff(
    config_path: Path,
    run: Path | None,
    address: str | None,
    apply: bool,
    timeout_s: float,
    progress: Progress,
) -> tuple[dict[str, Any], list[str], bool]:
    """How the file differs from what runs, for JSON and in lines; and whether it holds: no difference, or applied.

    With `apply` the file is deployed in place; where Serve would have to restart, nothing is.
    """
    config = read(config_path)
    running = find(run, address)
    for problem in config.warnings:
        progress(f"warning: {problem}")
    found = running.difference(config)
    result = {
        "compared_with": running.where,
        **found.plain(),
        "not_compared": list(running.not_compared),
        "error": running.error,
        "under_way": running.under_way,
        "applied": False,
    }
    lines = found.lines()
    if running.error:
        lines.append(f"the last deploy failed, and what is compared was deployed before it: {running.error}")
    if running.under_way:
        file, since = running.under_way["config"], running.under_way["since"]
        lines.append(
            f"a deploy of {file} is under way since {since}: what is compared was deployed before it"
        )
    if not apply or not (found.changes or running.error or running.under_way):
        return result, lines, not found.changes
    if found.worst == Consequence.RESTART:
        lines.append(
            f"refused: Serve reads this only when it starts: {running.restart(config_path)} restarts it"
        )
        return result, lines, False
    for line in lines:
        progress(line)
    begin = time.monotonic()
    running.deploy(config, timeout_s, progress)
    result |= {"applied": True, "seconds": round(time.monotonic() - begin, 1)}
    return result, [f"applied, and it runs ({result['seconds']} s)"], True


def popular(
    run: Path | None, address: str | None, on: bool, timeout_s: float, progress: Progress
) -> tuple[dict[str, Any], str]:
    """Turn the kill switch of every application of ours, for JSON and in a line."""
    begin = time.monotonic()
    running = find(run, address)
    turned = switched(running.document, on)
    action = "none" if turned == running.document else "deployed"
    if action == "deployed":
        try:
            running.deploy(running.config(turned), timeout_s, progress)
        except KeyboardInterrupt:
            side = "on" if on else "off"
            progress(f"the switch may be {side} already; look with: python -m serve status")
            raise
    seconds = round(time.monotonic() - begin, 1)
    back = "come back with: python -m serve popular --off (or up, or diff --apply: the file is as it was)"
    line = f"every ranking is in popular order ({seconds} s); {back}"
    if not on:
        line = f"the kill switch is off ({seconds} s); the arms rank again"
    return {"kill_switch": on, "action": action, "seconds": seconds}, line


def switched(document: Mapping[str, Any], on: bool) -> dict[str, Any]:
    """The document with the kill switch of every application of ours on, or as if nobody had touched it."""
    turned: dict[str, Any] = unshared(document)
    ours = [app for app in turned["applications"] if app["import_path"] == OUR_APPLICATION]
    if not ours:
        raise TabrankError(f"no application of {OUR_APPLICATION} runs here; only those have a popular order")
    for app in ours:
        deployments = app.setdefault("deployments", [])
        ingress = [deployment for deployment in deployments if deployment["name"] == OUR_INGRESS]
        if not ingress:
            ingress = [{"name": OUR_INGRESS}]
            deployments += ingress
        knobs = ingress[0].get("user_config") or {}
        if on:
            ingress[0]["user_config"] = {**knobs, SWITCH: True}
        elif knobs.get(SWITCH):
            ingress[0]["user_config"] = {key: value for key, value in knobs.items() if key != SWITCH}
    return turned
