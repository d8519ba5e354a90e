"""Scale nodes with the load: Ray's autoscaler over fake nodes, each a raylet on this machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from loadtest.errors import LoadtestError
from loadtest.measure.timeline import Moment
from loadtest.scenarios.scaling.load import Proof, after, failures, loading
from loadtest.scenarios.scaling.service import CANDIDATES, Scaled, capacity_rps
from loadtest.scenarios.scaling.step import LOAD, StepPlan
from loadtest.targets.cluster_file import deployments_of, edited
from loadtest.targets.fake_cluster import fake_cluster
from loadtest.targets.processes import await_full_answer
from loadtest.targets.workspace import Progress
from loadtest.workload.profiles import Profile

PLAN = StepPlan(before_s=15.0, held_s=45.0, after_s=45.0)
# The head has room for one Scorer. The second needs a worker, which has room for one.
NUM_CPUS = {"FeatureFetch": 0.3, "Scorer": 0.6, "Ingest": 0.0}
NODES = {
    "head": {"num_cpus": 1, "min_nodes": 1, "max_nodes": 1},
    "workers": {"num_cpus": 1, "min_nodes": 0, "max_nodes": 2},
}
# Ray removes a node without a replica after this time.
IDLE_S = 5.0
ANSWER_S = 60.0


def prove_nodes(scaled: Scaled, bodies: Sequence[bytes], out: Path, emit: Progress) -> Proof:
    """Start a cluster of fake nodes, double its load, lower it, and return the node changes."""
    _place(scaled.file)
    url, rate_rps = scaled.service.url, round(LOAD * capacity_rps())
    profile = Profile("nodes", rate_rps, CANDIDATES, 5.0, PLAN.shape[-1][0], 1.0, PLAN.shape)
    emit("starting a cluster of fake nodes with the throttled Scorer")
    with fake_cluster(scaled.file, idle_s=IDLE_S) as cluster:
        last = await_full_answer(url, bodies[0], CANDIDATES, ANSWER_S)
        if last is not None:
            raise LoadtestError(
                f"the fake nodes gave no full answer within {ANSWER_S:g} s (last answer: {last})"
            )
        emit(f"nodes: {rate_rps:g} → {2 * rate_rps:g} → {rate_rps / 2:g} req/s, {profile.duration_s:g} s")
        with loading(profile, url, bodies, cluster.rest.look) as load:
            report, moments = load.report(out)
    found = judge_nodes(report, moments, PLAN)
    added, removed = (after(found[key]) for key in ("node_up_s", "node_gone_s"))
    emit(f"  node added {added} the step, removed {removed} its end")
    return found, moments


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
    reasons = list(_broken(found))
    return {"held": not reasons, "reasons": reasons, **found}


def _broken(found: Mapping[str, Any]) -> Sequence[str]:
    reasons = []
    if found["node_up_s"] is None:
        reasons.append("no node was added under the load")
    elif found["node_gone_s"] is None or found["nodes_after"] != found["nodes_before"]:
        reasons.append("the added node was not removed after the load")
    return reasons + failures(found)


def _place(file: Path) -> None:
    """Set CPU shares that fill the head, and the node pools."""
    with edited(file) as document:
        for name, deployment in deployments_of(document).items():
            deployment["ray_actor_options"] = {"num_cpus": NUM_CPUS[name]}
        document["nodes"] = NODES
