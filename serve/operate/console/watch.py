"""Read the service for all browsers at once, and keep the numbers of the last ten minutes."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable
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
    """One reader of the service for all browsers; it reads only while a browser listens.

    `look` returns a report as `serve.operate.status.vitals.look` does; it is called in a thread.
    `found` is the last report.
    """

    def __init__(self, look: Callable[[], Report], every_s: float = EVERY_S) -> None:
        self.found = unread(OVERDUE)
        self.points: deque[list[float | None]] = deque(maxlen=round(HISTORY_S / every_s))
        self._look = look
        self._every_s = every_s
        self._queues: set[asyncio.Queue[dict[str, Any] | None]] = set()
        self._reader: asyncio.Task[None] | None = None
        self._gone_since: str | None = None
        self._seen: str | None = None
        self._message: dict[str, Any] = {"found": self.found, "gone": None}

    async def messages(self) -> AsyncIterator[dict[str, Any]]:
        """Yield the kept points, then a message for each read, until `close`.

        A message has `found` (the state), `point` (ms since 1970, the values of `POINT`, and the
        share of answers that are not full), and `gone` (`since` and `seen`, ISO) while no
        application answers. While a read is overdue there are messages without a point.
        """
        # A browser that does not read gets no more than this, and is then left out.
        queue: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue(8)
        self._queues.add(queue)
        try:
            yield {"points": list(self.points)}
            if self._reader is None or self._reader.done():
                self._reader = asyncio.create_task(self._read())
            while (message := await queue.get()) is not None:
                yield message
        finally:
            self._queues.discard(queue)

    def close(self) -> None:
        """End all `messages`."""
        self._send(None)
        self._queues.clear()

    async def _read(self) -> None:
        was_late = False
        while self._queues:
            reading, is_late = asyncio.ensure_future(asyncio.to_thread(self._state)), False
            while not (await asyncio.wait({reading}, timeout=OVERDUE_S))[0]:
                # Once: a service that is always late or silent would alternate between verdicts.
                if not was_late and any(self.found.surfaces.values()):
                    overdue = unread(OVERDUE).health
                    self._message["found"] = msgspec.structs.replace(self.found, health=overdue)
                # A browser takes a longer silence for a console that is gone.
                self._send(self._message)
                is_late = True
            was_late = is_late
            self._publish(await reading)
            await asyncio.sleep(self._every_s)

    def _state(self) -> Report:
        try:
            return self._look()
        except TabrankError as error:
            return unread(str(error))
        except Exception:
            # The reader goes on, and a later read may succeed.
            log.exception("the service could not be read")
            return unread(FAILED)

    def _publish(self, found: Report) -> None:
        now, answers = datetime.now(UTC), found.surfaces.values()
        at = now.isoformat(timespec="milliseconds")
        self._seen = at if any(answers) else self._seen
        # Where something runs that was not asked, nothing is known of its answers.
        is_gone = not any(answers) and (answers or found.state in (*DOWN, "unknown"))
        self._gone_since = (self._gone_since or at) if is_gone else None
        gone = {"since": self._gone_since, "seen": self._seen} if is_gone else None
        self.found = msgspec.structs.replace(found, at=found.at or at)
        self.points.append([round(now.timestamp() * 1e3), *_values(found.traffic or Traffic())])
        self._message = {"found": self.found, "gone": gone}
        self._send({**self._message, "point": self.points[-1]})

    def _send(self, message: dict[str, Any] | None) -> None:
        for queue in list(self._queues):
            is_slow = queue.full()
            if is_slow:
                queue.get_nowait()
                self._queues.discard(queue)
            queue.put_nowait(None if is_slow else message)


def _values(traffic: Traffic) -> list[float | None]:
    """Return a point's values; None where no two pages of metrics can be compared."""
    not_full = 1 - traffic.rungs.get("full", 0.0) if traffic.rungs else None
    return [*(getattr(traffic, name) if traffic.window_s else None for name in POINT), not_full]
