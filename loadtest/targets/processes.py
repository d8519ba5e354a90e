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
from serve.operate.host.run_folder import MARKER as CLUSTER
from serve.operate.host.run_folder import kill, memory_mib, name_of, processes_with

# Environment variable of every process of a measured service.
MARKER = "TABRANK_LOADTEST"
START_S = 120.0
SETTLE_S = 3.0
STOP_S = 30.0
POLL_S = 0.05


@dataclass(frozen=True)
class Footprint:
    """Resources of a started, idle service; shared pages count once."""

    start_s: float
    memory_mib: int
    num_processes: int
    processes: list[str]


@contextlib.contextmanager
def started(service: TargetService, work: Workspace, body: bytes, num_candidates: int) -> Iterator[Footprint]:
    """Start a service, wait for its first full answer to `body`, and end its processes afterwards.

    Raises:
        LoadtestError: if it ends early, or gives no full answer within START_S.
    """
    marker = marker_of(work, service)
    log = work.path / f"{service.name}.log"
    # End the processes that a killed benchmark left.
    _end(service, marker, None)
    begun = time.monotonic()
    with log.open("wb") as file:
        process = subprocess.Popen(
            service.start,
            # SPT_NOENV keeps the environment readable when a process sets its title.
            env={**service.environment, MARKER: marker, "SPT_NOENV": "1"},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            # Only this process handles Ctrl-C.
            start_new_session=True,
            preexec_fn=partial(die_with_parent, signal.SIGTERM),
        )

    def check_alive() -> None:
        if process.poll():
            raise failure(f"{service.name} did not start", log)

    try:
        hint = f"; see {log}, and remove {work.path} if another version of the code made it"
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
    """Wait for a full answer to `body`; `check` runs before each request, and may raise.

    Raises:
        LoadtestError: with the last outcome and the hint, if there was none in time.
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
    # A fault may have started it again, without the marker.
    if service.stop and (process or marked(marker)):
        # The remaining processes are ended below.
        with contextlib.suppress(subprocess.TimeoutExpired):
            env = dict(service.environment)
            subprocess.run(service.stop, env=env, capture_output=True, timeout=2 * STOP_S, check=False)
    kill(partial(marked, marker))


def marker_of(work: Workspace, service: TargetService) -> str:
    """Return the marker of each process of a service."""
    return f"{work.id}-{service.name}"


def marked(marker: str) -> list[psutil.Process]:
    """Return the live processes whose environment has this MARKER."""
    return processes_with(MARKER, marker)


def of_cluster(cluster_id: str) -> list[psutil.Process]:
    """Return the live processes of a service that `serve up` started."""
    return processes_with(CLUSTER, cluster_id)
