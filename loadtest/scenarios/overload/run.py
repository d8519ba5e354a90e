"""`loadtest overload`: a service on one core, the generator on another; the knee, then twice and three times it."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from loadtest.commands import CommandFailed, run_command
from loadtest.errors import LoadtestError
from loadtest.generator.offer import Load, offered
from loadtest.measure.cluster import read_service
from loadtest.measure.metrics_page import Page, read_page, total, within
from loadtest.measure.timeline import Moment, timeline
from loadtest.measure.verdict import Verdict
from loadtest.report.overload import run_line, write_overload
from loadtest.report.report import refuse_existing
from loadtest.scenarios.bench import Bench, Report
from loadtest.scenarios.overload.found import Found, Plan, describe, judge
from loadtest.scenarios.search import Plan as Search
from loadtest.scenarios.search import Step, find_knee
from loadtest.targets.processes import started
from loadtest.targets.services import tabrank
from loadtest.targets.workspace import Say, Workspace

CANDIDATES = 55
SEARCH = Search(
    start_rps=300.0, resolution=1.06, warm_up_s=8.0, step_s=6.0, confirm_s=15.0, budget_s=75.0, rest_s=2.0
)
CONTROL_TIMES = 2.0
CONTROL_S = 20.0  # long enough to see it collapse, and a queue of the system's own ends sooner
REFUSED_MS = "ray_tabrank_refused_ms_total"  # the histogram of how long refusals took
PAGE_S = 4.5  # the page of metrics is renewed every two seconds


@dataclass(frozen=True)
class Offering:
    """What is offered to one service, and by which measure."""

    url: str
    bench: Bench
    deadline_ms: float

    def run(self, times: float, knee_rps: float, plan: Plan) -> tuple[Found, list[Moment]]:
        """So many times the knee; what came of it, and second by second."""
        load = Load(self.url, self.bench.bodies, self.bench.candidates, knee_rps, plan.blocks(times))
        requests = offered(load).requests
        found = describe(requests, times, knee_rps, self.deadline_ms, plan, self.bench.slo)
        return found, timeline(requests, load.seconds, [])


def run_overload(
    work: Workspace,
    config: Path,
    times: Sequence[float],
    plan: Plan,
    out: Path,
    say: Say,
    known_rps: float | None = None,
    search: Search = SEARCH,
) -> tuple[Report, Verdict]:
    """Start the service on its core, measure its knee, overload it, switch its ladder off, and overload it again.

    `known_rps`: the knee, if it was measured before.

    Raises:
        LoadtestError: if it cannot be measured: the input, the workspace, the service or a lack of cores.
    """
    refuse_existing(out)
    cores = _two_cores()
    with work.locked():
        service = tabrank(work, config)
        file, run = work.path / "cluster.yaml", work.path / "run"
        bench = Bench.prepared(work, CANDIDATES, say)
        offering = Offering(service.url, bench, _deadline_ms(file))
        say(f"the service on core {cores[0]}, the load generator on core {cores[1]}")
        with _pinned(cores[0]), started(service, work, bench.bodies[0], CANDIDATES):
            os.sched_setaffinity(0, {cores[1]})
            knee_rps, steps = (known_rps, []) if known_rps else _knee(offering, search, say)
            page = read_service(run).get("metrics_url", "")
            runs, lines = _overload(offering, times, knee_rps, plan, page, say)
            control, moments = _control(offering, knee_rps, plan, file, run, work, say)
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
    return report, verdict


def read_times(given: str) -> list[float]:
    """`2,3` as numbers.

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


def _overload(
    offering: Offering, times: Sequence[float], knee_rps: float, plan: Plan, page: str, say: Say
) -> tuple[list[Found], dict[str, list[Moment]]]:
    runs, lines = [], {}
    for factor in times:
        before = read_page(page)
        found, moments = offering.run(factor, knee_rps, plan)
        time.sleep(PAGE_S)
        found |= _refusals(before, read_page(page))
        verdict, reasons = judge(found, offering.bench.slo)
        runs.append({"verdict": verdict, "reasons": reasons, **found})
        lines[f"{factor:g} times the knee"] = moments
        say(run_line(runs[-1]))
    return runs, lines


def _knee(offering: Offering, search: Search, say: Say) -> tuple[float, list[Step]]:
    """The knee under this pinning, and the steps to it."""
    found = find_knee(partial(offering.bench.offered_step, offering.url), search)
    if found.confirmed is None:
        raise LoadtestError("no rate held its limits, so that there is no knee to overload")
    say(f"knee under this pinning: {found.confirmed.rate_rps:g} req/s")
    return found.confirmed.rate_rps, found.steps


def _refusals(before: Page, after: Page) -> Found:
    """What the replicas themselves say of their refusals: how many, and how long they took."""
    return {
        "refused_counted": total(after, REFUSED_MS, le="+Inf") - total(before, REFUSED_MS, le="+Inf"),
        "refused_in_replica_p99_ms": within(before, after, REFUSED_MS, 0.99),
    }


def _control(
    offering: Offering, knee_rps: float, plan: Plan, file: Path, run: Path, work: Workspace, say: Say
) -> tuple[Found, list[Moment]]:
    """The same with the ladder off: it must not hold, or it is not the ladder that holds."""
    say("the control: the ladder off")
    switch_off_the_ladder(file)
    try:
        run_command("serve", "up", str(file), "--run", str(run), log=work.path / "overload.log")
    except CommandFailed as error:
        reason = str(error).splitlines()[-1].strip()
        say(f"  not run: {reason}")
        return {"run": False, "reason": reason}, []
    shorter = replace(plan, seconds=min(plan.seconds, CONTROL_S))
    found, moments = offering.run(CONTROL_TIMES, knee_rps, shorter)
    verdict, reasons = judge(found, offering.bench.slo)
    control = {"run": True, "verdict": verdict, "reasons": reasons, **found}
    say(run_line(control))
    return control, moments


def verdict_of(runs: Sequence[Found], control: Found) -> Verdict:
    """Void only where each run that did not hold is; the control holds by not holding, and without it nothing does."""
    failed: list[Any] = [run["verdict"] for run in runs if run["verdict"] != "held"]
    if not control["run"]:
        failed.append("void")
    elif control["verdict"] == "held":
        failed.append("not held")
    if not failed:
        return "held"
    return "void" if set(failed) == {"void"} else "not held"


def switch_off_the_ladder(file: Path) -> None:
    """Write `ladder: false` into a `cluster.yaml`."""
    document = yaml.safe_load(file.read_text())
    for deployment in document["applications"][0].get("deployments", []):
        if deployment.get("name") == "FeatureFetch":
            deployment["user_config"] = {**(deployment.get("user_config") or {}), "ladder": False}
    file.write_text(yaml.safe_dump(document, sort_keys=False))


def _deadline_ms(file: Path) -> float:
    document = yaml.safe_load(file.read_text())
    for deployment in document["applications"][0].get("deployments", []):
        deadline_ms = (deployment.get("user_config") or {}).get("deadline_ms")
        if deadline_ms is not None:
            return float(deadline_ms)
    return 100.0


def _two_cores() -> tuple[int, int]:
    if not hasattr(os, "sched_setaffinity"):
        raise LoadtestError("processes cannot be pinned to cores on this system; run it on Linux")
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise LoadtestError("there is one core; the service and the load generator need one each")
    return cores[0], cores[-1]


@contextlib.contextmanager
def _pinned(core: int) -> Iterator[None]:
    """Pin this process, and what it starts, to one core; afterwards to all that it had."""
    had = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, had)
