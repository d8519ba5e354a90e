"""Event loop in virtual time. Its clock jumps to the next timer, so tests do not wait."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any


class _NoWait(selectors.SelectSelector):
    """Selector that, instead of waiting, moves the clock by the time that the loop would wait."""

    now_s = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise RuntimeError("the loop would wait for ever: no task is ready and no timer is set")
        self.now_s += max(timeout, 0.0)
        return super().select(0)


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """Loop for code that waits for timers only. Its time does not pass for sockets or threads."""

    def __init__(self) -> None:
        self._selector_in_virtual_time = _NoWait()
        super().__init__(self._selector_in_virtual_time)

    def time(self) -> float:
        """Return the virtual time in seconds; it begins at 0."""
        return self._selector_in_virtual_time.now_s

    def hold_up(self, seconds: float) -> None:
        """Let time pass while nothing runs, as if work blocked the loop."""
        self._selector_in_virtual_time.now_s += seconds


def run(main: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine as `asyncio.run` does, in virtual time."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(main)


def hold_up(seconds: float) -> None:
    """Let time pass in the running loop, as if work blocked it."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualTimeLoop)
    loop.hold_up(seconds)
