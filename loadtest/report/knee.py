"""Report of `knee`: report.json and a page with a plot of latency against rate."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from loadtest.measure.measure import milliseconds
from loadtest.report.plots import PERCENTILES, latency_against_rate
from loadtest.report.report import Findings, Report, doubts, write_report
from loadtest.report.run import FULL, SCORED
from loadtest.workload.profiles import Slo
from serve.contract.validation import spelled
from serve.report.page import section
from serve.report.rows import number

PHASES = {"warm-up": "warm-up", "look": "look", "search": "", "confirm": "confirmation"}
HOW = "The knee held its limits in two of the three last, longer steps."


def write_knee(folder: Path, report: Report) -> None:
    """Write the report of one service."""
    # Of several steps at a rate, the last one decides.
    steps = {step["rate_rps"]: step for step in report["steps"]}
    lines = {name: [(rate, step[f"{name}_ms"]) for rate, step in steps.items()] for name in PERCENTILES}
    picture = section("Latency against rate", latency_against_rate(lines, Slo(**report["slo"])))
    write_report(folder, report, knee_findings(report), [picture], HOW)


def knee_findings(report: Report) -> Findings:
    """Return the numbers at the knee with their limits."""
    slo, knee, notes = report["slo"], number(report["knee_rps"]), list[str]()
    if report["knee_rps"] is None:
        # The last of the steps at the lowest rate.
        lowest = min(reversed(report["steps"]), key=lambda step: step["rate_rps"])
        notes = [f"no rate held; the lowest tried was {lowest['rate_rps']:g} req/s", *lowest["reasons"]]
    held = report["verdict"] == "held"
    return Findings(
        title=f"The knee: {knee} requests a second of {report['candidates']} candidates",
        word=report["verdict"],
        claim=f"a knee at {knee} requests/s" if held else "a rate within the limits",
        held=f"The highest rate that held in two of the three last steps; p99 {milliseconds(report['p99_ms'])}",
        doubt=doubts(
            report, "Near the knee, chance decides a step: another search may end some percent off."
        ),
        lead=f"found in {spelled(report['seconds'])}",
        rows=[
            ("requests a second", knee, ""),
            (SCORED, number(report["candidates_per_s"]), ""),
            ("p50", milliseconds(report["p50_ms"]), ""),
            ("p90", milliseconds(report["p90_ms"]), f"at most {slo['p90_ms']:g} ms"),
            ("p99", milliseconds(report["p99_ms"]), f"at most {slo['p99_ms']:g} ms"),
            (FULL, number(report["full_share"], ".3%"), ""),
            ("p99 and full answers of each confirming step", _each(report["confirming"]), ""),
            ("seconds to the first full answer", number(report["start_s"]), ""),
            ("memory when idle, MiB", number(report["memory_mib"]), ""),
            ("processes", number(report["num_processes"]), ""),
        ],
        notes=notes,
        first=("requests a second", SCORED, "p50", "p90", "p99", FULL),
    )


def step_line(step: Report) -> str:
    """Return one step as a line for a terminal."""
    phase = PHASES[step["phase"]]
    verdict = "" if step["phase"] == "warm-up" else f" {step['verdict']},"
    latencies = ", ".join(f"{name} {milliseconds(step[f'{name}_ms'])}" for name in ("p50", "p90", "p99"))
    reasons = f" ({'; '.join(step['reasons'])})" if step["reasons"] and verdict else ""
    return f"  {step['rate_rps']:g} req/s{f' ({phase})' if phase else ''}:{verdict} {latencies}{reasons}"


def _each(steps: Iterable[Report]) -> str:
    return (
        ", ".join(
            f"{milliseconds(step['p99_ms'])} with {number(step['full_share'], '.3%')}" for step in steps
        )
        or "–"
    )
