"""Run `serve plan`: simulate a configuration under a load trace, or compare it with a real run."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from serve.config.reader import read
from serve.contract.errors import TabrankError
from serve.contract.validation import refuse_existing
from serve.operate.plan.comparison import check_timeline, compare
from serve.operate.plan.costs import load_costs
from serve.operate.plan.outcome import Outcome
from serve.operate.plan.plan_warnings import warnings_of
from serve.operate.plan.report import Report, make_report, write_plan
from serve.operate.plan.service import FETCH, SCORER, read_service
from serve.operate.plan.simulation import simulate
from serve.operate.plan.trace import read_trace

# The first seed makes the plan; the others show how much of it is chance.
NUM_SEEDS = 3
# A trace of a day takes minutes.
PROGRESS_EVERY_S = 3.0


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
    report_share = progress_of(NUM_SEEDS, progress)
    outcome, *others = [
        simulate(service, costs, trace, request.seed + i, partial(report_share, i)) for i in range(NUM_SEEDS)
    ]
    comparison = compare(outcome) if request.timeline else None
    warnings = warnings_of(outcome, others)
    report = make_report(config, path, costs, request.seed, outcome, warnings, comparison)
    if request.out is not None:
        write_plan(request.out, report, outcome, _plot(outcome, comparison is not None, progress))
        progress(f"{request.out}/report.html, plan.json, plan.csv")
    return report


def progress_of(
    num: int, log: Callable[[str], None], clock: Callable[[], float] = time.monotonic
) -> Callable[[int, float], None]:
    """Return the callback to which each of `num` simulations reports its finished share.

    It logs the share of all at most every `PROGRESS_EVERY_S`.
    """
    logged_s = clock()

    def report(i: int, share: float) -> None:
        nonlocal logged_s
        now_s = clock()
        if now_s - logged_s >= PROGRESS_EVERY_S:
            logged_s = now_s
            log(f"{(i + share) / num:.0%} simulated")

    return report


def _plot(outcome: Outcome, with_real: bool, progress: Callable[[str], None]) -> str | None:
    try:
        from serve.operate.plan.plot import draw
    except ImportError:
        progress(
            "no plot: matplotlib is missing; install the extra loadtest: pip install 'tabrank[loadtest]'"
        )
        return None
    return draw(outcome, with_real)
