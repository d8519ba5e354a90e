"""Double the load: replicas must be added and the p99 recover in ten seconds, without flapping."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from loadtest.measure.timeline import Moment
from loadtest.scenarios.scaling.load import Proof, after, failures, loading
from loadtest.scenarios.scaling.service import CANDIDATES, Scaled, capacity_rps
from loadtest.targets.workspace import Progress
from loadtest.workload.profiles import Profile
from loadtest.workload.shapes import Shape

# Share of the capacity of one Scorer replica; twice that exceeds the capacity.
LOAD = 0.6
WITHIN_S = 10.0
MAX_REPLICAS = 4
SCORER = "Scorer"
# Scale down earlier than the doubled load ends, so that a policy that removes the added replica too
# early is detected.
AUTOSCALING = {
    "FeatureFetch": {"min_replicas": 1, "max_replicas": 1},
    "Scorer": {"min_replicas": 1, "max_replicas": MAX_REPLICAS, "downscale_delay_s": 15},
}


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
        return (
            (0.0, 1.0),
            (up_s, 1.0),
            (up_s, 2.0),
            (down_s, 2.0),
            (down_s, 0.5),
            (down_s + self.after_s, 0.5),
        )


def prove_step(scaled: Scaled, bodies: Sequence[bytes], plan: StepPlan, out: Path, emit: Progress) -> Proof:
    """Double the load of the running service, lower it; return the times of replicas and p99."""
    rate_rps = round(LOAD * capacity_rps())
    seconds = plan.shape[-1][0]
    profile = Profile("step", rate_rps, CANDIDATES, 10.0, seconds, 1.0, plan.shape)
    emit(f"step: {rate_rps:g} → {2 * rate_rps:g} → {rate_rps / 2:g} req/s, {seconds:g} s")
    with loading(profile, scaled.service.url, bodies, scaled.look) as load:
        report, moments = load.report(out)
    found = judge_step(report, moments, plan)
    emit(f"  replicas {after(found['replicas_up_s'])}, p99 {after(found['p99_recovered_s'])} the step")
    return found, moments


def judge_step(report: Mapping[str, Any], moments: Sequence[Moment], plan: StepPlan) -> dict[str, Any]:
    """Return the numbers of the step from the run's report and timeline, with the verdict."""
    up_s, down_s = plan.before_s, plan.before_s + plan.held_s
    counts = [(moment.t_s, moment.replicas.get(SCORER) or 0) for moment in moments]
    before = {number for at_s, number in counts if at_s < up_s}
    held = [(at_s, number) for at_s, number in counts if up_s <= at_s < down_s]
    more = [at_s for at_s, number in held if number > max(before, default=1)]
    after = [number for at_s, number in counts if at_s >= down_s]
    most = max((number for _, number in held), default=0)
    step = report["steps"][0]
    found = {
        "replicas_up_s": more[0] - up_s if more else None,
        "p99_recovered_s": step["p99_recovered_s"],
        "full_recovered_s": step["full_recovered_s"],
        "replicas_before": sorted(before),
        "replicas_held": most,
        "replicas_after": after[-1] if after else None,
        "phases": report["phases"],
        **{name: report[name] for name in ("requests", "errors", "error_kinds", "generator_late_ms_p99")},
    }
    reasons = list(_broken(found, [number for at_s, number in held if more and at_s >= more[0]]))
    late = report["generator_late_ms_p99"] > report["slo"]["generator_late_ms_p99"]
    return {"held": not reasons, "void": bool(reasons) and late, "reasons": reasons, **found}


def _broken(found: Mapping[str, Any], since_up: Sequence[int]) -> list[str]:
    reasons = []
    if len(found["replicas_before"]) != 1:
        reasons.append(f"replicas changed before the step: {found['replicas_before']}")
    for name, key in (("more replicas ran", "replicas_up_s"), ("the p99 recovered", "p99_recovered_s")):
        if found[key] is None or found[key] > WITHIN_S:
            reasons.append(f"{name} {after(found[key])} the step (limit {WITHIN_S:g} s)")
    if any(later < earlier for earlier, later in pairwise(since_up)):
        reasons.append("a replica was removed while the load was still doubled")
    return reasons + failures(found)
