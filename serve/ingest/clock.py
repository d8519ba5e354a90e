"""Clock of the service, which follows a step of the system clock only after a delay."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

log = logging.getLogger("tabrank")
Seconds = Callable[[], float]
# Changes of the system clock up to this size are followed at once. NTP slews by less between two
# calls.
TOLERANCE_S = 1.0
# A larger step is followed once it has lasted this long, and ignored until then.
SETTLE_S = 60.0
# For this long after such a step, nothing is deleted because of its age. This is time to correct a
# wrong clock: what is deleted is lost for good, and to delete it an hour late does no harm.
CONFIRM_S = 3_600.0
# Steps up to this size cause no early deletion, because an ended candidate is kept for an hour
# anyway.
HARMLESS_S = 60.0


def since_boot_s() -> float:
    """Return the seconds since the machine started, suspended time included."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class WallClock:
    """Thread-safe clock in milliseconds since 1970; call it every few seconds.

    `is_settled` is False for an hour after the clock followed a step above `HARMLESS_S`. The system
    clock may be wrong then, so delete nothing because of its age. The first reading counts as
    right.
    """

    def __init__(self, wall_s: Seconds = time.time, elapsed_s: Seconds = since_boot_s) -> None:
        self._wall_s, self._elapsed_s = wall_s, elapsed_s
        # Wall time minus elapsed time: the value in use, the last reading, and the last agreement.
        self._offset_s = self._seen_s = wall_s() - elapsed_s()
        self._agreed_s = elapsed_s()
        # When the clock last followed a step that is not harmless. It starts as long ago.
        self._stepped_s, self.is_settled = -CONFIRM_S, True
        self._lock = threading.Lock()
        self.num_steps = 0

    def __call__(self) -> int:
        """Return the time in milliseconds."""
        with self._lock:
            elapsed_s = self._elapsed_s()
            seen_s = self._wall_s() - elapsed_s
            self.num_steps += abs(seen_s - self._seen_s) > TOLERANCE_S
            self._seen_s = seen_s
            step_s = seen_s - self._offset_s
            if abs(step_s) <= TOLERANCE_S or elapsed_s - self._agreed_s >= SETTLE_S:
                self._offset_s, self._agreed_s = seen_s, elapsed_s
                if abs(step_s) > HARMLESS_S:
                    self._stepped_s = elapsed_s
                    log.warning(
                        "the system clock stepped by %+.0f s; check it. Nothing expires for an hour", step_s
                    )
            self.is_settled = elapsed_s - self._stepped_s >= CONFIRM_S
            return int((elapsed_s + self._offset_s) * 1e3)
