"""`loadtest run`: load a running service with a profile, judge the measurement and report it."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from loadtest.generator.bodies import make_bodies
from loadtest.generator.ids import Ids
from loadtest.measure.cluster import ClusterSample, find_cluster, watch
from loadtest.measure.service import probe
from loadtest.report.report import Report
from loadtest.report.run import report_run
from loadtest.workload.profiles import Profile, Slo


def run_profile(profile: Profile, slo: Slo, url: str, ids: Ids, cluster: str | None, out: Path) -> Report:
    """Run the load and write the report to the new folder `out`.

    `cluster` names the cluster whose replicas and nodes are counted.

    Raises:
        LoadtestError: if there is no such service or cluster, or the input is unusable.
    """
    bodies = make_bodies(ids, profile)
    probe(url, bodies[0])
    look = find_cluster(cluster, url)
    samples: list[ClusterSample] = []
    looking = [partial(watch, look, profile.warmup_s, profile.duration_s, samples)] if look else []
    # Import late: the module patches the standard library for gevent.
    from loadtest.scenarios.locust_run import run_load

    requests, page = run_load(profile, url, bodies, looking)
    report, _ = report_run(profile, slo, url, requests, samples, out, page)
    return report
