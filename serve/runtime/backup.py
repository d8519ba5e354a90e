"""Backup: Ray's Python proxy, to which HAProxy sends requests while it knows no replica.

By itself, the proxy waits 65 s for a replica, although a ranking has only 0.1 s, and then answers
408. While one replica replaces another, hundreds of rankings would wait there, and their cost would
delay all health checks. With this middleware, few rankings and events wait, and none longer than
its own time. What cannot be answered gets 503 with `Retry-After`. A request that waits for 0.14 s
still starts the first replica of a deployment with `min_replicas: 0`.

The service is not ready while its requests come here, and `/readyz` says so.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from serve.config.settings import UserConfig
from serve.contract.errors import RequestError
from serve.http.answers import refusal, send_answer
from serve.http.app import EVENTS, RANK, READYZ
from serve.http.request_headers import deadline_ms_of

# Limits the requests that wait. At 2 ms each, so many cost the proxy less than a ranking's
# deadline.
MOST_WAITING = 32
# How much longer than its deadline a ranking may wait, the longest such time, and the time for
# events. An answer takes up to 60 ms more on two busy cores, and has to come within 100 ms. This
# process does not know the configured deadline.
GRACE_S, MOST_S, EVENTS_S = 0.04, 1.0, 5.0
_UNAVAILABLE = refusal(
    RequestError(503, "unavailable", "no replica of the service is ready; retry later", retry_after_s=1)
)
App = Callable[[MutableMapping[str, Any], Any, Any], Awaitable[Any]]


class Backup:
    """ASGI middleware around Ray's Python proxy."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._num_waiting = 0

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        """Pass rankings and events on for a limited time, and `/readyz` not at all."""
        if scope.get("path", "").endswith(READYZ):
            await send_answer(send, _UNAVAILABLE)
        elif scope.get("method") != "POST" or not scope["path"].endswith((RANK, EVENTS)):
            await self._app(scope, receive, send)
        elif self._num_waiting >= MOST_WAITING:
            await send_answer(send, _UNAVAILABLE)
        else:
            self._num_waiting += 1
            try:
                await self._within(_time_s(scope), scope, receive, send)
            finally:
                self._num_waiting -= 1

    async def _within(self, time_s: float, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        begun = False

        async def send_begun(message: MutableMapping[str, Any]) -> None:
            nonlocal begun
            # Ray's own answer to a cancelled request comes too late, and is dropped.
            if not timeout.expired():
                begun = True
                timeout.reschedule(None)
                await send(message)

        try:
            async with asyncio.timeout(time_s) as timeout:
                await self._app(scope, receive, send_begun)
        except TimeoutError:
            if begun or not timeout.expired():
                raise
        if not begun:
            await send_answer(send, _UNAVAILABLE)


def _time_s(scope: MutableMapping[str, Any]) -> float:
    if scope["path"].endswith(EVENTS):
        return EVENTS_S
    try:
        deadline_ms = deadline_ms_of(dict(scope["headers"]))
    # A replica would refuse this request, so it has no deadline.
    except RequestError:
        deadline_ms = None
    return min((deadline_ms or UserConfig.deadline_ms) / 1e3, MOST_S) + GRACE_S
