"""Report of `loadtest soak`: report.json, and a page with latency, memory and open files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from loadtest.measure.measure import milliseconds
from loadtest.measure.timeline import Moment
from loadtest.report.report import SAME_CORES, Findings, Report, write_report
from loadtest.workload.profiles import Slo


@dataclass(frozen=True)
class Footprint:
    """Resources of the service's processes at a moment.

    `own_mib` is resident memory that no other process shares, without mapped files.
    """

    at_s: float
    own_mib: float
    resident_mib: float
    files: int
    processes: int


def write_soak(
    folder: Path, report: Report, moments: Sequence[Moment], footprints: Sequence[Footprint], slo: Slo
) -> None:
    """Write the report folder, complete or not at all."""
    from loadtest.report.plots import load_and_cluster, memory_and_files  # matplotlib

    at_s = [each.at_s for each in footprints]
    plots = {
        "Load and latency": load_and_cluster(moments, slo),
        "Memory and open files of the service": memory_and_files(
            at_s, [each.own_mib for each in footprints], [each.files for each in footprints]
        ),
    }
    files = {"footprint.json": json.dumps([asdict(each) for each in footprints]) + "\n"}
    found = soak_findings(report)
    write_report(folder, report, found.title, found.body(plots), FOOTER, files)


def soak_findings(report: Report) -> Findings:
    """Return the numbers of a report with their limits."""
    thirds = " → ".join(milliseconds(value) for value in report["p99_ms"])
    drift = f"at most {report['criteria']['p99_drift']:+.0%}"
    rows = [
        ("p99 of each third", f"{thirds} ({_share(report['p99_drift'])})", drift),
        ("private resident memory", _grown(report, "memory_mib", "memory_growth", " MiB"), _at_most(report)),
        ("open files", _grown(report, "files", "files_growth", ""), _at_most(report)),
        ("requests that failed", f"{report['errors']} of {report['requests']:,}", "none"),
    ]
    lead = f"{report['seconds']:g} s at {report['rate_rps']:g} requests a second, {report['url']}"
    return Findings(f"Soak: {report['verdict']}", lead, rows, report["reasons"])


def _at_most(report: Report) -> str:
    allowed = report["criteria"]
    return f"at most {allowed['growth']:+.0%} after the first {allowed['warm_up_share']:.0%}"


def _grown(report: Report, values: str, share: str, unit: str) -> str:
    shown = " → ".join(f"{value:,.0f}" for value in report[values])
    return f"{shown}{unit} ({_share(report[share])})"


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:+.1%}"


FOOTER = f"""{SAME_CORES}Growth is that of a straight line through the samples after the warm-up, over all
processes of the service. Private resident memory is memory that a process does not share. It excludes pages of
the store's file, which the kernel can reclaim, and of libraries."""
