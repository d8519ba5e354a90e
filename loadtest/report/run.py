"""Reports of `run` and `soak`: report.json, report.html and the numbers behind them.

`run` also leaves timeline.csv.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from loadtest.measure.cluster import ClusterSample
from loadtest.measure.measure import Requests, measure, milliseconds, rounded, tail
from loadtest.measure.timeline import Moment, describe_phases, describe_steps, phase_rows, timeline
from loadtest.measure.verdict import judge
from loadtest.report.plots import distribution, load_and_cluster, memory_and_files
from loadtest.report.report import SAME_CORES, Findings, Report, doubts, indented, verdict, write_report
from loadtest.workload.profiles import Profile, Slo
from serve.contract.validation import spelled
from serve.operate.host.machine import describe_machine
from serve.report.page import paragraph
from serve.report.rows import csv_text, number

# Numbers at the top of the page.
SCORED, FULL = "candidates a second, scored by the model", "full answers from a model"
TILES = ("requests a second", SCORED, "p90", "p99", "errors", FULL)


def report_run(
    profile: Profile, slo: Slo, url: str, requests: Requests, samples: Sequence[ClusterSample], out: Path
) -> tuple[Report, Sequence[Moment]]:
    """Judge the requests of a load and write its report to the new folder `out`.

    In case of an error, nothing is written. Returns the report and the timeline of the measurement.

    Raises:
        TabrankError: if `out` exists.
    """
    moments = timeline(requests, profile.duration_s, samples, profile.warmup_s)
    report = make_report(profile, url, slo, requests, moments)
    files = {"timeline.csv": timeline_csv(moments)}
    found = findings(report)
    claim = f"{profile.offered_rps:,.0f} requests/s within the limits"
    held = f"p99 {milliseconds(report['p99_ms'])} of {slo.p99_ms:g} ms allowed, {report['errors']} errors"
    doubt = doubts(report, f"It took {spelled(report['seconds'])}. For drift and leaks, run loadtest soak.")
    head = verdict(report, claim, held, report["reasons"], doubt)
    watched = "" if report["watched"] else "With --cluster the page shows replicas and nodes too."
    plots = {
        "Load and latency over time": load_and_cluster(moments, slo) + paragraph(watched),
        "Latency distribution": latency_distribution(report, slo),
    }
    body = found.body(head, TILES, plots)
    write_report(out, report, found.title, body, RUN_FOOTER, files)
    return report, [moment for moment in moments if moment.t_s >= 0]


def make_report(profile: Profile, url: str, slo: Slo, requests: Requests, moments: list[Moment]) -> Report:
    """Return the content of report.json.

    Latencies are in ms. One is None if too many requests failed.
    """
    measured = measure(requests, profile.duration_s)
    due = requests.where((requests.at_s >= 0) & (requests.at_s < profile.duration_s))
    word, reasons = judge(measured, slo)
    numbers = {name: rounded(value) for name, value in asdict(measured).items() if name != "heuristic"}
    return {
        "profile": profile.name,
        "url": url,
        "target_rps": profile.target_rps,
        "offered_rps": rounded(profile.offered_rps),
        **numbers,
        "verdict": word,
        "reasons": reasons,
        "phases": describe_phases(requests, profile),
        "steps": describe_steps(requests, profile, slo),
        "latency_tail": tail(due.latency_ms[due.ok], len(due.ok)),
        "watched": bool(moments and moments[0].replicas),
        "slo": asdict(slo),
        "machine": describe_machine(),
    }


def latency_distribution(report: Report, slo: Slo) -> str:
    """Plot the share of the requests of a report that took longer than a time, with the limits."""
    return distribution("ms from the due time", {"answered": report["latency_tail"]}, slo.shares())


def timeline_csv(moments: Sequence[Moment]) -> str:
    """Return the measured seconds as CSV, a trace with one column of replicas per deployment.

    An empty field is a percentile that was not reached, or a count without a sample.
    """
    numbers = ("t_s", "offered_rps", "answered_rps", "p50_ms", "p99_ms", "full_share", "failed")
    names = list(moments[0].replicas) if moments else []
    measured = [moment for moment in moments if moment.t_s >= 0]
    rows = [[*(getattr(m, name) for name in numbers), *m.replicas.values(), m.nodes] for m in measured]
    return csv_text((*numbers, *(f"{name}_replicas" for name in names), "nodes"), rows)


def findings(report: Report) -> Findings:
    """Return the numbers of a report with their limits."""
    slo, late = report["slo"], milliseconds(report["generator_late_ms_p99"])
    errors = f"{report['errors']:,} of {report['requests']:,}"
    allowed = f"at most {slo['max_error_share']:.3%} of them" if slo["max_error_share"] else "none allowed"
    rows = [
        ("requests a second", f"{report['rps']:,.1f}", f"{report['offered_rps']:,.1f} offered"),
        (SCORED, f"{report['candidates_per_s']:,.0f}", ""),
        (FULL, f"{report['full_share']:.3%}", f"at least {slo['min_full_share']:.3%}"),
        ("p50", milliseconds(report["p50_ms"]), ""),
        ("p90", milliseconds(report["p90_ms"]), f"at most {slo['p90_ms']:g} ms"),
        ("p99", milliseconds(report["p99_ms"]), f"at most {slo['p99_ms']:g} ms"),
        ("slowest", milliseconds(report["max_ms"]), ""),
        ("errors", errors, allowed),
        *indented(report["error_kinds"]),
        *phase_rows(report),
        *((f"answered at rung {rung}", f"{number:,}", "") for rung, number in report["rungs"].items()),
        ("generator late, p99", late, f"at most {slo['generator_late_ms_p99']:g} ms"),
    ]
    title = f"Load test, profile {report['profile']}"
    lead = f"{spelled(report['seconds'])} at {report['url']}"
    return Findings(title, report["verdict"], lead, rows, report["reasons"])


@dataclass(frozen=True)
class Footprint:
    """Resources of the service's processes at a moment.

    `own_mib` is resident memory that no other process shares, without mapped files.
    """

    at_s: float
    own_mib: float
    files: int
    processes: int


def write_soak(
    folder: Path, report: Report, moments: Sequence[Moment], footprints: Sequence[Footprint], slo: Slo
) -> None:
    """Write the report folder. In case of an error, nothing is written."""
    at_s, memory_mib = [each.at_s for each in footprints], [each.own_mib for each in footprints]
    files = [each.files for each in footprints]
    plots = {
        "Load and latency": load_and_cluster(moments, slo),
        "Memory and open files of the service": memory_and_files(at_s, memory_mib, files),
    }
    found = soak_findings(report)
    claim = f"{report['rate_rps']:,.0f} requests/s for {report['seconds'] / 60:,.3g} minutes"
    doubt = doubts(report, "A leak that needs longer than this run does not show.")
    head = verdict(report, claim, "no drift and no leak beyond the limits", report["reasons"], doubt)
    body = found.body(head, [name for name, *_ in found.rows], plots)
    write_report(folder, report, found.title, body, SOAK_FOOTER)


def soak_findings(report: Report) -> Findings:
    """Return the numbers of a report with their limits."""
    thirds = " → ".join(milliseconds(value) for value in report["p99_ms"])
    allowed = report["criteria"]
    drift = f"at most {allowed['p99_drift']:+.0%}"
    growth = f"at most {allowed['growth']:+.0%} after the first {allowed['warm_up_share']:.0%}"
    rows = [
        ("p99 of each third", f"{thirds} ({number(report['p99_drift'], '+.1%')})", drift),
        ("private resident memory", _grown(report, "memory_mib", "memory_growth", " MiB"), growth),
        ("open files", _grown(report, "files", "files_growth", ""), growth),
        ("requests that failed", f"{report['errors']:,} of {report['requests']:,}", "none allowed"),
    ]
    lead = f"{spelled(report['seconds'])} at {report['rate_rps']:g} requests a second, {report['url']}"
    return Findings("Soak", report["verdict"], lead, rows, report["reasons"])


def _grown(report: Report, values: str, share: str, unit: str) -> str:
    shown = " → ".join(f"{value:,.0f}" for value in report[values])
    return f"{shown}{unit} ({number(report[share], '+.1%')})"


RUN_FOOTER = """. Open loop: requests are sent at random times (Poisson arrivals) and wait for no answer. Latency counts
from when a request is due, and a failed request counts as never answered."""
SOAK_FOOTER = f"""{SAME_CORES}Growth is that of a straight line through the samples after the warm-up, over all
processes of the service. Private resident memory is memory that a process does not share. It excludes pages of
the store's file, which the kernel can reclaim, and of libraries."""
