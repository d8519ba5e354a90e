"""Processes that are killed, or stopped for a while."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Mapping

import psutil

from loadtest.scenarios.chaos.fault import ONE, TWO, Allowed, Fault
from loadtest.scenarios.chaos.target import CONTROLLER, HAPROXY, MANAGER, REPLICA, Target, signalled

ONE_OF_TWO = Allowed(failed_share=0.0, first="in flight", strength_s=15.0)
NOTHING = Allowed(failed_share=0.0, first="none")
INGRESS = Allowed(failed_share=None, outage_s=5.0, whole_s=15.0)


class Kill(Fault):
    """`kill -9` of one process."""

    def __init__(
        self, name: str, what: str, role: str, allowed: Allowed, replicas: Mapping[str, int] = TWO
    ) -> None:
        self.name, self.what, self.allowed, self.replicas = name, what, allowed, replicas
        self._role = role
        self._aimed: psutil.Process | None = None

    def aim(self, target: Target) -> None:
        """At the oldest process of the role."""
        self._aimed = target.one(self._role)

    def inject(self, target: Target) -> None:
        """Kill it."""
        assert self._aimed is not None
        signalled(self._aimed, signal.SIGKILL)


class Stop(Fault):
    """A Scorer that hangs: SIGSTOP, and SIGCONT after half a minute, if it is still there."""

    name, what, replicas = "scorer-stopped", "SIGSTOP one of two Scorers for 30 s", TWO
    allowed = Allowed(failed_share=0.01, p99_back_s=5.0, whole_s=15.0)
    hold_s, watch_s = 30.0, 12.0

    def __init__(self) -> None:
        self._stopped: psutil.Process | None = None

    def aim(self, target: Target) -> None:
        """At the oldest Scorer."""
        self._stopped = target.replica("Scorer")

    def inject(self, target: Target) -> None:
        """Stop it."""
        assert self._stopped is not None
        signalled(self._stopped, signal.SIGSTOP)

    def heal(self, target: Target) -> None:
        """Have it go on."""
        if self._stopped is not None:
            with contextlib.suppress(psutil.NoSuchProcess):  # replaced by Serve meanwhile
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
