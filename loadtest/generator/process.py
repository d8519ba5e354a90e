"""Open-loop load generator as a separate process, started by `loadtest.generator.offer`.

Run it as `python -m loadtest.generator.process FOLDER`.

It does not share an interpreter with the scenario. So the scenario's own work does not delay
requests, and the generator can be pinned to a core.
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
from loadtest.generator.connections import Connections, Transport
from loadtest.generator.dispatcher import Dispatcher, allow_open_files
from loadtest.generator.retrying import Failure, Retrying
from loadtest.measure.answer import read_answer
from loadtest.measure.measure import RequestLog
from loadtest.workload.shapes import Block

SPEC, RESULT, SEED = "spec.msgpack", "found.npz", 20


class Spec(msgspec.Struct):
    """Load to offer: `blocks` holds seconds and the factor of the rate in them."""

    url: str
    bodies: list[bytes]
    num_candidates: int
    rate_rps: float
    blocks: list[tuple[float, float]]
    timeout_s: float
    # Retry as the shipped client does.
    retry: bool


def main(folder: Path) -> None:
    """Offer the load of the folder's spec until its end or SIGTERM; write the results beside it."""
    spec = msgspec.msgpack.decode((folder / SPEC).read_bytes(), type=Spec)
    allow_open_files()
    failures: list[Failure] = []
    record = RequestLog()
    connections = Connections(spec.url, timeout_s=spec.timeout_s)
    transport: Transport = connections
    if spec.retry:
        transport = Retrying(connections, spec.timeout_s, failures.append)

    read = partial(read_answer, num_candidates=spec.num_candidates)
    dispatcher = Dispatcher(transport, read, record.keep)
    requests = cycle([connections.prepare(body) for body in spec.bodies])
    gc.collect()
    gc.freeze()
    times_s = _until_stopped(spec)
    # The parent compares this time with its own time.monotonic(), which is the same clock.
    begun = perf_counter()
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


def _save(folder: Path, record: RequestLog, failures: list[Failure], begun: float) -> None:
    found = record.requests()
    names = [f"{outcome.name}|{outcome.ok:d}{outcome.full:d}" for outcome in found.outcomes]
    np.savez(
        folder / RESULT,
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
