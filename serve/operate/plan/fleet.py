"""Simulate the replicas of one deployment, from the decision to add one to the end of the last."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from serve.operate.plan.costs import Costs
from serve.operate.plan.nodes import Cluster, Node
from serve.operate.plan.outcome import Ledger
from serve.operate.plan.policy import Policy
from serve.operate.plan.service import Deployment, PlannedService
from serve.operate.plan.virtual_time import VirtualTimeLoop

# The time that a replica takes to stop, besides the wait for its requests.
STOP_S = 1.0
AnyReplica = TypeVar("AnyReplica", bound="Replica")


@dataclass(frozen=True)
class SimulationContext:
    """Inputs of a simulation, its clock and its records."""

    service: PlannedService
    costs: Costs
    ledger: Ledger
    # By request: whether the Scorer is called for it.
    by_model: Sequence[bool]
    policy: Policy
    rng: random.Random
    cluster: Cluster
    loop: VirtualTimeLoop


class Replica:
    """One replica; it has no node while none has room, and runs only once it has started.

    Replicas of a deployment that is not simulated are of this class: they only use room on nodes.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.node: Node | None = None
        self.has_ended = False

    def start(self) -> None:
        """Do what begins when the replica can take requests."""


class Core:
    """Processor core of one replica, which does one thing at a time, in the order given."""

    def __init__(self, context: SimulationContext) -> None:
        self._loop = context.loop
        self._ledger = context.ledger
        # When the core has done all that it was given so far.
        self._free_s = 0.0

    def done_s(self, seconds: float) -> float:
        """Give the core this much work, and return when it is done."""
        self._free_s = max(self._loop.time(), self._free_s) + seconds
        self._ledger.busy_s += seconds
        return self._free_s

    async def work(self, seconds: float) -> None:
        """Give the core this much work, and wait until it is done.

        Cancelling the wait does not take the work back.
        """
        await asyncio.sleep(self.done_s(seconds) - self._loop.time())


class Fleet(Generic[AnyReplica]):
    """Replicas of a deployment, started and stopped until the wanted number runs, oldest first."""

    def __init__(
        self,
        context: SimulationContext,
        deployment: Deployment,
        start_s: float,
        make: Callable[[str], AnyReplica],
    ) -> None:
        self.deployment = deployment
        # The replicas that take requests, those that are not stopping, and all that have not ended.
        self.running: list[AnyReplica] = []
        self.staying: list[AnyReplica] = []
        self.replicas: list[AnyReplica] = []
        self.wanted = 0
        self._start_s = start_s
        self._cluster = context.cluster
        self._loop = context.loop
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
            stop_s = STOP_S + self.deployment.graceful_shutdown_wait_loop_s
        self._loop.call_later(stop_s, self._end, replica)

    def _end(self, replica: AnyReplica) -> None:
        replica.has_ended = True
        self.replicas.remove(replica)
        if replica.node is not None:
            self._cluster.release(replica.node, self.deployment.needs)
