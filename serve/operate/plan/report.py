"""Report of a plan: `plan.json`, `plan.csv`, `report.html`, and the table for a terminal."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from serve.operate.host.machine import describe_machine
from serve.operate.plan.outcome import F64, ONGOING, WANTED, Outcome
from serve.operate.plan.plan_warnings import warnings_of
from serve.operate.plan.plot import draw
from serve.operate.plan.trace import NODES, RATE, REPLICAS, TIME, Phase, shown
from serve.ranking.admission import SCORES_DUE
from serve.report.page import Tone, banner, bullets, footer, section, tiles, whole_page
from serve.report.page import table as tabled
from serve.report.rows import columns, csv_text, number
from serve.storage.atomic_files import draft_of

Report = dict[str, Any]
LEGEND = (
    f"late: no scores at {100 * SCORES_DUE:g} % of the deadline, which starts when HAProxy gets the request; "
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
    lines = [*_lines(report), *(f"warning: {text}" for text in report["warnings"]), *_compared(report)]
    return "\n".join([columns(_phases(report), str.rjust), f"{LEGEND}.", "", *lines])


def _phases(report: Report) -> list[list[str]]:
    """Return a header, then a row for each phase."""
    deployments = report["deployments"]
    names = [name for name, counts in deployments.items() if counts["max"] != counts["min"]]
    names = names or list(deployments)[:2]
    rows = [["", "req/s", *(f"{name} mean/max" for name in names), NODES, "late", "refused", "p99 ms"]]
    for phase in report["phases"]:
        counts = [phase["replicas"][name] for name in names]
        replicas = [f"{number(each['mean'], '.1f')} / {each['max']}" for each in counts]
        shares = [f"{phase[name]:.1%}" for name in ("late_share", "refused_share")]
        numbers = [*replicas, str(phase[NODES]), *shares, number(phase["p99_ms"], ".1f")]
        rows.append([phase["phase"], f"{phase[RATE]:,.0f}", *numbers])
    return rows


def _lines(report: Report) -> list[str]:
    nodes = report[NODES]
    return [
        *(
            f"{name}: {counts['min']} to {counts['max']} replicas, mean {counts['mean']:g}, "
            f"{counts['changes']} changes, {counts['seconds']:,} replica-seconds"
            for name, counts in report["deployments"].items()
        ),
        f"nodes: {nodes['min']} to {nodes['max']}, {nodes['seconds']:,} node-seconds",
        _answers(report),
        f"costs: {report['costs']['source']} ({report['costs']['machine']})",
    ]


def _answers(report: Report) -> str:
    answers = report["answers"]
    return (
        f"{answers['requests']:,} requests in {report['seconds']:g} s: {answers['late_share']:.2%} answered in "
        f"popular order at their deadline, {answers['refused_share']:.2%} refused; "
        f"p99 {number(answers['p99_ms'], '.1f')} ms (simulated)"
    )


def _compared(report: Report) -> list[str]:
    comparison = report["comparison"]
    if comparison is None:
        return []
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
    with draft_of(folder) as draft:
        (draft / "plan.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        (draft / "plan.csv").write_text(to_csv(outcome), encoding="utf-8")
        (draft / "report.html").write_text(_page(report, outcome), encoding="utf-8")
    progress(f"{folder}/report.html, plan.json, plan.csv")


def _page(report: Report, outcome: Outcome) -> str:
    """Return report.html: the verdict, the plots, then the phases."""
    answers, nodes, comparison = report["answers"], report[NODES], report["comparison"]
    tone: Tone = "unsure" if report["warnings"] else "neutral"
    words = f"{nodes['min']} to {nodes['max']} nodes carry the load"
    if any(text.startswith("past the knee") for text in report["warnings"]):
        tone, words = "bad", words.replace("carry", "do not carry")
    elif report["warnings"]:
        words = f"It is unsure whether {words}: see the warnings"
    if comparison is not None:
        tone = "good" if comparison["holds"] else "bad"
        words = f"The plan {'holds' if comparison['holds'] else 'does not hold'} against the real run"
    p50, p99 = (f"{number(answers[name], '.1f')} ms" for name in ("p50_ms", "p99_ms"))
    numbers = [
        ("p99, simulated", p99, f"p50 {p50}"),
        ("late", f"{answers['late_share']:.2%}", "answered in popular order at the deadline"),
        ("refused", f"{answers['refused_share']:.2%}", f"of {answers['requests']:,} requests"),
        (NODES, f"{nodes['max']}", f"at most; mean {nodes['mean']:g}"),
    ]
    doubt = (
        "It is Ray's own scaling code over a simulation of the service. Load shedding is left out, "
        "and each replica is assumed to have a core."
    )
    parts = [
        banner(tone, words, f"{_answers(report)}.", doubt),
        bullets(f"Warning: {text}" for text in report["warnings"]),
        tiles(numbers),
        *draw(outcome, comparison is not None),
        section("Phases", tabled(_phases(report), LEGEND), bullets(_lines(report) + _compared(report))),
        footer(report["machine"], ".", ("plan.json", "plan.csv")),
    ]
    return whole_page(f"Plan of {report['config']} under {report['trace']}", parts)


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
