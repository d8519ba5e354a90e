"""Load generator as a separate process, started by `loadtest.generator.offer`.

Run it as `python -m loadtest.generator.process FOLDER`.

It does not share an interpreter with the scenario. So the scenario's own work does not delay
requests, and the generator can be pinned to a core.
"""

from __future__ import annotations

import gc
import pickle
import signal
import sys
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import cycle, takewhile
from pathlib import Path
from time import perf_counter

import gevent
import numpy as np

from loadtest.generator.connections import Connections, Failure, Retrying
from loadtest.generator.dispatcher import Dispatcher, allow_open_files, arrivals, show_progress
from loadtest.generator.offer import LOAD, RESULT, OfferedLoad, OfferResult
from loadtest.measure.measure import RequestLog
from loadtest.measure.service import read_answer
from loadtest.workload.profiles import SEED


def main(folder: Path) -> None:
    """Offer the folder's load until its end or SIGTERM; write the result beside it."""
    load: OfferedLoad = pickle.loads((folder / LOAD).read_bytes())
    # Ctrl-C interrupts the parent, which ends this process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    allow_open_files()
    failures: list[Failure] = []
    record = RequestLog()
    connections = Connections(load.url, timeout_s=load.timeout_s)
    exchange = connections.exchange
    if load.retry:
        exchange = Retrying(connections, load.timeout_s, failures.append).exchange
    read = partial(read_answer, num_candidates=load.num_candidates)
    dispatcher = Dispatcher(exchange, read, record.keep)
    requests = _until_stopped(cycle([connections.prepare(body) for body in load.bodies]))
    gc.collect()
    gc.freeze()
    # The parent compares this time with its own time.monotonic(), which is the same clock.
    begun = perf_counter()
    print(begun, flush=True)
    progress = None if load.warmup_s is None else gevent.spawn(show_progress, record, load.warmup_s)
    if load.connections:
        dispatcher.run_closed(load.connections, load.seconds, requests)
    else:
        dispatcher.run(arrivals(lambda: load.rate_rps, load.blocks, np.random.default_rng(SEED)), requests)
    gevent.killall(filter(None, [progress]))
    connections.close()
    result = OfferResult(record.requests(), [Failure(at_s - begun, kind) for at_s, kind in failures])
    (folder / RESULT).write_bytes(pickle.dumps(result))


def _until_stopped(requests: Iterable[bytes]) -> Iterator[bytes]:
    """Return the requests up to SIGTERM."""
    stopped: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: stopped.append(number))
    return takewhile(lambda _: not stopped, requests)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
