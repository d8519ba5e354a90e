"""Report of `loadtest scale`: report.json and a page with the plot of each part."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from pathlib import Path

from loadtest.measure.timeline import Moment
from loadtest.report.report import SAME_CORES, Report, bullets, figures, with_reasons, write_report
from loadtest.workload.profiles import load_slo

TITLES = {
    "replicas": "Replicas 1 → 3 → 1 under load: no request may fail",
    "step": "Doubled load: more replicas, and the p99 within its limit, in ten seconds",
    "nodes": "Nodes are added and removed with the load: no request may fail",
}


def write_scale(folder: Path, report: Report, lines: Mapping[str, Sequence[Moment]]) -> None:
    """Write the report beside the reports of its parts; `lines` holds their timelines."""
    from loadtest.report.plots import load_and_cluster  # matplotlib

    body = [
        _part(name, part, load_and_cluster(lines[name], load_slo())) for name, part in report["parts"].items()
    ]
    footer = FOOTER.format(**report["pace"])
    write_report(folder, report, f"Scaling: {report['verdict']}", body, footer, new=False)


def scale_summary(report: Report) -> str:
    """Return the report as a few lines for a terminal."""
    lines = [f"{report['verdict']}: {', '.join(report['parts'])} in {report['seconds']:g} s"]
    for name, part in report["parts"].items():
        line = f"  {name}: {'held' if part['held'] else 'not held'}; {describe_part(name, part)}"
        lines.append(with_reasons(line, part["reasons"]))
    return "\n".join(lines)


def describe_part(name: str, part: Report) -> str:
    """Return the measurements of a part as a sentence."""
    failed = f"{part['errors']} of {part['requests']:,} requests failed"
    if name == "replicas":
        slowest = max((change["seconds"] or 0.0 for change in part["changes"]), default=0.0)
        return f"{failed}; {len(part['changes'])} changes, the slowest {slowest:g} s"
    if name == "nodes":
        added, removed = (_seconds(part[key]) for key in ("node_up_s", "node_gone_s"))
        return f"{failed}; node added {added} after the step, removed {removed} after its end"
    up_s, back_s = (_seconds(part[key]) for key in ("replicas_up_s", "p99_recovered_s"))
    counts = f"{part['replicas_before']} → {part['replicas_held']} → {part['replicas_after']} Scorers"
    return f"{failed}; more replicas {up_s} after the step, p99 within its limit {back_s} after it; {counts}"


def _part(name: str, part: Report, plot: str) -> str:
    text = (
        f"<p>{'Held' if part['held'] else 'Not held'}: {html.escape(describe_part(name, part))}. "
        f'<a href="{name}/report.html">The run</a>, <a href="{name}/timeline.csv">timeline.csv</a></p>'
    )
    return figures({TITLES[name]: "\n".join((text, bullets(part["reasons"]), plot))})


def _seconds(value: float | None) -> str:
    return "never" if value is None else f"{value:g} s"


FOOTER = f"""{SAME_CORES}The Scorer is throttled: a batch takes at least {{ms_per_batch:g}} ms and
{{us_per_candidate:g}} µs per candidate, mostly asleep, so that two replicas do twice the work of one on any machine.
Latency counts from the due time of a request (an open loop: Poisson arrivals)."""
