"""Simulate the request path: FeatureFetch around the service's own `Batcher`, and the Scorer."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Mapping

from serve.operate.plan.fleet import Core, Replica, SimulationContext
from serve.operate.plan.outcome import FULL, LATE, REFUSED
from serve.operate.plan.policy import COUNT_FACTOR, QUEUED, RUNNING, Series
from serve.operate.plan.service import FETCH, SCORER
from serve.ranking.admission import SCORES_DUE
from serve.ranking.batcher import Batcher

# Replicas do not report in step: each begins at a random time within half a second.
MAX_DELAY_S = 0.5


class ScorerReplica(Replica):
    """Replica that scores one batch at a time."""

    def __init__(self, context: SimulationContext, router: Router, name: str) -> None:
        super().__init__(name)
        self._costs = context.costs
        self._rng = context.rng
        self._router = router
        self._core = Core(context)
        self._lock = asyncio.Lock()
        self.num_ongoing = 0

    def start(self) -> None:
        """Let calls that wait for room come here."""
        self._router.has_room.set()

    async def score(self, num_candidates: int) -> None:
        """Score a batch; a caller that gives up before it begins costs nothing."""
        mean_s = self._costs.scoring_s(num_candidates)
        async with self._lock:
            # A batch whose caller has given up meanwhile is scored to its end.
            await self._core.work(0.0)
            await self._core.work(self._costs.draw_s(mean_s, self._rng))


class Router:
    """Router by two choices: of two random replicas the less busy one; if both are full, wait."""

    def __init__(self, context: SimulationContext) -> None:
        self._context = context
        self.running: list[ScorerReplica] = []
        # The first call in line waits for room, the others for the lock.
        self._lock = asyncio.Lock()
        self.has_room = asyncio.Event()

    async def acquire(self) -> ScorerReplica:
        """Return a replica, with a place for a call that `release` frees."""
        async with self._lock:
            while True:
                # In random order, so that ties do not all go to the first replica.
                choices = self._context.rng.sample(self.running, min(len(self.running), 2))
                replica = min(choices, key=lambda each: each.num_ongoing, default=None)
                if replica and replica.num_ongoing < self._context.service.scorer.max_ongoing_requests:
                    replica.num_ongoing += 1
                    return replica
                self.has_room.clear()
                await self.has_room.wait()

    def release(self, replica: ScorerReplica) -> None:
        """Free the place of a call that is done or given up."""
        replica.num_ongoing -= 1
        self.has_room.set()


class FetchReplica(Replica):
    """Replica that admits requests, has them scored in batches, and answers.

    Its event loop does one thing at a time, so it sees a request that arrives meanwhile later, as
    the real service does. Load shedding is not simulated.
    """

    def __init__(self, context: SimulationContext, router: Router, name: str) -> None:
        super().__init__(name)
        service = context.service
        self._context = context
        self._loop = context.loop
        self._router = router
        self._core = Core(context)
        self._batcher = Batcher(self._score, max_in_flight=service.slots, cap=service.max_batch_candidates)
        self._half_request_s = context.costs.fetch.us_per_request / 2e6
        self._patience_s = SCORES_DUE * service.deadline_s
        # Requests that wait for a place.
        self._queue: deque[int] = deque()
        # Requests with a place, which Ray counts at an ingress.
        self._num_ongoing = 0
        # Calls of the Scorer, which Ray counts at their handle.
        self._num_queued_calls = 0
        self._num_calls: Counter[ScorerReplica] = Counter()
        # Connections, which HAProxy counts.
        self.num_connected = 0

    def start(self) -> None:
        """Begin to report to the controller."""
        counts = {FETCH: lambda: {RUNNING: self._num_ongoing}, SCORER: self._count_calls}
        for deployment in self._context.policy.scaling:
            delay_s = self._context.rng.random() * MAX_DELAY_S
            self._loop.call_later(delay_s, self._report, deployment, counts[deployment])

    def _count_calls(self) -> dict[str, float]:
        """Return the number of queued calls of the Scorer, and of running ones by replica."""
        calls, running = self._num_calls.items(), self._router.running
        by_replica = {each.name: num for each, num in calls if num or each in running}
        return {QUEUED: self._num_queued_calls, **by_replica}

    def _report(self, deployment: str, count: Callable[[], Mapping[str, float]]) -> None:
        """Begin to report the counts on which a deployment is scaled, as often as Ray does."""
        policy = self._context.policy
        scaling = policy.scaling[deployment]
        send_s, look_back_s = float(scaling.metrics_interval_s), float(scaling.look_back_period_s)
        count_s = min(look_back_s * COUNT_FACTOR, send_s)
        series: Series = defaultdict(list)

        def keep_counting() -> None:
            if not self.has_ended:
                for name, value in count().items():
                    series[name].append((self._loop.time(), value))
                self._loop.call_later(count_s, count_when_free)

        def count_when_free() -> None:
            self._loop.call_at(self._core.done_s(0.0), keep_counting)

        def keep_sending() -> None:
            if not self.has_ended:
                oldest_s = self._loop.time() - look_back_s
                for name, points in list(series.items()):
                    series[name] = [point for point in points if point[0] > oldest_s]
                counted = {name: points for name, points in series.items() if points}
                policy.report(deployment, self.name, counted)
                self._loop.call_later(send_s, keep_sending)

        keep_counting()
        keep_sending()

    def answer(self, request: int) -> None:
        """Take a request from the proxy, and record its outcome in the end."""
        self.num_connected += 1
        self._loop.call_at(self._core.done_s(self._half_request_s), self._admit, request)

    def _admit(self, request: int) -> None:
        fetch = self._context.service.fetch
        if self._num_ongoing < fetch.max_ongoing_requests:
            self._begin(request)
        elif fetch.max_queued_requests < 0 or len(self._queue) < fetch.max_queued_requests:
            self._queue.append(request)
        else:
            self._end(request, REFUSED)

    def _begin(self, request: int) -> None:
        self._num_ongoing += 1
        if self._context.by_model[request]:
            self._loop.create_task(self._rank(request))
        else:
            self._respond(request, FULL)

    async def _rank(self, request: int) -> None:
        outcome = FULL
        deadline = self._loop.time() + self._patience_s
        try:
            await self._batcher.submit(request, self._context.costs.candidates, deadline)
        except TimeoutError:
            outcome = LATE
        self._respond(request, outcome)

    def _respond(self, request: int, outcome: int) -> None:
        self._loop.call_at(self._core.done_s(self._half_request_s), self._leave, request, outcome)

    def _leave(self, request: int, outcome: int) -> None:
        self._num_ongoing -= 1
        if self._queue:
            self._begin(self._queue.popleft())
        self._end(request, outcome)

    def _end(self, request: int, outcome: int) -> None:
        self.num_connected -= 1
        ledger = self._context.ledger
        ledger.state[request], ledger.answered_s[request] = outcome, self._loop.time()

    async def _score(self, batch: list[int]) -> list[int]:
        """Compute the features of a batch and score it; cancelling gives up a call of Scorer."""
        costs, rng = self._context.costs, self._context.rng
        num_candidates = len(batch) * costs.candidates
        await self._core.work(costs.draw_s(costs.fetch.ms_per_batch / 1e3, rng))
        if num_candidates <= costs.fetch.near_candidates:
            await self._core.work(costs.draw_s(costs.scoring_s(num_candidates), rng))
            return batch
        self._num_queued_calls += 1
        try:
            scorer = await self._router.acquire()
        finally:
            self._num_queued_calls -= 1
        self._num_calls[scorer] += 1
        try:
            await asyncio.sleep(costs.scorer.ms_per_call / 1e3)
            await scorer.score(num_candidates)
        finally:
            self._num_calls[scorer] -= 1
            self._router.release(scorer)
        return batch
