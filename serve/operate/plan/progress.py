"""Report the progress of a plan every few seconds: a trace of a day takes minutes."""

from __future__ import annotations

import time
from collections.abc import Callable

EVERY_S = 3.0


class ProgressReporter:
    """Reporter of the finished share of several simulations, at most once every `EVERY_S`."""

    def __init__(
        self, log: Callable[[str], None], num: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._log, self._num, self._clock = log, num, clock
        self._logged_s = clock()

    def of(self, i: int) -> Callable[[float], None]:
        """Return the callback to which simulation `i`, counted from 0, reports its own share."""

        def report(share: float) -> None:
            now_s = self._clock()
            if now_s - self._logged_s >= EVERY_S:
                self._logged_s = now_s
                self._log(f"{(i + share) / self._num:.0%} simulated")

        return report
