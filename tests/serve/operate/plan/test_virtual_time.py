"""The virtual-time loop runs the service's batcher as asyncio's own loop does."""

from __future__ import annotations

import asyncio
import contextlib
import selectors

import numpy as np
import pytest

from serve.operate.plan.virtual_time import VirtualTimeLoop
from serve.ranking.batcher import Batcher

PATIENCE_S, SLOTS, CAP = 0.095, 2, 10
# The durations of the batches in turn; the last one exceeds every deadline.
TOOK_S = (0.02, 0.05, 0.03, 0.2)


class _NoWait(selectors.SelectSelector):
    """Selector that lets a loop's time pass without waiting."""

    now_s = 0.0

    def select(self, timeout=None):
        self.now_s += max(timeout or 0.0, 0.0)
        return super().select(0)


@contextlib.contextmanager
def asyncio_loop():
    selector = _NoWait()
    loop = asyncio.SelectorEventLoop(selector)
    loop.time = lambda: selector.now_s
    with contextlib.closing(loop):
        yield loop


def batches_of(loop, arrived_s):
    """Return (time, requests) of each batch, and whether each request was answered."""
    batches = []

    async def work(batch):
        batches.append((round(loop.time(), 3), batch))
        await asyncio.sleep(TOOK_S[(len(batches) - 1) % len(TOOK_S)])
        return batch

    async def submit(batcher, request, at_s):
        await asyncio.sleep(at_s - loop.time())
        try:
            await batcher.submit(request, 1, loop.time() + PATIENCE_S)
        except TimeoutError:
            return False
        return True

    async def run():
        batcher = Batcher(work, max_in_flight=SLOTS, cap=CAP)
        answered = await asyncio.gather(*(submit(batcher, i, at) for i, at in enumerate(arrived_s)))
        # The last batch may exceed every deadline.
        await asyncio.sleep(1.0)
        return answered

    return batches, loop.run_until_complete(run())


@pytest.mark.parametrize("rate_rps", [20, 100, 250, 600])
def test_the_batcher_makes_the_same_batches_as_on_asyncios_loop(rate_rps):
    rng = np.random.default_rng(rate_rps)
    arrived_s = np.cumsum(rng.exponential(1 / rate_rps, 150)).tolist()
    with asyncio_loop() as loop:
        expected = batches_of(loop, arrived_s)
    assert batches_of(VirtualTimeLoop(0.0), arrived_s) == expected


def test_calls_run_by_time_and_then_in_the_order_given():
    loop, called = VirtualTimeLoop(1_790_000_000.0), []

    async def run():
        loop.call_later(2.0, called.append, "late")
        loop.call_at(loop.time() + 1.0, called.append, "first")
        loop.call_later(1.0, called.append, "second")
        loop.call_later(1.0, called.append, "cancelled").cancel()
        await asyncio.sleep(3.0)
        return loop.time()

    assert loop.run_until_complete(run()) == 1_790_000_003.0
    assert called == ["first", "second", "late"]


def test_the_error_of_a_callback_ends_the_run():
    loop = VirtualTimeLoop(0.0)

    async def run():
        loop.call_later(1.0, int, "x")
        await asyncio.sleep(2.0)

    with pytest.raises(ValueError, match="invalid literal"):
        loop.run_until_complete(run())
