"""Report of a plan: `plan.json`, `plan.csv`, `report.html`, and the table for a terminal."""

from __future__ import annotations

import html
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from serve.log.atomic_files import draft_of
from serve.operate.host.machine import describe_machine
from serve.operate.plan.outcome import F64, ONGOING, WANTED, Outcome
from serve.operate.plan.plan_warnings import warnings_of
from serve.operate.plan.trace import NODES, RATE, REPLICAS, TIME, Phase, shown
from serve.ranking.admission import SCORES_DUE
from serve.report.page import footer, paragraph, whole_page
from serve.report.rows import columns, csv_text, number

Report = dict[str, Any]
METHOD = "Ray's own scaling code over a simulation of the service."
LEGEND = (
    f"late: no scores at {100 * SCORES_DUE:g} % of the deadline, which starts when a replica accepts the request; "
    "p99 includes the wait before that. Load shedding is not simulated"
)


def make_report(outcome: Outcome, others: Sequence[Outcome], comparison: dict[str, Any] | None) -> Report:
    """Return what plan.json and `--json` report of a simulation, beside its inputs.

    `others` are plans of the same load with other arrivals. Latencies assume one core per replica.
    """
    begin_s, end_s = outcome.trace.t_s[0], outcome.trace.end_s
    return {
        "seconds": round(end_s - begin_s, 3),
        "deployments": {name: _counts(outcome.running(name)) for name in outcome.deployments},
        "nodes": _counts(outcome.running(NODES)),
        "answers": outcome.answers(begin_s, end_s),
        "phases": [_phase(outcome, phase) for phase in outcome.trace.phases()],
        "warnings": warnings_of(outcome, others),
        "comparison": comparison,
        "machine": describe_machine(),
    }


def _counts(counts: F64) -> dict[str, float]:
    return {
        "min": int(counts.min()),
        "mean": round(float(counts.mean()), 2),
        "max": int(counts.max()),
        "changes": int((np.diff(counts) != 0).sum()),
        # The sum over all replicas or nodes, which is the cost.
        "seconds": int(counts.sum()),
    }


def _phase(outcome: Outcome, phase: Phase) -> dict[str, Any]:
    during = phase.covers(outcome.counts[TIME])
    answers = outcome.answers(phase.begin_s, phase.end_s)

    def mean_and_max(name: str) -> dict[str, Any]:
        counts = outcome.running(name)[during]
        if not len(counts):
            return {"mean": None, "max": None}
        return {"mean": round(float(counts.mean()), 2), "max": int(counts.max())}

    return {
        "phase": phase.name,
        RATE: round(answers["requests"] / (phase.end_s - phase.begin_s), 1),
        "replicas": {name: mean_and_max(name) for name in outcome.deployments},
        NODES: mean_and_max(NODES)["max"],
        **answers,
    }


def table(report: Report) -> str:
    """Return the plan as text for a terminal."""
    deployments, nodes, answers = report["deployments"], report[NODES], report["answers"]
    names = [name for name, counts in deployments.items() if counts["max"] != counts["min"]]
    names = names or list(deployments)[:2]
    rows = [["", "req/s", *(f"{name} mean/max" for name in names), NODES, "late", "refused", "p99 ms"]]
    for phase in report["phases"]:
        counts = [phase["replicas"][name] for name in names]
        replicas = [f"{number(each['mean'], '.1f')} / {each['max']}" for each in counts]
        shares = [f"{phase[name]:.1%}" for name in ("late_share", "refused_share")]
        numbers = [*replicas, str(phase[NODES]), *shares, number(phase["p99_ms"], ".1f")]
        rows.append([phase["phase"], f"{phase[RATE]:,.0f}", *numbers])
    lines = [
        columns(rows, str.rjust),
        f"{LEGEND}.",
        "",
        *(
            f"{name}: {counts['min']} to {counts['max']} replicas, mean {counts['mean']:g}, "
            f"{counts['changes']} changes, {counts['seconds']:,} replica-seconds"
            for name, counts in deployments.items()
        ),
        f"nodes: {nodes['min']} to {nodes['max']}, {nodes['seconds']:,} node-seconds",
        f"{answers['requests']:,} requests in {report['seconds']:g} s: {answers['late_share']:.2%} answered in "
        f"popular order at their deadline, {answers['refused_share']:.2%} refused; "
        f"p99 {number(answers['p99_ms'], '.1f')} ms (simulated)",
        f"costs: {report['costs']['source']} ({report['costs']['machine']})",
        *(f"warning: {text}" for text in report["warnings"]),
    ]
    if report["comparison"] is not None:
        lines += _comparison_lines(report["comparison"])
    return "\n".join(lines)


def _comparison_lines(comparison: dict[str, Any]) -> list[str]:
    return [
        f"against the real run: {'HOLDS' if comparison['holds'] else 'DOES NOT HOLD'} (at most one replica off, "
        f"within {comparison['shift_s']:g} s, and nearer than a constant count)",
        *(
            f"  {name}: at most {counts['most_off_shifted']:g} off, {counts['most_off']:g} without a shift; "
            f"mean {counts['mean_off']:.2f} off ({counts['mean_off_unplanned']:.2f} with no change at all); "
            f"equal in {counts['exact_share']:.0%} of the seconds, at most one off in "
            f"{counts['within_one_share']:.0%}: {counts['verdict']}"
            for name, counts in comparison["counts"].items()
        ),
        *(
            f"  {row['phase']}: {row['name']} {row['real']:g} real, {row['planned']:g} planned (means)"
            for row in comparison["phases"]
            if row["most_off_shifted"] > 1 or abs(row["real"] - row["planned"]) > 1
        ),
    ]


def write_plan(folder: Path, report: Report, outcome: Outcome, progress: Callable[[str], None]) -> None:
    """Write the whole folder or nothing."""
    try:
        from serve.operate.plan.plot import draw

        figure = draw(outcome, report["comparison"] is not None)
    except ImportError:
        progress(
            "no plot: matplotlib is missing; install the extra loadtest: pip install 'tabrank[loadtest]'"
        )
        figure = "<p>No plot: matplotlib is in the extra <code>loadtest</code>.</p>"
    page = whole_page(
        f"Plan of {report['trace']}",
        [
            paragraph(f"Replicas and nodes for {report['config']}: {METHOD}"),
            figure,
            f"<pre>{html.escape(table(report))}</pre>",
            footer(report["machine"], ".", ("plan.json", "plan.csv")),
        ],
    )
    with draft_of(folder) as draft:
        (draft / "plan.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        (draft / "plan.csv").write_text(to_csv(outcome), encoding="utf-8")
        (draft / "report.html").write_text(page, encoding="utf-8")
    progress(f"{folder}/report.html, plan.json, plan.csv")


def to_csv(outcome: Outcome) -> str:
    """Return a row per second: a load test's columns, and Ray's wanted and ongoing counts."""
    names = outcome.deployments
    answer_columns = ("p50_ms", "p99_ms", "late_share", "refused_share")
    count_columns = [f"{name}{suffix}" for suffix in (REPLICAS, WANTED, ONGOING) for name in names]
    count_columns = [name for name in (*count_columns, NODES) if name in outcome.counts]
    rows = []
    for i, at_s in enumerate(outcome.counts[TIME].tolist()):
        answers = outcome.answers(at_s, at_s + 1)
        numbers = ("" if answers[name] is None else f"{answers[name]:g}" for name in answer_columns)
        counts = (shown(outcome.counts[name][i]) for name in count_columns)
        rows.append([shown(at_s), f"{outcome.trace.rate_rps(at_s):g}", *numbers, *counts])
    return csv_text([TIME, RATE, *answer_columns, *count_columns], rows)
