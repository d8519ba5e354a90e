"""Service with a throttled Scorer that is scaled in place, and its load from another process."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from loadtest.errors import LoadtestError
from loadtest.generator.offer import OfferedLoad, offering
from loadtest.measure.cluster import ClusterSample, Look, watch
from loadtest.measure.timeline import Moment
from loadtest.report.report import Report
from loadtest.report.run import report_run
from loadtest.targets.services import TargetService, deployments_of, edited, tabrank
from loadtest.targets.workspace import Workspace
from loadtest.workload.profiles import CANDIDATES, Profile, load_slo

APPLICATION = "loadtest.targets.throttled:build"
PACE = {"ms_per_batch": 2.0, "us_per_candidate": 50.0}
# Requests per full batch. The Scorer is six times slower than the real one, so batches are smaller.
REQUESTS = 8
# The deployments that scale, and the replicas that each starts with.
SCALED = ("FeatureFetch", "Scorer")
FEW = 1
Proof = tuple[Report, Sequence[Moment]]
"""Numbers and verdict of a part of the test, and its timeline."""


def capacity_rps() -> float:
    """Return the capacity of one Scorer replica with full batches."""
    batch_s = PACE["ms_per_batch"] / 1e3 + REQUESTS * CANDIDATES * PACE["us_per_candidate"] / 1e6
    return REQUESTS / batch_s


def throttled(work: Workspace, config: Path, scorer: Mapping[str, Any]) -> TargetService:
    """Return a throttled service of a `cluster.yaml`, with one replica of each deployment.

    `scorer` overrides the `autoscaling_config` of the Scorer.

    Raises:
        LoadtestError: if the file is not a usable `cluster.yaml`.
    """
    service = tabrank(work, config)
    with edited(work.path / "cluster.yaml") as document:
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
            # Small CPU shares, for placement only: two cores must have room for three replicas of
            # each.
            deployment["ray_actor_options"] = {"num_cpus": 0.1}
            if "user_config" in deployment:
                deployment["user_config"]["max_batch_candidates"] = REQUESTS * CANDIDATES
    return service


def load_service(
    profile: Profile,
    url: str,
    bodies: Sequence[bytes],
    look: Look,
    out: Path,
    meanwhile: Callable[[], None] = lambda: None,
) -> Proof:
    """Load a service, and call `meanwhile`; write the report to `out`, and return it.

    `look` counts the replicas and nodes during the load.

    Raises:
        LoadtestError: if the generator failed.
    """
    load = OfferedLoad(url, bodies, profile.candidates, profile.target_rps, profile.blocks)
    samples: list[ClusterSample] = []
    times = (profile.warmup_s, profile.duration_s)
    with offering(load) as offer:
        threading.Thread(target=watch, args=(look, *times, samples), daemon=True).start()
        meanwhile()
        requests = offer.result().requests.counted_from(profile.warmup_s)
    return report_run(profile, load_slo(), url, requests, samples, out)
