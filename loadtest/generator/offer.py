"""Offer a load from a separate process, and collect how each request ended.

Because the process has its own interpreter, the work of the scenario does not delay requests. It
can also be pinned to a core.
"""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import cycle, takewhile
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from time import perf_counter
from typing import Any

import gevent
import numpy as np

from loadtest.commands import die_with_parent
from loadtest.errors import LoadtestError
from loadtest.generator.connections import Connections, Failure, Retrying
from loadtest.generator.dispatcher import Dispatcher, allow_open_files, arrivals, show_progress
from loadtest.measure.measure import RequestLog, Requests
from loadtest.measure.service import TIMEOUT_S, read_answer
from loadtest.workload.profiles import SEED, Block, Profile

# Time after the end of the load for the last answers, which may take TIMEOUT_S, and for the
# transfer of the results.
OVERTIME_S = 30.0


@dataclass(frozen=True)
class OfferResult:
    """Result of a load; times are in seconds from its start.

    `requests` holds the final outcome of each request. `failed` holds the first tries that failed;
    it is empty if the load does not retry.
    """

    requests: Requests
    failed: list[Failure]


@dataclass(frozen=True)
class OfferedLoad:
    """Load to offer to the service at `url`.

    Attributes:
        bodies: bodies of the requests, which are sent in turn and repeated.
        num_candidates: number of candidates in each body.
        rate_rps: rate at factor 1, in requests per second.
        blocks: time spans, each with a factor of the rate.
        retry: whether to retry a failed request once, as the shipped client does.
        timeout_s: time after which a request without an answer counts as failed.
        connections: if not 0, the load is a closed loop on this many connections. Each one sends
            its next request when an answer is complete, and rates are ignored.
        warmup_s: if not None, progress lines go to stderr, and those of the first `warmup_s`
            seconds are marked as warm-up.
    """

    url: str
    bodies: Sequence[bytes]
    num_candidates: int
    rate_rps: float
    blocks: Sequence[Block]
    retry: bool = False
    timeout_s: float = TIMEOUT_S
    connections: int = 0
    warmup_s: float | None = None

    @classmethod
    def of(cls, profile: Profile, url: str, bodies: Sequence[bytes]) -> OfferedLoad:
        """Return the load of a profile; while it runs, progress lines go to stderr."""
        rate_rps, warmup_s = profile.target_rps, profile.warmup_s
        return cls(url, bodies, profile.candidates, rate_rps, profile.blocks, warmup_s=warmup_s)

    @property
    def seconds(self) -> float:
        """Return the duration of the load in seconds."""
        return sum(block.seconds for block in self.blocks)


@dataclass(frozen=True)
class Offer:
    """Process that offers a load; the load began at `begun_s` by `time.monotonic()`."""

    load: OfferedLoad
    process: SpawnProcess
    pipe: Connection
    begun_s: float

    def stop(self) -> None:
        """Stop sending; requests in flight still get their answers."""
        self.process.terminate()

    def result(self) -> OfferResult:
        """Wait for the end of the load and return its result.

        Raises:
            LoadtestError: if the generator failed.
        """
        if not self.pipe.poll(self.load.seconds + OVERTIME_S):
            raise LoadtestError("the load generator did not end in time; run the test again")
        result: OfferResult = _received(self.pipe, "failed")
        return result


@contextlib.contextmanager
def offering(load: OfferedLoad) -> Iterator[Offer]:
    """Offer a load while the `with` block runs. The block calls `result` before it ends.

    The end of the block kills the load process.

    Raises:
        LoadtestError: if the generator does not start.
    """
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe(duplex=False)
    process = spawn.Process(target=_generate, args=(load, theirs))
    process.start()
    # The load process has a copy of this end. Once it ends, nobody holds one, and `recv` raises
    # EOFError instead of waiting for ever.
    theirs.close()
    try:
        yield Offer(load, process, ours, _received(ours, "did not start"))
    finally:
        process.kill()
        process.join()


def offered(load: OfferedLoad) -> OfferResult:
    """Offer a load, wait for its end, and return its result."""
    with offering(load) as offer:
        return offer.result()


def _received(pipe: Connection, failed: str) -> Any:
    """Return what the load process sends next.

    Raises:
        LoadtestError: if this is a text, which is the message of an error, or if the process ended.
    """
    try:
        found = pipe.recv()
    except EOFError:
        found = "its process was killed"
    if isinstance(found, str):
        raise LoadtestError(f"the load generator {failed}: {found}")
    return found


def _generate(load: OfferedLoad, pipe: Connection) -> None:
    """Offer a load in this process. Send the time of its start, then its result, through `pipe`.

    In case of an error, send its message as text instead.
    """
    die_with_parent()
    # Ctrl-C reaches the whole group of processes. The parent handles it and ends this process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        pipe.send(_result_of(load, pipe.send))
    except Exception as error:
        pipe.send(f"{type(error).__name__}: {error}")


def _result_of(load: OfferedLoad, begin: Callable[[float], None]) -> OfferResult:
    """Offer a load until its end or SIGTERM; call `begin` with the time of its start."""
    allow_open_files()
    failures: list[Failure] = []
    record = RequestLog()
    connections = Connections(load.url, timeout_s=load.timeout_s)
    exchange = connections.exchange
    if load.retry:
        exchange = Retrying(connections, load.timeout_s, failures.append).exchange
    read = partial(read_answer, num_candidates=load.num_candidates)
    dispatcher = Dispatcher(exchange, read, record.keep)
    stopped: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: stopped.append(number))
    bodies = cycle([connections.prepare(body) for body in load.bodies])
    requests = takewhile(lambda _: not stopped, bodies)
    gc.collect()
    gc.freeze()
    # The parent compares this time with its own time.monotonic(). Both read the same clock.
    begun = perf_counter()
    begin(begun)
    progress = None if load.warmup_s is None else gevent.spawn(show_progress, record, load.warmup_s)
    if load.connections:
        dispatcher.run_closed(load.connections, load.seconds, requests)
    else:
        dispatcher.run(arrivals(load.rate_rps, load.blocks, np.random.default_rng(SEED)), requests)
    gevent.killall(filter(None, [progress]))
    connections.close()
    return OfferResult(record.requests(), [Failure(at_s - begun, kind) for at_s, kind in failures])
