"""Simulate the replicas of one deployment, from the decision to add one to the end of the last."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from serve.operate.plan.event_queue import EventQueue
from serve.operate.plan.nodes import Cluster, Node
from serve.operate.plan.service import Deployment


@dataclass(eq=False)
class Member:
    """One replica; it has no node while none has room, and runs only once it has started."""

    name: str
    node: Node | None = None
    is_running: bool = False
    is_stopping: bool = False


@dataclass(eq=False)
class Fleet:
    """Replicas of a deployment, started and stopped until the wanted number runs, oldest first."""

    deployment: Deployment
    start_s: float
    events: EventQueue
    cluster: Cluster
    # Called with a replica's name: when it takes requests, takes no more, and has ended.
    on_start: Callable[[str], None]
    on_stop: Callable[[str], None]
    on_end: Callable[[str], None]
    wanted: int = 0
    members: list[Member] = field(default_factory=list)
    _num_made: int = 0

    @property
    def running(self) -> list[str]:
        """Return the names of the replicas that take requests."""
        return [member.name for member in self.members if member.is_running]

    @property
    def num_unplaced(self) -> int:
        """Return the number of replicas without room on a node."""
        return sum(member.node is None for member in self._staying)

    @property
    def _staying(self) -> list[Member]:
        return [member for member in self.members if not member.is_stopping]

    def scale(self, wanted: int, at_once: bool = False) -> None:
        """Scale to the wanted number of replicas; with `at_once` they need no time to start."""
        self.wanted = wanted
        staying = self._staying
        for _ in range(wanted - len(staying)):
            self._num_made += 1
            self.members.append(Member(f"{self.deployment.name}-{self._num_made}"))
        newest_first = staying[::-1]
        order = sorted(newest_first, key=self._last_to_stop)
        for member in order[: max(len(staying) - wanted, 0)]:
            self._stop(member)
        self.place(at_once)

    def place(self, at_once: bool = False) -> None:
        """Start waiting replicas on nodes that have room."""
        for member in self._staying:
            if member.node is None:
                member.node = self.cluster.place(self.deployment.needs, self.events.now_s)
                if member.node is not None and at_once:
                    self._start(member)
                elif member.node is not None:
                    self.events.at(self.events.now_s + self.start_s, self._start, member)

    def _last_to_stop(self, member: Member) -> tuple[bool, bool, int]:
        """Return the sort key of Ray's stop order: not running, off the head, few neighbours."""
        on_head = member.node is not None and self.cluster.is_head(member.node)
        return member.is_running, on_head, member.node.num_replicas if member.node else 0

    def _start(self, member: Member) -> None:
        if not member.is_stopping:
            member.is_running = True
            self.on_start(member.name)

    def _stop(self, member: Member) -> None:
        member.is_stopping = True
        if member.is_running:
            member.is_running = False
            self.on_stop(member.name)
            self.events.at(self.events.now_s + self.deployment.stop_s, self._end, member)
        else:
            self._end(member)

    def _end(self, member: Member) -> None:
        self.members.remove(member)
        self.on_end(member.name)
        if member.node is not None:
            self.cluster.release(member.node, self.deployment.needs, self.events.now_s)
