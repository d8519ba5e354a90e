"""`loadtest overload`: pin service and generator to a core each, find the knee, then exceed it."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from loadtest.errors import LoadtestError
from loadtest.generator.offer import OfferedLoad, offered
from loadtest.measure.cluster import read_service
from loadtest.measure.timeline import Moment, timeline
from loadtest.measure.verdict import Verdict, overall
from loadtest.report.overload import run_line, write_overload
from loadtest.report.report import Report
from loadtest.scenarios.bench import Bench
from loadtest.scenarios.overload.found import Found, OverloadPlan, describe, judge
from loadtest.scenarios.search import KneePlan, KneeStep
from loadtest.targets.cluster_file import Document, deployments_of
from loadtest.targets.metrics_page import gained, read_page, within
from loadtest.targets.processes import started
from loadtest.targets.running import Target
from loadtest.targets.services import tabrank
from loadtest.targets.workspace import Progress, Workspace

CANDIDATES = 55
SEARCH = KneePlan(
    start_rps=300.0, resolution=1.06, warm_up_s=8.0, step_s=6.0, confirm_s=15.0, budget_s=75.0, rest_s=2.0
)
CONTROL_TIMES = 2.0
# Long enough for the collapse without load shedding: the system's own queues fill sooner.
CONTROL_S = 20.0
# Histogram of the duration of refusals.
REFUSED_MS = "ray_tabrank_refused_ms_total"
# The metrics page is refreshed every two seconds.
PAGE_S = 4.5


@dataclass(frozen=True)
class Offering:
    """Service to overload, with its benchmark, deadline and knee."""

    target: Target
    bench: Bench
    deadline_ms: float
    knee_rps: float

    def run(
        self, times: float, plan: OverloadPlan, metrics_url: str | None = None
    ) -> tuple[Found, list[Moment]]:
        """Offer a multiple of the knee; return the judged numbers and the timeline.

        The refusals, as the replicas report them, count only with the URL of the metrics page.
        """
        blocks = plan.blocks(times)
        load = OfferedLoad(self.target.url, self.bench.bodies, self.bench.candidates, self.knee_rps, blocks)
        before = read_page(metrics_url or "")
        requests = offered(load).requests
        found = describe(requests, times, self.knee_rps, self.deadline_ms, plan, self.bench.slo)
        if metrics_url is not None:
            time.sleep(PAGE_S)
            after = read_page(metrics_url)
            found |= {
                "refused_counted": gained(before, after, REFUSED_MS, le="+Inf"),
                "refused_in_replica_p99_ms": within(before, after, REFUSED_MS, 0.99),
            }
        verdict, reasons = judge(found, self.bench.slo)
        run = {"verdict": verdict, "reasons": reasons, **found}
        self.bench.emit(run_line(run))
        return run, timeline(requests, load.seconds, [])


def run_overload(
    work: Workspace,
    config: Path,
    times: Sequence[float],
    plan: OverloadPlan,
    out: Path,
    emit: Progress,
    known_rps: float | None = None,
) -> Report:
    """Start the service on its core, find its knee, overload it; repeat without load shedding.

    `known_rps`: the knee, if it was measured before.

    Raises:
        LoadtestError: if the input, the workspace, the service or a lack of cores prevents it.
    """
    cores = _two_cores()
    with work.locked():
        service = tabrank(work, config)
        target = Target.of(work, service)
        bench = Bench.prepared(work, CANDIDATES, emit)
        emit(f"the service on core {cores[0]}, the load generator on core {cores[1]}")
        with _pinned(cores[0]), started(service, work, bench.bodies[0], CANDIDATES):
            os.sched_setaffinity(0, {cores[1]})
            knee_rps, steps = known_rps, list[KneeStep]()
            if knee_rps is None:
                knee_rps, steps = bench.require_knee(service.url, SEARCH, "use a faster machine")
                emit(f"knee with this pinning: {knee_rps:g} req/s")
            offering = Offering(target, bench, _deadline_ms(target.document()), knee_rps)
            metrics_url = read_service(target.run).get("metrics_url", "")
            found = [offering.run(factor, plan, metrics_url) for factor in times]
            control, moments = _control(offering, plan)
    runs = [one for one, _ in found]
    lines = {f"{one['times']:g} times the knee": line for one, line in found}
    lines |= {"the control": moments} if moments else {}
    verdict = verdict_of(runs, control)
    report = {
        "verdict": verdict,
        "knee_rps": knee_rps,
        "deadline_ms": offering.deadline_ms,
        "runs": runs,
        "control": control,
        "knee_steps": [asdict(step) for step in steps],
        "pinning": {"service_core": cores[0], "generator_core": cores[1]},
        "config": str(config),
        **bench.circumstances(),
    }
    write_overload(out, report, lines, bench.slo)
    return report


def read_times(given: str) -> list[float]:
    """Return `2,3` as numbers.

    Raises:
        LoadtestError: for anything else.
    """
    try:
        times = [float(each) for each in given.split(",")]
    except ValueError:
        times = []
    if not times or not all(1 < each <= 10 for each in times):
        raise LoadtestError(f"--times {given}: must be numbers above 1 and up to 10, such as 2,3")
    return times


def _control(offering: Offering, plan: OverloadPlan) -> tuple[Found, list[Moment]]:
    """Repeat the overload without load shedding, as a control: it must not hold."""
    bench, document = offering.bench, offering.target.document()
    bench.emit("control run without load shedding")
    disable_load_shedding(document)
    try:
        offering.target.deploy(document)
    except LoadtestError as error:
        reason = str(error).splitlines()[-1].strip()
        bench.emit(f"  not run: {reason}")
        return {"run": False, "reason": reason}, []
    shorter = replace(plan, seconds=min(plan.seconds, CONTROL_S))
    found, moments = offering.run(CONTROL_TIMES, shorter)
    return {"run": True, **found}, moments


def verdict_of(runs: Sequence[Found], control: Found) -> Verdict:
    """Return the verdict on all runs; the control must not hold, and is void if it did not run."""
    if not control["run"]:
        collapsed: Verdict = "void"
    else:
        collapsed = "not held" if control["verdict"] == "held" else "held"
    return overall([*(run["verdict"] for run in runs), collapsed])


def disable_load_shedding(document: Document) -> None:
    """Set `ladder: false` in a `cluster.yaml`."""
    front = deployments_of(document).get("FeatureFetch", {})
    front["user_config"] = {**(front.get("user_config") or {}), "ladder": False}


def _deadline_ms(document: Document) -> float:
    front = deployments_of(document).get("FeatureFetch", {})
    return float((front.get("user_config") or {}).get("deadline_ms", 100.0))


def _two_cores() -> tuple[int, int]:
    if not hasattr(os, "sched_setaffinity"):
        raise LoadtestError("this system cannot pin processes to cores; run the test on Linux")
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise LoadtestError("only one core is available; the service and the load generator need one each")
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
