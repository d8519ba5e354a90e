"""ASGI application: routes, limits, and the one place that turns exceptions into answers.

Raw ASGI with typed decoding costs about 10 µs of CPU for a request of 55 candidates; FastAPI with
pydantic bodies costs 98 µs. `serve.http.openapi` builds the OpenAPI document from the same types.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from contextlib import nullcontext
from typing import Any, Final, NamedTuple

import msgspec

from serve.config.settings import ApiKey
from serve.contract.errors import RequestError
from serve.contract.logs import of_request
from serve.contract.messages import quoted
from serve.contract.rankings import MAX_BODY_BYTES, Problem
from serve.contract.records import MAX_EVENTS_BODY_BYTES
from serve.http.auth import Authenticator
from serve.http.body_reader import BodyReader, Receive
from serve.http.decoding import decode_request
from serve.http.docs import FILES, KINDS, OF_FILES, OF_PAGE, contents, docs_page
from serve.http.introspection import Liveness, description, readiness
from serve.http.openapi import openapi
from serve.http.tracing import TRACEPARENT, parent_of, record, record_failed, trace_id_of
from serve.log.events import decode_batch
from serve.ranking.admission import STAMP
from serve.ranking.assignment import requested_arm
from serve.ranking.record_intake import RecordsUnderWay, take
from serve.ranking.service import RankingService

log = logging.getLogger("tabrank")
Scope = MutableMapping[str, Any]
Header = tuple[bytes, bytes]
Headers = dict[bytes, bytes]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

RANK = "/v1/rank"
EVENTS = "/v1/events"
# Paths that need no API key.
OPEN: Final = frozenset(("/livez", "/readyz", "/openapi.json", "/docs", *FILES))
# HAProxy takes a little more: 101 headers, of 19 KiB with the request line.
MAX_HEADERS = 100
# Beside the client's: HAProxy's stamp, and an id where the client gave none.
OUR_HEADERS = 2
# A body that came with its headers is read within this time.
WHOLE_S = 0.001
MAX_HEADER_BYTES = 16 * 1024
# After these statuses the connection is closed without waiting for the rest of the body.
CUT_OFF = (408, 413)
JSON = b"application/json"
PROBLEM = b"application/problem+json"
# Methods that metrics name; every other one is `_OTHER`, as in OpenTelemetry's conventions.
METHODS: Final = frozenset(("GET", "HEAD", "POST"))
# A request id in a header.
VALID_ID = re.compile(rb"[\x21-\x7e]{1,256}")


def busy() -> RequestError:
    """Return the refusal of an overloaded replica."""
    return RequestError(429, "busy", "server overloaded; retry later", retry_after_s=1)


_BUSY = msgspec.json.encode(Problem("busy", 429, busy().detail))
_BUSY_HEAD = [
    (b"content-type", PROBLEM),
    (b"content-length", str(len(_BUSY)).encode()),
    (b"retry-after", b"1"),
]


class _Unread(Exception):
    """A ranking is refused before its body is read."""


class _Answer(NamedTuple):
    """Body of an answer, with its type, its status and its other headers."""

    kind: bytes
    body: bytes
    status: int = 200
    more: Sequence[Header] = ()


class Edge:
    """ASGI application around one `RankingService`."""

    def __init__(self, fetcher: RankingService, keys: Authenticator | None = None) -> None:
        self._fetcher = fetcher
        self._keys = keys or Authenticator()
        self._bodies = BodyReader()
        self._records = RecordsUnderWay()
        self._encoder = msgspec.json.Encoder()
        document = openapi(fetcher.surface, event_clock=fetcher.event_clock)
        self._openapi = msgspec.json.encode(document)
        self._docs = docs_page(document["info"]["title"])
        self._get: dict[str, Callable[[], _Answer]] = {
            "/v1/model": lambda: _Answer(JSON, self._encoder.encode(description(fetcher))),
            "/livez": lambda: _Answer(JSON, self._encoder.encode(Liveness(True))),
            "/readyz": lambda: _Answer(JSON, self._encoder.encode(readiness(fetcher))),
            "/openapi.json": lambda: _Answer(JSON, self._openapi),
            "/docs": lambda: _Answer(KINDS["html"], self._docs, more=OF_PAGE),
        }
        self._routes = {path: path for path in (RANK, EVENTS, *self._get)}
        self._routes |= dict.fromkeys(FILES, "/docs/{file}")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> int:
        """Answer one ASGI scope; return the HTTP status, 0 if the scope has none."""
        begun = time.perf_counter()
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
        elif scope["type"] == "websocket":
            # Before a handshake is accepted, this answers 403. Ray's proxy fails without a code.
            await send({"type": "websocket.close", "code": 1008})
        elif scope["type"] == "http":
            try:
                return self._answered(scope, await self._http(scope, receive, send), begun)
            except _Unread:
                return await self.busy(scope, send, begun)
        return 0

    def _answered(self, scope: Scope, status: int, begun: float) -> int:
        method = scope["method"] if scope["method"] in METHODS else "_OTHER"
        path, seconds = _path(scope), time.perf_counter() - begun
        # A caller that asks below an earlier `route_prefix` is told from a scanner by the end.
        lost = next((route for route in (RANK, EVENTS) if status == 404 and path.endswith(route)), "")
        route = self._routes.get(path, lost)
        self._fetcher.metrics.answered(method, route, status, seconds)
        if status >= 400 and (method, route) == ("POST", RANK):
            self._trace(dict(scope["headers"]), lambda parent: record_failed(parent, scope, status, seconds))
        return status

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> int:
        headers = dict(scope["headers"])
        request_id = None
        try:
            _require_few(scope["headers"])
            request_id = _request_id(headers)
            answer = await self._route(scope, headers, request_id, receive)
        except _Unread:
            raise
        except RequestError as error:
            if error.status == 413:
                send = self._lingering(receive, send)
            return await self.refuse(scope, send, error, request_id)
        except Exception:
            parent = parent_of(headers) if TRACEPARENT in headers else None
            trace_id = trace_id_of(parent) if parent is not None else None
            log.exception("request %s failed", request_id, extra=of_request(request_id, trace_id))
            detail = "internal server error; the log has the details under this request id"
            return await self.refuse(scope, send, RequestError(500, "internal error", detail), request_id)
        return await _send(scope, send, answer)

    async def busy(self, scope: Scope, send: Send, begun: float) -> int:
        """Refuse a request unread and return the status; `begun` is when it was seen.

        A refusal costs 60 µs including the server, a ranking 300 µs.
        """
        await send({"type": "http.response.start", "status": 429, "headers": [*_BUSY_HEAD]})
        await send({"type": "http.response.body", "body": _BUSY})
        self._fetcher.metrics.refused((time.perf_counter() - begun) * 1e3)
        return self._answered(scope, 429, begun)

    def _lingering(self, receive: Receive, send: Send) -> Send:
        """Return a `send` that reads the rest of the request's body before it ends the answer."""

        async def send_lingering(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.body":
                await send({**message, "more_body": True})
                await self._bodies.discard(receive)
                message = {"type": "http.response.body"}
            await send(message)

        return send_lingering

    async def refuse(self, scope: Scope, send: Send, error: RequestError, request_id: str | None) -> int:
        """Answer with `application/problem+json` and return the status."""
        problem = Problem(error.title, error.status, error.detail, "about:blank", error.pointer, request_id)
        more: list[Header] = []
        if error.retry_after_s is not None:
            more.append((b"retry-after", b"%d" % error.retry_after_s))
        if error.allow is not None:
            more.append((b"allow", error.allow.encode()))
        if error.status == 401:
            more.append((b"www-authenticate", b"X-Api-Key"))
        if error.status in CUT_OFF:
            more.append((b"connection", b"close"))
        answer = _Answer(PROBLEM, self._encoder.encode(problem), error.status, more)
        return await _send(scope, send, answer)

    async def _route(
        self, scope: Scope, headers: dict[bytes, bytes], request_id: str | None, receive: Receive
    ) -> _Answer:
        path, method = _path(scope), scope["method"]
        key = None
        if path not in OPEN:
            keys, host = self._fetcher.config.api_keys, headers.get(b"host", b"")
            key = self._keys.admit(keys, headers.get(b"x-api-key"), host)
        if path == RANK:
            _require(method, "POST", path)
            arrived_s = self._fetcher.admission.arrived_s(headers.get(STAMP, b""))
            if self._fetcher.admission.refuses(key.name if key else "", arrived_s):
                self._keys.charge(key, None)
                raise _Unread
            return _Answer(JSON, await self._rank(scope, headers, key, request_id, receive, arrived_s))
        if path == EVENTS:
            _require(method, "POST", path)
            return await self._events(headers, key, receive)
        if path in self._get or path in FILES:
            _require("GET" if method == "HEAD" else method, "GET", path)
            return self._get[path]() if path in self._get else _resource(path, headers)
        raise RequestError(404, "not found", f"no such path: {quoted(path)}; see /docs for the API")

    async def _rank(
        self,
        scope: Scope,
        headers: Headers,
        key: ApiKey | None,
        request_id: str | None,
        receive: Receive,
        arrived_s: float,
    ) -> bytes:
        _require_no_page(headers)
        fetcher = self._fetcher
        arm = None
        if b"x-arm" in headers:
            arm = requested_arm(fetcher.config.experiment, headers[b"x-arm"].decode("latin-1"), key)
        deadline_ms = _deadline_ms(headers.get(b"x-deadline-ms"))
        loop = asyncio.get_running_loop()
        begun_s = loop.time()
        body = await self._bodies.read(headers, receive, MAX_BODY_BYTES)
        # Before it was whole, the request did not wait for this process.
        if loop.time() - begun_s > WHOLE_S:
            arrived_s = max(arrived_s, fetcher.admission.arrived_s())
        request = decode_request(body, fetcher.surface, event_clock=fetcher.event_clock)
        self._keys.charge(key, len(request.candidates))
        if request.request_id is None:
            request.request_id = request_id
        answer = await fetcher.rank(request, deadline_ms, arm, key.name if key else "", arrived_s)
        encoded = self._encoder.encode(answer)
        self._trace(headers, lambda parent: record(parent, scope, answer), answer.request_id)
        return encoded

    def _trace(self, headers: Headers, export: Callable[[Any], None], request_id: str | None = None) -> None:
        """Export a ranking's spans if sampled; a failing exporter never fails a request."""
        if TRACEPARENT not in headers:
            return
        try:
            parent = parent_of(headers)
            if parent is not None:
                export(parent)
        except Exception as error:
            self._fetcher.warn("span not exported", error, request_id)

    async def _events(self, headers: Headers, key: ApiKey | None, receive: Receive) -> _Answer:
        _require_no_page(headers)
        # A full batch takes 10 ms to decode: refuse it unread if it probably has no room.
        if key is not None:
            self._records.require_room(key.name)
        body = await self._bodies.read(headers, receive, MAX_EVENTS_BODY_BYTES)
        fetcher = self._fetcher
        good, rejected = decode_batch(body, fetcher.surface, event_clock=fetcher.event_clock)
        self._keys.charge(key, len(good) + len(rejected))
        # Without keys there is nobody to share with.
        with self._records.held(key.name, len(good)) if key is not None else nullcontext():
            outcome = await take(fetcher, good, rejected)
        # A caller that reads only the status must not take rejected records for accepted ones.
        status = 207 if outcome.rejected else 200
        return _Answer(JSON, self._encoder.encode(outcome), status)


def _path(scope: Scope) -> str:
    """Return the path below the prefix of the server and of the application's `route_prefix`."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))


async def _send(scope: Scope, send: Send, answer: _Answer) -> int:
    kind, body, status, more = answer
    head = [(b"content-type", kind), (b"content-length", b"%d" % len(body)), *more]
    await send({"type": "http.response.start", "status": status, "headers": head})
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})
    return status


def _resource(path: str, headers: dict[bytes, bytes]) -> _Answer:
    kind, (content, zipped) = KINDS[path.rpartition(".")[2]], contents()[path]
    if b"gzip" in headers.get(b"accept-encoding", b""):
        return _Answer(kind, zipped, more=(*OF_FILES, (b"content-encoding", b"gzip")))
    return _Answer(kind, content, more=OF_FILES)


def _require_few(headers: Sequence[Header]) -> None:
    if (
        len(headers) > MAX_HEADERS + OUR_HEADERS
        or sum([len(name) + len(value) for name, value in headers]) > MAX_HEADER_BYTES
    ):
        detail = f"a request may have {MAX_HEADERS} headers and {MAX_HEADER_BYTES} bytes of them; send fewer"
        raise RequestError(431, "headers too large", detail)


def _request_id(headers: Headers) -> str | None:
    given = headers.get(b"x-request-id")
    if given is None:
        return None
    if not VALID_ID.fullmatch(given):
        raise RequestError(
            400, "bad header", "X-Request-Id must be 1 to 256 printable ASCII characters, no space"
        )
    return given.decode()


def _deadline_ms(given: bytes | None) -> int | None:
    if given is None:
        return None
    if not given.isdigit() or len(given) > 5 or not 1 <= int(given) <= 60_000:
        raise RequestError(400, "bad header", "X-Deadline-Ms must be an integer from 1 to 60000")
    return int(given)


def _require_no_page(headers: Headers) -> None:
    """Refuse requests that browsers send for any web page: HTML forms and foreign origins."""
    kind = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
    if kind != JSON:
        instead = f", not {quoted(kind.decode('latin-1'))}" if kind else ""
        raise RequestError(415, "unsupported media type", f"send Content-Type: {JSON.decode()}{instead}")
    origin = headers.get(b"origin")
    if origin is not None and origin.partition(b"://")[2] != headers.get(b"host"):
        raise RequestError(
            403,
            "forbidden",
            f"a page of {quoted(origin.decode('latin-1'))} may not post here: Origin must be this service's "
            "own; send the request from a server, without Origin",
        )


def _require(method: str, wanted: str, path: str) -> None:
    if method != wanted:
        allow = "GET, HEAD" if wanted == "GET" else wanted
        raise RequestError(
            405, "method not allowed", f"{path} takes {wanted}, not {quoted(method)}", allow=allow
        )


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": message["type"] + ".complete"})
        if message["type"] == "lifespan.shutdown":
            return
