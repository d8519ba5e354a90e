"""Score a small batch in this process: the call to Scorer would take longer than the scores do.

A call costs both processes the same CPU time however small its batch is, and more than a batch of
one. Larger batches go to Scorer, so that this process computes the features of the next one.

The rows of reasons, for which no batch waits, are scored in this process whatever they cost: at
idle 300 rows take 0.4 ms, and a call of them 3.2.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable

from serve.contract.logs import SeldomWarning
from serve.model.scorer_cache import ITS_OWN, ModelHolder, untimed

Call = Callable[[str, bytes], Awaitable[bytes]]
# About half of a call's time without the scoring is spent in this process. A batch that is scored
# here in that time costs this process no more than the call, and Scorer nothing.
SHARE_HERE = 0.5
# Take the least of the last times: the others contain queues, and work of other processes. Under a
# high load nearly all calls do, so remember many of them.
LAST_SCORED, LAST_CALLS = 16, 512
# So many rows hold the event loop for 0.6 ms, of a deep model for 1.5. In a thread they hold it as
# long, for the interpreter's lock, and take 0.3 ms more; 4,000 rows hold it less there.
FEW_ROWS = 1_000
# Versions times sizes that are remembered.
MOST_TIMED = 128


class InProcessScoring:
    """Score a batch here if that is cheaper than the call, or if the call fails.

    `may(version)` tells whether this process may score a version at all.
    """

    def __init__(
        self,
        call: Call,
        models: ModelHolder,
        may: Callable[[str], bool],
        warn: SeldomWarning,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._call = call
        self._clock = clock
        self._models = models
        self._may = may
        self._warn = warn
        self._overheads_ms: deque[float] = deque(maxlen=LAST_CALLS)
        self._least_overhead_ms = 0.0
        # Times per row, by version and the binary logarithm of the rows: a batch has a fixed cost.
        self._ms_per_row: defaultdict[tuple[str, int], deque[float]] = defaultdict(
            lambda: deque(maxlen=LAST_SCORED)
        )

    async def __call__(self, version: str, payload: bytes) -> bytes:
        """Return the scores of a packed matrix and the time they took, as Scorer does.

        Raises:
            Exception: the exception of the call, where the version may not be scored here.
        """
        num_rows = int.from_bytes(payload[:8], "little")
        # Versions come and go.
        if len(self._ms_per_row) > MOST_TIMED:
            self._ms_per_row.clear()
        times = self._ms_per_row[version, num_rows.bit_length()]
        here_ms = num_rows * min(times, default=float("inf"))
        if here_ms <= SHARE_HERE * self._least_overhead_ms and self._is_here(version):
            return self._timed(self._models.score_packed(version, payload), num_rows, times)
        begun = self._clock()
        try:
            answer = self._timed(await self._call(version, payload), num_rows, times)
        except ITS_OWN:
            raise
        except Exception as error:
            if not self._is_here(version):
                raise
            self._warn("scored without Scorer", error)
            # Not timed, so that batches keep trying the call.
            return self._models.score_packed(version, payload)
        _, took_ms = untimed(answer, num_rows)
        self._overheads_ms.append((self._clock() - begun) * 1e3 - took_ms)
        self._least_overhead_ms = min(self._overheads_ms)
        return answer

    async def aside(self, version: str, payload: bytes) -> bytes:
        """Score what no batch waits for: here, many rows in a thread, or else by the call.

        Raises:
            Exception: the exception of the model, or of the call.
        """
        if not self._is_here(version):
            return await self._call(version, payload)
        if int.from_bytes(payload[:8], "little") <= FEW_ROWS:
            return self._models.score_packed(version, payload)
        return await asyncio.to_thread(self._models.score_packed, version, payload)

    def _is_here(self, version: str) -> bool:
        return self._may(version) and self._models.holds(version)

    def _timed(self, answer: bytes, num_rows: int, times: deque[float]) -> bytes:
        _, took_ms = untimed(answer, num_rows)
        if num_rows:
            times.append(took_ms / num_rows)
        return answer
