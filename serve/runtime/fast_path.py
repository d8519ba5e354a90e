"""Fast path for POST requests: from Ray's HTTP server straight to our ASGI application.

Ray's ingress costs more CPU per request than the ranking itself. It creates two request ids, tasks
for the call, the timeout and the disconnect watch, contexts for tracing, multiplexing and sessions,
and a log record that is discarded. A ranking needs none of these. It has its own id, deadline and
spans (`serve.http.tracing`), and a cancelled request stays in its batch anyway.

The fast path updates those of Ray's own counters on which the cluster depends: the slots of
`max_ongoing_requests`, the ongoing requests (for autoscaling and graceful stops) and the request
metrics.

A request takes a slot when its body is complete, so a slow sender does not hold one. If no slot is
free, the request is refused, usually before its body is read. Ray's own refusal costs more than a
ranking, so that an overload would make itself worse.

The module uses private attributes of `Replica` in Ray 2.60.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections.abc import Awaitable, Callable, MutableMapping
from functools import wraps
from typing import Any

import uvicorn
from starlette.middleware import Middleware
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from serve.contract.rankings import new_request_id
from serve.http.app import EVENTS, RANK, Edge, path_of
from serve.http.request_headers import VALID_ID
from serve.ranking.admission import overloaded
from serve.runtime.backup import Backup
from serve.runtime.metrics import FLUSH_EVERY_S

# How many times to listen on each socket. Uvicorn then accepts this many connections in an
# iteration of the event loop.
ACCEPTS = 16
log = logging.getLogger("tabrank")
Scope = MutableMapping[str, Any]
App = Callable[[Scope, Any, Any], Awaitable[Any]]

# One in this many latencies goes into Ray's two histograms. A value costs 40 µs, mostly in Ray's
# agent, which replays the values one by one. `serve.runtime.metrics` records all of them.
SAMPLED = 64

# The variable is 1 if HAProxy is the ingress, and Ray's Python proxy its backup.
HAPROXY = "RAY_SERVE_ENABLE_HA_PROXY"
REQUEST_ID = b"x-request-id"
# Headers by which a client could switch off Ray's guards.
GUARDS = (b"x-request-disconnect-disabled", b"x-request-timeout-seconds")


class FastPath:
    """ASGI middleware around Ray's own request handling."""

    def __init__(self, app: App) -> None:
        self._replica = _Replica.of(app)
        is_proxy = type(getattr(app, "_app", None)).__name__ == "HTTPProxy"
        is_backup = is_proxy and os.environ.get(HAPROXY) == "1"
        self._ray_app = Backup(app) if is_backup else app

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        """Answer POST requests to our paths; pass every other request to Ray."""
        replica = self._replica
        if replica is not None and scope.get("method") == "POST" and replica.serves(scope):
            await replica.answer(scope, receive, send)
        else:
            if "headers" in scope:
                scope["headers"] = [header for header in scope["headers"] if _is_for_ray(*header)]
            await self._ray_app(scope, receive, send)


class _Replica:
    """The slots and counters of a Ray replica that the fast path uses."""

    @classmethod
    def of(cls, app: Any) -> _Replica | None:
        """Return our replica behind Ray's HTTP server; None in Ray's proxy and for other code."""
        replica: Any = getattr(getattr(app, "_app", None), "__self__", None)
        is_ours = isinstance(getattr(replica, "_user_callable_asgi_app", None), Edge)
        # Ray has a setting with which it runs our code in another thread.
        if is_ours and not replica._user_callable_wrapper._run_user_code_in_separate_thread:
            return cls(replica)
        if replica is not None:
            log.warning("requests take Ray's own, slower path: no ingress of tabrank in this thread")
        return None

    def __init__(self, replica: Any) -> None:
        from ray.serve._private.common import RequestMetadata, RequestProtocol
        from ray.serve._private.request_ingress_metrics import RequestIngressMetrics

        self._edge: Edge = replica._user_callable_asgi_app
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
        # Latencies of the last second, by status.
        self._latencies_ms: dict[int, list[float]] = {}
        self._stay_in_rotation(replica)

    @staticmethod
    def _stay_in_rotation(replica: Any) -> None:
        """Pass HAProxy's health checks until the replica stops listening.

        A replica that leaves still serves for RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S, but
        Ray fails its health checks at once. HAProxy learns of the successor a second later. All
        requests in between would go to Ray's Python proxy, a few hundred in a redeploy.
        """
        check = replica._dataplane_health_check

        async def is_healthy() -> tuple[bool, str]:
            healthy, message = await check()
            return healthy or (replica._shutting_down and replica._healthy), message

        replica._dataplane_health_check = is_healthy

    def serves(self, scope: Scope) -> bool:
        """Return True for our paths below the server's root and the `route_prefix`."""
        return path_of(scope) in self._paths

    async def answer(self, scope: Scope, receive: Any, send: Any) -> None:
        """Answer a request, hold a slot once its body is complete, and update Ray's metrics."""
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
                    raise overloaded()
                await self._slots.acquire()
                self._begin(self._request)
                holds = True
            return message

        began = time.perf_counter()
        if self._prefix:
            scope["root_path"] = scope.get("root_path", "") + self._prefix
        try:
            if self._slots.locked():
                status = await self._edge.busy(scope, send_with_id, began)
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
        """Report the last second to Ray: all requests in counters, one in SAMPLED in histograms."""
        reported, self._latencies_ms = self._latencies_ms, {}
        for status, latencies_ms in reported.items():
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
    """Return the answer's request id: the last `X-Request-Id` if it is valid, or a new one."""
    given: bytes | None = dict(scope["headers"]).get(REQUEST_ID)
    if given is not None and VALID_ID.fullmatch(given):
        return given
    minted = new_request_id().encode()
    if given is None:
        scope["headers"] = [*scope["headers"], (REQUEST_ID, minted)]
    return minted


def _is_for_ray(name: bytes, value: bytes) -> bool:
    """Return False for headers that switch off a guard, and for invalid request ids.

    Ray would repeat an invalid id in its answer, or fail on it.
    """
    return name not in GUARDS and (name != REQUEST_ID or VALID_ID.fullmatch(value) is not None)


def accept_more() -> None:
    """Make uvicorn servers that start in this process listen `ACCEPTS` times on each socket."""
    startup = uvicorn.Server.startup
    if hasattr(startup, "__wrapped__"):
        return

    @wraps(startup)
    async def listen(server: uvicorn.Server, sockets: list[socket.socket] | None = None) -> Any:
        more = [one.dup() for one in sockets or [] for _ in range(ACCEPTS - 1)]
        return await startup(server, sockets and [*sockets, *more])

    uvicorn.Server.startup = listen  # type: ignore[method-assign, assignment]


def drop_trailers() -> None:
    """Make the uvicorn servers of this process ignore the trailers of chunked bodies.

    uvicorn appends trailers to the headers. An API key or a deadline in a trailer would bypass any
    proxy that inspects the headers before the service.
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
    """Return the fast path as middleware; Ray calls it in each process before it listens.

    `RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH` names this function.
    """
    accept_more()
    drop_trailers()
    return [Middleware(FastPath)]
