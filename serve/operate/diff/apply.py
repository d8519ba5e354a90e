"""Run `serve diff` and `serve popular`: compare, and deploy another document in place."""

from __future__ import annotations

import time
from pathlib import Path
from shlex import quote
from typing import Any

import msgspec

from serve.config.reader import read
from serve.operate.diff.consequence import Consequence
from serve.operate.diff.meaning import difference
from serve.operate.host.deploying import Progress
from serve.operate.host.kill_switch import switched
from serve.operate.host.running_service import find, options_of


def diff(
    config_path: Path,
    run: Path | None,
    address: str | None,
    apply: bool,
    progress: Progress,
    *,
    yes: bool = False,
) -> tuple[dict[str, Any], list[str], bool]:
    """Compare the file with the running service, and with `apply` deploy it in place.

    Nothing is deployed if Serve would have to restart, if a change is dangerous and `yes` is not
    given, or if another command deployed first.

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
        return result, [*lines, found.refusal(command)], False
    for line in lines:
        progress(line)
    begin = time.monotonic()
    running.deploy(config, progress)
    result |= {"applied": True, "seconds": round(time.monotonic() - begin, 1)}
    return result, [f"applied and running ({result['seconds']} s)"], True


def popular(run: Path | None, address: str | None, on: bool, progress: Progress) -> str:
    """Set the kill switch of each of our applications; return a line.

    It is deployed even where it seems to be set: a deploy that is under way, that failed, or that
    went past the supervisor may have set it otherwise.
    """
    begin = time.monotonic()
    running = find(run, address)
    try:
        running.deploy(running.config(switched(running.document, on)), progress)
    except KeyboardInterrupt:
        state = "on" if on else "off"
        progress(f"the kill switch may be {state} already; look with: python -m serve status")
        raise
    seconds = round(time.monotonic() - begin, 1)
    if not on:
        return f"the kill switch is off ({seconds} s); the arms rank again"
    end = f"python -m serve popular --off{options_of(run, address)}"
    return f"every ranking is in popular order ({seconds} s); only --yes or this ends it: {end}"
