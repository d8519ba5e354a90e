"""Admission control of one replica: score, answer by popularity or refuse a request; by when."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

from serve.ranking.load_shedding import REMEMBER_S, TICK_S, LoadShedder

# The share of each deadline by which the scores must have come. The rest is for computing, sending
# and forwarding the popular order: when scores are late, these are slow too.
SCORES_DUE = 0.75


class LoopLag:
    """Upper bound on the time that a request queued before its handler ran.

    An iteration of the event loop reads all sockets that are ready and then runs their handlers.
    The current request therefore arrived after the sockets were read in the previous iteration. The
    time since then is used as its wait, because the kernel does not report arrival times.
    Iterations are timed while requests arrive; an idle loop sleeps and is not measured.
    """

    def __init__(self) -> None:
        # When the previous iteration, and the current one, began to run handlers.
        self._before_s = 0.0
        self._began_s = 0.0
        self._is_followed = False
        # True if a request was handled in this iteration.
        self._is_busy = False
        self._before_cpu_s = 0.0
        self._began_cpu_s = 0.0

    def waited_s(self) -> float:
        """Return an upper bound on the time that the current request queued."""
        now_s = asyncio.get_running_loop().time()
        if not self._is_followed:
            self._before_s = self._began_s = now_s
            self._before_cpu_s = self._began_cpu_s = time.thread_time()
            self._follow()
        self._is_busy = True
        return now_s - self._before_s

    def worked_s(self) -> float:
        """Return the CPU time spent since the current request may have arrived."""
        self.waited_s()
        return time.thread_time() - self._before_cpu_s

    @property
    def last_s(self) -> float:
        """Duration of the last whole iteration: the expected delay of the next callback."""
        return self._began_s - self._before_s

    def _follow(self) -> None:
        """Schedule `_next` as the first callback of the next iteration."""
        self._is_followed, self._is_busy = True, False
        asyncio.get_running_loop().call_soon(self._next)

    def _next(self) -> None:
        self._before_s, self._began_s = self._began_s, asyncio.get_running_loop().time()
        self._before_cpu_s, self._began_cpu_s = self._began_cpu_s, time.thread_time()
        self._is_followed = False
        if self._is_busy:
            self._follow()


class Admission:
    """Follow the load of one replica and its callers; `load_shedder` adapts the limits."""

    def __init__(self) -> None:
        self.load_shedder = LoadShedder()
        self._lag = LoopLag()
        self._deadline_s = 0.1
        # True if every request gets the popular order.
        self._is_closed = False
        # Candidates of the last request, as the estimate for the next, which is unread.
        self._last_size = 1
        # Candidates that wait for their scores, by caller; when each was last seen.
        self._waiting: defaultdict[str, int] = defaultdict(int)
        self._seen_s: dict[str, float] = {}

    def configure(self, *, enabled: bool, deadline_ms: int, most: int, kill_switch: bool) -> None:
        """Apply new live settings; `deadline_ms` applies to requests without a deadline.

        `most` is the most candidates that may wait for their scores without any load.
        """
        self._is_closed = kill_switch
        self.load_shedder.enabled = enabled
        self.load_shedder.most = most
        self._deadline_s = deadline_ms / 1e3

    def refuses(self, caller: str) -> bool:
        """Return True to refuse the current ranking unread."""
        work_s = self._lag.worked_s()
        self._seen_s[caller] = asyncio.get_running_loop().time()
        if self._has_room(caller, self._last_size, work_s):
            return False
        return self.load_shedder.refuses(work_s, self._deadline_s, on_credit=not self._is_closed)

    def _has_room(self, caller: str, num_candidates: int, work_s: float) -> bool:
        """Return True if a caller's candidates fit the limit, or the caller's part of it.

        All callers have equal parts, and one request of each fits, however large it is. None does
        with the kill switch, or behind too much CPU work.
        """
        if self._is_closed or self.load_shedder.delays(work_s, self._deadline_s):
            return False
        limit, waiting = self.load_shedder.limit, self._waiting[caller]
        free = max(limit / max(len(self._seen_s), 1) - waiting, limit - sum(self._waiting.values()))
        return not waiting or num_candidates <= free

    @contextmanager
    def scoring(self, caller: str, num_candidates: int) -> Iterator[bool]:
        """Hold a caller's room while its candidates wait for scores; False if there is none."""
        self._last_size = num_candidates
        has_room = self._has_room(caller, num_candidates, self._lag.worked_s())
        if not has_room:
            if not self._is_closed:
                self.load_shedder.exceeded()
            yield False
            return
        self._waiting[caller] += num_candidates
        try:
            yield True
        finally:
            self._waiting[caller] -= num_candidates

    def waited_s(self) -> float:
        """Return an upper bound on the time the current request queued before its handler."""
        return self._lag.waited_s()

    def deadline(self, waited_s: float, deadline_ms: int | None) -> float:
        """Return the absolute scoring deadline on the event loop's clock.

        Args:
            waited_s: upper bound on the time the request has already queued.
            deadline_ms: the request's own deadline; None for the configured one.
        """
        scores_s = SCORES_DUE * (self._deadline_s if deadline_ms is None else deadline_ms / 1e3)
        return asyncio.get_running_loop().time() + scores_s - waited_s - self._lag.last_s

    def answered(self, arrived_s: float, *, is_scored: bool) -> None:
        """Record a request within the limit; `arrived_s` is on the event loop's clock."""
        self.load_shedder.answered(asyncio.get_running_loop().time() - arrived_s, is_scored=is_scored)

    def late(self, arrived_s: float, deadline: float) -> None:
        """Record a request answered without scores because its deadline passed.

        The batcher may have given the request up before the deadline.
        """
        self.load_shedder.late(deadline - arrived_s, self._deadline_s)

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
