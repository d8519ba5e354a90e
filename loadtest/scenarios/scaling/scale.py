"""`loadtest scale`: run the scaling tests one after the other, each with its own service."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from loadtest.errors import LoadtestError
from loadtest.generator.bodies import make_bodies
from loadtest.generator.ids import read_log_ids
from loadtest.measure.verdict import overall, part_verdict
from loadtest.report.scaling import write_scale
from loadtest.scenarios.scaling import nodes, replicas, step
from loadtest.scenarios.scaling.replicas import ReplicasPlan
from loadtest.scenarios.scaling.service import CANDIDATES, PACE, Scaled, capacity_rps
from loadtest.targets.processes import started
from loadtest.targets.workspace import Progress, Workspace
from loadtest.workload.profiles import Profile
from serve.log.atomic_files import draft_of
from serve.operate.host.machine import describe_machine

AUTOSCALING = {"replicas": replicas.FIXED, "step": step.AUTOSCALING, "nodes": step.AUTOSCALING}
PARTS = tuple(AUTOSCALING)
PROBE = Profile("scale", 1.0, CANDIDATES, 0.0, 1.0, 1.0)
Found = dict[str, Any]


def run_scale(
    work: Workspace, config: Path, parts: Sequence[str], cycles: ReplicasPlan, out: Path, emit: Progress
) -> Found:
    """Run the named parts, and write their reports and a summary to the new folder `out`.

    Raises:
        LoadtestError: if the input, the workspace or the service prevents a part.
    """
    for name in parts:
        if name not in PARTS:
            raise LoadtestError(f"--part {name}: unknown part; use {', '.join(PARTS)}")
    begun = time.monotonic()
    with work.locked(), draft_of(out) as folder:
        # Report an invalid file before the preparation, which takes a minute.
        for name in parts:
            Scaled.of(work, config, AUTOSCALING[name])
        work.prepare(emit)
        found = {name: _prove(name, work, config, cycles, folder / name, emit) for name in parts}
        report = {
            "verdict": overall(map(part_verdict, found.values())),
            "parts": found,
            "config": str(config),
            "capacity_rps": round(capacity_rps(), 1),
            "pace": PACE,
            "candidates": CANDIDATES,
            "machine": describe_machine(),
            "seconds": round(time.monotonic() - begun, 1),
        }
        write_scale(folder, report)
    return report


def _prove(
    name: str, work: Workspace, config: Path, cycles: ReplicasPlan, out: Path, emit: Progress
) -> Found:
    body = make_bodies(read_log_ids(work.log, CANDIDATES), PROBE, count=1)[0]
    if name == "nodes":
        return nodes.prove_nodes(work, config, body, out, emit)
    if name == "replicas":
        scaled = Scaled.of(work, config, AUTOSCALING[name])
        return _with_service(
            work, scaled, body, lambda: replicas.prove_replicas(scaled, work, cycles, out, emit), emit
        )
    scaled = Scaled.of(work, config, AUTOSCALING[name])
    return _with_service(
        work, scaled, body, lambda: step.prove_step(scaled, work, step.StepPlan(), out, emit), emit
    )


def _with_service(
    work: Workspace, scaled: Scaled, body: bytes, prove: Callable[[], Found], emit: Progress
) -> Found:
    emit("starting the service with the throttled Scorer")
    with started(scaled.service, work, body, CANDIDATES) as footprint:
        emit(f"{scaled.service.url} answers after {footprint.start_s} s")
        return prove()
