"""`loadtest scale`: change the number of replicas under load, and double the load.

The part `replicas` sets the number of replicas. In the part `step`, autoscaling adds replicas and
removes them. The Scorer is throttled, so that two replicas do twice the work of one on any machine.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from loadtest.errors import LoadtestError
from loadtest.measure.cluster import look_at_folder
from loadtest.measure.polling import within
from loadtest.measure.timeline import Moment
from loadtest.measure.verdict import failures, overall, verdict_if_late
from loadtest.report.report import Report
from loadtest.report.scale import part_line, write_scale
from loadtest.scenarios.knee import Bench
from loadtest.scenarios.run import load_service
from loadtest.targets.processes import started
from loadtest.targets.running import Target
from loadtest.targets.services import TargetService, deployments_of, read_document, tabrank, write_document
from loadtest.targets.workspace import Progress, Workspace
from loadtest.workload.profiles import CANDIDATES, Profile, Shape, load_slo
from serve.storage.atomic_files import draft_of

APPLICATION = "loadtest.targets.throttled:build"
# Time that a batch of the throttled Scorer takes.
PACE = {"ms_per_batch": 2.0, "us_per_candidate": 50.0}
# Requests per full batch. The throttled Scorer is six times slower than the real one, so its
# batches are smaller.
REQUESTS = 8
# The deployments that scale, and the numbers of replicas between which the part `replicas` changes.
SCALED = ("FeatureFetch", "Scorer")
FEW, MANY = 1, 3
# Autoscaling of the Scorer in each part. Its delay before scaling down ends before the doubled load
# does, so that the test detects a policy which removes the added replica too early.
AUTOSCALING: Mapping[str, Mapping[str, int]] = {
    "replicas": {},
    "step": {"max_replicas": 4, "downscale_delay_s": 15},
}
PARTS = tuple(AUTOSCALING)
# The first load, as a share of the capacity of one Scorer replica. Twice that exceeds the capacity.
LOAD = 0.6
# Time after the step within which more replicas must run, and the p99 must be within its limit.
WITHIN_S = 10.0
# The load doubles at UP_S. At DOWN_S it falls to half of the first rate.
UP_S, DOWN_S, END_S = 20.0, 70.0, 100.0
SHAPE: Shape = ((0.0, 1.0), (UP_S, 1.0), (UP_S, 2.0), (DOWN_S, 2.0), (DOWN_S, 0.5), (END_S, 0.5))
# Time of the measured load before the first change of replicas.
SETTLE_S = 1.0


def run_scale(
    work: Workspace, config: Path, names: Sequence[str], cycles: int, hold_s: float, out: Path, emit: Progress
) -> Report:
    """Run the named parts, and write their reports and a summary to the new folder `out`.

    The part `replicas` changes the replicas `cycles` times up and down, and takes `hold_s` seconds
    for each change.

    Raises:
        LoadtestError: if the input, the workspace or the service prevents a part.
    """
    for name in names:
        if name not in PARTS:
            raise LoadtestError(f"--part {name}: unknown part; use {', '.join(PARTS)}")
    run_part: dict[str, Callable[[Target, Sequence[bytes], Path, Progress], Report]] = {
        "replicas": partial(change_replicas, cycles=cycles, hold_s=hold_s),
        "step": double_load,
    }
    with work.locked(), draft_of(out) as folder:
        # Report an invalid file before the preparation, which takes a minute.
        throttled(work, config, {})
        bench = Bench.prepared(work, CANDIDATES, emit)
        found: dict[str, Report] = {}
        for name in names:
            service = throttled(work, config, AUTOSCALING[name])
            emit("starting the service with the throttled Scorer")
            with started(service, work, bench.bodies[0], CANDIDATES) as footprint:
                emit(f"{service.url} answers after {footprint.start_s} s")
                found[name] = run_part[name](Target.of(work, service), bench.bodies, folder / name, emit)
            emit(part_line(name, found[name]))
        report = {
            "verdict": overall(part["verdict"] for part in found.values()),
            "parts": found,
            "config": str(config),
            "capacity_rps": round(capacity_rps(), 1),
            "pace": PACE,
            **bench.circumstances(),
        }
        write_scale(folder, report)
    return report


def capacity_rps() -> float:
    """Return how many requests per second one Scorer replica can score, with full batches."""
    batch_s = PACE["ms_per_batch"] / 1e3 + REQUESTS * CANDIDATES * PACE["us_per_candidate"] / 1e6
    return REQUESTS / batch_s


def throttled(work: Workspace, config: Path, scorer: Mapping[str, Any]) -> TargetService:
    """Return a throttled service of a `cluster.yaml`, with one replica of each deployment.

    `scorer` overrides the `autoscaling_config` of the Scorer.

    Raises:
        LoadtestError: if the file is not a usable `cluster.yaml`.
    """
    service = tabrank(work, config)
    file = work.path / "cluster.yaml"
    document = read_document(file)
    document["applications"][0]["import_path"] = APPLICATION
    document["applications"][0]["args"] |= PACE
    declared = deployments_of(document)
    for name in SCALED:
        given = declared.get(name, {}).get("autoscaling_config")
        if not isinstance(given, dict):
            raise LoadtestError(f"--config {config}: {name} has no autoscaling_config; add one")
        given |= {"min_replicas": FEW, "max_replicas": FEW}
    declared["Scorer"]["autoscaling_config"] |= scorer
    for deployment in declared.values():
        # Ray uses these CPU shares for placement only. They are small, so that two cores have room
        # for three replicas of each deployment.
        deployment["ray_actor_options"] = {"num_cpus": 0.1}
        if "user_config" in deployment:
            deployment["user_config"]["max_batch_candidates"] = REQUESTS * CANDIDATES
    write_document(file, document)
    return service


def double_load(target: Target, bodies: Sequence[bytes], out: Path, emit: Progress) -> Report:
    """Double the load of the running service and lower it again; return the judged report."""
    rate_rps = round(LOAD * capacity_rps())
    emit(f"step: {rate_rps:g} → {2 * rate_rps:g} → {rate_rps / 2:g} req/s, {END_S:g} s")
    profile = Profile("step", rate_rps, CANDIDATES, 10.0, END_S, 1.0, SHAPE)
    look = partial(look_at_folder, target.run)
    return judge_step(*load_service(profile, load_slo(), target.url, bodies, look, out))


def judge_step(
    report: Report, moments: Sequence[Moment], up_s: float = UP_S, down_s: float = DOWN_S
) -> Report:
    """Return the verdict on the step and its numbers, from the run's report and timeline.

    The load doubled at `up_s` and fell at `down_s`.
    """
    counts = [(moment.t_s, moment.replicas.get("Scorer") or 0) for moment in moments]
    before = {number for at_s, number in counts if at_s < up_s}
    held = [(at_s, number) for at_s, number in counts if up_s <= at_s < down_s]
    more = [at_s for at_s, number in held if number > max(before, default=1)]
    lowered = [number for at_s, number in counts if at_s >= down_s]
    up = more[0] - up_s if more else None
    found = {
        "replicas_up_s": up,
        **{key: report["steps"][0][key] for key in ("p99_recovered_s", "full_recovered_s")},
        "replicas_before": sorted(before),
        "replicas_held": max((number for _, number in held), default=0),
        "replicas_after": lowered[-1] if lowered else None,
        "phases": report["phases"],
        **{key: report[key] for key in ("requests", "errors", "error_kinds", "generator_late_ms_p99")},
    }
    reasons = []
    if len(before) != 1:
        reasons.append(f"the number of replicas changed before the step: {found['replicas_before']}")
    for name, key in (("more replicas ran", "replicas_up_s"), ("the p99 recovered", "p99_recovered_s")):
        if found[key] is None or found[key] > WITHIN_S:
            reasons.append(f"{name} {_seconds(found[key])} after the step (limit {WITHIN_S:g} s)")
    since_up = [number for at_s, number in held if more and at_s >= more[0]]
    if any(later < earlier for earlier, later in pairwise(since_up)):
        reasons.append("a replica was removed while the load was still doubled")
    reasons += failures(found)
    counted = " → ".join(str(found[f"replicas_{when}"]) for when in ("before", "held", "after"))
    measured = (
        f"{_failed(found)}; more replicas {_seconds(up)} after the step, p99 within its limit "
        f"{_seconds(found['p99_recovered_s'])} after it; {counted} Scorers"
    )
    return {**_judged(report, reasons), "measured": measured, **found}


def change_replicas(
    target: Target, bodies: Sequence[bytes], out: Path, emit: Progress, *, cycles: int, hold_s: float
) -> Report:
    """Scale the running service up and down under load; return the verdict and the numbers.

    `hold_s` is the time in seconds for each change, including the load after it.
    """
    seconds = cycles * 2 * hold_s
    profile = Profile("replicas", round(LOAD * capacity_rps()), CANDIDATES, 3.0, seconds + SETTLE_S, 1.0)
    changes: list[dict[str, Any]] = []
    load = f"{profile.target_rps:g} req/s, {profile.duration_s:g} s"
    emit(f"replicas: {cycles} × {FEW} → {MANY} → {FEW} at {load}")

    def change() -> None:
        time.sleep(profile.warmup_s + SETTLE_S)
        begun = time.monotonic()
        for number in range(2 * cycles):
            until_s = begun + (number + 1) * hold_s
            replicas = FEW if number % 2 else MANY
            took_s = _set_replicas(target, replicas, hold_s)
            changes.append({"replicas": replicas, "seconds": took_s})
            emit(f"  {replicas} of each: {'not in time' if took_s is None else f'after {took_s:g} s'}")
            time.sleep(max(0.0, until_s - time.monotonic()))

    look = partial(look_at_folder, target.run)
    report, _ = load_service(profile, load_slo(), target.url, bodies, look, out, change)
    reasons = failures(report)
    if late := sum(change["seconds"] is None for change in changes):
        took = f"{late} of {len(changes)} changes took longer than {hold_s:g} s"
        reasons.append(f"{took}, so the load may have ended before they were complete; raise --hold")
    slowest = max((change["seconds"] or 0.0 for change in changes), default=0.0)
    measured = f"{_failed(report)}; {len(changes)} changes, the slowest {slowest:g} s"
    names = ("requests", "errors", "error_kinds", "rps", "full_share", "p99_ms")
    numbers = {name: report[name] for name in names}
    return {**_judged(report, reasons), "measured": measured, "changes": changes, **numbers}


def _set_replicas(target: Target, number: int, limit_s: float) -> float | None:
    """Set the number of replicas, and return the seconds until they run.

    The result is None if they do not run within `limit_s`.
    """
    begun = time.monotonic()
    document = target.document()
    for name in SCALED:
        scaling = deployments_of(document)[name]["autoscaling_config"]
        scaling |= {"min_replicas": number, "max_replicas": number}
    target.deploy(document)
    wanted = dict.fromkeys(SCALED, number)
    took = within(begun + limit_s - time.monotonic(), lambda: target.at_full_strength(wanted))
    return None if took is None else round(time.monotonic() - begun, 1)


def _judged(report: Report, reasons: list[str]) -> Report:
    limit_ms = report["slo"]["generator_late_ms_p99"]
    verdict, reasons = verdict_if_late(reasons, report["generator_late_ms_p99"], limit_ms)
    return {"verdict": verdict, "reasons": reasons}


def _failed(found: Mapping[str, Any]) -> str:
    return f"{found['errors']} of {found['requests']:,} requests failed"


def _seconds(value: float | None) -> str:
    return "never" if value is None else f"{value:g} s"
