"""Count ended requests in buckets.

Unlike a log of each request, the counts of a long run take little memory, and those of several
processes are easy to add.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from loadtest.measure.measure import Measurement, RequestLog, measure
from loadtest.measure.service import Ended, Outcome
from loadtest.measure.verdict import Verdict, judge
from loadtest.workload.profiles import Slo

# The fields `name`, `ok` and `full` of an outcome, the latency and the lateness in ms, and the
# number of such requests.
Row = Sequence[Any]


def bucket_ms(ms: float) -> float:
    """Round a time up to a multiple of 0.1 ms, or of 1 ms if it is above a second.

    Because times are rounded up, the number of requests within a limit of whole milliseconds is
    exact: 99.93 ms becomes 100.0, and 100.02 ms becomes 100.1.
    """
    return math.ceil(ms) if ms > 1000 else math.ceil(ms * 10) / 10


class Tally(Counter[tuple[Outcome, float, float]]):
    """Number of ended requests by outcome, latency and lateness, both in rounded ms."""

    def keep(self, ended: Ended) -> None:
        """Count a request."""
        self[ended.outcome, bucket_ms(ended.latency_ms), bucket_ms(ended.late_ms)] += 1

    def take(self) -> list[Row]:
        """Return the counts as rows for another process, and start again from 0."""
        rows: list[Row] = [(*outcome, *took_ms, num) for (outcome, *took_ms), num in self.items()]
        self.clear()
        return rows

    def add(self, rows: Iterable[Row]) -> None:
        """Add the rows that another process took."""
        for name, ok, full, latency_ms, late_ms, num in rows:
            self[Outcome(name, ok, full), latency_ms, late_ms] += num

    def judged(self, slo: Slo) -> tuple[Measurement | None, Verdict, list[str]]:
        """Compare all requests with an SLO; return the measurement, the verdict and its reasons.

        Without a request there is no measurement, and the verdict is void. The rates of the
        measurement are 0, because a tally does not know how long the run took.
        """
        if not self:
            return None, "void", ["no request ended; check --host, --users and --run-time"]
        log = RequestLog()
        for outcome, latency_ms, late_ms in self:
            log.add(0.0, late_ms, latency_ms, outcome, 0)
        every = np.repeat(np.arange(len(self)), list(self.values()))
        measured = measure(log.requests().where(every), math.inf)
        return measured, *judge(measured, slo)
