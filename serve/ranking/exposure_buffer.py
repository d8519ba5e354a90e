"""Exposure buffer: send answered rankings to Ingest in the background, at least once."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable
from typing import NamedTuple

import msgspec

from serve.contract.errors import Busy, TooLarge
from serve.contract.logs import SeldomWarning
from serve.log.events import EXPOSURE_IDS, MAX_CALL_BYTES, MAX_ONE_IN, Exposure, key, pack, pack_raw

log = logging.getLogger("tabrank")

SEND_EVERY_S = 0.05
# With the event clock, each ranking flushes older exposures. The rest is sent after this time
# without a ranking.
IDLE_S = 2.0
RETRY_S = 0.5
# The reason in warnings while calls of Ingest fail.
WAITING = "exposures wait for Ingest"
# The reason in warnings while only a sample of exposures is kept.
THINNED = "Ingest does not keep up"
# A call is given up after this time, because Ingest may hang. The next call goes to the Ingest that
# Serve has started instead. To send again is harmless, because Ingest drops what it has already.
# The time may not be shorter, because a commit on a busy machine may take seconds.
SEND_TIMEOUT_S = 5.0
# Limits the exposures of a call, because one commit takes them all.
MAX_SENT = 1_000
# Limits on the buffer. Beyond either, new exposures are dropped and counted. Ingest takes 32 MiB in
# a few seconds, so features are not stale for long once Ingest is back.
MAX_HELD = 5_000
MAX_HELD_BYTES = 32 * 1024 * 1024
# All exposures are kept while less than this share of a limit is used, which is enough for bursts
# and pauses. Above it, one in 2 is kept, then one in 3, and so on. One call below the limit, it is
# one in MAX_ONE_IN.
CALM = 0.4
# While Ingest answers, the buffer holds at most what Ingest takes from this replica in MAX_WAIT_S.
# Features are then not older than 5 s, the default of `stale_after_ms`, however many replicas share
# Ingest. A replica from which it takes few may hold MIN_HELD.
MAX_WAIT_S, MIN_HELD = 3.0, 500
# A call that takes fewer exposures than earlier ones may have waited for something else. What
# Ingest takes in a second is therefore the most of the last calls, less this share for each call
# since then.
FADES = 0.3
# The share of the buffer that a call takes. What is held falls by it when a call ends, and grows
# again until the next one ends. This alone must not change how many exposures are kept.
CALL = MAX_SENT / MAX_HELD

Send = Callable[[bytes], Awaitable[object]]


class _Held(NamedTuple):
    """One packed exposure; `since` is on the buffer's clock."""

    since: float
    ts_ms: int
    packed: msgspec.Raw


class ExposureBuffer:
    """Hold packed exposures until Ingest has made them durable: at-least-once delivery.

    If Ingest does not keep up, an even sample is held: one exposure in `one_in`, chosen by the hash
    of its request id, and marked with that number. `one_in` depends on how much the buffer holds at
    the end of each call of Ingest. All replicas wait for the same commits, so each finds the number
    that fits its part of what Ingest can do. If a call does not end, `one_in` depends on how much
    is held now.

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
        self.num_thinned = 0
        self.one_in = 1
        # The declaration that an exposure since the last call carries.
        self._declaration: str | None = None
        # Exposures to hold while Ingest answers.
        self._limit = float(MAX_HELD)

    def put(self, exposure: Exposure) -> None:
        """Add one exposure without waiting, if it is in the sample.

        If the buffer is full, the exposure is dropped and counted. Its declaration is left out if
        one since the last call carries it. So a call that is lost takes along no later one.
        """
        exposure.one_in = max(self.one_in, self._wanted(MAX_HELD, CALL))
        if exposure.one_in > 1 and not _is_in_sample(exposure):
            self.num_thinned += 1
            return
        if len(self._held) >= MAX_HELD or self._num_bytes >= MAX_HELD_BYTES:
            self.num_dropped += 1
            return
        declaration = exposure.declaration
        if declaration == self._declaration:
            exposure.declaration = None
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
        self._declaration = declaration or self._declaration
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
            num = min(int(CALL * self._limit), MAX_SENT)
            while part := self._next(before_ms, num):
                began_s = self._clock()
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
                taken = len(part) / max(self._clock() - began_s, 1e-3) * MAX_WAIT_S
                self._limit = min(max(taken, (1.0 - FADES) * self._limit, MIN_HELD), MAX_HELD)
                self.one_in = self._wanted(self._limit)
                if self.one_in > 1:
                    self._warn(THINNED, Busy(f"only one exposure in {self.one_in} is logged, for all"))
                num = min(2 * num, int(CALL * self._limit), MAX_SENT)
            return True

    def _wanted(self, limit: float, spare: float = 0.0) -> int:
        """Return `one_in` for what is held, of which a `spare` share does not count."""
        fill = max(len(self._held) / limit, self._num_bytes / MAX_HELD_BYTES)
        depth = (fill - spare - CALM) / (1.0 - CALM - CALL)
        return round(math.pow(MAX_ONE_IN, min(max(depth, 0.0), 1.0)))

    def _drop(self, part: list[_Held]) -> None:
        self._declaration = None
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


def _is_in_sample(exposure: Exposure) -> bool:
    """Return True if the hash of the request id is in the first of `one_in` equal parts."""
    hashed = int.from_bytes(key(EXPOSURE_IDS, exposure.request_id)[1:], "big")
    return hashed * exposure.one_in < 1 << 64
