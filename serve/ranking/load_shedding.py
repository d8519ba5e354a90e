"""Load shedding: under too much load, answer some requests without scores and refuse others.

After a burst or a pause, the queue of requests passes by itself, and each request is scored if its
own deadline allows. If the queue stands, more requests come than this machine can rank. CoDel
(Nichols and Jacobson 2012) tells the two apart by the least latency of an interval: while a queue
passes, some request of the interval is quick; while a queue stands, none is.

While a queue stands, `limit` bounds the candidates that wait for their scores. Like the limiters of
Envoy and of Netflix's concurrency-limits, it adapts to what this machine can do. 25 times a second,
the limit falls if even the quickest ranking took longer than the target, and rises otherwise. This
keeps the scorers busy, and bounds the latency as well (Little 1961).

A request beyond the limit gets the popular order, which costs half as much as a ranking. At most as
many requests get it as are answered within the limit. The rest is refused unread.
"""

from __future__ import annotations

import math
from collections import deque

# Target for the least latency of an interval, as a share of the deadline. It was measured at two
# and three times the capacity of one core. With 0.2, the batches became so small that full answers
# fell by a third for seconds. With 0.3, 1.5 % of the answers came after the deadline.
TARGET_LATENCY = 0.25
# A queue stands if no request of the last TICKS ticks was quicker than the target. These are 120
# ms; CoDel takes 100 ms. With 150 ms, the first second at three times the capacity had twice as
# many late answers. The queue after a pause of 200 ms at 70 % of the capacity passes sooner than
# 120 ms.
TICK_S, TICKS = 0.04, 3
# Each request that is answered within the limit lets one beyond it be answered too. At most this
# many may be saved up.
MOST_CREDIT = 100
# Which share of the limit is lost per second at twice the target, and which share of the whole
# limit is regained per second below the target.
LOSE_PER_S, REGAIN_PER_S = 4.0, 0.5
# The limit never falls below this share, because very small batches waste the scorers' time.
MIN_SHARE = 0.05
# A caller shares the limit with the callers of the last seconds, this many.
REMEMBER_S = 5.0


class LoadShedder:
    """Limit the candidates that wait for scores while a queue stands, by observed latencies.

    `most` is how many candidates keep this process busy at once.
    """

    def __init__(self, most: int = 5_280) -> None:
        self.enabled = True
        self.most = most
        self._share = 1.0
        # The least latency since the last tick, of rankings without scores and of those with
        # scores.
        self._least_s = [math.inf, math.inf]
        # How many requests beyond the limit may still be answered.
        self.credit = MOST_CREDIT
        self._pressures: deque[float] = deque(maxlen=TICKS)

    @property
    def stands(self) -> bool:
        """Return True while a queue stands."""
        return self.enabled and self._share < 1.0

    @property
    def limit(self) -> float:
        """Return how many candidates may wait for their scores."""
        return self._share * self.most if self.stands else math.inf

    @property
    def level(self) -> float:
        """Return the share of the limit that is lost, from 0 to 1."""
        return 1.0 - self._share if self.enabled else 0.0

    def exceeded(self) -> None:
        """Record a request beyond the limit that gets the popular order."""
        self.credit = max(self.credit - 1, 0)

    def answered(self, latency_s: float, *, is_scored: bool) -> None:
        """Record the latency of a ranking within the limit; it may have come too late to score."""
        self._least_s[is_scored] = min(self._least_s[is_scored], latency_s)
        self.credit = min(self.credit + 1, MOST_CREDIT)

    def tick(self, since_s: float, deadline_s: float) -> None:
        """Adapt the limit; the last time was `since_s` ago."""
        # Rankings without scores do not wait for the scorers, so they count only if none was
        # scored.
        unscored_s, scored_s = self._least_s
        least_s = scored_s if scored_s < math.inf else unscored_s
        self._pressures.append(least_s / (TARGET_LATENCY * deadline_s) if least_s < math.inf else 0.0)
        pressure = min(self._pressures) if len(self._pressures) == TICKS else 0.0
        if pressure > 1.0:
            # A late tick must not take the whole limit at once.
            lost_s = min(since_s, 2 * TICK_S)
            self._share *= 1.0 - LOSE_PER_S * lost_s * (min(pressure, 2.0) - 1.0)
        else:
            self._share = min(self._share + REGAIN_PER_S * since_s, 1.0)
        self._share = max(self._share, MIN_SHARE)
        self._least_s = [math.inf, math.inf]
