"""Admission control of one replica: refuse, shed part of, or score a request, and by when."""

from __future__ import annotations

import asyncio
import time
from math import ceil

from serve.ranking.load_shedding import TICK_S, LoadShedder

# Keep 5 ms of each deadline for encoding and sending the answer.
ANSWER_MARGIN_S = 0.005


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
        self._longest_s = 0.0
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

    def take_longest_s(self) -> float:
        """Return the longest iteration since the last call."""
        longest_s, self._longest_s = self._longest_s, 0.0
        return longest_s

    def _follow(self) -> None:
        """Schedule `_next` as the first callback of the next iteration."""
        self._is_followed, self._is_busy = True, False
        asyncio.get_running_loop().call_soon(self._next)

    def _next(self) -> None:
        now_s = asyncio.get_running_loop().time()
        self._longest_s = max(self._longest_s, now_s - self._began_s)
        self._before_s, self._began_s = self._began_s, now_s
        self._before_cpu_s, self._began_cpu_s = self._began_cpu_s, time.thread_time()
        self._is_followed = False
        if self._is_busy:
            self._follow()


class Admission:
    """Follow the load of one replica; `load_shedder` decides what the next request gets."""

    def __init__(self) -> None:
        self.load_shedder = LoadShedder()
        self._lag = LoopLag()
        self._deadline_s = 0.1

    def configure(self, *, enabled: bool, deadline_ms: int) -> None:
        """Apply new live settings; `deadline_ms` applies to requests without a deadline."""
        self.load_shedder.enabled = enabled
        self._deadline_s = deadline_ms / 1e3

    def refuses(self) -> bool:
        """Return True to refuse the current ranking before any work is done for it."""
        return self.load_shedder.refuses(self._lag.worked_s(), self._deadline_s)

    def waited_s(self) -> float:
        """Return an upper bound on the time the current request queued before its handler."""
        return self._lag.waited_s()

    def deadline(self, waited_s: float, deadline_ms: int | None) -> float:
        """Return the absolute scoring deadline on the event loop's clock.

        Args:
            waited_s: upper bound on the time the request has already queued.
            deadline_ms: the request's own deadline; None for the configured one.
        """
        within_s = self._deadline_s if deadline_ms is None else deadline_ms / 1e3
        return asyncio.get_running_loop().time() + within_s - waited_s - ANSWER_MARGIN_S - self._lag.last_s

    def num_scored(self, num_candidates: int, waited_s: float) -> int:
        """Return how many of a request's candidates the model scores."""
        return ceil(self.load_shedder.share(waited_s, self._deadline_s) * num_candidates)

    def scored(self, begun_s: float) -> None:
        """Record a request answered with its scores; `begun_s` is the loop's time at the start."""
        self.load_shedder.scored(asyncio.get_running_loop().time() - begun_s)

    def late(self, begun_s: float, deadline: float) -> None:
        """Record a request answered without scores because its deadline passed.

        The batcher may have given the request up before the deadline.
        """
        self.load_shedder.late(deadline - begun_s, self._deadline_s)

    async def run(self) -> None:
        """Update the load-shedding level every `TICK_S`, until cancelled."""
        loop = asyncio.get_running_loop()
        before_s = loop.time()
        while True:
            await asyncio.sleep(TICK_S)
            now_s = loop.time()
            self.load_shedder.tick(now_s - before_s, self._lag.take_longest_s(), self._deadline_s)
            before_s = now_s
