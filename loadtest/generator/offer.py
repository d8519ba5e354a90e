"""Offer a load from a process of its own, and collect the end of each request.

The process does not share an interpreter with the scenario. So the scenario's own work does not
delay requests, and the generator can be pinned to a core.
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

# Time for the last answers, and to send the results.
OVERTIME_S = 30.0


@dataclass(frozen=True)
class OfferResult:
    """Result of a load, with times relative to its first second.

    `requests` holds the final outcome of each request, `failed` the first tries that failed, if the
    load retried.
    """

    requests: Requests
    failed: list[Failure]


@dataclass(frozen=True)
class OfferedLoad:
    """Load to offer: each block is a number of seconds at a factor of the rate.

    `retry`: retry failed requests once, as the shipped client does. `timeout_s`: timeout of a
    request. With `connections`, the load is a closed loop on this many and ignores rates: each
    connection sends the next request when an answer is complete. With `warmup_s`, lines of progress
    go to stderr, and those of this first part say so.
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
        """Return the load of a profile, which prints its progress."""
        rate_rps, warmup_s = profile.target_rps, profile.warmup_s
        return cls(url, bodies, profile.candidates, rate_rps, profile.blocks, warmup_s=warmup_s)

    @property
    def seconds(self) -> float:
        """Return the duration of the load."""
        return sum(block.seconds for block in self.blocks)


@dataclass(frozen=True)
class Offer:
    """Running load process; `begun_s` is its second 0 on the clock of `time.monotonic()`."""

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
            raise LoadtestError("the load generator did not end in time")
        result: OfferResult = _received(self.pipe, "failed")
        return result


@contextlib.contextmanager
def offering(load: OfferedLoad) -> Iterator[Offer]:
    """Offer a load while the block runs; the block reads its result.

    Raises:
        LoadtestError: if the generator does not start.
    """
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe(duplex=False)
    process = spawn.Process(target=_generate, args=(load, theirs))
    process.start()
    # Once the process has ended, no other one holds this end, and the pipe ends too.
    theirs.close()
    try:
        yield Offer(load, process, ours, _received(ours, "did not start"))
    finally:
        process.kill()
        process.join()


def offered(load: OfferedLoad) -> OfferResult:
    """Offer a load and wait for its end."""
    with offering(load) as offer:
        return offer.result()


def _received(pipe: Connection, failed: str) -> Any:
    """Return what the load process sends next; raise LoadtestError if that is an error's text."""
    try:
        found = pipe.recv()
    except EOFError:
        found = "its process was killed"
    if isinstance(found, str):
        raise LoadtestError(f"the load generator {failed}: {found}")
    return found


def _generate(load: OfferedLoad, pipe: Connection) -> None:
    """Offer a load in this process; send its second 0 and then its result, or an error's text."""
    die_with_parent()
    # Ctrl-C interrupts the parent, which ends this process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        pipe.send(_result_of(load, pipe.send))
    except Exception as error:
        pipe.send(f"{type(error).__name__}: {error}")


def _result_of(load: OfferedLoad, begin: Callable[[float], None]) -> OfferResult:
    """Offer a load until its end or SIGTERM; call `begin` with its second 0."""
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
    # The parent compares this time with its own time.monotonic(), which is the same clock.
    begun = perf_counter()
    begin(begun)
    progress = None if load.warmup_s is None else gevent.spawn(show_progress, record, load.warmup_s)
    if load.connections:
        dispatcher.run_closed(load.connections, load.seconds, requests)
    else:
        dispatcher.run(arrivals(lambda: load.rate_rps, load.blocks, np.random.default_rng(SEED)), requests)
    gevent.killall(filter(None, [progress]))
    connections.close()
    return OfferResult(record.requests(), [Failure(at_s - begun, kind) for at_s, kind in failures])
