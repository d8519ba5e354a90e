"""Bench: what the commands share that start services of their own and load them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from loadtest.errors import LoadtestError
from loadtest.generator.bodies import make_bodies
from loadtest.generator.ids import read_log_ids
from loadtest.generator.offer import OfferedLoad, offered
from loadtest.measure.measure import measure, rounded
from loadtest.measure.verdict import judge
from loadtest.report.knee import step_line
from loadtest.report.report import Report
from loadtest.scenarios.search import KneePlan, KneeStep, StepPhase, find_knee
from loadtest.targets.processes import Footprint, started
from loadtest.targets.services import TargetService, tabrank
from loadtest.targets.workspace import Progress, Workspace
from loadtest.workload.profiles import CANDIDATES, Block, Profile, Slo, load_slo
from serve.operate.host.machine import describe_machine

# A service keeps up with a rate if at least this share of the offered requests gets a full answer
# within the measured seconds.
KEPT_UP = 0.9


@dataclass(frozen=True)
class Bench:
    """Workspace, requests and limits that all services of a benchmark share.

    `service` is tabrank. `candidates` is the number per request. `emit` takes lines about the
    progress. `begun` is the benchmark's start by `time.monotonic()`.
    """

    work: Workspace
    service: TargetService
    candidates: int
    slo: Slo
    bodies: list[bytes]
    emit: Progress
    begun: float

    @classmethod
    @contextmanager
    def locked(
        cls, work: Workspace, config: Path, emit: Progress, candidates: int = CANDIDATES
    ) -> Iterator[Bench]:
        """Hold the workspace during the block; make it if it is missing.

        Raises:
            LoadtestError: if `config` is unusable, or another benchmark uses the workspace.
        """
        begun = time.monotonic()
        with work.locked():
            # Report an invalid file before the preparation, which takes a minute.
            service = tabrank(work, config)
            work.prepare(emit)
            requests = Profile("knee", 1.0, candidates, 0.0, 1.0, 1.0)
            bodies = make_bodies(read_log_ids(work.log, candidates), requests)
            yield cls(work, service, candidates, load_slo(), bodies, emit, begun)

    def started(self, service: TargetService) -> AbstractContextManager[Footprint]:
        """Start a service, and end its processes after the `with` block.

        Raises:
            LoadtestError: if it does not start.
        """
        self.emit(f"{service.name}: starting")
        return started(service, self.work, self.bodies[0], self.candidates)

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
        numbers = rounded(asdict(measured)) | {"full_share": round(measured.full_share, 6)}
        step = KneeStep(rate_rps, verdict, reasons, kept_up, phase, numbers)
        self.emit(step_line(step.plain()))
        return step
