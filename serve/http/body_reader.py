"""Read request bodies, with limits on their number, their size and the time they take.

A client that sends slowly takes a place in this module but no slot of a ranking. If too many bodies
are incomplete, the oldest is cut off. A body that arrives with its headers, as nearly all do, is
never cut off.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from typing import Any

from serve.contract.errors import RequestError

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Task = asyncio.Task[Any]

# A body must be complete within this many seconds.
BODY_S = 5.0
# How often to look for late bodies. A timer for each request would cost 2 µs.
LOOK_S = 0.5
# Limits on the incomplete bodies of a replica: their number, and the bytes received of them.
MAX_WAITING = 1024
MAX_WAITING_BYTES = 64 * 1024 * 1024
# Limits how much of a body is read after it was refused as too large.
LINGER_BYTES = 32 * 1024 * 1024
# The message with which a slow reader's task is cancelled.
SLOW = "body"


class BodyReader:
    """Read the bodies of one replica's requests."""

    def __init__(self) -> None:
        # When each incomplete body began, oldest first.
        self._since: dict[Task, float] = {}
        # Bytes received of each incomplete body.
        self._num_bytes: dict[Task, int] = {}
        self._total_bytes = 0
        self._looks = False

    async def read(self, headers: dict[bytes, bytes], receive: Receive, max_bytes: int) -> bytes:
        """Return the whole body.

        Raises:
            RequestError: 413 as soon as the body is known to be too large; 408 if the body is too
                slow, or the oldest of too many; 400 if the client disconnected.
        """
        if _declared(headers) > max_bytes:
            raise _too_large(max_bytes)
        task = asyncio.current_task()
        # An ASGI server runs each request in a task.
        assert task is not None
        self._wait(task)
        try:
            return await self._read(task, receive, max_bytes)
        except asyncio.CancelledError as error:
            if error.args != (SLOW,) or task.uncancel():
                raise
            detail = f"the body was not complete within {BODY_S:g} s, or too many were not; send it at once"
            raise RequestError(408, "request timeout", detail) from None
        finally:
            self._forget(task)

    async def discard(self, receive: Receive) -> None:
        """Read and drop the rest of a refused body, within `BODY_S` and `LINGER_BYTES`.

        Closing a connection with unread bytes resets it, and the client may never see the answer
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
                raise RequestError(400, "disconnected", "the client left before its body was complete")
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
        """Cut off late bodies; repeat while any body is incomplete."""
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
    # If a number has more digits, its first 16 already exceed any limit.
    return int(declared[:16]) if declared.isdigit() else 0


def _too_large(max_bytes: int) -> RequestError:
    return RequestError(413, "body too large", f"a body may have {max_bytes} bytes; send a smaller one")
