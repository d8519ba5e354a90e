"""Load shedding: reduce the work of each request under load, so that the p99 holds.

A continuous controller moves one number, the level, up and down with the latency of scored requests
and the loop lag. From 0 to 1, answers are `partial`: fewer and fewer of their candidates, the most
popular ones, go to the model. From 1 to 2, more and more answers are `fallback`: the popular order
at once. A request that queued too long gets the popular order at any level. A request behind too
much pending work is refused.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from statistics import fmean

# Levels at which the answers are all partial, and all fallback.
PARTIAL, FALLBACK = 1.0, 2.0
# Smallest share of its candidates that a partial answer has scored.
MIN_SHARE = 0.1
# Target for the mean latency of scored requests, as a share of the deadline. The p99 is about twice
# the mean.
TARGET_LATENCY = 0.45
# Longest time that a request may have queued and still be scored, as a share of the deadline.
# Scoring takes four event-loop iterations. An iteration takes up to 12 ms below the knee and 40 ms
# under overload; no other measure separates the two better.
MAX_WAIT = 0.15
# Most CPU time, as a share of the deadline, that may be spent on earlier requests of this iteration
# and the one before; beyond it, a request is refused. The wait is not the limit: if other processes
# take the CPU, few requests wait, and the popular order for them is cheap.
MAX_WORK = 0.15
# Double each limit while the weaker answers are not in use yet: one long iteration is not an
# overload.
GRACE = 2.0
# Use the least pressure of the last three ticks, as CoDel does (Nichols and Jacobson 2012): a burst
# passes by itself, a standing queue does not.
TICK_S, TICKS = 0.05, 3
# Levels gained a second at a latency of twice the target.
SHED_PER_S = 8.0
# Levels lost a second without load: from the last level back to full in 3 s.
RECOVER_PER_S = 0.7


class LoadShedder:
    """Controller that observes latency and queueing, and decides how much each request gets."""

    def __init__(self, draw: Callable[[], float] = random.random) -> None:
        self.level = 0.0
        self.enabled = True
        self._draw = draw
        # Latencies since the last tick.
        self._scored_s: list[float] = []
        self._pressures: deque[float] = deque(maxlen=TICKS)

    def scored(self, latency_s: float) -> None:
        """Record the latency of a ranking that was answered with its scores."""
        self._scored_s.append(latency_s)

    def late(self, after_s: float, deadline_s: float) -> None:
        """Record a ranking that was answered without its scores after `after_s`.

        Ignore timeouts of requests with very short deadlines: they say nothing about load, and they
        would hide the latency of the others.
        """
        if after_s >= TARGET_LATENCY * deadline_s:
            self._scored_s.append(after_s)

    def share(self, waited_s: float, deadline_s: float) -> float:
        """Return the share of a request's candidates that the model scores, from 0 to 1."""
        if not self.enabled:
            return 1.0
        if waited_s > MAX_WAIT * (1.0 if self.level else GRACE) * deadline_s:
            return 0.0
        if self.level <= PARTIAL:
            return 1.0 - self.level * (1.0 - MIN_SHARE)
        return 0.0 if self._draw() < self.level - PARTIAL else MIN_SHARE

    def refuses(self, worked_s: float, deadline_s: float) -> bool:
        """Return True if a request must be refused because its answer would delay others."""
        is_at_end = self.level == FALLBACK
        return self.enabled and worked_s > MAX_WORK * (1.0 if is_at_end else GRACE) * deadline_s

    def tick(self, since_s: float, max_lag_s: float, deadline_s: float) -> None:
        """Move the level, `since_s` after the last move; `max_lag_s` is the loop lag since then."""
        mean_s = fmean(self._scored_s) if self._scored_s else 0.0
        self._scored_s.clear()
        self._pressures.append(max(mean_s / TARGET_LATENCY, max_lag_s / MAX_WAIT) / deadline_s - 1.0)
        pressure = min(self._pressures)
        by = pressure * since_s * (SHED_PER_S if pressure > 0 else RECOVER_PER_S)
        self.level = min(max(self.level + by, 0.0), FALLBACK) if self.enabled else 0.0
