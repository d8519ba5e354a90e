"""`loadtest overload`: pin service and generator to a core each, find the knee, then exceed it.

The numbers of a run are goodput by rung, refusals, failures and recovery time.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from loadtest.errors import LoadtestError
from loadtest.generator.dispatcher import NOT_SENT
from loadtest.generator.offer import OfferedLoad, offered
from loadtest.measure.cluster import read_service
from loadtest.measure.measure import Requests, percentile, rounded_numbers
from loadtest.measure.timeline import Moment, is_normal, recovered_s, timeline
from loadtest.measure.verdict import Verdict, listed, overall, verdict_on
from loadtest.report.report import Report
from loadtest.report.series import run_line, write_overload
from loadtest.scenarios.knee import Bench
from loadtest.scenarios.search import KneePlan, KneeStep
from loadtest.targets.processes import started
from loadtest.targets.running import Target, bound_of_share, gained, read_page
from loadtest.targets.services import Document, deployments_of, tabrank
from loadtest.targets.workspace import Progress, Workspace
from loadtest.workload.profiles import Block, Phase, Slo

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
REFUSED = "HTTP 429"
# (Multiple of the knee, least goodput as a share of the knee) up to that multiple.
GOODPUT = ((2.0, 0.9), (float("inf"), 0.7))
# Limit of the time that a replica takes to refuse a request.
REFUSAL_MS = 10.0
BACK_S = 5.0


@dataclass(frozen=True)
class OverloadPlan:
    """Seconds at 60 % of the knee, at a multiple of it, and at 60 % again, without pauses."""

    seconds: float = 60.0
    before_s: float = 5.0
    after_s: float = 15.0
    normal: float = 0.6

    def blocks(self, times: float) -> list[Block]:
        """Return the blocks of the load; its rate is the knee."""
        level = ((self.before_s, self.normal), (self.seconds, times), (self.after_s, self.normal))
        return [Block(seconds, factor, factor) for seconds, factor in level]


@dataclass(frozen=True)
class Offering:
    """Service to overload, with its benchmark, deadline and knee."""

    target: Target
    bench: Bench
    deadline_ms: float
    knee_rps: float

    def run(
        self, times: float, plan: OverloadPlan, metrics_url: str | None = None
    ) -> tuple[Report, list[Moment]]:
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
                "refused_in_replica_p99_ms": bound_of_share(before, after, REFUSED_MS, 0.99),
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


def _control(offering: Offering, plan: OverloadPlan) -> tuple[Report, list[Moment]]:
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


def verdict_of(runs: Sequence[Report], control: Report) -> Verdict:
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


def describe(
    requests: Requests, times: float, knee_rps: float, deadline_ms: float, plan: OverloadPlan, slo: Slo
) -> Report:
    """Return the numbers of one run; latencies count from the due time of a request."""
    begins_s, ends_s = plan.before_s, plan.before_s + plan.seconds
    after = Phase(ends_s, ends_s + plan.after_s, "after")
    due = requests.where((requests.at_s >= begins_s) & (requests.at_s < ends_s))
    ended = due.named_counts()
    in_time = due.where(due.ok & (due.latency_ms <= deadline_ms)).named_counts()
    rungs = {name: number / plan.seconds for name, number in in_time.items()}
    goodput_rps = sum(rungs.values())
    is_refused = np.array([outcome.name == REFUSED for outcome in due.outcomes], dtype=bool)
    refused = due.latency_ms[is_refused[due.codes]]
    found = {
        "times": times,
        "offered_rps": len(due.ok) / plan.seconds,
        "goodput_rps": goodput_rps,
        "goodput_share": goodput_rps / knee_rps,
        "goodput_by_rung_rps": rungs,
        "answers": int(due.ok.sum()),
        "answers_late": int((due.latency_ms[due.ok] > deadline_ms).sum()),
        **{f"p{share * 100:g}_ms": percentile(due.latency_ms[due.ok], share) for share in (0.5, 0.9, 0.99)},
        "refused": len(refused),
        "refused_p50_ms": percentile(refused, 0.5),
        "refused_p99_ms": percentile(refused, 0.99),
        "http_5xx": sum(n for name, n in ended.items() if name.startswith("HTTP 5")),
        "not_sent": ended[NOT_SENT.name],
        "failures": {o.name: n for o, n in due.counts().items() if not o.ok and o.name != REFUSED},
        "generator_late_ms_p99": percentile(due.late_ms, 0.99) or 0.0,
        "back_s": recovered_s(requests, after, partial(is_normal, slo=slo)),
    }
    return rounded_numbers(found)


def judge(found: Mapping[str, Any], slo: Slo) -> tuple[Verdict, list[str]]:
    """Compare a run with the limits; void if the load generator was late."""
    remedy = f"{found['offered_rps']:.0f} requests/s are more than its core can send"
    late_ms, limit_ms = found["generator_late_ms_p99"], slo.generator_late_ms_p99
    return verdict_on(list(_broken(found, slo)), late_ms, limit_ms, remedy)


def _broken(found: Mapping[str, Any], slo: Slo) -> Iterator[str]:
    wanted = next(share for times, share in GOODPUT if found["times"] <= times)
    if found["goodput_share"] < wanted:
        yield f"goodput is {found['goodput_share']:.1%} of the knee, but at least {wanted:.0%} are needed"
    if found["p99_ms"] is None or found["p99_ms"] > slo.p99_ms:
        no_answer = found["p99_ms"] is None
        p99 = "no request was answered" if no_answer else f"the p99 of answers is {found['p99_ms']:.1f} ms"
        yield f"{p99} (limit {slo.p99_ms:g} ms)"
    if found["failures"]:
        yield f"requests failed without a refusal: {listed(found['failures'])}"
    replica_ms = found.get("refused_in_replica_p99_ms")
    if replica_ms is not None and replica_ms > REFUSAL_MS:
        yield f"the p99 of refusals in the replica is {replica_ms:g} ms (limit {REFUSAL_MS:g} ms)"
    if found["back_s"] is None or found["back_s"] > BACK_S:
        back = "not normal again" if found["back_s"] is None else f"normal again {found['back_s']} s"
        yield f"the service was {back} after the overload (limit {BACK_S:g} s)"
