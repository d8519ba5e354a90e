"""Reading of request bodies: limits on time, number and size."""

from __future__ import annotations

import asyncio

import pytest

from serve.contract.errors import RequestError
from serve.http.body_reader import BODY_S, LOOK_S, BodyReader
from tests.support import virtual_time

LIMIT = 1_000


def arriving(*parts, then=None):
    """A `receive` that returns the parts and then waits for the event `then`, or forever."""
    waiting = list(parts)

    async def receive():
        if waiting:
            return {"type": "http.request", "body": waiting.pop(0), "more_body": True}
        await (then or asyncio.Event()).wait()
        return {"type": "http.request", "body": b"", "more_body": False}

    return receive


async def status_of(reading):
    try:
        return await reading
    except RequestError as error:
        return error.status


def at_once(body):
    async def receive():
        return {"type": "http.request", "body": body, "more_body": False}

    return receive


@pytest.fixture
def bodies():
    return BodyReader()


def test_a_slow_body_is_cut_off_and_the_others_go_on(bodies):
    async def scenario():
        loop = asyncio.get_running_loop()
        slow = asyncio.create_task(status_of(bodies.read({}, arriving(b"{"), LIMIT)))
        await asyncio.sleep(BODY_S / 2)
        assert await bodies.read({}, at_once(b"{}"), LIMIT) == b"{}"
        then = asyncio.Event()
        later = asyncio.create_task(status_of(bodies.read({}, arriving(b"[", b"]", then=then), LIMIT)))
        assert await slow == 408
        assert BODY_S <= loop.time() <= BODY_S + LOOK_S
        then.set()
        assert await later == b"[]"

    virtual_time.run(scenario())


def test_with_too_many_bodies_the_oldest_incomplete_one_is_cut_off(bodies, monkeypatch):
    monkeypatch.setattr("serve.http.body_reader.MAX_WAITING", 2)

    async def scenario():
        then = asyncio.Event()
        slow = []
        for _ in range(4):
            slow.append(asyncio.create_task(status_of(bodies.read({}, arriving(b"x", then=then), LIMIT))))
            await asyncio.sleep(0)
        assert await bodies.read({}, at_once(b"{}"), LIMIT) == b"{}"
        await asyncio.sleep(0)
        then.set()
        return await asyncio.gather(*slow)

    assert virtual_time.run(scenario()) == [408, 408, 408, b"x"]


def test_what_waits_is_bounded_in_bytes(bodies, monkeypatch):
    monkeypatch.setattr("serve.http.body_reader.MAX_WAITING_BYTES", 1_500)

    async def scenario():
        then = asyncio.Event()
        slow = [
            asyncio.create_task(
                status_of(bodies.read({}, arriving(b"x" * 400, b"x" * 400, then=then), LIMIT))
            )
            for _ in range(3)
        ]
        await asyncio.sleep(LOOK_S)
        cut_off = [task.done() for task in slow]
        then.set()
        answers = await asyncio.gather(*slow)
        return cut_off, [answer if answer == 408 else len(answer) for answer in answers]

    # A second time: what was read or cut off no longer counts.
    for _ in range(2):
        assert virtual_time.run(scenario()) == ([True, True, False], [408, 408, 800])


@pytest.mark.parametrize("declared", [b"1001", b"9" * 5_000])
def test_a_body_that_says_it_is_too_large_is_not_read(bodies, declared):
    headers = {b"content-length": declared}
    assert asyncio.run(status_of(bodies.read(headers, arriving(), LIMIT))) == 413


@pytest.mark.parametrize("declared", [b"2", b"-1", b"\xb2"])
def test_a_body_longer_than_declared_is_cut_off_at_the_limit(bodies, declared):
    headers = {b"content-length": declared}
    assert asyncio.run(status_of(bodies.read(headers, arriving(b"x" * 600, b"x" * 600), LIMIT))) == 413


def test_another_cancellation_stays_one(bodies):
    async def scenario():
        task = asyncio.create_task(bodies.read({}, arriving(b"{"), LIMIT))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        # A body that is forgotten is not cut off either.
        await asyncio.sleep(2 * BODY_S)

    virtual_time.run(scenario())


def test_the_rest_of_a_refused_body_is_dropped_within_limits(bodies, monkeypatch):
    monkeypatch.setattr("serve.http.body_reader.LINGER_BYTES", 3 * LIMIT)
    left = [b"x" * LIMIT] * 10

    async def endless():
        return {"type": "http.request", "body": left.pop(), "more_body": True}

    async def gone():
        return {"type": "http.disconnect"}

    async def scenario():
        await bodies.discard(at_once(b"x" * LIMIT))
        await bodies.discard(endless)
        await bodies.discard(gone)
        await bodies.discard(arriving(b"x"))
        return asyncio.get_running_loop().time()

    assert BODY_S <= virtual_time.run(scenario()) <= BODY_S + LOOK_S
    assert len(left) == 7
