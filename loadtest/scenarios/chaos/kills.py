"""Faults that kill a process, or stop it for a while."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Mapping

import psutil

from loadtest.scenarios.chaos.fault import ONE, TWO, Allowed, Fault
from loadtest.scenarios.chaos.target import CONTROLLER, HAPROXY, MANAGER, REPLICA, Target, send_signal

ONE_OF_TWO = Allowed(failed_share=0.0, first="in flight", strength_s=15.0)
NOTHING = Allowed(failed_share=0.0, first="none")
INGRESS = Allowed(failed_share=None, outage_s=5.0, whole_s=15.0)


class Kill(Fault):
    """Fault that kills one process with `kill -9`."""

    def __init__(
        self, name: str, what: str, role: str, allowed: Allowed, replicas: Mapping[str, int] = TWO
    ) -> None:
        self.name, self.what, self.allowed, self.replicas = name, what, allowed, replicas
        self._role = role
        self._aimed: psutil.Process | None = None

    def aim(self, target: Target) -> None:
        """Find the oldest process of the role."""
        self._aimed = target.one(self._role)

    def inject(self, target: Target) -> None:
        """Kill the process."""
        assert self._aimed is not None
        send_signal(self._aimed, signal.SIGKILL)


class Stop(Fault):
    """Fault that hangs a Scorer: SIGSTOP, and SIGCONT after half a minute if it still exists."""

    name, what, replicas = "scorer-stopped", "SIGSTOP one of two Scorers for 30 s", TWO
    allowed = Allowed(failed_share=0.01, p99_back_s=5.0, whole_s=15.0)
    hold_s, watch_s = 30.0, 12.0

    def __init__(self) -> None:
        self._stopped: psutil.Process | None = None

    def aim(self, target: Target) -> None:
        """Find the oldest Scorer."""
        self._stopped = target.replica("Scorer")

    def inject(self, target: Target) -> None:
        """Stop the process."""
        assert self._stopped is not None
        send_signal(self._stopped, signal.SIGSTOP)

    def heal(self, target: Target) -> None:
        """Continue the process."""
        if self._stopped is not None:
            # Serve may have replaced it meanwhile.
            with contextlib.suppress(psutil.NoSuchProcess):
                self._stopped.send_signal(signal.SIGCONT)


KILLS: tuple[Fault, ...] = (
    Kill("scorer", "kill -9 one of two Scorers", REPLICA + "Scorer", ONE_OF_TWO),
    Kill("feature-fetch", "kill -9 one of two FeatureFetch", REPLICA + "FeatureFetch", ONE_OF_TWO),
    Kill("controller", "kill -9 the Serve controller", CONTROLLER, NOTHING),
    Kill("haproxy", "kill -9 HAProxy", HAPROXY, INGRESS),
    Kill("haproxy-manager", "kill -9 HAProxy's manager", MANAGER, INGRESS),
    Stop(),
)
ONLY_SCORER = Kill("only-scorer", "kill -9 the only Scorer", REPLICA + "Scorer", NOTHING, ONE)
