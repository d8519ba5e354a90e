"""`loadtest slow`: the p99 of normal requests with and without slow clients."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from statistics import median
from typing import Any
from urllib.parse import urlsplit

from loadtest.commands import die_with_parent
from loadtest.errors import LoadtestError
from loadtest.generator.bodies import make_bodies
from loadtest.generator.ids import Ids
from loadtest.generator.offer import OfferedLoad, offering
from loadtest.measure.measure import measure, rounded
from loadtest.measure.service import probe, read_address
from loadtest.measure.verdict import MAX_SLOW_LATE_MS, MAX_SLOW_RATIO, judge_slow_clients
from loadtest.report.report import Report
from loadtest.workload.profiles import Block, Profile
from serve.operate.host.machine import describe_machine

# Start of each window, which is not counted because slow clients connect or disconnect in it.
SETTLE_S = 5.0
# Duration of a window.
WINDOW_S = 12.0
# What slow clients would print if they had not been able to start.
NO_CLIENTS = '{"connected": 0, "ended": {}}'


def run_slow(
    profile: Profile, url: str, ids: Ids, num_slow: int, num_pairs: int, window_s: float = WINDOW_S
) -> Report:
    """Load the service at the profile's rate, and return the report.

    Windows of `window_s` seconds without and with `num_slow` slow clients alternate, `num_pairs`
    times.

    Raises:
        LoadtestError: if nothing answers at `url`, or more than a tenth of the slow clients cannot
            connect.
    """
    bodies = make_bodies(ids, profile)
    probe(url, bodies[0])
    whole = [Block(2 * num_pairs * window_s)]
    load = OfferedLoad(url, bodies, profile.candidates, profile.target_rps, whole)
    reports = []
    with offering(load) as offer:
        for number in range(num_pairs):
            time.sleep(max(0.0, offer.begun_s + (2 * number + 1) * window_s - time.monotonic()))
            # The slow clients disconnect before the next window begins.
            reports.append(_slow_clients(url, num_slow, window_s - 0.5))
        requests = offer.result().requests
    connected = min(one["connected"] for one in reports)
    if connected < 0.9 * num_slow:
        raise LoadtestError(f"--url {url}: only {connected} of {num_slow} slow clients could connect")
    counted_s = window_s - SETTLE_S
    begins_s = [i * window_s + SETTLE_S for i in range(2 * num_pairs)]
    windows = [measure(requests.counted_from(begin_s), counted_s) for begin_s in begins_s]
    quiet, slowed = ([one.p99_ms or float("inf") for one in windows[begin::2]] for begin in (0, 1))
    ratio = median(slowed) / median(quiet)
    failed = sum(one.errors for one in windows)
    late_ms = median(one.generator_late_ms_p99 for one in windows)
    return {
        "verdict": judge_slow_clients(ratio, failed, late_ms),
        "url": url,
        "target_rps": profile.target_rps,
        "slow_clients": num_slow,
        "p99_ms": {"without": [*map(rounded, quiet)], "beside": [*map(rounded, slowed)]},
        "ratio": rounded(ratio),
        "max_ratio": MAX_SLOW_RATIO,
        "errors": failed,
        "slow_ended": [one["ended"] for one in reports],
        "generator_late_ms_p99": rounded(late_ms),
        "machine": describe_machine(),
    }


def _slow_clients(url: str, num_slow: int, seconds: float) -> dict[str, Any]:
    """Run slow clients for some seconds, and return what they report."""
    host, port = read_address(url)
    to = [host, str(port), urlsplit(url).path.rstrip("/"), str(num_slow)]
    command = [sys.executable, "-m", "loadtest.generator.slow_senders", *to]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, preexec_fn=die_with_parent)
    try:
        time.sleep(seconds)
    finally:
        process.terminate()
    out, _ = process.communicate(timeout=10)
    report: dict[str, Any] = json.loads(out or NO_CLIENTS)
    return report


def slow_summary(report: Report) -> str:
    """Return the report as a few lines for a terminal."""
    shown = {key: ", ".join(f"{ms:.1f}" for ms in values) for key, values in report["p99_ms"].items()}
    return (
        f"{report['verdict']}: {report['slow_clients']} slow clients make the p99 of {report['target_rps']:g} req/s "
        f"{report['ratio']:.2f} times as long (limit {MAX_SLOW_RATIO:g}); {report['errors']} requests failed\n"
        f"  p99 of each window without them: {shown['without']} ms\n  with them: {shown['beside']} ms\n"
        f"  p99 of the generator's lateness: {report['generator_late_ms_p99']:.1f} ms (void above {MAX_SLOW_LATE_MS:g})"
    )
