"""Faults that kill or stop a process of the service."""

from __future__ import annotations

import contextlib
import json
import signal
from collections.abc import Mapping
from typing import Any

import psutil

from loadtest.commands import run_command
from loadtest.errors import LoadtestError
from loadtest.measure.cluster import read_service
from loadtest.report.report import Report
from loadtest.scenarios.chaos.fault import ONE, TWO, Allowed, Fault, Injected
from loadtest.targets.running import CONTROLLER, HAPROXY, MANAGER, REPLICA, Target, send_signal

# Allowed effects if one of two replicas dies, if nobody may notice anything, if one of two replicas
# hangs, and if the only ingress, HAProxy, dies.
ONE_OF_TWO = Allowed(failed_share=0.0, first="in flight", strength_s=15.0)
NOTHING = Allowed(failed_share=0.0, first="none")
HUNG = Allowed(failed_share=0.01, p99_back_s=5.0, whole_s=15.0)
INGRESS = Allowed(failed_share=None, outage_s=5.0, whole_s=15.0)


class Kill(Fault):
    """Fault that sends a signal to one process."""

    number = signal.SIGKILL

    def __init__(
        self, name: str, what: str, role: str, allowed: Allowed, replicas: Mapping[str, int] = TWO
    ) -> None:
        self.name, self.what, self.allowed, self.replicas = name, what, allowed, replicas
        self._role = role

    def aim(self, target: Target) -> None:
        """Find the oldest process of the fault's role."""
        self._aimed = target.one(self._role)

    def inject(self, target: Target) -> None:
        """Send the signal."""
        send_signal(self._aimed, self.number)


class Stop(Kill):
    """Fault that hangs a process: SIGSTOP stops it, and SIGCONT continues it after 30 s."""

    number = signal.SIGSTOP
    hold_s, watch_s = 30.0, 12.0

    def heal(self, target: Target) -> None:
        """Continue the process, if Serve has not replaced it meanwhile."""
        with contextlib.suppress(psutil.NoSuchProcess):
            self._aimed.send_signal(signal.SIGCONT)


class SupervisorKilled(Fault):
    """Fault that kills the supervisor with `kill -9`. The next `serve up` starts a new one.

    The service must continue to answer, and `serve status` must report that it is unwatched.
    """

    name, what, allowed, replicas = "supervisor", "kill -9 the supervisor; `up` again", NOTHING, TWO
    # `status` must report the fault after 10 s. The start of the command takes some of them.
    hold_s, watch_s = 7.0, 8.0

    _status: Mapping[str, Any] = {}

    def aim(self, target: Target) -> None:
        """Find the supervisor."""
        try:
            self._supervisor = psutil.Process(read_service(target.run)["pid"])
        except (KeyError, psutil.NoSuchProcess):
            raise LoadtestError("the service has no supervisor; check that it is up") from None

    def inject(self, target: Target) -> None:
        """Kill the supervisor."""
        send_signal(self._supervisor, signal.SIGKILL)

    def heal(self, target: Target) -> None:
        """Read the status, then start the service again from the same file."""
        log = target.folder / "chaos.log"
        self._status = json.loads(
            run_command("serve", "status", "--json", "--run", str(target.run), log=log, accept=(0, 1))
        )
        target.deploy(target.document())

    def measured(self, load: Injected) -> tuple[Report, list[str]]:
        """Return a reason if the status does not report the fault."""
        if self._status.get("supervision"):
            return {}, []
        reported = f"after {self.hold_s:g} s `serve status` reported {self._status.get('state')!r}"
        return {}, [f"{reported}, but not that the service is unwatched"]


KILLS: tuple[Fault, ...] = (
    Kill("scorer", "kill -9 one of two Scorers", REPLICA + "Scorer", ONE_OF_TWO),
    Kill("feature-fetch", "kill -9 one of two FeatureFetch", REPLICA + "FeatureFetch", ONE_OF_TWO),
    Kill("controller", "kill -9 the Serve controller", CONTROLLER, NOTHING),
    Kill("haproxy", "kill -9 HAProxy", HAPROXY, INGRESS),
    Kill("haproxy-manager", "kill -9 HAProxy's manager", MANAGER, INGRESS),
    Stop("scorer-stopped", "SIGSTOP one of two Scorers for 30 s", REPLICA + "Scorer", HUNG),
)
ONLY_SCORER = Kill("only-scorer", "kill -9 the only Scorer", REPLICA + "Scorer", NOTHING, ONE)
