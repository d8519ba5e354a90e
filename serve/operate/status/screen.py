"""Render the screen of `python -m serve status`."""

from __future__ import annotations

import contextlib
import io
import json
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from serve.operate.status.scrape import PageHistory

# Shown for an unknown value.
NOTHING = "–"
WIDTH = 110
# The state before the first read.
UNSEEN: dict[str, Any] = {"state": "unknown", "degraded": [], "advice": []}


def render(found: Mapping[str, Any]) -> str:
    """Return the screen as plain text."""
    console = Console(file=io.StringIO(), width=WIDTH, color_system=None)
    console.print(screen(found))
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return "\n".join(line.rstrip() for line in text.rstrip().splitlines())


def keep_showing(run: Path | None, address: str | None, every_s: float, as_json: bool) -> dict[str, Any]:
    """Refresh the screen, or print a line of JSON, until Ctrl-C; return the last state."""
    from serve.operate.status.vitals import look

    history, found = PageHistory(every_s), UNSEEN
    with contextlib.suppress(KeyboardInterrupt), Live(auto_refresh=False) as live:
        found = look(run, address)
        while True:
            if as_json:
                print(json.dumps(found), flush=True)
            else:
                live.update(screen(found), refresh=True)
            time.sleep(every_s)
            found = look(run, address, history)
    return found


def screen(found: Mapping[str, Any]) -> RenderableType:
    """Return the screen for a state."""
    parts: list[RenderableType] = [_head(found)]
    if found.get("applications"):
        parts += [_deployments(found["applications"]), _traffic(found), _nodes(found.get("nodes") or [])]
    if found.get("log"):
        replicas = f"; of replicas {found['replica_logs']}" if found["replica_logs"] else ""
        parts.append(Text(f"logs   {found['log']}{replicas}", style="dim"))
    if found.get("kept_logs"):
        parts.append(Text(f"logs of the last sessions   {found['kept_logs']}", style="dim"))
    return Group(*parts)


def _head(found: Mapping[str, Any]) -> Text:
    state = found["state"]
    text = Text(f"{state}", style="bold green" if state == "ready" and not found["degraded"] else "bold red")
    text.append(f"  {found.get('url') or ''}", style="default")
    if found.get("memory_mib"):
        text.append(f"  {found['memory_mib']} MiB in {found['processes']} processes", style="dim")
    for reason in found["degraded"]:
        text.append(f"\ndegraded: {reason}", style="yellow")
    for reason in (*found.get("advice", ()), *(found.get("waits") or ())):
        text.append(f"\n{reason}", style="yellow")
    if found.get("error"):
        text.append(f"\nlast error: {found['error']}", style="red")
    return text


def _deployments(applications: Mapping[str, Any]) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in ("application", "deployment", "status", "replicas"):
        table.add_column(column, no_wrap=True)
    for name, app in applications.items():
        for key, deployment in app["deployments"].items():
            replicas, target = dict(deployment["replicas"]), deployment.get("target")
            counts = [f"{replicas.pop('RUNNING', 0)}/{NOTHING if target is None else target} running"]
            counts += [f"{count} {state.lower()}" for state, count in sorted(replicas.items())]
            known = deployment["status"] != "UNKNOWN"
            table.add_row(name, key, deployment["status"].lower(), ", ".join(counts) if known else NOTHING)
            name = ""
    return table


def _traffic(found: Mapping[str, Any]) -> Table:
    table = Table(show_header=False, box=None, pad_edge=False)
    traffic = found.get("traffic") or {}
    latency = [f"{name} {_number(traffic.get(f'{name}_ms'))}" for name in ("p50", "p90", "p99")]
    table.add_row("rankings/s", _number(traffic.get("rate_rps")))
    table.add_row("latency ms", "  ".join(latency))
    table.add_row("rungs", _shares(traffic.get("rungs")))
    table.add_row("degraded by", _shares(traffic.get("reasons")))
    table.add_row("features, ms old", _number(traffic.get("freshness_ms")))
    surfaces = found.get("surfaces") or {}
    for name, answer in surfaces.items():
        table.add_row(f"{name}: model", answer.get("model") or NOTHING)
        table.add_row(f"{name}: arms", _arms(answer.get("experiment"), traffic.get("arms") or {}))
    table.add_row("restarts", _restarts(found.get("restarts")))
    switched = found.get("kill_switch")
    on = NOTHING if switched is None else ", ".join(f"on for {name}" for name in switched) or "off"
    table.add_row("kill switch", on)
    return table


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


def _restarts(restarts: Mapping[str, Any] | None) -> str:
    """Return each part's restarts since the start with the last reason, or – where unknown."""
    if restarts is None:
        return NOTHING
    lines = [
        f"{name} {one['count']} ({one['last']}{' at ' + one['at'] if one['at'] else ''})"
        for name, one in sorted(restarts.items())
    ]
    return "\n".join(lines) or "none"


def _nodes(nodes: Iterable[Mapping[str, Any]]) -> Text:
    alive = Counter(node["pool"] for node in nodes if node["alive"])
    pools = ", ".join(f"{count} {pool}" for pool, count in sorted(alive.items()))
    return Text(f"nodes  {pools or NOTHING}")


def _number(value: float | None) -> str:
    return NOTHING if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def _shares(shares: Mapping[str, float] | None) -> str:
    return ", ".join(f"{name} {share:.1%}" for name, share in shares.items()) if shares else NOTHING
