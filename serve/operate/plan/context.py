"""Parts that everything in one simulation shares."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from serve.operate.plan.costs import Costs
from serve.operate.plan.nodes import Node
from serve.operate.plan.outcome import Ledger
from serve.operate.plan.policy import Policy
from serve.operate.plan.service import PlannedService
from serve.operate.plan.virtual_time import VirtualTimeLoop


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
        await self._loop.wait_until(self.done_s(seconds))
