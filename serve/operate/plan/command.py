"""Run `serve plan`: simulate a configuration under a load trace, or compare it with a real run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from serve.config.reader import read
from serve.contract.errors import TabrankError
from serve.contract.validation import refuse_existing
from serve.operate.plan.comparison import Comparison, check_timeline, compare
from serve.operate.plan.costs import load_costs
from serve.operate.plan.folder import write_plan
from serve.operate.plan.outcome import Outcome, chance_warnings
from serve.operate.plan.progress import ProgressReporter
from serve.operate.plan.report import Report, make_report
from serve.operate.plan.service import FETCH, SCORER, read_service
from serve.operate.plan.simulation import simulate
from serve.operate.plan.trace import read_trace

# The first seed makes the plan; the others show how much of it is chance.
NUM_SEEDS = 3


@dataclass(frozen=True)
class PlanRequest:
    """Input of a plan: either `trace`, or `timeline`, which is a trace with a real run's counts."""

    config: Path
    trace: Path | None
    timeline: Path | None = None
    costs: Path | None = None
    out: Path | None = None
    seed: int = 0


def plan(request: PlanRequest, progress: Callable[[str], None] = lambda message: None) -> Report:
    """Return the report of a plan; `comparison.holds` is whether the plan met a real run.

    Raise TabrankError for a file that cannot be read or planned.
    """
    path = request.timeline or request.trace
    if path is None or (request.timeline and request.trace):
        raise TabrankError(
            "give either --trace, a CSV with t_s and offered_rps, or --compare, a run's timeline.csv"
        )
    if request.out is not None:
        refuse_existing(request.out)
    config = read(request.config)
    service, costs, trace = read_service(config), load_costs(request.costs), read_trace(path)
    if request.timeline:
        if not service.scaled:
            raise TabrankError(
                f"{config.path}: no deployment scales, so there is nothing to compare; give {FETCH} or {SCORER} a "
                f"max_replicas above its min_replicas, or plan with --trace"
            )
        check_timeline(trace, path, [each.name for each in service.scaled])
    progress(f"simulating {trace.num_requests:,} requests in {trace.end_s - trace.t_s[0]:g} s")
    share = ProgressReporter(progress, NUM_SEEDS)
    outcome, *others = (
        simulate(service, costs, trace, request.seed + i, share.of(i)) for i in range(NUM_SEEDS)
    )
    comparison = compare(outcome) if request.timeline else None
    report = make_report(config, path, costs, request.seed, outcome, comparison)
    report["warnings"] += chance_warnings([outcome, *others])
    if request.out is not None:
        write_plan(request.out, report, outcome, _plot(outcome, comparison, progress))
        progress(f"{request.out}/report.html, plan.json, plan.csv")
    return report


def _plot(outcome: Outcome, comparison: Comparison | None, progress: Callable[[str], None]) -> str | None:
    try:
        from serve.operate.plan.plot import draw
    except ImportError:
        progress(
            "no plot: matplotlib is missing; install the extra loadtest: pip install 'tabrank[loadtest]'"
        )
        return None
    return draw(outcome, comparison)
