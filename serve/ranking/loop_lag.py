"""The turns of the event loop: how long a request may have waited before anybody saw it.

A turn reads all sockets that are ready, and then runs what that gave. So a request that runs now came after the sockets
were read in the turn before, which bounds what it has waited; the kernel tells no time of arrival.
"""

from __future__ import annotations

import asyncio
import time


class Turns:
    """Follows the turns while requests come; without any the loop sleeps, and nobody waits for it."""

    def __init__(self) -> None:
        self._before_s = 0.0  # when the turn before this one began to run what had come
        self._began_s = 0.0  # and this one
        self._is_followed = False
        self._is_busy = False  # a request was seen in this turn
        self._longest_s = 0.0
        self._before_cpu_s = 0.0
        self._began_cpu_s = 0.0

    def waited_s(self) -> float:
        """What the request that runs now has waited at most."""
        now_s = asyncio.get_running_loop().time()
        if not self._is_followed:
            self._before_s = self._began_s = now_s
            self._before_cpu_s = self._began_cpu_s = time.thread_time()
            self._follow()
        self._is_busy = True
        return now_s - self._before_s

    def worked_s(self) -> float:
        """The CPU time that went into what came before the request that runs now, since it may have come."""
        self.waited_s()
        return time.thread_time() - self._before_cpu_s

    @property
    def last_s(self) -> float:
        """How long the last whole turn was: what is due in this one is done so much later."""
        return self._began_s - self._before_s

    def take_longest_s(self) -> float:
        """The longest turn since the last call."""
        longest_s, self._longest_s = self._longest_s, 0.0
        return longest_s

    def _follow(self) -> None:
        """What is called soon is the first thing that the next turn runs."""
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
