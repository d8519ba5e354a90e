"""Simulated time: what happens when, in order."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from itertools import count
from typing import Any


class Agenda:
    """Calls things at their times. `now_s` is the time of what is being called."""

    def __init__(self, now_s: float) -> None:
        self.now_s = now_s
        self._next = count()  # those of one time go in the order in which they were put down
        self._due: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []

    def at(self, when_s: float, call: Callable[..., None], *arguments: Any) -> None:
        """Have something called, with these arguments; what is due in the past is called next."""
        heapq.heappush(self._due, (when_s, next(self._next), call, arguments))

    def run_until(self, end_s: float) -> None:
        """Call what is due up to and at `end_s`, and what that puts down for before it."""
        due = self._due
        while due and due[0][0] <= end_s:
            when_s, _, call, arguments = heapq.heappop(due)
            if when_s > self.now_s:
                self.now_s = when_s
            call(*arguments)
        self.now_s = end_s
