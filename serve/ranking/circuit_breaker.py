"""Circuit breaker: stop calling a scorer that keeps failing, and probe it in the background."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable
from functools import partial

from serve.contract.errors import ScorerUnavailable

# The circuit opens after this many failures in a row, because a single batch can fail by chance.
FAILURES = 3
RETRY_S = 0.25
# A call runs for this long even if its batch has given up. Ray then sees that the replica is busy
# and sends the next calls to another one. If the call were cancelled, a replica that hangs would
# look idle and would receive every other batch.
CALL_TIMEOUT_S = 10.0
# A version that no request has needed for this long is not probed any more: it may have been
# removed.
MAX_UNUSED_S = 30.0

Call = Callable[[str, bytes], Awaitable[bytes]]


class CircuitBreaker:
    """Circuit breaker around the calls of Scorer for one version.

    It opens after `FAILURES` failed or abandoned calls in a row, and closes when a probe succeeds.
    """

    def __init__(self, call: Call) -> None:
        self._call = call
        self._num_failed = 0
        # The last batch that was scored, to probe with.
        self._good: tuple[str, bytes] | None = None
        self._calls: set[asyncio.Task[bytes]] = set()
        self._probe: asyncio.Task[None] | None = None
        # Time of the last call, on the event loop's clock.
        self._called_s = 0.0

    async def __call__(self, version: str, payload: bytes) -> bytes:
        """Call the scorer and return its answer.

        Raises:
            ScorerUnavailable: at once, while the circuit is open.
            Exception: the exception of the call.
        """
        self._called_s = asyncio.get_running_loop().time()
        if self._probe is not None:
            raise ScorerUnavailable("the scorer failed several times in a row; it is being probed")
        call = self._begin(version, payload)
        try:
            answer = await asyncio.shield(call)
        except (Exception, asyncio.CancelledError):
            self._num_failed += 1
            if self._num_failed >= FAILURES and self._probe is None:
                probe = self._probe_until_healthy(*(self._good or (version, payload)))
                self._probe = asyncio.get_running_loop().create_task(probe)
            raise
        self._num_failed, self._good = 0, (version, payload)
        return answer

    def _begin(self, version: str, payload: bytes) -> asyncio.Task[bytes]:
        call = asyncio.get_running_loop().create_task(self._bounded(version, payload))
        self._calls.add(call)
        call.add_done_callback(self._ended)
        return call

    async def _bounded(self, version: str, payload: bytes) -> bytes:
        async with asyncio.timeout(CALL_TIMEOUT_S):
            return await self._call(version, payload)

    def _ended(self, call: asyncio.Task[bytes]) -> None:
        self._calls.discard(call)
        if not call.cancelled():
            # Mark the exception as retrieved: the caller may have stopped waiting.
            call.exception()

    async def _probe_until_healthy(self, version: str, payload: bytes) -> None:
        """Send a batch, preferably one that succeeded before, until it succeeds; no request waits.

        Stop after MAX_UNUSED_S without a request; the next request is then the probe.
        """
        while asyncio.get_running_loop().time() - self._called_s < MAX_UNUSED_S:
            await asyncio.sleep(RETRY_S)
            call = self._begin(version, payload)
            done, _ = await asyncio.wait([call], timeout=RETRY_S * 4)
            if done and call.exception() is None:
                self._num_failed, self._probe = 0, None
                return
        self._num_failed, self._probe = FAILURES - 1, None


def guarded(call: Call) -> Call:
    """Return the call of a scorer with a circuit breaker for each version."""
    breakers: defaultdict[str, CircuitBreaker] = defaultdict(partial(CircuitBreaker, call))

    async def guarded_call(version: str, payload: bytes) -> bytes:
        return await breakers[version](version, payload)

    return guarded_call
