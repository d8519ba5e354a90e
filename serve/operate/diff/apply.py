"""Run `serve diff` and `serve popular`: compare, and deploy another document in place."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from shlex import quote
from typing import Any

import msgspec

from serve.config.application import OUR_APPLICATION, OUR_INGRESS
from serve.config.reader import read
from serve.contract.errors import TabrankError
from serve.operate.diff.consequence import Consequence
from serve.operate.diff.difference import UNCONFIRMED
from serve.operate.diff.meaning import difference
from serve.operate.host.deploying import Progress
from serve.operate.host.field import unshared
from serve.operate.host.running_service import find, options_of

SWITCH = "kill_switch"


def diff(
    config_path: Path,
    run: Path | None,
    address: str | None,
    apply: bool,
    timeout_s: float,
    progress: Progress,
    *,
    yes: bool = False,
) -> tuple[dict[str, Any], list[str], bool]:
    """Compare the file with the running service, and with `apply` deploy it in place.

    Nothing is deployed if Serve would have to restart, or if a change is dangerous and `yes` is not
    given. After a deploy, the routes that the service had before it are asked once.

    Returns:
        The result for JSON, the lines to print, and whether the command held, which means that no
        change was found or that all changes were applied.
    """
    config = read(config_path)
    running = find(run, address)
    for problem in config.warnings:
        progress(f"warning: {problem}")
    found, under_way = difference(running, config), running.state.deploying
    result = {
        "compared_with": running.where,
        **found.plain(),
        "not_compared": list(running.not_compared),
        "error": running.error,
        "under_way": msgspec.to_builtins(under_way),
        "applied": False,
    }
    lines = found.lines()
    if running.error:
        lines.append(f"the last deploy failed; the comparison is with the deploy before it: {running.error}")
    if under_way:
        lines.append(
            f"a deploy of {under_way.config} has been under way since {under_way.since}; this compares with the "
            "deploy before it"
        )
    if not apply or not (found.changes or running.error or under_way):
        return result, lines, not found.changes
    if found.worst == Consequence.RESTART:
        command = running.restart_command(config_path, found.needs_yes)
        lines.append(f"refused: Serve reads this setting only at its start; restart it with: {command}")
        return result, lines, False
    if found.needs_yes and not yes:
        # The command is complete, so that it deploys to the same service when it is pasted.
        command = f"python -m serve diff {quote(str(config_path))} --apply{options_of(run, address)}"
        return result, [*lines, UNCONFIRMED.format(command=command)], False
    for line in lines:
        progress(line)
    begin = time.monotonic()
    answers, asked = running.asked(lambda: running.deploy(config, timeout_s, progress))
    result |= {"applied": True, "seconds": round(time.monotonic() - begin, 1), "answers": answers}
    return result, [*asked, f"applied and running ({result['seconds']} s)"], True


def popular(
    run: Path | None, address: str | None, on: bool, timeout_s: float, progress: Progress
) -> tuple[dict[str, Any], str]:
    """Set the kill switch of each of our applications; return the result for JSON and a line."""
    begin = time.monotonic()
    running = find(run, address)
    switched_document = switched(running.document, on)
    action = "none" if switched_document == running.document else "deployed"
    if action == "deployed":
        try:
            running.deploy(running.config(switched_document), timeout_s, progress)
        except KeyboardInterrupt:
            state = "on" if on else "off"
            progress(f"the kill switch may be {state} already; look with: python -m serve status")
            raise
    seconds = round(time.monotonic() - begin, 1)
    back = "undo it with: python -m serve popular --off (or up, or diff --apply: the file is unchanged)"
    line = f"every ranking is in popular order ({seconds} s); {back}"
    if not on:
        line = f"the kill switch is off ({seconds} s); the arms rank again"
    return {"kill_switch": on, "action": action, "seconds": seconds}, line


def switched(document: Mapping[str, Any], on: bool) -> dict[str, Any]:
    """Return the document with the kill switch of each of our applications set, or removed."""
    switched_document: dict[str, Any] = unshared(document)
    ours = [app for app in switched_document["applications"] if app["import_path"] == OUR_APPLICATION]
    if not ours:
        raise TabrankError(f"no application of {OUR_APPLICATION} runs here; only those have a kill switch")
    for app in ours:
        deployments = app.setdefault("deployments", [])
        ingress = next((one for one in deployments if one["name"] == OUR_INGRESS), None)
        if ingress is None:
            deployments.append(ingress := {"name": OUR_INGRESS})
        knobs = ingress.get("user_config") or {}
        if on:
            ingress["user_config"] = {**knobs, SWITCH: True}
        elif knobs.get(SWITCH):
            ingress["user_config"] = {key: value for key, value in knobs.items() if key != SWITCH}
    return switched_document
