"""`loadtest knee`: the highest rate at which the service of a `cluster.yaml` holds its SLO."""

from __future__ import annotations

from pathlib import Path

from loadtest.report.knee import write_knee
from loadtest.report.report import refuse_existing
from loadtest.scenarios.bench import Bench, Report
from loadtest.scenarios.search import Plan
from loadtest.targets.services import tabrank
from loadtest.targets.workspace import Say, Workspace

PLAN = Plan()


def run_knee(
    work: Workspace, config: Path, candidates: int, out: Path, say: Say, plan: Plan = PLAN
) -> Report:
    """Start the service, find its knee, stop it, and write the report to the new folder `out`.

    Raises:
        LoadtestError: if it cannot be measured: the input, the workspace or the service is at fault.
    """
    refuse_existing(out)
    with work.locked():
        service = tabrank(work, config)  # what is wrong with the file is told before a minute of preparing
        bench = Bench.prepared(work, candidates, say)
        found = bench.knee_of(service, plan)
    report = {**found, "config": str(config), **bench.circumstances()}
    write_knee(out, report)
    return report
