"""The two clients: the same calls, in threads and in asyncio."""

from __future__ import annotations

import asyncio
import os
import ssl
import time
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any, Literal, Self, TypeVar, cast

from serve.client.exchange import Send, Steps, Wait
from serve.client.reply import Lost, Reply
from serve.client.service import Service
from serve.contract.errors import TabrankError
from serve.contract.rankings import Candidate, RankAnswer
from serve.contract.records import EventsAnswer, Sent

T = TypeVar("T")
Rankable = str | Candidate | Mapping[str, Any]
Traffic = Literal["live", "test"]
IDLE_S = 60.0  # below the 90 s after which the service closes a connection that is not used


class Client:
    """A client of the service at `url`, for threads, which may share it. Keep one: its connections stay open.

    A ranking ends within `timeout_s`, with an answer or an error; what is left of it is the service's deadline. After
    a failed connection, 429 or 503 it is tried once more, if time and a budget of a tenth of all requests allow.
    """

    def __init__(self, url: str, *, timeout_s: float = 0.25, api_key: str | None = None) -> None:
        self._service = Service(url, timeout_s, api_key)
        self._httpx = _httpx()
        self._http = self._httpx.Client(**_settings(self._httpx, self._service.url))

    def rank(
        self,
        viewer: str | None,
        candidates: Sequence[Rankable],
        *,
        limit: int | None = None,
        context: Mapping[str, Any] | None = None,
        request_id: str | None = None,
        explain: bool = False,
        traffic: Traffic = "live",
        timeout_s: float | None = None,
    ) -> RankAnswer:
        """Rank `candidates` for `viewer` (None: an anonymous one).

        Raises:
            ClientError: `Refused`, `TimedOut` or `Unreachable`.
        """
        return self._run(
            self._service.rank(viewer, candidates, limit, context, request_id, explain, traffic, timeout_s)
        )

    def send(
        self, records: Sequence[Sent | Mapping[str, Any]], *, timeout_s: float | None = None
    ) -> EventsAnswer:
        """Send events, viewers, candidates; returns once those accepted are durable, within 10 s by default.

        Raises:
            ClientError: `Refused`, `TimedOut` or `Unreachable`.
        """
        return self._run(self._service.send(records, timeout_s))

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _run(self, steps: Steps[T]) -> T:
        reply: Reply | Lost | None = None
        while True:
            try:
                step = steps.send(reply)
            except StopIteration as end:
                return cast("T", end.value)
            if isinstance(step, Wait):
                time.sleep(step.seconds)
                reply = None
            else:
                reply = self._send(step)

    def _send(self, step: Send) -> Reply | Lost:
        try:
            with self._http.stream("POST", step.path, **_what(step)) as response:
                return _reply(response, b"".join(step.left.until_then(response.iter_bytes())))
        except (self._httpx.RequestError, TimeoutError) as error:
            return _lost(self._httpx, error)


class AsyncClient:
    """`Client` for asyncio."""

    def __init__(self, url: str, *, timeout_s: float = 0.25, api_key: str | None = None) -> None:
        self._service = Service(url, timeout_s, api_key)
        self._httpx = _httpx()
        self._http = self._httpx.AsyncClient(**_settings(self._httpx, self._service.url))

    async def rank(
        self,
        viewer: str | None,
        candidates: Sequence[Rankable],
        *,
        limit: int | None = None,
        context: Mapping[str, Any] | None = None,
        request_id: str | None = None,
        explain: bool = False,
        traffic: Traffic = "live",
        timeout_s: float | None = None,
    ) -> RankAnswer:
        """As `Client.rank`."""
        return await self._run(
            self._service.rank(viewer, candidates, limit, context, request_id, explain, traffic, timeout_s)
        )

    async def send(
        self, records: Sequence[Sent | Mapping[str, Any]], *, timeout_s: float | None = None
    ) -> EventsAnswer:
        """As `Client.send`."""
        return await self._run(self._service.send(records, timeout_s))

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.aclose()

    async def _run(self, steps: Steps[T]) -> T:
        reply: Reply | Lost | None = None
        while True:
            try:
                step = steps.send(reply)
            except StopIteration as end:
                return cast("T", end.value)
            if isinstance(step, Wait):
                await asyncio.sleep(step.seconds)
                reply = None
            else:
                reply = await self._send(step)

    async def _send(self, step: Send) -> Reply | Lost:
        try:
            async with asyncio.timeout(step.left["read"]):
                response = await self._http.post(step.path, **_what(step))
            return _reply(response, response.content)
        except (self._httpx.RequestError, TimeoutError) as error:
            return _lost(self._httpx, error)


def _httpx() -> ModuleType:
    try:
        import httpx
    except ImportError:
        raise TabrankError(
            "the client needs the package httpx; run `python -m pip install 'tabrank[client]'`"
        ) from None
    return httpx


def _settings(httpx: ModuleType, url: str) -> dict[str, Any]:
    return {
        "base_url": url,
        "trust_env": False,  # no proxy and no netrc: a ranking goes straight to its service
        # The system's certificates, as SSL_CERT_FILE may name them; it costs 20 ms that plain HTTP need not pay.
        "verify": ssl.create_default_context() if url.startswith("https:") else False,
        # As many at once as the caller makes; those above the second number are closed after use.
        "limits": httpx.Limits(max_connections=None, max_keepalive_connections=100, keepalive_expiry=IDLE_S),
    }


def _what(step: Send) -> dict[str, Any]:
    return {"content": step.body, "headers": step.headers, "extensions": {"timeout": step.left}}


def _reply(response: Any, body: bytes) -> Reply:
    headers = response.headers
    return Reply(response.status_code, body, headers.get("content-type", ""), headers.get("retry-after"))


def _lost(httpx: ModuleType, error: Exception) -> Lost:
    return Lost(_reason(error), timed_out=isinstance(error, httpx.TimeoutException | TimeoutError))


def _reason(error: BaseException) -> str:
    """What the system said, where it did; asyncio's and httpx's own words for it differ."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno:
            return (os.strerror(cause.errno) if cause.errno > 0 else str(cause.strerror)).lower()
        cause = cause.__cause__ or cause.__context__
    return str(error) or type(error).__name__
