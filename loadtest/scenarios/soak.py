"""`loadtest soak`: constant load for a long time, to detect latency drift and resource leaks."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import psutil

from loadtest.errors import LoadtestError
from loadtest.generator.bodies import make_bodies
from loadtest.generator.ids import Ids
from loadtest.generator.offer import OfferedLoad, offering
from loadtest.measure.cluster import read_service
from loadtest.measure.measure import Requests, measure, rounded_numbers
from loadtest.measure.polling import repeated
from loadtest.measure.service import probe
from loadtest.measure.timeline import timeline
from loadtest.measure.verdict import Verdict, failures, verdict_on
from loadtest.report.report import Report
from loadtest.report.run import Footprint, write_soak
from loadtest.targets.processes import of_cluster
from loadtest.targets.workspace import Progress
from loadtest.workload.profiles import CANDIDATES, Block, Profile, Slo, load_slo
from serve.operate.host.machine import describe_machine

# Load before the measurement, which is not counted.
WARMUP_S = 30.0
# First share of the samples of memory and files, which is ignored because caches and heaps fill.
WARM_SHARE = 0.2
# By how much the p99 of the last third may exceed that of the first third.
DRIFT = 0.10
# Names of the numbers of the whole load in the report.
WHOLE = ("requests", "errors", "error_kinds", "full_share", "generator_late_ms_p99")
# By how much memory and the number of open files may grow.
GROWTH = 0.05


def soak_profile(rate_rps: float, seconds: float, warmup_s: float = WARMUP_S) -> Profile:
    """Return the constant load of a soak."""
    return Profile("soak", rate_rps, CANDIDATES, warmup_s, seconds, 1.0)


def run_soak(profile: Profile, url: str, ids: Ids, cluster: Path, out: Path, emit: Progress) -> Report:
    """Load the service at `url`, sample its processes, and write the report to `out`.

    `cluster` is the run folder of the service, which names its processes.

    Raises:
        LoadtestError: if there is no such service, or the input is unusable.
    """
    rate_rps, seconds, warmup_s = profile.target_rps, profile.duration_s, profile.warmup_s
    bodies, slo = make_bodies(ids, profile), load_slo()
    probe(url, bodies[0])
    service = processes_of(cluster, url)
    emit(f"{rate_rps:g} req/s for {seconds:g} s; {len(service)} processes are sampled")
    load = OfferedLoad(url, bodies, profile.candidates, rate_rps, [Block(warmup_s), Block(seconds)])
    seen: list[Footprint] = []

    def look() -> None:
        at_s = time.monotonic() - offer.begun_s - warmup_s
        seen.append(footprint(processes_of(cluster, url), at_s))

    with offering(load) as offer, repeated(look, min(5.0, seconds / 12)):
        requests = offer.result().requests.counted_from(warmup_s)
    footprints = [each for each in seen if each.at_s >= 0]
    report = describe(requests, footprints, seconds)
    verdict, reasons = judge(report, slo)
    head = {"verdict": verdict, "reasons": reasons, "url": url, "rate_rps": rate_rps}
    report = {**head, **report, "machine": describe_machine()}
    write_soak(out, report, timeline(requests, seconds, []), footprints, slo)
    return report


def describe(requests: Requests, footprints: Sequence[Footprint], seconds: float) -> Report:
    """Return the numbers of a soak.

    They include the p99 of each third of the time, and the growth of memory and files after the
    first WARM_SHARE of the samples.
    """
    thirds = [measure(requests.counted_from(i * seconds / 3), seconds / 3) for i in range(3)]
    whole = measure(requests, seconds)
    warm = footprints[int(len(footprints) * WARM_SHARE) :]
    first, last = thirds[0].p99_ms, thirds[-1].p99_ms
    found = {
        "seconds": seconds,
        **{name: getattr(whole, name) for name in WHOLE},
        "p99_ms": [third.p99_ms for third in thirds],
        "p99_drift": None if first is None or last is None else last / first - 1,
        "memory_growth": growth([each.own_mib for each in warm]),
        "files_growth": growth([each.files for each in warm]),
        "memory_mib": [warm[0].own_mib, warm[-1].own_mib] if warm else [],
        "files": [warm[0].files, warm[-1].files] if warm else [],
        "processes": sorted({each.processes for each in footprints}),
        "samples": len(footprints),
        "criteria": {"p99_drift": DRIFT, "growth": GROWTH, "warm_up_share": WARM_SHARE},
    }
    return rounded_numbers(found)


def growth(values: Sequence[float]) -> float | None:
    """Return the relative growth of a least-squares line through the values, from first to last.

    For example, a line from 200 to 210 has grown by 0.05. The result is None if there are fewer
    than three values.
    """
    if len(values) < 3:
        return None
    slope, start = np.polyfit(np.arange(len(values)), np.array(values, dtype=float), 1)
    return float(slope * (len(values) - 1) / start)


def judge(report: Report, slo: Slo) -> tuple[Verdict, list[str]]:
    """Compare the numbers with the limits; return the verdict and its reasons.

    The verdict is void if the generator was late.
    """
    return verdict_on(list(_broken(report)), report["generator_late_ms_p99"], slo.generator_late_ms_p99)


def processes_of(run: Path, url: str) -> list[psutil.Process]:
    """Return the processes of the service of a run folder.

    Raises:
        LoadtestError: if the folder has no service at `url`, or no process can be read.
    """
    service = read_service(run)
    if service.get("url", "").rstrip("/") != url.rstrip("/"):
        raise LoadtestError(f"--cluster {run}: it holds no service at {url}; name that service's run folder")
    found = of_cluster(service["cluster_id"])
    if not found:
        raise LoadtestError(f"--cluster {run}: no process is readable; run the test as the service's user")
    return found


def footprint(processes: Sequence[psutil.Process], at_s: float) -> Footprint:
    """Return the resources of all processes together at this moment, without those that ended.

    `own_mib` counts resident memory that a process does not share.
    """
    own = files = number = 0
    for process in processes:
        with contextlib.suppress(psutil.Error, OSError):
            memory = process.memory_info()
            own += memory.rss - getattr(memory, "shared", 0)
            files += process.num_fds()
            number += 1
    return Footprint(at_s, own / 2**20, files, number)


def _broken(report: Report) -> Iterator[str]:
    drift = report["p99_drift"]
    if drift is None or drift > DRIFT:
        drifted = "could not be compared" if drift is None else f"drifted by {drift:+.1%}"
        yield f"the p99 {drifted} from the first third to the last (limit {DRIFT:.0%})"
    for what, key in (("memory", "memory_growth"), ("the number of open files", "files_growth")):
        if report[key] is None:
            yield f"{what} has too few samples; raise --minutes"
        elif report[key] > GROWTH:
            yield f"{what} grew by {report[key]:+.1%} after the warm-up (limit {GROWTH:.0%})"
    yield from failures(report)
