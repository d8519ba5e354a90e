"""`loadtest knee`: find the highest rate at which a service meets its SLO."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from loadtest.errors import LoadtestError
from loadtest.generator.bodies import make_bodies
from loadtest.generator.ids import read_log_ids
from loadtest.generator.offer import OfferedLoad, offered
from loadtest.measure.measure import measure, rounded_numbers
from loadtest.measure.verdict import Verdict, judge
from loadtest.report.knee import step_line, write_knee
from loadtest.report.report import Report
from loadtest.scenarios.search import KneePlan, KneeStep, StepPhase, find_knee
from loadtest.targets.processes import started
from loadtest.targets.services import tabrank
from loadtest.targets.workspace import Progress, Workspace
from loadtest.workload.profiles import Block, Profile, Slo, load_slo
from serve.operate.host.machine import describe_machine

PLAN = KneePlan()
# A service keeps up with a rate if at least this share of the offered requests gets a full answer
# within the measured seconds.
KEPT_UP = 0.9


def run_knee(
    work: Workspace, config: Path, candidates: int, out: Path, emit: Progress, plan: KneePlan = PLAN
) -> Report:
    """Start the service, find its knee, stop it, and write the report to the new folder `out`.

    Raises:
        LoadtestError: if the input, the workspace or the service prevents the measurement.
    """
    with work.locked():
        # Report an invalid file before the preparation, which takes a minute.
        service = tabrank(work, config)
        bench = Bench.prepared(work, candidates, emit)
        emit("starting the service")
        with started(service, work, bench.bodies[0], candidates) as footprint:
            processes = f"{footprint.num_processes} processes, {footprint.memory_mib} MiB"
            emit(f"{service.url} answers after {footprint.start_s} s, {processes}")
            knee = find_knee(partial(bench.step, service.url), plan)
    at, numbers = knee.confirmed, ("candidates_per_s", "full_share", "p50_ms", "p90_ms", "p99_ms")
    # A p99 is None if more than 1 % of the requests failed. It counts as the longest.
    confirming = sorted(knee.confirming, key=lambda step: step.numbers["p99_ms"] or float("inf"))
    report = {
        "verdict": "held" if at else knee_verdict(knee.steps),
        "knee_rps": at.rate_rps if at else None,
        **{name: at.numbers[name] if at else None for name in numbers},
        "confirming": [{key: step.numbers[key] for key in ("p99_ms", "full_share")} for step in confirming],
        **asdict(footprint),
        "steps": [step.plain() for step in knee.steps],
        "config": str(config),
        **bench.circumstances(),
    }
    write_knee(out, report)
    return report


def knee_verdict(steps: Sequence[KneeStep]) -> Verdict:
    """Return the verdict if no rate held: void if no step was a valid measurement."""
    return "void" if {step.verdict for step in steps} == {"void"} else "not held"


@dataclass(frozen=True)
class Bench:
    """Workspace, requests and limits that all services of a benchmark share.

    `candidates` is the number per request. `emit` takes lines about the progress. `begun` is the
    benchmark's start by `time.monotonic()`.
    """

    work: Workspace
    candidates: int
    slo: Slo
    bodies: list[bytes]
    emit: Progress
    begun: float

    @classmethod
    def prepared(cls, work: Workspace, candidates: int, emit: Progress) -> Bench:
        """Make the workspace if it is missing, and return the benchmark.

        The caller holds the workspace's lock.
        """
        begun = time.monotonic()
        work.prepare(emit)
        requests = Profile("knee", 1.0, candidates, 0.0, 1.0, 1.0)
        bodies = make_bodies(read_log_ids(work.log, candidates), requests)
        return cls(work, candidates, load_slo(), bodies, emit, begun)

    def require_knee(self, url: str, plan: KneePlan, remedy: str) -> tuple[float, list[KneeStep]]:
        """Return the knee of a running service in requests per second, and the steps of its search.

        Raises:
            LoadtestError: if no rate holds; `remedy` ends the message.
        """
        found = find_knee(partial(self.step, url), plan)
        if found.confirmed is None:
            raise LoadtestError(f"no rate met the limits, so there is no knee; {remedy}")
        return found.confirmed.rate_rps, found.steps

    def circumstances(self) -> Report:
        """Return the conditions of the measurement, for the report."""
        return {
            "candidates": self.candidates,
            "slo": asdict(self.slo),
            "machine": describe_machine(),
            "seconds": round(time.monotonic() - self.begun, 1),
        }

    def step(self, url: str, rate_rps: float, warmup_s: float, seconds: float, phase: StepPhase) -> KneeStep:
        """Offer one rate to a service, judge it, and return the step of the search.

        `warmup_s` seconds of load come before the `seconds` that are measured. In a step of the
        phase "warm-up" the rate rises from 0.
        """
        blocks = [Block(warmup_s), Block(seconds, 0.0 if phase == "warm-up" else 1.0)]
        load = OfferedLoad(url, self.bodies, self.candidates, rate_rps, blocks)
        measured = measure(offered(load).requests.counted_from(warmup_s), seconds)
        verdict, reasons = judge(measured, self.slo)
        kept_up = measured.candidates_per_s >= KEPT_UP * rate_rps * self.candidates
        numbers = rounded_numbers(asdict(measured)) | {"full_share": round(measured.full_share, 6)}
        step = KneeStep(rate_rps, verdict, reasons, kept_up, phase, numbers)
        self.emit(step_line(step.plain()))
        return step
