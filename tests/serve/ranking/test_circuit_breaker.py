"""Circuit breaker around a scorer that fails, hangs and recovers."""

from __future__ import annotations

import asyncio

import pytest

from serve.contract.errors import ScorerUnavailable
from serve.ranking.circuit_breaker import FAILURES, MAX_UNUSED_S, RETRY_S, CircuitBreaker
from tests.support import virtual_time


class FakeScorer:
    """Scorer that answers, raises or hangs on request."""

    def __init__(self):
        self.error, self.hangs = None, False
        self.calls = []

    async def __call__(self, version, payload):
        self.calls.append(payload)
        if self.hangs:
            await asyncio.sleep(60)
        if self.error:
            raise self.error
        return payload


async def fail(breaker, times=FAILURES):
    for _ in range(times):
        with pytest.raises(ConnectionError):
            await breaker("v", b"bad")


async def until_well(breaker):
    async with asyncio.timeout(5):
        while True:
            try:
                return await breaker("v", b"new")
            except ScorerUnavailable:
                await asyncio.sleep(0.01)


def test_a_scorer_that_fails_repeatedly_is_probed_until_it_answers():
    async def scenario():
        scorer = FakeScorer()
        breaker = CircuitBreaker(scorer)
        assert await breaker("v", b"good") == b"good"
        scorer.error = ConnectionError("gone")
        await fail(breaker)
        num_calls = len(scorer.calls)
        with pytest.raises(ScorerUnavailable):
            await breaker("v", b"refused at once")
        assert len(scorer.calls) == num_calls
        scorer.error = None
        assert await until_well(breaker) == b"new"
        assert scorer.calls[num_calls:] == [b"good", b"new"]

    virtual_time.run(scenario())


def test_an_unused_scorer_is_not_probed_until_the_next_request():
    async def scenario():
        scorer = FakeScorer()
        breaker = CircuitBreaker(scorer)
        scorer.error = FileNotFoundError("the version is gone")
        for _ in range(FAILURES):
            with pytest.raises(FileNotFoundError):
                await breaker("v", b"bad")
        await asyncio.sleep(MAX_UNUSED_S + 5 * RETRY_S)
        num_calls = len(scorer.calls)
        assert num_calls > FAILURES
        await asyncio.sleep(MAX_UNUSED_S)
        assert len(scorer.calls) == num_calls
        with pytest.raises(FileNotFoundError):
            await breaker("v", b"asked again")
        with pytest.raises(ScorerUnavailable):
            await breaker("v", b"refused at once")
        scorer.error = None
        assert await until_well(breaker) == b"new"

    virtual_time.run(scenario())


def test_a_failure_now_and_then_is_none_of_its_business():
    async def scenario():
        scorer = FakeScorer()
        breaker = CircuitBreaker(scorer)
        for _ in range(3):
            scorer.error = ConnectionError("gone")
            await fail(breaker, FAILURES - 1)
            scorer.error = None
            assert await breaker("v", b"good") == b"good"

    virtual_time.run(scenario())


def test_a_hanging_scorer_opens_the_circuit_and_its_calls_go_on():
    async def scenario():
        scorer = FakeScorer()
        breaker = CircuitBreaker(scorer)
        scorer.hangs = True
        for _ in range(FAILURES):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(breaker("v", b"hung"), 0.01)
        with pytest.raises(ScorerUnavailable):
            await breaker("v", b"refused at once")
        hung = [task for task in asyncio.all_tasks() if not task.done()]
        assert len(hung) >= FAILURES + 1, "Ray counts them, and sends what comes to another replica"
        scorer.hangs = False
        assert await until_well(breaker) == b"new"

    virtual_time.run(scenario())
