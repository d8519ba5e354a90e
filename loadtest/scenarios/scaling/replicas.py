"""Scale replicas 1 → 3 → 1 under load, several times: no request may fail."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from loadtest.measure.cluster import look_at_folder
from loadtest.measure.polling import within
from loadtest.measure.verdict import failures
from loadtest.scenarios.scaling.service import CANDIDATES, Proof, capacity_rps, load_service
from loadtest.targets.cluster_file import deployments_of
from loadtest.targets.running import Target
from loadtest.targets.workspace import Progress
from loadtest.workload.profiles import Profile

FEW, MANY = 1, 3
SCALED = ("FeatureFetch", "Scorer")
FIXED = {name: {"min_replicas": FEW, "max_replicas": FEW} for name in SCALED}
# Share of the capacity of one Scorer replica.
LOAD = 0.6
SETTLE_S = 1.0


@dataclass(frozen=True)
class ReplicasPlan:
    """Number of cycles, and seconds for each change of replicas with the load after it."""

    cycles: int = 5
    hold_s: float = 15.0


def prove_replicas(
    target: Target, bodies: Sequence[bytes], plan: ReplicasPlan, out: Path, emit: Progress
) -> Proof:
    """Scale the running service up and down under load; return the changes and failures."""
    seconds = plan.cycles * 2 * plan.hold_s
    profile = Profile("replicas", round(LOAD * capacity_rps()), CANDIDATES, 3.0, seconds + SETTLE_S, 1.0)
    changes: list[dict[str, Any]] = []
    emit(
        f"replicas: {plan.cycles} × {FEW} → {MANY} → {FEW} at {profile.target_rps:g} req/s, {profile.duration_s:g} s"
    )

    def change_replicas() -> None:
        time.sleep(profile.warmup_s + SETTLE_S)
        begun = time.monotonic()
        for number in range(2 * plan.cycles):
            until_s = begun + (number + 1) * plan.hold_s
            replicas = FEW if number % 2 else MANY
            seconds = _change(target, replicas, plan.hold_s)
            changes.append({"replicas": replicas, "seconds": seconds})
            emit(f"  {replicas} of each: {'not in time' if seconds is None else f'after {seconds:g} s'}")
            time.sleep(max(0.0, until_s - time.monotonic()))

    report, moments = load_service(
        profile, target.url, bodies, partial(look_at_folder, target.run), out, change_replicas
    )
    reasons = failures(report)
    late = sum(change["seconds"] is None for change in changes)
    if late:
        reasons.append(
            f"{late} of {len(changes)} changes took longer than {plan.hold_s:g} s, so the load may have ended "
            "before they were complete; raise --hold"
        )
    names = ("requests", "errors", "error_kinds", "rps", "full_share", "p99_ms")
    numbers = {name: report[name] for name in names}
    return {"held": not reasons, "reasons": reasons, "changes": changes, **numbers}, moments


def _change(target: Target, number: int, limit_s: float) -> float | None:
    """Set the replicas, and return the seconds until they run; None: not in time."""
    begun = time.monotonic()
    wanted = dict.fromkeys(SCALED, number)
    document = target.document()
    for name in SCALED:
        scaling = deployments_of(document)[name]["autoscaling_config"]
        scaling |= {"min_replicas": number, "max_replicas": number}
    target.deploy(document)
    took = within(begun + limit_s - time.monotonic(), lambda: target.at_full_strength(wanted))
    return None if took is None else round(time.monotonic() - begun, 1)
