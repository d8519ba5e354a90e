"""`loadtest run`: load a running service with a profile, judge the measurement and report it."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from loadtest.generator.bodies import make_bodies
from loadtest.generator.ids import find_ids
from loadtest.measure.cluster import Watch, find_cluster
from loadtest.measure.measure import measure
from loadtest.measure.service import probe
from loadtest.measure.timeline import timeline
from loadtest.measure.verdict import judge
from loadtest.report.report import Report
from loadtest.report.run import make_report, write_run
from loadtest.workload.profiles import load_profile, load_slo
from serve.contract.validation import refuse_existing


def run_profile(
    profile_name: str,
    url: str,
    slo_file: Path | None,
    log: Path,
    ids_file: Path | None,
    rps: float | None,
    duration_s: float | None,
    warmup_s: float | None,
    cluster: str | None,
    out: Path | None,
) -> tuple[Report, Path]:
    """Run the load; return the report and its new folder. Input is checked before the load.

    Raises:
        LoadtestError: if there is no such service, or the input is unusable.
    """
    profile = load_profile(profile_name, target_rps=rps, duration_s=duration_s, warmup_s=warmup_s)
    slo = load_slo(slo_file)
    folder = out or Path("var/loadtest") / f"{profile.name}-{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
    refuse_existing(folder)
    ids = find_ids(ids_file, log, profile.candidates)
    bodies = make_bodies(ids, profile)
    probe(url, bodies[0])
    look = find_cluster(cluster, url)
    watch = Watch(look, profile.warmup_s, profile.duration_s) if look else None
    # Import late: the module patches the standard library for gevent.
    from loadtest.scenarios.locust_run import run_load

    done = run_load(profile, url, bodies, [watch] if watch else [])
    measured = measure(done.requests, profile.duration_s)
    moments = timeline(done.requests, profile.duration_s, watch.samples if watch else [])
    verdict, reasons = judge(measured, slo)
    report = make_report(profile, url, slo, measured, verdict, reasons, done.requests, moments)
    write_run(folder, report, done.requests, profile, slo, done.locust_html, moments)
    return report, folder
