"""Ray's Python proxy as HAProxy's backup, with a fake proxy."""

from __future__ import annotations

import asyncio
import json

import pytest

from serve.runtime.backup import MOST_WAITING, Backup
from serve.runtime.fast_path import HAPROXY, FastPath
from tests.support import virtual_time

# Ray warns about its own models at import.
pytestmark = pytest.mark.filterwarnings("ignore:Using extra keyword arguments on `Field`")


class HTTPProxy:
    """Stand-in for Ray's proxy: answers 200 after some seconds; when cancelled, 408 as Ray does."""

    def __init__(self, after_s=0.0, parts=1):
        self.after_s, self.parts = after_s, parts
        self.asked = []

    async def __call__(self, scope, receive, send):
        self.asked.append(scope)
        try:
            await asyncio.sleep(self.after_s)
            await send({"type": "http.response.start", "status": 200, "headers": []})
            for _ in range(self.parts):
                await asyncio.sleep(self.after_s)
                await send({"type": "http.response.body", "body": b"", "more_body": True})
        except asyncio.CancelledError:
            await send({"type": "http.response.start", "status": 408, "headers": []})


def asked(path="/v1/rank", method="POST", **headers):
    named = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return {"type": "http", "method": method, "path": path, "headers": named}


async def answers(way, *scopes):
    """Return the status of each answer, its headers, its body, and the seconds until it came."""

    async def one(scope):
        loop, messages = asyncio.get_running_loop(), []
        begun_s = loop.time()

        async def send(message):
            messages.append(message)

        await way(scope, None, send)
        [head, *parts] = messages
        body = b"".join(part.get("body", b"") for part in parts)
        return head["status"], dict(head["headers"]), body, loop.time() - begun_s

    return await asyncio.gather(*map(one, scopes))


def test_a_ranking_without_a_replica_ends_within_100_ms_of_its_deadline_with_503():
    [(status, headers, body, took_s), (*_, own_s)] = virtual_time.run(
        answers(Backup(HTTPProxy(after_s=5.0)), asked(), asked("/app/v1/rank", x_deadline_ms="20"))
    )
    assert (status, headers[b"retry-after"]) == (503, b"1")
    assert headers[b"content-type"] == b"application/problem+json"
    assert headers[b"content-length"] == b"%d" % len(body)
    assert json.loads(body)["status"] == 503
    assert 0.02 < own_s < took_s
    assert 0.1 <= took_s < 0.5


@pytest.mark.parametrize("given", ["9" * 8, "9" * 400, "-1", "0", "soon", "60000"])
def test_no_header_makes_a_ranking_wait_for_long(monkeypatch, given):
    monkeypatch.setattr("serve.runtime.backup.MOST_S", 0.1)
    [(status, *_, took_s)] = virtual_time.run(
        answers(Backup(HTTPProxy(after_s=5.0)), asked(x_deadline_ms=given))
    )
    assert (status, took_s < 0.5) == (503, True)


def test_what_a_replica_answers_in_time_is_passed_on_whole_however_long_it_takes():
    [(status, *_, took_s)] = virtual_time.run(
        answers(Backup(HTTPProxy(after_s=0.06, parts=4)), asked(x_deadline_ms="60"))
    )
    assert (status, took_s > 0.2) == (200, True)


def test_of_a_flood_few_wait_and_the_rest_is_answered_at_once():
    proxy = HTTPProxy(after_s=5.0)
    ended = virtual_time.run(answers(Backup(proxy), *[asked()] * (MOST_WAITING + 100)))
    assert {status for status, *_ in ended} == {503}
    assert len(proxy.asked) == MOST_WAITING
    assert sum(took_s < 0.1 for *_, took_s in ended) == 100


def test_a_place_is_free_again_after_each_answer():
    async def scenario():
        proxy = HTTPProxy()
        backup = Backup(proxy)
        for _ in range(3):
            assert {status for status, *_ in await answers(backup, *[asked()] * MOST_WAITING)} == {200}
        return len(proxy.asked)

    assert virtual_time.run(scenario()) == 3 * MOST_WAITING


def test_events_have_more_time_and_other_requests_are_left_to_ray():
    scopes = asked("/v1/events", x_deadline_ms="1"), asked("/livez", "GET")
    assert {status for status, *_ in virtual_time.run(answers(Backup(HTTPProxy(after_s=0.15)), *scopes))} == {
        200
    }


def test_a_service_that_only_the_backup_answers_is_not_ready():
    proxy = HTTPProxy()
    scopes = asked("/readyz", "GET"), asked("/app/readyz", "GET")
    answered = virtual_time.run(answers(Backup(proxy), *scopes))
    assert [status for status, *_ in answered] == [503, 503]
    assert proxy.asked == []


class Wrapped:
    """Stand-in for Ray's own middleware between us and the proxy."""

    def __init__(self, app):
        self._app = app

    async def __call__(self, scope, receive, send):
        await self._app(scope, receive, send)


@pytest.mark.parametrize(("haproxy", "status"), [("1", 503), ("0", 200)])
def test_only_behind_haproxy_is_rays_proxy_a_backup(monkeypatch, haproxy, status):
    monkeypatch.setenv(HAPROXY, haproxy)

    way = FastPath(Wrapped(HTTPProxy(after_s=0.15)))
    [(found, *_)] = virtual_time.run(answers(way, asked(x_deadline_ms="1")))
    assert found == status
