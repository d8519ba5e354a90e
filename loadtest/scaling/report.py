"""The folder that `loadtest scale` leaves: report.json and a page with each part's plot."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loadtest.report import STYLE

TITLES = {
    "replicas": "Replicas 1 → 3 → 1 under load: no request may fail",
    "step": "A doubled load: more replicas, and the p99 back, within ten seconds",
    "nodes": "A node comes with the load and goes with it: no request may fail",
}
PLOT = re.compile(r"<h2>Load[^<]*</h2>\n(<svg.*?</svg>)", re.S)


def write_scale(folder: Path, report: Mapping[str, Any]) -> None:
    """Write the report beside the parts' own, which lie in the folder already."""
    (folder / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    parts = "\n".join(_part(folder, name, part) for name, part in report["parts"].items())
    machine = html.escape(", ".join(f"{key} {value}" for key, value in report["machine"].items()))
    page = PAGE.format(style=STYLE, verdict=report["verdict"], parts=parts, machine=machine, **report["pace"])
    (folder / "report.html").write_text(page, encoding="utf-8")


def scale_summary(report: Mapping[str, Any]) -> str:
    """The report in a few lines for a terminal."""
    lines = [f"{report['verdict']}: {', '.join(report['parts'])} in {report['seconds']:g} s"]
    for name, part in report["parts"].items():
        lines.append(f"  {name}: {'held' if part['held'] else 'not held'}; {told(name, part)}")
        lines += [f"  - {reason}" for reason in part["reasons"]]
    return "\n".join(lines)


def told(name: str, part: Mapping[str, Any]) -> str:
    """What a part measured, in a sentence."""
    failed = f"{part['errors']} of {part['requests']:,} requests failed"
    if name == "replicas":
        slowest = max((change["seconds"] or 0.0 for change in part["changes"]), default=0.0)
        return f"{failed}; {len(part['changes'])} changes, the slowest {slowest:g} s"
    if name == "nodes":
        came, went = (_seconds(part[key]) for key in ("node_up_s", "node_gone_s"))
        return f"{failed}; a node {came} after the step, gone {went} after its end"
    up_s, back_s = (_seconds(part[key]) for key in ("replicas_up_s", "p99_recovered_s"))
    counts = f"{part['replicas_before']} → {part['replicas_held']} → {part['replicas_after']} Scorers"
    return f"{failed}; more replicas {up_s}, p99 back {back_s} after the step; {counts}"


def _part(folder: Path, name: str, part: Mapping[str, Any]) -> str:
    plot = PLOT.search((folder / name / "report.html").read_text(encoding="utf-8"))
    reasons = "".join(f"<li>{html.escape(reason)}</li>" for reason in part["reasons"])
    return "\n".join(
        (
            f"<h2>{html.escape(TITLES[name])}</h2>",
            f"<p>{'Held' if part['held'] else 'Not held'}: {html.escape(told(name, part))}. "
            f'<a href="{name}/report.html">The run</a>, <a href="{name}/timeline.csv">timeline.csv</a></p>',
            f"<ul>{reasons}</ul>" if reasons else "",
            plot[1] if plot else "",
        )
    )


def _seconds(value: float | None) -> str:
    return "never" if value is None else f"{value:g} s"


PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Scaling: {verdict}</title>
<style>
{style}</style>
<h1>Scaling: {verdict}</h1>
{parts}
<footer>{machine}, the load generator on the same cores. The Scorer is throttled: a batch takes at least
{ms_per_batch:g} ms and {us_per_candidate:g} µs a candidate, most of it asleep, so that two replicas do twice the
work of one on any machine.
Latency counts from the moment at which a request was due (an open loop: Poisson arrivals).
<a href="report.json">report.json</a></footer>
</html>
"""
