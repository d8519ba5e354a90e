from __future__ import annotations

import asyncio

import pytest

from serve.ranking.batcher import Batcher


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


def soon(seconds=5.0):
    return asyncio.get_running_loop().time() + seconds


def run(scenario):
    asyncio.run(scenario())


def test_an_idle_batcher_adds_no_wait_and_a_busy_one_gathers():
    async def scenario():
        work = Work()
        batcher = Batcher(work, slots=1, cap=100)
        first = asyncio.create_task(batcher.submit(1, 10, soon()))
        await asyncio.sleep(0.005)
        assert work.batches == [[1]]
        rest = [asyncio.create_task(batcher.submit(i, 10, soon())) for i in (2, 3, 4)]
        await asyncio.sleep(0.005)
        assert work.batches == [[1]]
        work.gate.set()
        assert await asyncio.gather(first, *rest) == [2, 4, 6, 8]
        assert work.batches == [[1], [2, 3, 4]]

    run(scenario)


def test_a_batch_is_capped_by_size_and_a_larger_item_goes_alone():
    async def scenario():
        work = Work()
        batcher = Batcher(work, slots=1, cap=25)
        tasks = [
            asyncio.create_task(batcher.submit(i, size, soon()))
            for i, size in enumerate((1, 10, 10, 10, 99, 1))
        ]
        await asyncio.sleep(0.005)
        work.gate.set()
        await asyncio.gather(*tasks)
        assert work.batches == [[0], [1, 2], [3], [4], [5]]

    run(scenario)


def test_no_more_batches_are_under_way_than_there_are_slots():
    async def scenario():
        work = Work()
        batcher = Batcher(work, slots=2, cap=1)
        tasks = [asyncio.create_task(batcher.submit(i, 1, soon())) for i in range(5)]
        await asyncio.sleep(0.01)
        assert len(work.batches) == 2
        work.gate.set()
        assert await asyncio.gather(*tasks) == [0, 2, 4, 6, 8]

    run(scenario)


def test_a_second_batch_runs_in_parallel_only_when_half_the_cap_waits():
    async def scenario():
        work = Work()
        batcher = Batcher(work, slots=2, cap=40)
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

    run(scenario)


def test_a_batch_that_hangs_holds_nobody_up_while_there_is_a_slot(monkeypatch):
    monkeypatch.setattr("serve.ranking.batcher.PATIENCE_S", 0.01)

    async def scenario():
        work = Work()
        batcher = Batcher(work, slots=2, cap=1_000)
        tasks = [asyncio.create_task(batcher.submit(1, 10, soon()))]
        await asyncio.sleep(0.005)
        tasks.append(asyncio.create_task(batcher.submit(2, 10, soon())))
        await asyncio.sleep(0.03)
        assert work.batches == [[1], [2]]
        work.gate.set()
        await asyncio.gather(*tasks)

    run(scenario)


def test_what_has_expired_does_not_count_towards_a_further_batch():
    async def scenario():
        work = Work()
        batcher = Batcher(work, slots=2, cap=40)
        tasks = [asyncio.create_task(batcher.submit(1, 10, soon()))]
        await asyncio.sleep(0.002)
        with pytest.raises(TimeoutError):
            await batcher.submit(2, 10, soon(0.005))
        tasks.append(asyncio.create_task(batcher.submit(3, 10, soon())))
        await asyncio.sleep(0.002)
        assert work.batches == [[1]]
        work.gate.set()
        await asyncio.gather(*tasks)

    run(scenario)


def test_what_cannot_be_done_by_its_deadline_is_not_begun():
    async def scenario():
        batches = []

        async def work(items):
            batches.append(items)
            await asyncio.sleep(0.2)
            return items

        batcher = Batcher(work, slots=2, cap=10)
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
        assert batches == [[1], [2], [3]]

    run(scenario)


def test_a_request_that_waits_too_long_times_out_without_work():
    async def scenario():
        work = Work()
        batcher = Batcher(work, slots=1, cap=100)
        first = asyncio.create_task(batcher.submit(1, 1, soon()))
        await asyncio.sleep(0.005)
        with pytest.raises(TimeoutError):
            await batcher.submit(2, 1, soon(0.01))
        work.gate.set()
        assert await first == 2
        await asyncio.sleep(0.005)
        assert work.batches == [[1]]

    run(scenario)


def test_work_that_outlasts_every_deadline_gives_its_slot_back(monkeypatch):
    monkeypatch.setattr("serve.ranking.batcher.MIN_WORK_S", 0.01)

    async def scenario():
        work = Work()
        batcher = Batcher(work, slots=1, cap=1)
        with pytest.raises(TimeoutError):
            await batcher.submit(1, 1, soon(0.01))
        await asyncio.sleep(0.01)
        assert work.cancelled == 1
        work.gate.set()
        assert await batcher.submit(2, 1, soon()) == 4

    run(scenario)


def test_callers_with_hardly_any_time_get_no_further_slot():
    async def scenario():
        work = Work()
        batcher = Batcher(work, slots=1, cap=1)
        for item in range(5):
            with pytest.raises(TimeoutError):
                await batcher.submit(item, 1, soon(0.001))
        assert (work.batches, work.cancelled) == ([[0]], 0)
        work.gate.set()
        assert await batcher.submit(9, 1, soon()) == 18

    run(scenario)


def test_a_failure_reaches_each_item_of_its_batch_and_no_other():
    async def scenario():
        async def work(items):
            if 13 in items:
                raise ValueError("unlucky")
            return items

        batcher = Batcher(work, slots=1, cap=1)
        results = await asyncio.gather(
            *(batcher.submit(i, 1, soon()) for i in (12, 13, 14)), return_exceptions=True
        )
        assert results[0] == 12
        assert isinstance(results[1], ValueError)
        assert results[2] == 14

    run(scenario)


def test_a_client_that_left_is_not_worked_for():
    async def scenario():
        work = Work()
        batcher = Batcher(work, slots=1, cap=1)
        first = asyncio.create_task(batcher.submit(1, 1, soon()))
        gone = asyncio.create_task(batcher.submit(2, 1, soon()))
        await asyncio.sleep(0.005)
        gone.cancel()
        await asyncio.sleep(0.005)
        work.gate.set()
        await first
        await asyncio.sleep(0.005)
        assert work.batches == [[1]]

    run(scenario)


def test_a_patient_item_does_not_hold_its_slot_for_ever(monkeypatch):
    monkeypatch.setattr("serve.ranking.batcher.MAX_WORK_S", 0.06)

    async def scenario():
        work = Work()
        batcher = Batcher(work, slots=1, cap=100)
        with pytest.raises(TimeoutError):
            await batcher.submit(1, 10, soon())
        assert work.cancelled == 1
        work.gate.set()
        assert await batcher.submit(2, 10, soon()) == 4

    run(scenario)
