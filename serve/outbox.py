"""The outbox: answered rankings on their way to Ingest, after the answer and never in its way."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from serve.records import Exposure, pack

log = logging.getLogger("tabrank")

SEND_EVERY_S = 0.05
# With the event clock, which sends before a ranking what its time lies after, the last go so late:
IDLE_S = 2.0
MAX_SENT = 1_000  # exposures a call
MAX_HELD = 5_000  # beyond, the newest are dropped and counted
RETRY_S = 0.5

Send = Callable[[bytes], Awaitable[object]]


class Outbox:
    """Holds exposures until Ingest has them durable; sends them again where a call fails, so at least once."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._held: list[tuple[float, Exposure]] = []  # since when; oldest first
        self._sending = asyncio.Lock()
        self.num_dropped = 0
        self._warned = 0.0

    def put(self, exposure: Exposure) -> None:
        """Take one; it never waits."""
        if len(self._held) >= MAX_HELD:
            self.num_dropped += 1
        else:
            self._held.append((time.monotonic(), exposure))

    async def run(self, idle_s: float = 0.0) -> None:
        """Send what gathers, until cancelled; with `idle_s` once nothing has come for so long."""
        while True:
            is_idle = bool(self._held) and time.monotonic() - self._held[-1][0] >= idle_s
            await asyncio.sleep(SEND_EVERY_S if not is_idle or await self.flush() else RETRY_S)

    async def flush(self, before_ms: int | None = None) -> bool:
        """Send what is held (from before `before_ms`) and wait until it is durable; False where a call failed."""
        async with self._sending:
            while part := self._next(before_ms):
                try:
                    payload = pack(part)
                except Exception:  # a fault of ours: it would be in the way for ever
                    log.exception("%d exposures cannot be packed; they are dropped", len(part))
                    self.num_dropped += len(part)
                    self._drop(part)
                    continue
                try:
                    await self._send(payload)
                except Exception as error:  # whatever befell Ingest, rankings go on
                    self._warn(error)
                    return False
                self._drop(part)
            return True

    def _drop(self, part: list[Exposure]) -> None:
        gone = set(map(id, part))
        self._held = [held for held in self._held if id(held[1]) not in gone]

    def _next(self, before_ms: int | None) -> list[Exposure]:
        part = [exposure for _, exposure in self._held[:MAX_SENT]]
        return [e for e in part if e.ts_ms < before_ms] if before_ms is not None else part

    def _warn(self, error: Exception) -> None:
        if time.monotonic() - self._warned >= 10.0:
            self._warned = time.monotonic()
            log.warning("exposures wait: %s: %s", type(error).__name__, error)

    @property
    def age_s(self) -> float:
        """How long the oldest exposure has been waiting to be durable: features are at least so old."""
        return time.monotonic() - self._held[0][0] if self._held else 0.0
