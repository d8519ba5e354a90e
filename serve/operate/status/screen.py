"""Render the screen of `python -m serve status`: what to do first, then the numbers."""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

from serve.operate.status.causes import line, shown, unread
from serve.operate.status.scrape import PageHistory
from serve.report.rows import number

# Shown for an unknown value.
NOTHING = "–"
# A command between backticks is one word, so that it can be copied.
WORD = re.compile(r"`[^`]*`\S*|\S+")
COLOURS = {"healthy": "bold green", "degraded": "bold red", "down": "bold red", "unknown": "bold yellow"}
# The width of the labels, and how many changes fit beside the rest on 24 lines.
LABEL, MAX_CHANGES = 10, 4

# A label, its text, and their style.
Row = tuple[str, str, str]


def show(found: Mapping[str, Any], as_json: bool) -> None:
    """Print JSON, or the screen: on a terminal wrapped and coloured, else a line for each item."""
    console = Console()
    if as_json:
        print(json.dumps(found, allow_nan=False), flush=True)
    else:
        console.print(screen(found, console.width if console.is_terminal else None), soft_wrap=True)


def keep_showing(run: Path | None, address: str | None, every_s: float, as_json: bool) -> dict[str, Any]:
    """Refresh the screen, or print a line of JSON, until Ctrl-C; return the last state."""
    from serve.operate.status.vitals import look

    history, found = PageHistory(every_s), unread("unknown")
    with contextlib.suppress(KeyboardInterrupt), Live(auto_refresh=False) as live:
        found = look(run, address)
        while True:
            if live.console.is_terminal and not as_json:
                live.update(screen(found, live.console.width), refresh=True)
            else:
                show(found, as_json)
            time.sleep(every_s)
            found = look(run, address, history)
    return found


def screen(found: Mapping[str, Any], width: int | None = None) -> Text:
    """Return the screen for a state, in lines of at most `width` except for long commands.

    Without a width each item is one line.
    """
    lines: list[Text] = []
    for label, text, style in _rows(found):
        first, *more = _wrapped(text, width and max(width - LABEL, 20))
        lines.append(Text.assemble((f"{label:<{LABEL}}", style or "dim"), (first, style)))
        lines += [Text(" " * LABEL + rest, style=style) for rest in more]
    return Text("\n", overflow="fold").join(lines)


def _rows(found: Mapping[str, Any]) -> Iterator[Row]:
    health, causes = found["health"], found.get("causes", [])
    faults = [one for one in causes if not one["advice"]]
    # Silent metrics of another machine are advice, and yet the first thing to do.
    first = (faults or [one for one in causes if one["text"] == health["line"]])[:1]
    runbook = f" ({health['runbook']})" if health["runbook"] else ""
    yield health["state"], "".join(map(line, first)) + runbook or "nothing to do", COLOURS[health["state"]]
    yield from (("and", line(one), "red") for one in faults[1:])
    yield from (("advice", line(one), "yellow") for one in causes if one["advice"] and one not in first)
    traffic = found.get("traffic") or {}
    if at := found.get("at"):
        clock = f"{datetime.fromisoformat(at):%Y-%m-%d %H:%M:%S} UTC"
        window_s = traffic.get("window_s")
        window = f", rates over {window_s:.0f} s" if window_s else ""
        yield "at", f"{clock}{window}; {found['state']} {found.get('url') or ''}".rstrip(), ""
    if found.get("applications"):
        yield from _of_traffic(found, traffic, {one["name"] for one in faults})
        yield from _of_surfaces(found, traffic)
        yield from _of_processes(found)
    changes = [f"{datetime.fromisoformat(one['at']):%H:%M} {one['what']}" for one in found.get("changes", ())]
    if len(changes) > MAX_CHANGES:
        changes = [*changes[: MAX_CHANGES - 1], f"and {len(changes) - MAX_CHANGES + 1} more (--json)"]
    yield from _several("last hour", changes)
    if found.get("log"):
        replicas = f"; of replicas {found['replica_logs']}" if found["replica_logs"] else ""
        yield "logs", f"{found['log']}{replicas}", "dim"
    elif found.get("kept_logs"):
        yield "old logs", found["kept_logs"], "dim"


def _of_traffic(found: Mapping[str, Any], traffic: Mapping[str, Any], faults: set[str]) -> Iterator[Row]:
    latency = [f"{name} {_number(traffic.get(f'{name}_ms'))}" for name in ("p50", "p90", "p99")]
    yield (
        "rankings",
        f"{_number(traffic.get('rate_rps'))}/s; {', '.join(latency)} ms",
        _red(faults & {"no_traffic"}),
    )
    reasons = f"; degraded by {shown(traffic['reasons'])}" if traffic.get("reasons") else ""
    yield "answers", (shown(traffic.get("rungs") or {}) or NOTHING) + reasons, _red(faults & {"not_full"})
    shares = [number(traffic.get(f"{name}_share"), ".1%") for name in ("error", "refused", "client_error")]
    kinds = [f" ({shown(by)})" if (by := traffic.get(name)) else "" for name in ("errors", "client_errors")]
    red = _red(faults & {"errors", "unattributed", "overloaded", "limited", "client_errors", "unrouted"})
    answers = f"{shares[0]} failed{kinds[0]}, {shares[1]} refused, {shares[2]} client errors{kinds[1]}"
    yield "errors", answers, red
    old = "features_old", "stale_features"
    yield "features", f"{_number(traffic.get('freshness_ms'))} ms old", _red(faults.intersection(old))
    memory = found.get("memory") or {}
    used, limit, ours = memory.get("used_mib"), memory.get("limit_mib"), found.get("memory_mib")
    of = f"{used:,} of {limit:,} MiB ({used / limit:.0%}) on {memory['node']}" if limit else NOTHING
    of += f"; the service {ours:,} MiB in {found['processes']} processes" if ours else ""
    yield "memory", of, _red(faults & {"memory_high"})


def _of_surfaces(found: Mapping[str, Any], traffic: Mapping[str, Any]) -> Iterator[Row]:
    for name, answer in (found.get("surfaces") or {}).items():
        arms = _arms(answer.get("experiment"), traffic.get("arms") or {})
        yield name, f"model {answer.get('model') or NOTHING}", ""
        yield "", f"arms {arms}", ""


def _of_processes(found: Mapping[str, Any]) -> Iterator[Row]:
    counts = [
        f"{app}/{name} {_replicas(deployment)}"
        for app, details in found["applications"].items()
        for name, deployment in details["deployments"].items()
    ]
    yield from _several("replicas", counts)
    alive = Counter(node["pool"] for node in found.get("nodes") or () if node["alive"])
    pools = ", ".join(f"{count} {pool}" for pool, count in sorted(alive.items())) or NOTHING
    switched = found.get("kill_switch")
    on = NOTHING if switched is None else ", ".join(f"on for {name}" for name in switched) or "off"
    yield "nodes", f"{pools}; kill switch {on}", _red(switched)
    restarts = found.get("restarts")
    parts = [
        f"{name} {one['count']} ({one['last']}{' at ' + one['at'] if one['at'] else ''})"
        for name, one in sorted((restarts or {}).items())
    ]
    yield from _several("restarts", parts or [NOTHING if restarts is None else "none"])


def _several(label: str, texts: list[str]) -> Iterator[Row]:
    yield from ((label if not place else "", text, "") for place, text in enumerate(texts))


def _wrapped(text: str, width: int | None) -> list[str]:
    """Return the text in lines of at most `width`, if any; a longer word has its own."""
    if width is None:
        return [text]
    lines = [""]
    for word in WORD.findall(text):
        longer = f"{lines[-1]} {word}".lstrip()
        if lines[-1] and len(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def _replicas(deployment: Mapping[str, Any]) -> str:
    """Return the counts of a deployment's replicas by state, and its status unless healthy."""
    replicas, target = dict(deployment["replicas"]), deployment.get("target")
    status = str(deployment["status"]).lower()
    if status == "unknown":
        return status
    counts = [f"{replicas.pop('RUNNING', 0)}/{NOTHING if target is None else target} running"]
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


def _red(is_wrong: object) -> str:
    return "red" if is_wrong else ""


def _number(value: float | None) -> str:
    return NOTHING if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.1f}"
