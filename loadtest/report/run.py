"""Report of `run`: report.json, report.html, timeline.csv, and the numbers behind them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from loadtest.measure.cluster import ClusterSample
from loadtest.measure.measure import Requests, measure, milliseconds, rounded, tail
from loadtest.measure.timeline import Moment, describe_phases, describe_steps, step_rows, timeline
from loadtest.measure.verdict import judge
from loadtest.report.plots import distribution, load_and_cluster
from loadtest.report.report import Findings, Report, doubts, indented, write_report
from loadtest.workload.profiles import Profile, Slo
from serve.contract.validation import spelled
from serve.operate.host.machine import describe_machine
from serve.report.page import paragraph, section
from serve.report.rows import csv_text

SCORED, FULL = "candidates a second, scored by the model", "full answers from a model"
# Numbers at the top of the page.
FIRST = ("requests a second", SCORED, "p90", "p99", "errors", FULL)
UNWATCHED = "Replicas and nodes are shown if var/run is the run folder of the service."


def report_run(
    profile: Profile, slo: Slo, url: str, requests: Requests, samples: Sequence[ClusterSample], out: Path
) -> Report:
    """Judge the requests of a load and write its report to the new folder `out`.

    In case of an error, nothing is written.

    Raises:
        TabrankError: if `out` exists.
    """
    moments = timeline(requests, profile.duration_s, samples, profile.warmup_s)
    report = make_report(profile, url, slo, requests, moments)
    pictures = [
        section("Load and latency over time", load_and_cluster(moments, slo)),
        paragraph(UNWATCHED * (not report["watched"])),
        section("Latency distribution", latency_distribution(report, slo)),
    ]
    how = "A failed request counts as never answered."
    write_report(out, report, findings(report), pictures, how, {"timeline.csv": timeline_csv(moments)})
    return report


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
    slo, late, p99 = (
        report["slo"],
        milliseconds(report["generator_late_ms_p99"]),
        milliseconds(report["p99_ms"]),
    )
    errors = f"{report['errors']:,} of {report['requests']:,}"
    allowed = f"at most {slo['max_error_share']:.3%} of them" if slo["max_error_share"] else "none allowed"
    lasted = spelled(report["seconds"])
    return Findings(
        title=f"Load test, profile {report['profile']}",
        word=report["verdict"],
        claim=f"{report['offered_rps']:,.0f} requests/s within the limits",
        held=f"p99 {p99} of {slo['p99_ms']:g} ms allowed, {report['errors']} errors",
        doubt=doubts(report, f"It took {lasted}, so it tells little of drift and leaks."),
        lead=f"{lasted} at {report['url']}",
        rows=[
            ("requests a second", f"{report['rps']:,.1f}", f"{report['offered_rps']:,.1f} offered"),
            (SCORED, f"{report['candidates_per_s']:,.0f}", ""),
            (FULL, f"{report['full_share']:.3%}", f"at least {slo['min_full_share']:.3%}"),
            ("p50", milliseconds(report["p50_ms"]), ""),
            ("p90", milliseconds(report["p90_ms"]), f"at most {slo['p90_ms']:g} ms"),
            ("p99", p99, f"at most {slo['p99_ms']:g} ms"),
            ("slowest", milliseconds(report["max_ms"]), ""),
            ("errors", errors, allowed),
            *indented(report["error_kinds"]),
            *step_rows(report),
            *((f"answered at rung {rung}", f"{number:,}", "") for rung, number in report["rungs"].items()),
            ("generator late, p99", late, f"at most {slo['generator_late_ms_p99']:g} ms"),
        ],
        notes=report["reasons"],
        first=FIRST,
    )
