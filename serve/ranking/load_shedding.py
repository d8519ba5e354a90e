"""Load shedding: a queue that stands gets fewer scores; a burst is left to the deadlines.

After a burst or a pause, a queue passes by itself, and each of its requests is scored if its own
deadline allows. A queue that stands means that more requests come than this machine can rank. CoDel
(Nichols and Jacobson 2012) tells the two apart by the least latency of an interval: while a queue
passes, some request of the interval is quick; while a queue stands, none is.

While a queue stands, `limit` bounds the candidates that wait for their scores. Like the limiters of
Envoy and of Netflix's concurrency-limits, it adapts to what this machine can do: 25 times a second
it falls while even the quickest ranking takes longer than the target, and rises otherwise. It keeps
the scorers busy, and bounds the latency as well (Little 1961). A request beyond the limit gets the
popular order; at most as many do as are answered within the limit, because they cost half as much.
The rest is refused unread.
"""

from __future__ import annotations

import math
from collections import deque

# Target for the least latency of an interval, as a share of the deadline. Measured at two and three
# times the knee of one core: with 0.2 the batches became so small that full answers fell by a third
# for seconds; with 0.3, 1.5 % of the answers came after the deadline.
TARGET_LATENCY = 0.25
# A queue stands if no request of the last three ticks was quicker than the target. These are 120
# ms; CoDel takes 100. With 150 the first second of three times the knee had twice as many late
# answers. The queue of a pause of 200 ms at 70 % of the knee passes sooner.
TICK_S, TICKS = 0.04, 3
# Each request within the limit lets one in excess be answered, at most this many in a row.
MOST_CREDIT = 100
# Share lost a second at twice the target, and share of the whole regained a second below it.
LOSE_PER_S, REGAIN_PER_S = 4.0, 0.5
# Always let this share of the most candidates wait: very small batches waste the scorers' time.
MIN_SHARE = 0.05
# A caller shares the limit with the callers of the last seconds.
REMEMBER_S = 5.0


class LoadShedder:
    """Limit what waits for scores while a queue stands, by the latencies that it observes.

    `most` is the most candidates for which this process has use at once.
    """

    def __init__(self, most: int = 5_280) -> None:
        self.enabled = True
        self.most = most
        self._share = 1.0
        # Least latencies since the last tick, of rankings without scores and with scores.
        self._least_s = [math.inf, math.inf]
        # So many requests in excess may be answered yet.
        self.credit = MOST_CREDIT
        self._pressures: deque[float] = deque(maxlen=TICKS)

    @property
    def stands(self) -> bool:
        """Return True while a queue stands."""
        return self.enabled and self._share < 1.0

    @property
    def limit(self) -> float:
        """Return the most candidates that may wait for their scores."""
        return self._share * self.most if self.stands else math.inf

    @property
    def level(self) -> float:
        """Return the lost share of the limit, from 0 to 1."""
        return 1.0 - self._share if self.enabled else 0.0

    def exceeded(self) -> None:
        """Record a request in excess that gets the popular order."""
        self.credit = max(self.credit - 1, 0)

    def answered(self, latency_s: float, *, is_scored: bool) -> None:
        """Record the latency of a ranking within the limit, scored or too late for that."""
        self._least_s[is_scored] = min(self._least_s[is_scored], latency_s)
        self.credit = min(self.credit + 1, MOST_CREDIT)

    def tick(self, since_s: float, deadline_s: float) -> None:
        """Adapt the limit, `since_s` after the last time."""
        # Rankings without scores pass by the scorers' queue: they tell something only where none
        # are scored.
        unscored_s, scored_s = self._least_s
        least_s = scored_s if scored_s < math.inf else unscored_s
        self._pressures.append(least_s / (TARGET_LATENCY * deadline_s) if least_s < math.inf else 0.0)
        pressure = min(self._pressures) if len(self._pressures) == TICKS else 0.0
        if pressure > 1.0:
            # A late tick must not take all at once.
            lost_s = min(since_s, 2 * TICK_S)
            self._share *= 1.0 - LOSE_PER_S * lost_s * (min(pressure, 2.0) - 1.0)
        else:
            self._share = min(self._share + REGAIN_PER_S * since_s, 1.0)
        self._share = max(self._share, MIN_SHARE)
        self._least_s = [math.inf, math.inf]
