"""Fault that stops the only FeatureFetch for a moment, again and again, as a busy machine does."""

from __future__ import annotations

import signal
import time
from collections import Counter

import numpy as np

from loadtest.generator.offer import OfferResult
from loadtest.measure.measure import Floats, milliseconds, percentile, rounded
from loadtest.measure.service import TIMEOUT_S
from loadtest.measure.verdict import listed
from loadtest.report.report import Report
from loadtest.scenarios.chaos.fault import Allowed, Fault, Injected
from loadtest.targets.running import REPLICA, Target, send_signal

# Lengths of the pauses, the number of pauses of each length, and the time between their starts.
LENGTHS_MS, NUM, EVERY_S = (50, 100, 200), 20, 3.0
# Requests that meet a pause of at least EXCUSED_S need no full answer. A pause of 50 ms leaves each
# request half of its deadline of 100 ms, so it excuses nothing. After a longer pause the queue may
# take AFTER times the length of the pause to pass.
EXCUSED_S, AFTER = 0.1, 2.5


class Pauses(Fault):
    """Fault that pauses a process with SIGSTOP and SIGCONT, 20 times for each length.

    Unlike the client, the load waits for late answers, because the fault tests what the service
    answers.
    """

    name, what = "pauses", "SIGSTOP the only FeatureFetch for 50, 100 and 200 ms every 3 s, 60 s each"
    allowed = Allowed(failed_share=0.0, first="none")
    # With a `hold_s` above 0, recovery counts from the end of the pauses and not from their start.
    hold_s, watch_s, timeout_s = 0.1, 5.0, TIMEOUT_S

    def inject(self, target: Target) -> None:
        """Pause the process, and record the times. A late pause does not delay later ones."""
        process = target.one(REPLICA + "FeatureFetch")
        self._pauses_s, begun_s = list[tuple[float, float]](), time.monotonic()
        for number, length_ms in enumerate(np.repeat(LENGTHS_MS, NUM), 1):
            at_s = time.monotonic()
            send_signal(process, signal.SIGSTOP)
            time.sleep(length_ms / 1000)
            send_signal(process, signal.SIGCONT)
            self._pauses_s.append((at_s, time.monotonic()))
            time.sleep(max(0.0, begun_s + number * EVERY_S - time.monotonic()))

    def measured(self, load: Injected) -> tuple[Report, list[str]]:
        """Return the numbers of the pauses of each length, and a line if they did not hold."""
        series = np.reshape(self._pauses_s, (-1, NUM, 2)) - load.zero_s
        found = [describe_pauses(load.offered, *one) for one in zip(LENGTHS_MS, series, strict=True)]
        reasons = [pauses_line(one) for one in found if not one["held"]]
        return {"pauses": found, "notes": [pauses_line(one) for one in found]}, reasons


def describe_pauses(offered: OfferResult, length_ms: int, pauses_s: Floats) -> Report:
    """Return the numbers of a series of pauses of one length.

    `pauses_s` [P, 2] has the real start and end of each of the P pauses, in seconds of the load.
    Requests belong to the series in which they were due, and failed first tries to that in which
    they ended.

    A series holds if no request fails, and all answers are full except those *inside* a pause. A
    request is inside a pause of at least 100 ms if it was in flight during the pause, or was due at
    most 2.5 times the pause's length after it. For example, a pause from 10.0 to 10.2 s excuses
    requests that were due until 10.7 s.
    """
    requests, ends_s = offered.requests, pauses_s[0, 0] + NUM * EVERY_S
    due = requests.where((requests.at_s >= pauses_s[0, 0]) & (requests.at_s < ends_s))
    inside = np.zeros(len(due.ok), dtype=bool)
    for begun_s, ended_s in pauses_s[pauses_s[:, 1] - pauses_s[:, 0] >= EXCUSED_S]:
        inside |= (due.ended_s >= begun_s) & (due.at_s <= ended_s + AFTER * (ended_s - begun_s))
    outside = due.ok & ~due.full & ~inside
    first = Counter(failure.kind for failure in offered.failed if pauses_s[0, 0] <= failure.at_s < ends_s)
    # The union counts a request once if its retry failed in the same way.
    failed = first | due.where(~due.ok).named_counts()
    found = {
        "length_ms": length_ms,
        "held": not failed and not outside.any(),
        "requests": len(due.ok),
        "full": int(due.full.sum()),
        "inside": int((due.ok & ~due.full & inside).sum()),
        "outside": int(outside.sum()),
        "refused": failed.pop("HTTP 429", 0),
        "failed": dict(failed),
        **{f"p{share * 100:g}_ms": percentile(due.latency_ms, share, due.ok) for share in (0.5, 0.99)},
        "pauses_s": pauses_s.tolist(),
    }
    return dict(rounded(found))


def pauses_line(found: Report) -> str:
    """Return the numbers of the pauses of one length as a line of text."""
    held = "held" if found["held"] else "not held"
    return (
        f"{len(found['pauses_s'])} pauses of {found['length_ms']} ms {held}: {found['requests']:,} requests, "
        f"{found['full']:,} full, {found['inside']} not full in excused times, {found['outside']} not full at "
        f"other times, {found['refused']} × 429, {listed(found['failed']) or '0'} failed, "
        f"p50 {milliseconds(found['p50_ms'])}, p99 {milliseconds(found['p99_ms'])}"
    )
