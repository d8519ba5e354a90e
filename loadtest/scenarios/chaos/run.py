"""`loadtest chaos`: one fault after the other, each under an open-loop load, on a service of its own."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from loadtest.errors import LoadtestError
from loadtest.generator.offer import Load, offering
from loadtest.measure.cluster import Sample, read_service
from loadtest.measure.metrics_page import read_page
from loadtest.measure.timeline import Moment, timeline
from loadtest.measure.verdict import Verdict
from loadtest.report.chaos import fault_line, write_chaos
from loadtest.report.report import refuse_existing
from loadtest.scenarios.bench import Bench
from loadtest.scenarios.chaos.changes import CHANGES
from loadtest.scenarios.chaos.fault import CLIENT_TIMEOUT_S, Document, Fault
from loadtest.scenarios.chaos.floods import FLOODS
from loadtest.scenarios.chaos.head import HEAD
from loadtest.scenarios.chaos.kills import KILLS, ONLY_SCORER
from loadtest.scenarios.chaos.measured import WARM_S, Found, Seen, Times, broken, describe
from loadtest.scenarios.chaos.stores import FILES, DiskFull, RedisKilled
from loadtest.scenarios.chaos.supervisor import SUPERVISOR
from loadtest.scenarios.chaos.target import Target
from loadtest.scenarios.search import Plan, find_knee
from loadtest.targets.processes import started
from loadtest.targets.services import Service, tabrank
from loadtest.targets.workspace import Say, Workspace
from loadtest.workload.shapes import Block

FAULTS: tuple[Fault, ...] = (  # those on one service one after the other: a start takes 20 s
    *(*KILLS, *FILES, *SUPERVISOR),
    *(ONLY_SCORER, DiskFull(), *FLOODS, *CHANGES),
    RedisKilled(),
    *HEAD,
)
CANDIDATES = 55
BEFORE_S = 8.0
LOOK_S = 0.25
SETTLE_S = 30.0  # for a service to be whole again, before the next fault
PAGE_S = 2.5  # the page of metrics is renewed every two seconds
SHARE_CPU = 0.25  # for placement only: two of each and what surges must find room on two cores
SEARCH = Plan(
    start_rps=300.0, resolution=1.1, warm_up_s=6.0, step_s=5.0, confirm_s=10.0, budget_s=30.0, rest_s=2.0
)
KNEE_LOAD = 0.6  # which --rate says outright
Report = dict[str, Any]


@dataclass
class Run:
    """A run of chaos: the service that is up, if one is, and the rate that its load is a share of."""

    work: Workspace  # held, and its store and models copied: what is hurt is never the workspace's
    bench: Bench
    say: Say
    service: Service
    base: Document
    knee_rps: float | None
    up: ExitStack
    document: Document | None = None
    target: Target | None = None

    @classmethod
    def of(cls, work: Workspace, config: Path, say: Say, rate_rps: float | None, up: ExitStack) -> Run:
        """With a workspace made where it is missing; it must be held. Raises LoadtestError for what is no such file."""
        service = tabrank(work, config)  # what is wrong with the file is told before a minute of preparing
        base = yaml.safe_load((work.path / "cluster.yaml").read_text())
        base["applications"][0]["args"] |= {"store": "lmdb:chaos/store", "models": "chaos/models"}
        bench = Bench.prepared(work, CANDIDATES, say)
        folder = work.path / "chaos"
        shutil.rmtree(folder, ignore_errors=True)
        for name in ("store", "models"):
            shutil.copytree(work.data / name, folder / name)
        return cls(work, bench, say, service, base, rate_rps / KNEE_LOAD if rate_rps else None, up)

    def on(self, fault: Fault) -> Target:
        """The service that a fault wants: the one that is up, if it is such a one and well, or a new one."""
        document = self._wanted(fault)
        if self.target and self.document == document and _is_well(self.target, fault):
            return self.target
        self.leave()
        self.say(f"starting a service with {_counts(fault)}")
        (self.work.path / "cluster.yaml").write_text(yaml.safe_dump(document, sort_keys=False))
        self.up.callback(fault.end)  # after the service: what it stands on outlives it
        folder = self.work.path.resolve()
        place = fault.place(folder / "cluster.yaml")
        if place is not None:
            self.target = self.up.enter_context(place)
        else:
            self.up.enter_context(started(self.service, self.work, self.bench.bodies[0], CANDIDATES))
            self.target = Target(self.service.url, folder, f"{self.work.id}-{self.service.name}")
        self.document = document
        return self.target

    def leave(self) -> None:
        """End the service that is up."""
        self.target = self.document = None
        self.up.close()

    def rate_rps(self, fault: Fault, target: Target) -> float:
        """What is offered under a fault."""
        if self.knee_rps is None:
            self.say("looking for the knee of this service")
            found = find_knee(partial(self.bench.offered_step, target.url), SEARCH)
            if found.confirmed is None:
                raise LoadtestError("no rate held its limits; name one with --rate")
            self.knee_rps = found.confirmed.rate_rps
        return round(fault.load * self.knee_rps, 1)

    def _wanted(self, fault: Fault) -> Document:
        document = deepcopy(self.base)
        for deployment in document["applications"][0]["deployments"]:
            number = fault.replicas.get(deployment["name"])
            if number is not None:
                deployment.setdefault("ray_actor_options", {})["num_cpus"] = SHARE_CPU
                if "autoscaling_config" in deployment:
                    deployment["autoscaling_config"] |= {"min_replicas": number, "max_replicas": number}
                else:
                    deployment["num_replicas"] = number
        fault.prepare(document, self.work.path.resolve())
        return document


def run_chaos(
    work: Workspace, config: Path, names: Sequence[str], rate_rps: float | None, out: Path, say: Say
) -> tuple[Report, Verdict]:
    """Try the faults that are named, all by default, and write the report to the new folder `out`.

    `rate_rps`: what is offered, instead of 60 % of the knee.

    Raises:
        LoadtestError: if it cannot be run: the input, the workspace or the service is at fault.
    """
    faults = chosen(names)
    refuse_existing(out)
    lines: dict[str, list[Moment]] = {}
    with work.locked(), ExitStack() as up:
        run = Run.of(work, config, say, rate_rps, up)
        found = [tried(run, fault, lines) for fault in faults]
    verdict = verdict_of(found)
    report = {"verdict": verdict, "knee_rps": run.knee_rps, "config": str(config), "faults": found}
    report |= {"client_timeout_s": CLIENT_TIMEOUT_S, **run.bench.circumstances()}
    write_chaos(out, report, lines, run.bench.slo)
    return report, verdict


def chosen(names: Sequence[str]) -> list[Fault]:
    """The faults of these names; all, if none is named."""
    known = {fault.name: fault for fault in FAULTS}
    for name in names:
        if name not in known:
            raise LoadtestError(f"--fault {name}: there is none; there are {', '.join(known)}")
    return [known[name] for name in dict.fromkeys(names)] if names else list(FAULTS)


def verdict_of(found: Sequence[Found]) -> Verdict:
    """Void only where each fault that did not hold is, or none was tried; what could not be tried does not count."""
    if all(one["held"] is None for one in found):
        return "void"
    failed = [one for one in found if one["held"] is False]
    if not failed:
        return "held"
    return "void" if all(one["void"] for one in failed) else "not held"


def tried(run: Run, fault: Fault, lines: dict[str, list[Moment]]) -> Found:
    """Try one fault; what it came to, whether that is allowed, and, into `lines`, second by second."""
    head = {"fault": fault.name, "what": fault.what, "allowed": fault.allowed.told()}
    why = fault.missing()
    if why:
        run.say(f"{fault.name}: not run: {why}")
        return {**head, "held": None, "void": False, "reasons": [f"not run: {why}"]}
    target = run.on(fault)
    rate_rps = run.rate_rps(fault, target)
    run.say(f"{fault.name}: {fault.what}, at {rate_rps:g} req/s")
    try:
        found, moments = _under_load(run, fault, target, rate_rps)
    except LoadtestError as error:  # one fault that cannot be told of takes not the others' report along
        run.leave()
        run.say(f"  not held: {error}")
        return {**head, "held": False, "void": False, "reasons": [str(error)]}
    reasons = [*broken(found, fault.allowed), *fault.reasons()]
    late = found["generator_late_ms_p99"] > run.bench.slo.generator_late_ms_p99
    lines[fault.name] = moments
    told = {**head, "held": not reasons, "void": bool(reasons) and late, "reasons": reasons, **found}
    run.say(fault_line(told))
    return told


def _under_load(run: Run, fault: Fault, target: Target, rate_rps: float) -> tuple[Found, list[Moment]]:
    url = read_service(target.run).get("metrics_url", "")
    before, roles = read_page(url), target.roles()
    longest_s = BEFORE_S + fault.hold_s + fault.watch_s + 240.0  # changes take as long as they take
    load = Load(
        target.url,
        run.bench.bodies,
        CANDIDATES,
        rate_rps,
        [Block(longest_s)],
        retry=True,
        timeout_s=fault.timeout_s,
    )
    with offering(load) as offer, _watching(target, fault, offer.begun_s) as (seen, samples):
        fault.aim(target)
        _until(offer.begun_s + BEFORE_S)
        begun_s = time.monotonic() - offer.begun_s
        fault.inject(target)
        done_s = time.monotonic() - offer.begun_s
        time.sleep(fault.hold_s)
        fault.heal(target)
        healed_s = time.monotonic() - offer.begun_s
        time.sleep(fault.watch_s)
        offer.stop()
        ends_s = time.monotonic() - offer.begun_s
        result = offer.result()
    instant = fault.hold_s == 0
    times = Times(begun_s, done_s, begun_s if instant else healed_s, ends_s)
    found = describe(result, times, seen, run.bench.slo)
    time.sleep(PAGE_S)
    found |= fault.counted(before, read_page(url))
    found["orphans"] = sorted((target.roles() - roles).elements())
    found["rate_rps"], found["injected_s"] = rate_rps, round(begun_s, 3)
    counted = result.requests.counted_from(WARM_S)
    return found, timeline(
        counted, ends_s - WARM_S, [Sample(s.at_s - WARM_S, s.replicas, None) for s in samples]
    )


@contextmanager
def _watching(target: Target, fault: Fault, begun_s: float) -> Iterator[tuple[list[Seen], list[Sample]]]:
    """Look at the replicas again and again while the block runs."""
    seen: list[Seen] = []
    samples: list[Sample] = []
    over = threading.Event()

    def look() -> None:
        while not over.wait(LOOK_S):
            at_s = time.monotonic() - begun_s
            fault.look(target)
            there = target.replicas()
            if there:
                seen.append(Seen(at_s, target.at_full_strength(fault.replicas)))
                running = {name: states.get("RUNNING", 0) for name, states in there.items()}
                samples.append(Sample(at_s, running, None))

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield seen, samples
    finally:
        over.set()
        thread.join()


def _is_well(target: Target, fault: Fault) -> bool:
    """Whether all replicas run, and no more of anything than one HAProxy."""
    until = time.monotonic() + SETTLE_S
    while time.monotonic() < until:
        if target.at_full_strength(fault.replicas) and len(target.find("haproxy")) == 1:
            return True
        time.sleep(LOOK_S)
    return False


def _until(at_s: float) -> None:
    time.sleep(max(0.0, at_s - time.monotonic()))


def _counts(fault: Fault) -> str:
    return ", ".join(f"{number} {name}" for name, number in fault.replicas.items())
