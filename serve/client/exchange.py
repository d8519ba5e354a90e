"""Sans-I/O protocol of one call with its retry; `Client` and `AsyncClient` do the I/O."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from http.client import responses
from typing import Generic, TypeVar

import msgspec

from serve.client.errors import Refused, TimedOut, Unreachable
from serve.client.reply import Lost, Reply
from serve.client.retries import Retries
from serve.contract.rankings import Problem

log = logging.getLogger("tabrank.client")
T = TypeVar("T")
Clock = Callable[[], float]
DEADLINE = "X-Deadline-Ms"
# The greatest deadline that the service accepts.
MAX_DEADLINE_MS = 60_000
# Network time subtracted from the deadline that is sent: a late answer is useless.
NETWORK_S = 0.01
# Least timeout: a socket takes 0 as non-blocking.
MIN_TIMEOUT_S = 0.001
# Characters of a foreign answer that a message quotes.
MAX_QUOTED = 200


class TimeLeft(Mapping[str, float]):
    """httpx timeouts that shrink with the time left until the deadline.

    httpcore reads the mapping at each step of a request: connect, read, write, pool. With fixed
    numbers each step could take the whole timeout.
    """

    def __init__(self, deadline_s: float, clock: Clock) -> None:
        self.deadline_s = deadline_s
        self._clock = clock

    def __getitem__(self, step: str) -> float:
        return max(self.deadline_s - self._clock(), MIN_TIMEOUT_S)

    def until_then(self, parts: Iterable[bytes]) -> Iterator[bytes]:
        """Yield the parts of an answer; raise TimeoutError for a part after the deadline.

        httpx limits the time of each part only, not of the whole answer.
        """
        for part in parts:
            if self._clock() >= self.deadline_s:
                raise TimeoutError
            yield part

    def __iter__(self) -> Iterator[str]:
        return iter(("connect", "read", "write", "pool"))

    def __len__(self) -> int:
        return 4


@dataclass
class Exchange(Generic[T]):
    """Request to the service at `url` with at most one retry; its timeout starts at once.

    With `sends_deadline` the service receives the time left. `request_id` is for errors.
    """

    url: str
    path: str
    body: bytes
    headers: Mapping[str, str]
    timeout_s: float
    decoder: msgspec.json.Decoder[T]
    retries: Retries
    request_id: str | None = None
    sends_deadline: bool = False
    clock: Clock = time.monotonic

    def __post_init__(self) -> None:
        self.left = TimeLeft(self.clock() + self.timeout_s, self.clock)

    def first(self) -> dict[str, str]:
        """Return the headers of the first attempt."""
        self.retries.sent()
        return self._headers()

    def delay_s(self, reply: Reply | Lost) -> float | None:
        """Return the seconds to wait before `again`; None if the first reply is the last."""
        return self.retries.delay_s(reply.status, self.left.deadline_s - self.clock(), reply.retry_after_s)

    def again(self) -> dict[str, str] | None:
        """Return the headers of the second attempt; None if the wait took too long."""
        return self._headers() if self.clock() < self.left.deadline_s else None

    def answer(self, reply: Reply | Lost) -> T:
        """Return the answer in the last reply.

        Raises:
            ClientError: the reply holds no answer.
        """
        if isinstance(reply, Lost):
            if reply.timed_out:
                raise TimedOut(f"{self.url} did not answer within {self.timeout_s:g} s", self.request_id)
            raise Unreachable(f"{self.url} cannot be reached: {reply.reason}", self.request_id)
        if reply.code in (HTTPStatus.OK, HTTPStatus.MULTI_STATUS):
            try:
                answer = self.decoder.decode(reply.body)
            except (msgspec.MsgspecError, UnicodeDecodeError) as error:
                detail = f"{self.url} does not answer as a tabrank service: {error}; is the address right?"
                raise Unreachable(detail, self.request_id) from None
            # A caller of `send` may leave its answer unread.
            if rejected := getattr(answer, "rejected", ()):
                log.warning("%s rejected %d records; the first: %s", self.url, len(rejected), rejected[0])
            return answer
        text = reply.body[:MAX_QUOTED].decode("utf-8", "replace").strip() or "empty answer"
        if reply.status is None:
            detail = f"a proxy before {self.url} answered {reply.code} in its place: {text}"
            raise Unreachable(detail, self.request_id)
        problem = Problem(responses.get(reply.code, "unknown status").lower(), reply.code, text)
        if reply.is_problem:
            # The error quotes a body that is not a valid problem document.
            with suppress(msgspec.MsgspecError, UnicodeDecodeError):
                problem = msgspec.json.decode(reply.body, type=Problem)
        raise Refused(
            reply.code,
            problem.title,
            problem.detail,
            pointer=problem.pointer,
            request_id=problem.request_id or self.request_id,
            retry_after_s=reply.retry_after_s,
        )

    def _headers(self) -> dict[str, str]:
        headers = dict(self.headers)
        if self.sends_deadline:
            left_ms = int((self.left.deadline_s - self.clock() - NETWORK_S) * 1e3)
            headers[DEADLINE] = str(min(max(left_ms, 1), MAX_DEADLINE_MS))
        return headers
