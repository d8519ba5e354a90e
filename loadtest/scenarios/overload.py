"""`loadtest overload`: pin service and generator to a core each, find the knee, then exceed it.

The module `overload_verdict` computes the numbers of a run and the verdict on them.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path

from loadtest.errors import LoadtestError
from loadtest.generator.offer import OfferedLoad, offered
from loadtest.measure.timeline import Moment, timeline
from loadtest.measure.verdict import LEAST_KNEE, Verdict, overall
from loadtest.report.overload import run_line, run_title, write_overload
from loadtest.report.report import Report
from loadtest.scenarios.bench import Bench
from loadtest.scenarios.overload_verdict import Overload, judged
from loadtest.scenarios.search import KneePlan, KneeStep, confirm_knee
from loadtest.targets.running import Target, bound_of_share_ms, gained
from loadtest.targets.services import Document, deployments_of
from loadtest.targets.workspace import Progress, Workspace
from serve.report.rows import number

# The warm-up reaches the first rate of the search, because one slow step there would halve the
# rates that follow.
SEARCH = KneePlan(start_rps=300.0, resolution=1.06, warm_up_rps=300.0, warm_up_s=15, step_s=6, budget_s=100)
# After the overload the knee is confirmed in shorter steps.
AFTER = replace(SEARCH, confirm_s=8.0)
# As a control, the same service without load shedding gets this load and must not hold. The load is
# long enough for the service to collapse; Ray's queues fill sooner.
CONTROL = Overload(times=2.0, seconds=20.0)
# What the verdict on the control adds to the verdict on all runs.
OPPOSITE: dict[Verdict, Verdict] = {"held": "not held", "not held": "held", "void": "void"}
# A function from the knee to the judged numbers of a run, and the timeline of the run.
Offered = tuple[Callable[[float], Report], list[Moment]]
# Histogram of the time that a replica takes to refuse a request.
REFUSED = "ray_tabrank_refused_seconds"
# Time after a load until its metrics are read. The metrics page is refreshed every two seconds.
PAGE_S = 4.5


def run_overload(
    work: Workspace,
    config: Path,
    loads: Sequence[Overload],
    out: Path,
    emit: Progress,
    known_rps: float | None = None,
) -> Report:
    """Start the service on its core, find its knee, and offer loads beyond it.

    At the end the service is overloaded once more, without load shedding. The knee is the lower one
    of those before and after the loads, or `known_rps` if this is given.

    Raises:
        LoadtestError: if the input, the workspace, the service or a lack of cores prevents it.
    """
    cores = _two_cores()
    with Bench.locked(work, config, emit) as bench:
        service, target = bench.service, Target.of(work, bench.service)
        deadline_ms = _deadline_ms(target.document())
        emit(f"the service on core {cores[0]}, the load generator on core {cores[1]}")
        with _pinned(cores[0]), bench.started(service):
            os.sched_setaffinity(0, {cores[1]})
            before_rps, after_rps, steps = known_rps, known_rps, list[KneeStep]()
            if before_rps is None:
                before_rps, steps = bench.require_knee(service.url, SEARCH, "use a faster machine")
                emit(f"knee with this pinning: {before_rps:g} req/s")
            else:
                bench.step(service.url, SEARCH.warm_up_rps, 0.0, SEARCH.warm_up_s, "warm-up")
            offer = partial(offer_load, target, bench, before_rps, deadline_ms)
            offered_loads = [offer(load) for load in loads]
            if known_rps is None:
                again = confirm_knee(partial(bench.step, service.url), AFTER, before_rps)
                steps += again.steps
                after_rps = again.confirmed.rate_rps if again.confirmed else None
                emit(f"knee after the overload: {number(after_rps)} req/s ({LEAST_KNEE:.0%} needed)")
            emit("control: the same without load shedding, which must fail")
            judge_control, of_control = control_of(target, offer)
    knee_rps = min(before_rps, after_rps or before_rps)
    runs, control = [judge(knee_rps) for judge, _ in offered_loads], judge_control(knee_rps)
    lines = {run_title(run): moments for run, (_, moments) in zip(runs, offered_loads, strict=True)}
    lines |= {"the control": of_control} if of_control else {}
    kept: Verdict = "held" if (after_rps or 0.0) >= LEAST_KNEE * before_rps else "not held"
    report = {
        "verdict": overall([verdict_of(runs, control), kept]),
        "knee_rps": knee_rps,
        "knee_before_rps": before_rps,
        "knee_after_rps": after_rps,
        "deadline_ms": deadline_ms,
        "runs": runs,
        "control": control,
        "knee_steps": [step.plain() for step in steps],
        "pinning": {"service_core": cores[0], "generator_core": cores[1]},
        "config": str(config),
        **bench.circumstances(),
    }
    write_overload(out, report, lines, bench.slo)
    return report


def control_of(target: Target, offer: Callable[[Overload], Offered]) -> Offered:
    """Offer the control to the service without load shedding.

    The control is void if this service does not run.
    """
    try:
        target.deploy(without_load_shedding(target.document()))
        return offer(CONTROL)
    except LoadtestError as error:
        void = {"verdict": "void", "reasons": [str(error).splitlines()[-1].strip()]}
        return lambda _: void, []


def offer_load(target: Target, bench: Bench, knee_rps: float, deadline_ms: float, load: Overload) -> Offered:
    """Offer a load whose rates are multiples of `knee_rps`.

    Returns a function from the final knee to the judged numbers of the run, and its timeline. The
    control is not judged by the time that its refusals take, because this says nothing about a
    collapse.
    """
    before = target.metrics()
    offer = OfferedLoad(target.url, bench.bodies, bench.candidates, knee_rps, load.blocks)
    requests = offered(offer).requests
    time.sleep(PAGE_S)
    after = target.metrics()
    refusals = {
        "refused_counted": gained(before, after, f"{REFUSED}_count"),
        "refused_in_replica_p99_ms": bound_of_share_ms(before, after, f"{REFUSED}_bucket", 0.99),
    }
    more = None if load is CONTROL else refusals
    judge = partial(judged, load, requests, deadline_ms=deadline_ms, slo=bench.slo, more=more)
    bench.emit(run_line(judge(knee_rps)))
    return judge, timeline(requests, load.whole_s, [])


def verdict_of(runs: Sequence[Report], control: Report) -> Verdict:
    """Return the verdict on all runs, which must hold, and on the control, which must not."""
    return overall([*(run["verdict"] for run in runs), OPPOSITE[control["verdict"]]])


def without_load_shedding(document: Document) -> Document:
    """Return a copy of a `cluster.yaml` whose FeatureFetch has `load_shedding: false`."""
    changed = deepcopy(document)
    front = deployments_of(changed).get("FeatureFetch", {})
    front["user_config"] = {**(front.get("user_config") or {}), "load_shedding": False}
    return changed


def read_times(given: str) -> list[float]:
    """Return the numbers in a text such as `1.2,2,3`.

    Raises:
        LoadtestError: if one is not a number from 0.5 to 10.
    """
    with contextlib.suppress(ValueError):
        times = [float(each) for each in given.split(",")]
        if all(0.5 <= each <= 10 for each in times):
            return times
    raise LoadtestError(f"--times {given}: these must be numbers from 0.5 to 10, such as 1.2,2,3")


def _deadline_ms(document: Document) -> float:
    front = deployments_of(document).get("FeatureFetch", {})
    return float((front.get("user_config") or {}).get("deadline_ms", 100.0))


def _two_cores() -> tuple[int, int]:
    if not hasattr(os, "sched_setaffinity"):
        raise LoadtestError("this system cannot pin processes to cores; run the test on Linux")
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise LoadtestError("the service and the load generator need a core each, but only one is available")
    return cores[0], cores[-1]


@contextlib.contextmanager
def _pinned(core: int) -> Iterator[None]:
    """Pin this process and its children to one core during the block."""
    had = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, had)
