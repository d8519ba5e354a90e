"""Answers of the service: bodies with their headers, and refusals as `application/problem+json`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any, NamedTuple

import msgspec

from serve.contract.errors import RequestError
from serve.contract.rankings import Problem

Header = tuple[bytes, bytes]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

JSON = b"application/json"
PROBLEM = b"application/problem+json"
# After these statuses the connection is closed without waiting for the rest of the body.
CUT_OFF = (408, 413)


class Answer(NamedTuple):
    """Body of an answer, with its type, its status and its other headers."""

    kind: bytes
    body: bytes
    status: int = 200
    more: Sequence[Header] = ()


def refusal(error: RequestError, request_id: str | None = None) -> Answer:
    """Return the answer that refuses a request."""
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
    return Answer(PROBLEM, msgspec.json.encode(problem), error.status, more)


async def send_answer(send: Send, answer: Answer, *, without_body: bool = False) -> int:
    """Send an answer and return its status; `without_body` is for a request with HEAD."""
    kind, body, status, more = answer
    head = [(b"content-type", kind), (b"content-length", b"%d" % len(body)), *more]
    await send({"type": "http.response.start", "status": status, "headers": head})
    await send({"type": "http.response.body", "body": b"" if without_body else body})
    return status
