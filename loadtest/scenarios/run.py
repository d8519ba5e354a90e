"""`loadtest run`: load a running service with a profile, judge the answers, and write a report."""

from __future__ import annotations

import time
from pathlib import Path

from loadtest.generator.bodies import make_bodies
from loadtest.generator.ids import Ids
from loadtest.generator.offer import OfferedLoad, offering
from loadtest.measure.cluster import PERIOD_S, ClusterSample, find_cluster
from loadtest.measure.polling import repeated
from loadtest.measure.service import probe
from loadtest.report.report import Report
from loadtest.report.run import report_run
from loadtest.workload.profiles import Profile, Slo


def run_profile(profile: Profile, slo: Slo, url: str, ids: Ids, out: Path) -> Report:
    """Run the load and write the report to the new folder `out`.

    Raises:
        LoadtestError: if there is no such service, the input is unusable, or the generator failed.
    """
    bodies, look = make_bodies(ids, profile), find_cluster(url)
    probe(url, bodies[0])
    samples: list[ClusterSample] = []

    def sample() -> None:
        replicas, nodes = look() if look else ({}, None)
        if replicas:
            at_s = time.monotonic() - offer.begun_s - profile.warmup_s
            samples.append(ClusterSample(at_s, replicas, nodes))

    with offering(OfferedLoad.of(profile, url, bodies)) as offer, repeated(sample, PERIOD_S):
        requests = offer.result().requests.counted_from(profile.warmup_s)
    return report_run(profile, slo, url, requests, samples, out)
