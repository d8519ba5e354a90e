"""Retry a request once over the generator's connections, by the shipped client's policy."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import NamedTuple

import gevent
from geventhttpclient.response import HTTPParseError

from loadtest.generator.connections import Connections, error_kind
from serve.client.reply import Lost, Reply
from serve.client.retries import Retries

OK = 200


class Failure(NamedTuple):
    """First try that failed, with its time of `perf_counter()`."""

    at_s: float
    kind: str


class Retrying:
    """Transport with the client's one retry; it passes each failed first try to `on_failed`.

    `timeout_s` covers both tries together, as in the client.
    """

    def __init__(
        self,
        connections: Connections,
        timeout_s: float,
        on_failed: Callable[[Failure], None],
        policy: Retries | None = None,
    ) -> None:
        self._connections = connections
        self._timeout_s = timeout_s
        self._on_failed = on_failed
        self._policy = policy or Retries()

    def exchange(self, request: bytes) -> tuple[int, bytes]:
        """Return the answer of the last try.

        Raises:
            OSError, HTTPParseError: of the last try.
        """
        until = perf_counter() + self._timeout_s
        self._policy.sent()
        tried = self._tried(request)
        if isinstance(tried, Reply) and tried.code == OK:
            return tried.code, tried.body
        now = perf_counter()
        reply = tried if isinstance(tried, Reply) else Lost(str(tried))
        kind = f"HTTP {tried.code}" if isinstance(tried, Reply) else error_kind(tried)
        self._on_failed(Failure(now, kind))
        delay_s = self._policy.delay_s(reply.status, until - now, reply.retry_after_s)
        if delay_s is not None:
            gevent.sleep(delay_s)
            answer = self._connections.exchange(request)
            if perf_counter() > until:
                raise TimeoutError
            return answer
        if not isinstance(tried, Reply):
            raise tried
        return tried.code, tried.body

    def _tried(self, request: bytes) -> Reply | OSError | HTTPParseError:
        try:
            return Reply(*self._connections.exchange_with_headers(request))
        except (OSError, HTTPParseError) as error:
            return error
