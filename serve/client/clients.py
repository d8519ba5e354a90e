"""Clients for threads and for asyncio, with the same calls."""

from __future__ import annotations

import asyncio
import importlib
import os
import ssl
import time
from collections.abc import Callable, Coroutine
from functools import wraps
from types import ModuleType
from typing import Any, ParamSpec, Self, TypeVar

from serve.client.calls import Calls
from serve.client.exchange import Exchange
from serve.client.reply import Lost, Reply
from serve.contract.errors import TabrankError
from serve.contract.rankings import RankAnswer
from serve.contract.records import EventsAnswer

P = ParamSpec("P")
T = TypeVar("T")
# Close idle connections before the service does, after 90 s.
IDLE_S = 60.0


class Client(Calls[RankAnswer, EventsAnswer]):
    """Thread-safe client of the service at `url`; keep one, because it reuses its connections.

    A ranking ends within `timeout_s`, with an answer or an error. The rest of the timeout is sent
    to the service as its deadline. After a failed connection, 429 or 503 the request is retried
    once, if the timeout and a retry budget of a tenth of all requests allow it.
    """

    def _open(self) -> None:
        self._httpx = _httpx()
        self._http = self._httpx.Client(**_settings(self._httpx, self._url))

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _run(self, exchange: Exchange[T]) -> T:
        reply = self._send(exchange, exchange.first())
        delay_s = exchange.delay_s(reply)
        if delay_s is not None:
            time.sleep(delay_s)
            again = exchange.again()
            reply = reply if again is None else self._send(exchange, again)
        return exchange.answer(reply)

    def _send(self, exchange: Exchange[Any], headers: dict[str, str]) -> Reply | Lost:
        try:
            with self._http.stream("POST", exchange.path, **_what(exchange, headers)) as response:
                return _reply(response, b"".join(exchange.left.until_then(response.iter_bytes())))
        except (self._httpx.RequestError, TimeoutError) as error:
            return _lost(self._httpx, error)


def _awaited(call: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, Coroutine[Any, Any, T]]:
    """Return a coroutine function that makes the call, and so starts its timeout, once awaited."""

    @wraps(call)
    async def awaited(*args: P.args, **kwargs: P.kwargs) -> T:
        return await call(*args, **kwargs)

    return awaited


AsyncCalls = Calls[Coroutine[Any, Any, RankAnswer], Coroutine[Any, Any, EventsAnswer]]


class AsyncClient(AsyncCalls):
    """Client for asyncio, otherwise like `Client`; a call's timeout starts once awaited."""

    rank = _awaited(AsyncCalls.rank)
    send = _awaited(AsyncCalls.send)

    def _open(self) -> None:
        self._httpx = _httpx()
        self._http = self._httpx.AsyncClient(**_settings(self._httpx, self._url))

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.aclose()

    async def _run(self, exchange: Exchange[T]) -> T:
        reply = await self._send(exchange, exchange.first())
        delay_s = exchange.delay_s(reply)
        if delay_s is not None:
            await asyncio.sleep(delay_s)
            again = exchange.again()
            reply = reply if again is None else await self._send(exchange, again)
        return exchange.answer(reply)

    async def _send(self, exchange: Exchange[Any], headers: dict[str, str]) -> Reply | Lost:
        try:
            async with asyncio.timeout(exchange.left["read"]):
                response = await self._http.post(exchange.path, **_what(exchange, headers))
            return _reply(response, response.content)
        except (self._httpx.RequestError, TimeoutError) as error:
            return _lost(self._httpx, error)


def _httpx() -> ModuleType:
    """Return httpx2; the modules of the client that make no connection do without it."""
    try:
        return importlib.import_module("httpx2")
    except ModuleNotFoundError as error:
        raise TabrankError(
            f"the client needs the package {error.name}; run `python -m pip install {error.name}`"
        ) from None


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


def _what(exchange: Exchange[Any], headers: dict[str, str]) -> dict[str, Any]:
    return {"content": exchange.body, "headers": headers, "extensions": {"timeout": exchange.left}}


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
