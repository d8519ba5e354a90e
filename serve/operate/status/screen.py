"""Render the screen of `python -m serve status`: what to do first, then the numbers."""

from __future__ import annotations

import re
import textwrap
from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

import msgspec
from rich.console import Console
from rich.text import Text

from serve.operate.host.service_state import DeploymentState
from serve.operate.status.causes import shown
from serve.operate.status.report import Report, Traffic
from serve.report.rows import number

# What is shown for an unknown value.
NOTHING = "–"
# A command between backticks stays on one line, so that it can be copied.
COMMAND = re.compile(r"`[^`]*`")
COLOURS = {"healthy": "bold green", "degraded": "bold red", "down": "bold red", "unknown": "bold yellow"}
# The width of the labels, and how many changes fit beside the rest on 24 lines.
LABEL, MAX_CHANGES = 10, 3

# A label, a text, and their style.
Row = tuple[str, str, str]


def show(found: Report, as_json: bool) -> None:
    """Print JSON or the screen, which is wrapped and coloured on a terminal only."""
    console = Console()
    if as_json:
        print(msgspec.json.encode(found).decode())
    else:
        console.print(screen(found, console.width if console.is_terminal else None), soft_wrap=True)


def screen(found: Report, width: int | None = None) -> Text:
    """Return the screen of a report, in lines of at most `width`; commands may be longer.

    Without a width, each item takes one line.
    """
    lines: list[Text] = []
    for label, text, style in _rows(found):
        first, *more = _wrapped(text, width and max(width - LABEL, 20))
        lines.append(Text.assemble((f"{label:<{LABEL}}", style or "dim"), (first, style)))
        lines += [Text(" " * LABEL + rest, style=style) for rest in more]
    return Text("\n", overflow="fold").join(lines)


def _rows(found: Report) -> Iterator[Row]:
    health, faults = found.health, found.faults
    # If the metrics of another machine are silent, this is only advice, and yet the first thing to
    # do.
    first = (faults or [one for one in found.causes if one.text == health.line])[:1]
    runbook = f" ({health.runbook})" if health.runbook else ""
    yield health.state, "".join(map(str, first)) + runbook or "nothing to do", COLOURS[health.state]
    yield from (("and", str(one), "red") for one in faults[1:])
    yield from (("advice", str(one), "yellow") for one in found.causes if one.advice and one not in first)
    traffic = found.traffic or Traffic()
    if found.at:
        clock = f"{datetime.fromisoformat(found.at):%Y-%m-%d %H:%M:%S} UTC"
        window = f", rates over {traffic.window_s:.0f} s" if traffic.window_s else ""
        yield "at", f"{clock}{window}; {found.state} {found.url}".rstrip(), ""
    if found.applications:
        yield from _of_traffic(found, traffic, {one.name for one in faults})
        for name, answer in found.surfaces.items():
            yield name, f"model {answer.get('model') or NOTHING}", ""
            yield "", f"arms {_arms(answer.get('experiment'), traffic.arms)}", ""
        yield from _of_processes(found)
    changes = [f"{datetime.fromisoformat(one.at):%H:%M} {one.what}" for one in found.changes]
    if len(changes) > MAX_CHANGES:
        changes = [*changes[: MAX_CHANGES - 1], f"and {len(changes) - MAX_CHANGES + 1} more (--json)"]
    yield from _several("last hour", changes)
    if found.log:
        replicas = f"; of replicas {found.replica_logs}" if found.replica_logs else ""
        yield "logs", f"{found.log}{replicas}", "dim"
    elif found.kept_logs:
        yield "old logs", found.kept_logs, "dim"


def _of_traffic(found: Report, traffic: Traffic, faults: set[str]) -> Iterator[Row]:
    p50, p90, p99 = map(_number, (traffic.p50_ms, traffic.p90_ms, traffic.p99_ms))
    numbers = f"{_number(traffic.rate_rps)}/s; p50 {p50}, p90 {p90}, p99 {p99} ms"
    yield "rankings", numbers, _red(faults & {"no_traffic"})
    reasons = f"; degraded by {shown(traffic.reasons)}" if traffic.reasons else ""
    yield "answers", (shown(traffic.rungs) or NOTHING) + reasons, _red(faults & {"not_full"})
    # The line is left out if all is well, so that a healthy service fits a small terminal.
    if traffic.unknown_share or traffic.unknown_viewer_share or traffic.no_context_share:
        unknown = f"{number(traffic.unknown_share, '.1%')} of the candidates"
        if traffic.viewers:
            unknown += f", {number(traffic.unknown_viewer_share, '.1%')} of the viewers"
        lacking = f"{number(traffic.no_context_share, '.1%')} of the rankings lack the model's fields"
        yield "unknown", f"{unknown}; {lacking}", _red(faults & {"unknown_candidates", "no_context"})
    records = ", ".join(f"{_number(rate)}/s {name}" for name, rate in traffic.records_rps.items())
    yield "records", records or NOTHING, ""
    failed = f"{number(traffic.error_share, '.1%')} failed{_kinds(traffic.errors)}"
    refused = f"{number(traffic.refused_share, '.1%')} refused"
    mistaken = f"{number(traffic.client_error_share, '.1%')} client errors{_kinds(traffic.client_errors)}"
    red = _red(faults & {"errors", "unattributed", "overloaded", "limited", "client_errors", "unrouted"})
    yield "errors", f"{failed}, {refused}, {mistaken}", red
    old = "features_old", "stale_features"
    # The age is that of an exposure that Ingest has not taken, or of a table that cannot be read.
    has_age = traffic.freshness_ms != 0 or traffic.rate_rps != 0
    age = f"{_number(traffic.freshness_ms)} ms old" if has_age else "no traffic"
    yield "features", age, _red(faults.intersection(old))
    used, limit = found.memory.used_mib or 0, found.memory.limit_mib
    of = f"{used:,} of {limit:,} MiB ({used / limit:.0%}) on {found.memory.node}" if limit else NOTHING
    ours = f"; the service {found.memory_mib:,} MiB in {found.processes} processes"
    yield "memory", of + (ours if found.memory_mib else ""), _red(faults & {"memory_high"})


def _of_processes(found: Report) -> Iterator[Row]:
    counts = [f"{app}/{name} {_replicas(deployment)}" for app, name, deployment in found.deployments]
    yield from _several("replicas", counts)
    alive = Counter(node.pool for node in found.nodes if node.alive)
    pools = ", ".join(f"{count} {pool}" for pool, count in sorted(alive.items())) or NOTHING
    switched = found.kill_switch
    on = NOTHING if switched is None else ", ".join(f"on for {name}" for name in switched) or "off"
    yield "nodes", f"{pools}; kill switch {on}", _red(switched)
    parts = [
        f"{name} {one.count} ({one.last}{f' at {one.at}' if one.at else ''})"
        for name, one in sorted((found.restarts or {}).items())
    ]
    yield from _several("restarts", parts or [NOTHING if found.restarts is None else "none"])


def _several(label: str, texts: list[str]) -> Iterator[Row]:
    yield from ((label if not place else "", text, "") for place, text in enumerate(texts))


def _wrapped(text: str, width: int | None) -> list[str]:
    """Return the text in lines of at most `width`, if given; a longer word has its own line."""
    if width is None:
        return [text]
    joined = COMMAND.sub(lambda command: command[0].replace(" ", "\0"), text)
    lines = textwrap.wrap(joined, width, break_long_words=False, break_on_hyphens=False)
    return [line.replace("\0", " ") for line in lines or [""]]


def _replicas(deployment: DeploymentState) -> str:
    """Return a deployment's counts of replicas by state, and its status if it is not healthy."""
    replicas, status = dict(deployment.replicas), deployment.status.lower()
    if status == "unknown":
        return status
    target = NOTHING if deployment.target is None else deployment.target
    counts = [f"{replicas.pop('RUNNING', 0)}/{target} running"]
    counts += [f"{count} {state.lower()}" for state, count in sorted(replicas.items())]
    return ", ".join(counts) + ("" if status == "healthy" else f" ({status})")


def _arms(experiment: Mapping[str, Any] | None, seen: Mapping[str, float]) -> str:
    """Return each arm's assigned share and its share of the traffic."""
    if not experiment:
        return NOTHING
    arms = [
        f"{arm['name']} {arm['share']:.0%}"
        + (f" (seen {seen[arm['name']]:.0%})" if arm["name"] in seen else "")
        for arm in experiment["arms"]
    ]
    held = [f"held out {experiment['holdout']:.0%}"] if experiment["holdout"] else []
    return ", ".join([*arms, *held])


def _kinds(shares: Mapping[str, float]) -> str:
    return f" ({shown(shares)})" if shares else ""


def _red(is_wrong: object) -> str:
    return "red" if is_wrong else ""


def _number(value: float | None) -> str:
    return NOTHING if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.1f}"
