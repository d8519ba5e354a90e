"""Self-clocking batcher: the next batch gathers while one is processed, without an added wait."""

from __future__ import annotations

import asyncio
import contextvars
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

# A queued item waits at most this long for the batch before it. A batch takes less, as long as the
# load is below the capacity.
PATIENCE_S = 0.03
# Every batch has at least this time, whatever the deadlines of its requests are. If very short
# deadlines ended batches, more than `max_in_flight` would be scored at once, and a healthy scorer
# would look as if it hung.
MIN_WORK_S = 0.05
# A batch ends after this time, so that a request with a long deadline cannot occupy one of
# `max_in_flight` places while a scorer hangs.
MAX_WORK_S = 3.0
Item = TypeVar("Item")
Answer = TypeVar("Answer")


@dataclass(slots=True)
class _Waiting(Generic[Item, Answer]):
    item: Item
    size: int
    # Seconds on the event loop's clock.
    deadline: float
    answer: asyncio.Future[Answer]
    since: float
    is_queued: bool = True


class Batcher(Generic[Item, Answer]):
    """Run `work` on batches of items, at most `max_in_flight` at once, each of a size up to `cap`.

    A batch starts at once if none is in progress, so an idle service adds no wait. Otherwise the
    next batch starts when the current one ends, or in parallel as soon as half of `cap` waits. A
    batch has a fixed cost of 3 ms of CPU over both deployments, and this rule pays it seldom. Under
    full load, the features of one batch are computed while another batch is scored.

    As long as fewer than `max_in_flight` batches run, items wait at most PATIENCE_S behind a batch
    that hangs. An item larger than `cap` forms a batch of its own. Use it from one event loop.
    """

    def __init__(
        self, work: Callable[[list[Item]], Awaitable[list[Answer]]], *, max_in_flight: int = 1, cap: int = 1
    ) -> None:
        self._work = work
        self.max_in_flight = max_in_flight
        self.cap = cap
        self._queue: deque[_Waiting[Item, Answer]] = deque()
        # Size of the queued items that have neither expired nor been cancelled.
        self._waiting_size = 0
        # Durations of the last batches.
        self._took_s: deque[float] = deque(maxlen=8)
        self._patience: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        # True until the next iteration of the event loop starts a batch.
        self._is_starting = False

    @property
    def is_idle(self) -> bool:
        """Return True if the queue is empty and no batch is in progress."""
        return not self._tasks and not self._waiting_size

    async def submit(self, item: Item, size: int, deadline: float) -> Answer:
        """Queue an item and return its answer.

        Raises:
            TimeoutError: at `deadline` (seconds of the loop's clock), or as soon as the batcher
                predicts that the item would be late; work that has not started is skipped.
            Exception: the exception that `work` raised for the item's batch.
        """
        loop = asyncio.get_running_loop()
        if loop.time() + self._wait_s() > deadline:
            raise TimeoutError
        waiting = _Waiting[Item, Answer](item, size, deadline, loop.create_future(), loop.time())
        alarm = loop.call_at(deadline, _expire, waiting.answer)
        self._queue.append(waiting)
        self._waiting_size += size
        if self._tasks:
            self._start_batches()
        elif not self._is_starting:
            # Start with all requests that this iteration reads, and not only with the first of
            # them.
            self._is_starting = True
            loop.call_soon(self._start_batches)
        try:
            return await waiting.answer
        finally:
            alarm.cancel()
            self._leaves_queue(waiting)

    def _wait_s(self) -> float:
        """Return a lower bound on a new item's wait for running batches and queued items."""
        if len(self._tasks) < self.max_in_flight:
            return 0.0
        return self._waiting_size / self.cap * min(self._took_s, default=0.0) / self.max_in_flight

    def _start_batches(self) -> None:
        self._is_starting = False
        while self._queue and not self._queue[0].is_queued:
            self._queue.popleft()
        while self._queue and self._may_leave():
            batch = self._next_batch()
            if batch:
                # Use a new context: cancelling one request must not cancel the rest of its batch.
                loop = asyncio.get_running_loop()
                task = loop.create_task(self._run(batch), context=contextvars.Context())
                self._tasks.add(task)
                task.add_done_callback(self._finished)
        if self._queue and self._patience is None:
            self._patience = asyncio.get_running_loop().call_later(PATIENCE_S, self._out_of_patience)

    def _may_leave(self) -> bool:
        if not self._tasks:
            return True
        if len(self._tasks) >= self.max_in_flight:
            return False
        waits_s = asyncio.get_running_loop().time() - self._queue[0].since
        return 2 * self._waiting_size >= self.cap or waits_s >= PATIENCE_S

    def _out_of_patience(self) -> None:
        self._patience = None
        self._start_batches()

    def _leaves_queue(self, waiting: _Waiting[Item, Answer]) -> None:
        # Skip items that a batch took, that expired, or whose client disconnected.
        if waiting.is_queued:
            waiting.is_queued = False
            self._waiting_size -= waiting.size

    def _next_batch(self) -> list[_Waiting[Item, Answer]]:
        """Take the next batch; expire items that could not finish in time, to save their work."""
        batch: list[_Waiting[Item, Answer]] = []
        size = 0
        # With no batch in progress, always start one: a single slow batch must not block for good.
        done_by_s = asyncio.get_running_loop().time() + (
            min(self._took_s, default=0.0) if self._tasks else 0.0
        )
        while self._queue and (not batch or size + self._queue[0].size <= self.cap):
            waiting = self._queue.popleft()
            self._leaves_queue(waiting)
            # The item expired, or its client disconnected.
            if waiting.answer.done():
                continue
            if waiting.deadline < done_by_s:
                _expire(waiting.answer)
            else:
                batch.append(waiting)
                size += waiting.size
        return batch

    async def _run(self, batch: list[_Waiting[Item, Answer]]) -> None:
        loop = asyncio.get_running_loop()
        begun_s = loop.time()
        try:
            # Cancel the work and free its slot once the last deadline in the batch has passed.
            until_s = min(begun_s + MAX_WORK_S, max(waiting.deadline for waiting in batch))
            async with asyncio.timeout_at(max(begun_s + MIN_WORK_S, until_s)):
                answers = await self._work([waiting.item for waiting in batch])
            self._took_s.append(loop.time() - begun_s)
            for waiting, answer in zip(batch, answers, strict=True):
                if not waiting.answer.done():
                    waiting.answer.set_result(answer)
        except (Exception, asyncio.CancelledError) as error:
            cancelled = isinstance(error, asyncio.CancelledError)
            for waiting in batch:
                if not waiting.answer.done():
                    waiting.answer.set_exception(RuntimeError("work was cancelled") if cancelled else error)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._start_batches()


def _expire(answer: asyncio.Future[Answer]) -> None:
    if not answer.done():
        answer.set_exception(TimeoutError())
