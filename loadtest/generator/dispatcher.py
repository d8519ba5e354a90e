"""Send requests in an open or a closed loop, and show the progress.

In an open loop each request is sent when it is due, in a greenlet of its own, so a slow answer
delays no other request. The due times are a Poisson process. In a closed loop each connection sends
its next request when the last answer is complete.

The speed of the open loop was measured on 2 cores, with the service on the same machine and 55
candidates per request. At 900 requests per second this process takes 0.16 to 0.2 of a core. At
4,000 per second, 99 % of the requests are sent within 3 ms of their due times. At 6,000 per second
that takes more than 10 ms.
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from time import perf_counter

import gevent
import numpy as np
from geventhttpclient.response import HTTPParseError
from numpy.typing import NDArray

from loadtest.generator.connections import Exchange, error_kind
from loadtest.measure.measure import RequestLog, Requests, percentile
from loadtest.measure.service import TIMEOUT_S, Ended, Outcome
from loadtest.workload.profiles import Block
from serve.report.rows import number

# Most requests that may wait for an answer at once. At 900 requests per second it is reached when
# answers take longer than a second; then the service is far beyond any SLO.
MAX_IN_FLIGHT = 1000
# Limit of open files that this process asks for. MAX_IN_FLIGHT connections and as many idle ones
# fit well below it.
OPEN_FILES = 4096
NOT_SENT = Outcome("not sent", ok=False)
TIMEOUT = Outcome("timeout", ok=False)
# Time between two progress lines.
PROGRESS_S = 5.0


@dataclass(eq=False)
class Dispatcher:
    """Dispatcher of requests; it calls `on_end` for each request, in the order in which they end.

    `exchange` sends a request and returns its answer; it raises OSError or HTTPParseError if there
    is none. `read` takes the status and the body of an answer, and returns its outcome and the
    number of scored rows.

    At most MAX_IN_FLIGHT requests are open at a time. A request that is due above this limit is not
    sent and ends as `not sent`. So a service that hangs does not get ever more connections, and
    this process does not run out of file descriptors.
    """

    exchange: Exchange
    read: Callable[[int, bytes], tuple[Outcome, int]]
    on_end: Callable[[Ended], None]
    _due: dict[int, float] = field(default_factory=dict, init=False)
    _begins: float = field(default=0.0, init=False)

    def run(self, times_s: Iterable[float], requests: Iterable[bytes]) -> None:
        """Send a request at each time (seconds from now, ascending), then wait for all answers."""
        self._begins = perf_counter()
        for index, (at_s, request) in enumerate(zip(times_s, requests, strict=False)):
            gevent.sleep(max(0.0, self._begins + at_s - perf_counter()))
            if len(self._due) < MAX_IN_FLIGHT:
                self._due[index] = at_s
                gevent.spawn_raw(self._send, index, at_s, request)
            else:
                late_ms = self._since_ms(at_s)
                self.on_end(Ended(at_s, late_ms, late_ms, NOT_SENT, 0, 0))
        self._drain()

    def run_closed(self, connections: int, seconds: float, requests: Iterable[bytes]) -> None:
        """Keep one request open on each of `connections` connections, then wait for all answers.

        For `seconds` seconds, each connection sends its next request as soon as it has an answer. A
        request is due when it is sent.
        """
        self._begins = perf_counter()
        coming = iter(requests)

        def send_next() -> None:
            for request in coming:
                if perf_counter() - self._begins >= seconds:
                    break
                self.send(request)

        gevent.joinall([gevent.spawn(send_next) for _ in range(connections)], raise_error=True)

    def send(self, request: bytes) -> None:
        """Send one request now, and wait for its answer."""
        self.on_end(self._ended(perf_counter() - self._begins, request))

    def _send(self, index: int, at_s: float, request: bytes) -> None:
        """Send a request of the open loop; ignore its end if `_drain` counted it as a timeout."""
        ended = self._ended(at_s, request)
        if self._due.pop(index, None) is not None:
            self.on_end(ended)

    def _ended(self, at_s: float, request: bytes) -> Ended:
        late_ms = self._since_ms(at_s)
        try:
            reply = self.exchange(request)
        except (OSError, HTTPParseError) as error:
            return Ended(at_s, late_ms, self._since_ms(at_s), Outcome(error_kind(error), ok=False), 0, 0)
        latency_ms = self._since_ms(at_s)
        outcome, scored = self.read(reply.code, reply.body)
        return Ended(at_s, late_ms, latency_ms, outcome, scored, len(reply.body))

    def _drain(self) -> None:
        until = perf_counter() + TIMEOUT_S
        while self._due and perf_counter() < until:
            gevent.sleep(0.01)
        while self._due:
            _, at_s = self._due.popitem()
            self.on_end(Ended(at_s, 0.0, self._since_ms(at_s), TIMEOUT, 0, 0))

    def _since_ms(self, at_s: float) -> float:
        return (perf_counter() - self._begins - at_s) * 1000


def allow_open_files() -> None:
    """Raise this process's limit of open files, so that MAX_IN_FLIGHT connections fit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def arrivals(rate_rps: float, blocks: Iterable[Block], rng: np.random.Generator) -> Iterator[float]:
    """Yield the times at which to send a request, in ascending seconds from 0.

    Within a block the times are those of a Poisson process of which the number of requests is
    known. This number is the expected one, so that a run offers exactly its nominal rate. At factor
    1 the rate is `rate_rps`.
    """
    begins_s = 0.0
    for block in blocks:
        count = block.num_requests(rate_rps)
        yield from (begins_s + block.seconds * _places(block, np.sort(rng.random(count)))).tolist()
        begins_s += block.seconds


def _places(block: Block, share: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the times in the block at which these shares of its requests were sent.

    Times are in block lengths, from 0 to 1. The formula inverts the integral of the block's rate,
    which is linear: in a block whose rate rises from 0, half of the requests are sent by 0.71.
    """
    begins, ends = block.begins, block.ends
    if begins == ends:
        return share
    factor: NDArray[np.float64] = np.sqrt(begins**2 + (ends**2 - begins**2) * share)
    return (factor - begins) / (ends - begins)


def progress_line(requests: Requests, since_s: float, now_s: float, warmup_s: float) -> str:
    """Return the progress line for requests that ended from `since_s` to `now_s`.

    Example: `12 s  903 req/s  p50 8.1  p99 21.4 ms  errors 0`.
    """
    ok = int(requests.ok.sum())
    p50, p99 = (number(percentile(requests.latency_ms, share, requests.ok), ".1f") for share in (0.5, 0.99))
    rate, errors = f"{ok / (now_s - since_s):.0f} req/s", len(requests.ok) - ok
    line = f"{now_s:.0f} s  {rate}  p50 {p50}  p99 {p99} ms  errors {errors}"
    return line + ("  (warm-up)" if now_s < warmup_s else "")


def show_progress(record: RequestLog, warmup_s: float) -> None:
    """Print progress lines to stderr until the greenlet of this function is killed."""
    begins, since_s, first = perf_counter(), 0.0, 0
    while True:
        gevent.sleep(PROGRESS_S)
        now_s = perf_counter() - begins
        requests = record.requests(first)
        first += len(requests.ok)
        print(progress_line(requests, since_s, now_s, warmup_s), file=sys.stderr, flush=True)
        since_s = now_s
