"""The service's clock, which a step of the system's clock moves only once the step has lasted."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

Seconds = Callable[[], float]
# Adopt a change of the system's clock at once up to this size: NTP slews by less between two calls.
TOLERANCE_S = 1.0
# Adopt a larger step once the clock has been off for so long. Until then time goes on from where it was.
SETTLE_S = 60.0


def since_boot_s() -> float:
    """Return the seconds since the machine started, suspended time included."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class WallClock:
    """Milliseconds since 1970, called once in a while (an hour apart at most). Safe to call from several threads."""

    def __init__(self, wall_s: Seconds = time.time, elapsed_s: Seconds = since_boot_s) -> None:
        self._wall_s, self._elapsed_s = wall_s, elapsed_s
        # Wall time minus elapsed time, as adopted and as last seen, and when both last agreed.
        self._offset_s = self._seen_s = wall_s() - elapsed_s()
        self._agreed_s = elapsed_s()
        self._lock = threading.Lock()
        self.num_steps = 0

    def __call__(self) -> int:
        """Return the time in milliseconds."""
        with self._lock:
            elapsed_s = self._elapsed_s()
            seen_s = self._wall_s() - elapsed_s
            self.num_steps += abs(seen_s - self._seen_s) > TOLERANCE_S
            self._seen_s = seen_s
            if abs(seen_s - self._offset_s) <= TOLERANCE_S or elapsed_s - self._agreed_s >= SETTLE_S:
                self._offset_s, self._agreed_s = seen_s, elapsed_s
            return int((elapsed_s + self._offset_s) * 1e3)
