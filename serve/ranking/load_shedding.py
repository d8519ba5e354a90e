"""Load shedding: limit the candidates that wait for scores; give the excess less than scores.

`limit` is the number of candidates that may wait for their scores at once. Like the limiters of
Envoy and of Netflix's concurrency-limits, it adapts to what this machine can do: 20 times a second
it falls while the latency of scored requests is above its target, and rises below it. A full limit
keeps the scorers busy, and bounds the latency as well (Little 1961).

A request beyond the limit, or behind too much work of this process, is in excess. It gets the
popular order, or is refused unread. At most as many get the popular order as are answered within
the limit: they cost half as much, so the model keeps most of the CPU time.
"""

from __future__ import annotations

from collections import deque
from statistics import fmean

# Target for the mean latency of scored requests, as a share of the deadline. The p99 is about twice
# the mean, and sending the answer comes on top.
TARGET_LATENCY = 0.3
# A request behind this much CPU time, as a share of the deadline, is in excess; behind so much
# more, it is refused. A ranking waits for about four iterations of the event loop.
MOST_WORK, MORE_WORK = 0.1, 0.07
# While the limit is whole, long iterations are forgiven.
FORGIVEN_WORK = 0.2
# Each request within the limit lets one in excess be answered, at most this many in a row.
MOST_CREDIT = 100
# Use the least pressure of the last three ticks, as CoDel does (Nichols and Jacobson 2012): a burst
# passes by itself, a standing queue does not.
TICK_S, TICKS = 0.05, 3
# Share lost a second at twice the target, and share of the whole regained a second below it.
LOSE_PER_S, REGAIN_PER_S = 4.0, 0.5
# Always let this share of the most candidates wait: very small batches waste the scorers' time.
MIN_SHARE = 0.05
# A caller shares the limit with the callers of the last seconds.
REMEMBER_S = 5.0


class LoadShedder:
    """Limit what waits for scores, by the latencies that it observes.

    `most` is the most candidates that may wait without any load.
    """

    def __init__(self, most: int = 5_280) -> None:
        self.enabled = True
        self.most = most
        self._share = 1.0
        # Latencies since the last tick.
        self._scored_s: list[float] = []
        self._credit = MOST_CREDIT
        self._pressures: deque[float] = deque(maxlen=TICKS)

    @property
    def limit(self) -> float:
        """Return the most candidates that may wait for their scores."""
        return self._share * self.most if self.enabled else float("inf")

    @property
    def level(self) -> float:
        """Return the lost share of the limit, from 0 to 1."""
        return 1.0 - self._share if self.enabled else 0.0

    @property
    def _most_work(self) -> float:
        return FORGIVEN_WORK if self._share == 1.0 else MOST_WORK

    def delays(self, work_s: float, deadline_s: float) -> bool:
        """Return True if a request behind `work_s` of CPU time is in excess, whatever the limit."""
        return self.enabled and work_s > self._most_work * deadline_s

    def refuses(self, work_s: float, deadline_s: float, *, on_credit: bool) -> bool:
        """Return True to refuse a request in excess that is behind `work_s` of CPU time.

        `on_credit`: its answer is paid for by one within the limit.
        """
        too_much = work_s > (self._most_work + MORE_WORK) * deadline_s
        return self.enabled and (too_much or (on_credit and self._credit < 1))

    def exceeded(self) -> None:
        """Record a request in excess that gets the popular order."""
        self._credit = max(self._credit - 1, 0)

    def answered(self, latency_s: float, *, is_scored: bool) -> None:
        """Record the latency of a ranking within the limit; without scores it says nothing."""
        if is_scored:
            self._scored_s.append(latency_s)
        self._credit = min(self._credit + 1, MOST_CREDIT)

    def late(self, after_s: float, deadline_s: float) -> None:
        """Record a ranking that was answered without its scores after `after_s`.

        Ignore timeouts of requests with very short deadlines: they say nothing about load, and they
        would hide the latency of the others.
        """
        if after_s >= TARGET_LATENCY * deadline_s:
            self._scored_s.append(after_s)

    def tick(self, since_s: float, deadline_s: float) -> None:
        """Adapt the limit, `since_s` after the last time."""
        mean_s = fmean(self._scored_s) if self._scored_s else 0.0
        self._pressures.append(mean_s / (TARGET_LATENCY * deadline_s))
        pressure = min(self._pressures)
        if pressure > 1.0:
            self._share *= max(1.0 - LOSE_PER_S * since_s * (min(pressure, 2.0) - 1.0), 0.0)
        else:
            self._share = min(self._share + REGAIN_PER_S * since_s, 1.0)
        self._share = max(self._share, MIN_SHARE)
        self._scored_s.clear()
