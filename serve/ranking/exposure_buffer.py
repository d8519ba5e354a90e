"""Exposure buffer: send answered rankings to Ingest in the background, at least once."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import NamedTuple

import msgspec

from serve.contract.errors import TooLarge
from serve.contract.logs import SeldomWarning
from serve.log.events import MAX_CALL_BYTES, Exposure, pack, pack_raw

log = logging.getLogger("tabrank")

SEND_EVERY_S = 0.05
# With the event clock, rankings flush older exposures. Send the rest after 2 s without a ranking.
IDLE_S = 2.0
RETRY_S = 0.5
# Reason of the warnings while calls of Ingest fail.
WAITING = "exposures wait for Ingest"
# Give a call up after 5 s, because Ingest may hang: the next one goes to the Ingest that Serve has
# started instead. To send again is harmless, because Ingest drops what it has already. Not less: a
# commit on a busy machine may take seconds.
SEND_TIMEOUT_S = 5.0
# Limit one call by its exposures, too: one commit takes them all.
MAX_SENT = 1_000
# Limit the memory of the buffer; beyond either limit, new exposures are dropped and counted. Ingest
# takes 32 MiB in a few seconds, so features are not stale for long once Ingest is back.
MAX_HELD = 5_000
MAX_HELD_BYTES = 32 * 1024 * 1024

Send = Callable[[bytes], Awaitable[object]]


class _Held(NamedTuple):
    """One packed exposure; `since` is on the buffer's clock."""

    since: float
    ts_ms: int
    packed: msgspec.Raw


class ExposureBuffer:
    """Hold packed exposures until Ingest has made them durable: at-least-once delivery.

    `send` raises TooLarge if a call is refused for its size.
    """

    def __init__(
        self, send: Send, warn: SeldomWarning | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._send = send
        self._clock = clock
        self._warn = warn or SeldomWarning()
        # Oldest first.
        self._held: list[_Held] = []
        self._num_bytes = 0
        self._sending = asyncio.Lock()
        self.num_dropped = 0
        self.num_too_large = 0

    def put(self, exposure: Exposure) -> None:
        """Add one exposure without waiting; drop and count it if the buffer is full."""
        if len(self._held) >= MAX_HELD or self._num_bytes >= MAX_HELD_BYTES:
            self.num_dropped += 1
            return
        try:
            packed = pack_raw(exposure)
        except Exception:
            log.exception("exposure dropped: it cannot be packed")
            self.num_dropped += 1
            return
        if len(packed) > MAX_CALL_BYTES:
            self.num_too_large += 1
            return
        self._held.append(_Held(self._clock(), exposure.ts_ms, packed))
        self._num_bytes += len(packed)

    async def run(self, idle_s: float = 0.0) -> None:
        """Send exposures until cancelled, each batch after `idle_s` without a new exposure."""
        while True:
            is_idle = bool(self._held) and self._clock() - self._held[-1].since >= idle_s
            await asyncio.sleep(SEND_EVERY_S if not is_idle or await self.flush() else RETRY_S)

    async def flush(self, before_ms: int | None = None) -> bool:
        """Send the held exposures and wait until they are durable; return False if a call failed.

        Args:
            before_ms: send only exposures with an earlier timestamp.
        """
        async with self._sending:
            num = MAX_SENT
            while part := self._next(before_ms, num):
                try:
                    async with asyncio.timeout(SEND_TIMEOUT_S):
                        await self._send(pack([held.packed for held in part]))
                except TooLarge as error:
                    self._warn("exposures are too large for a call", error)
                    if len(part) > 1:
                        num = len(part) // 2
                        continue
                    self.num_too_large += 1
                except Exception as error:
                    self._warn(WAITING, error)
                    return False
                self._drop(part)
                num = min(2 * num, MAX_SENT)
            return True

    def _drop(self, part: list[_Held]) -> None:
        gone = set(map(id, part))
        self._held = [held for held in self._held if id(held) not in gone]
        self._num_bytes -= sum(len(held.packed) for held in part)

    def _next(self, before_ms: int | None, num: int) -> list[_Held]:
        """Return the oldest exposures that fit one call."""
        part: list[_Held] = []
        num_bytes = 0
        for held in self._held:
            if before_ms is not None and held.ts_ms >= before_ms:
                continue
            num_bytes += len(held.packed)
            if len(part) == num or (part and num_bytes > MAX_CALL_BYTES):
                break
            part.append(held)
        return part

    @property
    def age_s(self) -> float:
        """Seconds that the oldest exposure has waited; the features are at least as stale."""
        return self._clock() - self._held[0].since if self._held else 0.0
