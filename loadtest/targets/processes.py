"""A service while it is measured: started, known by its processes, and ended without a trace."""

from __future__ import annotations

import contextlib
import http.client
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import psutil

from loadtest.commands import die_with_parent, last_lines
from loadtest.errors import LoadtestError
from loadtest.measure.answer import read_answer
from loadtest.measure.service import PATH
from loadtest.targets.services import Service
from loadtest.targets.workspace import Workspace

MARKER = "TABRANK_LOADTEST"  # in the environment of every process of a measured service
START_S = 120.0
SETTLE_S = 3.0
STOP_S = 30.0
POLL_S = 0.05


@dataclass(frozen=True)
class Footprint:
    """What a service takes when it has started and nobody asks: shared pages are counted once."""

    start_s: float
    memory_mib: int
    num_processes: int
    processes: list[str]


@contextlib.contextmanager
def started(service: Service, work: Workspace, body: bytes, num_candidates: int) -> Iterator[Footprint]:
    """Start a service, wait for its first full answer to `body`, and end every process of it afterwards.

    Raises:
        LoadtestError: if it ends early, or gives no full answer in START_S.
    """
    marker = f"{work.id}-{service.name}"
    log = work.path / f"{service.name}.log"
    _end(service, marker, None)  # what a killed benchmark left
    begun = time.monotonic()
    with log.open("wb") as file:
        process = subprocess.Popen(
            service.start,
            env={
                **service.environment,
                MARKER: marker,
                "SPT_NOENV": "1",
            },  # a set title keeps the environment
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,  # Ctrl-C is for us to act on
            preexec_fn=partial(die_with_parent, signal.SIGTERM),
        )
    try:
        _await_full_answer(service, process, log, body, num_candidates)
        start_s = round(time.monotonic() - begun, 1)
        time.sleep(SETTLE_S)  # what starts late has started
        yield _footprint(marker, start_s)
    finally:
        _end(service, marker, process)


def _await_full_answer(
    service: Service, process: subprocess.Popen[bytes], log: Path, body: bytes, num_candidates: int
) -> None:
    deadline = time.monotonic() + START_S
    said = "nothing"
    while time.monotonic() < deadline:
        if process.poll():
            raise LoadtestError(f"{service.name} did not start:\n  " + "\n  ".join(last_lines(log)))
        with contextlib.suppress(OSError, http.client.HTTPException):
            outcome, _ = read_answer(*_post(service.port, body), num_candidates)
            if outcome.full:
                return
            said = outcome.name
        time.sleep(POLL_S)
    raise LoadtestError(
        f"{service.name} gave no full answer in {START_S:g} s (it said: {said}); see {log}, "
        f"and remove {log.parent} if it was made by another version of the code"
    )


def _post(port: int, body: bytes) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("POST", PATH, body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def _end(service: Service, marker: str, process: subprocess.Popen[bytes] | None) -> None:
    """Stop the service by its own means, then end by id whatever of it is left."""
    if process and process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_S)
    # A fault may have started it anew, without our mark.
    if service.stop and (process or marked(marker)):
        with contextlib.suppress(subprocess.TimeoutExpired):  # then they are ended below
            subprocess.run(
                service.stop,
                env=dict(service.environment),
                capture_output=True,
                timeout=2 * STOP_S,
                check=False,
            )
    end_marked(marker)
    if service.temp:
        shutil.rmtree(service.temp, ignore_errors=True)


def end_marked(marker: str) -> None:
    """End by its id every process whose environment has MARKER at this value."""
    while left := marked(marker):  # again, because a dying parent may have just started a child
        for one in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        psutil.wait_procs(left, timeout=2.0)


def marked(marker: str) -> list[psutil.Process]:
    """The living processes whose environment has MARKER at this value."""
    return carrying(MARKER, marker)


def carrying(name: str, value: str) -> list[psutil.Process]:
    """The living processes whose environment has this variable at this value."""
    found = []
    for process in psutil.process_iter():
        # Processes of other users, and those that end meanwhile, cannot be read.
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get(name) == value and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def _footprint(marker: str, start_s: float) -> Footprint:
    memory, names = 0, []
    for process in marked(marker):
        with contextlib.suppress(psutil.Error):
            memory += process.memory_full_info().pss
            names.append(process.name())
    return Footprint(start_s, memory >> 20, len(names), sorted(names))
