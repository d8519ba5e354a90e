"""Faults of the process that watches the service, and of the folder that it writes to."""

from __future__ import annotations

import resource
import signal
from collections.abc import Mapping
from typing import Any

import psutil

from loadtest.commands import run_command
from loadtest.errors import LoadtestError
from loadtest.measure.cluster import read_service
from loadtest.scenarios.chaos.fault import TWO, Allowed, Fault
from loadtest.scenarios.chaos.kills import NOTHING, ONE_OF_TWO
from loadtest.scenarios.chaos.stores import limit_files
from loadtest.scenarios.chaos.target import Target, signalled


class Unwatched(Fault):
    """The supervisor cannot do its work for a while: what serves goes on, and `serve status` says what is missing."""

    replicas: Mapping[str, int] = TWO
    # Starting the command takes some seconds more, of the 10 after which `status` must say so.
    hold_s, watch_s = 7.0, 8.0

    _supervisor: psutil.Process
    _said: Mapping[str, Any] = {}

    def aim(self, target: Target) -> None:
        """Find the supervisor."""
        try:
            self._supervisor = psutil.Process(read_service(target.run)["pid"])
        except (KeyError, psutil.NoSuchProcess):
            raise LoadtestError("the service has no supervisor; is it up?") from None

    def heal(self, target: Target) -> None:
        """Ask for the status."""
        log = target.folder / "chaos.log"
        self._said = run_command("serve", "status", "--run", str(target.run), log=log, accept=(0, 1))

    def reasons(self) -> list[str]:
        """Return what the status left out."""
        if self._said.get("unwatched"):
            return []
        state = self._said.get("state")
        return [f"asked {self.hold_s:g} s later, `status` said {state!r}, and not what is no longer watched"]


class SupervisorKilled(Unwatched):
    """`kill -9` of the supervisor; the next `up` takes over."""

    name, what, allowed = "supervisor", "kill -9 the supervisor; `up` again", NOTHING

    def inject(self, target: Target) -> None:
        """Kill it."""
        signalled(self._supervisor, signal.SIGKILL)

    def heal(self, target: Target) -> None:
        """Ask for the status, then start the service of the same file."""
        super().heal(target)
        target.deploy(target.document())


class RunDiskFull(Unwatched):
    """No file of the supervisor can grow, as on a full disk, while a Scorer is killed."""

    name, what = "run-disk-full", "no room for the run folder, and kill -9 one of two Scorers"
    # Only what is written after the end tells that all replicas are back.
    allowed: Allowed = ONE_OF_TWO

    def aim(self, target: Target) -> None:
        """Find the supervisor and the oldest Scorer."""
        super().aim(target)
        self._scorer = target.replica("Scorer")

    def inject(self, target: Target) -> None:
        """Limit the size of its files, then kill the Scorer."""
        limit_files([self._supervisor], 0)
        signalled(self._scorer, signal.SIGKILL)

    def heal(self, target: Target) -> None:
        """Ask for the status, then lift the limit."""
        super().heal(target)
        limit_files([self._supervisor], resource.RLIM_INFINITY)


SUPERVISOR: tuple[Fault, ...] = (SupervisorKilled(), RunDiskFull())
