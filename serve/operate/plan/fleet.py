"""Simulate the replicas of one deployment, from the decision to add one to the end of the last."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from serve.operate.plan.context import Replica
from serve.operate.plan.nodes import Cluster
from serve.operate.plan.service import Deployment
from serve.operate.plan.virtual_time import VirtualTimeLoop

# The time that a replica takes to stop, besides the wait for its requests.
STOP_S = 1.0
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
        # The replicas that take requests, those that are not stopping, and all that have not ended.
        self.running: list[AnyReplica] = []
        self.staying: list[AnyReplica] = []
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
        return sum(replica.node is None for replica in self.staying)

    def scale(self, wanted: int, at_once: bool = False) -> None:
        """Scale to the wanted number of replicas; with `at_once` they need no time to start."""
        self.wanted = wanted
        newest_first = self.staying[::-1]
        excess = max(len(newest_first) - wanted, 0)
        for replica in sorted(newest_first, key=self._last_to_stop)[:excess]:
            self._stop(replica)
        for _ in range(wanted - len(self.staying)):
            self._num_made += 1
            replica = self._make(f"{self.deployment.name}-{self._num_made}")
            self.staying.append(replica)
            self.replicas.append(replica)
        self.place(at_once)

    def place(self, at_once: bool = False) -> None:
        """Start waiting replicas on nodes that have room."""
        for replica in self.staying:
            if replica.node is None:
                replica.node = self._cluster.place(self.deployment.needs)
                if replica.node is not None:
                    self._loop.call_later(0.0 if at_once else self._start_s, self._start, replica)

    def _start(self, replica: AnyReplica) -> None:
        if replica in self.staying:
            self.running.append(replica)
            replica.start()

    def _last_to_stop(self, replica: AnyReplica) -> tuple[bool, bool, int]:
        """Return the sort key of Ray's stop order: not running, off the head, few neighbours."""
        is_running = replica in self.running
        if replica.node is None:
            return is_running, False, 0
        return is_running, replica.node.is_head, replica.node.num_replicas

    def _stop(self, replica: AnyReplica) -> None:
        self.staying.remove(replica)
        stop_s = 0.0
        if replica in self.running:
            self.running.remove(replica)
            stop_s = STOP_S + self.deployment.shutdown_wait_loop_s
        self._loop.call_later(stop_s, self._end, replica)

    def _end(self, replica: AnyReplica) -> None:
        replica.has_ended = True
        self.replicas.remove(replica)
        if replica.node is not None:
            self._cluster.release(replica.node, self.deployment.needs)
