"""Parts of the scaling test: replicas that are set, and a doubled load that adds and removes some.

A doubled load must add replicas, or a node, and the p99 recover in ten seconds. Nodes come from
Ray's autoscaler over fake nodes, each a raylet on this machine.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from loadtest.measure.cluster import look_at_folder
from loadtest.measure.polling import within
from loadtest.measure.timeline import Moment
from loadtest.measure.verdict import failures
from loadtest.scenarios.scaling.service import FEW, SCALED, Proof, capacity_rps, load_service
from loadtest.targets.fake_cluster import fake_cluster
from loadtest.targets.processes import await_full_answer
from loadtest.targets.running import Target
from loadtest.targets.services import deployments_of, edited
from loadtest.targets.workspace import Progress
from loadtest.workload.profiles import CANDIDATES, Profile, Shape

# Share of the capacity of one Scorer replica; twice that exceeds the capacity.
LOAD = 0.6
WITHIN_S = 10.0
# Scale down earlier than the doubled load ends, so that a policy that removes the added replica too
# early is detected.
AUTOSCALING = {"max_replicas": 4, "downscale_delay_s": 15}
# The head has room for one Scorer. The second needs a worker, which has room for one.
NUM_CPUS = {"FeatureFetch": 0.3, "Scorer": 0.6, "Ingest": 0.0}
NODES = {
    "head": {"num_cpus": 1, "min_nodes": 1, "max_nodes": 1},
    "workers": {"num_cpus": 1, "min_nodes": 0, "max_nodes": 2},
}
# Ray removes a node without a replica after this time.
IDLE_S = 5.0
ANSWER_S = 60.0
MANY = 3
SETTLE_S = 1.0


@dataclass(frozen=True)
class StepPlan:
    """Seconds at the initial rate, at twice that rate, and at half of it."""

    before_s: float = 20.0
    held_s: float = 50.0
    after_s: float = 30.0

    @property
    def shape(self) -> Shape:
        """Return the shape of the load, as factors of the rate."""
        up_s, down_s = self.before_s, self.before_s + self.held_s
        stretches = (0.0, up_s, 1.0), (up_s, down_s, 2.0), (down_s, down_s + self.after_s, 0.5)
        return tuple((at_s, factor) for *ends_s, factor in stretches for at_s in ends_s)


STEP_PLAN = StepPlan()
NODES_PLAN = StepPlan(before_s=15.0, held_s=45.0, after_s=45.0)


def prove_step(target: Target, bodies: Sequence[bytes], out: Path, emit: Progress) -> Proof:
    """Double the load of the running service, lower it; return the times of replicas and p99."""
    profile = _profile("step", STEP_PLAN, 10.0, emit)
    report, moments = load_service(profile, target.url, bodies, partial(look_at_folder, target.run), out)
    return judge_step(report, moments, STEP_PLAN), moments


def prove_nodes(target: Target, bodies: Sequence[bytes], out: Path, emit: Progress) -> Proof:
    """Start a cluster of fake nodes, double its load, lower it, and return the node changes."""
    with edited(target.file) as document:
        for name, deployment in deployments_of(document).items():
            deployment["ray_actor_options"] = {"num_cpus": NUM_CPUS[name]}
        document["nodes"] = NODES
    emit("starting a cluster of fake nodes with the throttled Scorer")
    with fake_cluster(target.file, idle_s=IDLE_S) as cluster:
        await_full_answer("a fake node", target.url, bodies[0], CANDIDATES, ANSWER_S)
        profile = _profile("nodes", NODES_PLAN, 5.0, emit)
        report, moments = load_service(profile, target.url, bodies, cluster.rest.look, out)
    return judge_nodes(report, moments, NODES_PLAN), moments


def _profile(name: str, plan: StepPlan, warmup_s: float, emit: Progress) -> Profile:
    rate_rps, seconds = round(LOAD * capacity_rps()), plan.shape[-1][0]
    emit(f"{name}: {rate_rps:g} → {2 * rate_rps:g} → {rate_rps / 2:g} req/s, {seconds:g} s")
    return Profile(name, rate_rps, CANDIDATES, warmup_s, seconds, 1.0, plan.shape)


def judge_step(report: Mapping[str, Any], moments: Sequence[Moment], plan: StepPlan) -> dict[str, Any]:
    """Return the numbers of the step from the run's report and timeline, with the verdict."""
    up_s, down_s = plan.before_s, plan.before_s + plan.held_s
    counts = [(moment.t_s, moment.replicas.get("Scorer") or 0) for moment in moments]
    before = {number for at_s, number in counts if at_s < up_s}
    held = [(at_s, number) for at_s, number in counts if up_s <= at_s < down_s]
    more = [at_s for at_s, number in held if number > max(before, default=1)]
    lowered = [number for at_s, number in counts if at_s >= down_s]
    most = max((number for _, number in held), default=0)
    step = report["steps"][0]
    found = {
        "replicas_up_s": more[0] - up_s if more else None,
        "p99_recovered_s": step["p99_recovered_s"],
        "full_recovered_s": step["full_recovered_s"],
        "replicas_before": sorted(before),
        "replicas_held": most,
        "replicas_after": lowered[-1] if lowered else None,
        "phases": report["phases"],
        **{name: report[name] for name in ("requests", "errors", "error_kinds", "generator_late_ms_p99")},
    }
    reasons = []
    if len(before) != 1:
        reasons.append(f"replicas changed before the step: {found['replicas_before']}")
    for name, key in (("more replicas ran", "replicas_up_s"), ("the p99 recovered", "p99_recovered_s")):
        if found[key] is None or found[key] > WITHIN_S:
            after = "never" if found[key] is None else f"{found[key]:g} s"
            reasons.append(f"{name} {after} after the step (limit {WITHIN_S:g} s)")
    since_up = [number for at_s, number in held if more and at_s >= more[0]]
    if any(later < earlier for earlier, later in pairwise(since_up)):
        reasons.append("a replica was removed while the load was still doubled")
    reasons += failures(found)
    late = report["generator_late_ms_p99"] > report["slo"]["generator_late_ms_p99"]
    return {"held": not reasons, "void": bool(reasons) and late, "reasons": reasons, **found}


def judge_nodes(report: Mapping[str, Any], moments: Sequence[Moment], plan: StepPlan) -> dict[str, Any]:
    """Return the node changes from the run's report and timeline, with the verdict."""
    up_s, down_s = plan.before_s, plan.before_s + plan.held_s
    counts = [(moment.t_s, moment.nodes) for moment in moments]
    first = next((number for _, number in counts if number is not None), None)
    more = [at_s for at_s, number in counts if at_s >= up_s and number is not None and number > (first or 0)]
    last = max(more, default=None)
    gone_s = None if last is None or last + 1 >= plan.shape[-1][0] else last + 1 - down_s
    found = {
        "nodes_before": first,
        "nodes_most": max((number for _, number in counts if number is not None), default=None),
        "nodes_after": counts[-1][1] if counts else None,
        "node_up_s": more[0] - up_s if more else None,
        "node_gone_s": gone_s,
        **{name: report[name] for name in ("requests", "errors", "error_kinds", "phases", "steps")},
    }
    reasons = failures(found)
    if not more:
        reasons.insert(0, "no node was added under the load")
    elif gone_s is None or found["nodes_after"] != first:
        reasons.insert(0, "the added node was not removed after the load")
    return {"held": not reasons, "reasons": reasons, **found}


def prove_replicas(
    target: Target, bodies: Sequence[bytes], out: Path, emit: Progress, *, cycles: int, hold_s: float
) -> Proof:
    """Scale the running service up and down under load; return the changes and failures.

    `hold_s`: seconds for each change of replicas with the load after it.
    """
    seconds = cycles * 2 * hold_s
    profile = Profile("replicas", round(LOAD * capacity_rps()), CANDIDATES, 3.0, seconds + SETTLE_S, 1.0)
    changes: list[dict[str, Any]] = []
    load = f"{profile.target_rps:g} req/s, {profile.duration_s:g} s"
    emit(f"replicas: {cycles} × {FEW} → {MANY} → {FEW} at {load}")

    def change_replicas() -> None:
        time.sleep(profile.warmup_s + SETTLE_S)
        begun = time.monotonic()
        for number in range(2 * cycles):
            until_s = begun + (number + 1) * hold_s
            replicas = FEW if number % 2 else MANY
            took_s = _change(target, replicas, hold_s)
            changes.append({"replicas": replicas, "seconds": took_s})
            emit(f"  {replicas} of each: {'not in time' if took_s is None else f'after {took_s:g} s'}")
            time.sleep(max(0.0, until_s - time.monotonic()))

    look = partial(look_at_folder, target.run)
    report, moments = load_service(profile, target.url, bodies, look, out, change_replicas)
    reasons = failures(report)
    late = sum(change["seconds"] is None for change in changes)
    if late:
        took = f"{late} of {len(changes)} changes took longer than {hold_s:g} s"
        reasons.append(f"{took}, so the load may have ended before they were complete; raise --hold")
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
