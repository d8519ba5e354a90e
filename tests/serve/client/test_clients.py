from __future__ import annotations

import asyncio
import inspect
import socket
import subprocess
import sys
import time

import pytest

from serve.client import AsyncClient, Client, ClientError, Refused, TimedOut, Unreachable
from serve.contract.errors import TabrankError
from serve.contract.rankings import StatedCandidate
from serve.contract.records import Event, Rejected
from tests.support.scripted_server import DROP, HANG, Slowly, answer, problem, scripted

RANKING = {
    "request_id": "r1",
    "surface": "spaces",
    "surface_version": "5f0c1d2e3b4a",
    "experiment": None,
    "arm": "model",
    "model": "v1",
    "rung": "full",
    "degraded": [],
    "unknown_viewer": False,
    "unknown_candidates": [],
    "freshness_ms": 1.5,
    "timing_ms": {"queue": 0.1, "features": 1, "score": 2, "total": 3.1},
    "ranking": [{"candidate": "b", "score": 0.5, "position": 1}],
}
RANKED = answer(200, RANKING)
# HAProxy's answer for a replica that died.
BARE = answer(500, b"Internal Server Error", "text/plain")
TAKEN = answer(207, {"accepted": 1, "duplicates": 0, "rejected": [{"pointer": "/records/1", "detail": "no"}]})
EVENT = Event("e1", "ann", "a", "join", ts_ms=5)


@pytest.fixture(params=["threads", "asyncio"])
def call(request):
    """Return a function that runs a call with each kind of client."""

    def sync(url, use, **settings):
        with Client(url, **settings) as client:
            return use(client)

    def of_asyncio(url, use, **settings):
        async def run():
            async with AsyncClient(url, **settings) as client:
                return await use(client)

        return asyncio.run(run())

    return sync if request.param == "threads" else of_asyncio


def rank(client):
    return client.rank("ann", ["a", "b"], timeout_s=2.0)


def test_a_ranking_is_asked_for_in_full_and_comes_back_typed(call):
    with scripted(RANKED) as server:
        got = call(
            server.url + "/front/",
            lambda client: client.rank(
                None,
                ["a", StatedCandidate("b", {"price": 2.0}), {"candidate": "c"}],
                limit=2,
                pins={"c": 1},
                context={"hour": 3},
                request_id="mine",
                explain=True,
                traffic="test",
                now_ms=1_700_000_000_000,
            ),
            timeout_s=1.5,
            api_key="secret",
        )
    assert (got.rung, got.ranking[0].candidate, got.timing_ms.total) == ("full", "b", 3.1)
    ((path, headers, body),) = server.asked
    assert path == "/front/v1/rank"
    assert body == {
        "viewer": None,
        "candidates": ["a", {"candidate": "b", "fields": {"price": 2.0}}, {"candidate": "c"}],
        "limit": 2,
        "pins": {"c": 1},
        "context": {"hour": 3},
        "request_id": "mine",
        "explain": True,
        "traffic": "test",
        "now_ms": 1_700_000_000_000,
    }
    assert (headers["x-request-id"], headers["x-api-key"]) == ("mine", "secret")
    assert 1_000 < int(headers["x-deadline-ms"]) <= 1_490


@pytest.mark.parametrize("first", [problem(503), problem(429, retry_after=0), DROP, BARE], ids=str)
def test_a_refused_or_failed_request_is_retried_once_unchanged(call, first):
    with scripted(first, RANKED) as server:
        assert call(server.url, rank).rung == "full"
    (_, before, asked), (_, after, again) = server.asked
    assert asked == again, "so the exposure is counted once"
    assert asked["request_id"] == before["x-request-id"] == after["x-request-id"]
    assert int(after["x-deadline-ms"]) <= int(before["x-deadline-ms"])


@pytest.mark.parametrize("first", [problem(503), DROP, BARE], ids=str)
def test_there_is_no_third_try(call, first):
    with scripted(first, first, RANKED) as server, pytest.raises(ClientError):
        call(server.url, rank)
    assert len(server.asked) == 2


def test_a_refusal_says_all_that_the_service_said(call):
    said = problem(422, "invalid request", pointer="/candidates/1", request_id="r7")
    with scripted(said) as server, pytest.raises(Refused) as caught:
        call(server.url, rank)
    error = caught.value
    assert (error.status, error.title, error.detail) == (422, "invalid request", "so it is")
    assert (error.pointer, error.request_id, error.retry_after_s) == ("/candidates/1", "r7", None)
    assert str(error) == "422 invalid request: so it is (at /candidates/1)"


def test_a_refusal_that_asks_for_more_time_than_there_is_comes_at_once(call):
    with scripted(problem(429, retry_after=3)) as server, pytest.raises(Refused) as caught:
        call(server.url, rank)
    assert (caught.value.status, caught.value.retry_after_s) == (429, 3.0)
    assert len(server.asked) == 1


def test_a_service_that_hangs_costs_the_timeout_and_no_more(call):
    begun = time.monotonic()
    with scripted(HANG) as server, pytest.raises(TimedOut, match=r"did not answer within 0\.05 s") as caught:
        call(server.url, lambda client: client.rank("ann", ["a"], request_id="r9"), timeout_s=0.05)
    assert time.monotonic() - begun < 0.5
    assert caught.value.request_id == "r9"


def test_the_timeout_of_an_asyncio_call_starts_when_it_is_awaited():
    assert inspect.iscoroutinefunction(AsyncClient.rank)
    assert inspect.iscoroutinefunction(AsyncClient.send)

    async def run(url):
        async with AsyncClient(url) as client:
            coroutines = [client.rank("ann", ["a"], timeout_s=0.2), client.send([EVENT], timeout_s=0.2)]
            await asyncio.sleep(0.25)
            return [await coroutine for coroutine in coroutines]

    with scripted(RANKED, TAKEN) as server:
        ranked, sent = asyncio.run(run(server.url))
    assert (ranked.rung, sent.accepted) == ("full", 1)


def test_an_answer_that_comes_byte_by_byte_costs_the_timeout_and_no_more(call):
    begun = time.monotonic()
    with scripted(Slowly(RANKED)) as server, pytest.raises(TimedOut, match=r"did not answer within 0\.05 s"):
        call(server.url, lambda client: client.rank("ann", ["a"]), timeout_s=0.05)
    # The whole answer takes 4 s.
    assert time.monotonic() - begun < 0.5


def test_no_service_is_told_with_its_address(call):
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    with pytest.raises(Unreachable, match=rf"http://127\.0\.0\.1:{port} cannot be reached: .*refused"):
        call(f"http://127.0.0.1:{port}", rank)


def test_what_answers_in_the_place_of_the_service_is_not_taken_for_it(call):
    with (
        scripted(BARE, BARE) as server,
        pytest.raises(Unreachable, match=r"answered 500 in its place: Internal Server Error"),
    ):
        call(server.url, rank)
    hello = answer(200, b"<p>hello</p>", "text/html")
    with scripted(hello) as server, pytest.raises(Unreachable, match="is the address right"):
        call(server.url, rank)
    gateway = answer(403, b"<p>no</p>", "text/html")
    with scripted(gateway) as server, pytest.raises(Refused, match="403 forbidden: <p>no</p>"):
        call(server.url, rank)


def test_words_of_a_newer_service_do_no_harm(call):
    newer = RANKING | {"rung": "fuller", "degraded": ["moonlight"], "more": 1}
    with scripted(answer(200, newer)) as server:
        got = call(server.url, rank)
    assert (got.rung, got.degraded) == ("fuller", ["moonlight"])


def test_records_are_sent_again_as_they_were_and_told_apart(call, caplog):
    with scripted(problem(503, retry_after=0), TAKEN) as server:
        got = call(server.url, lambda client: client.send([EVENT, {"type": "viewer", "id": "bob"}]))
    assert (got.accepted, got.rejected) == (1, [Rejected("/records/1", "no")])
    assert "rejected 1 records; the first: Rejected(pointer='/records/1', detail='no')" in caplog.text
    (path, headers, body), (_, _, again) = server.asked
    assert path == "/v1/events"
    assert "x-deadline-ms" not in headers
    event = {"type": "event", "id": "e1", "viewer": "ann", "candidate": "a", "kind": "join", "ts_ms": 5}
    assert body == again == {"records": [event, {"type": "viewer", "id": "bob"}]}


def test_a_service_in_trouble_gets_a_tenth_more_and_not_as_much_again():
    with scripted(*[DROP] * 60) as server, Client(server.url, timeout_s=2.0) as client:
        for _ in range(40):
            with pytest.raises(Unreachable):
                client.rank("ann", ["a"])
    assert 40 + 13 <= len(server.asked) <= 40 + 16, "ten to begin with, a tenth of 40, and one a second"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"url": "localhost:8000"}, "url 'localhost:8000' is not a service address; use http://HOST:PORT"),
        ({"url": "http://h:x"}, "url 'http://h:x' is not a service address"),
        ({"timeout_s": 0}, "timeout_s is 0; use a number of seconds above 0"),
        ({"api_key": "a\nb"}, "api_key must be 1 to 256 printable ASCII characters"),
    ],
)
def test_a_setting_that_cannot_be_used_is_named(settings, message):
    for kind in (Client, AsyncClient):
        with pytest.raises(TabrankError, match=message):
            kind(**{"url": "http://h"} | settings)


def test_without_httpx2_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "httpx2", None)
    with pytest.raises(TabrankError, match="pip install httpx2"):
        Client("http://h")


@pytest.mark.parametrize("modules", ["serve.client", "serve.contract.rankings, serve.contract.records"])
def test_it_imports_msgspec_and_nothing_else(modules):
    code = f"""
import sys
before = set(sys.modules)
import {modules}
print(*{{name.split(".")[0] for name in set(sys.modules) - before}} - sys.stdlib_module_names)"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    # msgspec imports typing_extensions where it is installed.
    assert {*done.stdout.split()} - {"typing_extensions"} == {"msgspec", modules.split(".")[0]}
