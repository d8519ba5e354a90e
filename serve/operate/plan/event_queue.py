"""Event queue of the simulation: call functions in the order of simulated time."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from itertools import count
from typing import Any


class EventQueue:
    """Queue of calls by time; `now_s` is the time of the current call."""

    def __init__(self, now_s: float) -> None:
        self.now_s = now_s
        # Calls of the same time run in the order in which they were added.
        self._next = count()
        self._due: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []

    def at(self, when_s: float, call: Callable[..., None], *arguments: Any) -> None:
        """Add a call with these arguments; a call due in the past runs next."""
        heapq.heappush(self._due, (when_s, next(self._next), call, arguments))

    def run_until(self, end_s: float) -> None:
        """Run the calls due up to and including `end_s`, with those that they add for that time."""
        due = self._due
        while due and due[0][0] <= end_s:
            when_s, _, call, arguments = heapq.heappop(due)
            if when_s > self.now_s:
                self.now_s = when_s
            call(*arguments)
        self.now_s = end_s
