"""`loadtest run`: load a running service with a profile, judge the answers, and write a report."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from loadtest.generator.bodies import make_bodies
from loadtest.generator.ids import Ids
from loadtest.generator.offer import OfferedLoad, offering
from loadtest.measure.cluster import PERIOD_S, ClusterSample, Look, find_cluster
from loadtest.measure.polling import repeated
from loadtest.measure.service import probe
from loadtest.measure.timeline import Moment
from loadtest.report.report import Report
from loadtest.report.run import report_run
from loadtest.workload.profiles import Profile, Slo


def run_profile(profile: Profile, slo: Slo, url: str, ids: Ids, cluster: str | None, out: Path) -> Report:
    """Run the load and write the report to the new folder `out`.

    `cluster` names the cluster whose replicas and nodes are counted, as `find_cluster` takes it.

    Raises:
        LoadtestError: if there is no such service or cluster, or the input is unusable.
    """
    bodies = make_bodies(ids, profile)
    probe(url, bodies[0])
    report, _ = load_service(profile, slo, url, bodies, find_cluster(cluster, url), out)
    return report


def load_service(
    profile: Profile,
    slo: Slo,
    url: str,
    bodies: Sequence[bytes],
    look: Look | None,
    out: Path,
    meanwhile: Callable[[], None] = lambda: None,
) -> tuple[Report, Sequence[Moment]]:
    """Load a service, write the report to `out`, and return it with the timeline.

    `meanwhile` is called once while the load runs. `look` counts the replicas and nodes each
    second; without it, the timeline has none.

    Raises:
        LoadtestError: if the generator failed.
    """
    samples: list[ClusterSample] = []

    def sample() -> None:
        replicas, nodes = look() if look else ({}, None)
        if replicas:
            at_s = time.monotonic() - offer.begun_s - profile.warmup_s
            samples.append(ClusterSample(at_s, replicas, nodes))

    with offering(OfferedLoad.of(profile, url, bodies)) as offer, repeated(sample, PERIOD_S):
        meanwhile()
        requests = offer.result().requests.counted_from(profile.warmup_s)
    return report_run(profile, slo, url, requests, samples, out)
