"""Admission control of a replica: score a request, answer it by popularity, or refuse it (429).

A request's age decides by when it must have its scores. HAProxy stamps each request with the time
at which it came, because the kernel does not tell a process how long a request waited in a socket.

Others refuse with 429 too: `serve/http/auth.py` a key above its rate, `serve/runtime/fast_path.py`
a request beyond `max_ongoing_requests`, and `serve/ranking/record_intake.py` records beyond those
that may wait.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

from serve.contract.errors import RequestError
from serve.ranking.load_shedding import REMEMBER_S, TARGET_LATENCY, TICK_S, LoadShedder

# Scores must have come by this share of the deadline, less an iteration of the event loop, by which
# the timer may be late. The rest of the time is for computing and sending the popular order.
SCORES_DUE = 0.9

# The header in which HAProxy states its host, and its clock in microseconds when a request came.
STAMP = b"x-arrived"
# Only stamps of this host count: clocks of other hosts may differ by more than a deadline.
HERE = socket.gethostname().encode() + b" "


def overloaded() -> RequestError:
    """Return the refusal of a request that an overloaded replica leaves unread."""
    return RequestError(429, "busy", "server overloaded; retry later", retry_after_s=1)


class LoopLag:
    """Upper bound on the time that a request queued before its handler ran.

    An iteration of the event loop reads all sockets that are ready and then runs their handlers.
    The current request therefore arrived after the sockets were read in the previous iteration. The
    time since then is the bound for a request without a stamp.

    Iterations are timed while requests arrive; an idle loop sleeps and is not measured.
    """

    def __init__(self) -> None:
        # When the previous iteration, and the current one, began to run handlers.
        self._before_s = 0.0
        self._began_s = 0.0
        self._is_followed = False
        # True if a request was handled in this iteration.
        self._is_busy = False
        # Durations of the last two whole iterations.
        self._lasted_s = (0.0, 0.0)

    def waited_s(self) -> float:
        """Return an upper bound on the time that the current request queued."""
        now_s = asyncio.get_running_loop().time()
        if not self._is_followed:
            self._before_s = self._began_s = now_s
            self._lasted_s = (0.0, 0.0)
            self._follow()
        self._is_busy = True
        return now_s - self._before_s

    @property
    def last_s(self) -> float:
        """Duration of an iteration, which is the expected delay of the next callback.

        The shorter one of the last two counts, because a pause of the process lengthens only one.
        """
        return min(self._lasted_s)

    def _follow(self) -> None:
        """Schedule `_next` as the first callback of the next iteration."""
        self._is_followed, self._is_busy = True, False
        asyncio.get_running_loop().call_soon(self._next)

    def _next(self) -> None:
        self._before_s, self._began_s = self._began_s, asyncio.get_running_loop().time()
        self._lasted_s = (self._lasted_s[1], self._began_s - self._before_s)
        self._is_followed = False
        if self._is_busy:
            self._follow()


class Admission:
    """Decide about requests by the load of one replica and its callers; `load_shedder` adapts."""

    def __init__(self) -> None:
        self.load_shedder = LoadShedder()
        self._lag = LoopLag()
        self._deadline_s = 0.1
        # Candidates of the last request. They are the estimate for the next one, which is unread.
        self._last_size = 1
        # Candidates that wait for their answers, by caller, and when each caller was last seen.
        self._waiting: defaultdict[str, int] = defaultdict(int)
        self._seen_s: dict[str, float] = {}

    def configure(self, *, enabled: bool, deadline_ms: int, most: int) -> None:
        """Apply new live settings; `deadline_ms` applies to requests without a deadline.

        `most` is how many candidates may wait for their scores while the limit is not lowered.
        """
        self.load_shedder.enabled = enabled
        self.load_shedder.most = most
        self._deadline_s = deadline_ms / 1e3

    def arrived_s(self, stamp: bytes = b"") -> float:
        """Return when the current request came, on the event loop's clock.

        `stamp` is the value of its header. Without a stamp of this host, the earliest possible time
        counts.
        """
        waited_s = self._lag.waited_s()
        came_us = stamp[len(HERE) :]
        if stamp.startswith(HERE) and came_us.isdigit() and len(came_us) < 18:
            # The clock may have been set back.
            waited_s = max(time.time() - int(came_us) / 1e6, 0.0)
        return asyncio.get_running_loop().time() - waited_s

    def refuses(self, caller: str, arrived_s: float) -> bool:
        """Return True if the current ranking is to be refused unread, because a queue stands."""
        now_s = asyncio.get_running_loop().time()
        self._seen_s[caller] = now_s
        if not self.load_shedder.stands:
            return False
        # This request is of the older part of the queue. To rank it would make those after it as
        # late.
        if now_s - arrived_s > TARGET_LATENCY * self._deadline_s:
            return True
        return self.load_shedder.credit < 1 and not self._has_room(caller, self._last_size)

    def _has_room(self, caller: str, num_candidates: int) -> bool:
        """Return True if a caller's candidates fit the limit, or the caller's part of it.

        All callers have equal parts. One request of each caller fits, however large it is.
        """
        limit, waiting = self.load_shedder.limit, self._waiting[caller]
        free = max(limit / max(len(self._seen_s), 1) - waiting, limit - sum(self._waiting.values()))
        return not waiting or num_candidates <= free

    @contextmanager
    def room(self, caller: str, num_candidates: int) -> Iterator[bool]:
        """Hold room for a caller's candidates while they wait; yield False if there is none."""
        self._last_size = num_candidates
        if not self._has_room(caller, num_candidates):
            self.load_shedder.exceeded()
            yield False
            return
        self._waiting[caller] += num_candidates
        try:
            yield True
        finally:
            self._waiting[caller] -= num_candidates

    def deadline(self, arrived_s: float, deadline_ms: int | None) -> float:
        """Return by when a request must have its scores, on the event loop's clock.

        `deadline_ms` is the request's own deadline; None for the configured one.
        """
        scores_s = SCORES_DUE * (self._deadline_s if deadline_ms is None else deadline_ms / 1e3)
        return arrived_s + scores_s - self._lag.last_s

    def answered(self, arrived_s: float, *, is_scored: bool, is_late: bool) -> None:
        """Record a request within the limit; `arrived_s` is on the event loop's clock.

        `is_late` means that it had no scores in time. A request whose own deadline was very short
        says nothing about the load.
        """
        latency_s = asyncio.get_running_loop().time() - arrived_s
        if not is_late or latency_s >= TARGET_LATENCY * self._deadline_s:
            self.load_shedder.answered(latency_s, is_scored=is_scored or is_late)

    async def run(self) -> None:
        """Adapt the limits every `TICK_S`, until cancelled."""
        loop = asyncio.get_running_loop()
        before_s = loop.time()
        while True:
            await asyncio.sleep(TICK_S)
            now_s = loop.time()
            self.load_shedder.tick(now_s - before_s, self._deadline_s)
            self._seen_s = {name: at_s for name, at_s in self._seen_s.items() if now_s - at_s < REMEMBER_S}
            self._waiting = defaultdict(int, {name: n for name, n in self._waiting.items() if n})
            before_s = now_s
