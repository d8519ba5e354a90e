"""The open loop as a process of its own, which `loadtest.generator.offer` starts.

Run it as `python -m loadtest.generator.process FOLDER`.

It shares no interpreter with whoever looks on, so that what is done beside the load makes no request late, and
what it measures can be pinned to a core.
"""

from __future__ import annotations

import gc
import signal
import sys
from collections.abc import Iterator
from functools import partial
from itertools import cycle, takewhile
from pathlib import Path
from time import perf_counter

import msgspec
import numpy as np

from loadtest.generator.arrivals import arrivals
from loadtest.generator.connections import Connections, Exchanges
from loadtest.generator.dispatcher import Dispatcher, allow_open_files
from loadtest.generator.retrying import Failure, Retrying
from loadtest.measure.answer import read_answer
from loadtest.measure.measure import Record
from loadtest.workload.shapes import Block

SPEC, FOUND, SEED = "spec.msgpack", "found.npz", 20


class Spec(msgspec.Struct):
    """What is offered: `blocks` are seconds and the factor of the rate in them."""

    url: str
    bodies: list[bytes]
    num_candidates: int
    rate_rps: float
    blocks: list[tuple[float, float]]
    timeout_s: float
    retry: bool  # as the shipped client does


def main(folder: Path) -> None:
    """Offer the load of the folder's spec until its end or SIGTERM; what became of each request goes beside it."""
    spec = msgspec.msgpack.decode((folder / SPEC).read_bytes(), type=Spec)
    allow_open_files()
    failures: list[Failure] = []
    record = Record()
    connections = Connections(spec.url, timeout_s=spec.timeout_s)
    exchanges: Exchanges = connections
    if spec.retry:
        exchanges = Retrying(connections, spec.timeout_s, failures.append)

    read = partial(read_answer, num_candidates=spec.num_candidates)
    dispatcher = Dispatcher(exchanges, read, record.keep)
    requests = cycle([connections.prepare(body) for body in spec.bodies])
    gc.collect()
    gc.freeze()
    times_s = _until_stopped(spec)
    begun = perf_counter()  # the same clock as time.monotonic() of whoever looks on
    print(begun, flush=True)
    dispatcher.run(times_s, requests)
    connections.close()
    _save(folder, record, failures, begun)


def _until_stopped(spec: Spec) -> Iterator[float]:
    stopped: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: stopped.append(number))
    blocks = [Block(seconds, factor, factor) for seconds, factor in spec.blocks]
    times_s = arrivals(lambda: spec.rate_rps, blocks, np.random.default_rng(SEED))
    return takewhile(lambda _: not stopped, times_s)


def _save(folder: Path, record: Record, failures: list[Failure], begun: float) -> None:
    found = record.requests()
    names = [f"{outcome.name}|{outcome.ok:d}{outcome.full:d}" for outcome in found.outcomes]
    np.savez(
        folder / FOUND,
        at_s=found.at_s,
        late_ms=found.late_ms,
        latency_ms=found.latency_ms,
        scored=found.scored,
        codes=found.codes,
        outcomes=np.array(names, dtype=str),
        failed_at_s=np.array([failure.at_s - begun for failure in failures]),
        failed_kinds=np.array([failure.kind for failure in failures], dtype=str),
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
