"""`loadtest chaos`: inject faults one after the other, each under an open-loop load."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path

from loadtest.errors import LoadtestError
from loadtest.generator.offer import OfferedLoad, offering
from loadtest.measure.cluster import ClusterSample, look_at_folder
from loadtest.measure.polling import repeated, within
from loadtest.measure.timeline import Moment, timeline
from loadtest.measure.verdict import overall, verdict_on
from loadtest.report.chaos import fault_line, write_chaos
from loadtest.report.report import Report
from loadtest.scenarios.bench import Bench
from loadtest.scenarios.chaos.disk import DiskFull, StoreCorrupt
from loadtest.scenarios.chaos.fault import CLIENT_TIMEOUT_S, WARM_S, Fault, Injected, Times, broken, describe
from loadtest.scenarios.chaos.kills import KILLS, ONLY_SCORER, SupervisorKilled
from loadtest.scenarios.chaos.pauses import Pauses
from loadtest.scenarios.chaos.redeploy import Redeploy
from loadtest.scenarios.search import KneePlan
from loadtest.targets.running import Target, gained
from loadtest.targets.services import Document, deployments_of, write_document
from loadtest.targets.workspace import Progress, Workspace
from loadtest.workload.profiles import CANDIDATES, Block

# Faults that use the same service follow each other, because a start takes 20 s.
FAULTS: tuple[Fault, ...] = (
    *(*KILLS, StoreCorrupt(), SupervisorKilled()),
    *(ONLY_SCORER, Pauses(), DiskFull(), Redeploy()),
)
# Seconds of load before the fault.
BEFORE_S = 8.0
# Time between two looks at the replicas.
LOOK_S = 0.25
# Longest time for a service to recover before the next fault. After it, a new service is started.
SETTLE_S = 30.0
# Time after the load until its metrics are read. The metrics page is refreshed every two seconds.
PAGE_S = 2.5
# CPU share of a replica, which Ray uses for placement only. Two cores must have room for two
# replicas of each deployment and for their successors.
SHARE_CPU = 0.25
SEARCH = KneePlan(start_rps=300, resolution=1.1, warm_up_s=6, step_s=5, confirm_s=10, budget_s=30, rest_s=2)
# Share of the knee at which faults are injected, unless `--rate` sets a rate.
KNEE_LOAD = 0.6


class ChaosRun:
    """State of a run: the current service, if there is one, and the rate of the load.

    Faults use a copy of the workspace's store. `rate_rps` is None until it is known.
    """

    def __init__(self, bench: Bench, rate_rps: float | None, up: ExitStack) -> None:
        self.bench, self._up = bench, up
        self._base = Target.of(bench.work, bench.service).document()
        self._base["applications"][0]["args"]["store"] = "lmdb:chaos/store"
        self.knee_rps: float | None = None
        self._rate_rps = rate_rps
        self._replicas: Mapping[str, int] = {}
        self._target: Target | None = None
        folder = bench.work.path / "chaos"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(bench.work.data / "store", folder / "store")

    def provide_service(self, fault: Fault) -> Target:
        """Return a service for the fault.

        It is the current one if this has the replicas and is healthy, and otherwise a new one.
        """
        if self._target and self._replicas == fault.replicas and _is_healthy(self._target, fault):
            return self._target
        self.end_service()
        target = Target.of(self.bench.work, self.bench.service)
        write_document(target.file, with_replicas(self._base, fault.replicas))
        self._up.enter_context(self.bench.started(self.bench.service))
        self._target, self._replicas = target, fault.replicas
        return target

    def end_service(self) -> None:
        """End the current service, if there is one."""
        self._target = None
        self._up.close()

    def rate_rps(self, target: Target) -> float:
        """Return the rate of the load in requests per second.

        The knee is searched once, unless the user has set a rate.
        """
        if self._rate_rps is None:
            self.bench.emit("searching for the knee of this service")
            self.knee_rps, _ = self.bench.require_knee(target.url, SEARCH, "set a rate with --rate")
            self._rate_rps = round(KNEE_LOAD * self.knee_rps, 1)
        return self._rate_rps


def with_replicas(document: Document, replicas: Mapping[str, int]) -> Document:
    """Return a copy of a `cluster.yaml` whose deployments have these numbers of replicas."""
    changed = deepcopy(document)
    for name, deployment in deployments_of(changed).items():
        number = replicas.get(name)
        if number is not None:
            deployment.setdefault("ray_actor_options", {})["num_cpus"] = SHARE_CPU
            if "autoscaling_config" in deployment:
                deployment["autoscaling_config"] |= {"min_replicas": number, "max_replicas": number}
            else:
                deployment["num_replicas"] = number
    return changed


def run_chaos(
    work: Workspace, config: Path, names: Sequence[str], rate_rps: float | None, out: Path, emit: Progress
) -> Report:
    """Inject the named faults, or all if there are no names; write the report to `out`.

    `rate_rps` is the rate of the load, and replaces 60 % of the knee.

    Raises:
        LoadtestError: if the input, the workspace or the service prevents the run.
    """
    faults = select_faults(names)
    lines: dict[str, list[Moment]] = {}
    with Bench.locked(work, config, emit) as bench, ExitStack() as up:
        run = ChaosRun(bench, rate_rps, up)
        found = [run_fault(run, fault, lines) for fault in faults]
    word = overall(one["verdict"] for one in found)
    report = Report(verdict=word, knee_rps=run.knee_rps, rate_rps=rate_rps, faults=found)
    report |= {"config": str(config), "client_timeout_s": CLIENT_TIMEOUT_S, **bench.circumstances()}
    write_chaos(out, report, lines, bench.slo)
    return report


def select_faults(names: Sequence[str]) -> list[Fault]:
    """Return the faults of these names; all faults if there are no names."""
    known = {fault.name: fault for fault in FAULTS}
    for name in names:
        if name not in known:
            raise LoadtestError(f"--fault {name}: unknown fault; use {', '.join(known)}")
    return [known[name] for name in dict.fromkeys(names)] if names else list(FAULTS)


def run_fault(run: ChaosRun, fault: Fault, lines: dict[str, list[Moment]]) -> Report:
    """Inject one fault; return its numbers and verdict, and add its timeline to `lines`."""
    head = {"fault": fault.name, "what": fault.what, "allowed": fault.allowed.describe()}
    target = run.provide_service(fault)
    rate_rps = run.rate_rps(target)
    run.bench.emit(f"{fault.name}: {fault.what}, at {rate_rps:g} req/s")
    try:
        found, more, moments = _under_load(run, fault, target, rate_rps)
    # If one fault cannot be measured, the others are reported all the same.
    except LoadtestError as error:
        run.end_service()
        run.bench.emit(f"  not held: {error}")
        return {**head, "verdict": "not held", "reasons": [str(error)]}
    reasons = [*broken(found, fault.allowed), *more]
    limit_ms = run.bench.slo.generator_late_ms_p99
    # A late generator voids no fault that held.
    late_ms = found["generator_late_ms_p99"] if reasons else 0.0
    word, reasons = verdict_on(reasons, late_ms, limit_ms)
    lines[fault.name] = moments
    report = {**head, "verdict": word, "reasons": reasons, **found}
    run.bench.emit(fault_line(report))
    return report


def _under_load(
    run: ChaosRun, fault: Fault, target: Target, rate_rps: float
) -> tuple[Report, list[str], list[Moment]]:
    """Inject a fault under load.

    Returns its numbers, a sentence for each limit of its own that did not hold, and the timeline.
    """
    before, roles = target.metrics(), target.roles()
    # Nobody knows in advance how long changes take. The load is stopped when the fault is over.
    longest = [Block(BEFORE_S + fault.hold_s + fault.watch_s + 240.0)]
    load = OfferedLoad(
        target.url, run.bench.bodies, CANDIDATES, rate_rps, longest, retry=True, timeout_s=fault.timeout_s
    )
    seen: list[ClusterSample] = []

    def look() -> None:
        at_s = time.monotonic() - offer.begun_s
        running, _ = look_at_folder(target.run)
        if running:
            seen.append(ClusterSample(at_s, running, None, target.at_full_strength(fault.replicas)))

    with offering(load) as offer, repeated(look, LOOK_S):
        fault.aim(target)
        time.sleep(max(0.0, offer.begun_s + BEFORE_S - time.monotonic()))
        begun_s = time.monotonic() - offer.begun_s
        fault.inject(target)
        done_s = time.monotonic() - offer.begun_s
        time.sleep(fault.hold_s)
        fault.heal(target)
        healed_s = time.monotonic() - offer.begun_s if fault.hold_s else begun_s
        time.sleep(fault.watch_s)
        offer.stop()
        ends_s = time.monotonic() - offer.begun_s
        result = offer.result()
    found = describe(result, Times(begun_s, done_s, healed_s, ends_s), seen, run.bench.slo)
    time.sleep(PAGE_S)
    injected = Injected(result, offer.begun_s, partial(gained, before, target.metrics()))
    numbers, reasons = fault.measured(injected)
    found |= numbers
    found["orphans"] = sorted((target.roles() - roles).elements())
    found["rate_rps"], found["injected_s"] = rate_rps, round(begun_s, 3)
    samples = [replace(sample, at_s=sample.at_s - WARM_S) for sample in seen]
    return found, reasons, timeline(result.requests.counted_from(WARM_S), ends_s - WARM_S, samples)


def _is_healthy(target: Target, fault: Fault) -> bool:
    """Wait until all required replicas and exactly one HAProxy run.

    Returns False if this is not so within SETTLE_S.
    """

    def is_healthy() -> bool:
        return target.at_full_strength(fault.replicas) and len(target.find("haproxy")) == 1

    return within(SETTLE_S, is_healthy) is not None
