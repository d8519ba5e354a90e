"""Simulate FeatureFetch replicas around the service's own `Batcher`, which runs in virtual time."""

from __future__ import annotations

import asyncio

from serve.operate.plan.context import FULL, LATE, REFUSED, SimulationContext
from serve.operate.plan.policy import RUNNING
from serve.operate.plan.replica import Core, Replica
from serve.operate.plan.reporting import report_counts
from serve.operate.plan.scoring import Handle, Router
from serve.operate.plan.service import FETCH, SCORER
from serve.ranking.admission import ANSWER_MARGIN_S
from serve.ranking.batcher import Batcher


class FetchReplica(Replica):
    """Replica that admits requests, has them scored in batches, and answers.

    Its event loop does one thing at a time, so it sees a request that arrives meanwhile later, as
    the real service does. Load shedding is not simulated.
    """

    def __init__(self, context: SimulationContext, router: Router, name: str) -> None:
        super().__init__(name)
        service = context.service
        self._context = context
        self._handle = Handle(context, router)
        self._core = Core(context.ledger)
        self._batcher = Batcher(self._score, slots=service.slots, cap=service.batch_candidates)
        self._half_request_s = context.costs.fetch.us_per_request / 2e6
        self._patience_s = max(service.deadline_s - ANSWER_MARGIN_S, 0.0)
        self._places = asyncio.Semaphore(service.fetch.max_ongoing)
        # Requests that wait for a place.
        self._num_queued = 0
        # Requests with a place, which Ray counts at an ingress.
        self._num_ongoing = 0
        # Connections, which HAProxy counts.
        self.num_connected = 0

    def start(self) -> None:
        """Begin to report to the controller."""
        counts = {FETCH: self._count_requests, SCORER: self._handle.count_calls}
        for deployment in self._context.policy.scaling:
            report = report_counts(self._context, deployment, self, self._core, counts[deployment])
            self._context.tasks.create_task(report)

    def _count_requests(self) -> dict[str, float]:
        return {RUNNING: self._num_ongoing}

    async def answer(self, request: int) -> None:
        """Answer a request from the proxy, and record its outcome."""
        self.num_connected += 1
        await self._core.work(self._half_request_s)
        if self._has_room():
            self._num_queued += 1
            async with self._places:
                self._num_queued -= 1
                self._num_ongoing += 1
                outcome = await self._rank(request)
                await self._core.work(self._half_request_s)
                self._num_ongoing -= 1
        else:
            outcome = REFUSED
        self.num_connected -= 1
        self._context.ledger.end(request, outcome, asyncio.get_running_loop().time())

    def _has_room(self) -> bool:
        limit = self._context.service.fetch.max_queued
        return limit < 0 or self._num_queued < limit or not self._places.locked()

    async def _rank(self, request: int) -> int:
        if not self._context.ledger.by_model[request]:
            return FULL
        deadline = asyncio.get_running_loop().time() + self._patience_s
        try:
            await self._batcher.submit(request, self._context.costs.candidates, deadline)
        except TimeoutError:
            return LATE
        return FULL

    async def _score(self, batch: list[int]) -> list[int]:
        costs = self._context.costs
        await self._core.work(costs.draw_s(costs.fetch.ms_per_batch / 1e3, self._context.rng))
        await self._handle.score(len(batch) * costs.candidates)
        return batch
