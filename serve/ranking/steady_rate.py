"""The rate of rankings that a replica had for minutes, to notice when they stop."""

from __future__ import annotations

from collections import deque

MINUTE_S = 60.0
# A rate counts only if it lasted this many minutes. A shorter burst, such as a load test of a
# minute, may end without a warning.
LASTS_MIN = 5
# The end of a rate is reported for this many minutes, as by the alert TabrankNoTraffic.
KEPT_MIN = 60


class SteadyRate:
    """Counter of rankings by the minute; times are monotonic."""

    def __init__(self, now_s: float) -> None:
        # The last count is that of the current minute.
        self._counts = deque([0], KEPT_MIN + 1)
        self._minute_s = now_s

    def add(self) -> None:
        """Count a ranking."""
        self._counts[-1] += 1

    def per_s(self, now_s: float) -> float:
        """Return the highest rate that five minutes in a row all had, within the last hour."""
        while now_s - self._minute_s >= MINUTE_S:
            self._minute_s += MINUTE_S
            self._counts.append(0)
        counts = list(self._counts)[:-1]
        runs = zip(*(counts[first:] for first in range(LASTS_MIN)), strict=False)
        return max(map(min, runs), default=0) / MINUTE_S
