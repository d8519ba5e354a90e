"""Wait for a condition, or look at something periodically while a block runs.

Both ignore a look at a cluster that fails, because the cluster may be starting or stopping.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

from loadtest.measure.cluster import UNREADABLE_ERRORS

POLL_S = 0.1


def within(limit_s: float, holds: Callable[[], bool]) -> float | None:
    """Wait until `holds` returns True; return the seconds that this took.

    The result is None if it is not so within `limit_s` seconds. An unreadable cluster counts as
    False.
    """
    begun = time.monotonic()
    while (took := time.monotonic() - begun) < limit_s:
        with contextlib.suppress(*UNREADABLE_ERRORS):
            if holds():
                return round(took, 1)
        time.sleep(POLL_S)
    return None


@contextlib.contextmanager
def repeated(look: Callable[[], None], period_s: float) -> Iterator[None]:
    """Call `look` every `period_s` seconds, in a thread, while the block runs."""
    over = threading.Event()

    def run() -> None:
        while not over.wait(period_s):
            with contextlib.suppress(*UNREADABLE_ERRORS):
                look()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
