"""One call, without its I/O: what to send, how long to wait, and when to give up. `Client` and `AsyncClient` run it."""

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
MAX_DEADLINE_MS = 60_000  # that the service takes
TRAVEL_S = 0.01  # kept of what is left for the way there and back: an answer that is late is none
SOON_S = 0.001  # a socket takes 0 for "do not wait at all"


class TimeLeft(Mapping[str, float]):
    """What is left until the deadline, read anew at each step of a request: connect, write, read, a place in the pool.

    httpx hands it on to httpcore, which looks at it step by step; a mapping of fixed numbers would allow each step
    the whole timeout.
    """

    def __init__(self, deadline_s: float, clock: Clock) -> None:
        self.deadline_s = deadline_s
        self._clock = clock

    def __getitem__(self, step: str) -> float:
        return max(self.deadline_s - self._clock(), SOON_S)

    def until_then(self, parts: Iterable[bytes]) -> Iterator[bytes]:
        """The parts of an answer as they come; TimeoutError where one comes too late, as each may take its time."""
        for part in parts:
            if self._clock() >= self.deadline_s:
                raise TimeoutError
            yield part

    def __iter__(self) -> Iterator[str]:
        return iter(("connect", "read", "write", "pool"))

    def __len__(self) -> int:
        return 4


class Send(NamedTuple):
    """A try to be made: POST `body` to `path`."""

    path: str
    body: bytes
    headers: Mapping[str, str]
    left: TimeLeft


class Wait(NamedTuple):
    """A pause to be made."""

    seconds: float


Steps = Generator[Send | Wait, Reply | Lost | None, T]


@dataclass(frozen=True)
class Exchange:
    """A body for a path, within a timeout. With `tells_deadline`, the service hears how long it has."""

    path: str
    body: bytes
    headers: Mapping[str, str]
    timeout_s: float
    tells_deadline: bool

    def steps(self, retries: Retries, clock: Clock = time.monotonic) -> Steps[Reply | Lost]:
        """At most two tries; returns what came of the last."""
        left = TimeLeft(clock() + self.timeout_s, clock)
        retries.sent()
        reply = yield self._try(left, clock)
        assert reply is not None  # whoever runs the steps answers a Send
        delay_s = retries.delay_s(reply.status, left.deadline_s - clock(), reply.retry_after_s)
        if delay_s is None:
            return reply
        yield Wait(delay_s)
        if clock() >= left.deadline_s:  # overslept
            return reply
        again = yield self._try(left, clock)
        assert again is not None
        return again

    def _try(self, left: TimeLeft, clock: Clock) -> Send:
        headers = dict(self.headers)
        if self.tells_deadline:
            left_ms = int((left.deadline_s - clock() - TRAVEL_S) * 1e3)
            headers[DEADLINE] = str(min(max(left_ms, 1), MAX_DEADLINE_MS))
        return Send(self.path, self.body, headers, left)
