"""The self-clocking batcher: while one batch is worked on, the next gathers. No wait is ever added."""

from __future__ import annotations

import asyncio
import contextvars
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

PATIENCE_S = 0.03  # a batch takes less until the knee
# That a batch has, whatever its callers' deadlines. Given up at theirs, those who give hardly any time would have more
# batches scored at once than there are slots, and a scorer that is well would look as if it hung.
LEAST_S = 0.05
LONGEST_S = (
    3.0  # a caller with all the time in the world must not hold a slot of the others behind what hangs
)
Item = TypeVar("Item")
Answer = TypeVar("Answer")


@dataclass(slots=True)
class _Waiting(Generic[Item, Answer]):
    item: Item
    size: int
    deadline: float  # of the loop's clock, s
    answer: asyncio.Future[Answer]
    since: float
    is_queued: bool = True


class Batcher(Generic[Item, Answer]):
    """Runs `work` on batches of items, at most `slots` at once, each of at most `cap` in size.

    A batch leaves at once when none is under way, so an idle service adds no wait. While one is, the next leaves
    when it ends, or beside it as soon as half of `cap` waits: what a batch costs however small it is, 3 ms of CPU over
    both deployments, is paid seldom, and under full load one batch's features are computed while another is scored.
    Behind a batch that hangs nobody waits longer than PATIENCE_S while there is a slot.
    An item larger than `cap` goes alone. Use from one event loop.
    """

    def __init__(
        self, work: Callable[[list[Item]], Awaitable[list[Answer]]], *, slots: int, cap: int
    ) -> None:
        self._work = work
        self.slots = slots
        self.cap = cap
        self._queue: deque[_Waiting[Item, Answer]] = deque()
        self._waiting_size = 0  # of those in the queue that have neither expired nor gone
        self._took_s: deque[float] = deque(maxlen=8)  # the last batches
        self._patience: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits and nothing is under way."""
        return not self._tasks and not self._waiting_size

    async def submit(self, item: Item, size: int, deadline: float) -> Answer:
        """The item's answer.

        Raises:
            TimeoutError: at `deadline` (seconds of the loop's clock), or as soon as it is seen that it would be late;
                work not yet begun is then not begun.
            Exception: whatever `work` raised for the item's batch.
        """
        loop = asyncio.get_running_loop()
        if loop.time() + self._wait_s() > deadline:
            raise TimeoutError
        waiting = _Waiting[Item, Answer](item, size, deadline, loop.create_future(), loop.time())
        alarm = loop.call_at(deadline, _expire, waiting.answer)
        self._queue.append(waiting)
        self._waiting_size += size
        self._fill_slots()
        if waiting.is_queued and self._patience is None:
            self._patience = loop.call_later(PATIENCE_S, self._out_of_patience)
        try:
            return await waiting.answer
        finally:
            alarm.cancel()
            self._leaves_queue(waiting)

    def _wait_s(self) -> float:
        """How long an item that comes now would wait at least: for the batches under way, and those before its own."""
        if len(self._tasks) < self.slots:
            return 0.0
        return self._waiting_size / self.cap * min(self._took_s, default=0.0) / self.slots

    def _fill_slots(self) -> None:
        while self._queue and not self._queue[0].is_queued:
            self._queue.popleft()
        while self._queue and self._may_leave():
            batch = self._next_batch()
            if batch:
                # a context of its own: a request that is cancelled must not take its neighbours' work with it
                loop = asyncio.get_running_loop()
                task = loop.create_task(self._run(batch), context=contextvars.Context())
                self._tasks.add(task)
                task.add_done_callback(self._finished)

    def _may_leave(self) -> bool:
        if not self._tasks:
            return True
        if len(self._tasks) >= self.slots:
            return False
        waits_s = asyncio.get_running_loop().time() - self._queue[0].since
        return 2 * self._waiting_size >= self.cap or waits_s >= PATIENCE_S

    def _out_of_patience(self) -> None:
        self._patience = None
        self._fill_slots()
        if self._queue:
            self._patience = asyncio.get_running_loop().call_later(PATIENCE_S, self._out_of_patience)

    def _leaves_queue(self, waiting: _Waiting[Item, Answer]) -> None:
        if waiting.is_queued:  # not yet taken for a batch, expired or gone
            waiting.is_queued = False
            self._waiting_size -= waiting.size

    def _next_batch(self) -> list[_Waiting[Item, Answer]]:
        """What goes next; what cannot be done by its deadline is told so now, or an overload works in vain."""
        batch: list[_Waiting[Item, Answer]] = []
        size = 0
        # With nothing under way a batch goes in any case, or one slow start would be believed for ever.
        done_by_s = asyncio.get_running_loop().time() + (
            min(self._took_s, default=0.0) if self._tasks else 0.0
        )
        while self._queue and (not batch or size + self._queue[0].size <= self.cap):
            waiting = self._queue.popleft()
            self._leaves_queue(waiting)
            if waiting.answer.done():  # expired, or its client is gone
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
            # when nobody waits any more, the work is given up and its slot is free
            until_s = min(begun_s + LONGEST_S, max(waiting.deadline for waiting in batch))
            async with asyncio.timeout_at(max(begun_s + LEAST_S, until_s)):
                answers = await self._work([waiting.item for waiting in batch])
            self._took_s.append(loop.time() - begun_s)
            for waiting, answer in zip(batch, answers, strict=True):
                if not waiting.answer.done():
                    waiting.answer.set_result(answer)
        except (Exception, asyncio.CancelledError) as error:
            cancelled = isinstance(error, asyncio.CancelledError)
            for waiting in batch:
                if not waiting.answer.done():
                    waiting.answer.set_exception(
                        RuntimeError("the work was cancelled") if cancelled else error
                    )

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._fill_slots()


def _expire(answer: asyncio.Future[Answer]) -> None:
    if not answer.done():
        answer.set_exception(TimeoutError())
