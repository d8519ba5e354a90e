"""The bodies that are still on their way: how many, how large and for how long a replica waits for them.

A client that is slow to send costs a place here and nothing else: it holds no slot of a ranking. Where too many wait,
the one that has waited longest is cut off; a body that came with its headers, as nearly all do, never is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from typing import Any

from serve.contract.errors import RequestError

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Task = asyncio.Task[Any]

BODY_S = 5.0  # within which a body must have come
LOOK_S = 0.5  # how often the replica looks which ones have not: a timer for each would cost 2 µs a request
MAX_WAITING = 1024  # bodies
MAX_WAITING_BYTES = 64 * 1024 * 1024  # that have come of them
LINGER_BYTES = 32 * 1024 * 1024  # that are read of a body after it was refused as too large
SLOW = "body"  # what a reading task is cancelled with


class Bodies:
    """Reads the bodies of one replica's requests."""

    def __init__(self) -> None:
        self._since: dict[Task, float] = {}  # who waits, the longest first
        self._num_bytes: dict[Task, int] = {}  # that have come of each, where some have
        self._total_bytes = 0
        self._looks = False

    async def read(self, headers: dict[bytes, bytes], receive: Receive, max_bytes: int) -> bytes:
        """The whole body.

        Raises:
            RequestError: 413 for one that is too large, as soon as that is known; 408 for one that is too slow, and for
                the slowest where too many are; 400 where the client left.
        """
        if _declared(headers) > max_bytes:
            raise _too_large(max_bytes)
        task = asyncio.current_task()
        assert task is not None  # an ASGI server runs each request in one
        self._wait(task)
        try:
            return await self._read(task, receive, max_bytes)
        except asyncio.CancelledError as error:
            if error.args != (SLOW,) or task.uncancel():
                raise
            detail = f"the body had not come within {BODY_S:g} s, or too many were; send it at once"
            raise RequestError(408, "request timeout", detail) from None
        finally:
            self._forget(task)

    async def discard(self, receive: Receive) -> None:
        """Read and drop what is still to come of a refused body, within its time and `LINGER_BYTES`.

        Where a connection is closed with unread bytes, it is reset, and its client may never see the answer
        (RFC 9112, 9.6).
        """
        left = LINGER_BYTES

        async def drop() -> MutableMapping[str, Any]:
            nonlocal left
            message = await receive()
            left -= len(message.get("body", b""))
            return {"type": message["type"], "more_body": message.get("more_body", False) and left > 0}

        with suppress(RequestError):
            await self.read({}, drop, LINGER_BYTES)

    async def _read(self, task: Task, receive: Receive, max_bytes: int) -> bytes:
        parts, size = [], 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise RequestError(400, "disconnected", "the client left before its body was read")
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > max_bytes:
                raise _too_large(max_bytes)
            if not message.get("more_body", False):
                return b"".join(parts)
            if task in self._since:
                self._num_bytes[task] = size
                self._total_bytes += len(parts[-1])
                self._make_room()

    def _wait(self, task: Task) -> None:
        loop = asyncio.get_running_loop()
        self._since[task] = loop.time()
        if len(self._since) > MAX_WAITING:
            self._make_room()
        if not self._looks:
            self._looks = True
            loop.call_later(LOOK_S, self._look)

    def _look(self) -> None:
        """Cut off who has waited for too long; look again while anybody waits."""
        loop = asyncio.get_running_loop()
        late = loop.time() - BODY_S
        for task in [task for task, since in self._since.items() if since <= late]:
            self._cut(task)
        self._looks = bool(self._since)
        if self._looks:
            loop.call_later(LOOK_S, self._look)

    def _make_room(self) -> None:
        while len(self._since) > MAX_WAITING or self._total_bytes > MAX_WAITING_BYTES:
            self._cut(next(iter(self._since)))

    def _cut(self, task: Task) -> None:
        self._forget(task)
        task.cancel(SLOW)

    def _forget(self, task: Task) -> None:
        self._since.pop(task, None)
        if self._num_bytes:
            self._total_bytes -= self._num_bytes.pop(task, 0)


def _declared(headers: dict[bytes, bytes]) -> int:
    declared = headers.get(b"content-length", b"0")
    return int(declared[:16]) if declared.isdigit() else 0  # 16 digits are too many for any limit


def _too_large(max_bytes: int) -> RequestError:
    return RequestError(413, "body too large", f"a body may have {max_bytes} bytes; send less at once")
