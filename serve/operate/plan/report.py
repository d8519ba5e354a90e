"""Report of a plan: the content of `plan.json`, and the table for a terminal."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from serve.config.reader import Config
from serve.operate.host.machine import describe_machine
from serve.operate.plan.comparison import SHIFT_S, Comparison
from serve.operate.plan.costs import Costs
from serve.operate.plan.outcome import Answers, Outcome
from serve.operate.plan.trace import NODES, RATE, Phase

Report = dict[str, Any]
LEGEND = (
    "late: answered in popular order at the deadline, which starts when a replica accepts the request; "
    "p99 includes the wait before that"
)


def make_report(
    config: Config, trace: Path, costs: Costs, seed: int, outcome: Outcome, comparison: Comparison | None
) -> Report:
    """Return the content of plan.json and `--json`; latencies assume a core for each replica."""
    begin_s, end_s = outcome.trace.t_s[0], outcome.trace.end_s
    return {
        "config": str(config.path),
        "config_sha256": config.sha256,
        "trace": str(trace),
        "costs": asdict(costs),
        "seed": seed,
        "seconds": round(end_s - begin_s, 3),
        "deployments": {name: _counts(outcome, name) for name in outcome.deployments},
        "nodes": _counts(outcome, NODES),
        "answers": answers_of(outcome.answers(begin_s, end_s)),
        "phases": [_phase(outcome, phase) for phase in outcome.trace.phases()],
        "warnings": outcome.warnings(),
        "comparison": None if comparison is None else _comparison(comparison),
        "machine": describe_machine(),
    }


def _counts(outcome: Outcome, name: str) -> dict[str, float]:
    counts = outcome.column(name)
    return {
        "min": int(counts.min()),
        "mean": round(float(counts.mean()), 2),
        "max": int(counts.max()),
        "changes": int((np.diff(counts) != 0).sum()),
        # The sum over all replicas or nodes, which is the cost.
        "seconds": int(counts.sum()),
    }


def answers_of(answers: Answers) -> dict[str, float | None]:
    """Return the rounded answers; a value is None where nothing was answered."""
    numbers = {name: round(value, 4) for name, value in asdict(answers).items()}
    return {name: value if math.isfinite(value) else None for name, value in numbers.items()}


def _phase(outcome: Outcome, phase: Phase) -> dict[str, Any]:
    rows = outcome.rows_of(phase)
    answers = outcome.answers(phase.begin_s, phase.end_s)
    return {
        "phase": phase.name,
        RATE: round(answers.requests / (phase.end_s - phase.begin_s), 1),
        "replicas": {
            name: {
                "mean": round(float(np.mean([row.running[name] for row in rows])), 2) if rows else None,
                "max": max((row.running[name] for row in rows), default=None),
            }
            for name in outcome.deployments
        },
        NODES: max((row.nodes for row in rows), default=None),
        **answers_of(answers),
    }


def _comparison(comparison: Comparison) -> dict[str, Any]:
    numbers = (
        "exact_share",
        "within_one_share",
        "mean_off",
        "most_off",
        "most_off_shifted",
        "mean_off_unplanned",
    )
    return {
        "holds": comparison.holds,
        "shift_s": SHIFT_S,
        "counts": {
            fit.name: {"holds": fit.holds, **{name: round(getattr(fit, name), 3) for name in numbers}}
            for fit in comparison.fits
        },
        "phases": [
            {
                "phase": fit.phase.name,
                "name": fit.name,
                "real": round(fit.real, 2),
                "planned": round(fit.planned, 2),
                "most_off_shifted": fit.most_off,
            }
            for fit in comparison.phases
        ],
    }


def table(report: Report) -> str:
    """Return the plan as text for a terminal."""
    names = [name for name, counts in report["deployments"].items() if counts["max"] != counts["min"]]
    names = names or list(report["deployments"])[:2]
    head = ["", "req/s", *(f"{name} mean/max" for name in names), NODES, "late", "refused", "p99 ms"]
    rows = [head, *(_row(phase, names) for phase in report["phases"])]
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    answers, nodes = report["answers"], report[NODES]
    lines.append(LEGEND)
    lines.append("")
    for name, counts in report["deployments"].items():
        lines.append(
            f"{name}: {counts['min']} to {counts['max']} replicas, mean {counts['mean']:g}, "
            f"{counts['changes']} changes, {counts['seconds']:,} replica-seconds"
        )
    lines.append(f"nodes: {nodes['min']} to {nodes['max']}, {nodes['seconds']:,} node-seconds")
    lines.append(
        f"{answers['requests']:,} requests in {report['seconds']:g} s: {answers['late_share']:.2%} answered in "
        f"popular order at their deadline, {answers['refused_share']:.2%} refused; "
        f"p99 {_text(answers['p99_ms'])} ms (simulated)"
    )
    lines.append(f"costs: {report['costs']['source']} ({report['costs']['machine']})")
    lines += [f"warning: {text}" for text in report["warnings"]]
    return "\n".join([*lines, *comparison_lines(report)])


def _row(phase: dict[str, Any], names: list[str]) -> list[str]:
    counts = [phase["replicas"][name] for name in names]
    return [
        phase["phase"],
        f"{phase[RATE]:,.0f}",
        *(f"{_text(each['mean'])} / {each['max']}" for each in counts),
        str(phase[NODES]),
        f"{phase['late_share']:.1%}",
        f"{phase['refused_share']:.1%}",
        _text(phase["p99_ms"]),
    ]


def _text(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"


def comparison_lines(report: Report) -> list[str]:
    """Return the lines that compare the plan with the real run."""
    compared = report["comparison"]
    if compared is None:
        return []
    verdict = "HOLDS" if compared["holds"] else "DOES NOT HOLD"
    lines = [
        f"against the real run: {verdict} (at most one replica off, within {compared['shift_s']:g} s)",
        *(
            f"  {name}: at most {counts['most_off_shifted']:g} off, {counts['most_off']:g} without a shift; "
            f"mean {counts['mean_off']:.2f} off ({counts['mean_off_unplanned']:.2f} with no change at all); "
            f"equal in {counts['exact_share']:.0%} of the seconds, at most one off in "
            f"{counts['within_one_share']:.0%}"
            for name, counts in compared["counts"].items()
        ),
    ]
    lines += [
        f"  {row['phase']}: {row['name']} {row['real']:g} real, {row['planned']:g} planned (means)"
        for row in compared["phases"]
        if row["most_off_shifted"] > 1 or abs(row["real"] - row["planned"]) > 1
    ]
    return lines
