"""`loadtest compare`: the knees of tabrank and of two rivals, in one go with the same model and requests."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from loadtest.report.knee import write_compare
from loadtest.report.report import refuse_existing
from loadtest.scenarios.bench import Bench, Report
from loadtest.scenarios.search import Plan
from loadtest.targets.services import fastapi, idiomatic, tabrank
from loadtest.targets.workspace import Say, Workspace

PLAN = Plan()
LIMIT_S = 570.0  # for all of it, without the making of the workspace; each search gets an equal share
AROUND_S = 75.0  # of a share, for the service's start and end, the last step of a search, and confirming
CANDIDATES = 55
CONFIG = Path("cluster.yaml")


def run_compare(work: Workspace, out: Path, say: Say, plan: Plan = PLAN) -> Report:
    """Measure the three one after the other, nothing of one left when the next starts; write the report to `out`.

    Raises:
        LoadtestError: if one of them cannot be measured.
    """
    refuse_existing(out)
    with work.locked():
        three = (idiomatic(work), fastapi(work), tabrank(work, CONFIG))
        bench = Bench.prepared(work, CANDIDATES, say)
        share = replace(plan, budget_s=min(plan.budget_s, LIMIT_S / len(three) - AROUND_S))
        services = {service.name: bench.knee_of(service, share) for service in three}
    knees = {name: found["knee_rps"] for name, found in services.items()}
    report = {
        "knee_rps": knees,
        "ratio_idiomatic": _ratio(knees["tabrank"], knees["idiomatic"]),
        "ratio_fastapi": _ratio(knees["tabrank"], knees["fastapi"]),
        "services": services,
        **bench.circumstances(),
    }
    write_compare(out, report)
    return report


def _ratio(ours: float | None, theirs: float | None) -> float | None:
    return None if ours is None or theirs is None else round(ours / theirs, 3)
