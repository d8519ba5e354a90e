"""Report a simulated replica's request counts to the simulated controller, as often as Ray does."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from serve.operate.plan.event_queue import EventQueue
from serve.operate.plan.fetching import FetchReplica

Series = dict[str, list[tuple[float, float]]]


@dataclass(eq=False)
class Reporter:
    """Reporter that counts every `record_s`, once the loop is free, and sends every `push_s`."""

    events: EventQueue
    replica: FetchReplica
    count: Callable[[], Mapping[str, float]]
    send: Callable[[Series, float], None]
    record_s: float
    push_s: float
    look_back_s: float
    _series: Series = field(default_factory=lambda: defaultdict(list))

    def start(self, at_s: float, push_first: bool) -> None:
        """Start to count and send; a replica sends before it counts, a handle counts first."""
        calls = (self._push, self._record) if push_first else (self._record, self._push)
        for call in calls:
            self.events.at(at_s, call)

    def _record(self) -> None:
        if self.replica.is_gone:
            return
        self.events.at(max(self.events.now_s, self.replica.free_s), self._count)
        self.events.at(self.events.now_s + self.record_s, self._record)

    def _count(self) -> None:
        for key, value in self.count().items():
            self._series[key].append((self.events.now_s, value))

    def _push(self) -> None:
        if self.replica.is_gone:
            return
        now_s = self.events.now_s
        for key, points in list(self._series.items()):
            recent = [point for point in points if point[0] > now_s - self.look_back_s]
            self._series[key] = recent
            if not recent:
                del self._series[key]
        self.send(dict(self._series), now_s)
        self.events.at(now_s + self.push_s, self._push)
