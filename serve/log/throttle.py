"""Throttle that limits the CPU time of background work."""

from __future__ import annotations

import time
from collections.abc import Callable

# Callback after each step of long work; it returns whether the work should continue.
OnStep = Callable[[], bool]


class CpuThrottle:
    """Callback that sleeps so that its thread uses `share()` of a core while `wanted()` is true.

    Once `wanted()` is false it does not sleep any more. A nice value would not be enough: the
    thread that commits would wait for Python's global lock while the thread that holds it is not
    scheduled.
    """

    def __init__(self, share: Callable[[], float], wanted: Callable[[], bool]) -> None:
        self._share = share
        self._wanted = wanted
        self._worked_s = time.thread_time()

    def __call__(self) -> bool:
        """Sleep in proportion to the CPU time of the last step."""
        worked_s = time.thread_time()
        if self._wanted():
            time.sleep((worked_s - self._worked_s) * (1.0 / self._share() - 1.0))
        self._worked_s = worked_s
        return self._wanted()
