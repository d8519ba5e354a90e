"""The shipped client's one retry over the generator's own connections, and what failed without it."""

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
    """A first try that failed, at a `perf_counter()`."""

    at_s: float
    kind: str


class Retrying:
    """Tells `on_failed` of each first try that failed, and makes the second one if the policy says so.

    `timeout_s` is of both tries together, as the client's is.
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
        """The answer of the last try.

        Raises:
            OSError, HTTPParseError: of the last try.
        """
        until = perf_counter() + self._timeout_s
        self._policy.sent()
        tried = self._tried(request)
        if isinstance(tried, Reply) and tried.code == OK:
            return tried.code, tried.body
        now = perf_counter()
        answered = tried if isinstance(tried, Reply) else Lost(str(tried))
        kind = f"HTTP {tried.code}" if isinstance(tried, Reply) else error_kind(tried)
        self._on_failed(Failure(now, kind))
        delay_s = self._policy.delay_s(answered.status, until - now, answered.retry_after_s)
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
            return Reply(*self._connections.answered(request))
        except (OSError, HTTPParseError) as error:
            return error
