"""Count ended requests in buckets: bounded memory however long a run is, and easy to merge."""

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

Row = Sequence[Any]
"""Name, ok and full of an outcome, latency and lateness in ms, and the number of such requests."""


def bucket_ms(ms: float) -> float:
    """Round a response time up, to 0.1 ms, or to 1 ms above a second.

    With these buckets counts are exact at a limit in whole milliseconds.
    """
    return math.ceil(ms) if ms > 1000 else math.ceil(ms * 10) / 10


class Tally(Counter[tuple[Outcome, float, float]]):
    """Number of ended requests by outcome, latency and lateness."""

    def keep(self, ended: Ended) -> None:
        """Count a request."""
        self[ended.outcome, bucket_ms(ended.latency_ms), bucket_ms(ended.late_ms)] += 1

    def take(self) -> list[Row]:
        """Return the counts as rows for another process, and begin anew."""
        rows: list[Row] = [(*outcome, *took_ms, num) for (outcome, *took_ms), num in self.items()]
        self.clear()
        return rows

    def add(self, rows: Iterable[Row]) -> None:
        """Add the rows that another process took."""
        for name, ok, full, latency_ms, late_ms, num in rows:
            self[Outcome(name, ok, full), latency_ms, late_ms] += num

    def judged(self, slo: Slo) -> tuple[Measurement | None, Verdict, list[str]]:
        """Compare all requests with an SLO; void, without a measurement, if there are none.

        The measurement has no rates.
        """
        if not self:
            return None, "void", ["no request ended; check the host, the users and the run time"]
        log = RequestLog()
        for outcome, latency_ms, late_ms in self:
            log.add(0.0, late_ms, latency_ms, outcome, 0)
        every = np.repeat(np.arange(len(self)), list(self.values()))
        measured = measure(log.requests().where(every), math.inf)
        return measured, *judge(measured, slo)
