"""`loadtest knee`: the highest rate at which the service of a `cluster.yaml` meets its SLO.

`loadtest compare` measures two rivals too, with the same model and requests.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from loadtest.report.knee import write_compare, write_knee
from loadtest.report.report import Report
from loadtest.scenarios.bench import Bench
from loadtest.scenarios.search import KneePlan
from loadtest.targets.services import fastapi, idiomatic, tabrank
from loadtest.targets.workspace import Progress, Workspace

PLAN = KneePlan()
# Limit of the whole comparison, without making the workspace. Each search gets an equal share.
LIMIT_S = 570.0
# Part of a share for the start and end of the service, the last search step and the confirmation.
AROUND_S = 75.0
CANDIDATES = 55
CONFIG = Path("cluster.yaml")


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


def run_compare(work: Workspace, out: Path, emit: Progress, plan: KneePlan = PLAN) -> Report:
    """Measure the three services one after the other, and write the report to `out`.

    Nothing of a service is left when the next one starts.

    Raises:
        LoadtestError: if a service cannot be measured.
    """
    with work.locked():
        three = (idiomatic(work), fastapi(work), tabrank(work, CONFIG))
        bench = Bench.prepared(work, CANDIDATES, emit)
        share = replace(plan, budget_s=min(plan.budget_s, LIMIT_S / len(three) - AROUND_S))
        services = {service.name: bench.knee_of(service, share) for service in three}
    knees = {name: found["knee_rps"] for name, found in services.items()}
    ours = knees["tabrank"]
    ratios = {
        f"ratio_{name}": round(ours / knees[name], 3) if ours and knees[name] else None
        for name in ("idiomatic", "fastapi")
    }
    report = {"knee_rps": knees, **ratios, "services": services, **bench.circumstances()}
    write_compare(out, report)
    return report
