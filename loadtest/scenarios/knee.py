"""`loadtest knee`: the highest rate at which the service of a `cluster.yaml` meets its SLO."""

from __future__ import annotations

from pathlib import Path

from loadtest.report.knee import write_knee
from loadtest.report.report import Report
from loadtest.scenarios.bench import Bench
from loadtest.scenarios.search import KneePlan
from loadtest.targets.services import tabrank
from loadtest.targets.workspace import Progress, Workspace

PLAN = KneePlan()


def run_knee(
    work: Workspace, config: Path, candidates: int, out: Path, emit: Progress, plan: KneePlan = PLAN
) -> Report:
    """Start the service, find its knee, stop it, and write the report to the new folder `out`.

    Raises:
        LoadtestError: if the input, the workspace or the service prevents the measurement.
    """
    with work.locked():
        # Report an invalid file before the preparation, which takes a minute.
        service = tabrank(work, config)
        bench = Bench.prepared(work, candidates, emit)
        found = bench.knee_of(service, plan)
    report = {**found, "config": str(config), **bench.circumstances()}
    write_knee(out, report)
    return report
