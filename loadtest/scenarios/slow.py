"""`loadtest slow`: the p99 of normal requests with and without slow clients."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from statistics import median
from typing import Any
from urllib.parse import urlsplit

from loadtest.commands import die_with_parent
from loadtest.errors import LoadtestError
from loadtest.generator.bodies import make_bodies
from loadtest.generator.ids import Ids
from loadtest.generator.offer import OfferedLoad, offering
from loadtest.measure.measure import Requests, measure, rounded
from loadtest.measure.service import probe, read_address
from loadtest.measure.verdict import MAX_SLOW_LATE_MS, MAX_SLOW_RATIO, judge_slow_clients
from loadtest.report.report import Report
from loadtest.workload.profiles import Block, Profile
from serve.operate.host.machine import describe_machine

# Start of each window that is not counted, while slow clients connect or disconnect.
SETTLE_S = 5.0
# Report of slow clients that could not start.
NO_CLIENTS = '{"connected": 0, "ended": {}}'


@dataclass(frozen=True)
class SlowPlan:
    """Pairs of windows without and with slow clients, under normal load at the profile's rate."""

    profile: Profile
    num_slow: int = 500
    pairs: int = 5
    window_s: float = 12.0


def run_slow(plan: SlowPlan, url: str, ids: Ids) -> Report:
    """Load the service, alternately with and without slow clients, and return the report.

    Raises:
        LoadtestError: if nothing answers at `url`, or the slow clients cannot connect.
    """
    profile = plan.profile
    bodies = make_bodies(ids, profile)
    probe(url, bodies[0])
    whole = [Block(2 * plan.pairs * plan.window_s)]
    load = OfferedLoad(url, bodies, profile.candidates, profile.target_rps, whole)
    with offering(load) as offer:
        reports = [_slow_window(plan, url, offer.begun_s, number) for number in range(plan.pairs)]
        requests = offer.result().requests
    return _report(plan, url, requests, reports)


def _slow_window(plan: SlowPlan, url: str, begun_s: float, number: int) -> dict[str, Any]:
    """Run the slow clients in the second window of a pair; return their report."""
    time.sleep(max(0.0, begun_s + (2 * number + 1) * plan.window_s - time.monotonic()))
    host, port = read_address(url)
    to = [host, str(port), urlsplit(url).path.rstrip("/"), str(plan.num_slow)]
    command = [sys.executable, "-m", "loadtest.generator.slow_senders", *to]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, preexec_fn=die_with_parent)
    try:
        # The slow clients disconnect before the next window begins.
        time.sleep(plan.window_s - 0.5)
    finally:
        process.terminate()
    out, _ = process.communicate(timeout=10)
    report: dict[str, Any] = json.loads(out or NO_CLIENTS)
    return report


def _report(plan: SlowPlan, url: str, requests: Requests, reports: list[dict[str, Any]]) -> Report:
    connected = min(one["connected"] for one in reports)
    if connected < 0.9 * plan.num_slow:
        raise LoadtestError(f"--url {url}: only {connected} of {plan.num_slow} slow clients could connect")
    counted_s = plan.window_s - SETTLE_S
    windows = [
        measure(requests.counted_from(i * plan.window_s + SETTLE_S), counted_s) for i in range(2 * plan.pairs)
    ]
    quiet, slowed = ([one.p99_ms or float("inf") for one in windows[begin::2]] for begin in (0, 1))
    ratio = median(slowed) / median(quiet)
    failed = sum(one.errors for one in windows)
    late_ms = median(one.generator_late_ms_p99 for one in windows)
    return {
        "verdict": judge_slow_clients(ratio, failed, late_ms),
        "url": url,
        "target_rps": plan.profile.target_rps,
        "slow_clients": plan.num_slow,
        "p99_ms": {"without": [*map(rounded, quiet)], "beside": [*map(rounded, slowed)]},
        "ratio": rounded(ratio),
        "max_ratio": MAX_SLOW_RATIO,
        "errors": failed,
        "slow_ended": [one["ended"] for one in reports],
        "generator_late_ms_p99": rounded(late_ms),
        "machine": describe_machine(),
    }


def slow_summary(report: Report) -> str:
    """Return the report as a few lines for a terminal."""
    shown = {key: ", ".join(f"{ms:.1f}" for ms in values) for key, values in report["p99_ms"].items()}
    return (
        f"{report['verdict']}: {report['slow_clients']} slow clients make the p99 of {report['target_rps']:g} req/s "
        f"{report['ratio']:.2f} times as long (limit {MAX_SLOW_RATIO:g}), with {report['errors']} errors\n"
        f"  p99 without them, by window: {shown['without']} ms\n  with them: {shown['beside']} ms\n"
        f"  the generator was late by {report['generator_late_ms_p99']:.1f} ms (p99; void above {MAX_SLOW_LATE_MS:g})"
    )
