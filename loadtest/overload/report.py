"""The folder that `loadtest overload` leaves: report.json, and a page with a table and each run's plot."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from loadtest.measure import milliseconds
from loadtest.profiles import Slo
from loadtest.report import STYLE, write_folder
from loadtest.timeline import Moment

Report = Mapping[str, Any]


def overload_summary(report: Report) -> str:
    """The report in a few lines for a terminal."""
    head = f"{report['verdict']}: knee {report['knee_rps']:,.0f} req/s, the service and the generator on a core each"
    lines = [head, *(_told(run) for run in report["runs"])]
    control = report["control"]
    if not control["run"]:
        return "\n".join([*lines, f"  the control was not run: {control['reason']}"])
    said = (
        "holds too, so that it is not the ladder that holds" if control["verdict"] == "held" else "collapses"
    )
    return "\n".join([*lines, f"  with the ladder off it {said}:", _told(control)])


def run_line(run: Report) -> str:
    """One run in a line for a terminal."""
    rungs = ", ".join(f"{rps:.0f} {name}" for name, rps in run["goodput_by_rung_rps"].items()) or "nothing"
    back = "not back" if run["back_s"] is None else f"normal after {run['back_s']} s"
    failed = ", ".join(f"{number} {kind}" for kind, number in run["failures"].items())
    return (
        f"  {run['times']:g}x: {run['verdict']}; goodput {run['goodput_share']:.1%} of the knee ({rungs} /s), "
        f"p99 {milliseconds(run['p99_ms'])}, {run['refused']:,} refused (p99 {milliseconds(run['refused_p99_ms'])}), "
        f"{failed or 'none failed'}; {back}; generator late {run['generator_late_ms_p99']:.1f} ms"
    )


def write_overload(folder: Path, report: Report, lines: Mapping[str, Sequence[Moment]], slo: Slo) -> None:
    """Write the folder whole or not at all."""
    from loadtest.plots import load_and_cluster  # matplotlib

    plots = "\n".join(
        f"<h2>{html.escape(title)}</h2>\n{load_and_cluster(list(moments), slo)}"
        for title, moments in lines.items()
    )
    runs = [*report["runs"], *([report["control"]] if report["control"]["run"] else [])]
    rows = "\n".join(_row(run, run is report["control"]) for run in runs)
    machine = html.escape(", ".join(f"{key} {value}" for key, value in report["machine"].items()))
    reasons = "".join(
        f"<li>{html.escape(reason)}</li>" for run in report["runs"] for reason in run["reasons"]
    )
    page = PAGE.format(
        style=STYLE,
        verdict=report["verdict"],
        knee=f"{report['knee_rps']:,.0f}",
        deadline=f"{report['deadline_ms']:g}",
        rows=rows,
        reasons=f"<ul>{reasons}</ul>" if reasons else "",
        plots=plots,
        machine=machine,
    )
    write_folder(folder, {"report.json": json.dumps(report, indent=2) + "\n", "report.html": page})


def _told(run: Report) -> str:
    return "\n".join([run_line(run), *(f"    - {reason}" for reason in run["reasons"])])


def _row(run: Report, control: bool) -> str:
    rungs = ", ".join(f"{name} {rps:,.0f}" for name, rps in run["goodput_by_rung_rps"].items())
    cells = (
        f"{run['times']:g}×" + (", ladder off" if control else ""),
        f"{run['offered_rps']:,.0f}",
        f"{run['goodput_share']:.1%}",
        rungs,
        milliseconds(run["p99_ms"]),
        f"{run['refused']:,}",
        milliseconds(run["refused_p99_ms"]),
        str(run["http_5xx"]),
        f"{run['not_sent']:,}",
        "–" if run["back_s"] is None else f"{run['back_s']} s",
        milliseconds(run["generator_late_ms_p99"]),
        run["verdict"],
    )
    return f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in cells)}</tr>"


PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Overload: {verdict}</title>
<style>
{style}body {{ max-width: 72rem; }}
</style>
<h1>Overload: {verdict}</h1>
<p>The knee is {knee} requests a second, measured under the same pinning: the service on one core, the load generator
on another. Goodput is the answers of any rung within {deadline} ms of when they were due.</p>
{reasons}
<table><tr><th>offered</th><th>requests/s</th><th>goodput of the knee</th><th>by rung, /s</th><th>p99 of answers</th>
<th>refused</th><th>p99 of refusals</th><th>5xx</th><th>not sent</th><th>normal after</th><th>generator late, p99</th>
<th>verdict</th></tr>
{rows}
</table>
{plots}
<footer>{machine}. Open loop, Poisson arrivals; latency counts from when a request was due. Not sent: 1,000 requests
were unanswered at that moment, and the generator opens no more. <a href="report.json">report.json</a></footer>
</html>
"""
