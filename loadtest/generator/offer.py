"""Offer a load from a separate process, and collect the end of each request."""

from __future__ import annotations

import contextlib
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from loadtest.commands import die_with_parent, failure
from loadtest.errors import LoadtestError
from loadtest.generator.connections import TIMEOUT_S, Failure
from loadtest.measure.measure import Requests
from loadtest.workload.profiles import Block, Profile

# Files of the load, of its result and of messages, in the folder that both processes share.
LOAD, RESULT, LOG = "load.pickle", "result.pickle", "generator.log"
# Time for the last answers, and to write the results.
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
    folder: Path
    process: subprocess.Popen[str]
    begun_s: float

    def stop(self) -> None:
        """Stop sending; requests in flight still get their answers."""
        self.process.terminate()

    def result(self) -> OfferResult:
        """Wait for the end of the load and return its result.

        Raises:
            LoadtestError: if the generator failed.
        """
        try:
            self.process.wait(self.load.seconds + OVERTIME_S)
        except subprocess.TimeoutExpired:
            raise LoadtestError("the load generator did not end in time") from None
        if not (self.folder / RESULT).exists():
            raise failure("the load generator failed", self.folder / LOG)
        result: OfferResult = pickle.loads((self.folder / RESULT).read_bytes())
        return result


@contextlib.contextmanager
def offering(load: OfferedLoad) -> Iterator[Offer]:
    """Offer a load while the block runs; the block reads its result.

    Raises:
        LoadtestError: if the generator does not start.
    """
    with tempfile.TemporaryDirectory(prefix="tabrank-load-") as name:
        folder = Path(name)
        (folder / LOAD).write_bytes(pickle.dumps(load))
        command = [sys.executable, "-m", "loadtest.generator.process", name]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        with (
            (folder / LOG).open("wb") as log,
            subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                preexec_fn=die_with_parent,
                text=True,
            ) as process,
            ThreadPoolExecutor(1) as progress,
        ):
            assert process.stdout is not None
            try:
                begun = process.stdout.readline()
                if not begun:
                    raise failure("the load generator did not start", folder / LOG)
                progress.submit(sys.stderr.writelines, process.stdout)
                yield Offer(load, folder, process, float(begun))
            finally:
                process.kill()


def offered(load: OfferedLoad) -> OfferResult:
    """Offer a load and wait for its end."""
    with offering(load) as offer:
        return offer.result()
