"""Sans-I/O protocol of one call with its retry; `Client` and `AsyncClient` do the I/O."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from serve.client.reply import Lost, Reply
from serve.client.retries import Retries

T = TypeVar("T")
Clock = Callable[[], float]
DEADLINE = "X-Deadline-Ms"
# The greatest deadline that the service accepts.
MAX_DEADLINE_MS = 60_000
# Network time subtracted from the deadline that is sent: a late answer is useless.
NETWORK_S = 0.01
# Least timeout: a socket takes 0 as non-blocking.
MIN_TIMEOUT_S = 0.001


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


class Send(NamedTuple):
    """Step of an exchange: POST `body` to `path`."""

    path: str
    body: bytes
    headers: Mapping[str, str]
    left: TimeLeft


class Wait(NamedTuple):
    """Step of an exchange: wait for `seconds`."""

    seconds: float


Steps = Generator[Send | Wait, Reply | Lost | None, T]


@dataclass(frozen=True)
class Exchange:
    """Request with a timeout; with `sends_deadline` the service receives the time left."""

    path: str
    body: bytes
    headers: Mapping[str, str]
    timeout_s: float
    sends_deadline: bool

    def steps(self, retries: Retries, clock: Clock = time.monotonic) -> Steps[Reply | Lost]:
        """Yield the steps of at most two attempts; return the reply of the last."""
        left = TimeLeft(clock() + self.timeout_s, clock)
        retries.sent()
        reply = yield self._try(left, clock)
        # The caller sends a reply back after each `Send`.
        assert reply is not None
        delay_s = retries.delay_s(reply.status, left.deadline_s - clock(), reply.retry_after_s)
        if delay_s is None:
            return reply
        yield Wait(delay_s)
        # The wait may take longer than requested.
        if clock() >= left.deadline_s:
            return reply
        again = yield self._try(left, clock)
        assert again is not None
        return again

    def _try(self, left: TimeLeft, clock: Clock) -> Send:
        headers = dict(self.headers)
        if self.sends_deadline:
            left_ms = int((left.deadline_s - clock() - NETWORK_S) * 1e3)
            headers[DEADLINE] = str(min(max(left_ms, 1), MAX_DEADLINE_MS))
        return Send(self.path, self.body, headers, left)
