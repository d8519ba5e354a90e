"""Pure retry policy; the clock and the random generator are injected."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from random import SystemRandom

# With these statuses the service did not do the work; any other answer is final.
RETRIED = (429, 503)
# Spread the retries of clients that failed at the same time, even if all of them call
# `random.seed(1)`.
JITTER_S = 0.05
draw = SystemRandom().random
# A retry with less time left could not be answered in time.
MIN_LEFT_S = 0.01
# Retries per request that a client may make, and per second with any number of requests.
BUDGET = 0.1
FLOOR_PER_S = 1.0
# Most saved retries: more than the requests in flight to one dead replica of two at 900 requests/s.
MAX_TOKENS = 100.0
INITIAL_TOKENS = 10.0


class Retries:
    """Retry budget: at most one retry per request, and a limited share of all requests.

    The budget is a token bucket: a first attempt adds `BUDGET` tokens, each second adds
    `FLOOR_PER_S`, and a retry takes one. If every request fails, a client therefore adds a tenth to
    the load of the service instead of doubling it. Use one object per client; it is thread-safe.
    """

    def __init__(
        self, *, random: Callable[[], float] = draw, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._tokens = INITIAL_TOKENS
        self._random, self._clock = random, clock
        self._seen_s = clock()
        self._lock = threading.Lock()

    def sent(self) -> None:
        """Count a first attempt."""
        with self._lock:
            self._earn(BUDGET)

    def delay_s(self, status: int | None, left_s: float, retry_after_s: float | None = None) -> float | None:
        """Return the seconds to wait before the retry of a failed attempt; None: do not retry.

        `status` None means a failed connection; `left_s` is the time until the deadline. The result
        is None if the status is final, if the deadline or `Retry-After` leaves no time, or if the
        budget is spent.
        """
        if status is not None and status not in RETRIED:
            return None
        asked_s = max(retry_after_s or 0.0, 0.0)
        room_s = left_s - MIN_LEFT_S - asked_s
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
        tokens += FLOOR_PER_S * max(now_s - self._seen_s, 0.0)
        self._seen_s = now_s
        self._tokens = min(self._tokens + tokens, MAX_TOKENS)
