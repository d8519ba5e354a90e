"""The folder that `loadtest scale` leaves: report.json and a page with each part's plot."""

from __future__ import annotations

import html
import re
from pathlib import Path

from loadtest.report.report import BESIDE, Report, bullets, figures, report_files, write_files

TITLES = {
    "replicas": "Replicas 1 → 3 → 1 under load: no request may fail",
    "step": "A doubled load: more replicas, and the p99 back, within ten seconds",
    "nodes": "A node comes with the load and goes with it: no request may fail",
}
PLOT = re.compile(r"<h2>Load[^<]*</h2>\n(<svg.*?</svg>)", re.S)


def write_scale(folder: Path, report: Report) -> None:
    """Write the report beside the parts' own, which lie in the folder already."""
    body = [_part(folder, name, part) for name, part in report["parts"].items()]
    footer = FOOTER.format(**report["pace"])
    write_files(folder, report_files(report, f"Scaling: {report['verdict']}", body, footer))


def scale_summary(report: Report) -> str:
    """The report in a few lines for a terminal."""
    lines = [f"{report['verdict']}: {', '.join(report['parts'])} in {report['seconds']:g} s"]
    for name, part in report["parts"].items():
        lines.append(f"  {name}: {'held' if part['held'] else 'not held'}; {told(name, part)}")
        lines += [f"  - {reason}" for reason in part["reasons"]]
    return "\n".join(lines)


def told(name: str, part: Report) -> str:
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


def _part(folder: Path, name: str, part: Report) -> str:
    plot = PLOT.search((folder / name / "report.html").read_text(encoding="utf-8"))
    text = (
        f"<p>{'Held' if part['held'] else 'Not held'}: {html.escape(told(name, part))}. "
        f'<a href="{name}/report.html">The run</a>, <a href="{name}/timeline.csv">timeline.csv</a></p>'
    )
    return figures({TITLES[name]: "\n".join((text, bullets(part["reasons"]), plot[1] if plot else ""))})


def _seconds(value: float | None) -> str:
    return "never" if value is None else f"{value:g} s"


FOOTER = f"""{BESIDE}The Scorer is throttled: a batch takes at least {{ms_per_batch:g}} ms and
{{us_per_candidate:g}} µs a candidate, most of it asleep, so that two replicas do twice the work of one on any machine.
Latency counts from the moment at which a request was due (an open loop: Poisson arrivals)."""
