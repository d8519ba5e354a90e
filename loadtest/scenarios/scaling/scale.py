"""`loadtest scale`: run the scaling tests one after the other, each with its own service."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from loadtest.errors import LoadtestError
from loadtest.measure.timeline import Moment
from loadtest.measure.verdict import overall, part_verdict
from loadtest.report.report import Report
from loadtest.report.series import describe_part, write_scale
from loadtest.scenarios.knee import Bench
from loadtest.scenarios.scaling import parts
from loadtest.scenarios.scaling.service import PACE, Proof, capacity_rps, throttled
from loadtest.targets.processes import started
from loadtest.targets.running import Target
from loadtest.targets.workspace import Progress, Workspace
from loadtest.workload.profiles import CANDIDATES
from serve.storage.atomic_files import draft_of

AUTOSCALING = {"replicas": {}, "step": parts.AUTOSCALING, "nodes": parts.AUTOSCALING}
PARTS = tuple(AUTOSCALING)


def run_scale(
    work: Workspace,
    config: Path,
    names: Sequence[str],
    cycles: int,
    hold_s: float,
    out: Path,
    emit: Progress,
) -> Report:
    """Run the named parts, and write their reports and a summary to the new folder `out`.

    `cycles` and `hold_s` are of the part `replicas`.

    Raises:
        LoadtestError: if the input, the workspace or the service prevents a part.
    """
    for name in names:
        if name not in PARTS:
            raise LoadtestError(f"--part {name}: unknown part; use {', '.join(PARTS)}")
    replicas = partial(parts.prove_replicas, cycles=cycles, hold_s=hold_s)
    proofs: dict[str, Callable[..., Proof]]
    proofs = {"replicas": replicas, "step": parts.prove_step, "nodes": parts.prove_nodes}
    with work.locked(), draft_of(out) as folder:
        # Report an invalid file before the preparation, which takes a minute.
        for name in names:
            throttled(work, config, AUTOSCALING[name])
        bench = Bench.prepared(work, CANDIDATES, emit)
        found: dict[str, Report] = {}
        lines: dict[str, Sequence[Moment]] = {}
        for name in names:
            service = throttled(work, config, AUTOSCALING[name])
            with ExitStack() as up:
                # The part `nodes` starts a cluster of its own.
                if name != "nodes":
                    emit("starting the service with the throttled Scorer")
                    footprint = up.enter_context(started(service, work, bench.bodies[0], CANDIDATES))
                    emit(f"{service.url} answers after {footprint.start_s} s")
                target = Target.of(work, service)
                found[name], lines[name] = proofs[name](target, bench.bodies, folder / name, emit)
            emit(f"  {describe_part(name, found[name])}")
        report = {
            "verdict": overall(map(part_verdict, found.values())),
            "parts": found,
            "config": str(config),
            "capacity_rps": round(capacity_rps(), 1),
            "pace": PACE,
            **bench.circumstances(),
        }
        write_scale(folder, report, lines)
    return report
