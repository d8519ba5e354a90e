"""How far a plan is: a line every few seconds, for a trace of a day takes minutes."""

from __future__ import annotations

import time
from collections.abc import Callable

EVERY_S = 3.0


class Progress:
    """Tells the share of several simulations that is done, not more often than every `EVERY_S`."""

    def __init__(
        self, say: Callable[[str], None], num: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._say, self._num, self._clock = say, num, clock
        self._said_s = clock()

    def of(self, i: int) -> Callable[[float], None]:
        """What simulation `i`, from 0 on, is to tell its own share."""

        def told(share: float) -> None:
            now_s = self._clock()
            if now_s - self._said_s >= EVERY_S:
                self._said_s = now_s
                self._say(f"{(i + share) / self._num:.0%} simulated")

        return told
