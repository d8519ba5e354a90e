"""Simulate Scorer replicas, and the router that chooses one of them for a call."""

from __future__ import annotations

import asyncio

from serve.operate.plan.context import Core, Replica, SimulationContext


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
        costs = self._costs.scorer
        mean_s = costs.ms_per_batch / 1e3 + costs.us_per_candidate * num_candidates / 1e6
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
            while (replica := self._choose()) is None:
                self.has_room.clear()
                await self.has_room.wait()
            replica.num_ongoing += 1
            return replica

    def release(self, replica: ScorerReplica) -> None:
        """Free the place of a call that is done or given up."""
        replica.num_ongoing -= 1
        self.has_room.set()

    def _choose(self) -> ScorerReplica | None:
        # In random order, so that ties do not all go to the first replica.
        choices = self._context.rng.sample(self.running, min(len(self.running), 2))
        replica = min(choices, key=lambda each: each.num_ongoing, default=None)
        has_room = (
            replica is not None and replica.num_ongoing < self._context.service.scorer.max_ongoing_requests
        )
        return replica if has_room else None
