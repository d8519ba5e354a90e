"""Score a small batch in this process: the call to Scorer would take longer than the scores do.

A call costs both processes the same CPU time however small its batch is, and more than a batch of
one. Larger batches go to Scorer, so that this process computes the features of the next one.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Awaitable, Callable

from serve.model.scorer_cache import ITS_OWN, ModelHolder, untimed

Call = Callable[[str, bytes], Awaitable[bytes]]
# About half of a call's time without the scoring is spent in this process. A batch that is scored
# here in that time costs this process no more than the call, and Scorer nothing.
SHARE_HERE = 0.5
# Take the least of the last times: the others contain queues, and work of other processes. Under a
# high load nearly all calls do, so remember many of them.
LAST_SCORED, LAST_CALLS = 16, 512


class NearScoring:
    """Score a batch here if that is cheaper than the call, or if the call fails."""

    def __init__(
        self, call: Call, models: ModelHolder, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._call = call
        self._clock = clock
        self._models = models
        self._overheads_ms: deque[float] = deque(maxlen=LAST_CALLS)
        self._least_overhead_ms = 0.0
        self._ms_per_row: deque[float] = deque(maxlen=LAST_SCORED)

    async def __call__(self, version: str, payload: bytes) -> bytes:
        """Return the scores of a packed matrix and the time they took, as Scorer does.

        Raises:
            Exception: the exception of the call, where the version is not loaded here.
        """
        num_rows = int.from_bytes(payload[:8], "little")
        is_here = self._models.holds(version)
        here_ms = num_rows * min(self._ms_per_row, default=0.0)
        if is_here and here_ms <= SHARE_HERE * self._least_overhead_ms:
            return self._score(version, payload, num_rows)
        begun = self._clock()
        try:
            answer = await self._call(version, payload)
        except ITS_OWN:
            raise
        except Exception:
            if not is_here:
                raise
            return self._score(version, payload, num_rows)
        _, took_ms = untimed(answer, num_rows)
        if took_ms is not None:
            self._overheads_ms.append((self._clock() - begun) * 1e3 - took_ms)
            self._least_overhead_ms = min(self._overheads_ms)
        return answer

    def _score(self, version: str, payload: bytes, num_rows: int) -> bytes:
        answer = self._models.score(version, payload)
        _, took_ms = untimed(answer, num_rows)
        if took_ms is not None and num_rows:
            self._ms_per_row.append(took_ms / num_rows)
        return answer
