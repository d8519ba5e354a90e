"""Simulate one FeatureFetch replica: its event loop with the rules of `ranking.batcher`."""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field

from serve.operate.plan.costs import Costs
from serve.operate.plan.event_queue import EventQueue
from serve.operate.plan.ledger import FULL, LATE, QUEUED, REFUSED, TAKEN, Ledger
from serve.operate.plan.scoring import Call, Handle
from serve.ranking.admission import ANSWER_MARGIN_S
from serve.ranking.batcher import MIN_WORK_S, PATIENCE_S


@dataclass(eq=False, slots=True)
class _Batch:
    requests: list[int]
    begun_s: float
    call: Call | None = None
    is_over: bool = False


@dataclass(eq=False)
class FetchReplica:
    """Replica that takes requests, batches them, calls the Scorer through `handle`, and answers.

    Its loop does one thing at a time, so that it sees a request that arrives meanwhile later, as
    the real service does.
    """

    name: str
    events: EventQueue
    costs: Costs
    ledger: Ledger
    handle: Handle
    rng: random.Random
    # When the loop has finished its work so far.
    free_s: float = 0.0
    busy_s: float = 0.0
    # Running requests, which Ray counts at an ingress.
    num_ongoing: int = 0
    # Connections, which HAProxy counts.
    num_connected: int = 0
    is_gone: bool = False
    # Requests above max_ongoing_requests.
    _backlog: deque[int] = field(default_factory=deque)
    _queue: deque[tuple[float, int]] = field(default_factory=deque)
    # Requests of the queue that have not expired.
    _num_queued: int = 0
    _deadlines: deque[tuple[float, int]] = field(default_factory=deque)
    _has_alarm: bool = False
    _has_patience: bool = False
    _num_under_way: int = 0
    _took_s: deque[float] = field(default_factory=lambda: deque(maxlen=8))

    def __post_init__(self) -> None:
        service = self.ledger.service
        self._half_s = self.costs.fetch.us_per_request / 2e6
        self._batch_s = self.costs.fetch.ms_per_batch / 1e3
        self._patient_s = max(service.deadline_s - ANSWER_MARGIN_S, 0.0)
        self._cap = max(service.batch_candidates // self.costs.candidates, 1)
        self._half_cap = service.batch_candidates / self.costs.candidates / 2
        self._slots = service.slots
        self._max_ongoing = service.fetch.max_ongoing
        self._max_queued = service.fetch.max_queued

    def take(self, request: int) -> None:
        """Accept a request; the loop sees it once it is free."""
        self.num_connected += 1
        self.events.at(self._work(self._half_s), self._admit, request)

    def _work(self, seconds: float) -> float:
        """Spend time of the loop and return the time at which the work is done."""
        self.free_s = max(self.events.now_s, self.free_s) + seconds
        self.busy_s += seconds
        return self.free_s

    def _admit(self, request: int) -> None:
        if self.num_ongoing < self._max_ongoing:
            self._begin(request)
        elif self._max_queued < 0 or len(self._backlog) < self._max_queued:
            self._backlog.append(request)
        else:
            self.num_connected -= 1
            self.ledger.end(request, REFUSED, self.events.now_s)

    def _begin(self, request: int) -> None:
        self.num_ongoing += 1
        now_s = self.events.now_s
        if not self.ledger.by_model[request]:
            self.ledger.end(request, FULL, self._work(self._half_s))
            self.events.at(self.free_s, self._answered, 1)
            return
        self.ledger.state[request] = QUEUED
        self._deadlines.append((now_s + self._patient_s, request))
        if not self._has_alarm:
            self._has_alarm = True
            self.events.at(self._deadlines[0][0], self._alarm)
        self._queue.append((now_s, request))
        self._num_queued += 1
        self._fill_slots()
        if self.ledger.state[request] == QUEUED and not self._has_patience:
            self._has_patience = True
            self.events.at(now_s + PATIENCE_S, self._out_of_patience)

    def _answered(self, num_requests: int) -> None:
        self.num_ongoing -= num_requests
        self.num_connected -= num_requests
        while self._backlog and self.num_ongoing < self._max_ongoing:
            self._begin(self._backlog.popleft())

    def _alarm(self) -> None:
        """Answer the requests at their deadline in popular order."""
        state, num_late = self.ledger.state, 0
        while self._deadlines:
            deadline_s, request = self._deadlines[0]
            if state[request] < FULL:
                if deadline_s > self.events.now_s:
                    break
                self._expire(request)
                num_late += 1
            self._deadlines.popleft()
        self._has_alarm = bool(self._deadlines)
        if self._deadlines:
            self.events.at(self._deadlines[0][0], self._alarm)
        self._answered(num_late)

    def _expire(self, request: int) -> None:
        if self.ledger.state[request] == QUEUED:
            self._num_queued -= 1
        self.ledger.end(request, LATE, self._work(self._half_s))

    def _fill_slots(self) -> None:
        queue, state = self._queue, self.ledger.state
        while queue and state[queue[0][1]] != QUEUED:
            queue.popleft()
        while queue and self._may_leave():
            batch = self._next_batch()
            if batch:
                self._num_under_way += 1
                under_way = _Batch([request for _, request in batch], self.events.now_s)
                took_s = self.costs.draw_s(self._batch_s, self.rng)
                self.events.at(self._work(took_s), self._score, under_way)
                until_s = max(batch[-1][0] + self._patient_s, self.events.now_s + MIN_WORK_S)
                self.events.at(until_s, self._give_up, under_way)

    def _may_leave(self) -> bool:
        if not self._num_under_way:
            return True
        if self._num_under_way >= self._slots:
            return False
        return self._num_queued >= self._half_cap or self.events.now_s - self._queue[0][0] >= PATIENCE_S

    def _out_of_patience(self) -> None:
        self._has_patience = False
        self._fill_slots()
        if self._queue:
            self._has_patience = True
            self.events.at(self.events.now_s + PATIENCE_S, self._out_of_patience)

    def _next_batch(self) -> list[tuple[float, int]]:
        queue, state, now_s = self._queue, self.ledger.state, self.events.now_s
        done_by_s = now_s + (min(self._took_s, default=0.0) if self._num_under_way else 0.0)
        batch: list[tuple[float, int]] = []
        num_late = 0
        while queue and len(batch) < self._cap:
            since_s, request = queue.popleft()
            if state[request] != QUEUED:
                continue
            if since_s + self._patient_s < done_by_s:
                self._expire(request)
                num_late += 1
            else:
                self._num_queued -= 1
                state[request] = TAKEN
                batch.append((since_s, request))
        if num_late:
            self.events.at(self.events.now_s, self._answered, num_late)
        return batch

    def _score(self, batch: _Batch) -> None:
        if not batch.is_over:
            size = len(batch.requests) * self.costs.candidates
            batch.call = self.handle.call(size, lambda: self._scored(batch))

    def _scored(self, batch: _Batch) -> None:
        batch.is_over = True
        self._took_s.append(self.events.now_s - batch.begun_s)
        state, num_answered = self.ledger.state, 0
        for request in batch.requests:
            if state[request] == TAKEN:
                self.ledger.end(request, FULL, self._work(self._half_s))
                num_answered += 1
        self.events.at(max(self.free_s, self.events.now_s), self._leave, num_answered)

    def _leave(self, num_answered: int) -> None:
        self._num_under_way -= 1
        self._answered(num_answered)
        self._fill_slots()

    def _give_up(self, batch: _Batch) -> None:
        """Free the slot of a batch for which no request waits any more."""
        if not batch.is_over:
            batch.is_over = True
            if batch.call is not None:
                self.handle.cancel(batch.call)
            self._num_under_way -= 1
            self._fill_slots()
