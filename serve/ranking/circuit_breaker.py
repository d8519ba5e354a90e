"""The circuit breaker: a scorer that has failed is left alone, and tried beside the requests until it answers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from serve.contract.errors import ScorerUnavailable

FAILURES = 3  # in a row: one may befall any batch
RETRY_S = 0.25
# A call that its batch no longer waits for goes on for so long: Ray then sees that its replica is busy, and sends the
# next ones to another. Given up at once, a hung replica would look idle, and get every other batch.
ABANDONED_S = 10.0
FORGOTTEN_S = 30.0  # that nobody has asked for a version, until it is tried no more: it may be gone for good

Call = Callable[[str, bytes], Awaitable[bytes]]


class Breaker:
    """Passes on the calls of one version until `FAILURES` in a row failed or were given up; then once one answers."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._num_failed = 0
        self._good: tuple[str, bytes] | None = None  # the last that was answered
        self._calls: set[asyncio.Task[bytes]] = set()
        self._trial: asyncio.Task[None] | None = None
        self._asked_s = 0.0  # when it was asked last, of the loop's clock

    async def __call__(self, version: str, payload: bytes) -> bytes:
        """The scorer's answer.

        Raises:
            ScorerUnavailable: at once, while the scorer is left alone.
            Exception: whatever befell the call.
        """
        self._asked_s = asyncio.get_running_loop().time()
        if self._trial is not None:
            raise ScorerUnavailable("it failed several times in a row; it is tried again by itself")
        call = self._begin(version, payload)
        try:
            answer = await asyncio.shield(call)
        except (Exception, asyncio.CancelledError):
            self._num_failed += 1
            if self._num_failed >= FAILURES and self._trial is None:
                trial = self._try_until_well(*(self._good or (version, payload)))
                self._trial = asyncio.get_running_loop().create_task(trial)
            raise
        self._num_failed, self._good = 0, (version, payload)
        return answer

    def _begin(self, version: str, payload: bytes) -> asyncio.Task[bytes]:
        call = asyncio.get_running_loop().create_task(self._bounded(version, payload))
        self._calls.add(call)
        call.add_done_callback(self._ended)
        return call

    async def _bounded(self, version: str, payload: bytes) -> bytes:
        async with asyncio.timeout(ABANDONED_S):
            return await self._call(version, payload)

    def _ended(self, call: asyncio.Task[bytes]) -> None:
        self._calls.discard(call)
        if not call.cancelled():
            call.exception()  # of one that nobody waits for any more: nobody else would ask for it

    async def _try_until_well(self, version: str, payload: bytes) -> None:
        """Send a batch again and again, one that was answered before if there is one: no request waits for it.

        Once nobody has asked for FORGOTTEN_S, the next one who does is the trial.
        """
        while asyncio.get_running_loop().time() - self._asked_s < FORGOTTEN_S:
            await asyncio.sleep(RETRY_S)
            call = self._begin(version, payload)
            done, _ = await asyncio.wait([call], timeout=RETRY_S * 4)
            if done and call.exception() is None:
                self._num_failed, self._trial = 0, None
                return
        self._num_failed, self._trial = FAILURES - 1, None
