"""Score a small batch in this process, because a call to Scorer would take longer than scoring it.

A call to Scorer costs both processes a fixed CPU time, which is more than it takes to score a batch
with one request. Larger batches go to Scorer, so that this process can compute the features of the
next batch meanwhile.

To explain a ranking, more rows are scored. No batch waits for these, so they are scored in this
process whatever they cost. On an idle machine, scoring 300 rows takes 0.4 ms, and a call to Scorer
for them 3.2 ms.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial

from serve.contract.logs import SeldomWarning
from serve.model.scorer_cache import ITS_OWN, ModelHolder, untimed

Call = Callable[[str, bytes], Awaitable[bytes]]
# The overhead of a call is its time without the scoring. About half of it is spent in this process.
# A batch that can be scored here in that time costs this process no more than the call would, and
# Scorer nothing.
SHARE_HERE = 0.5
# How many times are remembered, of which the least counts. The others include waiting in queues and
# work of other processes. Under a high load, this is true for nearly all calls, so many of them are
# remembered.
LAST_SCORED, LAST_CALLS = 16, 512
# Rows of reasons are scored on the event loop up to this number, otherwise in a thread. Scoring
# 1,000 rows blocks the event loop for 0.6 ms, or 1.5 ms with a deep model. A thread would block it
# as long, because of the interpreter's lock, and take 0.3 ms more. With 4,000 rows a thread blocks
# it less.
FEW_ROWS = 1_000
# Limits the pairs of version and size whose times are remembered.
MOST_TIMED = 128


@dataclass(eq=False)
class InProcessScoring:
    """Score a batch in this process if that is cheaper than the call to Scorer, or if that fails.

    `may(version)` returns True if this process may score a version at all.
    """

    call: Call
    models: ModelHolder
    may: Callable[[str], bool]
    warn: SeldomWarning
    clock: Callable[[], float] = time.perf_counter

    def __post_init__(self) -> None:
        self._overheads_ms: deque[float] = deque(maxlen=LAST_CALLS)
        self._least_overhead_ms = 0.0
        # Times per row, by version and the binary logarithm of the number of rows. Small batches
        # take more time per row, because every batch has a fixed cost.
        self._ms_per_row: defaultdict[tuple[str, int], deque[float]]
        self._ms_per_row = defaultdict(partial(deque, maxlen=LAST_SCORED))

    async def __call__(self, version: str, payload: bytes) -> bytes:
        """Return the scores of a packed matrix and the time they took, as Scorer does.

        Raises:
            Exception: the exception of the call, if the version may not be scored here.
        """
        num_rows = int.from_bytes(payload[:8], "little")
        # Versions come and go, so forget all of them from time to time.
        if len(self._ms_per_row) > MOST_TIMED:
            self._ms_per_row.clear()
        times = self._ms_per_row[version, num_rows.bit_length()]
        here_ms = num_rows * min(times, default=float("inf"))
        if here_ms <= SHARE_HERE * self._least_overhead_ms and self._is_here(version):
            return self._timed(self.models.score_packed(version, payload), num_rows, times)
        begun = self.clock()
        try:
            answer = self._timed(await self.call(version, payload), num_rows, times)
        except ITS_OWN:
            raise
        except Exception as error:
            if not self._is_here(version):
                raise
            self.warn("scored without Scorer", error)
            # This is not timed, so that the next batches try the call again.
            return self.models.score_packed(version, payload)
        _, took_ms = untimed(answer, num_rows)
        self._overheads_ms.append((self.clock() - begun) * 1e3 - took_ms)
        self._least_overhead_ms = min(self._overheads_ms)
        return answer

    async def aside(self, version: str, payload: bytes) -> bytes:
        """Score rows for which no batch waits: in this process, or else by the call to Scorer.

        Raises:
            Exception: the exception of the model, or of the call.
        """
        if not self._is_here(version):
            return await self.call(version, payload)
        if int.from_bytes(payload[:8], "little") <= FEW_ROWS:
            return self.models.score_packed(version, payload)
        return await asyncio.to_thread(self.models.score_packed, version, payload)

    def _is_here(self, version: str) -> bool:
        return self.may(version) and self.models.holds(version)

    def _timed(self, answer: bytes, num_rows: int, times: deque[float]) -> bytes:
        _, took_ms = untimed(answer, num_rows)
        if num_rows:
            times.append(took_ms / num_rows)
        return answer
