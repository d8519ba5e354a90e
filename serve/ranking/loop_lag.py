"""Event-loop lag: an upper bound on the time a request queued before its handler ran.

An iteration of the event loop reads all sockets that are ready and then runs their handlers. The
current request therefore arrived after the sockets were read in the previous iteration. The time
since then is used as its wait, because the kernel does not report arrival times.
"""

from __future__ import annotations

import asyncio
import time


class LoopLag:
    """Time event-loop iterations while requests arrive; an idle loop sleeps and is not measured."""

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
