"""The folder that a run leaves: report.json, report.html, requests.csv and Locust's own page."""

from __future__ import annotations

import html
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from loadtest.errors import LoadtestError
from loadtest.machine import describe_machine
from loadtest.measure import Measurement, Requests, milliseconds, rounded
from loadtest.phases import describe_phases, describe_steps, parts, recovery, span, told
from loadtest.profiles import Profile, Slo
from loadtest.seconds import by_second, to_csv
from loadtest.timeline import Moment, timeline_csv
from loadtest.verdict import Verdict

Report = dict[str, Any]


def make_report(
    profile: Profile,
    url: str,
    slo: Slo,
    measured: Measurement,
    verdict: Verdict,
    reasons: list[str],
    requests: Requests,
    moments: list[Moment],
) -> Report:
    """What report.json holds and `--json` prints. Latencies in ms; null: not reached, too many failed."""
    numbers = {name: rounded(value) for name, value in asdict(measured).items() if name != "heuristic"}
    return {
        "profile": profile.name,
        "url": url,
        "target_rps": profile.target_rps,
        "offered_rps": rounded(profile.offered_rps),
        **numbers,
        "verdict": verdict,
        "reasons": reasons,
        "phases": describe_phases(requests, profile),
        "steps": describe_steps(requests, profile, slo),
        "watched": bool(moments and moments[0].replicas),
        "slo": asdict(slo),
        "machine": describe_machine(),
    }


def summary(report: Report) -> str:
    """The report in a few lines for a terminal."""
    slo = report["slo"]
    lines = [
        f"{report['verdict']}: profile {report['profile']} at {report['url']}, {report['seconds']:g} s",
        f"  {report['rps']:,.0f} req/s of {report['offered_rps']:,.0f} offered, "
        f"{report['candidates_per_s']:,.0f} candidates/s scored by the model, "
        f"{report['full_share']:.2%} full",
        f"  p50 {milliseconds(report['p50_ms'])}  p90 {milliseconds(report['p90_ms'])} (limit {slo['p90_ms']:g})  "
        f"p99 {milliseconds(report['p99_ms'])} (limit {slo['p99_ms']:g})  max {milliseconds(report['max_ms'])}",
        f"  {report['errors']} errors in {report['requests']:,} requests; "
        f"the generator was late by {report['generator_late_ms_p99']:.1f} ms (p99)",
        *told(report),
        *(f"  - {reason}" for reason in report["reasons"]),
    ]
    return "\n".join(lines)


def write_report(
    folder: Path,
    report: Report,
    requests: Requests,
    profile: Profile,
    slo: Slo,
    locust_html: str,
    moments: list[Moment],
) -> None:
    """Write the folder whole or not at all.

    Raises:
        LoadtestError: if there is something at `folder`.
    """
    from loadtest.plots import (  # matplotlib
        latency_distribution,
        latency_over_time,
        load_and_cluster,
        throughput_over_time,
    )

    seconds = by_second(requests)
    due = requests.where((requests.at_s >= 0) & (requests.at_s < report["seconds"]))
    plots = {
        "Latency over time": latency_over_time(seconds, slo),
        "Latency distribution": latency_distribution(due, slo),
        "Throughput over time": throughput_over_time(seconds, profile),
        _timeline_title(report): load_and_cluster(moments, slo),
    }
    files = {
        "report.json": json.dumps(report, indent=2) + "\n",
        "report.html": _page(report, plots),
        "requests.csv": to_csv(seconds),
        "timeline.csv": timeline_csv(moments),
        "locust.html": locust_html,
    }
    write_folder(folder, files)


def _timeline_title(report: Report) -> str:
    if report["watched"]:
        return "Load, replicas, nodes and latency over time"
    return "Load and latency over time (replicas and nodes were not watched: name them with --cluster)"


def write_folder(folder: Path, files: Mapping[str, str]) -> None:
    """Write files to a new folder, whole or not at all.

    Raises:
        LoadtestError: if there is something at `folder`.
    """
    refuse_existing(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = folder.parent / f".{folder.name}.{os.getpid()}"
    draft.mkdir()
    try:
        for name, text in files.items():
            (draft / name).write_text(text, encoding="utf-8")
        draft.rename(folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def refuse_existing(folder: Path) -> None:
    """Raise `LoadtestError` if something is at `folder`, or it cannot be made: a report is never overwritten."""
    if folder.exists():
        raise LoadtestError(f"--out {folder}: exists already; name another folder or remove it first")
    for path in folder.parents:
        if path.is_file():
            raise LoadtestError(f"--out {folder}: {path} is a file; name another folder")
    try:
        above = next(path for path in folder.absolute().parents if path.exists())
        tempfile.TemporaryDirectory(prefix=".", dir=above).cleanup()
    except OSError as error:
        raise LoadtestError(
            f"--out {folder}: cannot be written ({error.strerror}); name another folder"
        ) from None


def _page(report: Report, plots: Mapping[str, str]) -> str:
    slo = report["slo"]
    rows = [
        ("requests a second", f"{report['rps']:,.1f}", f"{report['offered_rps']:,.1f} offered"),
        ("candidates a second, scored by the model", f"{report['candidates_per_s']:,.0f}", ""),
        ("full answers from a model", f"{report['full_share']:.3%}", f"at least {slo['min_full_share']:.3%}"),
        ("p50", milliseconds(report["p50_ms"]), ""),
        ("p90", milliseconds(report["p90_ms"]), f"at most {slo['p90_ms']:g} ms"),
        ("p99", milliseconds(report["p99_ms"]), f"at most {slo['p99_ms']:g} ms"),
        ("slowest", milliseconds(report["max_ms"]), ""),
        (
            "errors",
            f"{report['errors']} of {report['requests']:,}",
            f"at most {slo['max_error_share']:g} of the requests",
        ),
        *((f"&emsp;{html.escape(kind)}", str(number), "") for kind, number in report["error_kinds"].items()),
        *(
            (
                f"&emsp;{html.escape(phase['name'])}, {span(phase)}",
                f"{phase['requests']:,} requests",
                ", ".join(parts(phase)),
            )
            for phase in report["phases"]
            if len(report["phases"]) > 1
        ),
        *((f"&emsp;step {html.escape(step['name'])}", "", recovery(step)) for step in report["steps"]),
        *(
            (f"answered at rung {html.escape(rung)}", f"{number:,}", "")
            for rung, number in report["rungs"].items()
        ),
        (
            "generator late, p99",
            milliseconds(report["generator_late_ms_p99"]),
            f"at most {slo['generator_late_ms_p99']:g} ms",
        ),
    ]
    reasons = "\n".join(f"<li>{html.escape(reason)}</li>" for reason in report["reasons"])
    title = f"{report['profile']}: {report['verdict']}"
    return PAGE.format(
        style=STYLE,
        title=html.escape(title),
        lead=html.escape(f"{report['seconds']:g} s at {report['url']}"),
        reasons=f"<ul>{reasons}</ul>" if reasons else "",
        **page_parts(rows, plots, report),
    )


def page_parts(
    rows: Iterable[tuple[str, str, str]], plots: Mapping[str, str], report: Mapping[str, Any]
) -> dict[str, str]:
    """What every report's page has: a table of (what, measured, asked), the figures, and the machine."""
    return {
        "table": "\n".join(f"<tr><td>{a}</td><td class=n>{b}</td><td>{c}</td></tr>" for a, b, c in rows),
        "figures": "\n".join(f"<h2>{title}</h2>\n{svg}" for title, svg in plots.items()),
        "machine": html.escape(", ".join(f"{key} {value}" for key, value in report["machine"].items())),
    }


STYLE = """body { font: 15px/1.5 system-ui, sans-serif; color: #111; }
body { max-width: 52rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; padding: .25rem .75rem .25rem 0; border-bottom: 1px solid #ccc; }
.n { text-align: right; font-variant-numeric: tabular-nums; padding-right: 2rem; }
h2 { font-size: 1.05rem; margin-top: 2rem; }
svg { width: 100%; height: auto; }
footer { color: #555; font-size: .85rem; margin-top: 2rem; }
"""

PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Load test {title}</title>
<style>
{style}</style>
<h1>Load test {title}</h1>
<p>{lead}</p>
{reasons}
<table><tr><th></th><th class=n>measured</th><th>asked</th></tr>
{table}
</table>
{figures}
<footer>{machine}. Latency counts from the moment at which a request was due (an open loop: Poisson arrivals);
a failed request counts as never answered. <a href="report.json">report.json</a>,
<a href="requests.csv">requests.csv</a>, <a href="timeline.csv">timeline.csv</a>,
<a href="locust.html">Locust's page</a> (warm-up included).</footer>
</html>
"""
