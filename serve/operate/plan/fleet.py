"""The replicas of one deployment, from the decision that there should be more to the end of the last."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from serve.operate.plan.agenda import Agenda
from serve.operate.plan.nodes import Cluster, Node
from serve.operate.plan.service import Deployment


@dataclass(eq=False)
class Member:
    """One replica. It has no node while none has room, and does not run until it has started."""

    name: str
    node: Node | None = None
    is_running: bool = False
    is_stopping: bool = False


@dataclass(eq=False)
class Fleet:
    """Starts and stops replicas until as many run as are wanted, oldest first in `members`."""

    deployment: Deployment
    start_s: float
    agenda: Agenda
    cluster: Cluster
    began: Callable[[str], None]  # the replica of this name takes requests from now on
    stops: Callable[[str], None]  # it takes no more
    gone: Callable[[str], None]  # it has ended
    wanted: int = 0
    members: list[Member] = field(default_factory=list)
    _num_made: int = 0

    @property
    def running(self) -> list[str]:
        """The names of the replicas that take requests."""
        return [member.name for member in self.members if member.is_running]

    @property
    def num_unplaced(self) -> int:
        """Replicas that no node has room for yet."""
        return sum(member.node is None for member in self._staying)

    @property
    def _staying(self) -> list[Member]:
        return [member for member in self.members if not member.is_stopping]

    def steer(self, wanted: int, at_once: bool = False) -> None:
        """Have as many replicas as are wanted; `at_once` they need no time to start."""
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
        """Start what waits for room, where there is some."""
        for member in self._staying:
            if member.node is None:
                member.node = self.cluster.place(self.deployment.needs, self.agenda.now_s)
                if member.node is not None and at_once:
                    self._start(member)
                elif member.node is not None:
                    self.agenda.at(self.agenda.now_s + self.start_s, self._start, member)

    def _last_to_stop(self, member: Member) -> tuple[bool, bool, int]:
        """Ray stops first what does not run yet, then what is off the head, then what has few neighbours."""
        on_head = member.node is not None and self.cluster.is_head(member.node)
        return member.is_running, on_head, member.node.num_replicas if member.node else 0

    def _start(self, member: Member) -> None:
        if not member.is_stopping:
            member.is_running = True
            self.began(member.name)

    def _stop(self, member: Member) -> None:
        member.is_stopping = True
        if member.is_running:
            member.is_running = False
            self.stops(member.name)
            self.agenda.at(self.agenda.now_s + self.deployment.stop_s, self._end, member)
        else:
            self._end(member)

    def _end(self, member: Member) -> None:
        self.members.remove(member)
        self.gone(member.name)
        if member.node is not None:
            self.cluster.give_back(member.node, self.deployment.needs, self.agenda.now_s)
