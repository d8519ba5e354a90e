"""Whether, and when, a failed try is made once more. Pure: no I/O, and the clock and the dice are given."""

from __future__ import annotations

import random as dice
import threading
import time
from collections.abc import Callable

RETRIED = (429, 503)  # by which the service says that it did not do the work; any other answer stands
JITTER_S = 0.05  # clients that failed together do not come back together
LEAST_S = 0.01  # a retry with less than this left could not be answered in time
FLOOR_PER_S = 1.0  # retries a client may make however few requests it sends
SAVED = 100.0  # retries at most at once: more than one dead replica of two has in flight at 900 requests/s
INITIALLY = 10.0


class Retries:
    """One retry a request at most, and over all requests a share of them: the budget.

    The budget is a bucket of tokens. Each first try earns `budget` of one, each second one earns `FLOOR_PER_S`, a
    retry costs one. So a client whose every request fails adds a tenth to the load of a service in trouble, not as
    much again. `budget` 0 means no retry at all. One object for one client; threads may share it.
    """

    def __init__(
        self,
        budget: float = 0.1,
        *,
        random: Callable[[], float] = dice.random,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if not 0.0 <= budget <= 1.0:
            raise ValueError(f"budget is {budget}; it is the share of requests retried, from 0 to 1")
        self._budget = budget
        self._floor_per_s = FLOOR_PER_S if budget else 0.0
        self._tokens = INITIALLY if budget else 0.0
        self._random, self._clock = random, clock
        self._seen_s = clock()
        self._lock = threading.Lock()

    def sent(self) -> None:
        """Count a first try."""
        with self._lock:
            self._earn(self._budget)

    def delay_s(self, status: int | None, left_s: float, retry_after_s: float | None = None) -> float | None:
        """How long to wait before the one retry of a try that ended so, with `left_s` until its deadline.

        `status` None is a connection that failed before an answer. The answer None: do not retry, because this
        status is final, the deadline (or what `Retry-After` asks for) leaves no time, or the budget is spent.
        """
        if status is not None and status not in RETRIED:
            return None
        asked_s = max(retry_after_s or 0.0, 0.0)
        room_s = left_s - LEAST_S - asked_s
        if not room_s >= 0.0 or not self._spend():
            return None
        return asked_s + self._random() * min(JITTER_S, room_s)

    def _spend(self) -> bool:
        with self._lock:
            self._earn(0.0)
            if self._tokens < 1.0:
                return False
            self._tokens -= 1.0
            return True

    def _earn(self, tokens: float) -> None:
        now_s = self._clock()
        tokens += self._floor_per_s * max(now_s - self._seen_s, 0.0)
        self._seen_s = now_s
        self._tokens = min(self._tokens + tokens, SAVED)
