"""Sans-I/O protocol of one call with its retry; `Client` and `AsyncClient` do the I/O."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

import msgspec

from serve.client.reply import Lost, Reply, read
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
    """Attempt to make: POST `body` to `path`."""

    path: str
    body: bytes
    headers: Mapping[str, str]
    left: TimeLeft


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
        self._left = TimeLeft(self.clock() + self.timeout_s, self.clock)

    def first(self) -> Send:
        """Return the first attempt."""
        self.retries.sent()
        return self._attempt()

    def delay_s(self, reply: Reply | Lost) -> float | None:
        """Return the seconds to wait before `again`; None if the first reply is the last."""
        return self.retries.delay_s(reply.status, self._left.deadline_s - self.clock(), reply.retry_after_s)

    def again(self) -> Send | None:
        """Return the second attempt; None if the wait took longer than the timeout allows."""
        return self._attempt() if self.clock() < self._left.deadline_s else None

    def answer(self, reply: Reply | Lost) -> T:
        """Return the answer in the last reply; raise ClientError if it holds none."""
        return read(reply, self.decoder, self.url, self.timeout_s, self.request_id)

    def _attempt(self) -> Send:
        headers = dict(self.headers)
        if self.sends_deadline:
            left_ms = int((self._left.deadline_s - self.clock() - NETWORK_S) * 1e3)
            headers[DEADLINE] = str(min(max(left_ms, 1), MAX_DEADLINE_MS))
        return Send(self.path, self.body, headers, self._left)
