"""The HTTP edge: routes, limits, and the one place where an exception becomes an answer. Raw ASGI.

Measured before it was chosen: FastAPI with pydantic bodies costs 98 µs of CPU a request of 55 candidates,
raw ASGI with typed decoding about 10. The OpenAPI document comes from the same types (`serve.openapi`).
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import msgspec

from serve.api import MAX_BODY_BYTES, Problem, RankAnswer, decode_request
from serve.arms import chosen
from serve.errors import RequestError
from serve.feature_fetch import FeatureFetcher
from serve.logs import of_request
from serve.openapi import docs_page, openapi
from serve.records import MAX_EVENTS_BODY_BYTES
from serve.tracing import TRACEPARENT, parent_of, record, trace_id_of

log = logging.getLogger("tabrank")
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

RANK = "/v1/rank"
EVENTS = "/v1/events"
BODY_S = 5.0  # within which a body must have come
JSON = b"application/json"
PROBLEM = b"application/problem+json"
HTML = b"text/html; charset=utf-8"
REQUEST_ID = re.compile(r"[\x21-\x7e]{1,256}")  # what a header's id may be made of


_BUSY = msgspec.json.encode(Problem("busy", 429, "more is asked than can be answered in time; come again"))
# Made once: a refusal that costs as much as a ranking would be no help.
_BUSY_HEAD = [
    (b"content-type", PROBLEM),
    (b"content-length", str(len(_BUSY)).encode()),
    (b"retry-after", b"1"),
]


class Edge:
    """An ASGI application around one `FeatureFetcher`."""

    def __init__(self, fetcher: FeatureFetcher) -> None:
        self._fetcher = fetcher
        self._warned_s = float("-inf")
        self._encoder = msgspec.json.Encoder()
        self._openapi = msgspec.json.encode(openapi(fetcher.surface))
        self._docs = docs_page(openapi(fetcher.surface)).encode()
        self._get: dict[str, Callable[[], tuple[bytes, bytes]]] = {
            "/v1/model": lambda: (JSON, self._encoder.encode(fetcher.describe())),
            "/livez": lambda: (JSON, b'{"live":true}'),
            "/readyz": lambda: (JSON, self._encoder.encode(fetcher.status())),
            "/openapi.json": lambda: (JSON, self._openapi),
            "/docs": lambda: (HTML, self._docs),
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> int:
        """Answer one ASGI scope; the HTTP status that was answered, 0 where there is none."""
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
        elif scope["type"] == "http":
            if scope["path"] == RANK and self._fetcher.refuses():
                await send({"type": "http.response.start", "status": 429, "headers": [*_BUSY_HEAD]})
                await send({"type": "http.response.body", "body": _BUSY})
                return 429
            return await self._http(scope, receive, send)
        return 0

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> int:
        headers = dict(scope["headers"])
        request_id = None
        retry_after: list[tuple[bytes, bytes]] = []
        try:
            request_id = _request_id(headers)
            status, kind, body = 200, *await self._route(scope, headers, request_id, receive)
        except RequestError as error:
            status, kind = error.status, PROBLEM
            if error.retry_after_s is not None:
                retry_after = [(b"retry-after", str(error.retry_after_s).encode())]
            problem = Problem(
                error.title, error.status, error.detail, "about:blank", error.pointer, request_id
            )
            body = self._encoder.encode(problem)
        except Exception:
            parent = parent_of(headers) if TRACEPARENT in headers else None
            trace_id = trace_id_of(parent) if parent is not None else None
            log.exception("request %s failed", request_id, extra=of_request(request_id, trace_id))
            status, kind = 500, PROBLEM
            detail = "something went wrong on our side; the request id finds it in the log"
            body = self._encoder.encode(Problem("internal error", 500, detail, request_id=request_id))
        length = str(len(body)).encode()
        head = [(b"content-type", kind), (b"content-length", length), *retry_after]
        await send({"type": "http.response.start", "status": status, "headers": head})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})
        return status

    async def _route(
        self, scope: Scope, headers: dict[bytes, bytes], request_id: str | None, receive: Receive
    ) -> tuple[bytes, bytes]:
        path, method = scope["path"], scope["method"]
        if root := scope.get(
            "root_path"
        ):  # of the server and the application's route_prefix; the path begins with it
            path = path.removeprefix(root)
        if path == RANK:
            _require(method, "POST", path)
            return JSON, await self._rank(headers, request_id, receive)
        if path == EVENTS:
            _require(method, "POST", path)
            return JSON, await self._events(headers, receive)
        if path in self._get:
            _require("GET" if method == "HEAD" else method, "GET", path)
            return self._get[path]()
        raise RequestError(404, "not found", f"there is no {path}; /docs lists what there is")

    async def _rank(self, headers: dict[bytes, bytes], request_id: str | None, receive: Receive) -> bytes:
        fetcher = self._fetcher
        _require_json(headers)
        arm = None
        if b"x-arm" in headers:
            arm = chosen(fetcher.config, headers[b"x-arm"].decode("latin-1"), headers.get(b"x-api-key"))
        deadline_ms = _deadline_ms(headers.get(b"x-deadline-ms"))
        body = await _read_in_time(headers, receive, MAX_BODY_BYTES)
        request = decode_request(body, fetcher.surface, event_clock=fetcher.event_clock)
        if request.request_id is None:
            request.request_id = request_id
        answer = await fetcher.rank(request, deadline_ms, arm)
        encoded = self._encoder.encode(answer)
        if TRACEPARENT in headers:
            self._trace(headers, answer)
        return encoded

    def _trace(self, headers: dict[bytes, bytes], answer: RankAnswer) -> None:
        """Export the ranking's spans, where the caller samples; an exporter of whoever wrote it costs no answer."""
        try:
            parent = parent_of(headers)
            if parent is not None:
                record(parent, answer)
        except Exception as error:
            now = time.monotonic()
            if now - self._warned_s >= 10.0:  # under load it would be every request
                self._warned_s = now
                extra = of_request(answer.request_id)
                log.warning("span not exported: %s: %s", type(error).__name__, error, extra=extra)

    async def _events(self, headers: dict[bytes, bytes], receive: Receive) -> bytes:
        _require_json(headers)
        body = await _read_in_time(headers, receive, MAX_EVENTS_BODY_BYTES)
        return self._encoder.encode(await self._fetcher.take(body))


async def _read_in_time(headers: dict[bytes, bytes], receive: Receive, max_bytes: int) -> bytes:
    """The body, or 408 for a client that is slow to send it. (`asyncio.timeout` costs 14 µs, this 2.)"""
    task = asyncio.current_task()
    assert task is not None  # an ASGI server runs each request in one
    alarm = asyncio.get_running_loop().call_later(BODY_S, task.cancel, "body")
    try:
        return await _read(headers, receive, max_bytes)
    except asyncio.CancelledError as error:
        if error.args != ("body",) or task.uncancel():
            raise
        detail = f"the body had not come within {BODY_S:g} s; send it at once"
        raise RequestError(408, "request timeout", detail) from None
    finally:
        alarm.cancel()


async def _read(headers: dict[bytes, bytes], receive: Receive, max_bytes: int) -> bytes:
    parts, size = [], 0
    more = True
    declared = headers.get(b"content-length", b"0")
    if declared.isdigit():
        size = int(declared) if int(declared) > max_bytes else 0
    while more and size <= max_bytes:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise RequestError(400, "disconnected", "the client left before its body was read")
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        more = message.get("more_body", False)
    if size > max_bytes:
        raise RequestError(413, "body too large", f"a body may have {max_bytes} bytes; send less at once")
    return b"".join(parts)


def _request_id(headers: dict[bytes, bytes]) -> str | None:
    given = headers.get(b"x-request-id")
    if given is None:
        return None
    text = given.decode("latin-1")
    if not REQUEST_ID.fullmatch(text):
        raise RequestError(
            400, "bad header", "X-Request-Id must be 1 to 256 printable ASCII characters, no space"
        )
    return text


def _deadline_ms(given: bytes | None) -> int | None:
    if given is None:
        return None
    if not given.isdigit() or len(given) > 5 or not 1 <= int(given) <= 60_000:
        raise RequestError(400, "bad header", "X-Deadline-Ms must be a whole number from 1 to 60000")
    return int(given)


def _require_json(headers: dict[bytes, bytes]) -> None:
    kind = headers.get(b"content-type", JSON).partition(b";")[0].strip().lower()
    if kind != JSON:
        raise RequestError(
            415, "unsupported media type", f"send {JSON.decode()}, not {kind.decode('latin-1')}"
        )


def _require(method: str, wanted: str, path: str) -> None:
    if method != wanted:
        raise RequestError(405, "method not allowed", f"{path} takes {wanted}, not {method}")


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": message["type"] + ".complete"})
        if message["type"] == "lifespan.shutdown":
            return
