"""Simulate Scorer replicas, and the handles through which FeatureFetch calls them."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from serve.operate.plan.costs import Costs
from serve.operate.plan.event_queue import EventQueue


@dataclass(eq=False, slots=True)
class Call:
    """Call with one batch; `then` runs when the batch is scored."""

    handle: Handle
    num_candidates: int
    then: Callable[[], None]
    replica: ScorerReplica | None = None
    is_over: bool = False


@dataclass(eq=False)
class ScorerReplica:
    """Replica that scores one batch at a time."""

    name: str
    events: EventQueue
    costs: Costs
    rng: random.Random
    num_ongoing: int = 0
    busy_s: float = 0.0
    is_gone: bool = False
    _queue: deque[Call] = field(default_factory=deque)
    _is_busy: bool = False

    def take(self, call: Call) -> None:
        """Accept a call."""
        self._queue.append(call)
        if not self._is_busy:
            self._next()

    def _next(self) -> None:
        while self._queue:
            call = self._queue.popleft()
            # A call that its caller has given up is skipped.
            if not call.is_over:
                costs = self.costs.scorer
                mean_s = costs.ms_per_batch / 1e3 + costs.us_per_candidate * call.num_candidates / 1e6
                took_s = self.costs.draw_s(mean_s, self.rng)
                self.busy_s += took_s
                self._is_busy = True
                self.events.at(self.events.now_s + took_s, self._done, call)
                return
        self._is_busy = False

    def _done(self, call: Call) -> None:
        self._next()
        if not call.is_over:
            call.handle.router.over(call)
            call.then()


@dataclass(eq=False)
class Router:
    """Router by two choices: of two random replicas the less busy one; if both are full, wait."""

    events: EventQueue
    costs: Costs
    max_ongoing: int
    rng: random.Random
    running: list[ScorerReplica] = field(default_factory=list)
    _waiting: deque[Call] = field(default_factory=deque)

    def send(self, call: Call) -> None:
        """Send a call to a replica, or let it wait."""
        if not self._dispatch(call):
            call.handle.num_queued += 1
            self._waiting.append(call)

    def over(self, call: Call) -> None:
        """Free the place of a call that is done or given up."""
        call.is_over = True
        if call.replica is None:
            call.handle.num_queued -= 1
            return
        call.replica.num_ongoing -= 1
        call.handle.running[call.replica.name] -= 1
        self.retry()

    def retry(self) -> None:
        """Send waiting calls as far as there is room."""
        while self._waiting:
            call = self._waiting[0]
            if not call.is_over:
                if not self._dispatch(call):
                    return
                call.handle.num_queued -= 1
            self._waiting.popleft()

    def _dispatch(self, call: Call) -> bool:
        choices = self.running if len(self.running) <= 2 else self.rng.sample(self.running, 2)
        if not choices:
            return False
        # Ties are broken at random. Otherwise the first replica would get all calls at low load.
        replica = min(choices, key=lambda each: (each.num_ongoing, self.rng.random()))
        if replica.num_ongoing >= self.max_ongoing:
            return False
        call.replica = replica
        replica.num_ongoing += 1
        call.handle.running[replica.name] = call.handle.running.get(replica.name, 0) + 1
        self.events.at(self.events.now_s + self.costs.scorer.ms_per_call / 1e3, replica.take, call)
        return True


@dataclass(eq=False)
class Handle:
    """Handle of a FeatureFetch replica to the Scorer; Ray counts queued and running calls here."""

    router: Router
    num_queued: int = 0
    running: dict[str, int] = field(default_factory=dict)

    def call(self, num_candidates: int, then: Callable[[], None]) -> Call:
        """Call the Scorer for a number of candidates."""
        call = Call(self, num_candidates, then)
        self.router.send(call)
        return call

    def cancel(self, call: Call) -> None:
        """Stop waiting for a call."""
        if not call.is_over:
            self.router.over(call)
