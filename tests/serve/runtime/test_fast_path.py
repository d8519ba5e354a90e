"""Fast path of a ranking, on a fake of Ray 2.60's replica."""

from __future__ import annotations

import asyncio
import json
from collections import Counter, defaultdict
from types import SimpleNamespace

import pytest

from serve.contract.errors import RequestError
from serve.http.answers import refusal, send_answer
from serve.http.app import Edge
from serve.runtime.fast_path import FastPath

# Ray warns about its own models at import.
pytestmark = pytest.mark.filterwarnings("ignore:Using extra keyword arguments on `Field`")


class Answering(Edge):
    """ASGI application that answers with a status when it is released."""

    def __init__(self, status=200):
        self.refused_ms = []
        self.answered = []
        self._service = SimpleNamespace(
            metrics=SimpleNamespace(
                refused=self.refused_ms.append, answered=lambda *made: self.answered.append(made[:3])
            )
        )
        self._routes = {"/v1/rank": "/v1/rank"}
        self.status = status
        self.gate = asyncio.Event()
        self.root_path = None

    async def __call__(self, scope, receive, send):
        self.root_path = scope.get("root_path")
        try:
            while (await receive()).get("more_body"):
                pass
        except RequestError as error:
            return await send_answer(send, refusal(error, "r"))
        await self.gate.wait()
        if self.status is None:
            raise RuntimeError("the edge failed")
        await send({"type": "http.response.start", "status": self.status, "headers": []})
        return self.status


class Slots:
    def __init__(self, number):
        self.free = number

    def locked(self):
        return self.free == 0

    async def acquire(self):
        self.free -= 1

    def release(self):
        self.free += 1


class Metrics:
    def __init__(self):
        self.ongoing = 0
        self._cached_request_counter = Counter()
        self._cached_ingress_request_counter = defaultdict(Counter)
        self._user_code_time_accumulator = SimpleNamespace(add=lambda ms: None)
        self._max_processing_latency_trackers = defaultdict(lambda: SimpleNamespace(add=lambda ms: None))
        self.observed = defaultdict(list)

    def inc_num_ongoing_requests(self, request):
        assert request.is_direct_ingress
        self.ongoing += 1

    def dec_num_ongoing_requests(self, request):
        self.ongoing -= 1

    def record_request_metrics(self, *, route, latency_ms, is_error):
        self._cached_request_counter[route] += 1
        self.observed["deployment"].append(latency_ms)

    def record_ingress_request_metrics(self, *, protocol, method, route, app_name, deployment_name, latency_ms,
                                       is_error, status_code):  # fmt: skip
        tags = {"route": route, "method": method, "application": app_name, "status_code": status_code}
        self._cached_ingress_request_counter[protocol][frozenset(tags.items())] += 1
        self.observed["http"].append(latency_ms)


class Replica:
    def __init__(self, edge, num_slots=2):
        self._user_callable_asgi_app = edge
        self._semaphore = Slots(num_slots)
        self._metrics_manager = Metrics()
        self._route_prefix = "/"
        self._user_callable_wrapper = SimpleNamespace(_run_user_code_in_separate_thread=False)
        self._deployment_id = SimpleNamespace(app_name="spaces", name="FeatureFetch")
        self.rays_way = []
        self._shutting_down, self._healthy = False, True

    async def _dataplane_health_check(self):
        return self._healthy and not self._shutting_down, "a message"

    async def _direct_ingress_asgi(self, scope, receive, send):
        self.rays_way.append(scope)


class Wrapped:
    """Stand-in for Ray's own middleware between us and the replica."""

    def __init__(self, app):
        self._app = app

    async def __call__(self, scope, receive, send):
        await self._app(scope, receive, send)


def fast_path(replica):
    return FastPath(Wrapped(replica._direct_ingress_asgi))


def ranking(**changes):
    return {"type": "http", "method": "POST", "path": "/v1/rank", "headers": [], **changes}


async def whole_body():
    return {"type": "http.request", "body": b"{}", "more_body": False}


async def ask(way, scope, receive=whole_body):
    sent = []

    async def send(message):
        sent.append(message)

    await way(scope, receive, send)
    return sent


def test_a_ranking_takes_the_fast_path_and_holds_a_slot_while_it_runs():
    async def scenario():
        replica = Replica(Answering())
        task = asyncio.create_task(ask(fast_path(replica), ranking()))
        await asyncio.sleep(0.005)
        assert (replica._semaphore.free, replica._metrics_manager.ongoing) == (1, 1)
        replica._user_callable_asgi_app.gate.set()
        assert [message["status"] for message in await task] == [200]
        assert (replica._semaphore.free, replica._metrics_manager.ongoing) == (2, 0)
        assert replica.rays_way == []

    asyncio.run(scenario())


def test_a_failure_gives_its_slot_back():
    async def scenario():
        replica = Replica(Answering(status=None))
        replica._user_callable_asgi_app.gate.set()
        with pytest.raises(RuntimeError, match="the edge failed"):
            await ask(fast_path(replica), ranking())
        assert (replica._semaphore.free, replica._metrics_manager.ongoing) == (2, 0)

    asyncio.run(scenario())


def test_without_a_free_slot_a_request_is_refused_unread_and_counted():
    async def scenario():
        replica = Replica(Answering(), num_slots=1)
        way = fast_path(replica)
        first = asyncio.create_task(ask(way, ranking()))
        await asyncio.sleep(0.005)
        start, body = await ask(way, ranking(headers=[(b"x-request-id", b"mine")]), receive=None)
        headers = dict(start["headers"])
        assert (start["status"], headers[b"retry-after"], headers[b"x-request-id"]) == (429, b"1", b"mine")
        assert headers[b"content-type"] == b"application/problem+json"
        assert json.loads(body["body"])["title"] == "busy"
        assert (replica.rays_way, replica._metrics_manager.ongoing, replica._semaphore.free) == ([], 1, 0)
        assert replica._user_callable_asgi_app.answered == [("POST", "/v1/rank", 429)]
        replica._user_callable_asgi_app.gate.set()
        await first
        way._replica._flush()
        (http,) = replica._metrics_manager._cached_ingress_request_counter.values()
        assert {dict(tags)["status_code"]: count for tags, count in http.items()} == {"200": 1, "429": 1}

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("given", "repeated"),
    [([b"first", b"last"], b"last"), ([b"first", b"\xff" * 3], None), ([b"x" * 257], None), ([], None)],
)
def test_the_last_request_id_comes_back_and_only_if_it_is_valid(given, repeated):
    async def scenario():
        replica = Replica(Answering(), num_slots=1)
        replica._user_callable_asgi_app.gate.set()
        headers = [(b"x-request-id", value) for value in given]
        start, *_ = await ask(fast_path(replica), ranking(headers=headers))
        (answered,) = (value for name, value in start["headers"] if name == b"x-request-id")
        assert answered == repeated if repeated else answered not in given

    asyncio.run(scenario())


def test_an_incomplete_body_holds_no_slot_and_may_find_none_later():
    async def scenario():
        replica = Replica(Answering(), num_slots=1)
        way, rest = fast_path(replica), asyncio.Event()
        parts = [{"type": "http.request", "body": b"{", "more_body": True}]

        async def receive():
            if parts:
                return parts.pop()
            await rest.wait()
            return {"type": "http.request", "body": b"}", "more_body": False}

        slow = asyncio.create_task(ask(way, ranking(), receive))
        await asyncio.sleep(0.005)
        assert (replica._semaphore.free, replica._metrics_manager.ongoing) == (1, 0)
        fast = asyncio.create_task(ask(way, ranking()))
        await asyncio.sleep(0.005)
        assert replica._semaphore.free == 0
        rest.set()
        await asyncio.sleep(0.005)
        replica._user_callable_asgi_app.gate.set()
        assert (await slow)[0]["status"] == 429
        assert (await fast)[0]["status"] == 200
        assert (replica._semaphore.free, replica._metrics_manager.ongoing) == (1, 0)

    asyncio.run(scenario())


@pytest.mark.parametrize("root", ["", "/front"])
def test_events_and_paths_below_a_route_prefix_take_the_fast_path_too(root):
    replica = Replica(Answering())
    replica._route_prefix = "/spaces"
    edge = replica._user_callable_asgi_app
    edge.gate.set()
    scope = ranking(path=f"{root}/spaces/v1/events", root_path=root)
    assert asyncio.run(ask(fast_path(replica), scope))[0]["status"] == 200
    assert (edge.root_path, replica.rays_way) == (f"{root}/spaces", [])


@pytest.mark.parametrize(
    "scope",
    [
        ranking(path="/v1/model", method="GET"),
        ranking(method="GET"),
        ranking(path="/spaces/v1/rank"),
        {"type": "lifespan"},
    ],
    ids=["another path", "another method", "another application's path", "no request"],
)
def test_everything_else_goes_ray_s_way(scope):
    replica = Replica(Answering())
    asyncio.run(ask(fast_path(replica), scope))
    assert replica.rays_way == [scope]


def test_no_client_switches_off_ray_s_guards():
    replica = Replica(Answering())
    headers = [(b"x-request-timeout-seconds", b"0"), (b"x-request-disconnect-disabled", b"?1"), (b"a", b"b")]
    asyncio.run(ask(fast_path(replica), ranking(path="/v1/model", headers=headers)))
    assert replica.rays_way[0]["headers"] == [(b"a", b"b")]


def test_a_request_id_that_is_not_valid_does_not_go_ray_s_way():
    replica = Replica(Answering())
    headers = [(b"x-request-id", value) for value in (b"\xff", b"x" * 257, b"mine")]
    asyncio.run(ask(fast_path(replica), ranking(path="/v1/model", headers=headers)))
    assert replica.rays_way[0]["headers"] == [(b"x-request-id", b"mine")]


def test_rays_counters_get_every_ranking_and_its_histograms_some(monkeypatch):
    monkeypatch.setattr("serve.runtime.fast_path.FLUSH_EVERY_S", 0.01)

    async def scenario():
        replica = Replica(Answering())
        replica._user_callable_asgi_app.gate.set()
        way = fast_path(replica)
        # Ray clears the counter at each of its reports.
        replica._metrics_manager._cached_ingress_request_counter.clear()
        for _ in range(80):
            await ask(way, ranking())
        replica._user_callable_asgi_app.status = 422
        for _ in range(3):
            await ask(way, ranking())
        await asyncio.sleep(0.05)
        metrics = replica._metrics_manager
        assert metrics._cached_request_counter == {"/": 83}
        (http,) = metrics._cached_ingress_request_counter.values()
        by_status = {dict(tags)["status_code"]: count for tags, count in http.items()}
        assert by_status == {"200": 80, "422": 3}
        assert len(metrics.observed["http"]) == len(metrics.observed["deployment"]) == 80 // 64 + 1 + 1

    asyncio.run(scenario())


def test_requests_to_other_code_and_to_a_thread_of_its_own_go_ray_s_way(caplog):
    other, threaded = Replica("another application"), Replica(Answering())
    threaded._user_callable_wrapper._run_user_code_in_separate_thread = True
    for replica in (other, threaded):
        caplog.clear()
        asyncio.run(ask(fast_path(replica), ranking()))
        assert len(replica.rays_way) == 1
        assert "Ray's own, slower path" in caplog.text


def test_in_ray_s_own_proxy_nothing_is_short():
    seen = []

    async def proxy(scope, receive, send):
        seen.append(scope)

    asyncio.run(ask(FastPath(Wrapped(proxy)), ranking()))
    assert len(seen) == 1


def test_a_replica_that_leaves_passes_health_checks_and_a_sick_one_does_not():
    replica = Replica(Answering())
    fast_path(replica)

    def is_healthy():
        healthy, message = asyncio.run(replica._dataplane_health_check())
        assert message == "a message"
        return healthy

    assert is_healthy()
    replica._shutting_down = True
    assert is_healthy()
    replica._healthy = False
    assert not is_healthy()
    replica._shutting_down = False
    assert not is_healthy()
