"""Offer an open-loop load from a separate process, and collect the end of each request."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import msgspec

from loadtest.commands import die_with_parent, last_lines
from loadtest.errors import LoadtestError
from loadtest.generator.connections import TIMEOUT_S
from loadtest.measure.measure import Floats, Requests
from loadtest.workload.shapes import Block

# Files of the load and of its result, in the folder that both processes share.
LOAD, RESULT = "load.msgpack", "result.pickle"
# Time for the last answers, and to write the results.
OVERTIME_S = 30.0


@dataclass(frozen=True)
class OfferResult:
    """Result of a load, with times relative to its first second.

    `requests` holds the final outcome of each request. If the load retried, `failed_at_s` and
    `failed_kinds` describe the first tries that failed.
    """

    requests: Requests
    failed_at_s: Floats
    failed_kinds: list[str]


@dataclass(frozen=True)
class OfferedLoad:
    """Load to offer: each block is a number of seconds at a factor of the rate.

    `retry`: retry failed requests once, as the shipped client does. `timeout_s`: timeout of a
    request.
    """

    url: str
    bodies: Sequence[bytes]
    num_candidates: int
    rate_rps: float
    blocks: Sequence[Block]
    retry: bool = False
    timeout_s: float = TIMEOUT_S

    @property
    def seconds(self) -> float:
        """Return the duration of the load."""
        return sum(block.seconds for block in self.blocks)


class Offer:
    """Running load process; `begun_s` is its second 0 on the clock of `time.monotonic()`."""

    def __init__(self, load: OfferedLoad, folder: Path) -> None:
        self._load, self._folder = load, folder
        self._log = folder / "generator.log"
        (folder / LOAD).write_bytes(msgspec.msgpack.encode(load))
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "loadtest.generator.process", str(folder)],
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                preexec_fn=partial(die_with_parent, signal.SIGKILL),
            )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self.end()
            raise LoadtestError("the load generator did not start:\n  " + "\n  ".join(last_lines(self._log)))
        self.begun_s = float(line)

    def stop(self) -> None:
        """Stop sending; requests in flight still get their answers."""
        self._process.terminate()

    def result(self) -> OfferResult:
        """Wait for the end of the load and return its result.

        Raises:
            LoadtestError: if the generator failed.
        """
        try:
            self._process.wait(self._load.seconds + OVERTIME_S)
        except subprocess.TimeoutExpired:
            raise LoadtestError("the load generator did not end in time") from None
        if not (self._folder / RESULT).exists():
            raise LoadtestError("the load generator failed:\n  " + "\n  ".join(last_lines(self._log)))
        result: OfferResult = pickle.loads((self._folder / RESULT).read_bytes())
        return result

    def end(self) -> None:
        """End the process, whatever its state."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        if self._process.stdout:
            self._process.stdout.close()


@contextlib.contextmanager
def offering(load: OfferedLoad) -> Iterator[Offer]:
    """Offer a load while the block runs; the block reads its result."""
    with tempfile.TemporaryDirectory(prefix="tabrank-load-") as folder:
        offer = Offer(load, Path(folder))
        try:
            yield offer
        finally:
            offer.end()


def offered(load: OfferedLoad) -> OfferResult:
    """Offer a load and wait for its end."""
    with offering(load) as offer:
        return offer.result()
