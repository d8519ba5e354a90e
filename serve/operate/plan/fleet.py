"""Simulate the replicas of one deployment, from the decision to add one to the end of the last."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from serve.operate.plan.context import Replica
from serve.operate.plan.nodes import Cluster
from serve.operate.plan.service import Deployment
from serve.operate.plan.virtual_time import VirtualTimeLoop

AnyReplica = TypeVar("AnyReplica", bound=Replica)


class Fleet(Generic[AnyReplica]):
    """Replicas of a deployment, started and stopped until the wanted number runs, oldest first."""

    def __init__(
        self,
        deployment: Deployment,
        start_s: float,
        cluster: Cluster,
        loop: VirtualTimeLoop,
        make: Callable[[str], AnyReplica],
    ) -> None:
        self.deployment = deployment
        # The replicas that take requests, and all that have not ended.
        self.running: list[AnyReplica] = []
        self.replicas: list[AnyReplica] = []
        self.wanted = 0
        self._start_s = start_s
        self._cluster = cluster
        self._loop = loop
        self._make = make
        self._num_made = 0

    @property
    def num_unplaced(self) -> int:
        """Return the number of replicas without room on a node."""
        return sum(replica.node is None for replica in self._staying)

    @property
    def _staying(self) -> list[AnyReplica]:
        return [replica for replica in self.replicas if not replica.is_stopping]

    def scale(self, wanted: int, at_once: bool = False) -> None:
        """Scale to the wanted number of replicas; with `at_once` they need no time to start."""
        self.wanted = wanted
        staying = self._staying
        for _ in range(wanted - len(staying)):
            self._num_made += 1
            self.replicas.append(self._make(f"{self.deployment.name}-{self._num_made}"))
        newest_first = staying[::-1]
        order = sorted(newest_first, key=_last_to_stop)
        for replica in order[: max(len(staying) - wanted, 0)]:
            self._stop(replica)
        self.place(at_once)

    def place(self, at_once: bool = False) -> None:
        """Start waiting replicas on nodes that have room."""
        for replica in self._staying:
            if replica.node is None:
                replica.node = self._cluster.place(self.deployment.needs)
                if replica.node is not None:
                    self._loop.call_later(0.0 if at_once else self._start_s, self._start, replica)

    def _start(self, replica: AnyReplica) -> None:
        if not replica.is_stopping:
            replica.is_running = True
            self.running.append(replica)
            replica.start()

    def _stop(self, replica: AnyReplica) -> None:
        replica.is_stopping = True
        stop_s = 0.0
        if replica.is_running:
            replica.is_running = False
            self.running.remove(replica)
            stop_s = self.deployment.stop_s
        self._loop.call_later(stop_s, self._end, replica)

    def _end(self, replica: AnyReplica) -> None:
        replica.has_ended = True
        self.replicas.remove(replica)
        if replica.node is not None:
            self._cluster.release(replica.node, self.deployment.needs)


def _last_to_stop(replica: Replica) -> tuple[bool, bool, int]:
    """Return the sort key of Ray's stop order: not running, off the head, few neighbours."""
    if replica.node is None:
        return replica.is_running, False, 0
    return replica.is_running, replica.node.is_head, replica.node.num_replicas
