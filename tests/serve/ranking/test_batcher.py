from __future__ import annotations

import asyncio

import pytest

from serve.ranking.batcher import Batcher
from tests.support import virtual_time


class Work:
    """Doubles its items when it is released; remembers its batches."""

    def __init__(self):
        self.batches = []
        self.gate = asyncio.Event()
        self.cancelled = 0

    async def __call__(self, items):
        self.batches.append(list(items))
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return [2 * item for item in items]


class Slow(Work):
    """Takes 200 ms."""

    async def __call__(self, items):
        self.batches.append(items)
        await asyncio.sleep(0.2)
        return items


class Unlucky(Work):
    """Fails with a batch of item 13."""

    async def __call__(self, items):
        if 13 in items:
            raise ValueError("unlucky")
        return items


def soon(seconds=5.0):
    return asyncio.get_running_loop().time() + seconds


def with_batcher(*, max_in_flight, cap, kind=Work, **constants):
    """Run a test with its work and a batcher of it; `constants` of the module are replaced."""

    def decorated(scenario):
        async def run():
            work = kind()
            await scenario(work, Batcher(work, max_in_flight=max_in_flight, cap=cap))

        def test():
            with pytest.MonkeyPatch.context() as patch:
                for name, value in constants.items():
                    patch.setattr(f"serve.ranking.batcher.{name}", value)
                virtual_time.run(run())

        return test

    return decorated


@with_batcher(max_in_flight=1, cap=100)
async def test_an_idle_batcher_adds_no_wait_and_a_busy_one_gathers(work, batcher):
    first = asyncio.create_task(batcher.submit(1, 10, soon()))
    await asyncio.sleep(0.005)
    assert work.batches == [[1]]
    rest = [asyncio.create_task(batcher.submit(i, 10, soon())) for i in (2, 3, 4)]
    await asyncio.sleep(0.005)
    assert work.batches == [[1]]
    work.gate.set()
    assert await asyncio.gather(first, *rest) == [2, 4, 6, 8]
    assert work.batches == [[1], [2, 3, 4]]


@with_batcher(max_in_flight=1, cap=25)
async def test_a_batch_is_capped_by_size_and_a_larger_item_goes_alone(work, batcher):
    tasks = [
        asyncio.create_task(batcher.submit(i, size, soon())) for i, size in enumerate((1, 10, 10, 10, 99, 1))
    ]
    await asyncio.sleep(0.005)
    work.gate.set()
    await asyncio.gather(*tasks)
    assert work.batches == [[0, 1, 2], [3], [4], [5]]


@with_batcher(max_in_flight=2, cap=1)
async def test_no_more_batches_are_under_way_than_may_be_in_flight(work, batcher):
    tasks = [asyncio.create_task(batcher.submit(i, 1, soon())) for i in range(5)]
    await asyncio.sleep(0.01)
    assert len(work.batches) == 2
    work.gate.set()
    assert await asyncio.gather(*tasks) == [0, 2, 4, 6, 8]


@with_batcher(max_in_flight=2, cap=40)
async def test_a_second_batch_runs_in_parallel_only_when_half_the_cap_waits(work, batcher):
    tasks = [asyncio.create_task(batcher.submit(1, 10, soon()))]
    await asyncio.sleep(0.005)
    tasks.append(asyncio.create_task(batcher.submit(2, 10, soon())))
    await asyncio.sleep(0.005)
    assert work.batches == [[1]]
    # Now half of the cap waits.
    tasks.append(asyncio.create_task(batcher.submit(3, 10, soon())))
    await asyncio.sleep(0.005)
    assert work.batches == [[1], [2, 3]]
    work.gate.set()
    await asyncio.gather(*tasks)


@with_batcher(max_in_flight=2, cap=1_000, PATIENCE_S=0.01)
async def test_a_batch_that_hangs_holds_nobody_up_while_there_is_room(work, batcher):
    tasks = [asyncio.create_task(batcher.submit(1, 10, soon()))]
    await asyncio.sleep(0.005)
    tasks.append(asyncio.create_task(batcher.submit(2, 10, soon())))
    await asyncio.sleep(0.03)
    assert work.batches == [[1], [2]]
    work.gate.set()
    await asyncio.gather(*tasks)


@with_batcher(max_in_flight=2, cap=40)
async def test_what_has_expired_does_not_count_towards_a_further_batch(work, batcher):
    tasks = [asyncio.create_task(batcher.submit(1, 10, soon()))]
    await asyncio.sleep(0.002)
    with pytest.raises(TimeoutError):
        await batcher.submit(2, 10, soon(0.005))
    tasks.append(asyncio.create_task(batcher.submit(3, 10, soon())))
    await asyncio.sleep(0.002)
    assert work.batches == [[1]]
    work.gate.set()
    await asyncio.gather(*tasks)


@with_batcher(max_in_flight=2, cap=10, kind=Slow)
async def test_what_cannot_be_done_by_its_deadline_is_not_begun(work, batcher):
    # From now on the batcher expects 200 ms.
    await batcher.submit(1, 10, soon())
    busy = [asyncio.create_task(batcher.submit(2, 10, soon()))]
    await asyncio.sleep(0.1)
    busy.append(asyncio.create_task(batcher.submit(3, 10, soon())))
    await asyncio.sleep(0.005)
    deadline = soon(0.25)
    # A slot is free in 100 ms, and the work would end after 300 ms.
    with pytest.raises(TimeoutError):
        await batcher.submit(4, 10, deadline)
    assert asyncio.get_running_loop().time() < deadline
    assert await asyncio.gather(*busy) == [2, 3]
    assert work.batches == [[1], [2], [3]]


@with_batcher(max_in_flight=1, cap=100)
async def test_a_request_that_waits_too_long_times_out_without_work(work, batcher):
    first = asyncio.create_task(batcher.submit(1, 1, soon()))
    await asyncio.sleep(0.005)
    with pytest.raises(TimeoutError):
        await batcher.submit(2, 1, soon(0.01))
    work.gate.set()
    assert await first == 2
    await asyncio.sleep(0.005)
    assert work.batches == [[1]]


@with_batcher(max_in_flight=1, cap=1, MIN_WORK_S=0.01)
async def test_work_that_outlasts_every_deadline_gives_its_slot_back(work, batcher):
    with pytest.raises(TimeoutError):
        await batcher.submit(1, 1, soon(0.01))
    await asyncio.sleep(0.01)
    assert work.cancelled == 1
    work.gate.set()
    assert await batcher.submit(2, 1, soon()) == 4


@with_batcher(max_in_flight=1, cap=1)
async def test_callers_with_hardly_any_time_get_no_further_slot(work, batcher):
    for item in range(5):
        with pytest.raises(TimeoutError):
            await batcher.submit(item, 1, soon(0.001))
    assert (work.batches, work.cancelled) == ([[0]], 0)
    work.gate.set()
    assert await batcher.submit(9, 1, soon()) == 18


@with_batcher(max_in_flight=1, cap=1, kind=Unlucky)
async def test_a_failure_reaches_each_item_of_its_batch_and_no_other(work, batcher):
    results = await asyncio.gather(
        *(batcher.submit(i, 1, soon()) for i in (12, 13, 14)), return_exceptions=True
    )
    assert results[0] == 12
    assert isinstance(results[1], ValueError)
    assert results[2] == 14


@with_batcher(max_in_flight=1, cap=1)
async def test_a_client_that_left_is_not_worked_for(work, batcher):
    first = asyncio.create_task(batcher.submit(1, 1, soon()))
    gone = asyncio.create_task(batcher.submit(2, 1, soon()))
    await asyncio.sleep(0.005)
    gone.cancel()
    await asyncio.sleep(0.005)
    work.gate.set()
    await first
    await asyncio.sleep(0.005)
    assert work.batches == [[1]]


@with_batcher(max_in_flight=1, cap=100, MAX_WORK_S=0.06)
async def test_a_patient_item_does_not_hold_its_slot_for_ever(work, batcher):
    with pytest.raises(TimeoutError):
        await batcher.submit(1, 10, soon())
    assert work.cancelled == 1
    work.gate.set()
    assert await batcher.submit(2, 10, soon()) == 4
