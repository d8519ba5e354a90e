"""Start a service, measure its processes, and end all of them."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import psutil

from loadtest.commands import die_with_parent, failure
from loadtest.errors import LoadtestError
from loadtest.measure.service import PATH, ask, read_answer
from loadtest.targets.services import TargetService
from loadtest.targets.workspace import Workspace
from serve.operate.host.run_folder import kill, memory_mib, name_of, processes_with

# Environment variable that every process of a measured service has.
MARKER = "TABRANK_LOADTEST"
# Time within which a service must give its first full answer. On a busy machine Ray takes a minute.
START_S = 120.0
# Time after the first answer until memory is measured, for processes that start late.
SETTLE_S = 3.0
# Time to end after SIGTERM. The processes that are left are killed.
STOP_S = 30.0
# Time between two requests that wait for a full answer.
POLL_S = 0.05


@dataclass(frozen=True)
class Footprint:
    """Resources of a service that has started and is idle.

    `start_s` is the time to the first full answer. `memory_mib` counts pages that several processes
    share once.
    """

    start_s: float
    memory_mib: int
    num_processes: int
    processes: list[str]


@contextlib.contextmanager
def started(service: TargetService, work: Workspace, body: bytes, num_candidates: int) -> Iterator[Footprint]:
    """Start a service, and end its processes after the `with` block.

    The block begins after the first full answer to `body`, a request with `num_candidates`
    candidates.

    Raises:
        LoadtestError: if the service ends early, or gives no full answer within START_S.
    """
    marker = marker_of(work, service)
    log = work.path / f"{service.name}.log"
    # A killed benchmark may have left processes. End them first.
    _end(service, marker, None)
    begun = time.monotonic()
    with log.open("wb") as file:
        process = subprocess.Popen(
            service.start,
            # Without SPT_NOENV a process that sets its title overwrites its environment, and the
            # marker could not be read.
            env={**service.environment, MARKER: marker, "SPT_NOENV": "1"},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            # In a session of its own the service does not get Ctrl-C, which this process handles.
            start_new_session=True,
            preexec_fn=partial(die_with_parent, signal.SIGTERM),
        )

    def check_alive() -> None:
        if process.poll():
            raise failure(f"{service.name} did not start", log)

    try:
        hint = f"; see {log}, and remove {work.path} if another version of tabrank made it"
        await_full_answer(service, body, num_candidates, check_alive, hint)
        start_s = round(time.monotonic() - begun, 1)
        # Wait for processes that start late.
        time.sleep(SETTLE_S)
        processes = marked(marker)
        names = sorted(filter(None, map(name_of, processes)))
        yield Footprint(start_s, memory_mib(processes), len(names), names)
    finally:
        _end(service, marker, process)


def await_full_answer(
    service: TargetService,
    body: bytes,
    num_candidates: int,
    check: Callable[[], None] = lambda: None,
    hint: str = "",
) -> None:
    """Wait for a full answer to `body`.

    `check` is called before each request, and may raise to stop the wait.

    Raises:
        LoadtestError: if there was no full answer within START_S. The message names the outcome of
            the last answer and ends with `hint`.
    """
    deadline, last = time.monotonic() + START_S, "nothing"
    while time.monotonic() < deadline:
        check()
        with contextlib.suppress(LoadtestError):
            outcome, _ = read_answer(*ask(service.url, PATH, body), num_candidates)
            if outcome.full:
                return
            last = outcome.name
        time.sleep(POLL_S)
    raise LoadtestError(
        f"{service.name} gave no full answer within {START_S:g} s (last answer: {last}){hint}"
    )


def _end(service: TargetService, marker: str, process: subprocess.Popen[bytes] | None) -> None:
    """Stop the service with its own command, then end its remaining processes by id."""
    if process and process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_S)
    # Stop the service even if the process has ended: a fault may have started the service again,
    # and then its processes lack the marker.
    if service.stop and (process or marked(marker)):
        # If the command takes too long, the processes are killed below.
        with contextlib.suppress(subprocess.TimeoutExpired):
            env = dict(service.environment)
            subprocess.run(service.stop, env=env, capture_output=True, timeout=2 * STOP_S, check=False)
    kill(partial(marked, marker))


def marker_of(work: Workspace, service: TargetService) -> str:
    """Return the value of MARKER that each process of this service has."""
    return f"{work.id}-{service.name}"


def marked(marker: str) -> list[psutil.Process]:
    """Return the live processes whose environment has MARKER with this value."""
    return processes_with(MARKER, marker)
