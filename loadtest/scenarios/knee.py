"""`loadtest knee`: find the highest rate at which a service meets its SLO."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

from loadtest.measure.verdict import Verdict
from loadtest.report.knee import write_knee
from loadtest.report.report import Report
from loadtest.scenarios.bench import Bench
from loadtest.scenarios.search import KneePlan, KneeStep, find_knee
from loadtest.targets.workspace import Progress, Workspace

PLAN = KneePlan()


def run_knee(work: Workspace, config: Path, candidates: int, out: Path, emit: Progress) -> Report:
    """Start the service, find its knee, stop it, and write the report to the new folder `out`.

    Raises:
        LoadtestError: if the input, the workspace or the service prevents the measurement.
    """
    with Bench.locked(work, config, emit, candidates) as bench, bench.started(bench.service) as footprint:
        processes = f"{footprint.num_processes} processes, {footprint.memory_mib} MiB"
        emit(f"{bench.service.url} answers after {footprint.start_s} s, {processes}")
        knee = find_knee(partial(bench.step, bench.service.url), PLAN)
    at, numbers = knee.confirmed, ("candidates_per_s", "full_share", "p50_ms", "p90_ms", "p99_ms")
    # A p99 is None if more than 1 % of the requests failed. It counts as the longest.
    confirming = sorted(knee.confirming, key=lambda step: step.numbers["p99_ms"] or float("inf"))
    report = {
        "verdict": "held" if at else knee_verdict(knee.steps),
        "knee_rps": at.rate_rps if at else None,
        **{name: at.numbers[name] if at else None for name in numbers},
        "confirming": [{key: step.numbers[key] for key in ("p99_ms", "full_share")} for step in confirming],
        **asdict(footprint),
        "steps": [step.plain() for step in knee.steps],
        "config": str(config),
        **bench.circumstances(),
    }
    write_knee(out, report)
    return report


def knee_verdict(steps: Sequence[KneeStep]) -> Verdict:
    """Return the verdict if no rate held: void if no step was a valid measurement."""
    return "void" if {step.verdict for step in steps} == {"void"} else "not held"
