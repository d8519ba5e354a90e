"""A load beside what is done to the service: the open loop in a process of its own, and each of its requests."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import msgspec
import numpy as np

from loadtest.commands import die_with_parent, last_lines
from loadtest.errors import LoadtestError
from loadtest.generator.connections import TIMEOUT_S
from loadtest.generator.process import FOUND, SPEC, Spec
from loadtest.measure.answer import Outcome
from loadtest.measure.measure import Floats, Requests
from loadtest.workload.shapes import Block

OVERTIME_S = 30.0  # for the last answers, and to write them down


@dataclass(frozen=True)
class Offered:
    """What became of a load, its times counted from its first second.

    `requests` ended as the client saw it in the end; `failed_at_s` and `failed_kinds` are of first tries, where the
    load retried.
    """

    requests: Requests
    failed_at_s: Floats
    failed_kinds: list[str]


@dataclass(frozen=True)
class Load:
    """What is offered: each block a number of seconds at a factor of the rate.

    `retry`: failed requests are tried once more, as the shipped client does; `timeout_s` is of a request.
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
        """Its length."""
        return sum(block.seconds for block in self.blocks)


class Offer:
    """A load under way; `begun_s` is its second 0 on the clock of `time.monotonic()`."""

    def __init__(self, load: Load, folder: Path) -> None:
        self._load, self._folder = load, folder
        self._log = folder / "generator.log"
        spec = Spec(
            load.url,
            list(load.bodies),
            load.num_candidates,
            load.rate_rps,
            [(block.seconds, block.factor) for block in load.blocks],
            load.timeout_s,
            load.retry,
        )
        (folder / SPEC).write_bytes(msgspec.msgpack.encode(spec))
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
        said = self._process.stdout.readline()
        if not said:
            self.end()
            raise LoadtestError("the load generator did not start:\n  " + "\n  ".join(last_lines(self._log)))
        self.begun_s = float(said)

    def stop(self) -> None:
        """Send no more; what is under way is still waited for."""
        self._process.terminate()

    def result(self) -> Offered:
        """What became of it, once it has ended.

        Raises:
            LoadtestError: if the generator failed.
        """
        try:
            self._process.wait(self._load.seconds + OVERTIME_S)
        except subprocess.TimeoutExpired:
            raise LoadtestError("the load did not end") from None
        if not (self._folder / FOUND).exists():
            raise LoadtestError("the load failed:\n  " + "\n  ".join(last_lines(self._log)))
        with np.load(self._folder / FOUND) as found:
            columns = {name: found[name] for name in ("at_s", "late_ms", "latency_ms", "scored", "codes")}
            outcomes = [_outcome(name) for name in found["outcomes"].tolist()]
            ok = np.array([outcome.ok for outcome in outcomes], dtype=bool)[columns["codes"]]
            requests = Requests(ok=ok, outcomes=outcomes, **columns)
            return Offered(requests, found["failed_at_s"], found["failed_kinds"].tolist())

    def end(self) -> None:
        """End it, whatever it does."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        if self._process.stdout:
            self._process.stdout.close()


@contextlib.contextmanager
def offering(load: Load) -> Iterator[Offer]:
    """Offer a load while the block runs; the block asks for its result."""
    with tempfile.TemporaryDirectory(prefix="tabrank-load-") as folder:
        offer = Offer(load, Path(folder))
        try:
            yield offer
        finally:
            offer.end()


def offered(load: Load) -> Offered:
    """Offer a load, and wait for its end."""
    with offering(load) as offer:
        return offer.result()


def _outcome(said: str) -> Outcome:
    name, _, flags = said.rpartition("|")
    return Outcome(name, flags[0] == "1", flags[1] == "1")
