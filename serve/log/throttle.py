"""Pace: how long work goes on beside what must not wait for it."""

from __future__ import annotations

import time
from collections.abc import Callable

Step = Callable[[], bool]
"""Called after each step of long work; whether the work is still wanted."""


class Pace:
    """A `Step` that rests, so that the thread's work takes `share` of a core while it is wanted, and all it can then.

    Niceness alone would not do: of one interpreter's threads, the one that commits would wait for the one put off.
    """

    def __init__(self, share: float, wanted: Callable[[], bool]) -> None:
        self._rest = 1.0 / share - 1.0  # seconds for each that was worked
        self._wanted = wanted
        self._worked_s = time.thread_time()

    def __call__(self) -> bool:
        """Rest for the step that was done."""
        worked_s = time.thread_time()
        if self._wanted():
            time.sleep((worked_s - self._worked_s) * self._rest)
        self._worked_s = worked_s
        return self._wanted()
