"""Read the service for all browsers at once, and keep the numbers of the last ten minutes."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import msgspec

from serve.contract.errors import TabrankError
from serve.operate.status.causes import DOWN
from serve.operate.status.report import Report, Traffic, unread

log = logging.getLogger("tabrank")
# Replicas report their counters every 2 s; reading more often shows nothing new.
EVERY_S = 2.0
HISTORY_S = 600.0
# A read takes 0.1 s. A longer one is shown as missing, so that a service that hangs is seen in 5 s.
OVERDUE_S = 2.5
OVERDUE = "The service has not answered within 2.5 s."
FAILED = "The console could not read the service; the reason is in the console's own output."
POINT = ("rate_rps", "p50_ms", "p90_ms", "p99_ms", "refused_share", "error_share", "client_error_share")


class Watch:
    """One reader of the service for all browsers; it reads only while a browser asks.

    `look` returns a report as `serve.operate.status.vitals.look` does; it is called in a thread.
    `found` is the last report.
    """

    def __init__(self, look: Callable[[], Report], every_s: float = EVERY_S) -> None:
        self.found = unread(OVERDUE)
        self.points: deque[list[Any]] = deque(maxlen=round(HISTORY_S / every_s))
        self._look = look
        self.every_s = every_s
        self._reading: asyncio.Task[None] | None = None
        self._begun_s = 0.0
        self._was_late = False
        self._gone_since: str | None = None
        self._seen: str | None = None

    async def news(self, after_ms: float) -> dict[str, Any]:
        """Return the state, once it was read unless that is overdue, and the points since a time.

        It has `found` (the state), `points` (each of ms since 1970, the values of `POINT`, and the
        share of answers that are not full), and `gone` (`since` and `seen`, ISO) while no
        application answers. Nothing is read within `every_s` of the last read.
        """
        reading = self._reading
        if reading is None or (reading.done() and time.monotonic() - self._begun_s >= self.every_s):
            reading = self._reading = asyncio.create_task(self._read())
        await asyncio.wait({reading}, timeout=OVERDUE_S)
        found = self.found
        # Once: a service that is always late or silent would alternate between verdicts.
        if not reading.done() and not self._was_late and any(found.surfaces.values()):
            found = msgspec.structs.replace(found, health=unread(OVERDUE).health)
        gone = {"since": self._gone_since, "seen": self._seen} if self._gone_since else None
        return {"found": found, "gone": gone, "points": [one for one in self.points if one[0] > after_ms]}

    async def _read(self) -> None:
        self._begun_s = time.monotonic()
        found = await asyncio.to_thread(self._state)
        self._was_late = time.monotonic() - self._begun_s > OVERDUE_S
        now, answers = datetime.now(UTC), found.surfaces.values()
        at = now.isoformat(timespec="milliseconds")
        self._seen = at if any(answers) else self._seen
        # Where something runs that was not asked, nothing is known of its answers.
        is_gone = not any(answers) and (answers or found.state in (*DOWN, "unknown"))
        self._gone_since = (self._gone_since or at) if is_gone else None
        self.found = msgspec.structs.replace(found, at=found.at or at)
        self.points.append([round(now.timestamp() * 1e3), *_values(found.traffic or Traffic())])

    def _state(self) -> Report:
        try:
            return self._look()
        except TabrankError as error:
            return unread(str(error))
        except Exception:
            # The reader goes on, and a later read may succeed.
            log.exception("the service could not be read")
            return unread(FAILED)


def _values(traffic: Traffic) -> list[float | None]:
    """Return a point's values; None where no two pages of metrics can be compared."""
    not_full = 1 - traffic.rungs.get("full", 0.0) if traffic.rungs else None
    return [*(getattr(traffic, name) if traffic.window_s else None for name in POINT), not_full]
