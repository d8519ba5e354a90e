"""Clients for threads and for asyncio, with the same calls."""

from __future__ import annotations

import asyncio
import importlib
import os
import ssl
import time
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any, Literal, Self, TypeVar

from serve.client.endpoint import Endpoint
from serve.client.exchange import Exchange, Send
from serve.client.reply import Lost, Reply
from serve.contract.errors import TabrankError
from serve.contract.rankings import RankAnswer, StatedCandidate
from serve.contract.records import ClientRecord, EventsAnswer

T = TypeVar("T")
Rankable = str | StatedCandidate | Mapping[str, Any]
Traffic = Literal["live", "test"]
# Close idle connections before the service does, after 90 s.
IDLE_S = 60.0


class Client:
    """Thread-safe client of the service at `url`; keep one, because it reuses its connections.

    A ranking ends within `timeout_s`, with an answer or an error. The rest of the timeout is sent
    to the service as its deadline. After a failed connection, 429 or 503 the request is retried
    once, if the timeout and a retry budget of a tenth of all requests allow it.
    """

    def __init__(self, url: str, *, timeout_s: float = 0.25, api_key: str | None = None) -> None:
        self._endpoint = Endpoint(url, timeout_s, api_key)
        self._httpx = _httpx()
        self._http = self._httpx.Client(**_settings(self._httpx, self._endpoint.url))

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
        """Rank `candidates` for `viewer`; None is an anonymous viewer.

        Raises:
            ClientError: `Refused`, `TimedOut` or `Unreachable`.
        """
        more = {"viewer": viewer, "limit": limit, "explain": explain, "traffic": traffic}
        return self._run(self._endpoint.rank(candidates, context, request_id, timeout_s, more))

    def send(
        self, records: Sequence[ClientRecord | Mapping[str, Any]], *, timeout_s: float | None = None
    ) -> EventsAnswer:
        """Send records and return once the accepted ones are durable; the default timeout is 10 s.

        Raises:
            ClientError: `Refused`, `TimedOut` or `Unreachable`.
        """
        return self._run(self._endpoint.send(records, timeout_s))

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _run(self, exchange: Exchange[T]) -> T:
        reply = self._send(exchange.first())
        delay_s = exchange.delay_s(reply)
        if delay_s is not None:
            time.sleep(delay_s)
            again = exchange.again()
            reply = reply if again is None else self._send(again)
        return exchange.answer(reply)

    def _send(self, attempt: Send) -> Reply | Lost:
        try:
            with self._http.stream("POST", attempt.path, **_what(attempt)) as response:
                return _reply(response, b"".join(attempt.left.until_then(response.iter_bytes())))
        except (self._httpx.RequestError, TimeoutError) as error:
            return _lost(self._httpx, error)


class AsyncClient:
    """Client for asyncio, otherwise like `Client`."""

    def __init__(self, url: str, *, timeout_s: float = 0.25, api_key: str | None = None) -> None:
        self._endpoint = Endpoint(url, timeout_s, api_key)
        self._httpx = _httpx()
        self._http = self._httpx.AsyncClient(**_settings(self._httpx, self._endpoint.url))

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
        """Rank like `Client.rank`."""
        more = {"viewer": viewer, "limit": limit, "explain": explain, "traffic": traffic}
        return await self._run(self._endpoint.rank(candidates, context, request_id, timeout_s, more))

    async def send(
        self, records: Sequence[ClientRecord | Mapping[str, Any]], *, timeout_s: float | None = None
    ) -> EventsAnswer:
        """Send like `Client.send`."""
        return await self._run(self._endpoint.send(records, timeout_s))

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.aclose()

    async def _run(self, exchange: Exchange[T]) -> T:
        reply = await self._send(exchange.first())
        delay_s = exchange.delay_s(reply)
        if delay_s is not None:
            await asyncio.sleep(delay_s)
            again = exchange.again()
            reply = reply if again is None else await self._send(again)
        return exchange.answer(reply)

    async def _send(self, attempt: Send) -> Reply | Lost:
        try:
            async with asyncio.timeout(attempt.left["read"]):
                response = await self._http.post(attempt.path, **_what(attempt))
            return _reply(response, response.content)
        except (self._httpx.RequestError, TimeoutError) as error:
            return _lost(self._httpx, error)


def _httpx() -> ModuleType:
    """Return httpx2, or httpx where only that is installed: the client uses what both have."""
    for name in ("httpx2", "httpx"):
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name != name:
                raise
    raise TabrankError("the client needs the package httpx2; run `python -m pip install 'tabrank[client]'`")


def _settings(httpx: ModuleType, url: str) -> dict[str, Any]:
    return {
        "base_url": url,
        # Ignore proxies and netrc of the environment: rankings go directly to the service.
        "trust_env": False,
        # Use the system's certificates, or those of SSL_CERT_FILE. Loading them takes 20 ms, so
        # plain HTTP skips it.
        "verify": ssl.create_default_context() if url.startswith("https:") else False,
        # Do not limit concurrent connections; keep at most 100 of them open.
        "limits": httpx.Limits(max_connections=None, max_keepalive_connections=100, keepalive_expiry=IDLE_S),
    }


def _what(attempt: Send) -> dict[str, Any]:
    return {"content": attempt.body, "headers": attempt.headers, "extensions": {"timeout": attempt.left}}


def _reply(response: Any, body: bytes) -> Reply:
    headers = response.headers
    return Reply(response.status_code, body, headers.get("content-type", ""), headers.get("retry-after"))


def _lost(httpx: ModuleType, error: Exception) -> Lost:
    return Lost(_reason(error), timed_out=isinstance(error, httpx.TimeoutException | TimeoutError))


def _reason(error: BaseException) -> str:
    """Return the system's error text if there is one: asyncio and httpx word it differently."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno:
            return (os.strerror(cause.errno) if cause.errno > 0 else str(cause.strerror)).lower()
        cause = cause.__cause__ or cause.__context__
    return str(error) or type(error).__name__
