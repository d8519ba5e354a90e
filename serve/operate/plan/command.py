"""Run `serve plan`: simulate a configuration under a load trace, or compare it with a real run."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path

from serve.config.reader import read
from serve.contract.errors import TabrankError
from serve.contract.validation import refuse_existing
from serve.operate.plan.comparison import check_timeline, compare
from serve.operate.plan.costs import SHIPPED, load_costs
from serve.operate.plan.report import Report, make_report, write_plan
from serve.operate.plan.service import FETCH, SCORER, read_service
from serve.operate.plan.simulation import simulate
from serve.operate.plan.trace import read_trace

# The first seed makes the plan; the others show how much of it is chance.
NUM_SEEDS = 3
# A trace of a day takes minutes.
PROGRESS_EVERY_S = 3.0


def plan(
    config_path: Path,
    trace_path: Path | None,
    timeline: Path | None = None,
    costs_path: Path | None = None,
    out: Path | None = None,
    seed: int = 0,
    progress: Callable[[str], None] = lambda message: None,
) -> Report:
    """Return the report of a plan; `comparison.holds` is whether the plan met a real run.

    The load is either `trace_path`, or `timeline`, which is a trace with a real run's counts.

    Raise TabrankError for a file that cannot be read or planned.
    """
    path = timeline or trace_path
    if path is None or (timeline and trace_path):
        raise TabrankError(
            "give either --trace, a CSV with t_s and offered_rps, or --compare, a run's timeline.csv"
        )
    if out is not None:
        refuse_existing(out)
    config = read(config_path)
    service, costs, trace = read_service(config), load_costs(costs_path or SHIPPED), read_trace(path)
    if timeline:
        if not service.scaled:
            raise TabrankError(
                f"{config.path}: no deployment scales, so there is nothing to compare; give {FETCH} or {SCORER} a "
                f"max_replicas above its min_replicas, or plan with --trace"
            )
        check_timeline(trace, path, [each.name for each in service.scaled])
    progress(f"simulating {trace.num_requests:,} requests in {trace.end_s - trace.t_s[0]:g} s")
    report_share = progress_of(progress)
    outcome, *others = [
        simulate(service, costs, trace, seed + i, partial(report_share, i)) for i in range(NUM_SEEDS)
    ]
    report = {
        "config": str(config.path),
        "config_sha256": config.sha256,
        "trace": str(path),
        "costs": asdict(costs),
        "seed": seed,
        **make_report(outcome, others, compare(outcome) if timeline else None),
    }
    if out is not None:
        write_plan(out, report, outcome, progress)
    return report


def progress_of(
    log: Callable[[str], None], clock: Callable[[], float] = time.monotonic
) -> Callable[[int, float], None]:
    """Return the callback to which each of `NUM_SEEDS` simulations reports its finished share.

    It logs the share of all at most every `PROGRESS_EVERY_S`.
    """
    logged_s = clock()

    def report(i: int, share: float) -> None:
        nonlocal logged_s
        now_s = clock()
        if now_s - logged_s >= PROGRESS_EVERY_S:
            logged_s = now_s
            log(f"{(i + share) / NUM_SEEDS:.0%} simulated")

    return report
