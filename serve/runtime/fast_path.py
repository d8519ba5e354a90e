"""The short way in: what is posted goes from Ray's HTTP server straight to our edge, inside Ray's own accounts.

Ray's ingress costs more CPU a request than the ranking itself: two request ids, a task each for the call, the timeout
and the disconnect watch, contexts for tracing, multiplexing and sessions, a log record that is thrown away. Nothing of
that is used here: a ranking has its own id, deadline and spans (`serve.http.tracing`), and one that its client has
given up is part of a batch that others wait for. What the cluster lives on is kept, on Ray's own counters: the slot of
`max_ongoing_requests`, the ongoing requests (autoscaling and graceful stops read them) and the request metrics.

A request takes its slot once its body is there: who is slow to send holds none. Where none is free it is refused, as a
rule before its body is read: Ray's own refusal costs more than a ranking, so that an overload would feed on itself.

It reaches into `Replica` of Ray 2.60. Where another Ray has it otherwise, every request takes Ray's own way.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Awaitable, Callable, MutableMapping
from functools import wraps
from typing import Any

import uvicorn
from starlette.middleware import Middleware
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from serve.contract.rankings import new_request_id
from serve.http.app import EVENTS, RANK, VALID_ID, Edge, busy
from serve.runtime.metrics import FLUSH_EVERY_S

ACCEPTS = 16
log = logging.getLogger("tabrank")
Scope = MutableMapping[str, Any]
App = Callable[[Scope, Any, Any], Awaitable[Any]]

SAMPLED = 16
"""One in so many latencies goes into Ray's two histograms: each costs 40 µs, mostly in Ray's agent, which replays
them one by one. `serve.runtime.metrics` has all of them."""

REQUEST_ID = b"x-request-id"
GUARDS = (b"x-request-disconnect-disabled", b"x-request-timeout-seconds")
"""Headers by which Ray lets a client switch off its guards."""


class ShortWay:
    """ASGI middleware around all that Ray does with a request."""

    def __init__(self, app: App) -> None:
        self._rays_way = app
        self._accounts = _Accounts.of(app)

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        """Answer at our edge what is posted to one of its paths; leave everything else to Ray."""
        accounts = self._accounts
        if accounts is not None and scope.get("method") == "POST" and accounts.know(scope):
            await accounts.answer(scope, receive, send)
        else:
            if "headers" in scope:
                scope["headers"] = [header for header in scope["headers"] if _is_for_ray(*header)]
            await self._rays_way(scope, receive, send)


class _Accounts:
    """What we use of a Ray replica: its slots and its counters."""

    @classmethod
    def of(cls, app: Any) -> _Accounts | None:
        """The accounts behind Ray's HTTP server; None in a process that is no replica, or of an unknown Ray."""
        replica = getattr(getattr(app, "_app", None), "__self__", None)
        if replica is None or not hasattr(replica, "_direct_ingress_asgi"):
            return None  # Ray's own proxy
        try:
            return cls(replica)
        except (ImportError, AttributeError, KeyError, TypeError) as error:
            log.warning("this Ray's replica is not known (%s): requests take Ray's own way", error)
            return None

    def __init__(self, replica: Any) -> None:
        from ray.serve._private.common import RequestMetadata, RequestProtocol
        from ray.serve._private.request_ingress_metrics import RequestIngressMetrics

        self._edge = replica._user_callable_asgi_app
        if not isinstance(self._edge, Edge):
            raise TypeError(f"it serves {type(self._edge).__name__}")
        if replica._user_callable_wrapper._run_user_code_in_separate_thread:
            raise TypeError("it runs our code on a thread of its own")
        metrics = self._metrics = replica._metrics_manager
        self._slots = replica._semaphore
        self._begin, self._end = metrics.inc_num_ongoing_requests, metrics.dec_num_ongoing_requests
        self._num_requests = metrics._cached_request_counter
        self._num_http_requests = metrics._cached_ingress_request_counter
        self._busy_ms = metrics._user_code_time_accumulator
        self._slowest_ms = metrics._max_processing_latency_trackers
        self._route = replica._route_prefix or "/"
        self._prefix = self._route.rstrip("/")
        self._paths = frozenset(self._prefix + path for path in (RANK, EVENTS))
        self._names = replica._deployment_id
        self._http, self._tags_of = RequestProtocol.HTTP, RequestIngressMetrics.request_tags
        self._request = RequestMetadata(
            request_id="",
            internal_request_id="",
            is_direct_ingress=True,
            _request_protocol=RequestProtocol.HTTP,
        )
        self._latencies_ms: dict[int, list[float]] = {}  # of the last second, by status

    def know(self, scope: Scope) -> bool:
        """Whether a path is one of ours, below the server's own and the application's `route_prefix`."""
        path: str = scope["path"]
        root: str = scope.get("root_path", "")
        return (path.removeprefix(root) if root else path) in self._paths

    async def answer(self, scope: Scope, receive: Any, send: Any) -> None:
        """Let our edge answer, on a slot from its body on, counted and timed for Ray."""
        request_id = _request_id(scope)
        holds = False

        async def send_with_id(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message["headers"].append((REQUEST_ID, request_id))
            await send(message)

        async def receive_and_begin() -> MutableMapping[str, Any]:
            nonlocal holds
            message: MutableMapping[str, Any] = await receive()
            if message["type"] == "http.request" and not message.get("more_body", False):
                if self._slots.locked():
                    raise busy()
                await self._slots.acquire()
                self._begin(self._request)
                holds = True
            return message

        began = time.perf_counter()
        if self._prefix:
            scope["root_path"] = scope.get("root_path", "") + self._prefix
        try:
            if self._slots.locked():
                status = await self._edge.busy(send_with_id, began)
            else:
                status = await self._edge(scope, receive_and_begin, send_with_id)
        finally:
            if holds:
                self._end(self._request)
                self._slots.release()
        if not self._latencies_ms:
            asyncio.get_running_loop().call_later(FLUSH_EVERY_S, self._flush)
        self._latencies_ms.setdefault(status, []).append((time.perf_counter() - began) * 1e3)

    def _flush(self) -> None:
        """Tell Ray of the last second: every request to its counters, one in SAMPLED to its histograms too."""
        told, self._latencies_ms = self._latencies_ms, {}
        for status, latencies_ms in told.items():
            sampled_ms = latencies_ms[::SAMPLED]
            for latency_ms in sampled_ms:
                self._record(status, latency_ms)
            rest = len(latencies_ms) - len(sampled_ms)
            self._num_requests[self._route] += rest
            self._num_http_requests[self._http][self._tags(status)] += rest
            self._busy_ms.add(sum(latencies_ms) - sum(sampled_ms))
            self._slowest_ms[self._route].add(max(latencies_ms))

    def _record(self, status: int, latency_ms: float) -> None:
        self._metrics.record_request_metrics(route=self._route, latency_ms=latency_ms, is_error=status >= 500)
        self._metrics.record_ingress_request_metrics(
            protocol=self._http,
            method="POST",
            route=self._route,
            app_name=self._names.app_name,
            deployment_name=self._names.name,
            latency_ms=latency_ms,
            is_error=status >= 400,
            status_code=str(status),
        )

    def _tags(self, status: int) -> frozenset[tuple[str, str]]:
        tags = self._tags_of(
            route=self._route, method="POST", application=self._names.app_name, status_code=str(status)
        )
        return frozenset(tags.items())


def _request_id(scope: Scope) -> bytes:
    """Return the id for the answer's header: the last `X-Request-Id` if it is valid, as at the edge, else a new one."""
    given: bytes | None = dict(scope["headers"]).get(REQUEST_ID)
    if given is not None and VALID_ID.fullmatch(given):
        return given
    minted = new_request_id().encode()
    if given is None:
        scope["headers"] = [*scope["headers"], (REQUEST_ID, minted)]
    return minted


def _is_for_ray(name: bytes, value: bytes) -> bool:
    """Neither a switch of a guard, nor a request id that Ray would repeat, or fail on, as it is."""
    return name not in GUARDS and (name != REQUEST_ID or VALID_ID.fullmatch(value) is not None)


def accept_more() -> None:
    """Have uvicorn's servers that start in this process from now on listen on each socket `ACCEPTS` times."""
    startup = uvicorn.Server.startup
    if hasattr(startup, "__wrapped__"):
        return

    @wraps(startup)
    async def listen(server: uvicorn.Server, sockets: list[socket.socket] | None = None) -> Any:
        more = [one.dup() for one in sockets or [] for _ in range(ACCEPTS - 1)]
        return await startup(server, sockets and [*sockets, *more])

    uvicorn.Server.startup = listen  # type: ignore[method-assign, assignment]


def drop_trailers() -> None:
    """Have uvicorn's servers of this process pass on what came in the header block alone.

    uvicorn appends the trailers of a chunked body to the same list. A key or a deadline could come that way, past
    whatever looks at headers before the service.
    """
    complete = HttpToolsProtocol.on_headers_complete
    if hasattr(complete, "__wrapped__"):
        return

    @wraps(complete)
    def on_headers_complete(protocol: HttpToolsProtocol) -> None:
        complete(protocol)
        protocol.scope["headers"] = [*protocol.headers]

    HttpToolsProtocol.on_headers_complete = on_headers_complete  # type: ignore[method-assign, assignment]


def middlewares() -> list[Middleware]:
    """What `RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH` names; Ray calls it in each process before it listens."""
    accept_more()
    drop_trailers()
    return [Middleware(ShortWay)]
