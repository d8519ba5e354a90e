"""Read the service for all browsers at once, and keep the numbers of the last hour."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import msgspec

from serve.contract.errors import TabrankError
from serve.operate.status.causes import DOWN
from serve.operate.status.report import Report, Traffic, unread
from serve.operate.status.scrape import KINDS

log = logging.getLogger("tabrank")
# Replicas report their counters every 2 s; reading more often shows nothing new.
EVERY_S = 2.0
# While no browser asks, read as rarely as the rates of two neighbouring reads allow: Ray's agent
# takes 66 ms of a core for a page of metrics, which is 0.7 % of a core.
UNSEEN_EVERY_S = 10.0
# An hour is 1,800 points of 14 numbers at most: below 1 MB of memory, and 150 KB for a browser.
HISTORY_S = 3_600.0
# Decimals of a point's values, and so of a share: 0.001 %.
DECIMALS = 5
# A read takes 0.1 s. A longer one is shown as missing, so that a service that hangs is seen in 5 s.
OVERDUE_S = 2.5
OVERDUE = "The service has not answered within 2.5 s."
FAILED = "The console could not read the service; the reason is in the console's own output."
POINT = ["rate_rps", "p50_ms", "p90_ms", "p99_ms", "refused_share", "error_share", "client_error_share"]
POINT += ["unknown_share", "unknown_viewer_share"]


class Watch:
    """One reader of the service for all browsers.

    It reads when a browser asks, and with `keep_reading` also while none does. `look` returns a
    report as `serve.operate.status.vitals.look` does; it is called in a thread. `found` is the last
    report, and `points` are those of the last hour.
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

    async def keep_reading(self) -> None:
        """Read every `UNSEEN_EVERY_S` while no browser does, so that a page opens with its past."""
        while True:
            if time.monotonic() - self._begun_s >= UNSEEN_EVERY_S:
                await self.news(math.inf)
            await asyncio.sleep(self.every_s)

    async def news(self, after_ms: float) -> dict[str, Any]:
        """Return the state and the points since a time, after a read unless that is overdue.

        The answer has `found`, the state; `points`, see `_values`, each behind its time in ms since
        1970; and while no application answers `gone`, with the times `since` and `seen` in ISO.
        Nothing is read within `every_s` of the last read.
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
        at_ms = round(now.timestamp() * 1e3)
        self.points.append([at_ms, *_values(found.traffic or Traffic())])
        while self.points[0][0] < at_ms - HISTORY_S * 1e3:
            self.points.popleft()

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
    """Return the values of a point; None where no two pages of metrics can be compared.

    They are those of `POINT`, the share of answers that are not full, and the records a second that
    were accepted, were duplicates and were rejected.
    """
    not_full = 1 - traffic.rungs.get("full", 0.0) if traffic.rungs else None
    values = [*(getattr(traffic, name) for name in POINT), not_full, *map(traffic.records_rps.get, KINDS)]
    return [round(value, DECIMALS) if value is not None and traffic.window_s else None for value in values]
